# SPDX-License-Identifier: Apache-2.0
"""Networks in half or double precision as float32 ones, which is what is calibrated."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trt_segmentation.networks.graph import bodies, every_node, Graph, rename_reads, set_nodes
from trt_segmentation.networks.model import onnx

# By operator the attribute that names the type of its output.
_TYPED = {'Cast': 'to', 'EyeLike': 'dtype', 'RandomNormal': 'dtype', 'RandomUniform': 'dtype',
          'RandomNormalLike': 'dtype', 'RandomUniformLike': 'dtype', 'SequenceEmpty': 'dtype'}


def to_float32(model: onnx.ModelProto) -> bool:
    """
    Make every float tensor of a model float32, in place: float16, bfloat16 and double.

    TensorRT adds half precision by itself, where it helps; calibration needs all digits.

    :returns: whether there was any
    """
    graphs = list(_graphs(model.graph))
    found = False
    for graph in graphs:
        for value in (*graph.input, *graph.output, *graph.value_info):
            if _is_other(value.type.tensor_type.elem_type):
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
                found = True
        for tensor in graph.initializer:
            found |= _convert(tensor)
    for node in every_node(model.graph):
        for entry in node.attribute:
            if entry.name == _TYPED.get(node.op_type) and _is_other(entry.i):
                entry.i = onnx.TensorProto.FLOAT
                found = True
            if entry.HasField('t'):
                found |= _convert(entry.t)
    if found:
        remove_casts(model)
    return found


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those of its branches and loops."""
    yield graph
    for node in graph.node:
        for body in bodies(node):
            yield from _graphs(body)


def _is_other(kind: int) -> bool:
    """Tell whether a type is a float that is not float32."""
    return kind in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


def _convert(tensor: onnx.TensorProto) -> bool:
    """Make a tensor float32, in place; return whether it was another float."""
    if not _is_other(tensor.data_type):
        return False
    values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return True


def remove_casts(model: onnx.ModelProto) -> None:
    """Remove the Casts that have nothing left to do, but for those that make an output."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type
             for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    graph = Graph(model)
    kept = []
    for node in graph.nodes:
        source = node.input[0] if node.input else ''
        if (node.op_type != 'Cast' or node.output[0] in graph.outputs
                or types.get(source) != types.get(node.output[0], 0)):
            kept.append(node)
        else:
            rename_reads(graph.nodes, {node.output[0]: source})
    set_nodes(model.graph, kept)
