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

    def __init__(self, cameras: int):
        """Make room for one frame of each camera."""
        self._waiting: list[F | None] = [None] * cameras
        self._order = deque(range(cameras))

    def put(self, camera: int, frame: F) -> F | None:
        """Let a frame wait; return the older one whose place it takes, if one waited."""
        replaced, self._waiting[camera] = self._waiting[camera], frame
        return replaced

    def take(self) -> F | None:
        """Return the next frame, or None if none waits."""
        for camera in self._order:
            if (frame := self._waiting[camera]) is not None:
                self._waiting[camera] = None
                self._order.remove(camera)
                self._order.append(camera)
                return frame
        return None

    def clear(self) -> None:
        """Forget all waiting frames."""
        self._waiting = [None] * len(self._waiting)


@dataclass
class _Task:
    """A function that the worker shall run, and where its result goes."""

    function: Callable[[], Any]
    future: Future


class Worker(Generic[F]):
    """A thread that runs given tasks, and between them processes frames."""

    def __init__(self, cameras: int, process: Callable[[F], None],
                 crashed: Callable[[BaseException], None]):
        """
        Start the thread.

        :param cameras: how many cameras there are
        :param process: is called with each frame, in the thread
        :param crashed: is called, in the thread, with what `process` raised; the frames that
            wait are forgotten and the thread goes on
        """
        self._process = process
        self._crashed = crashed
        self._mailbox: Mailbox[F] = Mailbox(cameras)
        self._tasks: deque[_Task] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        # A daemon, so that an engine that never returns cannot keep the process from ending.
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
        self._thread.start()

    def offer(self, camera: int, frame: F) -> F | None:
        """Hand over a frame; return the older one that it replaces, if one waited."""
        with self._wake:
            replaced = self._mailbox.put(camera, frame)
            self._wake.notify()
        return replaced

    def clear(self) -> None:
        """Forget the frames that wait."""
        with self._wake:
            self._mailbox.clear()

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
                except BaseException as error:
                    item.future.set_exception(error)
                continue
            try:
                self._process(item)
            except BaseException as error:
                self.clear()
                self._crashed(error)
            del item  # the frame's memory is not kept while waiting for the next one
