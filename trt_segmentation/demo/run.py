# SPDX-License-Identifier: Apache-2.0
"""
The whole story on one machine: calibrate, build, run the node over DDS, compare, show.

Every step is the command or the node that a user runs, in a process of its own; the figures are
read back from what they wrote. What must hold on every machine is judged, and speed is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
import errno
from functools import lru_cache
from importlib.util import find_spec
from multiprocessing import active_children, get_context
import os
from pathlib import Path
import shlex
import shutil
import subprocess
import sys
from typing import Any

import cv2
import numpy as np

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.demo.animation import animation, MAX_FRAMES, still
from trt_segmentation.demo.children import program, ros_environment, say
from trt_segmentation.demo.passage import (
    CLASS_TOPIC,
    frames_at,
    IMAGE_TOPIC,
    MAX_RATE,
    Passage,
    passage,
    rate_that_is_carried,
    RECORDED_RATE,
    TRIAL_FRAMES,
)
from trt_segmentation.demo.verdict import account, accuracy_problems, Expected
from trt_segmentation.engines import choose_backend
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine, vehicle_emulation
from trt_segmentation.engines.opening import open_segmenter
from trt_segmentation.errors import CheckFailed, InputError, missing_library
from trt_segmentation.evaluation.evaluate import evaluate
from trt_segmentation.evaluation.pictures import comparison_sheet
from trt_segmentation.recordings import bags
from trt_segmentation.reports import json_text
from trt_segmentation.sample import BUNDLE, scenes
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.segmenter import Segmenter
from trt_segmentation.system import cores, environment, files, interpreter, middleware, trust
from trt_segmentation.system.processes import begin_worker

FRAMES = 120
CALIBRATION_IMAGES = 100
GOLDEN_FRAMES = 8
HELD_OUT_SCENES = 40
_FRAME_ID = 'camera_front'
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
_START_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z: a recording is from the past


def run(output: Path, rate: float | None, backend: str) -> dict[str, Any]:
    """
    Run the demo; write all it makes into `output`, and return its figures.

    :param output: a directory, which is made, or emptied if an earlier demo made it
    :param rate: frames per second to play at, 1 to 100; None for what this machine carries
    :param backend: what builds and runs the engine
    :returns: the figures as JSON values; `problems` has a sentence for each thing that is wrong
    :raises InputError: for an output directory, a rate or a backend that cannot be taken, or a
        part of the demo that is not installed
    :raises CheckFailed: if a step fails, or no frame gives both masks
    """
    if rate is not None and not 1 <= rate <= 100:
        raise InputError(f'rate: found {rate:g}, expected 1 to 100 frames per second')
    choose_backend(backend)
    if find_spec('rclpy') is None:
        raise missing_library('rclpy', 'The node', 'ros')
    if reason := interpreter.start_node(Path(sys.executable), ros_environment()).error:
        raise InputError(f'no ROS node can be started here: {reason}; what that takes, says: '
                         f'{program()} doctor')
    try:
        with _prepared(output), _store(output) as store:
            return _run(output, store, rate, backend)
    except BrokenProcessPool:
        raise CheckFailed('a process that drew scenes was killed, as for lack of memory: see dmesg'
                          ) from None
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise CheckFailed(f'{error.filename or "the demo"}: {error.strerror}') from None
        raise InputError(f'{error.filename or output}: {error.strerror}; the demo writes about '
                         f'400 MB into {output}; name another directory with --output') from None


def _run(output: Path, store: Path, rate: float | None, backend: str) -> dict[str, Any]:
    """Do so, into the output directory."""
    bundle_path, bag = output / 'bundle', output / 'drive'
    say(f'Drawing {CALIBRATION_IMAGES + GOLDEN_FRAMES} scenes to calibrate with, and a drive')
    shutil.copytree(BUNDLE, bundle_path)
    with _pool() as pool:
        _draw_calibration_images(pool, output / 'images')
        truth = _draw_drive(pool, bag)
        held_out = list(pool.map(scenes.scene, scenes.HELD_OUT_SEEDS[:HELD_OUT_SCENES]))
    _command('calibrate', bundle_path, '--images', output / 'images',
             '--count', CALIBRATION_IMAGES, '--golden', GOLDEN_FRAMES,
             '--batch-size', 5)
    _command('build', bundle_path, '--backend', backend, '--store', store)
    warnings = middleware.problems({**os.environ, **environment.variables()})
    for warning in warnings:
        say(f'warning: {warning}')
    passages, reason = _passages(output, rate, (bundle_path, store, backend, bag))
    say('Comparing the masks with those of the pipeline without DDS')
    bundle = Bundle.open(bundle_path)
    with open_segmenter(bundle, backend=backend, store=store, build_missing=False) as segmenter:
        record = segmenter.record
        assert record is not None  # it comes from the store
        stamps = {stamp for each in passages for stamp in each.delivered}
        expected, pictures = _expected(bag, segmenter, stamps)
        say(f'Measuring accuracy on {HELD_OUT_SCENES} held-out scenes and the drive')
        accuracy = _accuracy(bundle, segmenter, held_out, bag, truth)
    files.atomic_write(output / 'demo.png', still(
        _sheet(bundle, pictures), bundle.spec.labels))
    if passages[-1].delivered:
        files.atomic_write(output / 'demo.gif', animation(
            _shown(bag, passages[-1].masks), bundle.spec.labels))
    accounts = [account(each, expected) for each in passages]
    last, delivery = passages[-1], accounts[-1][0]
    figures = {
        'rate': {'asked': rate, 'played': last.rate, 'reason': reason},
        'engine': {'backend': record.inputs.backend,
                   'version': record.inputs.version,
                   'int8_share': record.acceptance.int8_share},
        'delivery': {**asdict(delivery), 'latency_ms': last.latency_ms(),
                     'sent_per_second': last.sent_per_second(),
                     'masks_per_second': last.masks_per_second(), 'pace': last.pace()},
        'compared': {'frames': sum(each.delivered for each, _ in accounts),
                     'identical': sum(each.identical for each, _ in accounts)},
        'held_out_scenes': HELD_OUT_SCENES,
        'accuracy': accuracy,
        'warnings': warnings,
        'problems': [text for _, problems in accounts for text in problems]
                    + accuracy_problems(accuracy['held_out']),
    }
    files.atomic_write(output / 'summary.json', json_text(figures))
    return figures


def _passages(output: Path, rate: float | None, what: tuple[Path, Path, str, Path]
              ) -> tuple[list[Passage], str]:
    """
    Play the drive to the node, at half the rate once more if frames are replaced.

    :param rate: what was asked for, which is played once; None to find out by a trial
    :param what: bundle, store, backend and bag
    :returns: all passages, of which the last one counts, and why its rate was chosen
    """
    passages = []

    def play(name: str, at: float, count: int) -> Passage:
        say(f'Starting node, recorder and player: {count} frames at {at:g} Hz')
        passages.append(passage(output / name, *what, at, count))
        return passages[-1]

    if rate is not None:
        play('played', rate, frames_at(rate, FRAMES))
        return passages, 'asked for'
    say('Measuring what this machine carries')
    rate, reason = rate_that_is_carried(play('trial', MAX_RATE, TRIAL_FRAMES))
    say(f'Playing at {rate:g} Hz: {reason}')
    first = play('played', rate, frames_at(rate, FRAMES))
    if replaced := len(first.sent) - first.count('published'):  # what DDS loses, it loses again
        half = rate / 2
        reason = (f'half of {rate:g} Hz, where the node had no time for {replaced} of '
                  f'{len(first.sent)} frames ({first.pace()})')
        say(f'Playing at {half:g} Hz: {reason}')
        play('played_at_half', half, frames_at(half, FRAMES))
    return passages, reason


@contextmanager
def _prepared(output: Path) -> Iterator[None]:
    """Make the output directory, emptying one of an earlier demo and no other; keep others out."""
    mark = output / '.trt_segmentation_demo'
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()) and not mark.exists():
            raise InputError(f'{output}: not empty, and not made by an earlier demo; name another '
                             'directory with --output')
    except OSError as error:
        raise _unwritable(output, error) from None
    with files.lock(mark, f'{output}'):
        try:
            for path in output.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path != mark:
                    path.unlink()
        except OSError as error:
            raise _unwritable(output, error) from None
        yield


@contextmanager
def _store(output: Path) -> Iterator[Path]:
    """Yield where engines are kept: elsewhere for a while if others can change the output."""
    store = output / 'store'
    try:
        trust.make_private(store)
        trust.check_directory(store, str(store))
    except InputError as error:
        say(f'Engines are kept in a temporary directory: {str(error).partition(";")[0]}')
        with files.temporary_directory() as directory:
            yield Path(directory)
    else:
        yield store


def _unwritable(output: Path, error: OSError) -> InputError:
    return InputError(f'{output}: cannot be written: {error.strerror}; name another directory '
                      'with --output')


@contextmanager
def _pool() -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes; an error, or Ctrl-C, ends it as soon as a scene is drawn."""
    # Not forked: OpenCV's threads cannot be.
    pool = ProcessPoolExecutor(cores.cores(), get_context('spawn'), _begin_to_draw)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        for process in active_children():  # of a pool that was interrupted while it was made
            process.kill()


def _begin_to_draw() -> None:
    """Prepare a process of the pool."""
    begin_worker()
    cores.take(1)


def _draw_calibration_images(pool: ProcessPoolExecutor, directory: Path) -> None:
    """Draw the images that the sample network is calibrated with, from fixed seeds."""
    directory.mkdir()
    seeds = scenes.CALIBRATION_SEEDS[:CALIBRATION_IMAGES + GOLDEN_FRAMES]
    for seed, (image, _) in zip(seeds, pool.map(scenes.scene, seeds)):
        # Lossless, with the quickest compression: the files live for one demo.
        cv2.imwrite(str(directory / f'{seed}.png'), image, [cv2.IMWRITE_PNG_COMPRESSION, 1])


def _draw_drive(pool: ProcessPoolExecutor, bag: Path) -> list[np.ndarray]:
    """Record a drive into a bag of camera images; return the true class masks."""
    times = [i / RECORDED_RATE for i in range(FRAMES)]
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


def _expected(bag: Path, segmenter: Segmenter, stamps: set[int]
              ) -> tuple[dict[int, Expected], list[tuple[np.ndarray, np.ndarray]]]:
    """Return what the pipeline gives for frames of the bag, and three BGR images with classes."""
    expected: dict[int, Expected] = {}
    pictures: list[tuple[np.ndarray, np.ndarray]] = []
    for i, (_, frame) in enumerate(bags.read_images(bag, [IMAGE_TOPIC])):
        shown = i % (FRAMES // 3) == FRAMES // 6
        if frame.stamp_ns not in stamps and not shown:
            continue
        masks = segmenter.segment(frame.image, color=frame.color)
        assert masks.classes is not None and masks.color is not None  # both are wanted
        expected[frame.stamp_ns] = Expected.of(frame.frame_id, masks.classes, masks.color)
        if shown:
            pictures.append((frame.image, masks.classes))
    return expected, pictures


def _sheet(bundle: Bundle, pictures: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return a picture of images, the float network's masks, the engine's, and the difference."""
    with CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path)) as network:
        rows = [(image, network.segment(image, ('classes',)).classes, classes)
                for image, classes in pictures]
    return comparison_sheet(rows, ('camera', 'FP32', 'INT8, by the node', 'different in red'),
                            bundle.spec.labels)


def _shown(bag: Path, masks: Path) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Return stamps, images and the node's class masks of frames that came through, evenly."""
    said = {frame.stamp_ns: frame.image for _, frame in bags.read_images(masks, [CLASS_TOPIC])}
    chosen = set(sorted(said)[::-(-len(said) // MAX_FRAMES)])
    return [(frame.stamp_ns, frame.image, said[frame.stamp_ns])
            for _, frame in bags.read_images(bag, [IMAGE_TOPIC]) if frame.stamp_ns in chosen]


def _accuracy(bundle: Bundle, segmenter: Segmenter,
              held_out: Sequence[tuple[np.ndarray, np.ndarray]], bag: Path,
              truth: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return agreement with the float network, class and category IoU, for each engine."""
    emulated, quantized = vehicle_emulation(bundle)
    engines = {
        'fp32': CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path)),
        'int8': segmenter,
        'int8_vehicle': CpuSegmenter(bundle.spec, emulated),
    }
    result: dict[str, Any] = {'int8_share_vehicle': quantized.int8_share}
    for name, pairs in (('held_out', held_out), ('drive', _with_truth(bag, truth))):
        found = evaluate(engines, ((name, *pair) for pair in pairs))
        result[name] = {key: {
            'class_iou': found.against_truth[key].mean_class_iou,
            'category_iou': found.against_truth[key].mean_category_iou,
            'agreement': found.against_reference[key].agreement,
        } for key in engines}
    return result


def _with_truth(bag: Path, truth: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield every fourth frame of the drive with its true mask."""
    for i, (_, frame) in enumerate(bags.read_images(bag, [IMAGE_TOPIC])):
        if i % 4 == 0:
            yield frame.image, truth[i]


def _command(*arguments: Any) -> None:
    """Run a command of this package as a user would, and show it."""
    words = [str(argument) for argument in arguments]
    line = f'{program()} {shlex.join(words)}'
    print(f'$ {line}', file=sys.stderr, flush=True)
    # Standard output is for the demo's own figures.
    code = subprocess.run([sys.executable, '-m', 'trt_segmentation', *words], stdout=2).returncode
    if code:
        raise CheckFailed(f'{words[0]} ended with code {code}, for the cause above; the command '
                          f'was: {line}')
