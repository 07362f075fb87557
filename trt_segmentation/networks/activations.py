# SPDX-License-Identifier: Apache-2.0
"""Which tensors of an ONNX graph are activations, and which layers use them."""

from __future__ import annotations

from collections.abc import Mapping

from trt_segmentation.errors import InputError
from trt_segmentation.networks.graph import Graph, node_name, reads
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.shapes import tensor_types


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
    values = tensor_types(model) if types is None else types
    graph = Graph(model)
    dependent = set(graph.inputs)
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

    for name in graph.inputs:
        consider(name)
    for node in graph.nodes:
        if node.op_type == 'Shape' or not dependent.intersection(reads(node)):
            continue
        for name in filter(None, node.output):
            dependent.add(name)
            consider(name)
    return list(result)


def layers(model: onnx.ModelProto) -> list[tuple[str, tuple[str, ...]]]:
    """Return each node's name with the activations that it reads and writes."""
    known = set(activations(model))
    return [(node_name(node), tuple(name for name in (*node.input, *node.output) if name in known))
            for node in model.graph.node]
