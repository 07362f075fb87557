# SPDX-License-Identifier: Apache-2.0
"""
Rounding weights so that a layer's output changes least, not each weight.

A weight that is rounded up can be made good by another that is rounded down, as far as what they
are multiplied with goes together. With C the covariance of a layer's inputs, the squared error of
an output is d C d' for the change d of its weights; coordinate descent over the codes, from the
nearest ones on, lowers it step by step (QuantEase, Behdin et al. 2023), and the bias takes what
changed on the average. The largest weight of a channel keeps its code: so the scale that any
runtime gives the rounded weights is the one they were rounded for, and their codes are these.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from trt_segmentation.networks.center import add_to_bias
from trt_segmentation.networks.graph import attribute, drop_unread_constants, Graph, node_name
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.prepare import prepare
from trt_segmentation.networks.quantize import quantize_weight

_MAXIMUM = 127
_SWEEPS = 8
# Of the mean variance: what few images show of rare inputs is not taken at its word.
_DAMPING = 0.01


class Inputs(NamedTuple):
    """
    What is known of a convolution's inputs: of a window of them, group by group.

    mean: float64 (groups, n), with n = channels / groups x kernel height x kernel width
    covariance: float64 (groups, n, n), or None where that would be too large
    """

    mean: np.ndarray
    covariance: np.ndarray | None


def with_rounded_weights(model: onnx.ModelProto, inputs: Mapping[str, Inputs],
                         exclude: Collection[str] = ()) -> onnx.ModelProto:
    """
    Return the network, prepared, with the weights of convolutions on INT8's grid.

    :param inputs: by the convolution's name; those without stay as they are
    :param exclude: names of nodes that stay in float
    """
    result = prepare(model)
    graph = Graph(result)
    for node in graph.nodes:
        known = inputs.get(node_name(node))
        if known is None or node.op_type != 'Conv' or node_name(node) in exclude or not all(
                name in graph.constants for name in node.input[1:]):
            continue
        weight = graph.array(node.input[1])
        groups = attribute(node, 'group', 1)
        if weight.dtype != np.float32 or not np.isfinite(weight).all():
            continue
        rounded = round_weight(weight, known, groups)
        change = _by_group(rounded, groups) - _by_group(weight, groups)
        node.input[1] = graph.add_constant(f'{node.input[1]}_rounded', rounded)
        add_to_bias(graph, node, -(change * known.mean[:, None, :]).sum(axis=2).ravel())
    drop_unread_constants(result.graph)
    return result


def round_weight(weight: np.ndarray, inputs: Inputs, groups: int = 1) -> np.ndarray:
    """
    Return a convolution's weight on the grid of INT8, near to it in what it makes of its inputs.

    :param weight: float32 (outputs, channels / groups, height, width), finite
    :returns: float32 of the same shape: `quantize_weight` gives it the scales that it has for
        `weight`, and changes nothing
    """
    codes, scale = quantize_weight(weight, True, _MAXIMUM)
    step = scale.reshape(groups, -1).astype(np.float64)
    wanted, found = _by_group(weight, groups), _by_group(codes, groups)
    if inputs.covariance is not None:
        matrix = inputs.covariance.copy()
        variance = np.einsum('gii->gi', matrix)
        variance += _DAMPING * variance.mean(axis=1, keepdims=True) + np.finfo(np.float32).tiny
        largest = np.abs(found) == _MAXIMUM
        gradient = (found * step[:, :, None] - wanted) @ matrix
        for _ in range(_SWEEPS):
            changed = False
            for i in range(wanted.shape[2]):
                best = found[:, :, i] - gradient[:, :, i] / (variance[:, i, None] * step)
                best = np.rint(best).clip(-_MAXIMUM, _MAXIMUM)
                best = np.where(largest[:, :, i], found[:, :, i], best)
                moved = (best - found[:, :, i]) * step
                if moved.any():
                    changed = True
                    found[:, :, i] = best
                    gradient += moved[:, :, None] * matrix[:, i, None, :]
            if not changed:
                break
    rounded: np.ndarray = (found * step[:, :, None]).reshape(weight.shape).astype(np.float32)
    return rounded


def _by_group(weight: np.ndarray, groups: int) -> np.ndarray:
    """Return a weight as float64 (groups, outputs / groups, n)."""
    return weight.astype(np.float64).reshape(groups, weight.shape[0] // groups, -1)
