# SPDX-License-Identifier: Apache-2.0
"""How many cores this process may use: all that it is given, or its share of them."""

from __future__ import annotations

import os

import cv2

_taken = 0


def cores() -> int:
    """Return how many cores this process may use."""
    return _taken or len(os.sched_getaffinity(0))


def taken() -> int:
    """Return the share of the machine that this process was told to take; 0 if it was not."""
    return _taken


def take(number: int) -> None:
    """Use no more than so many cores from now on, OpenCV too: others work beside it."""
    global _taken
    _taken = number
    cv2.setNumThreads(number)
