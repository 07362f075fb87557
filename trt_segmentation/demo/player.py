# SPDX-License-Identifier: Apache-2.0
"""
Publish the images of a rosbag2 recording at its recorded rate, with /clock.

For machines without `ros2 bag play`. Waits for a subscriber, then plays once. Writes, if asked
to, a JSON file that maps each header stamp (nanoseconds) to the moment its frame was sent
(nanoseconds of the monotonic clock, which all processes of a machine share).
"""

from __future__ import annotations

import argparse
from itertools import islice
import json
import math
from pathlib import Path
import sys
import time

import rclpy
from rclpy.duration import Duration
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader, AnyReaderError
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from trt_segmentation.errors import InputError, nearest, one_line
from trt_segmentation.recordings.topics import IMAGE
from trt_segmentation.system.files import atomic_write

_TOLERANCE_NS = 2_000_000  # what a sleep may be too long without moving all that follows


def main() -> int:
    """Play a bag; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bag', type=Path, help='the recording (sqlite3 or mcap)')
    parser.add_argument('--topic', default='/camera/image_raw', help='the topic in the bag')
    parser.add_argument('--to', default='image', help='the topic to publish to')
    parser.add_argument('--rate', type=_above_zero, default=1.0, help='times the recorded speed')
    parser.add_argument('--count', type=lambda text: int(_above_zero(text)),
                        help='play this many images only, the first ones')
    parser.add_argument('--sent', type=Path, help='write the moments of sending here (JSON)')
    args = parser.parse_args()
    try:
        frames = _read(args.bag, args.topic, args.count)
    except InputError as error:
        parser.error(str(error))
    rclpy.init()
    node = rclpy.create_node('player')
    image = node.create_publisher(Image, args.to, QoSProfile(
        depth=5, reliability=ReliabilityPolicy.RELIABLE))
    clock = node.create_publisher(Clock, '/clock', 1)
    print(f'{len(frames)} frames; waiting for a subscriber of {args.to}', flush=True)
    while not image.get_subscription_count():
        rclpy.spin_once(node, timeout_sec=0.05)
    print('playing', flush=True)
    sent = _play(frames, args.rate, image, clock)
    # A reliable writer must live until its last sample is acknowledged.
    image.wait_for_all_acked(Duration(seconds=5))
    if args.sent:
        atomic_write(args.sent, json.dumps(sent))
    node.destroy_node()
    rclpy.shutdown()
    return 0


def _above_zero(text: str) -> float:
    """Return a number; for argparse."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'found {text}, expected a number above 0')
    return value


def _read(bag: Path, topic: str, count: int | None) -> list[tuple[int, Image]]:
    """
    Return (recorded time in nanoseconds, message) of each image; reading is not on the way.

    :raises InputError: if it is no recording, or has no images of this topic
    """
    try:
        reader = AnyReader([bag])
    except (AnyReaderError, OSError) as error:
        raise InputError(f'{bag}: {one_line(error)}') from None
    with reader:
        images = [c for c in reader.connections if c.msgtype == IMAGE]
        # Of no connections, all messages would come.
        if not (connections := [c for c in images if c.topic == topic]):
            others = sorted({c.topic for c in images})
            raise InputError(f'{bag}: no images on {topic}; it has them on '
                             f'{", ".join(others) or "no topic"}{nearest(topic, others)}')
        frames = [(time_ns, deserialize_message(bytes(data), Image))
                  for _, time_ns, data in islice(reader.messages(connections), count)]
    if not frames:
        raise InputError(f'{bag}: no messages on {topic}')
    return frames


def _play(frames: list[tuple[int, Image]], rate: float, image: Publisher, clock: Publisher
          ) -> dict[str, int]:
    """
    Publish each frame at its time; return when each was sent, by header stamp.

    As a camera does, it makes up for no delay: whatever held it up moves the rest back too.
    """
    sent: dict[str, int] = {}
    due, before = time.monotonic_ns() + 100_000_000, frames[0][0]
    for time_ns, message in frames:
        due, before = due + int((time_ns - before) / rate), time_ns
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        due = max(due, time.monotonic_ns() - _TOLERANCE_NS)
        clock.publish(Clock(clock=message.header.stamp))
        stamp = message.header.stamp
        sent[str(stamp.sec * 1_000_000_000 + stamp.nanosec)] = time.monotonic_ns()
        image.publish(message)
    return sent


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
