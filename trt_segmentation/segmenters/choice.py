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


def segmenter_of(spec: Spec, engine: Engine, record: Record | None = None, *,
                 batch_sizes: tuple[int, ...] | None = None) -> Segmenter:
    """
    Return the segmenter that pre- and postprocesses where the engine runs; it closes it.

    :param batch_sizes: as `Segmenter` has them; None for those that the record offers
    """
    if batch_sizes is None:
        batch_sizes = (1,) if record is None else record.batch_sizes
    if isinstance(engine, DeviceEngine):
        return CudaSegmenter(spec, engine, record, batch_sizes=batch_sizes)
    return CpuSegmenter(spec, engine, record, batch_sizes=batch_sizes)
