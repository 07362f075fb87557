# SPDX-License-Identifier: Apache-2.0
"""Which segmenter serves an engine: the one that works where the engine's tensors are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_segmentation.bundles.spec import Spec
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.gpu import CudaSegmenter, DeviceEngine
from trt_segmentation.segmenters.segmenter import Engine, Segmenter

if TYPE_CHECKING:
    from trt_segmentation.engines.record import Record


def segmenter_of(spec: Spec, engine: Engine, record: Record | None = None) -> Segmenter:
    """Return the segmenter that pre- and postprocesses where the engine runs; it closes it."""
    if isinstance(engine, DeviceEngine):
        return CudaSegmenter(spec, engine, record)
    return CpuSegmenter(spec, engine, record)
