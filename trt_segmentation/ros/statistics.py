# SPDX-License-Identifier: Apache-2.0
"""Figures of one camera's frames: counts, rates, and times over the last frames."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
import threading
from time import monotonic

import numpy as np

RECEIVED, PUBLISHED = 'received', 'published'
_FRAMES = 300
_RATE_SECONDS = 3.0


def settled(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """
    Tell by two reports of a camera's diagnostics, one after the other, that nothing is in work.

    By one it cannot be told: the next frame may have waited for the end of the one before it.
    """
    ended = int(before[PUBLISHED]) + sum(int(count) for key, count in before.items()
                                         if key.startswith('dropped_'))
    return int(now[RECEIVED]) == int(before[RECEIVED]) == ended


class Statistics:
    """
    Counts of what became of frames, and times by stage and batch sizes of the last 300 frames.

    Any thread may write and read.
    """

    def __init__(self):
        """Start with nothing counted."""
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._moments: dict[str, deque[float]] = {}
        self._times: dict[str, deque[float]] = {}
        self._batches: deque[int] = deque(maxlen=_FRAMES)

    def count(self, event: str, times: int = 1) -> None:
        """Count an event by its name; its moment enters the event's rate."""
        self.count_all({event: times})

    def count_all(self, events: Mapping[str, int]) -> None:
        """Count events that belong together: no report has some of them without the others."""
        now = monotonic()
        with self._lock:
            for event, times in events.items():
                if not times:
                    continue  # what never happened has no figure
                self._counts[event] += times
                self._moments.setdefault(event, deque(maxlen=_FRAMES)).extend(
                    [now] * min(times, _FRAMES))

    def add_times(self, stage_ms: Mapping[str, float]) -> None:
        """Add one frame's milliseconds by stage."""
        with self._lock:
            for stage, value in stage_ms.items():
                self._times.setdefault(stage, deque(maxlen=_FRAMES)).append(value)

    def add_batch(self, size: int) -> None:
        """Add how many frames went through the network at once, one of this camera among them."""
        with self._lock:
            self._batches.append(size)

    def batches(self) -> tuple[int | None, dict[int, float]]:
        """Return the last frame's batch size, if there is one, and the share of each size."""
        with self._lock:
            sizes = list(self._batches)
        return (sizes[-1] if sizes else None,
                {size: count / len(sizes) for size, count in sorted(Counter(sizes).items())})

    def counts(self) -> dict[str, int]:
        """Return all counts by event."""
        with self._lock:
            return dict(self._counts)

    def rate(self, event: str) -> float:
        """Return how often an event happened in each of the last 3 seconds, on average."""
        with self._lock:
            moments = list(self._moments.get(event, ()))
        now, seconds = monotonic(), _RATE_SECONDS
        if len(moments) == _FRAMES:  # at a high rate, the moments that are kept span less
            seconds = min(seconds, now - moments[0])
        return sum(moment > now - seconds for moment in moments) / seconds if seconds else 0.0

    def seconds_since(self, event: str) -> float | None:
        """Return the seconds since an event happened last, or None if it never did."""
        with self._lock:
            moments = self._moments.get(event)
            return monotonic() - moments[-1] if moments else None

    def last_times(self) -> dict[str, float]:
        """Return the last frame's milliseconds by stage."""
        with self._lock:
            return {stage: values[-1] for stage, values in self._times.items()}

    def percentiles(self) -> dict[str, tuple[float, float, float]]:
        """Return (p50, p95, p99) in milliseconds by stage."""
        with self._lock:
            times = {stage: list(values) for stage, values in self._times.items()}
        return {stage: tuple(np.percentile(values, (50, 95, 99)).tolist())
                for stage, values in times.items()}
