# SPDX-License-Identifier: Apache-2.0
"""
Writing a calibration's scales into the graph as QuantizeLinear/DequantizeLinear pairs.

Two flavors of one calibration. 'tensorrt': int8 with zero point 0 at the inputs of weighted
layers and at the residual input of skip additions, as NVIDIA's placement rules ask.
'onnxruntime': uint8, also at the outputs, so that ONNX Runtime's CPU kernels fuse; zero point 0
and scale amax/255 where a tensor cannot be negative, else 128 and amax/127, which are the int8
codes shifted. Weights are int8 in both, per output channel where that is axis 0; bias is float.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
import math
from typing import Any

import numpy as np

from trt_segmentation.errors import InputError
from trt_segmentation.networks.graph import (
    attribute,
    drop_unread_constants,
    node_name,
    set_nodes,
)
from trt_segmentation.networks.layers import int8_share, Layer
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.placement import Placement
from trt_segmentation.networks.shapes import infer_shapes
from trt_segmentation.networks.work import does_work, multiply_accumulates

FLAVORS = ('tensorrt', 'onnxruntime')
GRAPH_REVISION = 3
"""
Raise it with every change of what graph is made of a network: here, in `prepare`, `placement`
and `float16`, or in `engines.tensorrt.graph`. Plans depend on it, so that a fix reaches a vehicle
that has built one.
"""


@dataclass(frozen=True)
class Quantized:
    """A graph with Q/DQ pairs, and what became of each weighted layer."""

    model: onnx.ModelProto
    layers: tuple[Layer, ...]

    @property
    def int8_share(self) -> float | None:
        """Return the share 0..1 of the multiply-accumulates in INT8 layers; None if unknown."""
        return int8_share(self.layers)


def quantize(model: onnx.ModelProto, scales: Mapping[str, float], flavor: str, *,
             input_shapes: Mapping[str, tuple[int, ...]], exclude: Collection[str] = (),
             reduce_range: bool = False) -> Quantized:
    """
    Return the network with the Q/DQ pairs of a flavor.

    :param model: the float network; it is not changed
    :param scales: amax/127 by tensor name, as a calibration cache has them
    :param flavor: 'tensorrt' or 'onnxruntime'
    :param input_shapes: the shapes to count multiply-accumulates for, by graph input
    :param exclude: names of nodes that stay in float
    :param reduce_range: 7-bit weights, for x86 CPUs whose 8-bit products saturate (no VNNI)
    :raises InputError: for a scale that is not finite and positive, an unknown name, a weight
        that is not finite, or a network that is quantized already
    """
    for name, scale in scales.items():
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f'scale of tensor {name!r} is {scale}; expected finite, above 0')
    placement = Placement(model, exclude)
    graph = placement.graph
    shapes = infer_shapes(graph.model, input_shapes)
    heads = placement.heads(shapes) if flavor == 'onnxruntime' else set()
    layers, quantized = [], []
    for node in graph.nodes:
        if not does_work(node):
            continue
        reason = placement.float_reason(node)
        if not reason and id(node) in heads:
            reason = 'it makes the logits, which would tie on 8 bits'
        if not reason:
            missing = [name for name in placement.tensors_of_layer(node, flavor)
                       if name not in scales]
            reason = f'no scale for tensor {missing[0]!r}' if missing else ''
        if not reason:
            quantized.append(node)
        layers.append(Layer(
            node_name(node), node.op_type,
            multiply_accumulates(node, shapes), 'float' if reason else 'int8', reason))
    if flavor == 'tensorrt':
        readers = placement.tensorrt_readers(quantized)
        shared = placement.shared_scales(scales, readers, flavor)
        writer = _Writer(placement, shared, flavor, reduce_range)
        writer.insert_for_readers(readers)
    else:
        tensors = placement.onnxruntime_tensors(quantized)
        shared = placement.shared_scales(scales, tensors, flavor)
        writer = _Writer(placement, shared, flavor, reduce_range)
        writer.insert_for_all(tensors)
    writer.quantize_weights(quantized)
    return Quantized(writer.finish(), tuple(layers))


class _Writer:
    """Adds Q/DQ pairs to a prepared graph."""

    def __init__(self, placement: Placement, scales: Mapping[str, float], flavor: str,
                 reduce_range: bool):
        self._graph = placement.graph
        self._nonnegative = placement.nonnegative
        self._finite = placement.finite
        self._scales = scales
        self._unsigned = flavor == 'onnxruntime'
        self._weight_maximum = 63 if reduce_range else 127
        self._input_scales: dict[str, float] = {}  # by dequantized tensor
        self._weight_nodes: list[onnx.NodeProto] = []
        self._pairs: dict[str, list[onnx.NodeProto]] = {}

    def insert_for_readers(self, readers: Mapping[str, list[tuple[int, int]]]) -> None:
        """Put a pair behind each tensor, for the given inputs (node index, input index) alone."""
        for name in sorted(readers):
            if name in self._scales:  # a residual may have none: it then stays in float
                target = self._graph.fresh(f'{name}_dequantized')
                for node, i in readers[name]:
                    self._graph.nodes[node].input[i] = target
                self._pairs[name] = self._pair(name, name, target)

    def insert_for_all(self, tensors: Collection[str]) -> None:
        """Put a pair behind each tensor, for all that read it, the graph's output included."""
        for name in sorted(tensors):
            if name not in self._scales:
                continue
            source, target = name, name
            if name in self._graph.outputs and name in self._graph.producer:
                # It keeps its name, and with it all who read it: its producer writes elsewhere.
                source = self._graph.fresh(f'{name}_float')
                outputs = self._graph.producer[name].output
                outputs[list(outputs).index(name)] = source
            else:
                target = self._graph.fresh(f'{name}_dequantized')
                for node in self._graph.readers[name]:
                    for i, read in enumerate(node.input):
                        if read == name:
                            node.input[i] = target
            self._pairs[source] = self._pair(name, source, target)

    def quantize_weights(self, layers: list[onnx.NodeProto]) -> None:
        """Replace the weights of the layers by int8 codes and a DequantizeLinear."""
        users: dict[tuple[str, bool], list[onnx.NodeProto]] = defaultdict(list)
        for node in layers:
            per_channel = node.op_type == 'Conv' or bool(attribute(node, 'transB'))
            users[node.input[1], per_channel].append(node)
        for (name, per_channel), nodes in users.items():
            dequantized = self._quantize_weight(name, per_channel, nodes)
            for node in nodes:
                node.input[1] = dequantized

    def finish(self) -> onnx.ModelProto:
        """Return the model, its nodes in an order in which each follows what it reads."""
        model = self._graph.model
        set_nodes(model.graph, [*self._weight_nodes,
                                *self._graph.with_nodes_behind(self._pairs)])
        drop_unread_constants(model.graph)
        del model.graph.value_info[:]
        onnx.checker.check_model(model)
        return model

    def _pair(self, name: str, source: str, target: str) -> list[onnx.NodeProto]:
        """Return the QuantizeLinear and DequantizeLinear from `source` to `target`."""
        scale = self._scales[name]
        zero_point: np.int8 | np.uint8 = np.int8(0)
        if self._unsigned and name in self._nonnegative:
            scale, zero_point = scale * 127 / 255, np.uint8(0)
        elif self._unsigned:
            zero_point = np.uint8(128)
        self._input_scales[target] = scale
        parameters = [self._graph.add_constant(f'{name}_scale', np.float32(scale)),
                      self._graph.add_constant(f'{name}_zero_point', zero_point)]
        codes = self._graph.fresh(f'{name}_quantized')
        make = onnx.helper.make_node
        return [
            make('QuantizeLinear', [source, *parameters], [codes],
                 name=self._graph.fresh(f'{name}_quantize')),
            make('DequantizeLinear', [codes, *parameters], [target],
                 name=self._graph.fresh(f'{name}_dequantize')),
        ]

    def _quantize_weight(self, name: str, per_channel: bool, nodes: list[onnx.NodeProto]) -> str:
        """Return the name of the dequantized weight that the given layers share."""
        smallest = reduce(np.maximum, (self._smallest_scale(node, per_channel) for node in nodes))
        codes, scale = quantize_weight(self._finite(name), per_channel, self._weight_maximum,
                                       smallest)
        graph = self._graph
        inputs = [graph.add_constant(f'{name}_int8', codes),
                  graph.add_constant(f'{name}_scale', scale),
                  graph.add_constant(f'{name}_zero_point', np.zeros(scale.shape, np.int8))]
        output = graph.fresh(f'{name}_dequantized')
        axis: dict[str, Any] = {'axis': 0} if per_channel else {}
        self._weight_nodes.append(onnx.helper.make_node(
            'DequantizeLinear', inputs, [output],
            name=graph.fresh(f'{name}_dequantize'), **axis))
        return output

    def _smallest_scale(self, node: onnx.NodeProto, per_channel: bool) -> np.ndarray | float:
        """
        Return the smallest scale, per channel or one, that a layer's weight may have.

        ONNX Runtime rounds the bias to int32 in steps of input scale x weight scale, and lets it
        overflow: a channel with hardly any weight would lose its bias.
        """
        data, bias = node.input[0], (*node.input, '')[2]
        if not self._unsigned or bias not in self._graph.constants:
            return 0.0
        scales = np.abs(self._finite(bias)) / (2.0 ** 30 * self._input_scales[data])
        return scales if per_channel else float(scales.max())


def quantize_weight(weight: np.ndarray, per_channel: bool = True, maximum: int = 127,
                    smallest: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """
    Return int8 codes and their float32 scales: symmetric, scale = amax / maximum.

    :param weight: float32; with `per_channel` axis 0 is the output channel
    :param maximum: the largest code, 127 or less
    :param smallest: no scale is below this: one number, or one a channel
    :returns: codes of the weight's shape, and scales of shape (channels,) or (); 1 where the
        weights are 0, or so small that float32 holds no scale for them
    """
    axes = tuple(range(1, weight.ndim)) if per_channel else None
    scale = np.maximum(np.abs(weight).max(axis=axes) / maximum, smallest)
    scale = np.where(scale >= np.finfo(np.float32).tiny, scale, 1).astype(np.float32)
    divisor = scale.reshape(-1, *[1] * (weight.ndim - 1)) if per_channel else scale
    codes = np.clip(np.rint(weight / divisor), -maximum, maximum).astype(np.int8)
    return codes, scale
