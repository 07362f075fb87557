# SPDX-License-Identifier: Apache-2.0
"""How far the engine's masks agree with the float network's on the road: figures, and when."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from statistics import median
import threading

import cv2
import numpy as np

from trt_segmentation.bundles.labels import IGNORE, LabelSet
from trt_segmentation.engines.acceptance import enough_to_judge

WINDOW_S = 3600.0
RECENT = 6
"""Checks whose median is the live agreement of now: a minute, at the default period."""
_BASELINE = 30  # checks that the trend compares: the first ones, and the last ones


def due(now: float, began: float | None, took: float, period_s: float, max_share: float) -> bool:
    """
    Tell whether another frame is to be checked.

    :param now, began: now, and when the last check began, or None before the first; steady, s
    :param took: seconds that the last check took
    :param period_s: between the beginnings of two checks; 0 for none at all
    :param max_share: the share 0..1 of the time that checks may take
    """
    if not period_s or not max_share:
        return False
    return began is None or now - began >= max(period_s, took / max_share)


@dataclass(frozen=True)
class Comparison:
    """
    An engine's mask of a frame against the float network's.

    pixels, same: int64 (256,): the float network's pixels by train id, and those of them that the
        engine gave the same class; 255 is ignored
    """

    pixels: np.ndarray
    same: np.ndarray

    @classmethod
    def of(cls, reference: np.ndarray, classes: np.ndarray) -> Comparison:
        """Compare two masks: uint8 (height, width), train ids, of one shape."""
        # OpenCV's functions: they let other threads run meanwhile.
        equal = cv2.compare(reference, classes, cv2.CMP_EQ)
        counts = [cv2.calcHist([reference], [0], mask, [256], [0, 256]).ravel().astype(np.int64)
                  for mask in (None, equal)]
        for each in counts:
            each[IGNORE] = 0
        return cls(*counts)

    @cached_property
    def agreement(self) -> float:
        """Return the share 0..1 of the pixels that are the same; 1 if there are none to judge."""
        total = int(self.pixels.sum())
        return float(self.same.sum() / total) if total else 1.0

    def by_class(self, labels: LabelSet) -> dict[str, float]:
        """Return the agreement of each class that has enough pixels to judge by."""
        total = max(1, int(self.pixels.sum()))
        return {label.name: float(self.same[label.train_id] / self.pixels[label.train_id])
                for label in labels.classes
                if enough_to_judge(self.pixels[label.train_id] / total)}


@dataclass(frozen=True)
class Live:
    """
    The live agreement, each a share 0..1; None without a check.

    now: the median of the last checks; p50, worst: of the last hour
    classes: of all pixels of the last hour, by class
    frames: how many were checked in the last hour
    trend: the median of the last checks less that of the first ones since the configuration;
        None before there are enough of both
    """

    now: float | None
    p50: float | None
    worst: float | None
    classes: dict[str, float]
    frames: int
    trend: float | None


class LiveAgreement:
    """Keeps the comparisons of the last hour; any thread may add and read."""

    def __init__(self, labels: LabelSet):
        """Start without a check."""
        self._labels = labels
        self._lock = threading.Lock()
        self._checks: deque[tuple[float, Comparison]] = deque()
        self._pixels = np.zeros(256, np.int64)  # of all of them
        self._same = np.zeros(256, np.int64)
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=_BASELINE)
        self._checked = 0

    def add(self, now: float, comparison: Comparison) -> None:
        """Add a check; seconds on the steady clock."""
        with self._lock:
            self._checks.append((now, comparison))
            self._pixels += comparison.pixels
            self._same += comparison.same
            self._checked += 1
            self._last.append(comparison.agreement)
            if len(self._first) < _BASELINE:
                self._first.append(comparison.agreement)
            self._forget(now)

    @property
    def now(self) -> float | None:
        """Return the median of the last checks; None as long as there are not enough to judge."""
        with self._lock:
            return median(list(self._last)[-RECENT:]) if self._checked >= RECENT else None

    def figures(self, now: float) -> Live:
        """Return all figures as they are now."""
        with self._lock:
            self._forget(now)
            every = [comparison.agreement for _, comparison in self._checks]
            total = Comparison(self._pixels.copy(), self._same.copy())
            last = list(self._last)
            trend = (median(last) - median(self._first) if self._checked >= 2 * _BASELINE
                     else None)
        if not every:
            return Live(None, None, None, {}, 0, trend)
        return Live(median(last[-RECENT:]), median(every), min(every),
                    total.by_class(self._labels), len(every), trend)

    def _forget(self, now: float) -> None:
        """Forget what is older than the window."""
        while self._checks and self._checks[0][0] < now - WINDOW_S:
            _, comparison = self._checks.popleft()
            self._pixels -= comparison.pixels
            self._same -= comparison.same
