# SPDX-License-Identifier: Apache-2.0
"""
The graph that TensorRT gets: made ready for it, and checked before it sees it.

TensorRT builds some Q/DQ graphs without a word and computes something else: it reads uint8 codes
as int8, which halves the range, and a weight that is quantized along the wrong axis gives wrong
results or a layer in float. Such graphs are refused here.
"""

from __future__ import annotations

import numpy as np

from trt_segmentation.errors import InputError
from trt_segmentation.networks.graph import attribute, Graph, node_name
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.opset import lowered
from trt_segmentation.networks.shapes import fix_sizes, tensor_types

_LAYERS = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')


def make_ready(model: onnx.ModelProto, input_shapes: dict[str, tuple[int, ...]]
               ) -> onnx.ModelProto:
    """
    Return a copy with fixed input shapes, a name of its own for each node, and opset 17.

    A plan is for one shape, so no optimization profile is needed; the proof finds layers by their
    nodes' names, of which TensorRT would otherwise make up some. An opset above 17 stays where an
    operator has no form of 17.

    :raises InputError: if the graph has inputs besides those in `input_shapes`
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        if value.name not in input_shapes:
            raise InputError(f'input {value.name!r}: the graph needs it beside the image; '
                             f'expected {", ".join(input_shapes)} only')
    fix_sizes(copy, input_shapes)
    types = tensor_types(copy)
    for value in copy.graph.output:
        if value.name in types:
            value.type.tensor_type.CopyFrom(types[value.name])
    seen: set[str] = set()
    for node in copy.graph.node:
        name = node_name(node)
        while name in seen:
            name += '_'
        seen.add(name)
        node.name = name
    try:
        return lowered(copy)
    except InputError:
        return copy  # TensorRT from 10 on parses it


def check(model: onnx.ModelProto) -> None:
    """
    Refuse Q/DQ pairs that TensorRT would misread, or that no version from 8.6 on parses.

    :raises InputError: naming the node and what is wrong with it
    """
    _Checker(model).run()


class _Checker:
    """Looks at one graph."""

    def __init__(self, model: onnx.ModelProto):
        self._graph = Graph(model)

    def run(self) -> None:
        """Check every node."""
        for node in self._graph.nodes:
            if node.op_type in ('QuantizeLinear', 'DequantizeLinear'):
                self._check_pair(node)
            elif node.op_type in _LAYERS:
                self._check_layer(node)

    def _check_pair(self, node: onnx.NodeProto) -> None:
        """Check scale and zero point of a QuantizeLinear or DequantizeLinear."""
        if node.input[1] not in self._graph.constants:
            raise _refused(node, 'its scale is not a constant')
        values = self._graph.array(node.input[1])
        if values.dtype != np.float32:
            raise _refused(node, f'its scale is {values.dtype}, expected float32')
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise _refused(node, f'its scale is {_worst(values)}, expected finite and above 0')
        if (*node.input, '', '')[2] not in self._graph.constants:
            raise _refused(node, 'it has no constant zero point, and without one the type of its '
                                 'codes is uint8 in ONNX and int8 in TensorRT')
        zero_point = self._graph.array(node.input[2])
        if zero_point.dtype != np.int8:
            hint = '; leave the bias in float' if zero_point.dtype == np.int32 else ''
            raise _refused(node, f'its codes are {zero_point.dtype}, expected int8{hint}')
        if zero_point.any():
            raise _refused(node, 'its zero point is not 0')
        if values.size > 1 and self._weight_of(node) is None:
            raise _refused(node, 'it has several scales, but only weights can have more than one')

    def _check_layer(self, node: onnx.NodeProto) -> None:
        """Check that a layer is quantized as a whole and along the right axis, or not at all."""
        data, weight = (self._dequantizer(name) for name in node.input[:2])
        if data is None and weight is None:
            return
        if data is None or weight is None:
            which = 'weight' if data is None else 'activation'
            raise _refused(node, f'only its {which} is quantized, so it would run in float')
        if len(node.input) > 2 and self._dequantizer(node.input[2]) is not None:
            raise _refused(node, 'its bias is quantized, expected float')
        if node.op_type == 'ConvTranspose':
            # The weight's axis 0 up to TensorRT 10.1, axis 1 later.
            raise _refused(node, 'a transposed convolution is quantized; TensorRT changed the '
                                 'axis that it wants and checks none: leave it in float')
        codes = self._weight_of(weight)
        if codes is None or self._graph.array(weight.input[1]).size == 1:
            return
        axis, rank = attribute(weight, 'axis', 1), len(codes.dims)
        expected = _channel_axis(node, rank)
        if axis % rank != expected:
            raise _refused(node, f'its weight is quantized along axis {axis}, '
                                 f'expected {expected}')

    def _dequantizer(self, name: str) -> onnx.NodeProto | None:
        """Return the DequantizeLinear that makes a tensor, looking through Casts."""
        node = self._graph.producer.get(name)
        while node is not None and node.op_type == 'Cast':
            node = self._graph.producer.get(node.input[0])
        return node if node is not None and node.op_type == 'DequantizeLinear' else None

    def _weight_of(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """Return the constant that a pair quantizes, if it does not quantize activations."""
        if node.op_type == 'DequantizeLinear' and node.input[0] in self._graph.producer:
            node = self._graph.producer[node.input[0]]
        return self._graph.constants.get(node.input[0])


def _channel_axis(node: onnx.NodeProto, rank: int) -> int:
    """Return the axis of a weight that counts the layer's output channels."""
    if node.op_type == 'Conv':
        return 0
    return rank - 2 if attribute(node, 'transB') else rank - 1


def _worst(values: np.ndarray) -> float:
    """Return the first value that is not finite and positive."""
    flat = values.ravel()
    return float(flat[~(np.isfinite(flat) & (flat > 0))][0])


def _refused(node: onnx.NodeProto, reason: str) -> InputError:
    """Return the error about a node."""
    return InputError(f'node {node_name(node)!r} ({node.op_type}): {reason}')
