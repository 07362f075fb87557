# SPDX-License-Identifier: Apache-2.0
"""
The whole story on one machine: calibrate, build, run the node over DDS, compare, show.

Every step is the command or the node that a user runs, in a process of its own; the figures are
read back from what they wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass
from functools import lru_cache
import json
from multiprocessing import active_children
import os
from pathlib import Path
import selectors
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import cv2
import numpy as np

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.demo import scenes
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine, vehicle_emulation
from trt_segmentation.errors import CheckFailed, InputError
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.evaluation.pictures import contact_sheet
from trt_segmentation.recordings import bags
from trt_segmentation.reports import json_text
from trt_segmentation.segmenters.segmenter import CpuSegmenter, Segmenter
from trt_segmentation.system import environment, files, shared_memory

RATE = 20.0  # frames per second of the sample recording
FRAMES = 120
CALIBRATION_IMAGES = 100
GOLDEN_FRAMES = 8
HELD_OUT_SCENES = 40
MIN_DELIVERED = 0.98
IMAGE_TOPIC = '/camera/image_raw'
CLASS_TOPIC, COLOR_TOPIC = '/segmentation/class_mask', '/segmentation/color_mask'
_FRAME_ID = 'camera_front'
_START_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z: a recording is from the past
_PATIENCE = 60.0  # seconds that a step of the node may take before the demo gives up
_GRACE = 5.0  # seconds that a process has for freeing its shared memory when it shall end


@dataclass(frozen=True)
class Delivery:
    """What became of the frames that were sent to the node."""

    frames: int
    delivered: int
    identical: int
    latency_ms: dict[str, float]
    frames_per_second: float
    drops: dict[str, int]


def run(output: Path, rate: float, backend: str) -> dict[str, Any]:
    """
    Run the demo; write all it makes into `output`, and return its figures.

    :param output: a directory, which is made, or emptied if an earlier demo made it
    :param rate: frames per second of the sample recording, 1 to 100
    :param backend: what builds and runs the engine
    :raises InputError: for an output directory or a rate that cannot be taken
    :raises CheckFailed: if a step fails, or no frame gives both masks
    """
    if not 1 <= rate <= 100:
        raise InputError(f'rate: found {rate:g}, expected 1 to 100 frames per second')
    _prepare(output)
    bundle_path, bag = output / 'bundle', output / 'drive'
    _say(f'Drawing {CALIBRATION_IMAGES + GOLDEN_FRAMES} scenes to calibrate with, and a drive')
    shutil.copytree(Path(__file__).parent / 'bundle', bundle_path)
    with _pool() as pool:
        _draw_calibration_images(pool, output / 'images')
        truth = _draw_drive(pool, bag, rate)
        held_out = list(pool.map(scenes.scene, scenes.HELD_OUT_SEEDS[:HELD_OUT_SCENES]))
    _command('calibrate', bundle_path, '--images', output / 'images',
             '--count', CALIBRATION_IMAGES, '--golden', GOLDEN_FRAMES,
             '--batch-size', 5, '--method', 'entropy')
    _command('build', bundle_path, '--backend', backend, '--store', output / 'store')
    _say('Starting the node, a recorder and a player, each in a process of its own')
    sent, received, drops = _drive_through_node(output, bundle_path, bag, backend,
                                                _PATIENCE + FRAMES / rate)
    _say('Comparing the masks with those of the pipeline without DDS')
    bundle = Bundle.open(bundle_path)
    with Segmenter.open(bundle, backend=backend, store=output / 'store',
                        build_missing=False) as segmenter:
        record = segmenter.record
        delivery, pictures = _check_masks(output, bag, segmenter, sent, received, drops)
        _say(f'Measuring accuracy on {HELD_OUT_SCENES} held-out scenes and the drive')
        accuracy = _accuracy(bundle, segmenter, held_out, bag, truth)
    cv2.imwrite(str(output / 'demo.png'), contact_sheet(pictures, bundle.spec.labels))
    figures = {
        'rate': rate,
        'engine': {'backend': record['inputs']['backend'],
                   'version': record['inputs']['identity'].get('version', ''),
                   'int8_share': record['acceptance']['int8_share']},
        'delivery': vars(delivery),
        'held_out_scenes': HELD_OUT_SCENES,
        'accuracy': accuracy,
    }
    files.atomic_write(output / 'summary.json', json_text(figures))
    return figures


def check(figures: dict[str, Any]) -> None:
    """Raise CheckFailed unless enough frames gave both masks, each as it must be."""
    delivery = figures['delivery']
    if delivery['identical'] < MIN_DELIVERED * delivery['frames']:
        raise CheckFailed(
            f'{delivery["identical"]} of {delivery["frames"]} frames gave both masks as the '
            f'pipeline gives them without DDS; expected at least {MIN_DELIVERED:.0%}; for what '
            'this machine lacks, run: trt-segmentation doctor'
        )


def _prepare(output: Path) -> None:
    """Make the output directory, emptying one of an earlier demo, and no other."""
    mark = output / '.trt_segmentation_demo'
    try:
        output.mkdir(parents=True, exist_ok=True)
        content = list(output.iterdir())
        if content and not mark.exists():
            raise InputError(f'{output}: not empty, and not made by an earlier demo; name another '
                             'directory with --output')
        mark.touch()
        for path in content:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != mark:
                path.unlink()
    except OSError as error:
        raise InputError(f'{output}: cannot be written: {error.strerror}; name another directory '
                         'with --output') from None


@contextmanager
def _pool() -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes; an error, or Ctrl-C, ends it as soon as a scene is drawn."""
    # A worker must not be stopped while it sends a result: who reads it would wait for the rest.
    pool = ProcessPoolExecutor(initializer=signal.signal,
                               initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        for process in active_children():  # of a pool that was interrupted while it was made
            process.kill()


def _draw_calibration_images(pool: ProcessPoolExecutor, directory: Path) -> None:
    """Draw the images that the sample network is calibrated with, from fixed seeds."""
    directory.mkdir()
    seeds = scenes.CALIBRATION_SEEDS[:CALIBRATION_IMAGES + GOLDEN_FRAMES]
    for seed, (image, _) in zip(seeds, pool.map(scenes.scene, seeds)):
        # Lossless, with the quickest compression: the files live for one demo.
        cv2.imwrite(str(directory / f'{seed}.png'), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _draw_drive(pool: ProcessPoolExecutor, bag: Path, rate: float) -> list[np.ndarray]:
    """Record a drive into a bag of camera images; return the true class masks."""
    times = [i / rate for i in range(FRAMES)]
    truth = []
    with bags.Writer(bag) as writer:
        for t, (image, labels) in zip(times, pool.map(_drive_frame, times, chunksize=4)):
            writer.write_image(IMAGE_TOPIC, image, 'bgr8', _START_NS + int(t * 1e9), _FRAME_ID)
            truth.append(labels)
    return truth


@lru_cache(1)
def _drive() -> scenes.Drive:
    """Return the world of the drive, made once in each process that draws."""
    return scenes.Drive(scenes.DEMO_SEEDS[0])


def _drive_frame(t: float) -> tuple[np.ndarray, np.ndarray]:
    """Return image and true class mask of the drive at `t` seconds."""
    return _drive().frame(t)


def _drive_through_node(output: Path, bundle: Path, bag: Path, backend: str, patience: float
                        ) -> tuple[dict[int, int], dict[str, dict[int, int]], dict[str, int]]:
    """
    Play the bag to the node and record its masks.

    :param patience: seconds that playing may take
    :returns: when each frame was sent and each mask received, by header stamp, and how many
        frames the node dropped, by cause
    """
    shared_memory.remove_abandoned_segments()
    # A domain of its own: no node of another user or test hears the demo, and it hears none.
    child = {**os.environ, **environment.variables(), 'ROS_DOMAIN_ID': str(1 + os.getpid() % 100)}
    for problem in environment.problems(child):
        _say(f'warning: {problem}')
    log = output / 'node.log'
    with log.open('w') as node_output, ExitStack() as stack:
        parameters = {'bundle': str(bundle), 'store': str(output / 'store'), 'backend': backend,
                      'build_missing': False, 'use_sim_time': True}
        node = _start(stack, 'node', child, node_output, '--ros-args', *_ros(parameters))
        recorder = _start(stack, 'bag_recorder', child, subprocess.PIPE, output / 'masks',
                          CLASS_TOPIC, COLOR_TOPIC, '--report', output / 'received.json')
        _wait_for_line(recorder, 'ready', node, log)
        player = _start(stack, 'bag_player', child, None, bag, '--topic', IMAGE_TOPIC,
                        '--sent', output / 'sent.json')
        _wait_for_end('player', player, log, patience)
        # The last frame is on its way through the node, which reports once a second.
        time.sleep(2.0)
        for name, process in (('recorder', recorder), ('node', node)):
            process.send_signal(signal.SIGINT)
            _wait_for_end(name, process, log)
    sent = _by_stamp(json.loads((output / 'sent.json').read_text()))
    report = json.loads((output / 'received.json').read_text())
    received = {topic: _by_stamp(stamps) for topic, stamps in report['received'].items()}
    drops = {key.removeprefix('dropped_'): int(value)
             for key, value in report['diagnostics'].items()
             if key.startswith('dropped_') and value.isdigit() and int(value)}
    return sent, received, drops


def _ros(parameters: Mapping[str, Any]) -> list[str]:
    """Return parameters as arguments; as JSON, since ROS reads each value as YAML."""
    return [word for name, value in parameters.items()
            for word in ('-p', f'{name}:={json.dumps(value, ensure_ascii=False)}')]


def _by_stamp(values: dict[str, int]) -> dict[int, int]:
    """Return the same with integer keys, which JSON does not have."""
    return {int(stamp): value for stamp, value in values.items()}


def _start(stack: ExitStack, module: str, child: dict[str, str], stdout, *arguments: Any
           ) -> subprocess.Popen:
    """Start a module of this package's ROS part in a process that ends with the stack."""
    # In a session of its own: Ctrl-C reaches this process alone, which then ends the others.
    process = subprocess.Popen(
        [sys.executable, '-m', f'trt_segmentation.ros.{module}', *map(str, arguments)], env=child,
        stdout=stdout, stderr=None if stdout in (None, subprocess.PIPE) else stdout, text=True,
        start_new_session=True)
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen) -> None:
    """End a process: by asking, since one that is killed leaves its shared memory behind."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()


def _wait_for_end(name: str, process: subprocess.Popen, log: Path,
                  patience: float = _PATIENCE) -> None:
    """Wait until a process ends, which it must do in time and with code 0."""
    try:
        code = process.wait(patience)
    except subprocess.TimeoutExpired:
        raise CheckFailed(f'the {name} does not end within {patience:.0f} s; see {log}') from None
    if code:
        raise CheckFailed(f'the {name} ended with code {code}; see {log}')


def _wait_for_line(recorder: subprocess.Popen, line: str, node: subprocess.Popen, log: Path
                   ) -> None:
    """Wait until the recorder prints a line, while both processes must stay alive."""
    selector = selectors.DefaultSelector()
    selector.register(recorder.stdout, selectors.EVENT_READ)
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        for name, process in (('node', node), ('recorder', recorder)):
            if process.poll() is not None:
                raise CheckFailed(f'the {name} ended with code {process.returncode}; see {log}')
        if selector.select(0.2) and recorder.stdout.readline().strip() == line:
            return
    raise CheckFailed(f'the node offers no masks within {_PATIENCE:.0f} s; see {log}')


def _check_masks(output: Path, bag: Path, segmenter: Segmenter, sent: dict[int, int],
                 received: dict[str, dict[int, int]], drops: dict[str, int]
                 ) -> tuple[Delivery, list[np.ndarray]]:
    """Compare the recorded masks with the pipeline's, frame by frame."""
    recorded = {topic: {} for topic in (CLASS_TOPIC, COLOR_TOPIC)}
    for topic, frame in bags.read_images(output / 'masks', [CLASS_TOPIC, COLOR_TOPIC]):
        recorded[topic][frame.stamp_ns] = frame
    identical, delivered, pictures = 0, 0, []
    for i, (_, frame) in enumerate(bags.read_images(bag, [IMAGE_TOPIC])):
        masks = segmenter.segment(frame.image, color=frame.color)
        pair = [recorded[topic].get(frame.stamp_ns) for topic in (CLASS_TOPIC, COLOR_TOPIC)]
        if i % (FRAMES // 3) == FRAMES // 6:
            pictures.append((frame.image, masks.color))
        if None in pair:
            continue
        delivered += 1
        identical += all(
            got.frame_id == frame.frame_id and np.array_equal(got.image, expected)
            for got, expected in zip(pair, (masks.classes, masks.color)))
    both = sorted(set(received[CLASS_TOPIC]) & set(received[COLOR_TOPIC]) & set(sent))
    if len(both) < 2:
        raise CheckFailed(
            f'{len(both)} of {len(sent)} frames gave both masks; dropped by the node: '
            f'{drops or "none"}; see {output / "node.log"} and run: trt-segmentation doctor')
    latency = [(max(received[topic][stamp] for topic in received) - sent[stamp]) / 1e6
               for stamp in both]
    span = (max(received[CLASS_TOPIC].values()) - min(received[CLASS_TOPIC].values())) / 1e9
    percentiles = {f'p{p}': float(np.percentile(latency, p)) for p in (50, 95, 99)}
    return Delivery(len(sent), delivered, identical, percentiles, (len(both) - 1) / span,
                    drops), pictures


def _accuracy(bundle: Bundle, segmenter: Segmenter, held_out, bag: Path, truth) -> dict[str, Any]:
    """Return agreement with the float network, class and category IoU, for each engine."""
    emulated, quantized = vehicle_emulation(bundle)
    engines = {
        'fp32': CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path)),
        'int8': segmenter,
        'int8_vehicle': CpuSegmenter(bundle.spec, emulated),
    }
    result: dict[str, Any] = {'int8_share_vehicle': quantized.int8_share}
    for name, pairs in (('held_out', held_out), ('drive', _with_truth(bag, truth))):
        against_truth = {key: Confusion(bundle.spec.labels) for key in engines}
        against_float = {key: Confusion(bundle.spec.labels) for key in engines}
        for image, labels in pairs:
            masks = {key: engine.segment(image, ('classes',)).classes
                     for key, engine in engines.items()}
            for key, mask in masks.items():
                against_truth[key].add(labels, mask)
                against_float[key].add(masks['fp32'], mask)
        result[name] = {key: {
            'class_iou': against_truth[key].mean_class_iou,
            'category_iou': against_truth[key].mean_category_iou,
            'agreement': against_float[key].agreement,
        } for key in engines}
    return result


def _with_truth(bag: Path, truth: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every fourth frame of the drive with its true mask."""
    for i, (_, frame) in enumerate(bags.read_images(bag, [IMAGE_TOPIC])):
        if i % 4 == 0:
            yield frame.image, truth[i]


def _command(*arguments: Any) -> None:
    """Run a command of this package as a user would, and show it."""
    words = [str(argument) for argument in arguments]
    print(f'$ trt-segmentation {" ".join(words)}', file=sys.stderr, flush=True)
    code = subprocess.run([sys.executable, '-m', 'trt_segmentation', *words]).returncode
    if code:
        raise CheckFailed(f'trt-segmentation {words[0]} ended with code {code}')


def _say(text: str) -> None:
    """Print what is done next."""
    print(f'== {text}', file=sys.stderr, flush=True)
