# SPDX-License-Identifier: Apache-2.0
"""The weighted layers of a network: what each one runs in, and how much of the work it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trt_segmentation.networks.graph import (
    infer_shapes,
    multiply_accumulates,
    node_name,
    WEIGHTED_OPS,
)
from trt_segmentation.networks.model import onnx


@dataclass(frozen=True)
class Layer:
    """
    One weighted layer: what it will run in, and why if that is not INT8.

    macs: multiply-accumulates for one image
    precision: 'int8' or 'float' of a graph; of a built engine also 'fp16', 'fp32' or 'unknown'
    """

    name: str
    op: str
    macs: int
    precision: str
    reason: str = ''


def int8_share(layers: Iterable[Layer]) -> float:
    """Return the share 0..1 of the multiply-accumulates that run in INT8; 0 without any work."""
    layers = tuple(layers)
    int8 = sum(layer.macs for layer in layers if layer.precision == 'int8')
    return int8 / max(sum(layer.macs for layer in layers), 1)


def float_layers(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]
                 ) -> tuple[Layer, ...]:
    """Return the weighted layers of a float network; `input_shapes` as `quantize` takes it."""
    shapes = infer_shapes(model, input_shapes)
    return tuple(
        Layer(node_name(node), node.op_type, multiply_accumulates(node, shapes), 'float')
        for node in model.graph.node if node.op_type in WEIGHTED_OPS)
