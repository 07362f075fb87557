# SPDX-License-Identifier: Apache-2.0
"""The masks' topics of one camera."""

from __future__ import annotations

from rclpy.node import Node
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from trt_segmentation.ros.images import to_message
from trt_segmentation.segmenter import CLASSES, COLOR, Masks

_QOS = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1,
                  reliability=QoSReliabilityPolicy.RELIABLE)


class Outputs:
    """The publishers of one camera's masks; each mask is made only for somebody."""

    def __init__(self, node: Node, prefix: str):
        """
        Create the publishers.

        :param prefix: what their topics begin with, '~/' or '~/CAMERA/'
        """
        self._class_mask = node.create_publisher(Image, f'{prefix}class_mask', _QOS)
        self._color_mask = node.create_publisher(Image, f'{prefix}color_mask', _QOS)

    @property
    def publishers(self) -> tuple:
        """All publishers, to be destroyed by the node."""
        return self._class_mask, self._color_mask

    def wanted(self) -> tuple[str, ...]:
        """Return what `Segmenter.segment` must compute for those who subscribe now."""
        if self._color_mask.get_subscription_count():
            return CLASSES, COLOR
        return (CLASSES,)

    def publish(self, masks: Masks, header: Header) -> None:
        """Publish what was computed, with the stamp and frame_id of its frame."""
        if self._class_mask.get_subscription_count():
            self._class_mask.publish(to_message(masks.classes, 'mono8', header))
        if masks.color is not None:
            self._color_mask.publish(to_message(masks.color, 'bgr8', header))
