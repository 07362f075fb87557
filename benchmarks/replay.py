# SPDX-License-Identifier: Apache-2.0
"""
Compare the frame rate of a replay with the engine's own, in one run.

    python benchmarks/replay.py [--bundle BUNDLE] [--json FILE]

A drawn drive of 1024x512 frames is replayed from one bag into another: read, convert, segment,
color, compress and write. By turns with that the engine alone runs, one inference after the
other. Then the cost of the metrics in an evaluation's run time is measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import shutil
from statistics import median
import tempfile
from time import perf_counter
from typing import Any

import drawn
import numpy as np

from trt_segmentation import reports
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.opening import open_named, open_segmenter
from trt_segmentation.evaluation.datasets import load_ahead, sample_scenes
from trt_segmentation.evaluation.evaluate import evaluate
from trt_segmentation.evaluation.frames import InProcess
from trt_segmentation.evaluation.replay import replay
from trt_segmentation.recordings import bags
from trt_segmentation.sample import scenes
from trt_segmentation.system import environment, machine, scripts
from trt_segmentation.system.files import atomic_write

TARGET = 0.85
METRICS_TARGET = 0.05


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--bundle', type=Path,
                        help='a calibrated bundle (default: the sample, calibrated for this)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures here too')
    parser.add_argument('--rounds', type=int, default=7, help='turns of each (default: 7)')
    parser.add_argument('--frames', type=int, default=100, help='in the bag (default: 100)')
    args = parser.parse_args()
    environment.keep_memory()  # as the commands do, and the node by its environment
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        bundle = Bundle.open(args.bundle) if args.bundle else drawn.calibrated(work / 'bundle')
        figures = measure(bundle, work, args.frames, args.rounds)
        figures['evaluation'] = metrics_share(bundle)
    figures['machine'] = {**machine.describe(), **machine.state()}
    if args.json:
        atomic_write(args.json, reports.json_text(figures))
    print(f'engine alone   {figures["engine_fps"]:.1f} frames per second')
    print(f'replay         {figures["replay_fps"]:.1f} frames per second')
    print(f'ratio          {figures["ratio"]:.2f}, target {TARGET} or more (median of '
          f'{args.rounds} turns, {min(figures["ratios"]):.2f} to {max(figures["ratios"]):.2f})')
    print(f'metrics        {figures["evaluation"]["share"]:.1%} of the time of an evaluation of '
          f'{", ".join(figures["evaluation"]["engines"])}, target below {METRICS_TARGET:.0%}')


def measure(bundle: Bundle, work: Path, frames: int, rounds: int) -> dict[str, Any]:
    """Return frames per second of engine and replay by turns, and the ratio of each turn."""
    bag = work / 'drive'
    drive = scenes.Drive(scenes.DEMO_SEEDS[0])
    with bags.Writer(bag) as writer:
        for i in range(frames):
            writer.write_image('/camera/image_raw', drive.frame(i / 20)[0], 'bgr8',
                               50_000_000 * (i + 1), 'camera')
    engine_fps, replay_fps = [], []
    with open_segmenter(bundle, store=work / 'store') as segmenter:
        _engine(segmenter, 10)
        replay(InProcess(segmenter), bag, output=work / 'warm')
        for _ in range(rounds):
            # Half of the engine's turn before and half after, so that drift meets both alike.
            before = _engine(segmenter, frames // 2)
            result = replay(InProcess(segmenter), bag, output=work / 'masks')
            shutil.rmtree(work / 'masks')
            after = _engine(segmenter, frames // 2)
            engine_fps.append(2 * (frames // 2) / (before + after))
            replay_fps.append(result.frames / result.seconds)
    ratios = [b / a for a, b in zip(engine_fps, replay_fps)]
    return {
        'image': [scenes.SIZE[1], scenes.SIZE[0]], 'frames': frames, 'rounds': rounds,
        'engine_fps': median(engine_fps), 'replay_fps': median(replay_fps),
        'ratio': median(ratios), 'ratios': ratios,
    }


def metrics_share(bundle: Bundle, count: int = 30) -> dict[str, Any]:
    """Return the share of an evaluation's time that goes into counting."""
    names = ['fp32', 'int8']
    engines = {name: open_named(bundle, name) for name in names}
    result = evaluate(engines, load_ahead(
        sample_scenes(count, bundle.spec.labels).items))
    for engine in engines.values():
        engine.close()
    return {'engines': names, 'frames': count, 'seconds': result.seconds,
            'share': result.seconds['metrics'] / result.seconds['all']}


def _engine(segmenter: Any, count: int) -> float:
    """Return the seconds that the engine alone takes for a number of frames."""
    tensor = np.random.default_rng(0).normal(0, 1, (1, 3, *segmenter.spec.input.size)
                                             ).astype(np.float32)
    start = perf_counter()
    for _ in range(count):
        segmenter.engine.infer(tensor)
    return perf_counter() - start


if __name__ == '__main__':
    scripts.end_in_a_line()
    main()
