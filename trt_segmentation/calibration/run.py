# SPDX-License-Identifier: Apache-2.0
"""The calibration of a bundle, from images to the files that the target builds from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
import os
from pathlib import Path
from typing import Any

from trt_segmentation.bundles import cache, form, manifest
from trt_segmentation.bundles import golden as golden_frames
from trt_segmentation.bundles.bundle import (
    Bundle,
    CACHE_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    REPORT_NAME,
    SPEC_NAME,
)
from trt_segmentation.bundles.manifest import Image, Manifest, Scale
from trt_segmentation.bundles.spec import with_exclude
from trt_segmentation.calibration.calibrator import Calibrator, NotFinite
from trt_segmentation.calibration.golden import record_golden
from trt_segmentation.calibration.methods import Threshold
from trt_segmentation.calibration.observer import Observer
from trt_segmentation.calibration.selection import (
    describe,
    Impression,
    listed,
    Progress,
    Selection,
)
from trt_segmentation.calibration.tune import Frame, tune, Tuning
from trt_segmentation.errors import InputError
from trt_segmentation.recordings.pictures import Picture
from trt_segmentation.segmenters.preprocessing import Preprocessor

CALIBRATORS = ('onnxruntime', 'tensorrt')


@dataclass(frozen=True)
class Calibration:
    """What a calibration found, and the manifest that went into the bundle with it."""

    cache: cache.Cache
    manifest: Manifest


@dataclass
class _Used:
    """The images that went into a calibration."""

    listed: list[Image] = field(default_factory=list)
    impressions: list[Impression] = field(default_factory=list)

    def add(self, picture: Picture) -> None:
        self.listed.append(listed(picture))
        self.impressions.append(Impression.of(picture))

    def __len__(self) -> int:
        return len(self.listed)


def calibrate(bundle: str | os.PathLike | Bundle, images: Any, *, count: int = 100,
              batch_size: int = 5, method: str = 'mse', percentile: float = 99.99, seed: int = 0,
              golden: int = 8, allow_fewer: bool = False, topics: Collection[str] = (),
              spacing: float = 0.0, exclude: Iterable[str | os.PathLike] = (),
              calibrator: str = 'onnxruntime', tuned: bool | Sequence[Frame] = False,
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
    :param topics: the image topics of bags; all if none is named
    :param spacing: seconds between two images of a bag's topic
    :param exclude: paths of images that must not be used, nor near-duplicates of them
    :param calibrator: 'onnxruntime', or 'tensorrt' where TensorRT up to 10 and a GPU are there
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
    if report:
        from trt_segmentation.reports.calibration import check_libraries
        check_libraries()
    replaces = [CACHE_NAME, MANIFEST_NAME, REPORT_NAME, *[GOLDEN_NAME] * (golden > 0)]
    with Bundle.changing(_path(bundle), replaces) as (bundle, change):
        measure = _OnnxRuntime(bundle) if calibrator == 'onnxruntime' else _TensorRt(
            bundle, method, batch_size)
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
    return Calibration(result, document)


def record(bundle: str | os.PathLike[str] | Bundle, images: Any, *, count: int = 8, seed: int = 0,
           topics: Collection[str] = (), progress: Progress = lambda stage, done: None) -> None:
    """
    Replace a bundle's golden frames; its calibration stays as it is.

    :param images: as for `calibrate`; those that were calibrated with are not used
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


def _path(bundle: str | os.PathLike[str] | Bundle) -> Path:
    """Return a bundle's directory."""
    return bundle.path if isinstance(bundle, Bundle) else Path(bundle)


class _OnnxRuntime:
    """Calibrates with this package's own calibrator."""

    def __init__(self, bundle: Bundle):
        self._bundle = bundle
        self._observer = Observer(bundle.model_path, bundle.spec.input.tensor,
                                  bundle.spec.input.size, bundle.spec.calibration.exclude)
        self._fixed = {bundle.spec.input.tensor: bundle.spec.input.amax,
                       **bundle.spec.calibration.ranges}
        if unknown := sorted(set(self._fixed) - set(self._observer.activations)):
            raise InputError(f'{bundle.path / SPEC_NAME}: calibration.ranges: the network has '
                             f'no float tensor {unknown[0]!r}')
        self._calibrator = Calibrator(self._observer.activations, self._observer.quantized)
        self.name = f'onnxruntime {self._observer.provider}'

    def __call__(self, selection: Selection, count: int, progress: Progress) -> _Used:
        """Run images through the network until `count` of them are in the statistics."""
        preprocess = Preprocessor(self._bundle.spec.input)
        used = _Used()
        for picture in selection:
            try:
                self._calibrator.add(self._observer(preprocess(picture.pixels)))
            except NotFinite as error:
                selection.skip(picture.name, str(error))
                continue
            used.add(picture)
            progress('calibrating', len(used))
            if len(used) == count:
                break
            if len(used) in (count // 4, count // 2):
                self._calibrator.remember()
        return used

    def tune(self, frames: Sequence[Frame], progress: Progress) -> Tuning:
        """Search the best setting on held-out frames."""
        if not frames:
            raise InputError('tuning needs frames that are held out: ask for golden frames')
        return tune(self._bundle, self._calibrator, self._fixed, frames, progress)

    def result(self, method: str, percentile: float, tuning: Tuning | None
               ) -> tuple[cache.Cache, dict[str, Scale]]:
        """Return the cache, and the manifest's table of tensors."""
        thresholds: dict[str, Threshold] = self._calibrator.thresholds(
            method, percentile=percentile, fixed=self._fixed)
        result = cache.Cache.from_amax(
            {name: threshold.value for name, threshold in thresholds.items()})
        return result, {name: Scale(
            result.scales[name], threshold.value, self._calibrator.statistics[name].amax,
            threshold.method, threshold.clipped, threshold.sqnr_db,
        ) for name, threshold in thresholds.items()}

    def report(self, document: Manifest, impressions: Sequence[Impression]) -> str:
        """Return the report's page."""
        from trt_segmentation.reports import calibration as report
        return report.html(self._bundle, document, self._calibrator, impressions)


class _TensorRt:
    """Calibrates with TensorRT's own calibrators; they say nothing but the scales."""

    def __init__(self, bundle: Bundle, method: str, batch_size: int):
        from trt_segmentation.calibration import tensorrt
        from trt_segmentation.cuda import device
        from trt_segmentation.engines.tensorrt.module import import_tensorrt
        if method not in tensorrt.CLASSES:
            raise InputError(f'method: found {method!r}, expected one of '
                             f'{", ".join(tensorrt.CLASSES)} with --calibrator tensorrt')
        self._trt = import_tensorrt('tensorrt')
        if reason := device.unavailable():
            raise InputError(f'--calibrator tensorrt: {reason}')
        self._bundle, self._method, self._batch_size = bundle, method, batch_size
        self._cache: cache.Cache | None = None
        self.name = f'tensorrt {self._trt.__version__}'

    def __call__(self, selection: Selection, count: int, progress: Progress) -> _Used:
        """Have TensorRT ask for images until it has `count` of them."""
        from trt_segmentation.calibration import tensorrt
        from trt_segmentation.cuda.device import Device
        from trt_segmentation.engines.tensorrt.graph import make_ready
        from trt_segmentation.networks import model as onnx_model
        preprocess = Preprocessor(self._bundle.spec.input)
        spec = self._bundle.spec.input
        used = _Used()

        def tensors() -> Iterator[Any]:
            for picture in islice(selection, count):
                yield preprocess(picture.pixels)
                used.add(picture)
                progress('calibrating', len(used))

        model = make_ready(onnx_model.load(self._bundle.model_path),
                           {spec.tensor: (self._batch_size, 3, *spec.size)})
        gpu = Device()
        with gpu:
            gpu.write = gpu.cuda.memcpy_htod
            stream = tensorrt.Stream(spec.tensor, tensors(), self._batch_size, gpu)
            self._cache = tensorrt.calibrate(self._trt, model.SerializeToString(), self._method,
                                             stream, self._batch_size)
        gpu.close()
        return used

    def tune(self, frames: Sequence[Frame], progress: Progress) -> Tuning:
        """Refuse: there are no statistics to choose other thresholds from."""
        raise InputError('tuning needs --calibrator onnxruntime')

    def result(self, method: str, percentile: float, tuning: Tuning | None
               ) -> tuple[cache.Cache, dict[str, Scale]]:
        """Return the cache, and the manifest's table of tensors."""
        return self._cache, {name: Scale(scale, self._cache.amax(name))
                             for name, scale in self._cache.usable().items()}

    def report(self, document: Manifest, impressions: Sequence[Impression]) -> None:
        """Return nothing: the report is about distributions, which TensorRT keeps to itself."""


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
