# SPDX-License-Identifier: Apache-2.0
"""The calibration of a bundle, from images to the files that the target builds from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
import os
from pathlib import Path
from typing import Any

from trt_segmentation.bundles import cache, form, manifest
from trt_segmentation.bundles import golden as golden_frames
from trt_segmentation.bundles.bundle import (
    Bundle,
    CACHE_NAME,
    EQUALIZED_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    REPORT_NAME,
    SPEC_NAME,
)
from trt_segmentation.bundles.manifest import Manifest
from trt_segmentation.bundles.spec import with_exclude
from trt_segmentation.calibration.equalization import EQUALIZE, TRIAL_IMAGES
from trt_segmentation.calibration.golden import float_frames, record_golden
from trt_segmentation.calibration.lab import Frame
from trt_segmentation.calibration.measure import OnnxRuntimeMeasure, TensorRtMeasure
from trt_segmentation.calibration.selection import describe, Progress, Selection
from trt_segmentation.errors import InputError
from trt_segmentation.system import files

CALIBRATORS = ('onnxruntime', 'tensorrt')


@dataclass(frozen=True)
class Calibration:
    """
    What a calibration found, and the manifest that went into the bundle with it.

    notes: a line each of what was taken from where, what was left, and why
    """

    cache: cache.Cache
    manifest: Manifest
    notes: tuple[str, ...] = ()


def calibrate(bundle: str | os.PathLike[str] | Bundle, images: Any, *, count: int = 100,
              batch_size: int = 5, method: str = 'mse', percentile: float = 99.99, seed: int = 0,
              golden: int = 8, allow_fewer: bool = False, topics: Collection[str] = (),
              spacing: float = 0.0, exclude: Iterable[str | os.PathLike[str]] = (),
              calibrator: str = 'onnxruntime', equalize: str = 'auto',
              tuned: bool | Sequence[Frame] = False,
              report: bool = True, progress: Progress = lambda stage, done: None) -> Calibration:
    """
    Calibrate a bundle: write its cache, manifest, report and golden frames.

    :param bundle: a bundle, or its directory
    :param images: a path or several (files, directories, globs, list files, bags), or BGR uint8
        arrays of shape (height, width, 3), one by one: they need not all be in memory
    :param count: images to calibrate with
    :param batch_size: images a batch; ONNX Runtime runs them one by one whatever it is
    :param method: one of `METHODS`; TensorRT's calibrators have entropy and minmax
    :param percentile: the share of values that the percentile method keeps, 0..100
    :param seed: decides which images are used, and which are held out
    :param golden: images held out of the calibration, to prove engines with; 0 leaves the
        golden frames that there are
    :param allow_fewer: take what there is if fewer images can be used than were asked for
    :param topics: the image topics of recordings; those of cameras if none is named
    :param spacing: seconds between two images of a bag's topic
    :param exclude: paths of images that must not be used, nor near-duplicates of them
    :param calibrator: 'onnxruntime', or 'tensorrt' where TensorRT up to 10 and a GPU are there
    :param equalize: 'auto' lets all channels of a tensor use the whole INT8 range where that is
        better on a few more images (or the golden frames, if there are no more), and writes the
        network of the same function that does it; 'off' leaves the network as it is
    :param tuned: search the best method, and layers to leave in float, on the golden frames or
        on frames that are given; calibration.exclude in model.yaml is then rewritten
    :param report: write the HTML report too
    :param progress: called after each image
    :raises InputError: for a bad bundle or network, or too few usable images
    """
    _check_numbers(count, batch_size, golden, percentile)
    if calibrator not in CALIBRATORS:
        raise InputError(f'calibrator: found {calibrator!r}, expected one of '
                         f'{", ".join(CALIBRATORS)}')
    if equalize not in EQUALIZE:
        raise InputError(f'equalize: found {equalize!r}, expected one of {", ".join(EQUALIZE)}')
    if report:
        from trt_segmentation.reports.calibration import check_libraries
        check_libraries()
    replaces = [CACHE_NAME, EQUALIZED_NAME, MANIFEST_NAME, REPORT_NAME,
                *[GOLDEN_NAME] * (golden > 0)]
    with Bundle.changing(_path(bundle), replaces) as (bundle, change):
        measure = (OnnxRuntimeMeasure(bundle, equalize == 'auto') if calibrator == 'onnxruntime'
                   else TensorRtMeasure(bundle, method, batch_size))
        selection = Selection(images, size=bundle.spec.input.size, seed=seed, topics=topics,
                              spacing=spacing, exclude=exclude)
        if allow_fewer and selection.available is not None:
            golden = min(golden, selection.available // 5)
        held_out = []
        golden_directory = bundle.golden_path
        if golden:
            golden_directory = change.path / GOLDEN_NAME
            held_out = record_golden(bundle, islice(selection, golden), golden_directory,
                                     progress)
        used = measure(selection, count, progress)
        if not used or not (allow_fewer or len(used) == count):
            raise selection.too_few(len(used) + len(held_out), f'{count} to calibrate with and '
                                                               f'{golden} to hold out')
        choice = None
        if equalize == 'auto':
            trial = float_frames(bundle, islice(selection, TRIAL_IMAGES))
            trial = trial or _frames(golden_directory)[:TRIAL_IMAGES]
            choice = measure.equalize(method, percentile, trial, progress) if trial else None
        if choice is not None and choice.network.equalized:
            change.write(EQUALIZED_NAME, choice.network.model.SerializeToString())
        else:
            change.remove(EQUALIZED_NAME)
        tuning = None
        if tuned is not False:
            frames = _frames(golden_directory) if tuned is True else tuned
            tuning = measure.tune(frames, progress)
            method, percentile = tuning.best.setting.method, tuning.best.setting.percentile
            change.write(SPEC_NAME, with_exclude(
                (bundle.path / SPEC_NAME).read_text(encoding='utf-8'),
                tuning.best.setting.exclude))
        result, tensors = measure.result(method, percentile, tuning)
        document = manifest.new(
            bundle, result,
            method=method,
            parameters={'percentile': percentile} if method == 'percentile' else {},
            calibrator=measure.name,
            batch_size=batch_size, seed=seed,
            counts=manifest.Counts(count, len(used), len(held_out), len(selection.skipped)),
            images=tuple(used.listed), golden=tuple(held_out), skipped=tuple(selection.skipped),
            coverage=describe(used.impressions),
            equalization=choice and choice.record(_file(change.path / EQUALIZED_NAME)),
            tuning=None if tuning is None else tuning.record(),
            tensors=tensors)
        change.write(CACHE_NAME, result.to_bytes())
        change.write(MANIFEST_NAME, form.to_json(document))
        page = measure.report(document, used.impressions) if report else None
        if page is not None:
            change.write(REPORT_NAME, page)
        change.remove(REPORT_NAME)  # an older one is about another cache
        if golden:
            change.remove(GOLDEN_NAME)
        change.commit()
    return Calibration(result, document, tuple(selection.notes))


def record(bundle: str | os.PathLike[str] | Bundle, images: Any, *, count: int = 8, seed: int = 0,
           topics: Collection[str] = (), progress: Progress = lambda stage, done: None
           ) -> list[str]:
    """
    Replace a bundle's golden frames; its calibration stays as it is.

    :param images: as for `calibrate`; those that were calibrated with are not used
    :returns: a line each of what was taken from where, what was left, and why
    :raises InputError: if fewer than `count` images can be used
    """
    _check_numbers(count, 1, 0, 100)
    with Bundle.changing(_path(bundle), [GOLDEN_NAME]) as (bundle, change):
        selection = Selection(images, size=bundle.spec.input.size, seed=seed, topics=topics)
        calibrated = set()
        if bundle.manifest_path.exists():
            calibrated = {image.sha256 for image in manifest.read(bundle.manifest_path).images}
        fresh = (picture for picture in selection if picture.sha256 not in calibrated)
        frames = record_golden(bundle, islice(fresh, count), change.path / GOLDEN_NAME, progress)
        if len(frames) < count:
            raise selection.too_few(len(frames), f'{count} that were not calibrated with')
        change.remove(GOLDEN_NAME)
        change.commit()
    return selection.notes


def _path(bundle: str | os.PathLike[str] | Bundle) -> Path:
    """Return a bundle's directory."""
    return bundle.path if isinstance(bundle, Bundle) else Path(bundle)


def _file(path: Path) -> manifest.File | None:
    """Return a new file as the manifest names it; None if there is none."""
    return manifest.File(path.name, files.sha256_file(path)) if path.exists() else None


def _frames(directory: Path) -> list[Frame]:
    """Return the golden frames of a directory."""
    return [Frame(image, mask) for _, image, mask in golden_frames.read(directory)]


def _check_numbers(count: int, batch_size: int, golden: int, percentile: float) -> None:
    """Raise InputError for a number out of its range."""
    for name, value, holds, expected in (
            ('count', count, count >= 1, '1 or more'),
            ('batch size', batch_size, batch_size >= 1, '1 or more'),
            ('golden', golden, golden >= 0, '0 or more'),
            ('percentile', percentile, 0 < percentile <= 100, 'above 0, up to 100')):
        if not holds:
            raise InputError(f'{name}: found {value}, expected {expected}')
