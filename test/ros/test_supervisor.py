# SPDX-License-Identifier: Apache-2.0
"""
The node's decisions, against random histories of what can go wrong.

`World` is the node as far as the supervisor sees it, written from the documentation of rclpy's
lifecycle: it executes actions, which fail as the history says.
"""

from __future__ import annotations

from collections import deque
from itertools import product

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, RuleBasedStateMachine
import pytest

from trt_segmentation.ros.failures import Waits
from trt_segmentation.ros.supervisor import (
    Action,
    ACTIVE,
    Asked,
    BuildBegun,
    BuildEnded,
    decide,
    Failed,
    FINALIZED,
    INACTIVE,
    Kind,
    MAX_BUILDS,
    Mode,
    Returned,
    Situation,
    State,
    Supervisor,
    Tick,
    UNCONFIGURED,
)

KINDS = st.sampled_from(Kind)
# What may become of an attempt: it works, fails in some way, raises while it frees things and is
# then freed, or cannot be freed; or the engine must be built.
OUTCOMES = st.sampled_from(['ok', *Kind, 'error', 'stuck', 'build', 'unproven', 'unproven'])
LIMIT = 3
LONG = 600.0  # seconds: longer than any pause and any minute of the recoveries


class World:
    """A node whose transitions end as they are told; times in seconds."""

    def __init__(self, goal: str, fallbacks: int = 0):
        """Start unconfigured."""
        self.fallbacks = fallbacks
        self.opened = 0  # which engine is open: the wanted one, or a fallback's number
        self.refused: int | None = None  # the engine that must not publish until it is opened anew
        self.lifecycle, self.now, self.goal = UNCONFIGURED, 0.0, goal
        self.outcomes: deque = deque()
        self.proven = False  # whether the engine has passed its test since it failed or was opened
        self.broken = False  # whether it has failed since it was opened
        self.building, self.ended, self.entitled_to_stop = False, False, False
        self.halted = False  # from a check that failed until somebody asks
        self.failures = self.begun_builds = 0
        self.attempts: list[float] = []
        self.supervisor = Supervisor(goal, self.act,
                                     lambda: Situation(self.lifecycle, self.now, LIMIT,
                                                       fallbacks))

    def post(self, event) -> None:
        """Report an event as the node does."""
        if isinstance(event, Failed):
            self.failures += event.kind is Kind.ENGINE
            # What makes a node give up: a check that failed; a build, see `end_build`. With
            # another engine to go to, no engine that is unproven does.
            last = not event.unproven or self.fallbacks <= self.supervisor.state.fallback
            self.entitled_to_stop |= event.kind is Kind.FOR_GOOD and (last or self.fallbacks > 0)
            self.halted |= event.kind is Kind.FOR_GOOD and not self.fallbacks
        if isinstance(event, Asked):
            keeps = event.keeping_active and self.goal == ACTIVE
            self.goal = ACTIVE if keeps else event.goal
            self.entitled_to_stop = self.halted = False
            self.refused = None  # who asks knows better
        self.supervisor.post(event)

    def publishes(self) -> bool:
        """Tell whether masks go out: the pipeline gives none of an engine that is not proven."""
        return self.lifecycle == ACTIVE and self.proven

    def outcome(self):
        """Return how the next attempt ends."""
        return self.outcomes.popleft() if self.outcomes else 'ok'

    def act(self, action: Action) -> None:
        """Execute what was decided."""
        assert not self.ended, 'nothing is done after the end'
        start = {Action.CONFIGURE: UNCONFIGURED, Action.ACTIVATE: INACTIVE,
                 Action.DEACTIVATE: ACTIVE, Action.CLEAN_UP: INACTIVE, Action.MEND: INACTIVE}
        if action is Action.END:
            self.ended = True
            return
        assert self.lifecycle == start[action], f'{action} while {self.lifecycle}'
        assert not self.halted or action is Action.DEACTIVATE, 'it waits for somebody'
        assert action is not Action.ACTIVATE or not self.fallbacks or (
            self.refused != self.opened), 'an engine that was refused is not taken again'
        self.run(action)

    def run(self, action: Action, asked: bool = False) -> bool:
        """Run a transition; return whether it succeeded."""
        outcome = self.outcome()
        if action in (Action.CONFIGURE, Action.ACTIVATE, Action.MEND):
            self.attempts.append(self.now)
            self.proven = False
            if outcome == 'build' and action is Action.CONFIGURE:
                self.begun_builds += not self.building
                self.building = True
                self.post(BuildBegun())
                return False
            if action is Action.CONFIGURE:
                self.opened = 0 if asked else self.supervisor.state.fallback
                self.refused = None
            if outcome == 'unproven':
                if action is not Action.CONFIGURE:
                    self.refused = self.opened
                self.post(Failed(Kind.LATER if action is Action.CONFIGURE else Kind.FOR_GOOD,
                                 str(action), True))
                return False
            if isinstance(outcome, Kind):
                self.broken = action is not Action.CONFIGURE
                if action is Action.CONFIGURE and outcome is Kind.FOR_GOOD:
                    outcome = Kind.LATER
                self.post(Failed(outcome, str(action)))
                return False
            self.broken = False
            if action is not Action.CONFIGURE:
                self.proven = True
            self.lifecycle = {Action.CONFIGURE: INACTIVE, Action.ACTIVATE: ACTIVE}.get(
                action, self.lifecycle)
            if action is Action.CONFIGURE:
                self.building = False
            return True
        if outcome in ('error', 'stuck'):
            self.post(Failed(Kind.ENGINE if outcome == 'error' else Kind.LOST, str(action)))
            self.proven = False
            self.lifecycle = UNCONFIGURED if outcome == 'error' else FINALIZED
            return False
        self.lifecycle = {Action.DEACTIVATE: INACTIVE, Action.CLEAN_UP: UNCONFIGURED}[action]
        return True

    def step(self, seconds: float = 0.1) -> None:
        """Let time pass."""
        self.now += seconds
        if not self.ended:
            self.supervisor.step()

    def end_build(self, kind) -> None:
        """End the build that runs."""
        self.building = False
        self.supervisor.post(BuildEnded(kind, 'build'))
        self.failures += kind is Kind.ENGINE
        if kind is not None:
            self.entitled_to_stop |= kind is Kind.FOR_GOOD or self.begun_builds >= MAX_BUILDS

    def settle(self) -> None:
        """Let a long time pass in which nothing fails any more."""
        self.outcomes.clear()
        until = self.now + LONG
        while self.now < until and not self.ended:
            if self.building:
                self.end_build(None)
            self.step(0.5)


class Histories(RuleBasedStateMachine):
    """Everything that can happen to the node, in any order."""

    @initialize(autostart=st.booleans(), fallbacks=st.integers(0, 3))
    def start(self, autostart, fallbacks):
        """Start the node."""
        self.world = World(ACTIVE if autostart else UNCONFIGURED, fallbacks)

    @rule(outcomes=st.lists(OUTCOMES, max_size=4))
    def plan(self, outcomes):
        """Say how the next attempts end."""
        self.world.outcomes.extend(outcomes)

    @rule(seconds=st.sampled_from([0.1, 0.1, 1.0, 20.0, 61.0]))
    def wait(self, seconds):
        """Let time pass."""
        self.world.step(seconds)

    @rule(kind=st.sampled_from([Kind.ENGINE, Kind.ENGINE, Kind.LOST]), times=st.integers(1, 3))
    def fail_in_a_frame(self, kind, times):
        """Let frames fail, as many as were on their way."""
        if self.world.publishes():
            self.world.proven, self.world.broken = False, True
            for _ in range(times):
                self.world.post(Failed(kind, 'frame'))

    @rule(kind=KINDS)
    def fail_the_self_test(self, kind):
        """Ask for the self-test, which fails."""
        if self.world.lifecycle in (INACTIVE, ACTIVE) and not self.world.ended:
            self.world.proven = False
            self.world.post(Failed(kind, 'self-test'))
            self.world.step(0.0)

    @rule()
    def disagree(self):
        """Let the masks that are published differ too much from the float network's."""
        if self.world.publishes():
            self.world.refused = self.world.opened
            self.world.post(Failed(Kind.FOR_GOOD, 'live agreement', True))

    @rule()
    def return_(self):
        """Let the wanted engine pass its self-test beside the one that serves."""
        self.world.post(Returned())

    @rule(kind=st.sampled_from([None, Kind.ENGINE, Kind.LATER, Kind.FOR_GOOD]))
    def end_the_build(self, kind):
        """Let the build end."""
        if self.world.building:
            self.world.end_build(kind)

    @rule(action=st.sampled_from([Action.CONFIGURE, Action.ACTIVATE, Action.DEACTIVATE,
                                  Action.CLEAN_UP]))
    def ask(self, action):
        """Ask for a transition from outside, if the state has it."""
        world = self.world
        start, goal = {
            Action.CONFIGURE: (UNCONFIGURED, INACTIVE),
            Action.ACTIVATE: (INACTIVE, ACTIVE), Action.DEACTIVATE: (ACTIVE, INACTIVE),
            Action.CLEAN_UP: (INACTIVE, UNCONFIGURED)}[action]
        if world.lifecycle == start and not world.ended:
            world.begun_builds = 0
            # Several may be asked for before the supervisor gets to it.
            world.post(Asked(goal, keeping_active=action is Action.CONFIGURE))
            world.run(action, asked=True)

    @invariant()
    def publishes_only_from_a_proven_engine(self):
        """See that an engine that failed is never among those that publish."""
        if hasattr(self, 'world'):
            assert not (self.world.publishes() and self.world.broken)

    @invariant()
    def what_is_open_is_what_is_said(self):
        """See that the engine that publishes is the one that the supervisor knows of."""
        # What was asked for and done from outside it hears of in its next step.
        if hasattr(self, 'world') and self.world.publishes() and (
                not self.world.supervisor._events):
            state = self.world.supervisor.state
            assert state.mode is Mode.CHANGING or self.world.opened == state.fallback
            assert 0 <= state.fallback <= self.world.fallbacks
            assert bool(state.fallen) == (state.fallback > 0)

    @invariant()
    def recovers_so_often_a_minute(self):
        """See that recoveries keep their limit."""
        if hasattr(self, 'world'):
            begun = self.world.supervisor.state.begun
            assert all(later - earlier >= 60 for earlier, later in zip(begun, begun[LIMIT:]))

    @invariant()
    def tells_why(self):
        """See that a node that waits for something says for what."""
        if hasattr(self, 'world'):
            state = self.world.supervisor.state
            if state.mode in (Mode.RECOVERING, Mode.RETRYING, Mode.GIVEN_UP, Mode.ENDING):
                assert state.reason

    def teardown(self):
        """See, at the end of each history, that the node gets where it shall, and lost nothing."""
        if not hasattr(self, 'world'):
            return
        world = self.world
        world.settle()
        state = world.supervisor.state
        if not world.ended:
            assert state.faults == world.failures, 'every fault is counted'
            assert state.goal == world.goal
            if state.mode is Mode.GIVEN_UP:
                assert world.entitled_to_stop, 'it gives up for a reason only'
                assert world.lifecycle != ACTIVE
            else:
                assert world.lifecycle == world.goal and state.reason == ''
                assert world.goal != ACTIVE or world.publishes()


Histories.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


def test_every_decision_is_defined():
    """In every mode, lifecycle state and event the action fits the lifecycle state."""
    fits = {Action.CONFIGURE: {UNCONFIGURED}, Action.ACTIVATE: {INACTIVE},
            Action.DEACTIVATE: {ACTIVE}, Action.CLEAN_UP: {INACTIVE}, Action.MEND: {INACTIVE}}
    events = [Tick(), Returned(), BuildBegun(), BuildEnded(),
              *[Failed(kind, 'x') for kind in Kind],
              *[BuildEnded(kind, 'x') for kind in Kind],
              *[Asked(goal) for goal in (UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED)]]
    lifecycles = UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED
    seen = set()
    for mode, goal, lifecycle, event in product(Mode, lifecycles, lifecycles, events):
        _, action = decide(event, State(goal, mode, reason='y'),
                           Situation(lifecycle, 100.0, LIMIT))
        assert lifecycle in fits.get(action, {lifecycle})
        seen.add(action)
    assert seen == set(Action)


def test_what_is_not_there_yet_is_tried_again_slowly():
    """A bundle that appears after 3 s, descriptors that are short for a while."""
    world = World(ACTIVE)
    world.outcomes.extend([Kind.LATER] * 8)
    while world.lifecycle != ACTIVE:
        world.step()
    gaps = [round(later - earlier) for earlier, later in zip(world.attempts, world.attempts[1:])]
    assert gaps[:8] == [1, 2, 4, 8, 16, 30, 30, 30]


def test_that_it_tries_again_is_said_when_it_begins_and_every_five_minutes():
    told, state = [], State(ACTIVE)
    waits = Waits()

    def step(event, now):
        nonlocal state
        state, action = decide(event, state, Situation(UNCONFIGURED, now, LIMIT))
        if text := waits.look(state, now):
            told.append((now, text))
        return action

    for second in range(701):
        if step(Tick(), float(second)) is Action.CONFIGURE:
            step(Failed(Kind.LATER, 'no bundle'), float(second))
    (first, begun), *later = told
    assert first == 0.0 and 'trying again by itself: after 1 s' in begun and '30 s' in begun
    assert len(later) == 2 and all(text.startswith('no bundle; still trying again') for _, text
                                   in later)
    assert 300 <= later[0][0] < 335 and 300 <= later[1][0] - later[0][0] < 335
    step(Failed(Kind.FOR_GOOD, 'refused'), 702.0)
    assert told[-1][0] == 702.0 and told[-1][1].startswith('not trying again by itself')


def test_what_fails_anew_after_it_had_succeeded_is_said_anew():
    waits, failed = Waits(), State(ACTIVE, Mode.RETRYING, 'no bundle')
    assert waits.look(failed, 1.0) and not waits.look(failed, 2.0)
    assert not waits.look(State(ACTIVE, Mode.PURSUING, 'no bundle'), 3.0)
    assert not waits.look(failed, 4.0)
    assert not waits.look(State(ACTIVE), 5.0)
    assert waits.look(failed, 6.0)
    assert waits.look(State(ACTIVE, Mode.RETRYING, 'another'), 7.0)


@pytest.mark.parametrize(('kind', 'begun'), [
    (Kind.ENGINE, MAX_BUILDS), (Kind.LATER, MAX_BUILDS), (Kind.FOR_GOOD, 1)])
def test_builds_that_fail_are_not_begun_again_without_end(kind, begun):
    world = World(ACTIVE)
    for _ in range(20):
        world.outcomes.append('build')
        for _ in range(1000):
            world.step()
        if world.building:
            world.end_build(kind)
    assert world.begun_builds == begun and world.supervisor.state.mode is Mode.GIVEN_UP
    world.post(Asked(ACTIVE))  # such as with another bundle
    world.outcomes.clear()
    world.settle()
    assert world.lifecycle == ACTIVE


def test_a_fault_while_the_node_deactivates_itself_strands_it_not():
    world = World(ACTIVE)
    world.settle()
    world.outcomes.append('error')
    world.post(Failed(Kind.ENGINE, 'frame'))
    world.settle()
    assert world.lifecycle == ACTIVE and not world.ended


def test_a_clean_up_that_fails_ends_the_process():
    world = World(ACTIVE)
    world.settle()
    world.lifecycle = FINALIZED  # where rclpy goes when on_error fails
    world.step()
    assert world.ended and world.supervisor.state.reason


def test_who_shuts_it_down_leaves_it_so():
    world = World(ACTIVE)
    world.settle()
    world.post(Asked(FINALIZED))
    world.lifecycle = FINALIZED
    world.settle()
    assert not world.ended and world.lifecycle == FINALIZED


def test_without_fallbacks_an_unproven_engine_is_what_it_was():
    for kind in Kind:
        for mode in Mode:
            at, state = Situation(ACTIVE, 5.0, LIMIT), State(ACTIVE, mode, reason='y')
            assert decide(Failed(kind, 'x', True), state, at) == decide(
                Failed(kind, 'x'), state, at)


def test_it_goes_down_step_by_step_says_why_and_comes_back():
    world = World(ACTIVE, fallbacks=3)
    world.settle()
    state = lambda: world.supervisor.state  # noqa: E731
    assert (state().fallback, state().fallen) == (0, '')
    world.outcomes.extend(['ok', 'ok', 'unproven'])  # the first fallback is not in the store
    world.post(Failed(Kind.FOR_GOOD, 'self-test: a mask differs', True))
    world.proven = False
    for _ in range(20):
        world.step()
    assert (world.lifecycle, world.opened, state().fallback) == (ACTIVE, 2, 2)
    assert state().fallen == 'self-test: a mask differs' and state().reason == ''
    world.post(Returned())
    world.settle()
    assert (world.lifecycle, world.opened, state().fallen) == (ACTIVE, 0, '')


def test_the_last_engine_that_fails_leaves_it_as_without():
    world = World(ACTIVE, fallbacks=1)
    world.settle()
    for _ in range(2):
        world.proven = False
        world.post(Failed(Kind.FOR_GOOD, 'self-test', True))
        for _ in range(100):
            world.step()
    assert state_of(world) == (INACTIVE, Mode.GIVEN_UP, 1)
    world.post(Asked(INACTIVE, keeping_active=True))
    world.step()
    assert world.supervisor.state.fallback == 0


def test_a_file_that_cannot_be_read_while_engines_change_brings_no_refused_one_back():
    world = World(ACTIVE, fallbacks=1)
    world.settle()
    world.refused, world.proven = 0, False
    for event in (Failed(Kind.FOR_GOOD, 'live agreement', True), Failed(Kind.LATER, 'self-test'),
                  Failed(Kind.ENGINE, 'frame')):
        world.post(event)
    world.settle()
    assert (world.lifecycle, world.opened) == (ACTIVE, 1)


def state_of(world):
    return world.lifecycle, world.supervisor.state.mode, world.supervisor.state.fallback


def test_what_an_engine_failed_in_twice_before_it_went_counts_once():
    world = World(ACTIVE, fallbacks=1)
    world.settle()
    for reason in ('self-test', 'live agreement'):
        world.post(Failed(Kind.FOR_GOOD, reason, True))
    world.proven = False
    world.settle()
    assert (world.lifecycle, world.opened) == (ACTIVE, 1)
