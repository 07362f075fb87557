# SPDX-License-Identifier: Apache-2.0
"""How often a fault may be recovered from."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic

_MINUTE = 60.0


class Recovery:
    """
    Lets recoveries begin at most so often in any minute.

    requests, begun: how many there have been
    last_reason: why the last one was requested
    pending: whether one is requested that has not begun
    """

    def __init__(self, per_minute: Callable[[], int], now: Callable[[], float] = monotonic):
        """
        Start without any request.

        :param per_minute: how many may begin within 60 seconds, as it is at any moment
        :param now: a steady clock, seconds
        """
        self._per_minute, self._now = per_minute, now
        self._begun: deque[float] = deque()
        self.requests = self.begun = 0
        self.last_reason = ''
        self.pending = False

    def request(self, reason: str) -> None:
        """Ask for a recovery."""
        self.requests += 1
        self.last_reason = reason
        self.pending = True

    def due(self) -> bool:
        """Tell whether one is requested and may begin now."""
        while self._begun and self._now() - self._begun[0] >= _MINUTE:
            self._begun.popleft()
        return self.pending and len(self._begun) < self._per_minute()

    def begin(self) -> None:
        """Note that the requested one begins."""
        self._begun.append(self._now())
        self.begun += 1
        self.pending = False
