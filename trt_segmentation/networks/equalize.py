# SPDX-License-Identifier: Apache-2.0
"""
Channel equalization: letting all channels of a convolution's input use the whole INT8 range.

An activation has one INT8 scale. Where its channels have very unequal ranges, the small ones are
left with few codes. So channel c is divided by s_c in front of the convolution, and the weights
that read it are multiplied by s_c: the network computes the same, and the tensor between, which
is the one that is quantized, has equal channels (Nagel et al., ICCV 2019). Weights have a scale
for each output channel, which takes their part of it.

What makes the tensor divides it where it can: a convolution or a batch normalization in its
constants, right before it or behind operators that are homogeneous. Else, or where somebody else
reads the tensor too, a Mul does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from trt_segmentation.networks.graph import (
    attribute,
    drop_unread_constants,
    Graph,
    node_name,
    opset,
    rename_reads,
    set_nodes,
)
from trt_segmentation.networks.model import onnx

_OPSET = 7  # Mul broadcasts from here on
# f(x s) = f(x) s for s > 0, channel by channel.
_HOMOGENEOUS_OPS = ('AveragePool', 'GlobalAveragePool', 'Identity', 'LeakyRelu', 'MaxPool',
                    'PRelu', 'Relu', 'Resize')


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


def watched(model: onnx.ModelProto, exclude: Collection[str] = ()) -> set[str]:
    """Return the tensors that can be equalized, and those that may be divided on their way."""
    graph, found = Graph(model), set[str]()
    for name, target in targets(model, exclude).items():
        found.update(_divided_by_what_makes_it(graph, name, np.ones(target.channels)) or [name])
    return found


class Quotient(NamedTuple):
    """
    A tensor of an equalized network that stands for one of the network.

    of: the tensor that was divided; factor: by what, shape (channels,)
    target: the equalized tensor that it was divided for, which may be itself
    """

    of: str
    factor: np.ndarray
    target: str


def equalize(model: onnx.ModelProto, factors: Mapping[str, np.ndarray],
             exclude: Collection[str] = (), keep: Collection[str] = ()
             ) -> tuple[onnx.ModelProto, dict[str, Quotient]]:
    """
    Return the network with some tensors equalized in front of their convolutions.

    Tensors that have another value have another name.

    :param factors: by tensor, what each channel is divided by: finite, above 0, shape (channels,)
    :param exclude: names of nodes that stay in float, and go on reading the tensor as it is
    :param keep: tensors that keep their values, as the network's outputs do
    :returns: the network, and its new tensors by name
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result)
    possible = targets(result, exclude)
    divided: dict[str, Quotient] = {}
    renamed: dict[str, str] = {}
    added: dict[str, list[onnx.NodeProto]] = {}
    for tensor, given in factors.items():
        target = graph.fresh(f'{tensor}_equalized')
        # What the reciprocal really is, so that its rounding cancels out.
        reciprocal = (1 / np.asarray(given, np.float64)).astype(np.float32)
        factor = 1 / reciprocal.astype(np.float64)
        divided[target] = Quotient(tensor, factor, target)
        layers = [node for node in graph.readers[tensor] if node.input[0] == tensor
                  and node_name(node) in possible[tensor].layers]
        parts = _divided_by_what_makes_it(graph, tensor, factor)
        if parts is None or not graph.outputs.union(keep).isdisjoint(parts) or (
                len(layers) != len(graph.readers[tensor])):
            name = graph.add_constant(f'{tensor}_equalization', reciprocal.reshape(1, -1, 1, 1))
            added[tensor] = [onnx.helper.make_node(
                'Mul', [tensor, name], [target], name=graph.fresh(f'{tensor}_equalize'))]
            for node in layers:
                node.input[0] = target
        else:
            renamed[tensor] = target
            for part, by in parts.items():
                if part != tensor:
                    renamed[part] = graph.fresh(f'{part}_equalized')
                    divided[renamed[part]] = Quotient(part, by, target)
                _divide_constants(graph, graph.producer[part], by)
        for node in layers:
            weight = _weight(graph, node)
            assert weight is not None  # of a target
            scaled = weight * _per_input(factor, weight.shape, node)
            node.input[1] = graph.add_constant(f'{node.input[1]}_equalized',
                                               scaled.astype(np.float32))
    rename_reads(graph.nodes, renamed)
    for name, new in renamed.items():
        node = graph.producer[name]
        node.name = node_name(node)  # where it has none, that is its output's, as it was
        node.output[0] = new
    set_nodes(result.graph, graph.with_nodes_behind(added))
    drop_unread_constants(result.graph)
    del result.graph.value_info[:]
    return result, divided


def _divided_by_what_makes_it(graph: Graph, tensor: str, factor: np.ndarray
                              ) -> dict[str, np.ndarray] | None:
    """
    Return all tensors that must be divided so that this one comes divided, and by what.

    :returns: by name, this one first; None if something on the way cannot do that
    """
    node = graph.producer.get(tensor)
    if node is None or node.domain not in ('', 'ai.onnx'):
        return None
    if node.op_type in ('Conv', 'BatchNormalization'):
        return {tensor: factor} if _outputs(graph, node) == len(factor) else None
    if node.op_type == 'Concat':  # along another axis, no part has the channels that it needs
        sizes = [_channels(graph, name) for name in node.input]
        parts = np.split(factor, np.cumsum(sizes)[:-1])
    elif node.op_type == 'Add':
        parts = [factor, factor]
    elif node.op_type in _HOMOGENEOUS_OPS and (
            attribute(node, 'coordinate_transformation_mode') != b'tf_crop_and_resize'):
        parts = [factor]
    else:
        return None
    found = {tensor: factor}
    for name, part in zip(node.input, parts):
        before = (_divided_by_what_makes_it(graph, name, part)
                  if len(graph.readers[name]) == 1 else None)
        if before is None:
            return None
        found.update(before)
    return found


def _channels(graph: Graph, tensor: str) -> int:
    """Return the channels of a tensor that a factor may be passed on to; 0 of any other."""
    node = graph.producer.get(tensor)
    if node is None:
        return 0
    if node.op_type == 'Concat':
        return sum(_channels(graph, name) for name in node.input)
    if node.op_type in (*_HOMOGENEOUS_OPS, 'Add'):
        return _channels(graph, node.input[0])
    return _outputs(graph, node)


def _outputs(graph: Graph, node: onnx.NodeProto) -> int:
    """Return the channels that a node of constants makes, which can divide them; 0 of others."""
    if node.op_type == 'Conv':
        weight = _weight(graph, node)
        constants = [weight, *(_constant(graph, name) for name in node.input[2:] if name)]
    elif node.op_type == 'BatchNormalization':
        constants = [_constant(graph, name) for name in node.input[1:]]
    else:
        return 0
    known = [value for value in constants if value is not None]
    return len(known[0]) if len(known) == len(constants) else 0


def _divide_constants(graph: Graph, node: onnx.NodeProto, factor: np.ndarray) -> None:
    """Let a convolution or batch normalization divide its channels; other nodes pass them on."""
    if node.op_type not in ('Conv', 'BatchNormalization'):
        return
    for i in range(1, min(len(node.input), 3)):  # weight or scale, and bias
        if node.input[i]:
            value = _constant(graph, node.input[i])
            assert value is not None  # of what can divide
            quotient = value / factor.reshape(-1, *[1] * (value.ndim - 1))
            node.input[i] = graph.add_constant(f'{node.input[i]}_divided',
                                               quotient.astype(np.float32))


def _weight(graph: Graph, node: onnx.NodeProto) -> np.ndarray | None:
    """Return the weight of a two-dimensional convolution that can be equalized, or None."""
    if node.op_type != 'Conv' or node.domain not in ('', 'ai.onnx') or len(node.input) < 2:
        return None
    weight = _constant(graph, node.input[1])
    return weight if weight is not None and weight.ndim == 4 else None


def _constant(graph: Graph, name: str) -> np.ndarray | None:
    """Return the value of a constant of float32; None of anything else."""
    tensor = graph.constants.get(name)
    if tensor is None:
        maker = graph.producer.get(name)
        if maker is None or maker.op_type != 'Constant' or maker.attribute[0].name != 'value':
            return None
        tensor = maker.attribute[0].t
    if tensor.data_type != onnx.TensorProto.FLOAT:
        return None
    value: np.ndarray = onnx.numpy_helper.to_array(tensor)
    return value


def _per_input(factor: np.ndarray, shape: tuple[int, ...], node: onnx.NodeProto) -> np.ndarray:
    """Return factors of input channels for a weight (outputs, channels / groups, ..)."""
    groups = attribute(node, 'group', 1)
    by_output = np.repeat(factor.reshape(groups, shape[1]), shape[0] // groups, axis=0)
    return by_output.reshape(shape[0], shape[1], 1, 1)
