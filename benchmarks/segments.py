# SPDX-License-Identifier: Apache-2.0
"""
Find the shared-memory segment that camera images need over Fast DDS.

    python benchmarks/segments.py [--hz 30] [--seconds 5] [--json FILE]

For each image size, reliability and segment size: a sender and two receivers (a node, and somebody
who looks at the same camera) in processes of their own, all with config/fastdds.xml but for the
segment. A message that finds no room in its sender's segment goes over UDP, late or not at all; so
what counts are the messages received, and when.
"""

from __future__ import annotations

import argparse
from array import array
from contextlib import ExitStack
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

from trt_segmentation.demo.children import ros_environment
from trt_segmentation.reports import json_text
from trt_segmentation.system import environment, machine, scripts
from trt_segmentation.system.files import atomic_write

SIZES = {'1920x1080': (1080, 1920), '3840x2160': (2160, 3840)}
SEGMENTS = (16, 32, 48, 64, 96, 128)  # MB
RECEIVERS = 2
WARM_UP = 1.0  # seconds whose messages do not count
PATIENCE = 60.0


def _qos(reliable: bool):
    from rclpy.qos import QoSProfile, QoSReliabilityPolicy
    return QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE if reliable
                      else QoSReliabilityPolicy.BEST_EFFORT)


def send(size: tuple[int, int], reliable: bool, hz: float, seconds: float) -> None:
    """Publish images at a rate as soon as all receivers are there; print how many counted."""
    import rclpy
    from sensor_msgs.msg import Image
    rclpy.init()
    node = rclpy.create_node('sender')
    publisher = node.create_publisher(Image, 'image', _qos(reliable))
    height, width = size
    message = Image(height=height, width=width, encoding='bgr8', step=width * 3,
                    data=array('B', bytes(height * width * 3)))
    while publisher.get_subscription_count() < RECEIVERS:
        rclpy.spin_once(node, timeout_sec=0.05)
    counted, start = 0, time.monotonic() + 0.1
    for number in range(int((WARM_UP + seconds) * hz)):
        time.sleep(max(0.0, start + number / hz - time.monotonic()))
        counts = number >= WARM_UP * hz
        message.header.frame_id = str(time.monotonic_ns()) if counts else ''
        publisher.publish(message)
        counted += counts
    time.sleep(0.5)  # what is on its way
    print(json.dumps(counted), flush=True)
    sys.stdin.read()


def receive(reliable: bool) -> None:
    """Take images until standard input ends; print how old each was, in ms."""
    import threading

    import rclpy
    from sensor_msgs.msg import Image
    rclpy.init()
    node = rclpy.create_node(f'receiver{os.getpid()}')
    ages: list[float] = []

    def take(message: Image) -> None:
        if message.header.frame_id:
            ages.append((time.monotonic_ns() - int(message.header.frame_id)) / 1e6)

    node.create_subscription(Image, 'image', take, _qos(reliable))
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    while not ended.is_set():
        rclpy.spin_once(node, timeout_sec=0.1)
    print(json.dumps(ages), flush=True)


def measure(size: str, reliable: bool, segment: int, max_message: int, hz: float, seconds: float,
            directory: Path) -> dict:
    """
    Return what the receivers got of the images of one sender.

    :param segment: MB
    :param max_message: MB that go in one piece; a larger message goes in pieces of 64 KB
    """
    profile = directory / f'{segment}.xml'
    text = environment.config_path('fastdds.xml').read_text()
    for element, megabytes in (('segment_size', segment),
                               ('maxMessageSize', min(segment, max_message))):
        text = re.sub(f'<{element}>.*<', f'<{element}>{megabytes << 20}<', text)
    profile.write_text(text)
    child = ros_environment()
    child.update({name: str(profile) for name in environment.PROFILE_VARIABLES if name in child})

    def start(stack: ExitStack, *arguments: str) -> subprocess.Popen[str]:
        process = stack.enter_context(subprocess.Popen(
            [sys.executable, __file__, '--role', *arguments, '--size', size,
             *(['--reliable'] if reliable else []), '--hz', str(hz), '--seconds', str(seconds)],
            env=child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True))
        stack.callback(process.kill)
        return process

    with ExitStack() as stack:
        receivers = [start(stack, 'receive') for _ in range(RECEIVERS)]
        sender = start(stack, 'send')
        sent = json.loads(sender.stdout.readline())
        ages = [json.loads(process.communicate('', timeout=PATIENCE)[0])
                for process in receivers]
        sender.communicate('', timeout=PATIENCE)
    merged = np.array([age for each in ages for age in each] or [np.nan])
    return {'size': size, 'reliable': reliable, 'segment_mb': segment, 'sent': sent,
            'received': [len(each) for each in ages],
            'p50_ms': float(np.percentile(merged, 50)), 'p99_ms': float(np.percentile(merged, 99))}


def main() -> None:
    """Measure all, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--hz', type=float, default=30.0)
    parser.add_argument('--seconds', type=float, default=5.0)
    parser.add_argument('--segments', type=int, nargs='+', default=SEGMENTS, metavar='MB')
    parser.add_argument('--sizes', choices=SIZES, nargs='+', default=list(SIZES))
    parser.add_argument('--max-message', type=int, default=32, metavar='MB')
    parser.add_argument('--json', type=Path, metavar='FILE')
    parser.add_argument('--role', choices=('send', 'receive'), help=argparse.SUPPRESS)
    parser.add_argument('--size', choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument('--reliable', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role == 'send':
        return send(SIZES[args.size], args.reliable, args.hz, args.seconds)
    if args.role == 'receive':
        return receive(args.reliable)
    import rclpy  # noqa: F401  # missed here, not by the processes, which nobody reads
    results = []
    print(f'{"size":>10} {"QoS":>12} {"segment":>8} {"sent":>5} {"received":>12} '
          f'{"p50 ms":>7} {"p99 ms":>7}')
    with tempfile.TemporaryDirectory() as directory:
        for size in args.sizes:
            for reliable in (True, False):
                for segment in args.segments:
                    found = measure(size, reliable, segment, args.max_message, args.hz,
                                    args.seconds, Path(directory))
                    results.append(found)
                    print(f'{size:>10} {"reliable" if reliable else "best effort":>12} '
                          f'{segment:>5} MB {found["sent"]:>5} '
                          f'{" ".join(map(str, found["received"])):>12} '
                          f'{found["p50_ms"]:7.1f} {found["p99_ms"]:7.1f}', flush=True)
    if args.json:
        atomic_write(args.json, json_text({'machine': machine.describe(), 'results': results}))


if __name__ == '__main__':
    scripts.end_in_a_line()
    main()
