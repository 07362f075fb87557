# SPDX-License-Identifier: Apache-2.0
"""
Centering: letting tensors that are never negative use the negative codes too.

TensorRT's INT8 has zero at code 0, so behind a Relu half of the codes are never used. Where half
of the range is subtracted in front of the pair, all 255 are, and the next layer's bias takes it
back: a convolution's output then lacks offset x sum of its weights, an addition's lacks the
offset, which goes into the bias of the convolution on its other side. With the offset equal to
the tensor's threshold, zero stays a code. A convolution that pads with zeros would pad with the
offset then, so it is left alone, but for that of the image, which is padded before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from trt_segmentation.networks.graph import (
    attribute,
    drop_unread_constants,
    Graph,
    set_nodes,
)
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.placement import Placement
from trt_segmentation.networks.prepare import prepare


def targets(model: onnx.ModelProto, nonnegative: Collection[str], exclude: Collection[str] = ()
            ) -> list[str]:
    """
    Return the tensors that can be centered for all that read them in INT8, sorted.

    :param nonnegative: names of tensors that cannot be negative, the image's among them or not
    :param exclude: names of nodes that stay in float
    """
    return sorted(name for name, nodes in _uses(model, exclude).items() if name in nonnegative
                  and nodes is not None)


def center(model: onnx.ModelProto, offsets: Mapping[str, float], exclude: Collection[str] = ()
           ) -> tuple[onnx.ModelProto, dict[str, str]]:
    """
    Return the network, prepared, in which some tensors are centered in front of their readers.

    All tensors keep their names and values, but for the outputs of convolutions whose bias takes
    the offset of an addition behind them; centered ones stand beside them.

    :param offsets: by tensor, of `targets`, what is subtracted: finite, above 0
    :returns: the network, and for each tensor the name of its centered one
    """
    result = prepare(model)
    uses = _uses(result, exclude)
    graph = Graph(result)
    centered: dict[str, str] = {}
    added: dict[str, list[onnx.NodeProto]] = {}
    biases: dict[str, np.ndarray] = {}
    for tensor, value in offsets.items():
        offset = float(np.float32(value))
        readers = uses[tensor]
        assert readers is not None  # it is one of the targets
        source, nodes = tensor, list[onnx.NodeProto]()
        if tensor in graph.inputs:
            source, nodes = _padded(graph, tensor, graph.nodes[readers[0][0]])
        centered[tensor] = graph.fresh(f'{tensor}_centered')
        name = graph.add_constant(f'{tensor}_offset', np.float32(-offset))
        nodes.append(onnx.helper.make_node('Add', [source, name], [centered[tensor]],
                                           name=graph.fresh(f'{tensor}_center')))
        added[tensor] = nodes
        for node, position in ((graph.nodes[i], position) for i, position in readers):
            node.input[position] = centered[tensor]
            if node.op_type == 'Conv':
                weight = graph.array(node.input[1]).astype(np.float64)
                shift = offset * weight.sum(axis=(1, 2, 3))
            else:
                node = graph.producer[node.input[1 - position]]
                shift = np.full(graph.constants[node.input[1]].dims[0], offset)
            biases[node.output[0]] = biases.get(node.output[0], 0.0) + shift
    for output, shift in biases.items():
        add_to_bias(graph, graph.producer[output], shift)
    set_nodes(result.graph, graph.with_nodes_behind(added))
    drop_unread_constants(result.graph)
    return result, centered


def add_to_bias(graph: Graph, node: onnx.NodeProto, value: np.ndarray) -> None:
    """Add something to the constant bias of a convolution, which need not have one yet."""
    bias = (*node.input, '')[2]
    if bias:
        value = value + graph.array(bias)
    del node.input[2:]
    node.input.append(graph.add_constant(f'{node.output[0]}_bias', value.astype(np.float32)))


def _uses(model: onnx.ModelProto, exclude: Collection[str]
          ) -> dict[str, list[tuple[int, int]] | None]:
    """
    Return by quantized tensor the inputs (node index, input index) that read it in INT8.

    None if one of them cannot take a centered tensor.
    """
    placement = Placement(model, exclude)
    graph = placement.graph
    layers = [node for node in graph.nodes if not placement.float_reason(node)]

    def takes_it(tensor: str, node: onnx.NodeProto, position: int, alone: bool) -> bool:
        if node.op_type == 'Add':
            other = graph.producer[node.input[1 - position]]
            return _has_constants(graph, other) and other.output[0] not in graph.outputs
        pads = attribute(node, 'pads', ())
        unpadded = attribute(node, 'auto_pad', b'NOTSET') == b'VALID' or (
            attribute(node, 'auto_pad', b'NOTSET') == b'NOTSET' and not any(pads))
        return _has_constants(graph, node) and (
            unpadded or (tensor in graph.inputs and alone and len(pads) == 4))

    return {name: readers if all(
        takes_it(name, graph.nodes[node], position, len(graph.readers[name]) == 1)
        for node, position in readers) else None
        for name, readers in placement.tensorrt_readers(layers).items()}


def _has_constants(graph: Graph, node: onnx.NodeProto) -> bool:
    """Tell whether a node is a convolution of images with constant weight and bias."""
    return (node.op_type == 'Conv' and all(name in graph.constants for name in node.input[1:])
            and len(graph.constants[node.input[1]].dims) == 4)


def _padded(graph: Graph, tensor: str, node: onnx.NodeProto
            ) -> tuple[str, list[onnx.NodeProto]]:
    """Take a convolution's padding out of it; return the padded tensor and what makes it."""
    pads = list(attribute(node, 'pads', ()))
    if not any(pads):
        return tensor, []
    for entry in node.attribute:
        if entry.name == 'pads':
            entry.ints[:] = [0] * len(pads)
    name = graph.add_constant(f'{tensor}_pads',
                              np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64))
    padded = graph.fresh(f'{tensor}_padded')
    return padded, [onnx.helper.make_node('Pad', [tensor, name], [padded],
                                          name=graph.fresh(f'{tensor}_pad'))]
