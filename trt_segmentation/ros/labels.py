# SPDX-License-Identifier: Apache-2.0
"""What the numbers in a class mask mean, as latched topics."""

from __future__ import annotations

import json

from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from std_msgs.msg import String

from trt_segmentation.bundles.labels import LabelSet

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:  # it is no part of ROS's core
    LabelInfo = VisionClass = None

_LATCHED = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                      durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


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
