# SPDX-License-Identifier: Apache-2.0
"""The calibration of a bundle, from images to the files that the target builds from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass
from itertools import islice
import os
from pathlib import Path
import signal
import threading
from typing import Any

import cv2

from trt_segmentation import cache, files, manifest
from trt_segmentation.bundle import Bundle
from trt_segmentation.calibration import images
from trt_segmentation.calibration.calibrator import Calibrator, NotFinite
from trt_segmentation.calibration.images import Candidate, Picture
from trt_segmentation.calibration.observer import Observer
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.errors import InputError
from trt_segmentation.preprocessing import Preprocessor
from trt_segmentation.segmenter import CLASSES, CpuSegmenter
from trt_segmentation.spec import InputSpec

#: Called after each image with the stage's name and the number of images done in it.
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Calibration:
    """What a calibration found, and the manifest that went into the bundle with it."""

    cache: cache.Cache
    manifest: dict[str, Any]


def calibrate(bundle: str | os.PathLike | Bundle,
              source: str | os.PathLike | Iterable, *,
              count: int = 100, batch_size: int = 5, method: str = 'mse',
              percentile: float = 99.99, seed: int = 0, golden: int = 8,
              allow_fewer: bool = False,
              progress: Progress = lambda stage, done: None) -> Calibration:
    """
    Calibrate a bundle: write its cache, its manifest and its golden frames.

    :param bundle: a bundle, or its directory
    :param source: paths (files, directories, globs, list files), or BGR uint8 arrays of shape
        (height, width, 3), one by one: they need not all be in memory
    :param count: images to calibrate with
    :param batch_size: images a batch; ONNX Runtime runs them one by one whatever it is
    :param method: one of `methods.METHODS`
    :param percentile: the share of values that the percentile method keeps, 0..100
    :param seed: decides which images are used, and which are held out
    :param golden: images held out of the calibration, to prove engines with
    :param allow_fewer: take what there is if fewer images can be used than were asked for
    :param progress: called after each image
    :raises InputError: for a bad bundle or network, or too few usable images
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle, verify=False)
    if count < 1 or batch_size < 1 or golden < 0 or not 0 < percentile <= 100:
        raise InputError(f'found count {count}, batch size {batch_size}, golden {golden}, '
                         f'percentile {percentile}; expected 1 or more, 1 or more, 0 or more, '
                         'above 0 to 100')
    candidates = _candidates(source, seed)
    if allow_fewer and isinstance(candidates, list):
        golden = min(golden, len(candidates) // 5)
    skipped: list[dict[str, str]] = []
    pictures = _usable(candidates, skipped)
    with bundle.lock(), ExitStack() as staged:
        held_out = []
        if golden:
            directory = staged.enter_context(files.atomic_directory(bundle.golden_path))
            held_out = record_golden(bundle, islice(pictures, golden), directory, progress)
        observer = Observer(bundle.model_path, bundle.spec.input.tensor,
                            bundle.spec.calibration.exclude)
        fixed = _fixed_ranges(bundle, observer)
        calibrator = Calibrator(observer.activations, observer.quantized)
        used = _observe(pictures, count, observer, calibrator, Preprocessor(bundle.spec.input),
                        skipped, progress)
        _check_counts(used, count, held_out, golden, skipped, allow_fewer)
        thresholds = calibrator.thresholds(method, percentile=percentile, fixed=fixed)
        result = cache.Cache.from_amax(
            {name: threshold.value for name, threshold in thresholds.items()})
        document = manifest.new(
            bundle, result,
            method=method,
            parameters={'percentile': percentile} if method == 'percentile' else {},
            calibrator=f'onnxruntime {observer.provider}',
            batch_size=batch_size, seed=seed,
            counts={'asked': count, 'used': len(used), 'golden': len(held_out),
                    'skipped': len(skipped)},
            images=used, golden=held_out, skipped=skipped,
            tensors={name: {
                'amax': calibrator.statistics[name].amax,
                'threshold': threshold.value,
                'scale': result.scales[name],
                'method': threshold.method,
                'clipped': threshold.clipped,
            } for name, threshold in thresholds.items()})
        with _uninterrupted():
            result.write(bundle.cache_path)
            manifest.write(bundle.manifest_path, document)
            staged.close()  # the golden frames take their place
            bundle.write_sums()
    return Calibration(result, document)


def _observe(pictures: Iterator[Picture], count: int, observer: Observer,
             calibrator: Calibrator, preprocess: Preprocessor, skipped: list[dict[str, str]],
             progress: Progress) -> list[dict[str, str]]:
    """Run images through the network until `count` of them are in the statistics."""
    used: list[dict[str, str]] = []
    for picture in pictures:
        try:
            calibrator.add(observer(preprocess(picture.pixels)))
        except NotFinite as error:
            skipped.append({'name': picture.name, 'reason': str(error)})
            continue
        used.append(_listed(picture))
        progress('calibrating', len(used))
        if len(used) == count:
            break
    return used


def _fixed_ranges(bundle: Bundle, observer: Observer) -> dict[str, float]:
    """Return the thresholds that are not searched: the image's, and those that the spec gives."""
    given = bundle.spec.calibration.ranges
    if unknown := sorted(set(given) - set(observer.activations)):
        raise InputError(f'{bundle.path / "model.yaml"}: calibration.ranges: the network has no '
                         f'float tensor {unknown[0]!r}')
    return {bundle.spec.input.tensor: input_range(bundle.spec.input), **given}


def record_golden(bundle: Bundle, pictures: Iterable[Picture], directory: Path,
                  progress: Progress) -> list[dict[str, str]]:
    """
    Write golden frames: images, and the float network's masks of them.

    :param directory: where NNN.png and NNN.mask.png go
    :returns: name and sha256 of each image
    """
    listed = []
    with CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path)) as segmenter:
        for number, picture in enumerate(pictures):
            mask = segmenter.segment(picture.pixels, (CLASSES,)).classes
            for suffix, pixels in (('.png', picture.pixels), ('.mask.png', mask)):
                files.atomic_write(directory / f'{number:03d}{suffix}',
                                   cv2.imencode('.png', pixels)[1].tobytes())
            listed.append(_listed(picture))
            progress('golden frames', len(listed))
    return listed


def input_range(spec: InputSpec) -> float:
    """Return the largest magnitude that any 8-bit image has in the input tensor."""
    return max(abs((pixel - mean) * scale)
               for mean, scale in zip(spec.mean, spec.scale) for pixel in (0, 255))


def _usable(candidates: Iterable[Candidate], skipped: list[dict[str, str]]
            ) -> Iterator[Picture]:
    """Yield the images that can be used; append to `skipped` what was not, and why."""
    seen: set[str] = set()
    for loaded in images.load_ahead(candidates):
        if isinstance(loaded, tuple):
            candidate, error = loaded
            skipped.append({'name': candidate.name, 'reason': str(error)})
        elif loaded.sha256 in seen:
            skipped.append({'name': loaded.name, 'reason': 'the same content as another image'})
        else:
            seen.add(loaded.sha256)
            yield loaded


def _candidates(source: Any, seed: int) -> Iterable[Candidate]:
    """Return candidates in the order in which they are to be tried."""
    if isinstance(source, (str, os.PathLike)):
        source = [source]
    if isinstance(source, (list, tuple)) and all(
            isinstance(item, (str, os.PathLike)) for item in source):
        return images.shuffled(images.find(source), seed)
    return images.from_arrays(source)


def _check_counts(used: list, count: int, held_out: list, golden: int,
                  skipped: list[dict[str, str]], allow_fewer: bool) -> None:
    """Raise InputError if there were fewer usable images than asked for."""
    if used and (allow_fewer or (len(used) == count and len(held_out) == golden)):
        return
    cause = f'; the first of {len(skipped)} skipped: {skipped[0]["name"]}: ' \
            f'{skipped[0]["reason"]}' if skipped else ''
    raise InputError(
        f'{len(used) + len(held_out)} images can be used, expected {count + golden}: {count} to '
        f'calibrate and {golden} to hold out{cause}; give more images, or ask for fewer with '
        '--count or --allow-fewer')


def _listed(picture: Picture) -> dict[str, str]:
    """Return how the manifest lists an image."""
    return {'name': picture.name, 'sha256': picture.sha256}


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while the files of one calibration change places."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
