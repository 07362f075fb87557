# SPDX-License-Identifier: Apache-2.0
"""From the network's output to masks at the image's size."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from trt_segmentation.bundles.geometry import Geometry
from trt_segmentation.bundles.labels import IGNORE
from trt_segmentation.bundles.spec import Spec
from trt_segmentation.errors import InputError

CLASSES, COLOR, CONFIDENCE = 'classes', 'color', 'confidence'
"""What can be wanted of `segment`, and the field of `Masks` each one fills."""

Upsample = Callable[[np.ndarray, tuple[int, int]], np.ndarray]

_FOUR = np.ones((2, 2), np.uint8)
# The share of cells to interpolate from which on interpolating all pixels is faster.
_MANY_CELLS = 0.25


@dataclass(frozen=True)
class Masks:
    """
    The masks of one image, at its size; color and confidence are None where not wanted.

    classes: uint8 (height, width), train ids; 255 where the network saw nothing
    color: uint8 (height, width, 3), BGR, the classes through the palette
    confidence: uint8 (height, width), how far the best channel leads the second, also where both
        are of one class: 255 * (p1 - p2) / (p1 + p2) for the two largest softmax probabilities
    stage_ms: milliseconds of each stage, by name, in order
    """

    classes: np.ndarray
    color: np.ndarray | None
    confidence: np.ndarray | None
    stage_ms: dict[str, float]


def offered(spec: Spec) -> frozenset[str]:
    """Return the names of the masks that a network of this contract can give."""
    if spec.output.kind == 'class_ids':
        return frozenset({CLASSES, COLOR})
    return frozenset({CLASSES, COLOR, CONFIDENCE})


def check_want(want: Collection[str], spec: Spec) -> None:
    """Raise InputError if `want` has anything else than what the network can give."""
    if unknown := sorted(set(want) - offered(spec)):
        if unknown[0] == CONFIDENCE:
            raise InputError(f'want: found confidence, but output {spec.output.tensor!r} is class '
                             'ids, which say nothing of how sure the network is; expected '
                             'classes or color')
        raise InputError(f'want: found {unknown[0]!r}, expected classes, color or confidence')


class Postprocessor:
    """Turns the output tensor into masks as the spec describes."""

    def __init__(self, spec: Spec):
        """Take the spec."""
        self.spec = spec
        self._train_ids = np.full(256, IGNORE, np.uint8)  # by channel
        self._train_ids[:len(spec.labels.labels)] = spec.labels.train_ids
        # Logits have no channel beyond the labels; class ids may.
        self._renumbered = spec.output.kind == 'class_ids' or not np.array_equal(
            spec.labels.train_ids, np.arange(len(spec.labels.labels)))
        self._palette = spec.labels.palette_bgr[:, None]  # as applyColorMap takes it

    def __call__(self, output: np.ndarray, image_size: tuple[int, int], want: Collection[str]
                 ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """
        Return (classes, color, confidence) as `Masks` has them.

        :param output: the output tensor of one image: float32 (1, channels, h, w) for logits,
            integers (1, h, w) or (1, 1, h, w) for class ids
        :param image_size: (height, width) of the masks
        :param want: which of CLASSES, COLOR, CONFIDENCE; classes come in any case
        :raises InputError: if the output has another shape or type than the spec says, or if
            something is wanted that it cannot give
        """
        spec = self.spec
        check_want(want, spec)
        geometry = Geometry.of(image_size, spec.input.size, spec.input.fit)
        channels, margin = self._channels(output, CONFIDENCE in want)
        if self._renumbered:
            channels = cv2.LUT(channels, self._train_ids)
        classes = _to_image(channels, geometry, IGNORE)
        color = cv2.applyColorMap(classes, self._palette) if COLOR in want else None
        confidence = None
        if margin is not None:
            # (p1 - p2) / (p1 + p2) of softmax is tanh of half the difference of the logits.
            shares = np.rint(255 * np.tanh(margin / 2)).astype(np.uint8)
            confidence = _to_image(shares, geometry, 0)
        return classes, color, confidence

    def _channels(self, output: np.ndarray, margin: bool
                  ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the best channel, uint8, at the network's size, and its margin if asked for."""
        size = self.spec.input.size
        if self.spec.output.kind == 'class_ids':
            if output.ndim not in (3, 4) or output.size != output.shape[-2] * output.shape[-1]:
                raise InputError(
                    f'output {self.spec.output.tensor!r}: expected one mask of class ids, found '
                    f'shape {output.shape}'
                )
            ids = output.reshape(output.shape[-2:])
            ids = np.where((ids < 0) | (ids > IGNORE), IGNORE, ids).astype(np.uint8)
            return _resize_nearest(ids, size), None
        if output.ndim != 4 or output.shape[:2] != (1, len(self.spec.labels.labels)):
            raise InputError(
                f'output {self.spec.output.tensor!r}: expected logits (1, '
                f'{len(self.spec.labels.labels)}, h, w), found shape {output.shape}'
            )
        logits = np.asarray(output[0], np.float32)
        with np.errstate(invalid='ignore'):  # infinities of both signs, which are caught here
            total = logits.sum()
        if not np.isfinite(total):
            # Nan compares as false, so the mask would be the first class: road, everywhere.
            raise InputError(f'output {self.spec.output.tensor!r}: some logits are not finite')
        upsample = _UPSAMPLE[self.spec.output.upsample]
        return _upsampled_argmax(logits, size, upsample, margin)


def _upsampled_argmax(logits: np.ndarray, size: tuple[int, int], upsample: Upsample, margin: bool
                      ) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the first largest channel of upsampled logits and its lead over the second."""
    channels = _argmax_by_cells(logits, size) if upsample is _half_pixel else None
    if channels is not None and not margin:
        return channels, None
    # One channel at a time: all of them at full size would be 40 MB, more than a cache holds.
    interpolated, lead = _argmax((upsample(plane, size) for plane in logits), margin)
    # The two ways round differently: what a pixel is must not hang on who asks for its margin.
    return interpolated if channels is None else channels, lead


def _argmax(planes: Iterable[np.ndarray], margin: bool = False
            ) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the number of the first largest plane at each pixel, and its lead if asked for."""
    planes = iter(planes)
    best = next(planes).copy()
    channels = np.zeros(best.shape, np.uint8)
    second = np.full(best.shape, -np.inf, np.float32) if margin else None
    number = np.empty(best.shape, np.uint8)
    for i, plane in enumerate(planes, 1):
        if second is not None:
            second = cv2.max(second, cv2.min(best, plane))
        wins = cv2.compare(plane, best, cv2.CMP_GT)
        number.fill(i)
        cv2.copyTo(number, wins, channels)
        cv2.max(plane, best, best)
    return channels, None if second is None else best - second


def _argmax_by_cells(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """
    Return the first largest channel of logits upsampled by an even factor with `_half_pixel`.

    A channel that is the largest of all four logits around a cell is so everywhere between them,
    because bilinear interpolation is a weighted mean. Only the other cells are interpolated: few,
    as masks have regions, so this takes a quarter of the time. None if they are many, or for
    another factor.
    """
    count, height, width = logits.shape
    factor = size[0] // height
    if factor % 2 or size != (height * factor, width * factor) or factor == 0:
        return None
    # Cell (y, x) lies between logits (y - 1, x - 1) and (y, x); at the edges one is repeated.
    coarse = cv2.copyMakeBorder(_argmax(logits)[0], 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    low, high = (extreme(coarse, _FOUR, anchor=(0, 0))[:-1, :-1]
                 for extreme in (cv2.erode, cv2.dilate))
    y, x = np.nonzero(low != high)
    if len(y) > _MANY_CELLS * low.size:
        return None
    channels = cv2.resize(low, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    if len(y):
        flat = logits.reshape(count, -1)
        (top, bottom), (left, right) = (
            (np.maximum(at - 1, 0), np.minimum(at, length - 1))
            for at, length in ((y, height), (x, width)))
        corners = [[flat.take(row * width + column, 1) for column in (left, right)]
                   for row in (top, bottom)]
        values = np.empty((count, factor * factor, len(y)), np.float32)
        shares = (np.arange(factor) + 0.5) / factor
        for j, share in enumerate(shares):
            upper, lower = (cv2.addWeighted(a, 1 - share, b, share, 0) for a, b in corners)
            for i, other in enumerate(shares):
                values[:, i * factor + j] = cv2.addWeighted(upper, 1 - other, lower, other, 0)
        cells = channels.reshape(height + 1, factor, width + 1, factor).transpose(0, 2, 1, 3)
        cells[y, x] = _argmax(values)[0].reshape(factor, factor, -1).transpose(2, 0, 1)
    half = factor // 2
    return np.ascontiguousarray(channels[half:half + size[0], half:half + size[1]])


def _half_pixel(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Upsample bilinearly with pixel centers at (i + 0.5): ONNX's half_pixel."""
    return np.asarray(cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR))


def _align_corners(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Upsample bilinearly with the outer pixels' centers on each other: ONNX's align_corners."""
    for length in size:  # one axis after the other; the transposition swaps them
        position = np.linspace(0, len(plane) - 1, length)
        lower = np.minimum(position.astype(int), max(len(plane) - 2, 0))
        weight = (position - lower).astype(np.float32)[:, None]
        upper = np.minimum(lower + 1, len(plane) - 1)
        plane = (plane[lower] * (1 - weight) + plane[upper] * weight).T
    return plane.copy()  # C order, also where one side is 1, which OpenCV insists on


def _resize_nearest(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to the nearest pixel center: source = floor((target + 0.5) * ratio)."""
    if plane.shape == size:
        return plane
    return np.asarray(cv2.resize(plane, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT))


_UPSAMPLE = {
    'half_pixel': _half_pixel,
    'align_corners': _align_corners,
    'nearest': _resize_nearest,
}


def _to_image(plane: np.ndarray, geometry: Geometry, outside: int) -> np.ndarray:
    """Carry a mask from the network's plane back to the image; `outside` where it did not see."""
    part = plane[geometry.on_network]
    if part.shape != geometry.resized:
        whole = np.full(geometry.resized, outside, np.uint8)
        whole[geometry.on_resized] = part
        part = whole
    return _resize_nearest(part, geometry.image)
