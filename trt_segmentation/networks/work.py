# SPDX-License-Identifier: Apache-2.0
"""The work in a network: multiply-accumulates by node, and which of them cannot be counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math

from trt_segmentation.networks.graph import attribute, bodies
from trt_segmentation.networks.model import onnx, Shape

Sizes = tuple[int, ...]


def does_work(node: onnx.NodeProto) -> bool:
    """Tell whether a node multiplies matrices or by weights, or may do so: a foreign one may."""
    return node.op_type in (*_FORMULAS, *_UNCOUNTED) or is_foreign(node) or any(
        does_work(inner) for body in bodies(node) for inner in body.node)


def is_foreign(node: onnx.NodeProto) -> bool:
    """Tell whether a node's operator is none of ONNX's own."""
    return node.domain not in ('', 'ai.onnx', 'ai.onnx.ml')


def uncountable(node: onnx.NodeProto) -> str:
    """Return why a node's work cannot be counted whatever its shapes are, or ''."""
    if is_foreign(node):
        return f'{node.domain}.{node.op_type} is not an operator of ONNX'
    if node.op_type in _UNCOUNTED:
        return f'there is no formula for the work of {node.op_type}'
    if node.op_type not in _FORMULAS and does_work(node):
        return 'it has layers in a branch or a loop'
    return ''


def multiply_accumulates(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    """
    Return the multiply-accumulates of one node for the given shapes; 0 if it does no such work.

    None if that cannot be told: its shapes are not known, or `uncountable` has a reason.
    """
    if not does_work(node):
        return 0
    if uncountable(node):
        return None
    inputs = [_known(shapes.get(name)) if name else () for name in node.input]
    output = _known(shapes.get(node.output[0]))
    if output is None or None in inputs:
        return None
    return _FORMULAS[node.op_type](node, [shape or () for shape in inputs], output)


def _known(shape: Shape | None) -> Sizes | None:
    """Return a shape of which all sizes are known, else None."""
    if shape is None or None in shape:
        return None
    return tuple(size for size in shape if size is not None)


# Of each operator: its multiply-accumulates for the shapes of its inputs and its first output.

def _convolution(node: onnx.NodeProto, inputs: list[Sizes], output: Sizes) -> int:
    """Return output elements x (input channels / groups) x kernel area."""
    return math.prod(output) * math.prod(inputs[1][1:])


def _transposed(node: onnx.NodeProto, inputs: list[Sizes], output: Sizes) -> int:
    """Return input elements x (output channels / groups) x kernel area."""
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _product(node: onnx.NodeProto, inputs: list[Sizes], output: Sizes) -> int:
    """Return output elements x the length of the summed axis."""
    return math.prod(output) * inputs[0][-2 if attribute(node, 'transA') else -1]


def _einsum(node: onnx.NodeProto, inputs: list[Sizes], output: Sizes) -> int | None:
    """Return the product of all axes that the equation of two matrices names, `...` included."""
    if len(inputs) != 2:  # of more, it depends on the order in which they are multiplied
        return None if len(inputs) > 2 else 0
    axes: dict[str, int] = {}
    terms = attribute(node, 'equation').decode().split('->')[0].replace(' ', '').split(',')
    for term, shape in zip(terms, inputs):
        before, _, after = term.partition('...')
        axes.update(zip(before, shape))
        axes.update(zip(reversed(after), reversed(shape)))
        hidden = shape[len(before):len(shape) - len(after)] if '...' in term else ()
        for i, size in enumerate(reversed(hidden)):
            axes[f'...{i}'] = max(size, axes.get(f'...{i}', 1))
    return math.prod(axes.values())


def _attention(node: onnx.NodeProto, inputs: list[Sizes], output: Sizes) -> int | None:
    """Return those of queries x keys and of weights x values; None where keys are kept outside."""
    if any(inputs[4:6]):
        return None
    return (math.prod(inputs[0]) + math.prod(output)) * inputs[1][-2]


def _recurrent(node: onnx.NodeProto, inputs: list[Sizes], output: Sizes) -> int:
    """Return steps x batch x the weights of input and state."""
    return math.prod(inputs[0][:2]) * (math.prod(inputs[1]) + math.prod(inputs[2]))


_FORMULAS: Mapping[str, Callable[[onnx.NodeProto, list[Sizes], Sizes], int | None]] = {
    'Conv': _convolution, 'DeformConv': _convolution, 'ConvTranspose': _transposed,
    'Gemm': _product, 'MatMul': _product, 'Einsum': _einsum, 'Attention': _attention,
    'LSTM': _recurrent, 'GRU': _recurrent, 'RNN': _recurrent,
}

_UNCOUNTED = ('CausalConvWithState', 'DFT', 'LinearAttention', 'STFT')
"""What multiplies too, and has no formula above."""
