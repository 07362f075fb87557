# SPDX-License-Identifier: Apache-2.0
"""From images to masks: the one call that node, replay, benchmark and self-test make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
import os
from time import perf_counter
from typing import Any

import numpy as np

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.spec import Spec
from trt_segmentation.engines import Engine
from trt_segmentation.errors import InputError
from trt_segmentation.segmenters.postprocessing import (
    CLASSES,
    COLOR,
    CONFIDENCE,
    Masks,
    Postprocessor,
)
from trt_segmentation.segmenters.preprocessing import Preprocessor

__all__ = ['CLASSES', 'COLOR', 'CONFIDENCE', 'CpuSegmenter', 'Masks', 'Segmenter']


class Segmenter(ABC):
    """
    Turns images into masks with a bundle's engine; for one thread at a time.

    spec: the bundle's contract
    record: what the store knows of the engine (hashes, layers, acceptance); empty if unknown
    """

    spec: Spec
    record: Mapping[str, Any]

    @staticmethod
    def open(bundle: str | os.PathLike | Bundle, *, backend: str = 'auto',
             precision: str = 'int8', store: str | os.PathLike | None = None,
             build_missing: bool = True) -> Segmenter:
        """
        Open a bundle with an engine that passed its acceptance on this machine.

        :param bundle: a bundle, or its directory
        :param backend: 'auto', 'tensorrt', 'tensorrt_rtx' or 'onnxruntime'
        :param precision: 'int8', 'fp16', 'fp32', or 'auto': the fastest that was built
        :param store: where built plans live; None for the default place
        :param build_missing: build the engine if it is not in the store
        :raises InputError: for a bad bundle, or a missing engine that is not to be built
        :raises CheckFailed: if the built engine does not agree with the float network
        """
        from trt_segmentation.engines.build import open_engine
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(bundle)
        engine, record = open_engine(bundle, backend=backend, precision=precision, store=store,
                                     build_missing=build_missing)
        return segmenter_of(bundle.spec, engine, record)

    @abstractmethod
    def segment(self, image: np.ndarray, want: Collection[str] = (CLASSES, COLOR), *,
                color: str = 'bgr') -> Masks:
        """
        Return the masks of one image, at its size.

        :param image: uint8 (height, width, 3), any strides
        :param want: which of 'classes', 'color' and 'confidence' to compute
        :param color: the image's channel order, 'bgr' or 'rgb'
        :raises InputError: for another dtype or shape
        :raises DeviceError: if the GPU fails; close the segmenter then, and open it again
        """

    @abstractmethod
    def close(self) -> None:
        """Free the engine."""

    def __enter__(self) -> Segmenter:
        """Return itself."""
        return self

    def __exit__(self, *exception) -> None:
        """Free the engine."""
        self.close()


def segmenter_of(spec: Spec, engine: Engine, record: Mapping[str, Any] | None = None
                 ) -> Segmenter:
    """Return the segmenter that pre- and postprocesses where the engine runs; it closes it."""
    if engine.backend == 'onnxruntime':
        return CpuSegmenter(spec, engine, record)
    from trt_segmentation.segmenters.gpu import CudaSegmenter
    try:
        return CudaSegmenter(spec, engine, record)
    except BaseException:
        engine.close()
        raise


def check_want(want: Collection[str]) -> None:
    """Raise InputError if `want` has anything else than the names of masks."""
    if unknown := set(want) - {CLASSES, COLOR, CONFIDENCE}:
        raise InputError(f'want: found {sorted(unknown)[0]!r}, expected classes, color or '
                         'confidence')


class CpuSegmenter(Segmenter):
    """Pre- and postprocessing on the CPU around any engine."""

    def __init__(self, spec: Spec, engine: Engine, record: Mapping[str, Any] | None = None):
        """Take the contract and the engine, which it closes."""
        self.spec = spec
        self.record = record or {}
        self.engine = engine
        self._preprocess = Preprocessor(spec.input)
        self._postprocess = Postprocessor(spec)
        self._tensor = np.empty((1, 3, *spec.input.size), np.float32)

    def segment(self, image: np.ndarray, want: Collection[str] = (CLASSES, COLOR), *,
                color: str = 'bgr') -> Masks:
        """Return the masks of one image, at its size."""
        check_want(want)
        start = perf_counter()
        tensor = self._preprocess(image, color, self._tensor)
        preprocessed = perf_counter()
        output = self.engine.infer(tensor)[self.spec.output.tensor]
        inferred = perf_counter()
        classes, colors, confidence = self._postprocess(output, image.shape[:2], want)
        return Masks(classes if CLASSES in want else None, colors, confidence, {
            'preprocess': (preprocessed - start) * 1e3,
            'inference': (inferred - preprocessed) * 1e3,
            'postprocess': (perf_counter() - inferred) * 1e3,
        })

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()
