# SPDX-License-Identifier: Apache-2.0
"""Computing what does not depend on the image before it is asked for: constant folding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from trt_segmentation.networks.graph import (
    attribute,
    bodies,
    Graph,
    node_name,
    rename_reads,
    set_attributes,
    set_nodes,
)
from trt_segmentation.networks.model import onnx, sizes
from trt_segmentation.system.libraries import Library

if TYPE_CHECKING:
    from onnx import reference
else:
    reference = Library('onnx.reference', 'Reading a network', 'cpu')

# Codes of weights that are quantized already are more than their values; what is random differs
# each time; and the reference takes minutes to move a window over an image.
_NEVER = frozenset({
    'QuantizeLinear', 'DequantizeLinear', 'DynamicQuantizeLinear', 'Bernoulli', 'Multinomial',
    'RandomNormalLike', 'RandomUniformLike', 'Dropout', 'Conv', 'ConvInteger', 'ConvTranspose',
    'DeformConv', 'Resize', 'Upsample', 'AveragePool', 'MaxPool', 'LpPool', 'GridSample', 'LRN',
    'RoiAlign'})
_GROWING = ('ConstantOfShape', 'Expand', 'EyeLike', 'OneHot', 'Pad', 'Range', 'Tile')
_MAX_BYTES = 1 << 28


def fold_constants(model: onnx.ModelProto) -> bool:
    """
    Replace each node that reads nothing but constants by what it computes, in place.

    Exporters leave so what the network was trained with: the norm of a weight, a transposed or
    concatenated one, the sizes of a Resize. Tensors keep their names. What ONNX's reference
    cannot compute, and what is random or larger than 256 MiB, stays as it is.

    :returns: whether there was any
    """
    graph = Graph(model)
    kept = []
    for node in graph.nodes:
        if not _is_foldable(node, graph):
            kept.append(node)
            continue
        values = _computed(node, graph)
        if values is None:
            kept.append(node)
            continue
        for name, value in values.items():
            tensor = onnx.numpy_helper.from_array(value, name)
            model.graph.initializer.append(tensor)
            graph.constants[name] = model.graph.initializer[-1]
    if len(kept) == len(graph.nodes):
        return False
    set_nodes(model.graph, kept)
    return True


def _is_foldable(node: onnx.NodeProto, graph: Graph) -> bool:
    """Tell whether a node computes the same each time, of constants alone."""
    return (bool(node.input) and all(name in graph.constants for name in node.input if name)
            and node.domain in ('', 'ai.onnx') and not any(bodies(node))
            and node.op_type not in _NEVER and graph.outputs.isdisjoint(node.output))


def _is_large(node: onnx.NodeProto, graph: Graph) -> bool:
    """Tell whether a few numbers ask for a result that is too large to be kept, or of any size."""
    if node.op_type not in _GROWING:
        return False
    kind = onnx.shape_inference.infer_shapes(onnx.helper.make_model(
        onnx.helper.make_graph([node], 'large', [], [onnx.ValueInfoProto(name=node.output[0])],
                               [graph.constants[name] for name in node.input if name]),
        opset_imports=graph.model.opset_import), data_prop=True).graph.output[0].type.tensor_type
    known = [size for size in sizes(kind) if size is not None]
    return (not kind.HasField('shape') or len(known) < len(kind.shape.dim)
            or 8 * math.prod(known) > _MAX_BYTES)


def _computed(node: onnx.NodeProto, graph: Graph) -> dict[str, np.ndarray] | None:
    """Return the outputs of a node by name, or None if they cannot be computed here."""
    if _is_large(node, graph):
        return None
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], node_name(node), [
            onnx.helper.make_tensor_value_info(name, graph.constants[name].data_type, None)
            for name in dict.fromkeys(filter(None, node.input))],
            [onnx.ValueInfoProto(name=name) for name in filter(None, node.output)]),
        opset_imports=graph.model.opset_import)
    try:
        with np.errstate(all='ignore'):
            values = reference.ReferenceEvaluator(model).run(
                None, {name: graph.array(name) for name in filter(None, node.input)})
    except Exception:  # whatever an operator of the reference raises: it is no judge of networks
        return None
    found = dict(zip(filter(None, node.output), values))
    if not all(isinstance(value, np.ndarray | np.generic) and value.nbytes <= _MAX_BYTES
               for value in found.values()):
        return None
    return {name: np.asarray(value) for name, value in found.items()}


def fold_padding(model: onnx.ModelProto) -> int:
    """
    Let convolutions pad by themselves where a Pad with zeros stands before them, in place.

    As TensorFlow's networks have it, whose own padding depends on the size of the image.

    :returns: how many there were
    """
    graph = Graph(model)
    kept, folded = [], {}
    for node in graph.nodes:
        readers = graph.readers[node.output[0]]
        pads = _zeros_around(node, graph) if node.op_type == 'Pad' else None
        if pads is None or node.output[0] in graph.outputs or not readers or not all(
                reader.op_type == 'Conv' and reader.input[0] == node.output[0]
                and attribute(reader, 'auto_pad', b'NOTSET') in (b'NOTSET', b'VALID')
                for reader in readers):
            kept.append(node)
            continue
        for reader in readers:
            own = attribute(reader, 'pads', [0] * len(pads))
            set_attributes(reader, [
                *(entry for entry in reader.attribute if entry.name not in ('pads', 'auto_pad')),
                onnx.helper.make_attribute('pads', [
                    ours + more for ours, more in zip(own, pads)])])
        folded[node.output[0]] = node.input[0]
    rename_reads(kept, folded)
    set_nodes(model.graph, kept)
    return len(folded)


def _zeros_around(node: onnx.NodeProto, graph: Graph) -> list[int] | None:
    """Return the padding of height and width, at their begins and ends; None for any other."""
    given = [*node.input, '', '', ''][:4]
    if attribute(node, 'mode', b'constant') != b'constant' or given[3] or (
            given[1] not in graph.constants):
        return None
    if given[2] and (given[2] not in graph.constants or graph.array(given[2]).any()):
        return None
    pads: list[int] = graph.array(given[1]).tolist()
    if len(pads) != 8 or any(pads[:2] + pads[4:6]) or min(pads) < 0:
        return None
    return pads[2:4] + pads[6:]
