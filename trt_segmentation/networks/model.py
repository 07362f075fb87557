# SPDX-License-Identifier: Apache-2.0
"""Reading an ONNX file: its inputs and outputs, its nodes and weights, checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
import os
from pathlib import Path
from typing import TYPE_CHECKING

from trt_segmentation.errors import InputError, one_line
from trt_segmentation.system import files
from trt_segmentation.system.libraries import Library

if TYPE_CHECKING:
    import onnx as onnx
    from onnx import inliner
    import onnx.checker
    import onnx.external_data_helper
    import onnx.helper
    import onnx.numpy_helper
    import onnx.shape_inference
    import onnx.version_converter
else:
    onnx = Library('onnx', 'Reading a network', 'cpu', (
        'external_data_helper', 'numpy_helper', 'shape_inference', 'version_converter'))
    inliner = Library('onnx.inliner', 'Reading a network with functions of its own', 'cpu')


_WEIGHTS_ONLY = 4  # the first IR version whose weights need not be inputs too

Shape = tuple[int | None, ...]
"""Sizes by axis; None is one that is free, or not known."""


@dataclass(frozen=True)
class Tensor:
    """Name, NumPy dtype name and shape of a graph input or output."""

    name: str
    dtype: str
    shape: Shape

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


def load(path: str | os.PathLike[str], *, weights: bool = True) -> onnx.ModelProto:
    """
    Load and check an ONNX file; functions of its own are put where they are called.

    Weights that it lists among its inputs too, as files of IR version 3 had to, are weights only.

    :param weights: also read weights that are stored in files beside it
    :raises InputError: if it cannot be read, or is not a valid ONNX model
    """
    path, read = Path(path), onnx.load  # a missing library is no fault of the file
    try:
        model = read(path, load_external_data=False)
    except OSError as error:
        raise InputError(
            f'{path}: cannot be read: {error.strerror}{files.nearest_path(path)}') from None
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
        if model.functions:  # what is in one is found nowhere else: layers, tensors, weights
            inline = inliner.inline_local_functions
            try:
                model = inline(model)
            except Exception as error:
                raise InputError(f'{path}: its functions cannot be put where they are called: '
                                 f'{one_line(error)}') from None
    given = {tensor.name for tensor in model.graph.initializer}
    for value in list(model.graph.input):
        if value.name in given:
            model.graph.input.remove(value)
    model.ir_version = max(model.ir_version, _WEIGHTS_ONLY)
    return model


def _check_content(graph: onnx.GraphProto) -> None:
    """Raise ValueError for what ONNX's checker lets pass: broken names and broken weights."""
    for node in graph.node:  # texts are decoded when they are read
        ''.join((node.name, *node.input, *node.output))
    for tensor in tensors(graph):
        try:
            onnx.numpy_helper.to_array(tensor)
        except Exception:
            raise ValueError(f'weight {tensor.name!r} has another type or size than it says'
                             ) from None


def describe(path: str | os.PathLike[str]) -> Description:
    """
    Return the inputs and outputs of an ONNX file.

    :raises InputError: if it cannot be read
    """
    model = load(path, weights=False)
    constants = {initializer.name for initializer in model.graph.initializer}
    return Description(
        Path(path),
        {value.name: tensor_of(value) for value in model.graph.input
         if value.name not in constants},  # up to IR version 3, weights are inputs too
        {value.name: tensor_of(value) for value in model.graph.output},
        not any(onnx.external_data_helper.uses_external_data(tensor)
                for tensor in tensors(model.graph)),
    )


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield all constants: weights, those in attributes of nodes, those in branches and loops."""
    yield from graph.initializer
    for node in graph.node:
        for entry in node.attribute:
            if entry.HasField('t'):
                yield entry.t
            yield from entry.tensors
            for body in (*([entry.g] if entry.HasField('g') else []), *entry.graphs):
                yield from tensors(body)


def sizes(kind: onnx.TypeProto.Tensor) -> Shape:
    """Return the shape of a tensor's type."""
    return tuple(dim.dim_value if dim.HasField('dim_value') and dim.dim_value > 0 else None
                 for dim in kind.shape.dim)


def tensor_of(value: onnx.ValueInfoProto) -> Tensor:
    """Return name, dtype and shape of a graph value; of what is no tensor, its kind as dtype."""
    tensor_type = value.type.tensor_type
    kind = value.type.WhichOneof('value')
    if kind not in (None, 'tensor_type'):
        return Tensor(value.name, kind.removesuffix('_type'), ())
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type).name
    except (KeyError, ValueError):
        dtype = f'type {tensor_type.elem_type}'
    return Tensor(value.name, dtype, sizes(tensor_type))
