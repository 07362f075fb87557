# SPDX-License-Identifier: Apache-2.0
"""
Spreading items over the workers of an executor: the one way in which work leaves a process.

What comes of an item must depend on the item alone, so that it can be computed again where a
worker was lost with it. Each item counts once, and in the items' order, whatever happens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import dataclass
from queue import SimpleQueue
import sys
from typing import Any, Generic, TypeVar

from trt_segmentation.errors import CheckFailed

# After so many losses an item runs alone, so that no other is lost with it and it is known whose
# fault it is; after so many more it is given up.
_SUSPECT, _GIVEN_UP = 3, 8

Item = TypeVar('Item')
Result = TypeVar('Result')


@dataclass(eq=False)
class _Task(Generic[Item, Result]):
    """An item on its way; `done` once `result` is there."""

    item: Item
    losses: int = 0
    done: bool = False
    result: Result | None = None


def spread(executor: Executor, function: Callable[[Item], Result], items: Iterable[Item], *,
           ahead: int, ordered: bool = True, named: Callable[[Item], str] = str,
           watch: Callable[[Sequence[Item]], None] = lambda flying: None
           ) -> Iterator[tuple[Item, Result]]:
    """
    Yield each item with what the function makes of it on a worker.

    :param executor: any; one that makes new workers in the place of lost ones, as
        `processes.Processes` does, goes on whoever is killed
    :param function: importable by the workers, as what it takes and returns can be pickled
    :param items: taken as they are needed
    :param ahead: how many items may be on their way at once, or wait for an earlier one
    :param ordered: in the items' order; else as they are done
    :param named: an item in words, for the message
    :param watch: called with the items on their way, the first ones first, when these change
    :raises CheckFailed: for an item with which a worker is lost each time
    """
    source = iter(items)
    finished: SimpleQueue[Future[Result]] = SimpleQueue()
    flying: dict[Future[Result], _Task[Item, Result]] = {}
    order: deque[_Task[Item, Result]] = deque()
    again: deque[_Task[Item, Result]] = deque()

    def start(task: _Task[Item, Result]) -> None:
        future = executor.submit(function, task.item)
        flying[future] = task
        future.add_done_callback(finished.put)

    def refill() -> None:
        while again and (again[0].losses < _SUSPECT or not flying):
            task = again.popleft()
            start(task)
            if task.losses >= _SUSPECT:
                return
        if again or any(task.losses >= _SUSPECT for task in flying.values()):
            return
        while len(order) < ahead:
            try:
                task = _Task[Item, Result](next(source))
            except StopIteration:
                return
            order.append(task)
            start(task)

    try:
        while True:
            refill()
            watch([task.item for task in flying.values()])
            if not order:
                return
            future = finished.get()
            task = flying.pop(future)
            try:
                task.result = future.result()
                task.done = True
            except _lost() as error:
                task.losses += 1
                if task.losses >= _GIVEN_UP:
                    raise CheckFailed(
                        f'{named(task.item)}: {task.losses} workers were lost with it, the last '
                        f'ones while it ran alone ({type(error).__name__}): it may need more '
                        'memory than there is; try it by itself with --jobs 1') from None
                again.append(task)
                continue
            if not ordered:
                order.remove(task)
                yield task.item, task.result
            while ordered and order and order[0].done:
                ready = order.popleft()
                yield ready.item, ready.result  # type: ignore[misc]
    finally:
        for future in flying:
            future.cancel()


class Here(Executor):
    """An executor that does each call at once, in this thread."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call the function."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def _lost() -> tuple[type[BaseException], ...]:
    """Return the errors that tell of a worker's end, and nothing of the item."""
    killed: Any = getattr(sys.modules.get('distributed'), 'KilledWorker', None)
    return (BrokenExecutor, CancelledError, *([killed] if killed else []))
