# SPDX-License-Identifier: Apache-2.0
"""
Cutting a network into segments that run one after the other.

To see an activation, ONNX Runtime has to make it an output of the graph, and keeps all outputs
until the whole graph has run. A segment's outputs can be counted and dropped before the next
segment runs, so memory holds a few tensors at a time instead of all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
import math

from trt_segmentation.networks.graph import Graph, reads
from trt_segmentation.networks.model import onnx

# A segment ends when its outputs to be seen reach this many bytes. Smaller ones gain nothing:
# a single layer's input, output and workspace are then the most there is.
_BUDGET = 8 << 20
# Where a tensor's size is not known, it is taken for this many values.
_UNKNOWN_SIZE = 1 << 20


@dataclass(frozen=True)
class Segment:
    """
    Some consecutive nodes of a network.

    nodes: in their order, led by those that make the constants they read
    inputs: tensors that come from the image or from earlier segments
    outputs: tensors to be seen, or that later segments read
    produced: all tensors that depend on the image and arise here
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    produced: tuple[str, ...]


def split(model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto.Tensor],
          seen: Collection[str]) -> list[Segment]:
    """
    Return the segments of a network, in their order.

    :param types: of the tensors, as `graph.tensor_types` returns them for the size to be run
    :param seen: the tensors that are to be outputs
    """
    network = _Network(model)
    groups: list[list[onnx.NodeProto]] = [[]]
    size = 0
    for i, node in enumerate(network.nodes):
        groups[-1].append(node)
        size += sum(_bytes(types.get(name)) for name in node.output if name in seen)
        rest = network.nodes[i + 1:]
        if size >= _BUDGET and rest and all(
                types[name].elem_type if name in types else False
                for name in network.crossing(i + 1)):
            groups.append([])
            size = 0
    segments = []
    for number, group in enumerate(groups):
        later = {name for following in groups[number + 1:]
                 for node in following for name in network.reads[id(node)]}
        segments.append(network.segment(group, later | set(seen)))
    return segments


class _Network:
    """The nodes that depend on the image, and who reads what."""

    def __init__(self, model: onnx.ModelProto):
        graph = Graph(model)
        self.inputs = set(graph.inputs)
        self.reads = {id(node): tuple(reads(node)) for node in graph.nodes}
        self.dependent = set(self.inputs)
        self.nodes: list[onnx.NodeProto] = []
        self._constant_nodes: dict[str, onnx.NodeProto] = {}
        for node in graph.nodes:
            read = self.reads[id(node)]
            if self.dependent.intersection(read) or (not read and node.op_type != 'Constant'):
                self.nodes.append(node)
                self.dependent.update(filter(None, node.output))
            else:
                self._constant_nodes.update(dict.fromkeys(filter(None, node.output), node))

    def crossing(self, position: int) -> set[str]:
        """Return the tensors that arise before a position and are read from there on."""
        read = {name for node in self.nodes[position:] for name in self.reads[id(node)]}
        made = {name for node in self.nodes[:position] for name in node.output}
        return read & (made | self.inputs)

    def segment(self, group: list[onnx.NodeProto], wanted: Collection[str]) -> Segment:
        """Return a segment of these nodes; `wanted` tensors become outputs."""
        produced = [name for node in group for name in node.output if name]
        read = dict.fromkeys(name for node in group for name in self.reads[id(node)])
        constants: dict[int, onnx.NodeProto] = {}
        for name in read:
            self._add_constant(name, constants)
        return Segment(
            nodes=(*constants.values(), *group),
            inputs=tuple(name for name in read
                         if name in self.dependent and name not in produced),
            outputs=tuple(name for name in produced if name in wanted),
            produced=tuple(produced))

    def _add_constant(self, name: str, found: dict[int, onnx.NodeProto]) -> None:
        """Add the nodes that compute a constant, those that they read first."""
        node = self._constant_nodes.get(name)
        if node is not None and id(node) not in found:
            for earlier in self.reads[id(node)]:
                self._add_constant(earlier, found)
            found[id(node)] = node


def _bytes(kind: onnx.TypeProto.Tensor | None) -> int:
    """Return the size of a float32 tensor."""
    sizes = [dimension.dim_value for dimension in kind.shape.dim] if kind is not None else [0]
    return 4 * (math.prod(sizes) if all(sizes) else _UNKNOWN_SIZE)


def submodel(model: onnx.ModelProto, segment: Segment,
             types: Mapping[str, onnx.TypeProto.Tensor]) -> onnx.ModelProto:
    """Return a segment as a model of its own."""
    part = onnx.ModelProto()
    part.ir_version = model.ir_version
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = model.graph.name or 'segment'
    part.graph.node.extend(segment.nodes)
    read = {name for node in segment.nodes for name in reads(node)}
    part.graph.initializer.extend(
        tensor for tensor in model.graph.initializer if tensor.name in read)
    for names, values in ((segment.inputs, part.graph.input), (segment.outputs,
                                                               part.graph.output)):
        for name in names:
            kind = types[name].elem_type if name in types else onnx.TensorProto.FLOAT
            values.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return part
