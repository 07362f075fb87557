# SPDX-License-Identifier: Apache-2.0
"""
Mean and covariance of what a convolution reads, after any number of images.

Of each image some windows are looked at, so memory and time depend on the convolution alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trt_segmentation.calibration.exact import ExactSum
from trt_segmentation.networks.graph import attribute, Graph
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.prepare import prepare
from trt_segmentation.networks.rounding import Inputs

_SAMPLES = 256  # windows of each image
_LARGEST = 1 << 17  # numbers of a covariance, above which the mean is kept alone: 1 MB
_BITS = 8  # of a sampled value, of its largest in the image


@dataclass(frozen=True)
class Window:
    """How a two-dimensional convolution reads its input; pairs are (vertical, horizontal)."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int

    @classmethod
    def of(cls, node: onnx.NodeProto, weight: onnx.TensorProto) -> Window | None:
        """Return that of a node; None where its padding depends on the image's size."""
        if len(weight.dims) != 4 or attribute(node, 'auto_pad', b'NOTSET') not in (
                b'NOTSET', b'VALID'):
            return None
        return cls(
            (weight.dims[2], weight.dims[3]), tuple(attribute(node, 'strides', (1, 1))),
            tuple(attribute(node, 'dilations', (1, 1))),
            tuple(attribute(node, 'pads', (0, 0, 0, 0))), attribute(node, 'group', 1))

    def samples(self, values: np.ndarray) -> np.ndarray:
        """
        Return some windows of one image, zeros where they reach beyond it.

        :param values: float32 (1, channels, height, width)
        :returns: float32 (groups, channels / groups x kernel height x kernel width, samples)
        """
        height, width = values.shape[2:]
        across = [(size + before + after - dilation * (kernel - 1) - 1) // stride + 1
                  for size, before, after, dilation, kernel, stride in zip(
                      (height, width), self.pads[:2], self.pads[2:], self.dilations, self.kernel,
                      self.strides)]
        number = across[0] * across[1]
        chosen = np.arange(0, number, max(1, number // _SAMPLES) | 1)
        tops = chosen // across[1] * self.strides[0] - self.pads[0]
        lefts = chosen % across[1] * self.strides[1] - self.pads[1]
        rows = tops[None] + self.dilations[0] * np.arange(self.kernel[0])[:, None]
        columns = lefts[None] + self.dilations[1] * np.arange(self.kernel[1])[:, None]
        inside = (((rows >= 0) & (rows < height))[:, None]
                  & ((columns >= 0) & (columns < width))[None])
        found = values[0][:, rows.clip(0, height - 1)[:, None],
                          columns.clip(0, width - 1)[None]] * inside
        return found.reshape(self.groups, -1, len(chosen))


def windows_of(model: onnx.ModelProto) -> frozenset[tuple[str, str, Window]]:
    """Return the (activation, layer, window) of the convolutions with constant weights."""
    graph = Graph(prepare(model))
    found = set()
    for node in graph.nodes:
        if node.op_type == 'Conv' and node.input[1] in graph.constants:
            window = Window.of(node, graph.constants[node.input[1]])
            if window is not None:
                found.add((node.input[0], node.name, window))
    return frozenset(found)


@dataclass
class Moments:
    """
    The sums over windows from which mean and covariance follow, in whatever order images come.

    summed: of (groups, n); product: of (groups, n, n), or None if it is too large
    """

    number: int
    summed: ExactSum
    product: ExactSum | None

    @classmethod
    def of(cls, values: np.ndarray, window: Window) -> Moments:
        """Look at one image: float32 (1, channels, height, width), finite."""
        samples = window.samples(values).astype(np.float64)
        groups, size, number = samples.shape
        # On so few bits that float64 sums over one image are exact.
        step = 2.0 ** (np.frexp(np.abs(samples).max(axis=2, keepdims=True))[1] - _BITS)
        samples = np.rint(samples / step) * step
        product = None
        if groups * size * size <= _LARGEST:
            product = ExactSum([samples @ samples.transpose(0, 2, 1)])
        return cls(number, ExactSum([samples.sum(axis=2)]), product)

    def merge(self, other: Moments) -> None:
        """Count in what another object has seen."""
        self.number += other.number
        self.summed.add(other.summed)
        if self.product is not None and other.product is not None:
            self.product.add(other.product)

    def inputs(self, factors: np.ndarray | None = None, offset: float = 0.0) -> Inputs:
        """
        Return mean and covariance, as they are behind an equalization and a centering.

        :param factors: what each channel is divided by, (channels,)
        :param offset: what is subtracted then
        """
        mean = self.summed.rounded()[0] / self.number
        covariance = (None if self.product is None else self.product.rounded()[0] / self.number
                      - mean[:, :, None] * mean[:, None, :])
        if factors is not None:
            groups, size = mean.shape
            reciprocal = 1 / np.repeat(factors, groups * size // len(factors)).reshape(mean.shape)
            mean = mean * reciprocal
            if covariance is not None:
                covariance = covariance * reciprocal[:, :, None] * reciprocal[:, None, :]
        return Inputs(mean - offset, covariance)
