# SPDX-License-Identifier: Apache-2.0
"""The output topics: masks, which are made only for subscribers, and what their numbers mean."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
import json
import math
from typing import Any

import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSLivelinessPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
)
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String

from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.cuda.device import Device
from trt_segmentation.cuda.images import DeviceImage
from trt_segmentation.evaluation.pictures import overlay
from trt_segmentation.recordings.image_messages import MASK_FORMAT, mask_png
from trt_segmentation.recordings.layouts import as_bgr
from trt_segmentation.ros import camera_info, native
from trt_segmentation.ros.parameters import qos_overrides
from trt_segmentation.segmenters.segmenter import CLASSES, COLOR, CONFIDENCE, Masks

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # it is no part of ROS's core
    LabelInfo = VisionClass = None

try:
    from rclpy.event_handler import PublisherEventCallbacks, UnsupportedEventTypeError
except ImportError:
    try:  # Humble's name for it
        from rclpy.qos_event import PublisherEventCallbacks, UnsupportedEventTypeError
    except ImportError:
        PublisherEventCallbacks, UnsupportedEventTypeError = None, ()

INCOMPATIBLE, DEADLINE_MISSED = 'incompatible_subscribers', 'mask_deadlines_missed'
LIVELINESS_LOST = 'mask_liveliness_lost'
_LEAST_LEASE_MS = 1000

_LATCHED = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                      durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
_QOS = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1,
                  reliability=QoSReliabilityPolicy.RELIABLE)
CLASS_MASK, COLOR_MASK, OVERLAY = 'class_mask', 'color_mask', 'overlay'
CONFIDENCE_MASK, CLASS_PNG, CAMERA_INFO = 'confidence', 'class_mask/compressed', 'camera_info'
STATUS = 'status'
_TYPES = {CLASS_MASK: Image, COLOR_MASK: Image, OVERLAY: Image, CONFIDENCE_MASK: Image,
          CLASS_PNG: CompressedImage, CAMERA_INFO: CameraInfo, STATUS: String}
# One that comes late is not replaced by the next: its number would be missing.
_STATUS_QOS = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=10,
                         reliability=QoSReliabilityPolicy.RELIABLE)
# What `Segmenter.segment` must compute for a topic.
_NEEDS = {COLOR_MASK: COLOR, OVERLAY: COLOR, CONFIDENCE_MASK: CONFIDENCE}


def names(prefix: str) -> list[str]:
    """Return all topics of a camera that there may be, as remapping rules apply to them."""
    return [prefix + name for name in _TYPES]


class Outputs:
    """
    The publishers of one camera's masks.

    topics: their absolute names
    given: by absolute name, the one before remapping
    events: how often a deadline was missed, liveliness lost, or a subscriber asked for more than
        is offered, by name; empty where this rclpy or middleware tells none of it
    statuses: how many frames have had a status, published or not
    info_problem: why a mask went without its camera info, though it was wanted; '' if it did not
    """

    def __init__(self, node: Node, prefix: str, masks: Collection[str], deadline_ms: int = 0):
        """
        Create the publishers.

        :param prefix: what their topics begin with, '~/' or '~/CAMERA/'
        :param masks: what the segmenter offers; a topic that needs another mask is not created
        :param deadline_ms: the deadline that mask topics offer, with liveliness; 0 for neither
        """
        types = {name: kind for name, kind in _TYPES.items()
                 if _NEEDS.get(name, CLASSES) in masks}
        self.topics = {name: node.resolve_topic_name(prefix + name) for name in types}
        self.events: Counter[str] = Counter()
        self.given = {self.topics[name]: prefix + name for name in types}
        self._node = node
        self.statuses = 0
        self.info_problem = ''
        self._publishers: dict[str, Publisher] = {}
        try:
            for name, kind in types.items():
                self._publishers[name] = self._publisher(kind, prefix + name, name, deadline_ms)
        except BaseException:  # a QoS that was overridden wrongly, or no descriptor left
            for publisher in self:
                node.destroy_publisher(publisher)
            raise

    def _publisher(self, kind: type, topic: str, name: str, deadline_ms: int) -> Publisher:
        """Return a publisher whose QoS events are counted, where rclpy has them."""
        options = {'qos_overriding_options': qos_overrides(self._node, self.topics[name],
                                                           'publisher')}
        qos = _STATUS_QOS if name == STATUS else _QOS
        has_deadline = deadline_ms > 0 and kind in (Image, CompressedImage)
        if has_deadline:
            qos = _with_deadline(deadline_ms)
        if PublisherEventCallbacks is None:
            return self._node.create_publisher(kind, topic, qos, **options)

        def count(event: str) -> Callable[[Any], None]:
            def add(info: Any) -> None:
                # A topic that nobody takes is silent, which is no fault.
                if event == INCOMPATIBLE or self._publishers[name].get_subscription_count():
                    self.events[event] += info.total_count_change
            return add

        callbacks = PublisherEventCallbacks(
            incompatible_qos=count(INCOMPATIBLE),
            deadline=count(DEADLINE_MISSED) if has_deadline else None,
            liveliness=count(LIVELINESS_LOST) if has_deadline else None)
        try:
            publisher = self._node.create_publisher(kind, topic, qos, event_callbacks=callbacks,
                                                    **options)
        except UnsupportedEventTypeError:  # not every middleware tells of deadlines
            return self._node.create_publisher(kind, topic, qos, **options)
        for event in (INCOMPATIBLE, *[DEADLINE_MISSED, LIVELINESS_LOST] * has_deadline):
            self.events.setdefault(event, 0)
        return publisher

    def __iter__(self) -> Iterator[Publisher]:
        """Return all publishers, for the node to destroy."""
        return iter(self._publishers.values())

    def subscribers(self) -> dict[str, int]:
        """Return how many subscribers each topic has."""
        return {name: publisher.get_subscription_count()
                for name, publisher in self._publishers.items()}

    def qos(self) -> dict[str, QoSProfile]:
        """Return what each topic is offered with, by its absolute name."""
        return {self.topics[name]: publisher.qos_profile
                for name, publisher in self._publishers.items()}

    def wanted(self) -> frozenset[str]:
        """Return the topics that have subscribers."""
        return frozenset(name for name, count in self.subscribers().items() if count)

    def publish(self, wanted: frozenset[str], masks: Masks, image: np.ndarray | DeviceImage,
                color: str, header: Header, info: CameraInfo | None,
                source_size: tuple[int, int], on_gpu: Mapping[str, Image]) -> None:
        """
        Publish a frame's masks on the wanted topics, with the frame's stamp and frame_id.

        :param image: what the masks belong to, at their size, as `Segmenter.segment` takes it
        :param color: its layout
        :param info: the camera's parameters, if known
        :param source_size: (height, width) of the image as it came, which `info` describes
        :param on_gpu: by topic, the messages whose masks are on the GPU
        """
        def send(name: str, make: Callable[[], Any]) -> None:
            if name in wanted:
                self._publishers[name].publish(on_gpu[name] if name in on_gpu else make())

        send(CLASS_MASK, lambda: to_message(masks.classes, 'mono8', header))
        send(COLOR_MASK, lambda: to_message(_there(masks.color), 'bgr8', header))
        send(CONFIDENCE_MASK, lambda: to_message(_there(masks.confidence), 'mono8', header))
        send(OVERLAY, lambda: to_message(
            overlay(as_bgr(np.asarray(image), color), _there(masks.color)), 'bgr8', header))
        send(CLASS_PNG, lambda: to_png_message(masks.classes, header))
        self.info_problem = ''
        if CAMERA_INFO in wanted:
            self.info_problem = ('none came' if info is None
                                 else camera_info.problem(info, source_size))
            if info is not None and not self.info_problem:
                self._publishers[CAMERA_INFO].publish(
                    camera_info.for_mask(info, source_size, masks.classes.shape, header))

    def publish_status(self, wanted: frozenset[str], make: Callable[[int], str]) -> None:
        """
        Give a frame its number, and publish its status if somebody subscribes.

        :param make: returns the status, as `Evidence.status`, of the number
        """
        if STATUS in wanted:
            self._publishers[STATUS].publish(String(data=make(self.statuses)))
        self.statuses += 1


def _with_deadline(milliseconds: int) -> QoSProfile:
    """
    Return the QoS of a mask topic that offers a deadline.

    Who asks for its liveliness learns within a second, or a deadline that is longer, that the
    process is gone; without, DDS takes up to 20.
    """
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST, depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
        deadline=Duration(nanoseconds=milliseconds * 1_000_000),
        liveliness=QoSLivelinessPolicy.AUTOMATIC,
        liveliness_lease_duration=Duration(
            nanoseconds=max(milliseconds, _LEAST_LEASE_MS) * 1_000_000))


def to_compute(wanted: frozenset[str]) -> frozenset[str]:
    """Return what `Segmenter.segment` must compute for these topics; classes in any case."""
    return frozenset({CLASSES} | {_NEEDS[name] for name in wanted if name in _NEEDS})


def on_gpu(wanted: frozenset[str], size: tuple[int, int], header: Header, device: Device,
           handles: ExitStack) -> tuple[dict[str, Image], dict[str, int]]:
    """
    Return messages for masks that stay on the GPU, by topic, and where they are written, by mask.

    :param size: (height, width) of the masks
    :param header: as `to_message` takes it
    :param device, handles: as `native.output` takes them
    """
    messages, into = {}, {}
    for topic, mask, shape, encoding in ((CLASS_MASK, CLASSES, size, 'mono8'),
                                         (COLOR_MASK, COLOR, (*size, 3), 'bgr8')):
        if topic in wanted:
            data, into[mask] = native.output(shape, device, handles)
            messages[topic] = message_of(data, shape, encoding, header)
    return messages, into


def to_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """
    Return an image message.

    :param pixels: uint8 (height, width) or (height, width, channels)
    :param encoding: an 8-bit encoding with as many channels
    :param header: the stamp and frame_id of the frame that the pixels belong to
    """
    # An array('B') is taken as it is; bytes or an ndarray would be checked value by value.
    data = array('B')
    data.frombytes(memoryview(np.ascontiguousarray(pixels)))
    return message_of(data, pixels.shape, encoding, header)


def message_of(data: Any, shape: tuple[int, ...], encoding: str, header: Header) -> Image:
    """
    Return an image message of an array('B') or a buffer of rosidl's.

    :param shape, encoding, header: as `to_message` takes them
    """
    message = Image(header=header, height=shape[0], width=shape[1], encoding=encoding,
                    is_bigendian=0, step=math.prod(shape[1:]))
    message.data = data  # not through the constructor, which may copy it
    return message


def to_png_message(mask: np.ndarray, header: Header) -> CompressedImage:
    """Return a CompressedImage of a class mask, uint8 (height, width), which loses nothing."""
    return CompressedImage(header=header, format=MASK_FORMAT, data=array('B', mask_png(mask)))


def publish_labels(node: Node, labels: LabelSet) -> list[Publisher]:
    """
    Publish `~/labels` and, where vision_msgs is installed, `~/label_info`.

    `~/labels` is a JSON list of {name, train_id, color: [red, green, blue], category}, one entry
    for each output channel of the network.

    :returns: the publishers, which must live as long as the topics shall
    """
    publishers = [node.create_publisher(String, '~/labels', _LATCHED)]
    publishers[0].publish(String(data=json.dumps(labels.to_dict())))
    if LabelInfo is not None:
        publishers.append(node.create_publisher(LabelInfo, '~/label_info', _LATCHED))
        message = LabelInfo(class_map=[
            VisionClass(class_id=label.train_id, class_name=label.name)
            for label in labels.classes])
        message.header.stamp = node.get_clock().now().to_msg()
        publishers[1].publish(message)
    return publishers


def _there(mask: np.ndarray | None) -> np.ndarray:
    """Return a mask that was computed because somebody wants it."""
    assert mask is not None
    return mask
