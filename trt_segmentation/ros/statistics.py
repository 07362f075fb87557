# SPDX-License-Identifier: Apache-2.0
"""Figures of the running node: counts, rates and percentiles over the last frames."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
import threading
from time import monotonic

import numpy as np

_WINDOW = 300
_RATE_SECONDS = 3.0


class Statistics:
    """
    Counts of what became of frames, and times by stage over the last 300 frames.

    Any thread may write and read.
    """

    def __init__(self):
        """Start with nothing counted."""
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._events: dict[str, deque[float]] = {}
        self._times: dict[str, deque[float]] = {}

    def count(self, event: str) -> None:
        """Count one event by its name; it also enters the event's rate."""
        with self._lock:
            self._counts[event] += 1
            self._events.setdefault(event, deque(maxlen=_WINDOW)).append(monotonic())

    def time(self, stage_ms: Mapping[str, float]) -> None:
        """Add one frame's milliseconds by stage."""
        with self._lock:
            for stage, value in stage_ms.items():
                self._times.setdefault(stage, deque(maxlen=_WINDOW)).append(value)

    def counts(self) -> dict[str, int]:
        """Return all counts by event."""
        with self._lock:
            return dict(self._counts)

    def rate(self, event: str) -> float:
        """Return an event's rate per second over the last 3 seconds."""
        now = monotonic()
        with self._lock:
            recent = [at for at in self._events.get(event, ()) if now - at <= _RATE_SECONDS]
        return len(recent) / _RATE_SECONDS

    def percentiles(self) -> dict[str, tuple[float, float, float]]:
        """Return (p50, p95, p99) in milliseconds by stage."""
        with self._lock:
            times = {stage: list(values) for stage, values in self._times.items()}
        return {stage: tuple(np.percentile(values, (50, 95, 99)).tolist())
                for stage, values in times.items()}
