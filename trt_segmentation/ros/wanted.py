# SPDX-License-Identifier: Apache-2.0
"""Which engines the node may run: the one that is wanted, and those that may take its place."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NamedTuple

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines import Dla
from trt_segmentation.engines.opening import open_segmenter
from trt_segmentation.ros import parameters
from trt_segmentation.segmenters.segmenter import Segmenter


class Wanted(NamedTuple):
    """Which engine is to be opened."""

    backend: str
    precision: str
    dla: Dla | None
    max_batch: int

    def open(self, bundle: Bundle, store: str) -> Segmenter:
        """
        Open it from the store.

        :param store: as the parameter has it
        :raises EngineMissing: if it is not there, or not proven
        """
        return open_segmenter(bundle, backend=self.backend, precision=self.precision,
                              store=parameters.path('store', store) or None, build_missing=False,
                              max_batch=self.max_batch, dla=self.dla)


def engines(settings: SimpleNamespace) -> list[Wanted]:
    """Return the engine that is wanted, and those that may take its place, in their order."""
    dla = None if settings.dla_core < 0 else Dla(settings.dla_core, settings.gpu_fallback)
    first = Wanted(settings.backend, settings.precision, dla, settings.max_batch)
    return [first, *(Wanted('onnxruntime', 'fp32', None, 1) if name == parameters.CPU
                     else first._replace(precision=name) for name in settings.fallback if name)]
