# SPDX-License-Identifier: Apache-2.0
"""Which tensors of an ONNX graph are activations, and which layers use them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from trt_segmentation.errors import InputError
from trt_segmentation.networks import model as onnx_model

if TYPE_CHECKING:
    import onnx


def tensor_types(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]] | None = None
                 ) -> dict[str, onnx.TypeProto.Tensor]:
    """
    Return type and shape of each tensor of which shape inference can tell them.

    :param input_shapes: the shapes to run the network with, by input
    """
    onnx = onnx_model.import_onnx()
    light = _without_weights(model)
    if input_shapes:  # shapes that stand in the file may be of another size
        del light.graph.value_info[:]
        for value in light.graph.output:
            value.type.tensor_type.ClearField('shape')
    for value in light.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        for dimension, size in zip(dimensions, (input_shapes or {}).get(value.name, ())):
            dimension.Clear()
            dimension.dim_value = size
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return {value.name: value.type.tensor_type
            for value in (*inferred.input, *inferred.value_info, *inferred.output)}


def activations(model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto.Tensor] | None = None
                ) -> list[str]:
    """
    Return the names of a network's activations: inputs first, then in the graph's order.

    These are the tensors that TensorRT's parser makes of the same file and wants scales for:
    float tensors whose values depend on the image. What follows from constants or from shapes
    alone is none of them.

    :param types: what `tensor_types` returned, to save its time
    :raises InputError: for a network that computes in half precision
    """
    onnx = onnx_model.import_onnx()
    values = tensor_types(model) if types is None else types
    constants = {tensor.name for tensor in model.graph.initializer}
    dependent = {value.name for value in model.graph.input} - constants
    result: dict[str, None] = {}

    def consider(name: str) -> None:
        kind = values.get(name)
        half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        if kind is not None and kind.elem_type in half:
            raise InputError(
                f'tensor {name!r} is {onnx.TensorProto.DataType.Name(kind.elem_type)}; expected '
                'a float32 network: export it without half precision, which TensorRT adds itself'
            )
        if kind is None or kind.elem_type == onnx.TensorProto.FLOAT:
            result[name] = None

    for value in model.graph.input:
        if value.name in dependent:
            consider(value.name)
    for node in model.graph.node:
        if node.op_type == 'Shape' or not dependent.intersection(reads(node)):
            continue
        for name in filter(None, node.output):
            dependent.add(name)
            consider(name)
    return list(result)


def layers(model: onnx.ModelProto) -> list[tuple[str, tuple[str, ...]]]:
    """Return each node's name with the activations that it reads and writes."""
    known = set(activations(model))
    return [(onnx_model.node_name(node),
             tuple(name for name in (*node.input, *node.output) if name in known))
            for node in model.graph.node]


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, the bodies of If and Loop included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                yield from reads(inner)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without the data of large constants, which shapes do not depend on."""
    onnx = onnx_model.import_onnx()
    copy = onnx.ModelProto()
    copy.ir_version = model.ir_version
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    for field in ('input', 'output', 'node', 'value_info'):
        getattr(copy.graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if len(tensor.dims) < 2:
            copy.graph.initializer.append(tensor)
        else:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(
                tensor.name, tensor.data_type, list(tensor.dims)))
    return copy
