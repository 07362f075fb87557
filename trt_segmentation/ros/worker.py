# SPDX-License-Identifier: Apache-2.0
"""The one thread that owns the engine, and the mailbox from which it takes frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
import threading
from typing import Any, Generic, TypeVar

F = TypeVar('F')


class Mailbox(Generic[F]):
    """
    The latest waiting frame of each camera.

    `take` gives the frame of the camera that was served the longest ago, so that no camera can
    starve another one. It is not synchronized: the worker does that.
    """

    def __init__(self):
        """Start empty."""
        self._waiting: dict[int, F] = {}
        self._served: deque[int] = deque()  # cameras, the one served last at the end

    def put(self, camera: int, frame: F) -> F | None:
        """Let a frame wait; return the older one whose place it takes, if one waited."""
        if camera not in self._served:
            self._served.appendleft(camera)
        replaced = self._waiting.get(camera)
        self._waiting[camera] = frame
        return replaced

    def take(self) -> F | None:
        """Return the next frame, or None if none waits."""
        for camera in self._served:
            if camera in self._waiting:
                self._served.remove(camera)
                self._served.append(camera)
                return self._waiting.pop(camera)
        return None

    def clear(self) -> list[F]:
        """Forget all waiting frames; return them."""
        frames, self._waiting = list(self._waiting.values()), {}
        return frames


@dataclass
class _Task:
    """A function that the worker shall run, and where its result goes."""

    function: Callable[[], Any]
    future: Future


class Worker(Generic[F]):
    """A thread that runs given tasks, and between them processes frames."""

    def __init__(self, process: Callable[[F], None], failed: Callable[[BaseException], None]):
        """
        Start the thread.

        :param process: is called with each frame, in the thread
        :param failed: is called, in the thread, with what `process` raised; the thread goes on
        """
        self._process = process
        self._failed = failed
        self._mailbox: Mailbox[F] = Mailbox()
        self._tasks: deque[_Task] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        # A daemon, so that an engine that never returns cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Tell whether the thread runs."""
        return self._thread.is_alive()

    def offer(self, camera: int, frame: F) -> F | None:
        """Hand over a frame; return the older one that it replaces, if one waited."""
        with self._wake:
            replaced = self._mailbox.put(camera, frame)
            self._wake.notify()
        return replaced

    def clear(self) -> list[F]:
        """Forget the frames that wait; return them."""
        with self._wake:
            return self._mailbox.clear()

    def call(self, function: Callable[[], Any]) -> Future:
        """Run a function in the thread, before the next frame; return its future result."""
        task = _Task(function, Future())
        with self._wake:
            self._tasks.append(task)
            self._wake.notify()
        return task.future

    def stop(self, timeout: float) -> bool:
        """End the thread after what it is doing; return whether it ended within `timeout` s."""
        with self._wake:
            self._stopping = True
            self._mailbox.clear()
            self._wake.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _next(self) -> _Task | F | None:
        """Wait for a task or a frame; None when the thread shall end and no task is left."""
        with self._wake:
            while True:
                if self._tasks:
                    return self._tasks.popleft()
                if self._stopping:
                    return None
                if (frame := self._mailbox.take()) is not None:
                    return frame
                self._wake.wait()

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
