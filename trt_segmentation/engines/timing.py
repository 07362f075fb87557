# SPDX-License-Identifier: Apache-2.0
"""Which of several engines is the fastest here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

_LEAST, _MOST = 5, 15  # rounds
_SECONDS = 3.0  # that all rounds together may take, once there were the least of them


def by_turns(calls: Sequence[Callable[[], object]]) -> list[float]:
    """
    Return how long each call takes, in milliseconds: the lower quartile of its runs.

    They take turns, so that what else the machine does meets all alike, after a round that warms
    up; of what is left of other work, the lower quartile has less than the median.
    """
    for call in calls:
        call()
    rounds: list[list[float]] = []
    begin = perf_counter()
    while len(rounds) < _LEAST or (len(rounds) < _MOST and perf_counter() - begin < _SECONDS):
        times = []
        for call in calls:
            start = perf_counter()
            call()
            times.append((perf_counter() - start) * 1e3)
        rounds.append(times)
    return [float(value) for value in np.quantile(rounds, 0.25, axis=0)]
