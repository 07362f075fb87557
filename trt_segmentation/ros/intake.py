# SPDX-License-Identifier: Apache-2.0
"""
Where images are taken from: as many as go through the network at once, when that can begin.

Until then they wait in the middleware, which keeps the newest of each camera; so nothing is
deserialized that would be thrown away, and what is taken is as new as it can be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
import threading
from time import monotonic
from typing import Any, Generic, TypeVar

from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node
from rclpy.subscription import Subscription
from rclpy.waitable import NumberOfEntities, Waitable

K = TypeVar('K', bound=Hashable)


class Turns(Generic[K]):
    """The order in which cameras are served: whoever was served the longest ago is next."""

    def __init__(self) -> None:
        """Start without anybody."""
        self._served: deque[K] = deque()  # the one served last at the end

    def next(self, ready: Iterable[K]) -> K:
        """Return whose turn it is, of at least one that is ready, and note that it is served."""
        waiting = list(ready)
        for newcomer in waiting:
            if newcomer not in self._served:
                self._served.appendleft(newcomer)
        key = next(key for key in self._served if key in waiting)
        self._served.remove(key)
        self._served.append(key)
        return key

    def several(self, ready: Iterable[K], count: int) -> list[K]:
        """Return the first so many of those that are ready, in the order of their turns."""
        waiting, keys = set(ready), list[K]()
        while waiting and len(keys) < count:
            keys.append(self.next(waiting))
            waiting.remove(keys[-1])
        return keys


class Sequence:
    """
    Counts the messages that were published but never taken, by the publishers' own numbers.

    known: whether the middleware tells the numbers; None before the first message
    """

    _PUBLISHERS = 16  # that are remembered

    def __init__(self) -> None:
        """Start without having heard anybody."""
        self.known: bool | None = None
        self._last: dict[bytes, int] = {}

    def missed(self, info: Mapping[str, Any]) -> int:
        """Return how many messages its publisher has sent between this one and the one before."""
        number = info.get('publication_sequence_number')
        self.known = number is not None
        if number is None:
            return 0
        gid = info.get('publisher_gid')
        publisher = bytes(gid['data']) if gid else b''
        last = self._last.pop(publisher, number)
        self._last[publisher] = max(number, last)
        while len(self._last) > self._PUBLISHERS:
            self._last.pop(next(iter(self._last)))
        return max(0, number - last - 1)


class _NotByTheExecutor(CallbackGroup):
    """
    Keeps the executor from waiting for a subscription and for its events.

    Events too: they share a condition with the data, so that a message that waits to be taken
    would wake the executor again and again.
    """

    def can_execute(self, entity: Any) -> bool:
        """Tell that it may not."""
        return False

    def beginning_execution(self, entity: Any) -> bool:
        """Tell that it may not."""
        return False

    def ending_execution(self, entity: Any) -> None:
        """Note nothing."""


@dataclass
class _Source:
    """A subscription: whose it is, and what makes a frame of a message, or takes an error."""

    subscription: Subscription
    camera: int
    receive: Callable[[Any, Mapping[str, Any]], Any]
    failed: Callable[[Exception], None]


class Intake(Waitable):
    """
    Takes the next messages, of the cameras whose turn it is.

    At most one of each camera goes into a batch, and none waits for a batch to fill. The worker
    takes what is there when it has done a batch; while it has nothing to do, the executor waits.
    """

    def __init__(self, node: Node, free: Callable[[], bool], batch: Callable[[int], int],
                 offer: Callable[[list[Any]], None]):
        """
        Begin to wait for messages.

        :param free: tells whether messages may be taken now; when it becomes true, somebody must
            wake the node's executor
        :param batch: returns how many to take where so many cameras, at least one, wait
        :param offer: gets the frames that were made of them, at least one
        """
        super().__init__(MutuallyExclusiveCallbackGroup())
        self._context = node.context
        # One thread at a time takes messages; no subscription is destroyed meanwhile.
        self._taking = threading.RLock()
        self._free, self._batch, self._offer = free, batch, offer
        self._turns: Turns[int] = Turns()
        self._sources: list[_Source] = []
        self._waiting: list[tuple[_Source, int]] = []  # with their indexes in the wait set
        self._ready: list[_Source] = []
        self._empty_at: dict[int, float] = {}
        self.group = _NotByTheExecutor()
        node.add_waitable(self)

    def add(self, subscription: Subscription, camera: int,
            receive: Callable[[Any, Mapping[str, Any]], Any],
            failed: Callable[[Exception], None]) -> None:
        """
        Take a subscription's messages from now on; it must be of `group`.

        :param camera: whose turn is used for them
        :param receive: makes a frame of each message, with what the middleware says of it, or
            returns None
        :param failed: gets the error if one cannot be deserialized
        """
        with self._taking:
            self._sources.append(_Source(subscription, camera, receive, failed))

    def remove(self, subscription: Subscription) -> None:
        """Take a subscription's messages no more; wait until the one that is being taken is."""
        with self._taking:
            self._sources = [source for source in self._sources
                             if source.subscription is not subscription]

    def empty_at(self, camera: int) -> float:
        """Return when it was last seen that no message of a camera waits; steady clock, s."""
        return self._empty_at.get(camera, 0.0)

    def take(self) -> list[Any] | None:
        """Return frames of messages that wait now, or None; in the worker's thread."""
        with self._taking, ExitStack() as handles:
            sources = list(self._sources)
            if not sources:
                return None
            wait_set = _rclpy.WaitSet(len(sources), 0, 0, 0, 0, 0, self._context.handle)
            wait_set.clear_entities()
            waiting = []
            for source in sources:
                handles.enter_context(source.subscription.handle)
                waiting.append((source, wait_set.add_subscription(source.subscription.handle)))
            wait_set.wait(0)
            return self._received(self._taken(self._with_message(waiting, wait_set))) or None

    # What the executor calls, in this order

    def __enter__(self) -> None:
        """Do nothing: subscriptions are destroyed in the executor's thread only."""

    def __exit__(self, *exception: object) -> None:
        """Do nothing."""

    def get_num_entities(self) -> NumberOfEntities:
        """Decide, for this round, whether to wait for messages."""
        self._waiting = [(source, -1) for source in self._sources] if self._free() else []
        return NumberOfEntities(num_subs=len(self._waiting))

    def add_to_wait_set(self, wait_set: Any) -> None:
        """Wait for what was decided."""
        self._waiting = [(source, wait_set.add_subscription(source.subscription.handle))
                         for source, _ in self._waiting]

    def is_ready(self, wait_set: Any) -> bool:
        """Tell whether a message has come."""
        self._ready = self._with_message(self._waiting, wait_set)
        return bool(self._ready)

    def take_data(self) -> None:
        """Take messages, and hand the frames over."""
        with self._taking:
            ready = [source for source in self._ready if source in self._sources]
            if frames := self._received(self._taken(ready)):
                self._offer(frames)

    async def execute(self, taken: None) -> None:
        """Do nothing more: another thread could have taken newer ones meanwhile."""

    def _with_message(self, waiting: list[tuple[_Source, int]], wait_set: Any) -> list[_Source]:
        """Return the sources that have a message, by a wait set; note that the others had none."""
        now, found = monotonic(), []
        for source, index in waiting:
            if wait_set.is_ready('subscription', index):
                found.append(source)
            else:
                self._empty_at[source.camera] = now
        return found

    def _taken(self, ready: list[_Source]) -> list[tuple[_Source, Any, Any]]:
        """Take messages: (its source, it, what the middleware says of it, or an error) of each."""
        cameras = {source.camera for source in ready}
        taken: list[tuple[_Source, Any, Any]] = []
        while cameras and not taken:  # one that was there may not be any more
            for camera in self._turns.several(cameras, self._batch(len(cameras))):
                cameras.remove(camera)
                found = (self._take(source) for source in ready if source.camera == camera)
                taken += [first] if (first := next(filter(None, found), None)) else []
        return taken

    @staticmethod
    def _take(source: _Source) -> tuple[_Source, Any, Any] | None:
        """Take a message from a source, if one is there."""
        try:
            with source.subscription.handle:
                found = source.subscription.handle.take_message(source.subscription.msg_type,
                                                                False)
        except Exception as error:
            return source, None, error
        return None if found is None else (source, *found)

    @staticmethod
    def _received(taken: list[tuple[_Source, Any, Any]]) -> list[Any]:
        """Return the frames that were made of messages."""
        frames = []
        for source, message, info in taken:
            if message is None:
                source.failed(info)
            elif (frame := source.receive(message, info)) is not None:
                frames.append(frame)
        return frames
