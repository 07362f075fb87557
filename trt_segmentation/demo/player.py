# SPDX-License-Identifier: Apache-2.0
"""
Publish a camera's images of a recording at its recorded rate, with /clock.

For machines without `ros2 bag play`. Waits for a subscriber, then plays once, with the Fast DDS
profile that images need. Of a damaged recording, what is readable is played and what is not is
named; the exit code is 2 then, and 1 where a subscriber does not acknowledge the images. Writes,
if asked to, a JSON file that maps each header stamp (nanoseconds) to the moment its frame was sent
(nanoseconds of the monotonic clock, which all processes of a machine share).
"""

from __future__ import annotations

import argparse
from contextlib import closing
from functools import partial
from itertools import islice
import json
import math
import os
from pathlib import Path
import sys
import threading
import time

from trt_segmentation.demo.children import PATIENCE
from trt_segmentation.errors import counted, InputError
from trt_segmentation.recordings import bags, message_types
from trt_segmentation.recordings.topics import COMPRESSED_IMAGE, IMAGE
from trt_segmentation.ros.command import ROS, topic
from trt_segmentation.system import environment, scripts
from trt_segmentation.system.arguments import Parser
from trt_segmentation.system.files import atomic_write

if __name__ == '__main__':
    scripts.end_in_a_line(ROS)

import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

_TOLERANCE_NS = 2_000_000  # what a sleep may be too long without moving all that follows
_CLOCK_SECONDS = 0.01  # between two messages of /clock
_LEAD_NS = 500_000_000  # from the subscriber to the first frame: /clock must have reached it too
_TYPES = {IMAGE: Image, COMPRESSED_IMAGE: CompressedImage}


def main() -> int:
    """Play a bag; return the exit code, 2 for one that could not be read whole."""
    parser = Parser(prog='player', description=__doc__)
    parser.add_argument('bag', type=Path, help='the recording: a directory, or a file .mcap, .db3 '
                                               'or .bag (ROS 1)')
    parser.add_argument('--topic', help='the topic in the bag (default: that of its camera)')
    parser.add_argument('--to', type=topic, default='image', help='the topic to publish to')
    parser.add_argument('--rate', type=partial(_above_zero, float), default=1.0,
                        help='times the recorded speed')
    parser.add_argument('--count', type=partial(_above_zero, int),
                        help='play this many images only, the first ones')
    parser.add_argument('--sent', type=Path, help='write the moments of sending here (JSON)')
    args = parser.parse_args()
    frames, problems = _read(args.bag, args.topic, args.count)
    for problem in problems:
        print(f'player: {problem}', file=sys.stderr)
    os.environ.update(environment.completed(os.environ))  # Fast DDS reads it when it is loaded
    environment.keep_memory()
    rclpy.init()
    node = rclpy.create_node('player')
    image = node.create_publisher(type(frames[0][1]), args.to, QoSProfile(
        depth=5, reliability=ReliabilityPolicy.RELIABLE))
    with closing(_Clock(node, _stamp_ns(frames[0][1]), args.rate)) as clock:
        print(f'{counted(len(frames), "frame")}; waiting for a subscriber of {args.to}',
              flush=True)
        while not image.get_subscription_count():
            rclpy.spin_once(node, timeout_sec=0.05)
        print('playing', flush=True)
        sent = _play(frames, args.rate, image, clock)
        acknowledged = _acknowledged(image)
    if args.sent:
        atomic_write(args.sent, json.dumps(sent))
    node.destroy_node()
    rclpy.shutdown()
    if not acknowledged:
        print(f'player: not all subscribers of {args.to} have acknowledged the last frames within '
              f'{PATIENCE:.0f} s', file=sys.stderr)
        return 1
    return 2 if problems else 0


def _above_zero(kind: type[int | float], text: str) -> float:
    """Return a number of a kind; for argparse."""
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        number = 'an integer' if kind is int else 'a number'
        raise argparse.ArgumentTypeError(f'found {text!r}, expected {number} above 0')
    return value


def _read(bag: Path, topic: str | None, count: int | None
          ) -> tuple[list[tuple[int, Image | CompressedImage]], list[str]]:
    """
    Return the images of a camera, and what could not be read; reading is not on the way.

    :returns: (recorded time in nanoseconds, message) of each, and sentences
    :raises InputError: if it is no recording, has no images of this topic, or none is named and
        it has several cameras
    """
    with closing(bags.Reader(bag)) as reader:
        reader.choose_cameras([topic] if topic else [])
        if len(reader.topics) > 1:
            raise InputError(f'{bag}: several cameras, {", ".join(reader.topics)}: name one with '
                             '--topic')
        ((topic, msgtype),) = reader.topics.items()
        frames = [(recorded.time_ns, deserialize_message(bytes(
            message_types.typestore().serialize_cdr(recorded.message, msgtype)), _TYPES[msgtype]))
            for recorded in islice(reader, count)]
    if not frames:
        raise InputError('; '.join([f'{bag}: no messages on {topic}', *reader.problems[:1]]))
    return frames, reader.problems


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


def _stamp_ns(message: Image | CompressedImage) -> int:
    """Return an image's stamp in nanoseconds."""
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def _play(frames: list[tuple[int, Image | CompressedImage]], rate: float, image: Publisher,
          clock: _Clock) -> dict[str, int]:
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


def _acknowledged(image: Publisher) -> bool:
    """Keep the writer until all that it sent is acknowledged; return whether it is, in time."""
    end = time.monotonic() + PATIENCE
    while not image.wait_for_all_acked(Duration(seconds=1)):  # no longer, since it hears no signal
        if not rclpy.ok():
            raise ExternalShutdownException
        if time.monotonic() > end:
            return False
    return True


if __name__ == '__main__':
    try:
        sys.exit(main())
    except (KeyboardInterrupt, ExternalShutdownException):  # Ctrl-C, SIGTERM
        sys.exit(130)
