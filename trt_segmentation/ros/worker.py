# SPDX-License-Identifier: Apache-2.0
"""The one thread that owns the engine, and how others wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
import threading
from time import monotonic
from typing import Any, Generic, TypeVar

F = TypeVar('F')
_STOP_SECONDS = 1.0  # that the engine gets, in all, to finish when the process shall end
_JOIN_SECONDS = 4.0  # that an idle thread gets to end: under load it waits for the processor
_LOOK_SECONDS = 0.05
_LONGEST_LOOK = 0.5


class EngineStuck(Exception):
    """Report that the engine does not return."""


class Ending(EngineStuck):
    """Report that the process ends before the engine has returned."""


class Stopwatch:
    """
    Tell how long something has taken, to whoever looks at it again and again.

    Of a longer time between two looks half a second counts: the process itself stood still then,
    as of SIGSTOP or in a debugger, and so did what it waits for.
    """

    def __init__(self):
        """Start it."""
        self.seconds, self._looked_at = 0.0, monotonic()

    def look(self) -> float:
        """Return the seconds since the last look."""
        before, self._looked_at = self._looked_at, monotonic()
        passed = min(self._looked_at - before, _LONGEST_LOOK)
        self.seconds += passed
        return passed


@dataclass
class _Task:
    """A function that the worker shall run, and where its result goes."""

    function: Callable[[], Any]
    future: Future


class Worker(Generic[F]):
    """A thread that runs given tasks, and between them processes frames, one at a time."""

    def __init__(self, process: Callable[[F], None], failed: Callable[[BaseException], None],
                 idle: Callable[[], None] = lambda: None,
                 take: Callable[[], F | None] = lambda: None):
        """
        Start the thread.

        :param process: is called with each frame, in the thread
        :param failed: is called, in the thread, with what `process` raised; the thread goes on
        :param idle: is called, in the thread, when it could begin a frame and none waits
        :param take: returns the next frame if one is there, in the thread: a frame that has waited
            while the one before was made takes no way through another thread
        """
        self._process, self._failed, self._idle, self._take = process, failed, idle, take
        self._frame: F | None = None
        self._tasks: deque[_Task] = deque()
        self._wake = threading.Condition()
        self._busy = True  # until it waits for the first time
        self._stopping = False
        # A daemon, so that an engine that never returns cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Tell whether the thread runs."""
        return self._thread.is_alive()

    @property
    def free(self) -> bool:
        """Tell whether it would begin a frame at once."""
        return not self._busy

    def offer(self, frame: F) -> F | None:
        """Hand over a frame; return the older one that it replaces, if one waited."""
        with self._wake:
            replaced, self._frame = self._frame, frame
            self._busy = True
            self._wake.notify()
        return replaced

    def clear(self) -> F | None:
        """Forget the frame that waits, if one does; return it."""
        with self._wake:
            frame, self._frame = self._frame, None
        return frame

    def call(self, function: Callable[[], Any]) -> Future:
        """Run a function in the thread, before the next frame; return its future result."""
        task = _Task(function, Future())
        with self._wake:
            self._tasks.append(task)
            self._busy = True
            self._wake.notify()
        return task.future

    def stop(self, timeout: float) -> bool:
        """End the thread after what it is doing; return whether it ended within `timeout` s."""
        with self._wake:
            self._stopping, self._frame = True, None
            self._wake.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _next(self) -> _Task | F | None:
        """Wait for a task or a frame; None when the thread shall end and no task is left."""
        looked = False
        while True:
            with self._wake:
                if self._tasks:
                    return self._tasks.popleft()
                if self._stopping:
                    return None
                if self._frame is not None:
                    frame, self._frame = self._frame, None
                    return frame
                if looked:
                    self._busy = False
                    self._idle()
                    self._wake.wait()
                    continue
            looked = True
            if (taken := self._take()) is not None:
                with self._wake:
                    # One that was offered meanwhile is older.
                    if self._frame is not None:
                        taken, self._frame = self._frame, taken
                return taken

    def _run(self) -> None:
        """Do what comes until the end."""
        while (item := self._next()) is not None:
            if isinstance(item, _Task):
                try:
                    item.future.set_result(item.function())
                except Exception as error:
                    item.future.set_exception(error)
                except BaseException as error:  # it must not end whoever waits for the result
                    item.future.set_exception(RuntimeError(f'{type(error).__name__}: {error}'))
                continue
            try:
                self._process(item)
            except BaseException as error:
                self._failed(error)
            del item  # the frame's memory is not kept while waiting for the next one


class EngineThread(Generic[F]):
    """
    A worker that is replaced if its thread dies, and calls to it that end in a given time.

    After a call that took too long every further one fails at once: nothing but the end of the
    process frees an engine that does not return.
    """

    def __init__(self, process: Callable[[F], None], failed: Callable[[BaseException], None],
                 idle: Callable[[], None], stopping: threading.Event,
                 take: Callable[[], F | None] = lambda: None):
        """
        Start the thread; process, failed, idle and take are as `Worker` takes them.

        :param stopping: is set when the process ends: the engine is waited for for one second
            then, in all
        """
        self._make: Callable[[], Worker[F]] = lambda: Worker(process, failed, idle, take)
        self._worker = self._make()
        self._stopping = stopping
        self._left = _STOP_SECONDS  # to wait for what still runs when the process ends
        self._stuck = ''

    @property
    def free(self) -> bool:
        """Tell whether it would begin a frame at once."""
        return self._worker.free

    def offer(self, frame: F) -> F | None:
        """Hand over a frame, as `Worker.offer`."""
        return self._worker.offer(frame)

    def clear(self) -> F | None:
        """Forget the frame that waits, as `Worker.clear`."""
        return self._worker.clear()

    def replace_if_dead(self) -> bool:
        """Start a new thread if the old one has ended; return whether it had."""
        if self._worker.alive or self._stopping.is_set():
            return False
        self._worker = self._make()
        return True

    def run(self, function: Callable[[], Any], timeout: float) -> Any:
        """
        Run a function in the engine's thread and return its result.

        :param timeout: seconds after which the engine counts as stuck
        :raises EngineStuck: then, or if it is stuck already
        :raises Ending: when the process ends
        """
        if self._stuck:
            raise EngineStuck(self._stuck)
        worker = self._worker
        future = worker.call(function)
        watch = Stopwatch()
        while not wait([future], _LOOK_SECONDS).done:
            if not worker.alive and not future.done():
                raise RuntimeError('the thread of the engine has ended')
            passed = watch.look()
            if self._stopping.is_set():
                self._left -= passed
                if self._left <= 0:
                    raise Ending('the engine has not returned, and the process ends')
            elif watch.seconds > timeout:
                self._stuck = f'the engine has not returned for {timeout:g} s'
                raise EngineStuck(self._stuck)
        return future.result()

    def stop(self) -> bool:
        """End the thread, as the process ends; return whether the engine let go in time."""
        return self._worker.stop(0.0 if self._stuck or self._left <= 0 else _JOIN_SECONDS)
