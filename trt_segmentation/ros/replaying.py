# SPDX-License-Identifier: Apache-2.0
"""
Play a recording to the running node and record its masks: what replay.launch.py starts.

Plays when the node is active, however long its engine is built; looks at every exit code; says how
many images had masks and why others had none. Exit code 0: there are masks. 1: there are none, or
node, player or recorder failed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import closing
from math import inf
import signal
import subprocess
import sys
from time import monotonic, time_ns
from typing import Any

from trt_segmentation.errors import counted, InputError
from trt_segmentation.recordings import bags
from trt_segmentation.ros import statistics
from trt_segmentation.ros.command import ROS
from trt_segmentation.system import scripts

if __name__ == '__main__':
    scripts.end_in_a_line(ROS)

from diagnostic_msgs.msg import DiagnosticArray
import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.time import Time
from rosgraph_msgs.msg import Clock

MASKS = 'class_mask', 'color_mask'
_PATIENCE = 300.0  # seconds for what takes few but on a machine that is busy


class Failed(Exception):
    """Report why there is no recording of the masks."""


class Session:
    """The node, as its diagnostics show it, and the processes that play and record."""

    def __init__(self, node: Node, name: str):
        """
        Listen to the diagnostics of a node.

        :param name: the node's, absolute
        """
        self._node, self._name = node, name
        self._state: dict[str, str] = {}
        self._reports: dict[str, list[dict[str, str]]] = {}  # by camera, the last two
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)

    def wait_until_active(self) -> None:
        """Wait for the node; it may build its engine for minutes."""
        said = ''

        def active() -> bool:
            nonlocal said
            state = self._state
            text = f'the node is {state.get("state", "not there yet")}'
            if text != said:
                said = text
                print(text, flush=True)
            self._check_node()
            return state.get('state') == 'active'

        self._wait(active)

    def record(self, output: str, start_ns: int) -> subprocess.Popen:
        """
        Start the recorder; return when it listens.

        :param start_ns: when the recording begins, nanoseconds: with --use-sim-time the recorder
            subscribes to nothing before it has a time, and the player, whose time it will be,
            begins when the recorder listens
        """
        topics = [f'{self._name}/{mask}' for mask in MASKS]
        recorder = subprocess.Popen(['ros2', 'bag', 'record', '--use-sim-time', '--output', output,
                                     *_topics_option(), *topics, f'{self._name}/labels'])
        clock = self._node.create_publisher(Clock, '/clock', 1)

        def listens() -> bool:
            if recorder.poll() is not None:
                raise Failed(f'the recorder has ended with code {recorder.returncode}')
            clock.publish(Clock(clock=Time(nanoseconds=start_ns).to_msg()))
            return all(self._node.count_subscribers(topic) for topic in topics)

        try:
            self._wait(listens, _PATIENCE, 'the recorder does not subscribe')
        finally:
            self._node.destroy_publisher(clock)
        return recorder

    def play(self, bag: str, rate: str, delay: str, topics: list[str],
             recorder: subprocess.Popen) -> None:
        """Play the recording to its end, and wait for the last masks."""
        player = subprocess.Popen(['ros2', 'bag', 'play', bag, '--clock', '100', '--rate', rate,
                                   '--delay', delay, '--topics', *topics])

        def ended() -> bool:
            if recorder.poll() is not None:
                player.terminate()
                raise Failed(f'the recorder has ended with code {recorder.returncode} before the '
                             'player')
            return player.poll() is not None

        self._wait(ended)
        if player.returncode:
            raise Failed(f'the player has ended with code {player.returncode}')
        self._reports.clear()  # these are from before the end
        self._wait(self._settled, _PATIENCE, f'{_PATIENCE:.0f} s after the end of the player the '
                   'node is still not done with its images: does somebody else publish, too?')

    def result(self) -> str:
        """Return what became of the images; raise Failed if there are no masks."""
        received, published = 0, 0
        dropped: dict[str, int] = {}
        troubles: list[str] = []
        for *_, camera in self._reports.values():
            received += int(camera.get('received', 0))
            published += int(camera.get('published', 0))
            if camera.get('trouble'):
                troubles.append(camera['trouble'])
            for key, text in camera.items():
                if key.startswith('dropped_') and text.isdigit() and int(text):
                    cause = key.removeprefix('dropped_').replace('_', ' ')
                    dropped[cause] = dropped.get(cause, 0) + int(text)
        text = f'{published} of {counted(received, "image has", "images have")} masks'
        if dropped:
            text += '; dropped: ' + ', '.join(f'{n} {cause}' for cause, n in dropped.items())
        if not received:
            raise Failed('the node has heard no image: does the recording have the topic? (ros2 '
                         f'bag info) {"; ".join(troubles)}'.rstrip())
        if not published:
            raise Failed(f'{text}; {"; ".join(troubles)}'.rstrip('; '))
        return text

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        """Keep what the node says of itself and of its cameras."""
        name = self._name.lstrip('/')
        for status in array.status:
            owner, _, task = status.name.partition(': ')
            if owner != name:
                continue
            values = {pair.key: pair.value for pair in status.values}
            if task == 'node':
                self._state = values
            else:
                self._reports[task] = [*self._reports.get(task, [])[-1:], values]

    def _check_node(self) -> None:
        """Raise Failed if the node does not go on by itself."""
        if self._state.get('supervision') in ('retrying', 'given_up', 'ending'):
            raise Failed(self._state.get('reason', 'the node has given up'))

    def _settled(self) -> bool:
        """Tell whether all images that have come are masks or dropped."""
        self._check_node()
        return bool(self._reports) and all(len(reports) > 1 and statistics.settled(*reports)
                                           for reports in self._reports.values())

    def _wait(self, condition: Callable[[], bool], seconds: float = inf, otherwise: str = ''
              ) -> None:
        """Let callbacks run until something is true, or raise Failed after some seconds."""
        end = monotonic() + seconds
        while not condition():
            if monotonic() > end:
                raise Failed(otherwise)
            rclpy.spin_once(self._node, timeout_sec=0.1)


def _topics_option() -> list[str]:
    """Return the option that names topics, if this ROS has it: newer ones demand it."""
    said = subprocess.run(['ros2', 'bag', 'record', '--help'], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          errors='replace').stdout
    return ['--topics'] if '--topics' in said.split() else []


def _start_ns(bag: str) -> int:
    """Return when a recording's first image came, or now of one that only ROS can read."""
    try:
        with closing(bags.Reader(bag)) as reader:
            return next((image.time_ns for image in reader), 0) or time_ns()
    except InputError:
        return time_ns()


def stop_recorder(recorder: subprocess.Popen) -> None:
    """End the recorder as Ctrl-C does, which lets it write its index."""
    print('waiting for the recorder to write what it has', flush=True)
    recorder.send_signal(signal.SIGINT)
    try:
        code = recorder.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        recorder.kill()
        raise Failed(f'the recorder did not end within {_PATIENCE:.0f} s') from None
    if code not in (0, 2, 128 + signal.SIGINT, -signal.SIGINT):
        raise Failed(f'the recorder has ended with code {code}')


def main() -> int:
    """Play and record; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bag', help='the recording to play')
    parser.add_argument('output', help='the recording to write')
    parser.add_argument('--topics', nargs='+', required=True, help='what to play')
    parser.add_argument('--node', default='/segmentation', help="the node's absolute name")
    parser.add_argument('--rate', default='1.0', help='times the recorded speed')
    parser.add_argument('--delay', default='2.0', help='seconds that the player waits first')
    args = parser.parse_args()
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node('replay')
    started: list[Any] = []
    try:
        session = Session(node, args.node)
        session.wait_until_active()
        started.append(session.record(args.output, _start_ns(args.bag)))
        session.play(args.bag, args.rate, args.delay, args.topics, started[0])
        stop_recorder(started.pop())
        print(session.result(), flush=True)
        return 0
    except (Failed, OSError) as error:  # the latter where there is no ros2
        print(f'replay: {error}', file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        for process in started:
            process.send_signal(signal.SIGINT)
        node.destroy_node()
        rclpy.shutdown()


if __name__ == '__main__':
    sys.exit(main())
