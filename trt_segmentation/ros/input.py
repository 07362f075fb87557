# SPDX-License-Identifier: Apache-2.0
"""One camera's subscription: the newest message only, as reliable as its publishers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.subscription import Subscription

from trt_segmentation.ros.intake import Intake
from trt_segmentation.ros.parameters import AUTO, BEST_EFFORT, qos_overrides, RELIABLE

_MATCH_SECONDS = 10.0  # that publishers get to find the new subscription


class Input:
    """
    A subscription that follows its publishers' reliability.

    A reliable subscription hears no best-effort publisher, and a best-effort one leaves a
    reliable publisher's losses as they are; so it is reliable if every publisher is.

    name: of the topic, as remapping rules apply to it
    topic: its absolute, remapped name
    """

    def __init__(self, node: Node, intake: Intake, camera: int, name: str, message_type: type,
                 reliability: str, receive: Callable[[Any, Mapping[str, Any]], Any],
                 failed: Callable[[Exception], None], options: Mapping[str, str]):
        """
        Prepare, without subscribing yet.

        :param intake: takes the messages, when it is the turn of the camera of this number
        :param name: of the topic, as remapping rules apply to it
        :param reliability: one of RELIABILITIES
        :param receive, failed: get each message, or why it could not be taken, in the executor's
            thread, as `Intake.add` has it
        :param options: more that `create_subscription` is given
        """
        self._intake, self._camera, self._failed = intake, camera, failed
        # What creates a subscription applies the rules itself, and so does what tells of
        # publishers; what counts them does not.
        self.name, self.topic = name, node.resolve_topic_name(name)
        self._node = node
        self._overrides = qos_overrides(node, self.topic, 'subscription')
        self._type, self._options = message_type, options
        self._reliability = reliability
        self._receive = receive
        self._current: Subscription | None = None
        self._current_reliable = False
        self._previous: Subscription | None = None
        self._replaced_at = 0.0
        self._generation = self._heard = 0
        self._last_stamp = None

    @property
    def subscribed(self) -> bool:
        """Tell whether it listens."""
        return self._current is not None

    @property
    def reliability(self) -> str:
        """Return the reliability of the subscription, 'reliable' or 'best_effort'."""
        reliable = self._current_reliable
        if self._current is not None:  # what was overridden is what counts
            reliable = self._current.qos_profile.reliability == QoSReliabilityPolicy.RELIABLE
        return RELIABLE if reliable else BEST_EFFORT

    @property
    def qos(self) -> QoSProfile | None:
        """Return the QoS of the subscription, if it listens."""
        return self._current.qos_profile if self._current is not None else None

    @property
    def type_name(self) -> str:
        """Return the name of the message type, as the graph has it."""
        return f'sensor_msgs/msg/{self._type.__name__}'

    def publishers(self) -> int:
        """Return how many publishers the topic has."""
        return self._node.count_publishers(self.topic)

    def start(self) -> None:
        """Subscribe."""
        self._current_reliable = self._wants_reliable()
        self._current = self._subscribe(self._current_reliable)

    def stop(self) -> None:
        """Listen no more."""
        self._drop_previous()
        if self._current is not None:
            self._destroy(self._current)
            self._current = None

    def follow(self) -> None:
        """Subscribe anew if the publishers' reliability has changed; call it every second."""
        if self._current is None:
            return
        if (self._heard == self._generation
                or monotonic() - self._replaced_at > _MATCH_SECONDS):
            self._drop_previous()
        reliable = self._wants_reliable()
        if reliable != self._current_reliable and self._overrides is None:
            self._drop_previous()
            # The old subscription stays until the new one has heard something, so that no frame
            # falls into the gap.
            self._replaced_at = monotonic()
            self._previous, self._current = self._current, self._subscribe(reliable)
            self._current_reliable = reliable
            self._node.get_logger().info(f'{self.topic}: now {self.reliability}, as its '
                                         'publishers are')

    def _wants_reliable(self) -> bool:
        """Tell whether the subscription should be reliable now."""
        if self._reliability != AUTO:
            return self._reliability == RELIABLE
        # Depth and history of other endpoints are unknown to DDS and must not be copied.
        found = [info.qos_profile.reliability
                 for info in self._node.get_publishers_info_by_topic(self.name)]
        if not found:
            return self._current_reliable
        return all(reliability == QoSReliabilityPolicy.RELIABLE for reliability in found)

    def _subscribe(self, reliable: bool) -> Subscription:
        """Return a new subscription of a generation of its own."""
        qos = QoSProfile(
            history=QoSHistoryPolicy.KEEP_LAST, depth=1,
            reliability=(QoSReliabilityPolicy.RELIABLE if reliable
                         else QoSReliabilityPolicy.BEST_EFFORT))
        self._generation += 1
        generation = self._generation
        subscription = self._node.create_subscription(
            self._type, self.name, lambda message: None, qos, callback_group=self._intake.group,
            qos_overriding_options=self._overrides, **self._options)
        self._intake.add(subscription, self._camera,
                         lambda message, info: self._on_message(generation, message, info),
                         self._failed)
        return subscription

    def _on_message(self, generation: int, message: Any, info: Mapping[str, Any]) -> Any:
        """Make a frame of a message, once, whichever of two subscriptions heard it."""
        # The previous one is ended by the executor, in its thread, which this may not be.
        if generation < self._heard:
            return None  # the subscription that replaced it hears them now
        stamp, first = message.header.stamp, generation > self._heard
        self._heard = generation
        if first and stamp == self._last_stamp:
            return None  # the previous subscription has heard it too
        self._last_stamp = stamp
        return self._receive(message, info)

    def _drop_previous(self) -> None:
        """Destroy the subscription that was replaced, if there is one."""
        if self._previous is not None:
            self._destroy(self._previous)
            self._previous = None

    def _destroy(self, subscription: Subscription) -> None:
        """Take nothing more of a subscription, and destroy it."""
        self._intake.remove(subscription)
        self._node.destroy_subscription(subscription)
