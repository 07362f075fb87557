# SPDX-License-Identifier: Apache-2.0
"""Segmentation with pre- and postprocessing on the CPU, around any engine."""

from __future__ import annotations

from collections.abc import Collection
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from trt_segmentation.bundles.spec import Spec
from trt_segmentation.errors import InputError
from trt_segmentation.segmenters.postprocessing import (
    check_want,
    CLASSES,
    COLOR,
    Masks,
    Postprocessor,
)
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.segmenters.segmenter import check_open, Engine, Segmenter

if TYPE_CHECKING:
    from trt_segmentation.engines.record import Record


class CpuSegmenter(Segmenter):
    """Pre- and postprocessing on the CPU around any engine."""

    def __init__(self, spec: Spec, engine: Engine, record: Record | None = None):
        """Take the contract and the engine, which it closes."""
        self.spec = spec
        self.record = record
        self.engine = engine
        self._closed = False
        try:
            self._preprocess = Preprocessor(spec.input)
            self._postprocess = Postprocessor(spec)
            self._tensor = np.empty((1, 3, *spec.input.size), np.float32)
        except BaseException:
            engine.close()
            raise

    def segment(self, image: np.ndarray, want: Collection[str] = (CLASSES, COLOR), *,
                color: str = 'bgr') -> Masks:
        """Return the masks of one image, at its size."""
        check_open(not self._closed)
        check_want(want, self.spec)  # before the work
        start = perf_counter()
        tensor = self._preprocess(image, color, self._tensor)
        preprocessed = perf_counter()
        outputs = self.engine.infer(tensor)
        name = self.spec.output.tensor
        if name not in outputs:
            raise InputError(f'output {name!r}: the engine has {", ".join(outputs)}')
        inferred = perf_counter()
        classes, colors, confidence = self._postprocess(outputs[name], image.shape[:2], want)
        return Masks(classes, colors, confidence, {
            'preprocess': (preprocessed - start) * 1e3,
            'inference': (inferred - preprocessed) * 1e3,
            'postprocess': (perf_counter() - inferred) * 1e3,
        })

    def close(self) -> None:
        """Free the engine."""
        self._closed = True
        self.engine.close()
