# SPDX-License-Identifier: Apache-2.0
"""
Where images are taken from: one at a time, and only when the worker can begin it.

Until then they wait in the middleware, which keeps the newest of each camera; so nothing is
deserialized that would be thrown away, and what is taken is as new as it can be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, TypeVar

from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
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
    """A subscription: whose it is, and what takes a message with its info, or an error."""

    subscription: Subscription
    camera: int
    receive: Callable[[Any, Mapping[str, Any]], None]
    failed: Callable[[Exception], None]


class Intake(Waitable):
    """Takes the next message, of the camera whose turn it is, in the executor's thread."""

    def __init__(self, node: Node, free: Callable[[], bool]):
        """
        Begin to wait for messages.

        :param free: tells whether a message may be taken now; when it becomes true, somebody must
            wake the node's executor
        """
        super().__init__(MutuallyExclusiveCallbackGroup())
        self._free = free
        self._turns: Turns[int] = Turns()
        self._sources: list[_Source] = []
        self._waiting: list[tuple[_Source, int]] = []  # with their indexes in the wait set
        self._ready: list[_Source] = []
        self._empty_at: dict[int, float] = {}
        self.group = _NotByTheExecutor()
        node.add_waitable(self)

    def add(self, subscription: Subscription, camera: int,
            receive: Callable[[Any, Mapping[str, Any]], None],
            failed: Callable[[Exception], None]) -> None:
        """
        Take a subscription's messages from now on; it must be of `group`.

        :param camera: whose turn is used for them
        :param receive: gets each message, with what the middleware says of it
        :param failed: gets the error if one cannot be deserialized
        """
        self._sources.append(_Source(subscription, camera, receive, failed))

    def remove(self, subscription: Subscription) -> None:
        """Take a subscription's messages no more."""
        self._sources = [source for source in self._sources
                         if source.subscription is not subscription]

    def empty_at(self, camera: int) -> float:
        """Return when it was last seen that no message of a camera waits; steady clock, s."""
        return self._empty_at.get(camera, 0.0)

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
        now, self._ready = monotonic(), []
        for source, index in self._waiting:
            if wait_set.is_ready('subscription', index):
                self._ready.append(source)
            else:
                self._empty_at[source.camera] = now
        return bool(self._ready)

    def take_data(self) -> tuple[_Source, Any, Any] | None:
        """Take one message: (its source, it, what the middleware says of it, or an error)."""
        ready = [source for source in self._ready if source in self._sources]
        while ready:
            camera = self._turns.next(source.camera for source in ready)
            source = next(source for source in ready if source.camera == camera)
            try:
                with source.subscription.handle:
                    taken = source.subscription.handle.take_message(
                        source.subscription.msg_type, False)
            except Exception as error:
                return source, None, error
            if taken is not None:
                return source, *taken
            ready.remove(source)  # it was there, and is not any more
        return None

    async def execute(self, taken: tuple[_Source, Any, Any] | None) -> None:
        """Hand it over."""
        if taken is None:
            return
        source, message, info = taken
        if message is None:
            source.failed(info)
        else:
            source.receive(message, info)
