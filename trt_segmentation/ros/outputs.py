# SPDX-License-Identifier: Apache-2.0
"""One camera's output topics; what nobody subscribes to is not made."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from trt_segmentation.evaluation.pictures import overlay
from trt_segmentation.ros import camera_info
from trt_segmentation.ros.images import to_message, to_png_message
from trt_segmentation.segmenters.segmenter import CLASSES, COLOR, CONFIDENCE, Masks

_QOS = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1,
                  reliability=QoSReliabilityPolicy.RELIABLE)
CLASS_MASK, COLOR_MASK, OVERLAY = 'class_mask', 'color_mask', 'overlay'
CONFIDENCE_MASK, CLASS_PNG, CAMERA_INFO = 'confidence', 'class_mask/compressed', 'camera_info'
_TYPES = {CLASS_MASK: Image, COLOR_MASK: Image, OVERLAY: Image, CONFIDENCE_MASK: Image,
          CLASS_PNG: CompressedImage, CAMERA_INFO: CameraInfo}
# What `Segmenter.segment` must compute for a topic.
_NEEDS = {COLOR_MASK: COLOR, OVERLAY: COLOR, CONFIDENCE_MASK: CONFIDENCE}


class Outputs:
    """The publishers of one camera's masks."""

    def __init__(self, node: Node, prefix: str):
        """
        Create the publishers.

        :param prefix: what their topics begin with, '~/' or '~/CAMERA/'
        """
        self._publishers = {name: node.create_publisher(kind, prefix + name, _QOS)
                            for name, kind in _TYPES.items()}

    def __iter__(self) -> Iterator[Publisher]:
        """Return all publishers, for the node to destroy."""
        return iter(self._publishers.values())

    def subscribers(self) -> dict[str, int]:
        """Return how many subscribers each topic has."""
        return {name: publisher.get_subscription_count()
                for name, publisher in self._publishers.items()}

    def wanted(self) -> frozenset[str]:
        """Return the topics that have subscribers."""
        return frozenset(name for name, count in self.subscribers().items() if count)

    def publish(self, wanted: frozenset[str], masks: Masks, image: np.ndarray, color: str,
                header: Header, info: CameraInfo | None, source_size: tuple[int, int]) -> None:
        """
        Publish a frame's masks on the wanted topics, with the frame's stamp and frame_id.

        :param image: what the masks belong to, uint8 (height, width, 3), at their size
        :param color: the image's channel order
        :param info: the camera's parameters, if known
        :param source_size: (height, width) of the image as it came, which `info` describes
        """
        def send(name: str, make) -> None:
            if name in wanted:
                self._publishers[name].publish(make())

        send(CLASS_MASK, lambda: to_message(masks.classes, 'mono8', header))
        send(COLOR_MASK, lambda: to_message(masks.color, 'bgr8', header))
        if masks.confidence is not None:  # class ids have none
            send(CONFIDENCE_MASK, lambda: to_message(masks.confidence, 'mono8', header))
        send(OVERLAY, lambda: to_message(
            overlay(image if color == 'bgr' else np.ascontiguousarray(image[..., ::-1]),
                    masks.color), 'bgr8', header))
        send(CLASS_PNG, lambda: to_png_message(masks.classes, header))
        if CAMERA_INFO in wanted and info is not None:
            scaled = camera_info.for_mask(info, source_size, image.shape[:2], header)
            if scaled is not None:
                self._publishers[CAMERA_INFO].publish(scaled)


def to_compute(wanted: frozenset[str]) -> frozenset[str]:
    """Return what `Segmenter.segment` must compute for these topics; classes in any case."""
    return frozenset({CLASSES} | {_NEEDS[name] for name in wanted if name in _NEEDS})
