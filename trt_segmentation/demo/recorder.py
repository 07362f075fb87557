# SPDX-License-Identifier: Apache-2.0
"""
Record the masks of a running node into a rosbag2 recording.

For machines without `ros2 bag record`; it keeps all in memory until its end. Prints `ready` when
every topic has a publisher, then each report that the node makes of its camera, as a line of JSON
(key-value pairs), and ends on SIGINT or SIGTERM. Writes, if asked to, a JSON file with `received`,
which maps each topic to the arrival moments of its messages by header stamp (both nanoseconds;
arrival by the monotonic clock), and `lost`, the number of messages of each topic that DDS says did
not arrive.
"""

from __future__ import annotations

import argparse
from functools import partial
import json
from pathlib import Path
import signal
import sys
import time
from typing import Any

from trt_segmentation.ros.command import ROS
from trt_segmentation.system import scripts
from trt_segmentation.system.files import atomic_write

if __name__ == '__main__':
    scripts.end_in_a_line(ROS)

from diagnostic_msgs.msg import DiagnosticArray
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from sensor_msgs.msg import Image

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

_DEPTH = 1000  # what waits here while this process is held up is not lost


def main() -> int:
    """Record until a signal; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bag', type=Path, help='the directory to record to; must not exist')
    parser.add_argument('topics', nargs='+', help='image topics to record')
    parser.add_argument('--report', type=Path, help='write arrivals and losses here (JSON)')
    args = parser.parse_args()
    # Before rclpy's own handlers, which would shut the context down under the last messages.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    stop = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.append(True))
    node = rclpy.create_node('recorder')
    messages: list[tuple[str, int, bytes]] = []

    def arrived(topic: str, data: bytes) -> None:
        messages.append((topic, time.monotonic_ns(), data))

    def diagnosed(array: DiagnosticArray) -> None:
        for status in array.status:
            values = {pair.key: pair.value for pair in status.values}
            if 'received' in values:  # the camera's, not the node's
                print(json.dumps(values), flush=True)

    lost = dict.fromkeys(args.topics, 0)

    def missed(topic: str, info: Any) -> None:
        lost[topic] = info.total_count

    node.create_subscription(DiagnosticArray, '/diagnostics', diagnosed, 10)
    qos = QoSProfile(depth=_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
    subscriptions = [node.create_subscription(
        Image, topic, partial(arrived, topic), qos, raw=True,
        event_callbacks=SubscriptionEventCallbacks(message_lost=partial(missed, topic)))
        for topic in args.topics]
    ready = False
    while not stop:
        rclpy.spin_once(node, timeout_sec=0.05)
        if not ready and all(node.count_publishers(topic) for topic in args.topics):
            print('ready', flush=True)
            ready = True
    for subscription in subscriptions:
        _take_the_rest(subscription)
    node.destroy_node()
    rclpy.shutdown()
    received = _write(args.bag, args.topics, messages)
    if args.report:
        atomic_write(args.report, json.dumps({'received': received, 'lost': lost}))
    return 0


def _take_the_rest(subscription: Subscription) -> None:
    """Let what waits arrive; no more, since the publisher may go on."""
    with subscription.handle:
        for _ in range(_DEPTH):
            found = subscription.handle.take_message(subscription.msg_type, subscription.raw)
            if found is None:
                return
            subscription.callback(found[0])


def _write(bag: Path, topics: list[str], messages: list[tuple[str, int, bytes]]
           ) -> dict[str, dict[str, int]]:
    """Write the bag, each message at its header stamp; return arrivals by topic and stamp."""
    received: dict[str, dict[str, int]] = {topic: {} for topic in topics}
    recording = Writer(bag, version=8, storage_plugin=StoragePlugin.MCAP)
    # Masks shrink to a hundredth, which a slow disk needs.
    recording.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
    with recording as writer:
        typestore = get_typestore(Stores.ROS2_HUMBLE)
        connections = {topic: writer.add_connection(topic, 'sensor_msgs/msg/Image',
                                                    typestore=typestore) for topic in topics}
        for topic, arrival, data in messages:
            stamp = deserialize_message(data, Image).header.stamp
            stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
            received[topic][str(stamp_ns)] = arrival
            writer.write(connections[topic], stamp_ns, data)
    return received


if __name__ == '__main__':
    sys.exit(main())
