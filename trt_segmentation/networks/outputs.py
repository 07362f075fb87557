# SPDX-License-Identifier: Apache-2.0
"""
Making logits of what a network gives: class ids, probabilities, one channel, channels last.

Exporters write what the training code returned. Masks come from any of it; how sure the network
is, and how far INT8 is from float before a pixel changes, comes from logits alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from trt_segmentation.networks.graph import attribute, Graph, node_name, opset
from trt_segmentation.networks.model import onnx, Shape
from trt_segmentation.networks.shapes import infer_shapes

Undo = Callable[[np.ndarray], np.ndarray]

_TO_LAST, _TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
# What may stand between a choice of classes and the output, and changes form only.
_FORMS = ('Cast', 'Identity', 'Reshape', 'Squeeze', 'Unsqueeze', 'Flatten')
_SMALLEST = 1e-7  # of a probability; half precision has a number for it


@dataclass
class Tail:
    """
    The end of a network, cut back and added to.

    tensor: what is the output now
    ids: whether it is class ids, not logits
    undo: the steps from it to the file's own values, but for the form of class ids
    changes: what was done, in words
    """

    model: onnx.ModelProto
    tensor: str
    ids: bool = False
    undo: list[Undo] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def node(self, op: str, inputs: list[str], name: str, **attributes: object) -> str:
        """Add a node; return the name of its output."""
        output = Graph(self.model).fresh(name)
        self.model.graph.node.append(onnx.helper.make_node(
            op, inputs, [output], name=f'{output}_node', **attributes))
        return output

    def constant(self, name: str, value: np.ndarray | np.generic) -> str:
        """Add a constant; return its name."""
        return Graph(self.model).add_constant(name, value)


def to_logits(model: onnx.ModelProto, tensor: str, input_shapes: Mapping[str, tuple[int, ...]],
              *, kind: str | None, classes: int | None) -> Tail:
    """
    Return what is to be the output of a network: logits (N, C, h, w) if they can be had.

    :param model: it is changed; `tensor` is one of its outputs
    :param input_shapes: the shapes to run the network with
    :param kind: 'logits', 'probabilities' or 'class_ids' if the author says so; else None
    :param classes: how many labels there are, if that is known
    """
    tail = Tail(model, tensor)
    size = next(iter(input_shapes.values()))[2:]
    floating = any(value.name == tensor and value.type.tensor_type.elem_type
                   == onnx.TensorProto.FLOAT for value in model.graph.output)
    axis = None if kind == 'class_ids' else _cut_choice(tail)
    threshold = axis is None and not floating and kind != 'class_ids' and _cut_threshold(tail)
    shape = _shape(tail, input_shapes)
    if axis is None and not threshold and (not floating or kind == 'class_ids'):
        if len(shape) == 4 and shape[3] == 1 and shape[1] != 1:
            _move_channels(tail)
        if floating:
            tail.tensor = tail.node('Cast', [tail.tensor], 'class_ids', to=onnx.TensorProto.INT32)
            tail.changes.append('class ids are made integers')
        tail.ids = True
        return tail
    if len(shape) == 3 and kind in ('logits', 'probabilities'):
        axes = tail.constant('channel_axis', np.array([1], np.int64))
        tail.tensor = (tail.node('Unsqueeze', [tail.tensor, axes], 'one_channel')
                       if opset(model) >= 13 else
                       tail.node('Unsqueeze', [tail.tensor], 'one_channel', axes=[1]))
        shape = (shape[0], 1, *shape[1:])
    last = axis == 3 if axis is not None else len(shape) == 4 and has_channels_last(
        shape, size, classes)
    moved = last and _undo_transpose(tail)
    cut = threshold or _cut_probabilities(tail, 3 if last and not moved else 1,
                                          chosen=axis is not None)
    if last and not moved:
        _move_channels(tail)
    if last:
        shape = (shape[0], shape[3], *shape[1:3])
    probabilities = not cut and (kind == 'probabilities' or _makes_probabilities(tail))
    if len(shape) == 4 and shape[1] == 1:
        _split_channel(tail, probabilities)
    elif probabilities and len(shape) == 4:
        before = tail.tensor
        low = tail.constant('smallest', np.float32(_SMALLEST))
        tail.tensor = tail.node('Log', [tail.node('Max', [before, low], 'bounded')], 'logits')
        tail.undo.insert(0, np.exp)
        tail.changes.append(f'{before!r} holds probabilities: their logarithm is the logits')
    return tail


def _shape(tail: Tail, input_shapes: Mapping[str, tuple[int, ...]]) -> Shape:
    """Return the shape of what is the output now; () if nothing tells it."""
    return infer_shapes(tail.model, input_shapes, [tail.tensor]).get(tail.tensor, ())


def has_channels_last(shape: Shape, size: tuple[int, ...], classes: int | None) -> bool:
    """
    Tell whether a shape is (N, h, w, C) and not (N, C, h, w).

    :param size: height and width of the input, to which those of the output are in proportion
    :param classes: the number of labels, which decides where the proportions do not
    """
    if None in shape:
        return False
    first, last = _is_in_proportion(shape[2:], size), _is_in_proportion(shape[1:3], size)
    if first != last:
        return last
    return first and classes not in (None, shape[1]) and classes == shape[3]


def _is_in_proportion(found: Shape, size: tuple[int, ...]) -> bool:
    """Tell whether height and width are the input's, by one whole stride or by rounding."""
    height, width = (side or 1 for side in found)
    return abs(size[0] / height - size[1] / width) <= 0.1 * size[0] / height


def _cut_choice(tail: Tail) -> int | None:
    """Cut a network off before the ArgMax that its output comes from; return its axis, 1 or 3."""
    graph = Graph(tail.model)
    node = graph.producer.get(tail.tensor)
    while node is not None and node.op_type in _FORMS:
        node = graph.producer.get(node.input[0])
    if node is None or node.op_type != 'ArgMax' or attribute(node, 'select_last_index'):
        return None
    axis = {1: 1, 3: 3, -1: 3}.get(attribute(node, 'axis', 0))
    if axis is None:
        return None
    tail.changes.append(f'{tail.tensor!r} holds class ids: the ArgMax {node_name(node)!r} is left '
                        'out, so that logits are the output')
    tail.tensor = node.input[0]
    tail.undo.insert(0, lambda logits: logits.argmax(axis))
    return axis


def _cut_threshold(tail: Tail) -> bool:
    """Cut a network off before the comparison with a number that its output comes from."""
    graph = Graph(tail.model)
    node = graph.producer.get(tail.tensor)
    while node is not None and node.op_type in _FORMS:
        node = graph.producer.get(node.input[0])
    if node is None or node.op_type not in ('Greater', 'GreaterOrEqual'):
        return False
    limit = _scalar(graph, node.input[1])
    if limit is None:
        return False
    score = graph.producer.get(node.input[0])
    tail.changes.append(f'{tail.tensor!r} holds what is above {limit:g}: the {node.op_type} '
                        f'{node_name(node)!r} is left out')
    tail.tensor = node.input[0]
    if score is not None and score.op_type == 'Sigmoid' and 0 < limit < 1:
        tail.tensor, limit = score.input[0], float(np.log(limit / (1 - limit)))
    tail.undo.insert(0, lambda score: score > 0)
    if limit:
        tail.tensor = tail.node('Sub', [tail.tensor, tail.constant(
            'threshold', np.float32(limit))], 'above_threshold')
    return True


def _scalar(graph: Graph, name: str) -> float | None:
    """Return the value of a constant with one element."""
    maker = graph.producer.get(name)
    if name in graph.constants:
        value = graph.array(name)
    elif maker is not None and maker.op_type == 'Constant' and attribute(maker, 'value'):
        value = onnx.numpy_helper.to_array(attribute(maker, 'value'))
    else:
        return None
    return float(value.item()) if value.size == 1 else None


def _cut_probabilities(tail: Tail, axis: int, *, chosen: bool) -> bool:
    """
    Cut a network off before what makes probabilities of logits along the classes' axis.

    :param chosen: an ArgMax was left out before, which gives the same without them
    :returns: whether there was any
    """
    graph = Graph(tail.model)
    while (node := graph.producer.get(tail.tensor)) is not None and node.op_type == 'Identity':
        tail.tensor = node.input[0]
    if node is None:
        return False
    before = node.input[0]
    inner = graph.producer.get(before)
    if node.op_type == 'Transpose' and inner is not None and inner.op_type == 'Softmax':
        # As PyTorch writes a Softmax by channel for opsets below 13: between two Transposes.
        outer = graph.producer.get(inner.input[0])
        there, back = (list(attribute(each, 'perm', ())) if each is not None else []
                       for each in (outer, node))
        if outer is None or outer.op_type != 'Transpose' or len(there) != 4 or (
                [there[i] for i in back] != [0, 1, 2, 3]
                or there[attribute(inner, 'axis', -1)] != axis):
            return False
        axes: tuple[int, ...] = (axis,)
        node, before = inner, outer.input[0]
    elif node.op_type in ('Softmax', 'LogSoftmax'):
        old = opset(tail.model) < 13  # of those, one over all axes from the named one on
        first = attribute(node, 'axis', 1 if old else -1) % 4
        if first != axis:
            return False
        axes = tuple(range(first, 4)) if old else (first,)
    elif node.op_type != 'Sigmoid':
        return False
    tail.tensor = before
    tail.undo.insert(0, _identity if chosen else _sigmoid if node.op_type == 'Sigmoid'
                     else _softmax(axes, node.op_type == 'LogSoftmax'))
    tail.changes.append(f'the {node.op_type} {node_name(node)!r} is left out, so that the output '
                        'is logits')
    return True


def _makes_probabilities(tail: Tail) -> bool:
    """Tell whether it comes out of a Softmax by class or a Sigmoid that could not be left out."""
    graph = Graph(tail.model)
    node, axis = graph.producer.get(tail.tensor), 1
    while node is not None and node.op_type in (*_FORMS, 'Transpose', 'Resize', 'Upsample', 'Clip',
                                                'Slice'):
        turned = attribute(node, 'perm', ())
        axis = turned[axis] if len(turned) == 4 else axis
        node = graph.producer.get(node.input[0])
    if node is None or node.op_type != 'Softmax':
        return node is not None and node.op_type in ('Sigmoid', 'HardSigmoid')
    first: int = attribute(node, 'axis', -1 if opset(tail.model) >= 13 else 1)
    return first % 4 == axis


def _undo_transpose(tail: Tail) -> bool:
    """Leave out a Transpose that made (N, h, w, C) of (N, C, h, w) at the end; tell if it did."""
    node = Graph(tail.model).producer.get(tail.tensor)
    if node is None or node.op_type != 'Transpose' or (
            tuple(attribute(node, 'perm', ())) != _TO_LAST):
        return False
    tail.tensor = node.input[0]
    tail.changes.append(f'channels come first: the Transpose {node_name(node)!r} is left out')
    tail.undo.insert(0, lambda values: values.transpose(_TO_LAST))
    return True


def _move_channels(tail: Tail) -> None:
    """Make (N, C, h, w) of (N, h, w, C): without the Transpose that made that, or with one."""
    if _undo_transpose(tail):
        return
    before = tail.tensor
    tail.tensor = tail.node('Transpose', [before], 'channels_first', perm=list(_TO_FIRST))
    tail.changes.append(f'{before!r} has its channels last: they are put first')
    tail.undo.insert(0, lambda values: values.transpose(_TO_LAST))


def _split_channel(tail: Tail, probabilities: bool) -> None:
    """Make two channels of one, background and object: what it says is their difference."""
    before = tail.tensor
    if probabilities:
        one = tail.constant('certain', np.float32(1))
        low = tail.constant('smallest', np.float32(_SMALLEST))
        rest = tail.node('Sub', [one, before], 'background')
        both = tail.node('Concat', [rest, before], 'both', axis=1)
        tail.tensor = tail.node('Log', [tail.node('Max', [both, low], 'bounded')], 'logits')
        tail.undo.insert(0, lambda logits: np.exp(logits[:, 1:]))
    else:
        halves = tail.constant('halves', np.array([-.5, .5], np.float32).reshape(1, 2, 1, 1))
        tail.tensor = tail.node('Mul', [before, halves], 'logits')
        tail.undo.insert(0, lambda logits: logits[:, 1:] - logits[:, :1])
    tail.changes.append(f'{before!r} has one channel: two are made of it, background and object')


def _identity(values: np.ndarray) -> np.ndarray:
    return values


def _sigmoid(values: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-values.astype(np.float64)))
    return result


def _softmax(axes: tuple[int, ...], logarithm: bool) -> Undo:
    def undo(logits: np.ndarray) -> np.ndarray:
        shifted = logits.astype(np.float64) - logits.max(axes, keepdims=True)
        result = shifted - np.log(np.exp(shifted).sum(axes, keepdims=True))
        values: np.ndarray = result if logarithm else np.exp(result)
        return values
    return undo
