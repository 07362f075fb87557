# SPDX-License-Identifier: Apache-2.0
"""What a worker keeps open from one item to the next, as an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, ExitStack
import threading
from typing import Generic, TypeVar

Key = TypeVar('Key')
Value = TypeVar('Value')


class Kept(Generic[Key, Value]):
    """One open thing in this process, until another one is asked for."""

    def __init__(self, make: Callable[[Key, ExitStack], Value]):
        """
        Open nothing yet.

        :param make: opens what belongs to a key; the stack has what is to be closed
        """
        self._make = make
        self._turn = threading.Lock()
        self._open: tuple[Key, Value, ExitStack] | None = None

    @contextmanager
    def of(self, key: Key) -> Iterator[Value]:
        """Yield what belongs to a key, for one thread at a time."""
        with self._turn:
            if self._open is not None and self._open[0] != key:
                closing, self._open = self._open[2], None
                closing.close()
            if self._open is None:
                with ExitStack() as stack:
                    value = self._make(key, stack)
                    self._open = (key, value, stack.pop_all())
            yield self._open[1]
