# SPDX-License-Identifier: Apache-2.0
"""Making a network ready to be quantized: opset, constants, names, batch normalization."""

from __future__ import annotations

import numpy as np

from trt_segmentation.errors import InputError, one_line
from trt_segmentation.networks.fold import fold_constants
from trt_segmentation.networks.graph import attribute, Graph, node_name, opset, set_nodes
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.opset import NEWEST

_OLDEST = 13  # scales by channel need it
_IR_VERSION = 8  # that of the newest opset


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """
    Return a copy that is ready to be quantized, with the tensor names of the network.

    It has a fit opset, each constant as an initializer, what is computed of constants too, a name
    for each node (that of its first output where it had none), and BatchNormalization folded into
    convolutions.
    """
    if opset(model) < _OLDEST:
        copy = converted(model)
    else:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
    copy.ir_version = max(copy.ir_version, _IR_VERSION)
    constants_to_initializers(copy.graph)
    fold_constants(copy)
    for node in copy.graph.node:  # a runtime tells by its name what became of a layer
        node.name = node_name(node)
    _fold_batch_normalization(copy)
    return copy


def converted(model: onnx.ModelProto, *, keep_names: bool = True) -> onnx.ModelProto:
    """
    Return the network in an opset that has Q/DQ pairs.

    :param keep_names: its tensors must keep their names, because scales refer to them
    :raises InputError: if it cannot be converted so
    """
    version = opset(model)
    try:
        copy: onnx.ModelProto = onnx.version_converter.convert_version(model, NEWEST)
        before, after = ({name for node in graph.node for name in node.output}
                         for graph in (model.graph, copy.graph))
        if keep_names and (lost := sorted(before - after)):  # of Upsample, which becomes Resize
            raise ValueError(f'tensor {lost[0]!r}, which scales refer to, would be renamed')
        if version < 11:
            _keep_old_resize(copy.graph)
    except Exception as error:
        raise InputError(
            f'the network has opset {version}, Q/DQ needs {_OLDEST} or later, and it cannot be '
            f'converted ({one_line(error)}): export it with opset {NEWEST}'
        ) from None
    return copy


def _keep_old_resize(graph: onnx.GraphProto) -> None:
    """
    Let each Resize sample as it did before opset 11: x = i / scale, and its floor for nearest.

    Upsample and Resize were defined so; the converter leaves out the attributes that say it, and
    their defaults from opset 11 on are others.
    """
    for node in graph.node:
        if node.op_type == 'Resize':
            given = {entry.name for entry in node.attribute}
            for name, value in (('coordinate_transformation_mode', 'asymmetric'),
                                ('nearest_mode', 'floor')):
                if name not in given:
                    node.attribute.append(onnx.helper.make_attribute(name, value))


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Replace Constant nodes and copies of constants: a weight is found in one place only."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        value = None
        if node.op_type == 'Constant' and node.attribute:
            value = _constant_value(node.attribute[0])
        elif node.op_type == 'Identity':  # some exporters share weights so
            value = constants.get(node.input[0])
        if value is None:
            kept.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        constants[tensor.name] = tensor
    set_nodes(graph, kept)


def _constant_value(entry: onnx.AttributeProto) -> onnx.TensorProto | None:
    """Return the tensor of a Constant node's attribute; None for strings and sparse ones."""
    if entry.name == 'value':
        return entry.t
    types = {'value_float': np.float32, 'value_floats': np.float32,
             'value_int': np.int64, 'value_ints': np.int64}
    if entry.name not in types:
        return None
    value = onnx.helper.get_attribute_value(entry)
    return onnx.numpy_helper.from_array(np.asarray(value, types[entry.name]))


def _fold_batch_normalization(model: onnx.ModelProto) -> None:
    """
    Fold each BatchNormalization into the convolution before it.

    w' = w * gamma / sqrt(var + epsilon); b' = (b - mean) * gamma / sqrt(var + epsilon) + beta.
    Codes must be those of the folded weight: neither runtime folds through a DequantizeLinear.
    """
    graph = Graph(model)
    kept = []
    for node in graph.nodes:
        convolution = (graph.producer.get(node.input[0])
                       if node.op_type == 'BatchNormalization' else None)
        if (convolution is None or convolution.op_type != 'Conv'
                or len(graph.readers[node.input[0]]) != 1 or node.input[0] in graph.outputs
                or attribute(node, 'training_mode')
                or not all(name in graph.constants for name in (*convolution.input[1:],
                                                                *node.input[1:]))):
            kept.append(node)
            continue
        gamma, beta, mean, variance = (
            graph.array(name) for name in node.input[1:])
        epsilon = attribute(node, 'epsilon', 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        weight = graph.array(convolution.input[1])
        bias = graph.array(convolution.input[2]) if len(convolution.input) > 2 else 0
        folded = {'weight': weight * factor.reshape(-1, *[1] * (weight.ndim - 1)),
                  'bias': (bias - mean) * factor + beta}
        del convolution.input[1:]
        convolution.input.extend(
            graph.add_constant(f'{node.output[0]}_folded_{what}', value.astype(weight.dtype))
            for what, value in folded.items())
        convolution.output[0] = node.output[0]
    set_nodes(model.graph, kept)
