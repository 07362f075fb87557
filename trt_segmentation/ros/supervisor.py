# SPDX-License-Identifier: Apache-2.0
"""
What the node shall do next: a state machine without side effects, and the queue that feeds it.

`decide` sees what has happened and where the node is, and returns the new state and one action.
The node executes actions and reports what came of them, and decides nothing itself. What follows
is checked in the tests against random histories: a node that wants to be active and has not given
up becomes active, or its process ends.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import auto, Enum

UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED = 'unconfigured', 'inactive', 'active', 'finalized'
"""The lifecycle states that last, by rclpy's names."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before what a file or the machine was in the way of is tried again; they double."""
MAX_BUILDS = 3
"""Builds that may fail one after the other before the node waits for somebody."""
_MINUTE = 60.0


class Kind(Enum):
    """What an error asks for."""

    ENGINE = auto()  # the engine failed: open it again, so often in a minute
    LATER = auto()  # a file, a descriptor, a disk: it may be mended any time, so try again slowly
    FOR_GOOD = auto()  # trying again would give the same: wait until somebody asks
    LOST = auto()  # nothing but another process can help


class Mode(Enum):
    """What stands between the node and its goal."""

    PURSUING = auto()  # nothing: it goes there
    CHANGING = auto()  # another engine takes the place of the one that is open
    BUILDING = auto()  # a child process builds the engine
    RECOVERING = auto()  # the engine failed; it is opened again when the limit allows it
    RETRYING = auto()  # something was in the way; tried again when it is due
    GIVEN_UP = auto()  # until somebody asks for a transition
    ENDING = auto()  # the process ends


class Action(Enum):
    """What the node shall do; MEND opens the engine again and proves it, while inactive."""

    NOTHING = auto()
    CONFIGURE = auto()
    ACTIVATE = auto()
    DEACTIVATE = auto()
    CLEAN_UP = auto()
    MEND = auto()
    END = auto()


@dataclass(frozen=True)
class Asked:
    """
    Somebody asked for a transition, which leads to this state.

    keeping_active: whether a node that strives to be active goes on from there
    """

    goal: str
    keeping_active: bool = False


@dataclass(frozen=True)
class Failed:
    """
    A transition, an action or a frame failed.

    unproven: the engine is not there, or gave masks that it must not give: another one may do
    """

    kind: Kind
    reason: str
    unproven: bool = False


@dataclass(frozen=True)
class Returned:
    """The engine that is wanted has passed its self-test, while another one serves."""


@dataclass(frozen=True)
class BuildBegun:
    """A child process builds the engine."""


@dataclass(frozen=True)
class BuildEnded:
    """It has ended: well if `kind` is None."""

    kind: Kind | None = None
    reason: str = ''


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = Asked | Failed | Returned | BuildBegun | BuildEnded | Tick


@dataclass(frozen=True)
class Situation:
    """
    Where the node is.

    lifecycle: the lifecycle state
    now: a steady clock, seconds
    max_recoveries: how many may begin within a minute
    fallbacks: how many other engines may take the place of the one that is wanted
    """

    lifecycle: str
    now: float
    max_recoveries: int
    fallbacks: int = 0


@dataclass(frozen=True)
class State:
    """
    What the supervisor knows.

    goal: the lifecycle state that is wanted
    reason: why it is not reached; '' if nothing failed on the way
    due, pause: RETRYING: when it is tried again; seconds that it waits if it fails once more
    failed_builds: builds that failed since the last one that was used
    begun: when the recoveries of the last minute began
    faults, recoveries: how many there have been
    last_fault: what the last one said
    fallback: which engine is to be open: 0 for the wanted one, else a fallback's number
    fallen: why it is not the wanted one; '' if it is
    """

    goal: str
    mode: Mode = Mode.PURSUING
    reason: str = ''
    due: float = 0.0
    pause: float = FIRST_PAUSE
    failed_builds: int = 0
    begun: tuple[float, ...] = ()
    faults: int = 0
    recoveries: int = 0
    last_fault: str = ''
    fallback: int = 0
    fallen: str = ''


def decide(event: Event, state: State, at: Situation) -> tuple[State, Action]:
    """Return what follows from an event: the new state, and what to do."""
    if state.mode is Mode.ENDING:
        return state, Action.NOTHING
    if isinstance(event, Asked):
        # Whoever asks has mended something, or knows better.
        goal = ACTIVE if event.keeping_active and state.goal == ACTIVE else event.goal
        mode = Mode.PURSUING
        if event.keeping_active:  # a configuration begins with the engine that is wanted
            state = replace(state, fallback=0, fallen='')
        elif state.mode is Mode.CHANGING:  # what is open is not what is to be open
            mode = Mode.CHANGING
        return replace(state, goal=goal, mode=mode, pause=FIRST_PAUSE,
                       failed_builds=0), Action.NOTHING
    if isinstance(event, Returned):
        if not state.fallback or state.mode is not Mode.PURSUING:
            return state, Action.NOTHING
        return replace(state, mode=Mode.CHANGING, fallback=0, fallen=''), Action.NOTHING
    if isinstance(event, BuildBegun):
        return replace(state, mode=Mode.BUILDING), Action.NOTHING
    if isinstance(event, BuildEnded):
        return _after_build(event, state, at), Action.NOTHING
    if isinstance(event, Failed):
        return _after_failure(event, state, at)
    return _go_on(state, at)


def _after_build(event: BuildEnded, state: State, at: Situation) -> State:
    """Return the state after a build."""
    if event.kind is None:
        return replace(state, mode=Mode.PURSUING)
    builds = state.failed_builds + 1
    refused = event.kind is Kind.FOR_GOOD or builds >= MAX_BUILDS
    state, _ = _after_failure(Failed(event.kind, event.reason, refused), state, at)
    if state.mode is Mode.CHANGING:
        builds = 0  # of the next engine none has failed
    if builds >= MAX_BUILDS:
        state = replace(state, mode=Mode.GIVEN_UP, reason=f'{event.reason} ({builds} builds '
                        'failed; none is begun again until somebody asks for configure)')
    return replace(state, failed_builds=builds)


def _after_failure(event: Failed, state: State, at: Situation) -> tuple[State, Action]:
    """Return the state after something failed; the next step leads out of `active`."""
    if event.kind is Kind.ENGINE:
        state = replace(state, faults=state.faults + 1, last_fault=event.reason)
    if event.kind is Kind.LOST:
        return replace(state, mode=Mode.ENDING, reason=event.reason), Action.END
    if state.mode is Mode.CHANGING:
        return state, Action.NOTHING  # of the engine that goes anyway
    if event.unproven and state.fallback < at.fallbacks and state.mode is not Mode.GIVEN_UP:
        return replace(state, mode=Mode.CHANGING, fallback=state.fallback + 1,
                       fallen=state.fallen or event.reason, reason=event.reason), Action.NOTHING
    if state.mode is not Mode.GIVEN_UP:
        state = replace(state, reason=event.reason)
        if event.kind is Kind.ENGINE:
            state = replace(state, mode=Mode.RECOVERING)
        elif event.kind is Kind.LATER:
            state = replace(state, mode=Mode.RETRYING, due=at.now + state.pause,
                            pause=min(2 * state.pause, LONGEST_PAUSE))
        else:
            state = replace(state, mode=Mode.GIVEN_UP)
    return state, Action.NOTHING


def _go_on(state: State, at: Situation) -> tuple[State, Action]:
    """Return the next step to the goal, if one can be made now."""
    if at.lifecycle == FINALIZED:
        if state.goal == FINALIZED:  # somebody asked for it
            return state, Action.NOTHING
        # A clean-up failed, and no transition leads out of it.
        return replace(state, mode=Mode.ENDING, reason=state.reason or 'it was finalized'
                       ), Action.END
    if state.mode in (Mode.CHANGING, Mode.RECOVERING, Mode.RETRYING,
                      Mode.GIVEN_UP) and at.lifecycle == ACTIVE:
        return state, Action.DEACTIVATE
    if state.mode is Mode.CHANGING:
        if at.lifecycle == INACTIVE:
            return state, Action.CLEAN_UP
        state = replace(state, mode=Mode.PURSUING)
    if state.mode is Mode.RECOVERING:
        begun = tuple(moment for moment in state.begun if at.now - moment < _MINUTE)
        if len(begun) >= at.max_recoveries:
            return state, Action.NOTHING
        state = replace(state, mode=Mode.PURSUING, begun=(*begun, at.now),
                        recoveries=state.recoveries + 1)
        if at.lifecycle == INACTIVE == state.goal:
            return state, Action.MEND
    elif state.mode is Mode.RETRYING:
        if at.lifecycle == INACTIVE:  # from the beginning: the bundle is another one, perhaps
            return state, Action.CLEAN_UP
        if at.now < state.due:
            return state, Action.NOTHING
        state = replace(state, mode=Mode.PURSUING)
    elif state.mode is not Mode.PURSUING:
        return state, Action.NOTHING
    if at.lifecycle == state.goal:
        return replace(state, reason='', pause=FIRST_PAUSE, failed_builds=0), Action.NOTHING
    if at.lifecycle == UNCONFIGURED and state.goal in (INACTIVE, ACTIVE):
        return state, Action.CONFIGURE
    if at.lifecycle == INACTIVE and state.goal == ACTIVE:
        return state, Action.ACTIVATE
    return state, Action.NOTHING


class Supervisor:
    """
    Takes events from any thread, decides one after the other, and lets the actions be executed.

    state: what it knows; may be read in any thread
    """

    def __init__(self, goal: str, act: Callable[[Action], None],
                 look: Callable[[], Situation]):
        """
        Start.

        :param goal: the lifecycle state that is wanted
        :param act: executes an action; what fails then it reports by `post`
        :param look: returns where the node is
        """
        self.state = State(goal)
        self._act, self._look = act, look
        self._events: deque[Event] = deque()

    def post(self, event: Event) -> None:
        """Report an event; in any thread."""
        self._events.append(event)

    def step(self) -> None:
        """Decide on all events so far, then go on; call it again and again, in one thread."""
        while self._events:
            self._apply(self._events.popleft())
        self._apply(Tick())

    def _apply(self, event: Event) -> None:
        """Decide on one event, and act."""
        self.state, action = decide(event, self.state, self._look())
        if action is not Action.NOTHING:
            self._act(action)
