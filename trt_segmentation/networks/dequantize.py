# SPDX-License-Identifier: Apache-2.0
"""
Networks that are quantized already: their Q/DQ pairs taken out, their scales kept.

Training with quantization, and tools like ModelOpt, leave a graph with pairs whose scales are a
calibration. What remains without the pairs is the float network that engines are proven against;
its weights are those that the codes stand for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from trt_segmentation.errors import InputError
from trt_segmentation.networks.graph import (
    attribute,
    drop_unread_constants,
    Graph,
    node_name,
    rename_reads,
    set_nodes,
)
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.placement import INTEGER_OPS
from trt_segmentation.networks.prepare import prepare

_PAIR = ('QuantizeLinear', 'DequantizeLinear')
_LEVELS = 127
_PASSING = ('Add', 'AveragePool', 'Concat', 'GlobalAveragePool', 'MaxPool')


class Dequantized(NamedTuple):
    """
    A float network, and the scales that its pairs had.

    scales: amax/127 by activation, as a calibration cache has them
    weights: how many weights were codes, or were rounded to codes
    """

    model: onnx.ModelProto
    scales: dict[str, float]
    weights: int


def is_quantized(model: onnx.ModelProto) -> bool:
    """Tell whether a network has Q/DQ pairs, or operators that compute with codes."""
    return any(node.op_type in INTEGER_OPS for node in model.graph.node)


def dequantize(model: onnx.ModelProto) -> Dequantized:
    """
    Return a quantized network as a float one with its scales.

    Codes of 8 bits are taken, signed or not. Where the codes' zero is not in their middle, as
    behind a Relu, the scale is that of the largest magnitude they hold, on 127 steps.

    :param model: it is not changed
    :raises InputError: for operators that compute with codes, activations with several scales,
        or other codes than 8-bit integers
    """
    copy = prepare(model)
    graph = Graph(copy)
    scales: dict[str, float] = {}
    instead: dict[str, str] = {}
    nonnegative: set[str] = set()
    renamed: dict[str, str] = {}
    kept, weights = [], 0
    for node in graph.nodes:
        if node.op_type in INTEGER_OPS and node.op_type not in _PAIR:
            raise InputError(f'node {node_name(node)!r} is a {node.op_type}, which computes with '
                             'codes; expected a float network, or one with QuantizeLinear and '
                             'DequantizeLinear pairs: export it so')
        if node.op_type not in _PAIR:
            kept.append(node)
            read = [instead.get(name, name) for name in node.input[:None if
                    node.op_type in ('Add', 'Concat') else 1]]
            if graph.rules_out_negative(node) or (
                    node.op_type in _PASSING and nonnegative.issuperset(read)):
                nonnegative.update(node.output)
            continue
        source = instead.get(node.input[0], node.input[0])
        target = node.output[0]
        if source in graph.constants:
            value = _through(node, graph, source)
            copy.graph.initializer.append(onnx.numpy_helper.from_array(value, target))
            graph.constants[target] = copy.graph.initializer[-1]
            weights += node.op_type == 'DequantizeLinear' and value.ndim > 1
            continue
        if node.op_type == 'QuantizeLinear':
            scale, rectifies = _scale(node, graph)
            if rectifies and source not in nonnegative:
                # Codes from 0 on cut off what is below and above; some tools leave a Relu to
                # them, or a Relu6, and which of the two it was nobody can tell any more.
                before, source = source, graph.fresh(f'{source}_rectified')
                dtype = _constant(node, graph, 1).dtype
                limits = [graph.add_constant(f'{source}_{name}', np.array(value, dtype))
                          for name, value in (('min', 0), ('max', scale * _LEVELS))]
                kept.append(onnx.helper.make_node('Clip', [before, *limits], [source],
                                                  name=f'{source}_node'))
                graph.producer[source] = kept[-1]
                nonnegative.add(source)
            scales[source] = max(scales.get(source, 0), scale)
        if target not in graph.outputs:
            instead[target] = source
        elif source in graph.producer and source not in (*renamed, *graph.outputs):
            renamed[source] = target  # the output keeps its name
        else:
            kept.append(onnx.helper.make_node('Identity', [source], [target],
                                              name=node_name(node)))
    rename_reads(kept, instead)
    rename_reads(kept, renamed)
    for node in kept:
        node.output[:] = [renamed.get(name, name) for name in node.output]
    scales = {renamed.get(name, name): scale for name, scale in scales.items()}
    set_nodes(copy.graph, kept)
    drop_unread_constants(copy.graph)
    del copy.graph.value_info[:]
    return Dequantized(copy, scales, weights)


def _through(node: onnx.NodeProto, graph: Graph, source: str) -> np.ndarray:
    """Return what a Q or DQ makes of a constant."""
    value, scale = graph.array(source), _constant(node, graph, 1)
    zero_point = _zero_point(node, graph, scale.shape)
    if zero_point.size != scale.size:
        raise InputError(f'node {node_name(node)!r}: it has {scale.size} scales and '
                         f'{zero_point.size} zero points, expected as many')
    zero_point = zero_point.reshape(scale.shape)  # ONNX Runtime writes [1] and [] for one
    if scale.ndim == 1 and scale.size > 1:
        shape, axis = [1] * value.ndim, attribute(node, 'axis', 1)
        if not -value.ndim <= axis < value.ndim or value.shape[axis] != scale.size:
            raise InputError(f'node {node_name(node)!r}: it has {scale.size} scales along axis '
                             f'{axis} of a weight with the shape '
                             f'{"x".join(map(str, value.shape))}')
        shape[axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    elif scale.size == 1:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    else:
        raise InputError(f'node {node_name(node)!r}: weights are quantized in blocks; expected '
                         'one scale, or one a channel')
    if node.op_type == 'DequantizeLinear':
        floats: np.ndarray = (value.astype(np.float32) - zero_point.astype(np.float32)) * scale
        return floats.astype(np.float32)
    _check_codes(node, zero_point.dtype)
    limits = np.iinfo(zero_point.dtype)
    codes: np.ndarray = np.clip(np.rint(value / scale) + zero_point, limits.min, limits.max)
    return codes.astype(zero_point.dtype)


def _scale(node: onnx.NodeProto, graph: Graph) -> tuple[float, bool]:
    """Return amax/127 of a QuantizeLinear of an activation, and whether no code is below zero."""
    scale = _constant(node, graph, 1)
    if scale.size != 1:
        raise InputError(f'node {node_name(node)!r}: an activation has {scale.size} scales; '
                         'expected one: quantize activations by tensor')
    zero_point = _zero_point(node, graph)
    _check_codes(node, zero_point.dtype)
    limits, zero = np.iinfo(zero_point.dtype), int(zero_point.item())
    low, high = limits.min - zero, limits.max - zero
    # Symmetric codes end at 127: -128 is one step more, which nobody has.
    largest = _LEVELS if (low, high) == (-128, 127) else max(-low, high)
    return float(scale.item()) * largest / _LEVELS, low == 0


def _zero_point(node: onnx.NodeProto, graph: Graph, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Return the zero point of a node; where it has none, zeros of the type of its codes."""
    if len(node.input) > 2 and node.input[2]:
        return _constant(node, graph, 2)
    dtype = attribute(node, 'output_dtype', 0) if node.op_type == 'QuantizeLinear' else 0
    return np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(dtype or onnx.TensorProto.UINT8))


def _check_codes(node: onnx.NodeProto, dtype: np.dtype[np.generic]) -> None:
    """Raise InputError for codes that are no 8-bit integers."""
    if dtype not in (np.int8, np.uint8):
        raise InputError(f'node {node_name(node)!r}: its codes are {dtype}; expected int8 or '
                         'uint8')


def _constant(node: onnx.NodeProto, graph: Graph, index: int) -> np.ndarray:
    """Return the scale or the zero point of a node."""
    if node.input[index] not in graph.constants:
        raise InputError(f'node {node_name(node)!r}: its scale is computed in the graph; expected '
                         'constants')
    values = graph.array(node.input[index])
    if index == 1 and not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError(f'node {node_name(node)!r}: its scale is not finite and above 0')
    return values
