# SPDX-License-Identifier: Apache-2.0
"""Reading an ONNX file: inputs, outputs, shapes, and the work in each node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from trt_segmentation.errors import InputError, missing_library, one_line

if TYPE_CHECKING:
    import onnx

WEIGHTED_OPS = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')
"""The operators that do the work of a network: each multiplies by a weight."""


@dataclass(frozen=True)
class Tensor:
    """Name, NumPy dtype name and shape of a graph input or output; None is a free dimension."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        """Return for instance `float32 [N, 3, 512, 1024]`."""
        dims = ['?' if dim is None else str(dim) for dim in self.shape]
        return f'{self.dtype} [{", ".join(dims)}]'


@dataclass(frozen=True)
class Description:
    """
    The inputs and outputs of the graph in `path`, by name.

    has_weights: whether the file has all its weights in it
    """

    path: Path
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    has_weights: bool


def import_onnx():
    """Return the `onnx` module; raises InputError with what to install where it is missing."""
    try:
        import onnx
        import onnx.external_data_helper
        import onnx.numpy_helper
        import onnx.shape_inference
    except ImportError:
        raise missing_library('onnx', 'Reading a network', 'cpu') from None
    return onnx


def load(path: str | os.PathLike, *, weights: bool = True) -> onnx.ModelProto:
    """
    Load and check an ONNX file.

    :param weights: also read weights that are stored in files beside it
    :raises InputError: if it cannot be read, or is not a valid ONNX model
    """
    onnx = import_onnx()
    path = Path(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror}') from None
    except Exception as error:  # protobuf's DecodeError, by whichever implementation is installed
        raise InputError(f'{path}: not an ONNX file: {one_line(error)}') from None
    if not model.graph.node or not model.graph.output:
        raise InputError(f'{path}: not an ONNX file, or an empty one: it has no nodes')
    if weights:
        try:
            onnx.load_external_data_for_model(model, str(path.parent))
        except Exception as error:
            raise InputError(
                f'{path}: its weights are in another file that cannot be read: {one_line(error)}'
            ) from None
        try:
            onnx.checker.check_model(model)
            _check_content(model.graph)
        except Exception as error:
            raise InputError(f'{path}: not a valid ONNX model: {one_line(error)}') from None
    return model


def _check_content(graph: onnx.GraphProto) -> None:
    """Raise ValueError for what ONNX's checker lets pass: broken names and broken weights."""
    onnx = import_onnx()
    for node in graph.node:  # texts are decoded when they are read
        ''.join((node.name, *node.input, *node.output))
    for tensor in graph.initializer:
        try:
            onnx.numpy_helper.to_array(tensor)
        except Exception:
            raise ValueError(f'weight {tensor.name!r} has another type or size than it says'
                             ) from None


def describe(path: str | os.PathLike) -> Description:
    """
    Return the inputs and outputs of an ONNX file.

    :raises InputError: if it cannot be read
    """
    onnx = import_onnx()
    model = load(path, weights=False)
    constants = {initializer.name for initializer in model.graph.initializer}
    return Description(
        Path(path),
        {value.name: _tensor(value) for value in model.graph.input
         if value.name not in constants},  # up to IR version 3, weights are inputs too
        {value.name: _tensor(value) for value in model.graph.output},
        not any(onnx.external_data_helper.uses_external_data(tensor)
                for tensor in model.graph.initializer),
    )


def infer_shapes(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]
                 ) -> dict[str, tuple[int | None, ...]]:
    """
    Return the shape of every tensor that shape inference can tell.

    :param model: a model with its weights
    :param input_shapes: the shapes to run the graph with, by input; they replace free dimensions
    """
    onnx = import_onnx()
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name in input_shapes:
            dims = value.type.tensor_type.shape.dim
            for dim, size in zip(dims, input_shapes[value.name]):
                dim.Clear()
                dim.dim_value = size
    for value in fixed.graph.output:  # a stale shape here would contradict the inferred one
        value.type.tensor_type.ClearField('shape')
    del fixed.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes = {value.name: _tensor(value).shape
              for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    shapes.update((tensor.name, tuple(tensor.dims)) for tensor in inferred.initializer)
    return shapes


def multiply_accumulates(node: onnx.NodeProto,
                         shapes: Mapping[str, tuple[int | None, ...]]) -> int:
    """
    Return the multiply-accumulates of one node for the given shapes; 0 if it has no weight.

    Conv: output elements x (input channels / groups) x kernel area. ConvTranspose: input
    elements x (output channels / groups) x kernel area. Gemm and MatMul: output elements x the
    length of the summed axis. A shape that is not known counts as 0.
    """
    if node.op_type not in WEIGHTED_OPS:
        return 0
    weight = shapes.get(node.input[1], ())
    data = shapes.get(node.input[0], ())
    output = shapes.get(node.output[0], ())
    if None in (*weight, *data, *output) or not (weight and data and output):
        return 0
    if node.op_type == 'Conv':
        return math.prod(output) * math.prod(weight[1:])
    if node.op_type == 'ConvTranspose':
        return math.prod(data) * math.prod(weight[1:])
    transposed = any(a.name == 'transA' and a.i for a in node.attribute)
    return math.prod(output) * data[-2 if transposed else -1]


def node_name(node: onnx.NodeProto) -> str:
    """Return the node's name, or that of its first output where it has none."""
    return node.name or node.output[0]


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    """Return name, dtype and shape of a graph value."""
    onnx = import_onnx()
    tensor_type = value.type.tensor_type
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type).name
    except (KeyError, ValueError):
        dtype = f'type {tensor_type.elem_type}'
    shape = tuple(dim.dim_value if dim.HasField('dim_value') and dim.dim_value > 0 else None
                  for dim in tensor_type.shape.dim)
    return Tensor(value.name, dtype, shape)
