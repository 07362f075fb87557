# SPDX-License-Identifier: Apache-2.0
"""How old a frame is, and whether its stamp can be believed."""

from __future__ import annotations

from typing import NamedTuple

MAX_PAST_NS = 10_000_000_000
MAX_FUTURE_NS = 500_000_000
"""A stamp further away from now than this, to either side, is from another clock."""


class Age(NamedTuple):
    """A frame's age in nanoseconds, and whether its stamp is from another clock."""

    ns: int
    foreign: bool


def age(stamp_ns: int, now_ns: int, waited_ns: int) -> Age:
    """
    Return the age of a frame.

    :param stamp_ns: the frame's stamp
    :param now_ns: the node's time, on the clock that stamps should come from
    :param waited_ns: time since the frame arrived, on a steady clock: this is the age of a frame
        whose stamp is from another clock (a bag played without /clock, a camera without one)
    """
    by_stamp = now_ns - stamp_ns
    if not -MAX_FUTURE_NS <= by_stamp <= MAX_PAST_NS:
        return Age(waited_ns, True)
    return Age(max(by_stamp, 0), False)
