# SPDX-License-Identifier: Apache-2.0
"""Types and shapes of a network's tensors, for the sizes it is run with."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from trt_segmentation.errors import InputError
from trt_segmentation.networks.fold import fold_constants
from trt_segmentation.networks.graph import Graph, set_nodes
from trt_segmentation.networks.model import onnx, Shape, sizes
from trt_segmentation.networks.session import Endless, FIRST_RUN_S, import_onnxruntime, Session
from trt_segmentation.networks.work import does_work


def fix_sizes(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """
    Set the shapes of inputs, and forget those of all other tensors, which may be of other sizes.

    :param input_shapes: by input; the others keep theirs
    """
    for value in model.graph.input:
        if value.name in input_shapes:
            dims = value.type.tensor_type.shape.dim
            del dims[:]
            for size in input_shapes[value.name]:
                dims.add().dim_value = size
    for value in model.graph.output:
        value.type.tensor_type.ClearField('shape')
    del model.graph.value_info[:]


def tensor_types(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]] | None = None
                 ) -> dict[str, onnx.TypeProto.Tensor]:
    """
    Return type and shape of each tensor, constants included, of which ONNX can tell them.

    :param input_shapes: the shapes to run the network with, by input; without any, what the file
        says of sizes holds
    """
    light = _without_weights(model)
    if input_shapes:
        fix_sizes(light, input_shapes)
    types = _inferred(light)
    # Sizes that follow from sizes are numbers by now: padding of a decoder, reshapes of a head.
    while input_shapes and _unknown(model, types) and _fold_sizes(light, types):
        types = _inferred(light)
    for tensor in model.graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(
            tensor.data_type, tensor.dims).tensor_type
    return types


def infer_shapes(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]],
                 wanted: Collection[str] = ()) -> dict[str, Shape]:
    """
    Return the shape of each tensor that ONNX can tell, and of all that layers read and write.

    Those come from a run of the network where nothing else tells them, if ONNX Runtime is there.

    :param input_shapes: as `tensor_types` takes them
    :param wanted: tensors whose shapes are wanted just as much
    """
    types = tensor_types(model, input_shapes)
    shapes = {name: sizes(kind) for name, kind in types.items() if kind.HasField('shape')}
    if unknown := [*_unknown(model, types),
                   *(name for name in wanted if None in shapes.get(name, (None,)))]:
        shapes.update(_traced(model, input_shapes, unknown))
    return shapes


def _inferred(model: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Return the types that ONNX's inference tells."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {value.name: value.type.tensor_type
            for value in (*inferred.input, *inferred.value_info, *inferred.output)}


def _unknown(model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto.Tensor]) -> list[str]:
    """Return the tensors of layers whose shapes are not known."""
    constants = Graph(model).constants
    names = dict.fromkeys(
        name for node in model.graph.node if does_work(node)
        for name in (*node.input, *node.output) if name and name not in constants)
    return [name for name in names if name not in types or not types[name].HasField('shape')
            or None in sizes(types[name])]


def _fold_sizes(model: onnx.ModelProto, types: Mapping[str, onnx.TypeProto.Tensor]) -> bool:
    """Make constants of the shapes that are known, and of what follows from them, in place."""
    kept = []
    for node in model.graph.node:
        kind = types.get(node.input[0]) if node.op_type == 'Shape' else None
        if kind is None or not kind.HasField('shape') or None in sizes(kind) or node.attribute:
            kept.append(node)
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(
                np.array(sizes(kind), np.int64), node.output[0]))
    some = len(kept) < len(model.graph.node)
    if some:
        set_nodes(model.graph, kept)
    return fold_constants(model) or some


def _traced(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]],
            names: Collection[str]) -> dict[str, Shape]:
    """Return the shapes of tensors in a run on zeros; none if the network cannot be run here."""
    traced = onnx.ModelProto()
    traced.CopyFrom(model)
    graph = Graph(traced)
    outputs = {graph.fresh(f'{name}_shape'): name for name in names}
    del traced.graph.output[:]
    for output, name in outputs.items():
        traced.graph.node.append(onnx.helper.make_node('Shape', [name], [output]))
        traced.graph.output.append(onnx.helper.make_tensor_value_info(
            output, onnx.TensorProto.INT64, [None]))
    try:
        import_onnxruntime()
        session = Session(traced.SerializeToString())
        (shape,) = input_shapes.values()
        found = session.infer(np.zeros(shape, np.float32), FIRST_RUN_S)
    except Endless:
        raise
    except (InputError, ValueError):
        return {}
    session.close()
    return {name: tuple(found[output].tolist()) for output, name in outputs.items()}


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph without the data of large constants, which shapes do not depend on."""
    copy = onnx.ModelProto()
    copy.ir_version = model.ir_version
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    copy.graph.node.extend(model.graph.node)
    copy.graph.output.extend(model.graph.output)
    copy.graph.value_info.extend(model.graph.value_info)
    large = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    copy.graph.input.extend(value for value in model.graph.input if value.name not in large)
    for tensor in model.graph.initializer:
        if tensor.name in large:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(
                tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            copy.graph.initializer.append(tensor)
    return copy
