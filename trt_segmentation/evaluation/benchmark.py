# SPDX-License-Identifier: Apache-2.0
"""How long a frame takes, stage by stage, on this machine; and whether two results differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import csv
from io import StringIO
import json
import os
from pathlib import Path
from time import perf_counter
from typing import Any, TypedDict

import cv2
import numpy as np

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.acceptance import examine
from trt_segmentation.engines.opening import open_named
from trt_segmentation.errors import InputError
from trt_segmentation.sample import scenes
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.segmenter import CLASSES, COLOR, Segmenter
from trt_segmentation.system import files, machine

SCHEMA = 1
RESULT_NAME = 'benchmark.json'
BASELINE = 'opencv'
"""The name of the framework baseline: the float network in OpenCV's DNN module, on the CPU."""

QUANTILES = {'p50': 0.5, 'p90': 0.9, 'p95': 0.95, 'p99': 0.99}
TOTAL = 'total'
_ROUND = 10  # frames of one engine before the next engine has its turn
_LEAST_ROUNDS = 5  # of each engine, for a verdict
_IMAGES = 8
_RESAMPLES = 2000
_MAX_BYTES = 64 << 20  # of a result


class Settings(TypedDict):
    """How it was measured; image_size is [height, width]."""

    frames: int
    warmup: int
    image_size: list[int]
    seed: int


class EngineResult(TypedDict):
    """
    What was measured of one engine, in milliseconds.

    samples_ms: of every frame, by stage; 'total' is end to end
    stages: quantiles, maximum and mean by stage
    """

    backend: str
    precision: str
    warmup_ms: list[float]
    samples_ms: dict[str, list[float]]
    stages: dict[str, dict[str, float]]
    frames_per_second: float


class Result(TypedDict):
    """What `measure` returns and benchmark.json has; machine_before and _after: its state."""

    schema: int
    settings: Settings
    machine_before: dict[str, str]
    machine_after: dict[str, str]
    engines: dict[str, EngineResult]


class Change(TypedDict):
    """
    The difference of two medians with its noise, see `compare`; all but the times in percent.

    verdict: 'faster', 'slower', 'no difference beyond the noise' or 'too few frames to tell'
    """

    first_ms: float
    second_ms: float
    change_percent: float
    low_percent: float
    high_percent: float
    drift_percent: float
    verdict: str


class OpenCvEngine:
    """The float network in OpenCV's DNN module: what a framework without optimization gives."""

    backend = 'opencv'
    precision = 'fp32'

    def __init__(self, bundle: Bundle):
        """
        Load the bundle's network.

        :raises InputError: if OpenCV cannot run it
        """
        self._outputs = [bundle.spec.output.tensor]
        try:
            # Its bytes: a path that is no text crashes OpenCV.
            self._net = cv2.dnn.readNetFromONNX(
                np.frombuffer(bundle.model_path.read_bytes(), np.uint8))
            self.infer(np.zeros((1, 3, *bundle.spec.input.size), np.float32))
        except cv2.error as error:
            raise InputError(f'{bundle.model_path}: OpenCV cannot run it: '
                             f'{(error.err or str(error)).strip().splitlines()[0]}') from None

    def infer(self, tensor: np.ndarray) -> dict[str, np.ndarray]:
        """Run the network."""
        self._net.setInput(tensor)
        return dict(zip(self._outputs, self._net.forward(self._outputs)))

    def close(self) -> None:
        """Free the network."""
        self._net = None


def open_engine(bundle: Bundle, name: str, *, backend: str = 'auto',
                store: str | os.PathLike[str] | None = None) -> Segmenter:
    """Open an engine by name, as `open_named` does where time counts; 'opencv' is the baseline."""
    if name == BASELINE:
        return CpuSegmenter(bundle.spec, OpenCvEngine(bundle))
    return open_named(bundle, name, backend=backend, store=store, timed=True)


def refused(bundle: Bundle, segmenters: Mapping[str, Segmenter]) -> dict[str, list[str]]:
    """
    Judge the engines that no build has accepted: not those in FP32, nor those of a store.

    The share of the work in INT8 is not judged, which only a build knows.

    :returns: the limits of the bundle that each does not keep, a sentence each; none if it keeps
        them on the golden frames, or there are no such frames
    """
    return {name: [failure.text for failure in examine(bundle, segmenter, (), '').failures]
            for name, segmenter in segmenters.items()
            if segmenter.record is None and segmenter.engine.precision != 'fp32'}


def check_counts(frames: int, warmup: int) -> None:
    """Raise InputError for less than one timed frame, or a warm-up that cannot be."""
    if frames < 1 or warmup < 0:
        raise InputError(f'found {frames} frames and {warmup} to warm up, expected 1 or more and '
                         '0 or more')


def measure(segmenters: Mapping[str, Segmenter], *, frames: int = 200, warmup: int = 20,
            image_size: tuple[int, int] | None = None, seed: int = 0,
            progress: Callable[[], None] = lambda: None) -> Result:
    """
    Time the segmentation of frames, from image to class and color mask.

    Engines take turns of a few frames, so that what else the machine does meets all alike.

    :param segmenters: by name
    :param frames: timed frames of each engine
    :param warmup: frames before them, timed apart
    :param image_size: (height, width) of the images; the network's if left out
    :param seed: of the drawn scenes that are the images
    :param progress: called after each frame
    :raises InputError: for less than one frame
    """
    check_counts(frames, warmup)
    size = image_size or next(iter(segmenters.values())).spec.input.size
    seeds = scenes.DEMO_SEEDS
    images = [scenes.scene(seeds[(seed * _IMAGES + i) % len(seeds)], size=size)[0]
              for i in range(_IMAGES)]
    before = machine.state()
    warm: dict[str, list[float]] = {name: [] for name in segmenters}
    samples: dict[str, dict[str, list[float]]] = {name: {} for name in segmenters}
    for name, segmenter in segmenters.items():
        for i in range(warmup):
            warm[name].append(_time(segmenter, images[i % _IMAGES])[TOTAL])
            progress()
    for start in range(0, frames, _ROUND):
        for name, segmenter in segmenters.items():
            for i in range(start, min(start + _ROUND, frames)):
                for stage, milliseconds in _time(segmenter, images[i % _IMAGES]).items():
                    samples[name].setdefault(stage, []).append(milliseconds)
                progress()
    return {
        'schema': SCHEMA,
        'settings': {'frames': frames, 'warmup': warmup, 'image_size': list(size), 'seed': seed},
        'machine_before': before,
        'machine_after': machine.state(),
        'engines': {name: {
            'backend': segmenter.engine.backend,
            'precision': segmenter.engine.precision,
            'warmup_ms': warm[name],
            'samples_ms': samples[name],
            'stages': {stage: _quantiles(times) for stage, times in samples[name].items()},
            'frames_per_second': 1e3 * len(samples[name][TOTAL]) / sum(samples[name][TOTAL]),
        } for name, segmenter in segmenters.items()},
    }


def to_csv(result: Result) -> str:
    """Return all samples of a result as CSV: engine, frame, milliseconds by stage."""
    engines = result['engines']
    stages = list(dict.fromkeys(
        stage for figures in engines.values() for stage in figures['samples_ms']))
    out = StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(['engine', 'frame', *(f'{stage}_ms' for stage in stages)])
    for name, figures in engines.items():
        samples = figures['samples_ms']
        for i in range(len(samples[TOTAL])):
            writer.writerow([name, i, *(f'{samples[stage][i]:.4f}' if stage in samples else ''
                                        for stage in stages)])
    return out.getvalue()


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Read a result that `benchmark` wrote.

    :param path: of the file, or of the directory that has benchmark.json
    :raises InputError: if it is missing or something else
    """
    if os.path.isdir(path):
        path = Path(path, RESULT_NAME)
    try:
        result = json.loads(files.read(path, _MAX_BYTES))
        if result['schema'] != SCHEMA:
            raise InputError(f'{path}: schema: found {result["schema"]!r}, expected {SCHEMA}')
        for figures in result['engines'].values():
            np.asarray(figures['samples_ms'][TOTAL], float)
        if not result['engines']:
            raise ValueError('no times at all')
        for key in ('settings', 'machine_before', 'provenance', 'refused'):
            result.setdefault(key, {}).items()  # times alone can be compared, too
        np.asarray(result['settings'].get('image_size', (0, 0)), int).reshape(2)
        machine.load(result['machine_before'])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(f'{path}: not a result of trt-segmentation benchmark; expected its '
                         'benchmark.json') from None
    return result


def compare(first: Mapping[str, Any], second: Mapping[str, Any], *, seed: int = 0
            ) -> dict[str, dict[str, Change]]:
    """
    Compare two results engine by engine, with the noise.

    Frames that follow each other are disturbed by the same things, so whole rounds are drawn, not
    frames: the interval is that of 95% of the bootstrap's ratios of medians (Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13). What changes slowly
    (clocks, other processes) shows as drift, the difference of the two halves of a run.

    :returns: for each engine that both have, by stage: `first_ms`, `second_ms` (medians),
        `change_percent`, `low_percent` and `high_percent` (the interval), `drift_percent` (the
        larger one of the two runs), and `verdict`: 'faster' or 'slower' if the whole interval
        lies beyond the drift, 'too few frames to tell' below five rounds of ten frames, which
        say little of how rounds differ, else 'no difference beyond the noise'
    :raises InputError: if they have no engine in common
    """
    common = [name for name in first['engines'] if name in second['engines']]
    if not common:
        raise InputError(f'the results have no engine in common: {", ".join(first["engines"])} '
                         f'and {", ".join(second["engines"])}')
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, Change]] = {}
    for name in common:
        before, after = (result['engines'][name]['samples_ms'] for result in (first, second))
        found[name] = {stage: _difference(before[stage], after[stage], rng)
                       for stage in before if stage in after}
    return found


def _time(segmenter: Segmenter, image: np.ndarray) -> dict[str, float]:
    """Return the milliseconds of each stage of one frame, and of all together."""
    start = perf_counter()
    masks = segmenter.segment(image, (CLASSES, COLOR))
    total = (perf_counter() - start) * 1e3
    return {**masks.stage_ms, TOTAL: total}


def _quantiles(times: Sequence[float]) -> dict[str, float]:
    """Return quantiles, maximum and mean."""
    values = np.asarray(times)
    points = np.quantile(values, list(QUANTILES.values()))
    return {**dict(zip(QUANTILES, points.tolist())), 'max': float(values.max()),
            'mean': float(values.mean())}


def _difference(before: Sequence[float], after: Sequence[float], rng: np.random.Generator
                ) -> Change:
    """Return the change of the median, and the interval that noise alone explains."""
    medians = [_resampled_medians(np.asarray(times, float), rng) for times in (before, after)]
    low, high = 100 * (np.quantile(medians[1] / medians[0], [0.025, 0.975]) - 1)
    first, second = float(np.median(before)), float(np.median(after))
    drift = max(_drift(before), _drift(after))
    verdict = ('too few frames to tell' if min(len(before), len(after)) < _LEAST_ROUNDS * _ROUND
               else 'slower' if low > drift else 'faster' if high < -drift
               else 'no difference beyond the noise')
    return {'first_ms': first, 'second_ms': second,
            'change_percent': 100 * (second / first - 1),
            'low_percent': float(low), 'high_percent': float(high), 'drift_percent': drift,
            'verdict': verdict}


def _drift(times: Sequence[float]) -> float:
    """Return by how many percent the medians of the two halves differ."""
    half = len(times) // 2
    if not half:
        return 0.0
    return float(100 * abs(np.median(times[half:]) / np.median(times[:half]) - 1))


def _resampled_medians(times: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the medians of samples made of whole rounds, drawn with replacement."""
    rounds = max(1, len(times) // _ROUND)
    blocks = times[:rounds * _ROUND].reshape(rounds, -1)
    drawn = rng.integers(0, rounds, (_RESAMPLES, rounds))
    return np.median(blocks[drawn].reshape(_RESAMPLES, -1), axis=1)
