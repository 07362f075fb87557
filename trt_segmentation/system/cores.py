# SPDX-License-Identifier: Apache-2.0
"""How many cores this process may use: all that it is given, or its share of them."""

from __future__ import annotations

from math import ceil, inf
import os
from pathlib import Path

import cv2

_CGROUP = Path('/sys/fs/cgroup')
_taken = 0


def cores() -> int:
    """Return how many cores this process may use."""
    return _taken or int(min(len(os.sched_getaffinity(0)), _of_time()))


def threads() -> int:
    """
    Return how many threads ONNX Runtime is to use; 0, its own choice, if all the machine is ours.

    By its own choice it takes all cores that the machine has, and keeps a thread on each, also on
    those that `taskset` or a container leaves to others.
    """
    number = cores()
    return 0 if number == os.cpu_count() else number


def _of_time() -> float:
    """Return how many cores a container's time is worth (cgroup-v2.rst, sched-bwc.rst)."""
    try:
        if (unified := _CGROUP / 'cpu.max').exists():
            quota, period = unified.read_text().split()
        else:
            quota, period = ((_CGROUP / 'cpu' / f'cpu.cfs_{name}_us').read_text()
                             for name in ('quota', 'period'))
        share = float(quota) / float(period)
    except (OSError, ValueError):  # there is none, or it is 'max'
        return inf
    return ceil(share) if share > 0 else inf


def take(number: int) -> None:
    """Use no more than so many cores from now on, OpenCV too: others work beside it."""
    global _taken
    _taken = number
    cv2.setNumThreads(number)
