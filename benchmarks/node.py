# SPDX-License-Identifier: Apache-2.0
"""
Time the node end to end over DDS, beside the plain way and a bare echo, in one run.

    python benchmarks/node.py [--bundle DIR] [--seconds 10] [--json FILE]

A sender, the subject and a receiver run as processes of their own. Latency is from before
publish() of an image to the first line of the callback of its last mask, by the monotonic clock.
The subjects:

    node      segmentation_node
    batched   segmentation_node with an engine for several images at once (benchmarks/cameras.py)
    constant  segmentation_node with an engine that returns the same logits at once (CPU only)
    plain     the same pipeline written the plain way: queue of 10, copies, all in the callback
    echo      a node that publishes each image again: the floor

Without --bundle the sample bundle is calibrated first, as the demo does, on few images.
"""

from __future__ import annotations

import argparse
from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
import json
import os
from pathlib import Path
import select
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import cv2
import drawn
import numpy as np
import vgg16_fcn

from trt_segmentation import reports
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.demo.children import ros_environment
from trt_segmentation.engines import BACKENDS, PRECISIONS
from trt_segmentation.sample import scenes
from trt_segmentation.system import machine, scripts
from trt_segmentation.system.files import atomic_write

WARM_UP = 2.0  # seconds at the beginning that do not count: discovery, first touches of memory
SETTLE = 1.5  # seconds in which the last masks may arrive
SIZES = {'1024x512': (512, 1024), '2048x1024': (1024, 2048)}
FASTEST = 60  # Hz: more than the sample network can do on a CPU
PATIENCE = 120.0
SAMPLE, VGG = 'sample', 'vgg16_fcn'


# What runs in the processes


def stamp_of(message) -> int:
    """Return a message's stamp in nanoseconds."""
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


def send(topics: list[str], hz: float, seconds: float, size: tuple[int, int]) -> None:
    """
    Publish images on each topic at a rate.

    Prints when each was sent, by stamp, first of those that do not count.
    """
    import rclpy
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import Image
    rclpy.init()
    node = rclpy.create_node('sender')
    publishers = [node.create_publisher(Image, topic, QoSProfile(depth=1)) for topic in topics]
    messages = []
    for seed in scenes.DEMO_SEEDS[:4]:
        image = cv2.resize(scenes.scene(seed)[0], size[::-1])
        messages.append(Image(height=size[0], width=size[1], encoding='bgr8', step=size[1] * 3,
                              data=array('B', image.tobytes())))
    while not all(publisher.get_subscription_count() for publisher in publishers):
        rclpy.spin_once(node, timeout_sec=0.05)
    warm_up: dict[int, int] = {}
    sent: dict[int, int] = {}
    period, start = 1 / hz / len(topics), time.monotonic() + 0.1
    for number in range(int((WARM_UP + seconds) * hz) * len(topics)):
        due = start + number * period
        time.sleep(max(0.0, due - time.monotonic()))
        message = messages[number // len(topics) % len(messages)]
        message.header.stamp = node.get_clock().now().to_msg()
        counts = due - start >= WARM_UP
        (sent if counts else warm_up)[stamp_of(message)] = time.monotonic_ns()
        publishers[number % len(topics)].publish(message)
    time.sleep(SETTLE)
    print(json.dumps([warm_up, sent]), flush=True)


def receive(topics: list[str]) -> None:
    """Print, at the end, when the message of each stamp came, by topic."""
    from diagnostic_msgs.msg import DiagnosticArray
    import rclpy
    from rclpy.qos import QoSProfile
    from rclpy.signals import SignalHandlerOptions
    from sensor_msgs.msg import Image
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    stop: list[bool] = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(True))
    node = rclpy.create_node('receiver')
    received: dict[str, dict[int, int]] = defaultdict(dict)
    figures: dict[str, str] = {}

    def subscribe(topic: str) -> None:
        node.create_subscription(
            Image, topic, lambda m: received[topic].setdefault(stamp_of(m), time.monotonic_ns()),
            QoSProfile(depth=10))

    def diagnosed(message: DiagnosticArray) -> None:
        for status in message.status:
            figures.update({pair.key: pair.value for pair in status.values})

    for topic in topics:
        subscribe(topic)
    node.create_subscription(DiagnosticArray, '/diagnostics', diagnosed, 10)
    while not all(node.count_publishers(topic) for topic in topics):
        rclpy.spin_once(node, timeout_sec=0.05)
    print('ready', flush=True)
    while not stop:
        rclpy.spin_once(node, timeout_sec=0.05)
    print(json.dumps({'received': received, 'diagnostics': figures}), flush=True)


def echo(cameras: list[str]) -> None:
    """Publish each image again: what DDS and rclpy cost by themselves."""
    import rclpy
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import Image
    rclpy.init()
    node = rclpy.create_node('echo')
    for camera in cameras:
        publisher = node.create_publisher(Image, f'/segmentation/{camera}class_mask',
                                          QoSProfile(depth=1))
        node.create_subscription(Image, f'{camera}image', publisher.publish, QoSProfile(depth=1))
    rclpy.spin(node)


def plain(cameras: list[str], bundle: str, store: str, backend: str, precision: str) -> None:
    """Segment as a node is first written: queue of 10, copies, everything in the callback."""
    import rclpy
    from sensor_msgs.msg import Image

    from trt_segmentation import open_segmenter
    rclpy.init()
    node = rclpy.create_node('segmentation')
    segmenter = open_segmenter(bundle, backend=backend, precision=precision, store=store)

    def serve(camera: str) -> None:
        classes = node.create_publisher(Image, f'/segmentation/{camera}class_mask', 10)
        colors = node.create_publisher(Image, f'/segmentation/{camera}color_mask', 10)

        def message_of(pixels: np.ndarray, encoding: str, header) -> Image:
            # As cv_bridge's cv2_to_imgmsg does it.
            return Image(header=header, height=pixels.shape[0], width=pixels.shape[1],
                         encoding=encoding, step=pixels.strides[0], data=pixels.tobytes())

        def callback(message: Image) -> None:
            # As cv_bridge's imgmsg_to_cv2 does it, with the copy of its conversion.
            image = np.ndarray((message.height, message.width, 3), np.uint8,
                               message.data.tobytes()).copy()
            masks = segmenter.segment(image)
            classes.publish(message_of(masks.classes, 'mono8', message.header))
            colors.publish(message_of(masks.color, 'bgr8', message.header))

        node.create_subscription(Image, f'{camera}image', callback, 10)

    for camera in cameras:
        serve(camera)
    rclpy.spin(node)


def constant() -> None:
    """Run the node with an engine that returns the same logits at once."""
    from trt_segmentation.ros import node, wanted
    open_real = wanted.open_segmenter

    def open_constant(*args, **options):
        opened = open_real(*args, **options)
        image = cv2.resize(scenes.scene(scenes.DEMO_SEEDS[0])[0], opened.spec.input.size[::-1])
        opened.segment(image)
        engine, outputs = opened.engine, {}
        infer = engine.infer

        def infer_once(tensor):
            if not outputs:
                outputs.update(infer(tensor))
            return outputs

        opened.engine.infer = infer_once
        opened.segment(image)
        acceptance = replace(opened.record.acceptance, frames=())  # its masks are another's now
        opened.record = replace(opened.record, acceptance=acceptance)
        return opened

    wanted.open_segmenter = open_constant
    sys.exit(node.main())


# The measurement


class Session:
    """Starts processes in a domain of their own and measures a subject."""

    def __init__(self, args: argparse.Namespace, directory: Path):
        """
        Take what `add_engine` has added; without a bundle, prepare one in the directory.

        `parameters`, empty at first, are the node's beside those of the measurement;
        `latencies_ms` are those of every frame of the last one.
        """
        import rclpy  # noqa: F401  # missed here, not by the processes after all the preparing
        self.parameters: dict[str, Any] = {}
        self.latencies_ms = np.empty(0)
        self.backend, self.precision = args.backend, args.precision
        self.max_batch = getattr(args, 'max_batch', 1)
        self.bundle, self.store = ((args.bundle, args.store) if args.bundle else prepare(
            directory, args.backend, args.precision, self.max_batch,
            getattr(args, 'network', SAMPLE)))
        self.environ = ros_environment()

    def measure(self, subject: str, size: str, hz: float, seconds: float, cameras: int = 1,
                watch: Callable[[int], AbstractContextManager[Any]] = nullcontext
                ) -> dict[str, Any]:
        """
        Return the figures of one subject under one load.

        :param watch: of the subject's process id, what is entered while images are sent
        """
        names = [f'camera{i}/' for i in range(cameras)] if cameras > 1 else ['']
        masks = ['class_mask'] if subject == 'echo' else ['class_mask', 'color_mask']
        with ExitStack() as stack:
            process = self.subject(stack, subject, names)
            receiver = self.start(stack, 'receive', '--topics', *[
                f'/segmentation/{name}{mask}' for name in names for mask in masks])
            self.expect(receiver, 'ready', process)
            sender = self.start(stack, 'send', '--topics', *[f'/{name}image' for name in names],
                                '--hz', hz, '--seconds', seconds, '--size', size)
            cpu, begin = cpu_seconds(process.pid), time.monotonic()
            with watch(process.pid):
                warm_up, sent = json.loads(
                    self.expect(sender, '[', process, seconds + PATIENCE))
            share = (cpu_seconds(process.pid) - cpu) / (time.monotonic() - begin)
            receiver.send_signal(signal.SIGINT)
            report = json.loads(self.expect(receiver, '{', process))
        # Masks of strangers on the same domain do not count.
        arrived = arrivals({*warm_up, *sent}, report['received'], names, masks)
        self.latencies_ms = np.array([(arrived[stamp] - moment) * 1e-6
                                      for stamp, moment in sent.items() if stamp in arrived])
        figures = summary(sent.values(), self.latencies_ms, arrived.values())
        stages = {key: float(value) for key, value in report['diagnostics'].items()
                  if '_time_ms_p50' in key}
        batches = {key: float(value) for key, value in report['diagnostics'].items()
                   if key.startswith('batch_size_')}
        return {'subject': subject, 'size': size, 'hz': hz, 'cameras': cameras, **figures,
                'cpu_share': share, 'stages_p50_ms': stages, 'batches': batches}

    def subject(self, stack: ExitStack, subject: str, names: list[str]) -> subprocess.Popen:
        """Start a subject."""
        if subject in ('echo', 'plain'):
            return self.start(stack, subject, '--cameras', *(name or '-' for name in names),
                              '--bundle', self.bundle, '--store', self.store, '--backend',
                              self.backend, '--precision', self.precision)
        cameras = [name.strip('/') for name in names if name]
        arguments = ros_arguments({
            'bundle': self.bundle, 'store': self.store, 'backend': self.backend,
            'precision': self.precision, 'build_missing': 'false',
            # The measurement shall see late frames, not hide them.
            'max_frame_age_ms': 10000, **self.parameters,
            **({'max_batch': self.max_batch} if subject == 'batched' else {}),
            **({'cameras': cameras} if cameras else {})})
        if subject == 'constant':
            return self.start(stack, subject, *arguments)
        return self._run(stack, [sys.executable, '-m', 'trt_segmentation.ros.node', *arguments])

    def start(self, stack: ExitStack, role: str, *arguments: Any) -> subprocess.Popen:
        """Start a role of this file."""
        return self._run(stack, [sys.executable, __file__, '--role', role,
                                 *map(str, arguments)])

    def _run(self, stack: ExitStack, command: list[str]) -> subprocess.Popen:
        """Start a process that ends with the stack."""
        process = subprocess.Popen(command, env=self.environ, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, text=True)

        def end() -> None:
            process.kill()
            process.wait()
        stack.callback(end)
        return process

    @staticmethod
    def expect(process: subprocess.Popen, beginning: str, subject: subprocess.Popen,
               patience: float = PATIENCE) -> str:
        """Return the line that begins so, once the process prints it."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            for one in (process, subject):
                if one.poll() is not None:
                    raise RuntimeError(f'{one.args} has ended with code {one.returncode}')
            if select.select([process.stdout], [], [], 0.5)[0]:
                line = process.stdout.readline()
                if line.startswith(beginning):
                    return line
        raise RuntimeError(f'{process.args} says nothing within {patience} s')


def ros_arguments(parameters: Mapping[str, Any]) -> list[str]:
    """Return the arguments that give a node its parameters."""
    return ['--ros-args', *(word for name, value in parameters.items()
                            for word in ('-p', f'{name}:={value}'))]


def arrivals(stamps: set[str], received: dict[str, dict[str, int]], names: list[str],
             masks: list[str]) -> dict[str, int]:
    """Return when the last mask of each frame came whose every mask came, by its stamp."""
    arrived: dict[str, int] = {}
    for name in names:
        tables = [received.get(f'/segmentation/{name}{mask}', {}) for mask in masks]
        for stamp in stamps.intersection(*tables):
            arrived[stamp] = max(table[stamp] for table in tables)
    return arrived


def summary(sent: Collection[int], latency: np.ndarray, arrived: Collection[int]
            ) -> dict[str, Any]:
    """
    Return latencies and drops of the frames whose every mask came.

    :param sent: when each frame that counts was sent, ns
    :param latency: of those whose masks came, ms, in the order in which they were sent
    :param arrived: when the last mask came of each frame, also of those of the warm-up, ns
    """
    if not len(latency):
        return {'sent': len(sent), 'received': 0, 'latency_ms': None, 'growth': None,
                'frames_per_second': 0.0}
    third = len(latency) // 3
    begin, end = min(sent), max(sent)
    # What a queue still holds when the sending ends was not carried in that time.
    carried = sum(begin <= moment <= end for moment in arrived)
    return {
        'sent': len(sent),
        'received': len(latency),
        'frames_per_second': carried / ((end - begin) * 1e-9),
        'latency_ms': {f'p{q}': float(np.percentile(latency, q)) for q in (50, 95, 99)},
        # Of the 99th percentile in the last third of the time to that in the first.
        'growth': float(np.percentile(latency[-third:], 99)
                        / np.percentile(latency[:third], 99)) if third else None,
    }


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, all threads, user and system."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')  # proc(5)


def prepare(directory: Path, backend: str, precision: str, max_batch: int, network: str
            ) -> tuple[Path, Path]:
    """Calibrate one of these networks and build its engines; return bundle and store."""
    bundle, store = directory / 'bundle', directory / 'store'
    allowed = []
    if network == SAMPLE:
        drawn.calibrated(bundle, 10, 2)
    else:
        vgg16_fcn.write_bundle(bundle, 8, calibrated=precision == 'int8')
        allowed = ['--allow-unproven', '--allow-float']
    for images in sorted({1, max_batch}):  # at once
        # In a process of its own, so that this one holds nothing of a GPU.
        subprocess.run([sys.executable, '-m', 'trt_segmentation', 'build', bundle, '--store',
                        store, '--backend', backend, '--precision', precision, '--max-batch',
                        str(images), *allowed], check=True, stdout=subprocess.DEVNULL)
    return bundle, store


def bundle_path(text: str) -> Path:
    """Return the path of a bundle, refused before any work if it is none; for argparse."""
    return Bundle.open(text).path


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which engine the node runs."""
    parser.add_argument('--bundle', type=bundle_path,
                        help='a calibrated bundle with golden frames')
    parser.add_argument('--store', type=Path, help='where its engine is')
    parser.add_argument('--backend', choices=BACKENDS, default='onnxruntime')
    parser.add_argument('--precision', choices=PRECISIONS, default='int8')


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    add_engine(parser)
    parser.add_argument('--seconds', type=float, default=10, help='of each measurement')
    parser.add_argument('--only', metavar='WORD', default='',
                        help='measure only the loads whose name has this in it')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures here too')
    args = parser.parse_args()
    before = {**machine.describe(), **machine.state()}
    with tempfile.TemporaryDirectory() as directory:
        session = Session(args, Path(directory))
        results: list[dict[str, Any]] = []

        def measure(name: str, size: str, hz: float, seconds: float, cameras: int,
                    subjects: list[str]) -> None:
            for subject in subjects:
                if subject == 'constant' and args.backend != 'onnxruntime':
                    continue  # a GPU's logits do not pass by the CPU, where it puts its own
                figures = session.measure(subject, size, hz, seconds, cameras)
                results.append({'load': name, **figures})
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)

        for load in loads(args.seconds):
            if args.only in load[0]:
                measure(*load)
        carried = max((entry['frames_per_second'] for entry in results
                       if entry['subject'] == 'node' and entry['size'] == '1024x512'
                       and entry['hz'] == FASTEST), default=0)
        if carried:  # twice the rate that it can sustain
            measure(f'1024x512 {2 * carried:.0f} Hz, twice what it carries', '1024x512',
                    2 * carried, args.seconds, 1, ['node', 'plain'])
    figures = {'results': results, 'overhead_ms': overheads(results),
               'machine': before, 'machine_after': machine.state()}
    if args.json:
        atomic_write(args.json, reports.json_text(figures))
    print(reports.text_table(
        ['load', 'subject', 'sent', 'received', 'masks/s', 'p50 ms', 'p95 ms', 'p99 ms', 'growth',
         'CPU'],
        [[entry['load'], entry['subject'], str(entry['sent']), str(entry['received']),
          f'{entry["frames_per_second"]:.1f}',
          *([f'{value:.1f}' for value in entry['latency_ms'].values()]
            if entry['latency_ms'] else ['-'] * 3),
          f'{entry["growth"]:.2f}' if entry['growth'] else '-', f'{entry["cpu_share"]:.0%}']
         for entry in results]))
    for load, value in figures['overhead_ms'].items():
        print(f'{load}: overhead over echo and engine {value:.1f} ms')


def loads(seconds: float) -> list[tuple]:
    """Return (name, size, Hz, seconds, cameras, subjects) of each load."""
    result = []
    for size in SIZES:
        for hz in (10, 30, FASTEST):
            subjects = ['echo', 'node', 'plain']
            if hz == 30 and size == '1024x512':
                subjects.append('constant')
            result.append((f'{size} {hz} Hz', size, hz, seconds, 1, subjects))
    result.append(('4 x 1024x512 5 Hz', '1024x512', 5, seconds, 4, ['echo', 'node', 'plain']))
    result.append(('1024x512 30 Hz, one minute', '1024x512', 30, 60, 1, ['node']))
    return result


def overheads(results: list[dict[str, Any]]) -> dict[str, float]:
    """
    Return, by load, the node's median latency less the echo's and less the inference's.

    Only where the node keeps up: else a frame waits for the one before, by design.
    """
    found = {}
    by_load = {(entry['load'], entry['subject']): entry for entry in results}
    for (load, subject), entry in by_load.items():
        floor = by_load.get((load, 'echo'))
        if (subject in ('node', 'constant') and floor and entry['latency_ms']
                and entry['received'] >= 0.98 * entry['sent']):
            inference = [value for key, value in entry['stages_p50_ms'].items()
                         if key == 'inference_time_ms_p50']
            found[f'{load}, {subject}'] = (entry['latency_ms']['p50'] - floor['latency_ms']['p50']
                                           - sum(inference))
    return found


def role_main() -> None:
    """Run one of the processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--role')
    parser.add_argument('--topics', nargs='*')
    parser.add_argument('--cameras', nargs='*')
    parser.add_argument('--hz', type=float)
    parser.add_argument('--seconds', type=float)
    parser.add_argument('--size', choices=SIZES)
    for name in ('--bundle', '--store', '--backend', '--precision'):
        parser.add_argument(name)
    args, _ = parser.parse_known_args()
    cameras = [name.strip('-') for name in args.cameras or ()]
    if args.role == 'send':
        send(args.topics, args.hz, args.seconds, SIZES[args.size])
    elif args.role == 'receive':
        receive(args.topics)
    elif args.role == 'echo':
        echo(cameras)
    elif args.role == 'plain':
        plain(cameras, args.bundle, args.store, args.backend, args.precision)
    else:
        constant()


if __name__ == '__main__':
    scripts.end_in_a_line()
    if '--role' in sys.argv:
        role_main()
    else:
        main()
