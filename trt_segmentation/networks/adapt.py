# SPDX-License-Identifier: Apache-2.0
"""
Networks as exporters write them, made into the one form that this package runs.

That form: one input, float32 (N, 3, H, W); one output, logits (N, C, h, w) or class ids. Other
types, channels that come last, heads beside the one that is wanted, and what follows the logits
are changed or left out, and each change is told. The result is compared with the file itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trt_segmentation.errors import InputError
from trt_segmentation.networks.float32 import remove_casts, to_float32
from trt_segmentation.networks.graph import (
    attribute,
    Graph,
    node_name,
    opset,
    reads,
    rename_reads,
    set_constants,
    set_nodes,
)
from trt_segmentation.networks.model import load, onnx, Shape, sizes, Tensor, tensor_of
from trt_segmentation.networks.outputs import Tail, to_logits, Undo
from trt_segmentation.networks.prepare import converted
from trt_segmentation.networks.session import FIRST_RUN_S, import_onnxruntime, Session
from trt_segmentation.networks.shapes import infer_shapes

_LAST, _FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_ANY_TYPE = ('Identity', 'Transpose', 'Reshape', 'Slice', 'Gather', 'Squeeze', 'Unsqueeze',
             'Flatten')
_TOLERANCE = 1e-3  # of the largest value; half precision is coarser
_HALF_TOLERANCE = 0.03
_WITH_WEIGHTS = ('Conv', 'ConvTranspose', 'Gemm', 'MatMul')
_OLDEST = 7  # opset; older operators work otherwise


@dataclass
class Adapted:
    """
    A network in the form that this package runs.

    input, output: its tensors now; the output with the shape it has at the given size
    ids: whether the output is class ids
    whole: the input takes pixels 0..255 as they are: the file's own takes integers
    changes: what was done, in words; empty if the file is as it should be
    feed: the steps from its input to the file's; undo: those from its output to the file's
    half: the file's own arithmetic is coarser
    """

    model: onnx.ModelProto
    input: Tensor
    output: Tensor
    ids: bool
    whole: bool
    changes: list[str] = field(default_factory=list)
    feed: list[Undo] = field(default_factory=list)
    undo: list[Undo] = field(default_factory=list)
    half: bool = False


def adapt(model: onnx.ModelProto, source: Tensor, target: Tensor, size: tuple[int, int], *,
          kind: str | None = None, classes: int | None = None) -> Adapted:
    """
    Return a network made into the form that this package runs.

    :param model: as `model.load` returned it; it is not changed
    :param source, target: the input that takes the image, and the output that is wanted
    :param size: (height, width) of the input
    :param kind: what the output is, if its author says so: 'logits', 'probabilities' or
        'class_ids'
    :param classes: how many labels there are, if that is known
    :raises InputError: for an input that no image can be given to
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # what changes here would contradict it
    changes: list[str] = []
    feed: list[Undo] = []
    if others := [value.name for value in copy.graph.output if value.name != target.name]:
        _keep_outputs(copy, [target.name])
        changes.append(f'outputs that are not wanted are left out: {", ".join(others)}')
    copy, note = _convert_opset(copy)
    changes += note
    half = to_float32(copy)
    if half:
        changes.append('half or double precision is made float32')
    _check_dependence(copy, source, target)
    whole = source.dtype.startswith(('uint', 'int'))
    if whole:
        _take_floats(copy, source, changes)
        feed.append(lambda tensor: tensor.astype(source.dtype))
    elif source.dtype != 'float32':
        feed.append(lambda tensor: tensor.astype(source.dtype))
    if has_channels_last(source.shape):
        _put_channels_first(copy, source.name, size)
        changes.append(f'input {source.name!r} has its channels last: it takes them first now')
        feed.append(lambda tensor: tensor.transpose(_LAST))
    shapes = {source.name: (1, 3, *size)}
    tail = to_logits(copy, target.name, shapes, kind=kind, classes=classes)
    if tail.tensor != target.name:
        del copy.graph.output[:]
        copy.graph.output.append(onnx.helper.make_tensor_value_info(
            tail.tensor, onnx.TensorProto.INT32 if tail.ids else onnx.TensorProto.FLOAT, None))
        _keep_outputs(copy, [tail.tensor])
        _check_dependence(copy, source, target)
    return _finished(copy, source, tail, shapes, changes + tail.changes, feed, half, whole)


def check_weights(model: onnx.ModelProto) -> None:
    """Raise InputError if a weight of a layer holds nan or infinity: every mask would be wrong."""
    graph = Graph(model)
    for node in graph.nodes:
        for name in node.input[1:] if node.op_type in _WITH_WEIGHTS else ():
            if name in graph.constants and not np.isfinite(graph.array(name)).all():
                raise InputError(f'weight {name!r} of layer {node_name(node)!r} holds nan or '
                                 'infinity; expected finite numbers: was the training diverging? '
                                 'Export another checkpoint')


def _check_dependence(model: onnx.ModelProto, source: Tensor, target: Tensor) -> None:
    """Raise InputError if what makes the output does not read the image any more."""
    if source.name not in Graph(model).inputs:
        raise InputError(f'output {target.name!r} does not depend on input {source.name!r}; '
                         'expected the masks of the image')


def check(adapted: Adapted, file: Path, mean: tuple[float, ...], scale: tuple[float, ...],
          size: tuple[int, int], target: str) -> None:
    """
    Run a network and its file on the same random pixels and compare what they give.

    :param file: the network as it was
    :param mean, scale: of the preprocessing, so that values are as they will be
    :param target: the output of the file that was wanted
    :raises InputError: if they differ, or the network cannot be run
    """
    pixels = np.random.default_rng(0).integers(0, 256, (3, -(-size[0] // 8), -(-size[1] // 8)))
    pixels = pixels.repeat(8, 1).repeat(8, 2)[:, :size[0], :size[1]]
    tensor = ((pixels - np.reshape(mean, (3, 1, 1))) * np.reshape(scale, (3, 1, 1)))
    tensor = np.ascontiguousarray(tensor[None], np.float32)
    session = Session(adapted.model.SerializeToString())
    found = session.infer(tensor, FIRST_RUN_S)[adapted.output.name]
    session.close()
    given = tensor
    for step in adapted.feed:
        given = step(given)
    try:
        session = _session(file)
    except InputError:
        if not adapted.half:
            raise
        adapted.changes.append('ONNX Runtime runs no network of the precision that it had, so '
                               'the two were not compared: look at the preview')
        return
    given = np.ascontiguousarray(given)
    with closing(session):
        expected = session.infer(given, FIRST_RUN_S)[target]
        if not np.isfinite(expected).all():
            raise InputError(
                f'{file}: its output {target!r} holds nan or infinity for random pixels; '
                'expected finite numbers: is a weight broken (a negative variance), or was the '
                'training diverging?')
        for step in adapted.undo:
            found = step(found)
        tolerance = _HALF_TOLERANCE if adapted.half else _TOLERANCE
        if _equal(found.ravel(), expected.ravel(), tolerance):
            return
        if not _equal(session.infer(given, FIRST_RUN_S)[target], expected, tolerance):
            raise InputError(
                f'{file}: its output {target!r} differs each time it is run on the same pixels; '
                'export the network in evaluation mode')
        raise InputError(
            f'{file}: made ready for this package ({"; ".join(adapted.changes)}) it gives '
            f'something else than before for output {target!r}; expected the same: name what the '
            'output is with --kind, or export it as float32 logits (N, C, h, w)')


def _session(file: Path) -> Session:
    """Open a network's own file; ONNX Runtime looks for a branch's weights in another place."""
    try:
        return Session(file)
    except InputError:
        return Session(load(file).SerializeToString())


def try_out(adapted: Adapted, size: tuple[int, int]) -> None:
    """Run a network once; raises InputError if it cannot be run, as some sizes cannot."""
    session = Session(adapted.model.SerializeToString())
    session.infer(np.zeros((1, 3, *size), np.float32), FIRST_RUN_S)
    session.close()


def _equal(found: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    """Tell whether values are the same, up to rounding and what may tie."""
    if found.shape != expected.shape:
        return False
    if found.dtype.kind != 'f':  # classes, of which two may be equally good
        return bool((found != expected).mean() <= tolerance)
    expected = expected.astype(np.float64)
    bound = tolerance * max(float(np.abs(expected).max(initial=0)), 1e-6)
    return bool(np.isfinite(found).all() and (np.abs(found - expected) <= bound).all())


def has_channels_last(shape: Shape) -> bool:
    """Tell whether an input is (N, H, W, 3)."""
    return len(shape) == 4 and shape[3] == 3 and shape[1] != 3


def _finished(model: onnx.ModelProto, source: Tensor, tail: Tail,
              shapes: Mapping[str, tuple[int, ...]], changes: list[str], feed: list[Undo],
              half: bool, whole: bool) -> Adapted:
    """Return the result, with the output's type and shape in it."""
    graph = Graph(model)
    shape = infer_shapes(model, shapes, [tail.tensor]).get(tail.tensor, (None,) * 4)
    value = next(value for value in model.graph.output if value.name == tail.tensor)
    batch = tensor_of(graph.inputs[source.name]).shape[0]
    output = Tensor(value.name, tensor_of(value).dtype, (batch, *shape[1:]))
    if changes:
        value.type.tensor_type.CopyFrom(onnx.helper.make_tensor_type_proto(
            value.type.tensor_type.elem_type, [
                f'axis_{i}' if size is None else size
                for i, size in enumerate(output.shape)]).tensor_type)
        onnx.checker.check_model(model)
    return Adapted(model, tensor_of(graph.inputs[source.name]), output, tail.ids, whole, changes,
                   feed, tail.undo, half)


def _convert_opset(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return the network in an opset whose tensors keep their names when it is quantized."""
    version = opset(model)
    if version < _OLDEST:
        raise InputError(f'the network has opset {version}; expected {_OLDEST} or later: export '
                         'it anew')
    if version < 13:
        try:
            converted(model)
        except InputError:
            return converted(model, keep_names=False), [f'opset {version} is converted']
    return model, []


def _keep_outputs(model: onnx.ModelProto, names: list[str]) -> None:
    """Leave out what the named outputs do not need, in place."""
    graph = Graph(model)
    needed, kept = set(names), []
    for node in reversed(graph.nodes):
        if needed.intersection(node.output):
            needed.update(reads(node))
            kept.append(node)
    set_nodes(model.graph, kept[::-1])
    set_constants(model.graph, [tensor for tensor in model.graph.initializer
                                if tensor.name in needed])
    for values in (model.graph.output, model.graph.input):
        for value in list(values):
            if value.name not in needed:
                values.remove(value)


def _take_floats(model: onnx.ModelProto, source: Tensor, changes: list[str]) -> None:
    """Let an input that takes integers take floats, which are cast where nothing else will do."""
    graph = Graph(model)
    graph.inputs[source.name].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    if _is_cast_first(graph, source.name):
        remove_casts(model)
        changes.append(f'input {source.name!r} is {source.dtype}: it takes float32 now')
        return
    inner = graph.fresh(f'{source.name}_{source.dtype}')
    rename_reads(graph.nodes, {source.name: inner})
    dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(source.dtype))
    set_nodes(model.graph, [onnx.helper.make_node(
        'Cast', [source.name], [inner], name=f'{inner}_cast', to=dtype), *graph.nodes])
    changes.append(f'input {source.name!r} is {source.dtype}: float32 is cast to it')


def _is_cast_first(graph: Graph, name: str) -> bool:
    """Tell whether all that is done with a tensor before a Cast is to change its form."""
    return name not in graph.outputs and all(
        node.op_type == 'Cast' or (node.op_type in _ANY_TYPE and node.input[0] == name
                                   and _is_cast_first(graph, node.output[0]))
        for node in graph.readers[name])


def _put_channels_first(model: onnx.ModelProto, name: str, size: tuple[int, int]) -> None:
    """Let an input (N, H, W, 3) take (N, 3, H, W), by a Transpose where none is left out."""
    graph = Graph(model)
    kind = graph.inputs[name].type.tensor_type
    batch = sizes(kind)[0]
    kind.CopyFrom(onnx.helper.make_tensor_type_proto(
        kind.elem_type, ['N' if batch is None else batch, 3, *size]).tensor_type)
    inner = graph.fresh(f'{name}_channels_last')
    rename_reads(graph.nodes, {name: inner})
    kept = []
    for node in graph.nodes:
        if node.op_type == 'Transpose' and node.input[0] == inner and (
                list(attribute(node, 'perm', ())) == _FIRST
                and node.output[0] not in graph.outputs):
            rename_reads(graph.nodes, {node.output[0]: name})
        else:
            kept.append(node)
    if any(inner in reads(node) for node in kept):
        kept.insert(0, onnx.helper.make_node(
            'Transpose', [name], [inner], name=f'{inner}_node', perm=_LAST))
    set_nodes(model.graph, kept)


def can_run() -> bool:
    """Tell whether networks can be run here."""
    try:
        import_onnxruntime()
    except InputError:
        return False
    return True
