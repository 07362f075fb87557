# SPDX-License-Identifier: Apache-2.0
"""The one view of a network's graph: who makes what, who reads it, which names are free."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from trt_segmentation.networks.model import onnx


class Graph:
    """
    The graph of a model, looked up by tensor; made anew after a change.

    nodes: those of the graph itself, in its order
    constants: its initializers by name
    inputs: what has to be given to it; up to IR version 3, initializers are inputs of the file too
    outputs: names of its outputs
    producer: the node that makes a tensor, by the tensor's name
    readers: the nodes that read a tensor, once for each time they do, branches and loops included
    """

    def __init__(self, model: onnx.ModelProto):
        """Look at a model; changes of its nodes through this view are changes of the model."""
        self.model = model
        self.nodes = list(model.graph.node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = {value.name: value for value in model.graph.input
                       if value.name not in self.constants}
        self.outputs = {value.name for value in model.graph.output}
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in reads(node):
                self.readers[name].append(node)

    def array(self, name: str) -> np.ndarray:
        """Return the value of a constant."""
        value: np.ndarray = onnx.numpy_helper.to_array(self.constants[name])
        return value

    def add_constant(self, name: str, value: np.ndarray | np.generic) -> str:
        """Add an initializer under a free name like this one; return its name."""
        name = self.fresh(name)
        self.model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.asarray(value), name))
        self.constants[name] = self.model.graph.initializer[-1]
        return name

    def is_rectifier(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node is a Relu, or a Clip from 0 or more."""
        if node.op_type == 'Relu':
            return True
        low = (*node.input, '')[1]
        return (node.op_type == 'Clip' and low in self.constants
                and bool((self.array(low) >= 0).all()))

    def rules_out_negative(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node gives nothing negative, whatever it reads."""
        return self.is_rectifier(node) or node.op_type in ('HardSigmoid', 'Sigmoid', 'Softmax')

    def with_nodes_behind(self, added: Mapping[str, Iterable[onnx.NodeProto]]
                          ) -> list[onnx.NodeProto]:
        """Return the nodes and, right behind what makes a tensor, those that are added for it."""
        ordered = [new for name in self.inputs for new in added.get(name, ())]
        for node in self.nodes:
            ordered.append(node)
            ordered += [new for name in node.output for new in added.get(name, ())]
        return ordered

    def fresh(self, name: str) -> str:
        """Return a name that nothing in the graph has: this one, or with underscores behind it."""
        while name in self._taken:
            name += '_'
        self._taken.add(name)
        return name

    @cached_property
    def _taken(self) -> set[str]:
        """Return the names of all nodes and tensors."""
        graph = self.model.graph
        taken = {value.name for value in (*graph.input, *graph.output)} | set(self.constants)
        for node in every_node(graph):
            taken.update((node.name, *node.input, *node.output))
        return taken


def node_name(node: onnx.NodeProto) -> str:
    """Return the node's name, or that of its first output where it has none."""
    return str(node.name or node.output[0])


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute, or the default where it is not given."""
    return next((onnx.helper.get_attribute_value(entry) for entry in node.attribute
                 if entry.name == name), default)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the branches of an If, or the body of a loop."""
    for entry in node.attribute:
        if entry.HasField('g'):
            yield entry.g
        yield from entry.graphs


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph, those of branches and loops included."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from every_node(body)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, those around its branches or its loop included."""
    yield from filter(None, node.input)
    for body in bodies(node):
        own = {value.name for value in (*body.input, *body.initializer)}
        own.update(name for inner in body.node for name in inner.output)
        for name in (*(name for inner in body.node for name in reads(inner)),
                     *(value.name for value in body.output)):
            if name not in own:
                yield name


def rename_reads(nodes: Iterable[onnx.NodeProto], names: Mapping[str, str]) -> None:
    """Let nodes read other tensors, in place, branches and loops included."""
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
        for body in bodies(node):
            rename_reads(body.node, names)


def set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph, some of which may be its own."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def set_attributes(node: onnx.NodeProto, entries: Iterable[onnx.AttributeProto]) -> None:
    """Replace the attributes of a node, some of which may be its own."""
    copies = [onnx.AttributeProto.FromString(entry.SerializeToString()) for entry in entries]
    del node.attribute[:]
    node.attribute.extend(copies)


def drop_unread_constants(graph: onnx.GraphProto) -> None:
    """Leave out the initializers that nobody reads."""
    used = {name for node in graph.node for name in reads(node)} | {
        value.name for value in graph.output}
    set_constants(graph, [tensor for tensor in graph.initializer if tensor.name in used])


def set_constants(graph: onnx.GraphProto, tensors: list[onnx.TensorProto]) -> None:
    """Replace the initializers of a graph, some of which may be its own."""
    copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    del graph.initializer[:]
    graph.initializer.extend(copies)


def opset(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a model uses; 0 if it names none."""
    return max((entry.version for entry in model.opset_import
                if entry.domain in ('', 'ai.onnx')), default=0)
