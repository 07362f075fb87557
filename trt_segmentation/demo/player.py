# SPDX-License-Identifier: Apache-2.0
"""
Publish the images of a rosbag2 recording at its recorded rate, with /clock.

For machines without `ros2 bag play`. Waits for a subscriber, then plays once, with the Fast DDS
profile that images need. Writes, if asked to, a JSON file that maps each header stamp
(nanoseconds) to the moment its frame was sent (nanoseconds of the monotonic clock, which all
processes of a machine share).
"""

from __future__ import annotations

import argparse
from contextlib import closing
from itertools import islice
import json
import math
import os
from pathlib import Path
import sys
import threading
import time

import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader, AnyReaderError
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from trt_segmentation.errors import InputError, nearest, one_line
from trt_segmentation.recordings.topics import IMAGE
from trt_segmentation.system import environment
from trt_segmentation.system.files import atomic_write

_TOLERANCE_NS = 2_000_000  # what a sleep may be too long without moving all that follows
_CLOCK_SECONDS = 0.01  # between two messages of /clock
_LEAD_NS = 500_000_000  # from the subscriber to the first frame: /clock must have reached it too


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
    os.environ.update(environment.completed(os.environ))  # Fast DDS reads it when it is loaded
    environment.keep_memory()
    rclpy.init()
    node = rclpy.create_node('player')
    image = node.create_publisher(Image, args.to, QoSProfile(
        depth=5, reliability=ReliabilityPolicy.RELIABLE))
    with closing(_Clock(node, _stamp_ns(frames[0][1]), args.rate)) as clock:
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


class _Clock:
    """
    The recording's time, published on /clock by a thread of its own.

    It stands at the first frame until that is sent and runs on from each; where a frame is held
    up, it waits at that frame's stamp. So a frame ages while a subscriber works on it.
    """

    def __init__(self, node: Node, start_ns: int, rate: float):
        """
        Start to publish.

        :param start_ns: the first frame's stamp
        :param rate: times the recorded speed
        """
        # Reliable for whoever asks for that; use_sim_time takes it best effort.
        self._publisher = node.create_publisher(Clock, '/clock', 1)
        self._rate = rate
        self._passed: tuple[int, int, int | None] = (time.monotonic_ns(), start_ns, start_ns)
        self._lock = threading.Lock()  # no older time goes after a newer one
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name='clock', daemon=True)
        self._thread.start()

    def reach(self, stamp_ns: int, limit_ns: int | None) -> None:
        """Go on from a frame's stamp, to the next one's at most; without one, on and on."""
        with self._lock:
            self._passed = time.monotonic_ns(), stamp_ns, limit_ns
            self._publish()

    def close(self) -> None:
        """Publish no more."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        """Publish until the end; in the thread."""
        while not self._end.wait(_CLOCK_SECONDS):
            with self._lock:
                self._publish()

    def _publish(self) -> None:
        """Publish the time once."""
        since, stamp_ns, limit_ns = self._passed
        now = stamp_ns + int((time.monotonic_ns() - since) * self._rate)
        if limit_ns is not None:
            now = max(stamp_ns, min(now, limit_ns))
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(now, 1_000_000_000)
        self._publisher.publish(message)


def _stamp_ns(message: Image) -> int:
    """Return an image's stamp in nanoseconds."""
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def _play(frames: list[tuple[int, Image]], rate: float, image: Publisher, clock: _Clock
          ) -> dict[str, int]:
    """
    Publish each frame at its time; return when each was sent, by header stamp.

    As a camera does, it makes up for no delay: whatever held it up moves the rest back too.
    """
    sent: dict[str, int] = {}
    due, before = time.monotonic_ns() + _LEAD_NS, frames[0][0]
    stamps = [_stamp_ns(message) for _, message in frames]
    for (time_ns, message), stamp_ns, next_ns in zip(frames, stamps, [*stamps[1:], None]):
        due, before = due + int((time_ns - before) / rate), time_ns
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        due = max(due, time.monotonic_ns() - _TOLERANCE_NS)
        clock.reach(stamp_ns, next_ns)
        sent[str(stamp_ns)] = time.monotonic_ns()
        image.publish(message)
    return sent


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
