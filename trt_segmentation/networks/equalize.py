# SPDX-License-Identifier: Apache-2.0
"""
Channel equalization: letting all channels of a convolution's input use the whole INT8 range.

An activation has one INT8 scale. Where its channels have very unequal ranges, the small ones are
left with few codes. So channel c is divided by s_c in front of the convolution, and the weights
that read it are multiplied by s_c: the network computes the same, and the tensor between, which
is the one that is quantized, has equal channels. (As cross-layer equalization by Nagel et al.,
ICCV 2019, but with a Mul of its own in place of the layer before, so that it fits behind any
operator. Weights have a scale for each output channel, which takes their part of it.)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from trt_segmentation.networks.graph import (
    attribute,
    drop_unread_constants,
    Graph,
    node_name,
    opset,
    set_nodes,
)
from trt_segmentation.networks.model import onnx

_OPSET = 7  # Mul broadcasts from here on


@dataclass(frozen=True)
class Target:
    """A tensor that can be equalized: its number of channels, and the convolutions it is for."""

    channels: int
    layers: tuple[str, ...]


def targets(model: onnx.ModelProto, exclude: Collection[str] = ()) -> dict[str, Target]:
    """
    Return the tensors that can be equalized, by name, in the graph's order.

    They are what convolutions with constant float weights read, but for the image, whose range
    is known.

    :param exclude: names of nodes that stay in float
    """
    if opset(model) < _OPSET:
        return {}
    graph = Graph(model)
    found: dict[str, Target] = {}
    for node in graph.nodes:
        if not node.output or node_name(node) in exclude or node.input[:1] in ([], ['']):
            continue
        data = node.input[0]
        weight = _weight(graph, node)
        if weight is None or data in graph.inputs or data not in graph.producer:
            continue
        channels = weight.shape[1] * attribute(node, 'group', 1)
        layers = found[data].layers if data in found else ()
        found[data] = Target(channels, (*layers, node_name(node)))
    return found


def equalize(model: onnx.ModelProto, factors: Mapping[str, np.ndarray],
             exclude: Collection[str] = ()) -> tuple[onnx.ModelProto, dict[str, str]]:
    """
    Return the network with some tensors equalized in front of their convolutions.

    All tensors of the network keep their names and values; new ones stand beside them.

    :param factors: by tensor, what each channel is divided by: finite, above 0, shape (channels,)
    :param exclude: names of nodes that stay in float, and go on reading the tensor as it is
    :returns: the network, and for each tensor the name of its equalized one
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result)
    possible = targets(result, exclude)
    equalized: dict[str, str] = {}
    added: dict[str, list[onnx.NodeProto]] = {}
    for tensor, factor in factors.items():
        reciprocal = (1 / np.asarray(factor, np.float64)).astype(np.float32)
        equalized[tensor] = graph.fresh(f'{tensor}_equalized')
        name = graph.add_constant(f'{tensor}_equalization', reciprocal.reshape(1, -1, 1, 1))
        added[tensor] = [onnx.helper.make_node(
            'Mul', [tensor, name], [equalized[tensor]], name=graph.fresh(f'{tensor}_equalize'))]
        for node in graph.nodes:
            if node_name(node) not in possible[tensor].layers or node.input[0] != tensor:
                continue
            weight = _weight(graph, node)
            assert weight is not None  # of a target
            # What the reciprocal really is, so that its rounding cancels out.
            scaled = weight / _per_input(reciprocal.astype(np.float64), weight.shape, node)
            node.input[0] = equalized[tensor]
            node.input[1] = graph.add_constant(f'{node.input[1]}_equalized',
                                               scaled.astype(np.float32))
    set_nodes(result.graph, graph.with_nodes_behind(added))
    drop_unread_constants(result.graph)
    return result, equalized


def _weight(graph: Graph, node: onnx.NodeProto) -> np.ndarray | None:
    """Return the weight of a two-dimensional convolution that can be equalized, or None."""
    if node.op_type != 'Conv' or node.domain not in ('', 'ai.onnx') or len(node.input) < 2:
        return None
    tensor = graph.constants.get(node.input[1])
    if tensor is None:
        maker = graph.producer.get(node.input[1])
        if maker is None or maker.op_type != 'Constant' or maker.attribute[0].name != 'value':
            return None
        tensor = maker.attribute[0].t
    if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 4:
        return None
    weight: np.ndarray = onnx.numpy_helper.to_array(tensor)
    return weight


def _per_input(factor: np.ndarray, shape: tuple[int, ...], node: onnx.NodeProto) -> np.ndarray:
    """Return factors of input channels for a weight (outputs, channels / groups, ..)."""
    groups = attribute(node, 'group', 1)
    by_output = np.repeat(factor.reshape(groups, shape[1]), shape[0] // groups, axis=0)
    return by_output.reshape(shape[0], shape[1], 1, 1)
