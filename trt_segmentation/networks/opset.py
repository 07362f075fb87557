# SPDX-License-Identifier: Apache-2.0
"""
Networks of newer opsets in the newest one that TensorRT 8.6 parses.

Its parser does not refuse newer ones: it would take a ReduceMean of opset 18, whose axes are an
input, for one over all axes. ONNX's own converter has no way down for Split, Pad and GridSample
(1.23), and the steps from 17 up are few in what networks of images use: so they stand here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trt_segmentation.errors import InputError, one_line
from trt_segmentation.networks.graph import (
    attribute,
    every_node,
    Graph,
    node_name,
    opset,
    set_attributes,
)
from trt_segmentation.networks.model import onnx, sizes
from trt_segmentation.networks.shapes import tensor_types

NEWEST = 17
"""The newest opset that TensorRT 8.6 parses."""

# Since opset 18 their axes are an input.
_REDUCING = ('ReduceL1', 'ReduceL2', 'ReduceLogSum', 'ReduceLogSumExp', 'ReduceMax', 'ReduceMean',
             'ReduceMin', 'ReduceProd', 'ReduceSumSquare')
# What GridSample's modes are called since opset 20, and before.
_SAMPLING = {b'linear': b'bilinear', b'cubic': b'bicubic'}
# Values of attributes that came after opset 17.
_NEW_VALUES = (b'half_pixel_symmetric', b'wrap', b'max', b'min')


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """
    Return a network in opset 17 at most.

    :param model: as `prepare` returns it, with the sizes that it is run with; it is not changed
    :raises InputError: naming an operator that opset 17 lacks, or has in another form
    """
    version = opset(model)
    if version <= NEWEST:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = Graph(copy)
    for node in every_node(copy.graph):
        if node.domain in ('', 'ai.onnx'):
            _lower(node, graph, version)
    for entry in copy.opset_import:
        if entry.domain in ('', 'ai.onnx'):
            entry.version = NEWEST
    try:
        onnx.checker.check_model(copy)
    except Exception as error:  # a checker's own, whose text says which node
        raise InputError(f'the network has opset {version}, and is none of opset {NEWEST}, the '
                         f'newest that TensorRT 8.6 parses: {one_line(error)}') from None
    return copy


def _lower(node: onnx.NodeProto, graph: Graph, version: int) -> None:
    """Write a node as opset 17 has it, in place."""
    if node.op_type in _REDUCING and len(node.input) > 1:
        axes = _constant(node, graph, 1, version)
        del node.input[1:]
        if axes is not None:
            node.attribute.append(onnx.helper.make_attribute('axes', axes.tolist()))
    elif node.op_type == 'Split' and len(node.input) < 2:
        _split(node, graph, version)
    elif node.op_type == 'GridSample':
        for entry in node.attribute:
            entry.s = _SAMPLING.get(entry.s, entry.s)
    try:
        schema = onnx.defs.get_schema(node.op_type, NEWEST)
    except Exception:  # onnx's SchemaError, which has no name of its own everywhere
        raise _too_new(node, version) from None
    if len(node.input) > schema.max_input:
        raise _too_new(node, version, f' with the input {node.input[schema.max_input]!r}')
    newer = onnx.defs.get_schema(node.op_type, version)
    kept = []
    for entry in node.attribute:
        if entry.s in _NEW_VALUES:
            raise _too_new(node, version, f' with {entry.name} {entry.s.decode()!r}')
        if entry.name in schema.attributes:
            kept.append(entry)
        elif entry.name not in newer.attributes or not _is_default(entry, newer):
            raise _too_new(node, version, f' with the attribute {entry.name!r}')
    set_attributes(node, kept)


def _is_default(entry: onnx.AttributeProto, schema: Any) -> bool:
    """Tell whether an attribute has the value that it has where it is not given."""
    default = schema.attributes[entry.name].default_value
    value = onnx.helper.get_attribute_value(entry)
    if default.type == onnx.AttributeProto.UNDEFINED:
        return isinstance(value, list) and set(value) <= {1}  # dilations
    return bool(value == onnx.helper.get_attribute_value(default))


def _split(node: onnx.NodeProto, graph: Graph, version: int) -> None:
    """Give a Split the sizes of its parts, which opset 18 computes of their number."""
    axis = attribute(node, 'axis', 0)
    kind = tensor_types(graph.model).get(node.input[0])
    size = None
    if kind is not None and kind.HasField('shape') and -len(kind.shape.dim) <= axis < len(
            kind.shape.dim):
        size = sizes(kind)[axis]
    if size is None:
        raise _too_new(node, version, ' whose parts have no known size')
    count = len(node.output)
    part = -(-size // count)
    node.input.append(graph.add_constant(
        f'{node.output[0]}_sizes',
        np.array([*[part] * (count - 1), size - part * (count - 1)], np.int64)))
    set_attributes(node, [entry for entry in node.attribute if entry.name != 'num_outputs'])


def _constant(node: onnx.NodeProto, graph: Graph, index: int, version: int) -> np.ndarray | None:
    """Return the value of an input that is a constant; None if it is left out."""
    name = node.input[index]
    if not name:
        return None
    if name not in graph.constants:
        raise _too_new(node, version, f' whose input {name!r} is no constant')
    return graph.array(name)


def _too_new(node: onnx.NodeProto, version: int, what: str = '') -> InputError:
    """Return the error for a node that opset 17 does not have."""
    return InputError(f'node {node_name(node)!r} is a {node.op_type} of opset {version}{what}, '
                      f'and there is no such in opset {NEWEST}, the newest that TensorRT 8.6 '
                      f'parses: export the network with opset {NEWEST}, or take TensorRT 10')
