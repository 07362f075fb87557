# SPDX-License-Identifier: Apache-2.0
"""From images to scales: by this package's own calibrator, or by TensorRT's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from trt_segmentation import __version__
from trt_segmentation.bundles import cache
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.manifest import Image, Manifest, Scale
from trt_segmentation.bundles.names import check_names
from trt_segmentation.calibration import progress as partial
from trt_segmentation.calibration.calibrator import Calibrator, Wanted
from trt_segmentation.calibration.equalization import Choice, choose, Network
from trt_segmentation.calibration.lab import Frame
from trt_segmentation.calibration.memory import Memory, pack
from trt_segmentation.calibration.methods import Threshold
from trt_segmentation.calibration.moments import windows_of
from trt_segmentation.calibration.observer import Observer
from trt_segmentation.calibration.observing import (
    identity_of,
    observer_of,
    Observing,
    Seen,
    UNSEEN,
    Watching,
)
from trt_segmentation.calibration.reported import judge_frames, page
from trt_segmentation.calibration.selection import (
    Impression,
    listed,
    Next,
    Progress,
    Selection,
)
from trt_segmentation.calibration.tune import tune, Tuning
from trt_segmentation.engines.workers import Identity, Workers
from trt_segmentation.errors import InputError
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.equalize import watched
from trt_segmentation.networks.model import onnx
from trt_segmentation.recordings.pictures import Picture
from trt_segmentation.reports.calibration import Judged
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.system import cores, files


@dataclass
class Used:
    """The images that went into a calibration."""

    listed: list[Image] = field(default_factory=list)
    impressions: list[Impression] = field(default_factory=list)
    #: What the float network says of them: the pixels of a sample by train id, if it is known.
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    #: The names of those that it was computed on.
    processors: set[str] = field(default_factory=set)

    def follow(self, memory: Memory) -> None:
        """Put those of an earlier calibration before these."""
        self.listed[:0] = memory.document.images
        self.impressions[:0] = memory.impressions
        self.pixels = self.pixels + memory.pixels

    def add(self, picture: Picture) -> None:
        """Note an image."""
        self.listed.append(listed(picture))
        self.impressions.append(Impression.of(picture))

    def __len__(self) -> int:
        """Return their number."""
        return len(self.listed)


class OnnxRuntimeMeasure:
    """Calibrates with this package's own calibrator."""

    def __init__(self, bundle: Bundle, memory: Memory | None = None):
        """
        Load the network.

        :param memory: the calibration to go on from
        :raises InputError: for a network or settings that cannot be calibrated, or gone on with
        """
        self._bundle = bundle
        check_names(bundle)
        observer = observer_of(bundle)
        self._observer: Observer | None = observer
        self._fixed = {bundle.spec.input.tensor: bundle.spec.input.amax,
                       **bundle.spec.calibration.ranges}
        # Also where nothing is to be derived: whoever extends this calibration may want to.
        model = onnx_model.load(bundle.model_path)
        by_channel = observer.quantized & watched(model, bundle.spec.calibration.exclude)
        self._calibrator = Calibrator(observer.activations, observer.quantized,
                                      Wanted(by_channel, windows_of(model)))
        self._extends = memory is not None
        if memory is not None:
            memory.restore(self._calibrator, str(bundle.path))
        self._network: Network | None = None
        self.name = ''

    def __call__(self, selection: Selection, count: int, progress: Callable[[int], None],
                 workers: Workers | None = None) -> Used:
        """
        Run images through the network until `count` of them are in the statistics.

        What was counted of files and recordings is kept in the bundle if that is interrupted; the
        next call with the same selection and count goes on there.
        """
        observer, self._observer = self._observer, None  # its sessions go when this is done
        assert observer is not None
        used = Used()
        # Arrays that a caller gives one by one can hardly be given once more, and what is extended
        # is soon extended again.
        once = selection.available is None or self._extends
        directory = None if once else self._bundle.path
        watching = Watching(self._bundle, self._calibrator.wanted, workers) if workers else None
        identity = watching.identity if watching else identity_of(observer)
        ((backend, _, provider),) = identity.engines.values()
        self.name = f'{backend} {provider}'
        run = partial.Run(directory, self._key(count, selection.names, identity),
                          identity.processor, self._calibrator, used.pixels, used.processors)
        if watching is None:
            used.processors.add(identity.processor)
        coming = selection.ahead()
        with run.kept():
            for reason in run.before:
                following = next(coming, Next(None))
                run.check(following.picture)
                _note(following, reason, selection, used)
                progress(len(used))
            with closing(self._seen(coming, selection, observer, watching,
                                    used.processors)) as looking:
                for following, seen in looking if len(used) < count else ():
                    if following.picture is None:
                        selection.skipped += following.skipped
                        break
                    if seen.counted is not None:
                        self._calibrator.merge(seen.counted)
                        used.pixels += seen.pixels
                        number = len(used) + 1
                        if number < count and number in (count // 4, count // 2) and (
                                not self._extends):
                            self._calibrator.remember()
                    run.done(following.picture, seen.reason)
                    _note(following, seen.reason, selection, used)
                    progress(len(used))
                    if len(used) == count:
                        break
        return used

    def _seen(self, coming: Iterator[Next], selection: Selection, observer: Observer,
              watching: Watching | None, processors: set[str]
              ) -> Generator[tuple[Next, Seen], None, None]:
        """Yield the next images with what the network makes of them; who is left goes back."""
        if watching is None:
            with ThreadPoolExecutor(cores.cores()) as pool:
                observing = Observing(self._bundle, self._calibrator.wanted, observer, pool)
                for following in coming:
                    yield following, (observing(following.picture.pixels) if following.picture
                                      else UNSEEN)
            return
        del observer
        taken: deque[Next] = deque()

        def pictures() -> Iterator[Picture]:
            for following in coming:
                taken.append(following)
                if following.picture is not None:
                    yield following.picture

        try:
            for _, seen in watching(pictures(), processors):
                yield taken.popleft(), seen
            if taken:
                yield taken.popleft(), UNSEEN
        finally:
            selection.give_back(taken)

    def _key(self, count: int, names: Sequence[str], identity: Identity) -> str:
        """Return the hash of all that the statistics depend on, but of the images the names."""
        return files.sha256_json({
            'network': self._bundle.model_sha256, 'package': __version__, 'count': count,
            'images': names,
            'exclude': sorted(self._bundle.spec.calibration.exclude),
            'preprocessing': self._bundle.spec.input.sha256,
            'by_channel': sorted(self._calibrator.wanted.by_channel),
            'windows': len(self._calibrator.wanted.windows),
            'engines': dict(identity.engines), 'versions': dict(identity.versions)})

    def memory(self, used: Used) -> bytes:
        """Return what is to be kept, so that this can be gone on from; call it before the rest."""
        return pack(self._calibrator, used.impressions, used.pixels)

    def equalize(self, method: str, percentile: float, frames: Sequence[Frame],
                 progress: Progress) -> Choice:
        """Equalize channels where that is better on held-out frames."""
        choice = choose(self._bundle, onnx_model.load(self._bundle.model_path), self._calibrator,
                        method, percentile, self._fixed, frames, progress)
        self._network = choice.network
        return choice

    def tune(self, frames: Sequence[Frame], progress: Progress) -> Tuning:
        """Search the best setting on held-out frames."""
        if not frames:
            raise InputError('tuning needs frames that are held out: ask for golden frames')
        return tune(self._bundle, self._chosen(), self._calibrator, self._fixed, frames, progress)

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

    @property
    def network(self) -> onnx.ModelProto:
        """Return the network that is quantized."""
        return self._chosen().model

    def judge(self, tensors: Mapping[str, Scale], exclude: Sequence[str],
              golden: Sequence[Frame]) -> Judged | None:
        """Return how golden frames judge it; `exclude` are the nodes that stay in float."""
        scales = {name: tensor.scale for name, tensor in tensors.items()}
        return judge_frames(self._bundle, self.network, scales, exclude, golden)

    def report(self, document: Manifest, impressions: Sequence[Impression],
               judged: Judged | None) -> str:
        """Return the report's page; `judged` is None without golden frames."""
        return page(self._bundle, document, self._calibrator, impressions, judged)

    def _chosen(self) -> Network:
        """Return the network that the vehicle gets."""
        if self._network is None:
            self._network = Network(onnx_model.load(self._bundle.model_path))
        return self._network


def _note(following: Next, reason: str, selection: Selection, used: Used) -> None:
    """Note an image that was looked at, and those before it that could not be."""
    assert following.picture is not None
    selection.skipped += following.skipped
    if reason:
        selection.skip(following.picture.name, reason)
    else:
        used.add(following.picture)


class TensorRtMeasure:
    """Calibrates with TensorRT's own calibrators; they say nothing but the scales."""

    def __init__(self, bundle: Bundle, method: str, batch_size: int):
        """Look for TensorRT and a GPU, which both are needed."""
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

    def __call__(self, selection: Selection, count: int, progress: Callable[[int], None],
                 workers: Workers | None = None) -> Used:
        """Have TensorRT ask for images until it has `count` of them; it works alone."""
        from trt_segmentation.calibration import tensorrt
        from trt_segmentation.cuda.device import Device
        from trt_segmentation.engines.tensorrt.graph import make_ready
        preprocess = Preprocessor(self._bundle.spec.input)
        spec = self._bundle.spec.input
        used = Used()

        def tensors() -> Iterator[Any]:
            for picture in islice(selection, count):
                yield preprocess(picture.pixels)
                used.add(picture)
                progress(len(used))

        model = make_ready(onnx_model.load(self._bundle.model_path),
                           {spec.tensor: (self._batch_size, 3, *spec.size)})
        gpu = Device()
        try:
            with gpu:
                stream = tensorrt.Stream(spec.tensor, tensors(), self._batch_size,
                                         tensorrt.GpuMemory(gpu))
                self._cache = tensorrt.calibrate(self._trt, model.SerializeToString(),
                                                 self._method, stream, self._batch_size)
        finally:
            gpu.close()
        return used

    def memory(self, used: Used) -> None:
        """Return nothing: TensorRT keeps its statistics to itself."""

    def equalize(self, method: str, percentile: float, frames: Sequence[Frame],
                 progress: Progress) -> None:
        """Do nothing: there are no statistics of channels."""

    def tune(self, frames: Sequence[Frame], progress: Progress) -> Tuning:
        """Refuse: there are no statistics to choose other thresholds from."""
        raise InputError('tuning needs --calibrator onnxruntime')

    def result(self, method: str, percentile: float, tuning: Tuning | None
               ) -> tuple[cache.Cache, dict[str, Scale]]:
        """Return the cache, and the manifest's table of tensors."""
        assert self._cache is not None  # `measure` has been called
        return self._cache, {name: Scale(scale, self._cache.amax(name))
                             for name, scale in self._cache.usable().items()}

    def judge(self, tensors: Mapping[str, Scale], exclude: Sequence[str],
              golden: Sequence[Frame]) -> None:
        """Return nothing: building the engine is what judges TensorRT's own calibration."""

    def report(self, document: Manifest, impressions: Sequence[Impression],
               judged: Judged | None) -> None:
        """Return nothing: the report is about distributions, which TensorRT keeps to itself."""
