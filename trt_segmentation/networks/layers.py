# SPDX-License-Identifier: Apache-2.0
"""The weighted layers of a network: what each one runs in, and how much of the work it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trt_segmentation.networks.graph import node_name
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.shapes import infer_shapes
from trt_segmentation.networks.work import does_work, multiply_accumulates, uncountable


@dataclass(frozen=True)
class Layer:
    """
    One layer that multiplies: what it will run in, and why if that is not INT8.

    macs: multiply-accumulates for one image; None if they cannot be counted
    precision: 'int8' or 'float' of a graph; of a built engine also 'fp16', 'fp32' or 'unknown'
    """

    name: str
    op: str
    macs: int | None
    precision: str
    reason: str = ''


def int8_share(layers: Iterable[Layer]) -> float | None:
    """
    Return the share 0..1 of the multiply-accumulates that run in INT8; 0 without any work.

    None where the work of a layer cannot be counted: it may be next to nothing, or nearly all.
    """
    total = int8 = 0
    for layer in layers:
        if layer.macs is None:
            return None
        total += layer.macs
        int8 += layer.macs if layer.precision == 'int8' else 0
    return int8 / max(total, 1)


def float_layers(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]
                 ) -> tuple[Layer, ...]:
    """Return the layers of a float network; `input_shapes` as `quantize` takes it."""
    shapes = infer_shapes(model, input_shapes)
    return tuple(
        Layer(node_name(node), node.op_type, multiply_accumulates(node, shapes), 'float',
              uncountable(node))
        for node in model.graph.node if does_work(node))
