# SPDX-License-Identifier: Apache-2.0
"""The calibration of a bundle, from images to the files that the target builds from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
import os
import signal
import threading
from typing import Any

from trt_segmentation import cache, files, manifest
from trt_segmentation.bundle import Bundle
from trt_segmentation.calibration import diversity
from trt_segmentation.calibration.calibrator import Calibrator, NotFinite
from trt_segmentation.calibration.diversity import Impression
from trt_segmentation.calibration.methods import Threshold
from trt_segmentation.calibration.observer import Observer
from trt_segmentation.calibration.selection import listed, Progress, record_golden, Selection
from trt_segmentation.errors import InputError
from trt_segmentation.preprocessing import Preprocessor
from trt_segmentation.spec import InputSpec

REPORT_NAME = 'calibration.html'


@dataclass(frozen=True)
class Calibration:
    """What a calibration found, and the manifest that went into the bundle with it."""

    cache: cache.Cache
    manifest: dict[str, Any]


def calibrate(bundle: str | os.PathLike | Bundle, images: Any, *, count: int = 100,
              batch_size: int = 5, method: str = 'mse', percentile: float = 99.99, seed: int = 0,
              golden: int = 8, allow_fewer: bool = False, topics: Collection[str] = (),
              spacing: float = 0.0, exclude: Iterable[str | os.PathLike] = (),
              report: bool = True, progress: Progress = lambda stage, done: None) -> Calibration:
    """
    Calibrate a bundle: write its cache, manifest, report and golden frames.

    :param bundle: a bundle, or its directory
    :param images: a path or several (files, directories, globs, list files, bags), or BGR uint8
        arrays of shape (height, width, 3), one by one: they need not all be in memory
    :param count: images to calibrate with
    :param batch_size: images a batch, for the record: ONNX Runtime runs them one by one
    :param method: one of `METHODS`
    :param percentile: the share of values that the percentile method keeps, 0..100
    :param seed: decides which images are used, and which are held out
    :param golden: images held out of the calibration, to prove engines with; 0 leaves the
        golden frames that there are
    :param allow_fewer: take what there is if fewer images can be used than were asked for
    :param topics: the image topics of bags; all if none is named
    :param spacing: seconds between two images of a bag's topic
    :param exclude: paths of images that must not be used, nor near-duplicates of them
    :param report: write the HTML report too
    :param progress: called after each image
    :raises InputError: for a bad bundle or network, or too few usable images
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle, verify=False)
    _check_numbers(count, batch_size, golden, percentile)
    with bundle.lock(), ExitStack() as staged:
        observer = Observer(bundle.model_path, bundle.spec.input.tensor,
                            bundle.spec.calibration.exclude)
        fixed = _fixed_ranges(bundle, observer)
        selection = Selection(images, seed=seed, topics=topics, spacing=spacing, exclude=exclude)
        if allow_fewer and selection.available is not None:
            golden = min(golden, selection.available // 5)
        held_out = []
        if golden:
            directory = staged.enter_context(files.atomic_directory(bundle.golden_path))
            held_out = record_golden(bundle, islice(selection, golden), directory, progress)
        calibrator = Calibrator(observer.activations, observer.quantized)
        used, impressions = _observe(selection, count, observer, calibrator,
                                     Preprocessor(bundle.spec.input), progress)
        if not used or not (allow_fewer or len(used) == count):
            raise selection.too_few(len(used) + len(held_out), f'{count} to calibrate with and '
                                                               f'{golden} to hold out')
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
                    'skipped': len(selection.skipped)},
            images=used, golden=held_out, skipped=selection.skipped,
            coverage=diversity.describe(impressions),
            tensors=_tensors(calibrator, thresholds, result))
        page = ''
        if report:
            from trt_segmentation.calibration import report as reporting
            page = reporting.html(bundle, document, calibrator, impressions)
        with _uninterrupted():
            result.write(bundle.cache_path)
            manifest.write(bundle.manifest_path, document)
            if page:
                files.atomic_write(bundle.path / REPORT_NAME, page)
            else:  # an older one is about another cache
                (bundle.path / REPORT_NAME).unlink(missing_ok=True)
            staged.close()  # the golden frames take their place
            bundle.write_sums()
    return Calibration(result, document)


def record(bundle: str | os.PathLike | Bundle, images: Any, *, count: int = 8, seed: int = 0,
           topics: Collection[str] = (), progress: Progress = lambda stage, done: None) -> None:
    """
    Replace a bundle's golden frames; its calibration stays as it is.

    :param images: as for `calibrate`; those that were calibrated with are not used
    :raises InputError: if fewer than `count` images can be used
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    _check_numbers(count, 1, 0, 100)
    with bundle.lock():
        selection = Selection(images, seed=seed, topics=topics)
        calibrated = set()
        if bundle.manifest_path.exists():
            calibrated = {image['sha256'] for image in
                          manifest.read(bundle.manifest_path).get('images', ())}
        fresh = (picture for picture in selection if picture.sha256 not in calibrated)
        with files.atomic_directory(bundle.golden_path) as directory:
            frames = record_golden(bundle, islice(fresh, count), directory, progress)
            if len(frames) < count:
                raise selection.too_few(len(frames), f'{count} that were not calibrated with')
        bundle.write_sums()


def input_range(spec: InputSpec) -> float:
    """Return the largest magnitude that any 8-bit image has in the input tensor."""
    return max(abs((pixel - mean) * scale)
               for mean, scale in zip(spec.mean, spec.scale) for pixel in (0, 255))


def _check_numbers(count: int, batch_size: int, golden: int, percentile: float) -> None:
    """Raise InputError for a number out of its range."""
    for name, value, holds, expected in (
            ('count', count, count >= 1, '1 or more'),
            ('batch size', batch_size, batch_size >= 1, '1 or more'),
            ('golden', golden, golden >= 0, '0 or more'),
            ('percentile', percentile, 0 < percentile <= 100, 'above 0, up to 100')):
        if not holds:
            raise InputError(f'{name}: found {value}, expected {expected}')


def _observe(selection: Selection, count: int, observer: Observer, calibrator: Calibrator,
             preprocess: Preprocessor, progress: Progress
             ) -> tuple[list[dict[str, str]], list[Impression]]:
    """Run images through the network until `count` of them are in the statistics."""
    used, impressions = [], []
    for picture in selection:
        try:
            calibrator.add(observer(preprocess(picture.pixels)))
        except NotFinite as error:
            selection.skip(picture.name, str(error))
            continue
        used.append(listed(picture))
        impressions.append(Impression.of(picture))
        progress('calibrating', len(used))
        if len(used) == count:
            break
        if len(used) in (count // 4, count // 2):
            calibrator.remember()
    return used, impressions


def _fixed_ranges(bundle: Bundle, observer: Observer) -> dict[str, float]:
    """Return the thresholds that are not searched: the image's, and those that the spec gives."""
    given = bundle.spec.calibration.ranges
    if unknown := sorted(set(given) - set(observer.activations)):
        raise InputError(f'{bundle.path / "model.yaml"}: calibration.ranges: the network has no '
                         f'float tensor {unknown[0]!r}')
    return {bundle.spec.input.tensor: input_range(bundle.spec.input), **given}


def _tensors(calibrator: Calibrator, thresholds: dict[str, Threshold], result: cache.Cache
             ) -> dict[str, dict[str, Any]]:
    """Return the manifest's table of tensors."""
    return {name: {
        'amax': calibrator.statistics[name].amax,
        'threshold': threshold.value,
        'scale': result.scales[name],
        **{key: value for key, value in asdict(threshold).items() if key != 'value'},
    } for name, threshold in thresholds.items()}


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
