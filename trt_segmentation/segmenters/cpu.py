# SPDX-License-Identifier: Apache-2.0
"""Segmentation with pre- and postprocessing on the CPU, around any engine."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from trt_segmentation.bundles.spec import Spec
from trt_segmentation.errors import InputError
from trt_segmentation.segmenters.postprocessing import Masks, Postprocessor
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.segmenters.segmenter import Engine, Picture, Segmenter

if TYPE_CHECKING:
    from trt_segmentation.engines.record import Record


class CpuSegmenter(Segmenter):
    """Pre- and postprocessing on the CPU around any engine."""

    def __init__(self, spec: Spec, engine: Engine, record: Record | None = None, *,
                 batch_sizes: tuple[int, ...] = (1,)):
        """
        Take the contract and the engine, which it closes.

        :param batch_sizes: as `Segmenter` has them; the engine must take them
        """
        self.spec = spec
        self.record = record
        self.engine = engine
        self.batch_sizes = batch_sizes
        self._closed = False
        try:
            self._preprocess = Preprocessor(spec.input)
            self._postprocess = Postprocessor(spec)
            self._tensor = np.empty((batch_sizes[-1], 3, *spec.input.size), np.float32)
        except BaseException:
            engine.close()
            raise

    def _segment(self, pictures: Sequence[Picture]) -> list[Masks]:
        """Return the masks of pictures, as many as a batch size has."""
        start = perf_counter()
        tensor = self._tensor[:len(pictures)]
        for i, picture in enumerate(pictures):
            self._preprocess(np.asarray(picture.image), picture.color, tensor[i:i + 1])
        preprocessed = perf_counter()
        outputs = self.engine.infer(tensor)
        name = self.spec.output.tensor
        if name not in outputs:
            raise InputError(f'output {name!r}: the engine has {", ".join(outputs)}')
        output, count = outputs[name], len(pictures)
        if count > 1 and len(output) != count:
            raise InputError(f'output {name!r}: found shape {output.shape} for a batch of {count}')
        inferred = perf_counter()
        masks = [self._postprocess(output[i:i + 1] if count > 1 else output,
                                   picture.size, picture.want)
                 for i, picture in enumerate(pictures)]
        stage_ms = {
            'preprocess': (preprocessed - start) * 1e3,
            'inference': (inferred - preprocessed) * 1e3,
            'postprocess': (perf_counter() - inferred) * 1e3,
        }
        return [Masks(*each, dict(stage_ms)) for each in masks]

    @property
    def closed(self) -> bool:
        """Tell whether it was closed."""
        return self._closed

    def close(self) -> None:
        """Free the engine."""
        self._closed = True
        self.engine.close()
