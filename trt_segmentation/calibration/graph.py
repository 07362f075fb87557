# SPDX-License-Identifier: Apache-2.0
"""Which tensors of an ONNX graph are activations, and which layers use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trt_segmentation import onnx_model
from trt_segmentation.errors import InputError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Activation:
    """A float tensor whose values depend on the image; `rank` is None where it is not known."""

    name: str
    rank: int | None


def activations(model: onnx.ModelProto) -> dict[str, Activation]:
    """
    Return the activations of a network by name: graph inputs first, then in the graph's order.

    These are the tensors that TensorRT's parser makes of the same file and wants scales for.
    What follows from constants or from shapes alone is none of them.

    :param model: the network; large weights may be absent
    :raises InputError: for a network that computes in half precision
    """
    onnx = onnx_model.import_onnx()
    inferred = onnx.shape_inference.infer_shapes(_without_weights(model)).graph
    values = {value.name: value.type.tensor_type
              for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    constants = {tensor.name for tensor in model.graph.initializer}
    dependent = {value.name for value in model.graph.input} - constants
    result = {}

    def consider(name: str) -> None:
        kind = values.get(name)
        half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        if kind is not None and kind.elem_type in half:
            raise InputError(
                f'tensor {name!r} is {onnx.TensorProto.DataType.Name(kind.elem_type)}; expected '
                'a float32 network: export it without half precision, which TensorRT adds itself'
            )
        if kind is None or kind.elem_type == onnx.TensorProto.FLOAT:
            rank = len(kind.shape.dim) if kind is not None and kind.HasField('shape') else None
            result[name] = Activation(name, rank)

    for value in model.graph.input:
        if value.name in dependent:
            consider(value.name)
    for node in model.graph.node:
        if node.op_type == 'Shape' or not dependent.intersection(node.input):
            continue
        for name in filter(None, node.output):
            dependent.add(name)
            consider(name)
    return result


def layers(model: onnx.ModelProto) -> list[tuple[str, tuple[str, ...]]]:
    """Return each node's name with the activations that it reads and writes."""
    known = activations(model)
    return [(onnx_model.node_name(node),
             tuple(name for name in (*node.input, *node.output) if name in known))
            for node in model.graph.node]


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
