# SPDX-License-Identifier: Apache-2.0
"""Which of several engines is the fastest here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

_LEAST, _MOST = 5, 15  # rounds
_SECONDS = 3.0  # that all rounds together may take, once there were the least of them


def by_turns(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return how long each call takes, in milliseconds: as `typical` of their `rounds`."""
    return typical(rounds(calls))


def typical(times: np.ndarray) -> list[float]:
    """
    Return the lower quartile of each column of `rounds`.

    Of other work that there was beside them, it has less than the median.
    """
    return [float(value) for value in np.quantile(times, 0.25, axis=0)]


def rounds(calls: Sequence[Callable[[], object]]) -> np.ndarray:
    """
    Return how long each call takes in each round, in milliseconds: (rounds, calls).

    They take turns, so that what else the machine does meets all alike, after a round that warms
    up.
    """
    for call in calls:
        call()
    found: list[list[float]] = []
    begin = perf_counter()
    while len(found) < _LEAST or (len(found) < _MOST and perf_counter() - begin < _SECONDS):
        times = []
        for call in calls:
            start = perf_counter()
            call()
            times.append((perf_counter() - start) * 1e3)
        found.append(times)
    return np.array(found)
