# SPDX-License-Identifier: Apache-2.0
"""The node's time, by which frames age: the system's, or /clock with use_sim_time."""

from __future__ import annotations

from time import monotonic
from typing import NamedTuple

from rclpy.node import Node

MAX_PAST_NS = 10_000_000_000
MAX_FUTURE_NS = 500_000_000
"""A stamp further away from now than this, to either side, is from another clock."""

_CLOCK = '/clock'
_LIMITS = f'more than {MAX_PAST_NS * 1e-9:g} s behind or {MAX_FUTURE_NS * 1e-9:g} s ahead'
_STANDS = 2.0  # seconds; two looks, a second apart, may see the same time
_UNSEEN = 3.0  # seconds between two looks after which nobody knows whether it moved


class Age(NamedTuple):
    """A frame's age in nanoseconds, and whether its stamp is from another clock."""

    ns: int
    foreign: bool


def age(stamp_ns: int, now_ns: int, waited_ns: int) -> Age:
    """
    Return the age of a frame: by its stamp, and never less than it has been here.

    :param stamp_ns: the frame's stamp
    :param now_ns: the node's time, on the clock that stamps should come from
    :param waited_ns: time since the frame arrived, on a steady clock: this is the age of a frame
        whose stamp is from another clock (a bag played without /clock, a camera without one), or
        lies a little ahead
    """
    by_stamp = now_ns - stamp_ns
    if not -MAX_FUTURE_NS <= by_stamp <= MAX_PAST_NS:
        return Age(waited_ns, True)
    return Age(max(by_stamp, waited_ns), False)


class NodeTime:
    """Tells the time, and what to do where stamps do not fit it."""

    def __init__(self, node: Node):
        """Start without having looked."""
        self._node, self._clock = node, node.get_clock()
        self._seen_ns = 0
        self._looked = self._moved = monotonic()

    def now_ns(self) -> int:
        """Return the time in nanoseconds; 0 with use_sim_time before any /clock."""
        return self._clock.now().nanoseconds

    def look(self) -> None:
        """See whether the time moves; call it every second."""
        now, now_ns = monotonic(), self.now_ns()
        if now_ns != self._seen_ns or now - self._looked > _UNSEEN:
            self._moved = now
        self._looked, self._seen_ns = now, now_ns

    @property
    def recorded(self) -> bool:
        """Tell whether it is that of /clock."""
        return self._clock.ros_time_is_active

    @property
    def against_age(self) -> str:
        """Return what to do about frames that are too old."""
        return 'play the recording more slowly' if self.recorded else 'set the clock of the camera'

    def foreign(self, behind_s: float) -> str:
        """
        Return why a stamp is taken for another clock's, and what to do.

        :param behind_s: how far it lies behind the node's time, negative if ahead
        """
        where = f'{_span(abs(behind_s))} {"ahead of" if behind_s < 0 else "behind"}'
        if not self.recorded:
            return (f"a stamp lies {where} this machine's clock, so it is from another one "
                    f'({_LIMITS}): for a recording set use_sim_time and publish /clock (ros2 bag '
                    'play --clock), for a camera synchronize the clocks')
        publishers = self._node.count_publishers(_CLOCK)
        if not self.now_ns():
            return ('use_sim_time is set, and no /clock has come: '
                    + ('it has a publisher, so wait, or look why its messages are lost'
                       if publishers else 'nobody publishes it: play the recording with it '
                       '(ros2 bag play --clock), or set use_sim_time to false'))
        stands = monotonic() - self._moved
        if stands >= _STANDS:
            return (f'no /clock for {stands:.1f} s, or always the same: '
                    + ('its publisher is paused, or its messages are late or lost' if publishers
                       else 'its publisher has ended, but images still come'))
        return (f'a stamp lies {where} /clock, so it is from another one ({_LIMITS}): play images '
                'and /clock from one recording; where /clock comes late, more slowly')


def _span(seconds: float) -> str:
    """Return a time in words, with a unit in which it can be read."""
    for unit, length in (('days', 86400.0), ('hours', 3600.0)):
        if seconds >= 2 * length:
            return f'{seconds / length:.1f} {unit}'
    return f'{seconds:.1f} s'
