# SPDX-License-Identifier: Apache-2.0
"""From the network's output to masks at the image's size."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np

from trt_segmentation.errors import InputError
from trt_segmentation.labels import IGNORE
from trt_segmentation.preprocessing import Geometry
from trt_segmentation.spec import Spec

CLASSES, COLOR, CONFIDENCE = 'classes', 'color', 'confidence'
"""What can be wanted of `segment`, and the field of `Masks` each one fills."""


@dataclass(frozen=True)
class Masks:
    """
    The masks of one image, at its size; what was not wanted is None.

    classes: uint8 (height, width), train ids; 255 where the network saw nothing
    color: uint8 (height, width, 3), BGR, the classes through the palette
    confidence: uint8 (height, width), how far the best class leads the second:
        255 * (p1 - p2) / (p1 + p2) for the two largest softmax probabilities
    stage_ms: milliseconds of each stage, by name, in order
    """

    classes: np.ndarray | None
    color: np.ndarray | None
    confidence: np.ndarray | None
    stage_ms: dict[str, float]


class Postprocessor:
    """Turns the output tensor into masks as the spec describes."""

    def __init__(self, spec: Spec):
        """Take the spec."""
        self.spec = spec
        self._train_ids = np.full(256, IGNORE, np.uint8)  # by channel
        self._train_ids[:len(spec.labels.labels)] = spec.labels.train_ids
        self._palette = spec.labels.palette_bgr[:, None]  # as applyColorMap takes it

    def __call__(self, output: np.ndarray, image_size: tuple[int, int], want: Collection[str]
                 ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """
        Return (classes, color, confidence) as `Masks` has them.

        :param output: the output tensor of one image: float32 (1, channels, h, w) for logits,
            integers (1, h, w) or (1, 1, h, w) for class ids
        :param image_size: (height, width) of the masks
        :param want: which of CLASSES, COLOR, CONFIDENCE; classes come in any case
        :raises InputError: if the output has another shape or type than the spec says
        """
        spec = self.spec
        geometry = Geometry.of(image_size, spec.input.size, spec.input.fit)
        channels, margin = self._channels(output, CONFIDENCE in want)
        classes = _to_image(cv2.LUT(channels, self._train_ids), geometry, IGNORE)
        color = cv2.applyColorMap(classes, self._palette) if COLOR in want else None
        confidence = None
        if CONFIDENCE in want:
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
            # A network that gives ids only says nothing of its margin: it is taken at its word.
            return _resize_nearest(ids, size), np.full(size, np.inf) if margin else None
        if output.ndim != 4 or output.shape[:2] != (1, len(self.spec.labels.labels)):
            raise InputError(
                f'output {self.spec.output.tensor!r}: expected logits (1, '
                f'{len(self.spec.labels.labels)}, h, w), found shape {output.shape}'
            )
        logits = np.asarray(output[0], np.float32)
        if not np.isfinite([logits.min(), logits.max()]).all():
            # Nan compares as false, so the mask would be the first class: road, everywhere.
            raise InputError(f'output {self.spec.output.tensor!r}: some logits are not finite')
        upsample = _UPSAMPLE[self.spec.output.upsample]
        return _upsampled_argmax(logits, size, upsample, margin)


def _upsampled_argmax(logits: np.ndarray, size: tuple[int, int], upsample, margin: bool
                      ) -> tuple[np.ndarray, np.ndarray | None]:
    """
    Return the first largest channel of upsampled logits and its lead over the second.

    One channel at a time: all of them at full size would be 40 MB, far more than a cache holds.
    """
    best = upsample(logits[0], size)
    channels = np.zeros(size, np.uint8)
    second = np.full(size, -np.inf, np.float32) if margin else None
    number = np.empty(size, np.uint8)
    for i in range(1, len(logits)):
        plane = upsample(logits[i], size)
        if second is not None:
            second = cv2.max(second, cv2.min(best, plane))
        wins = cv2.compare(plane, best, cv2.CMP_GT)
        number.fill(i)
        cv2.copyTo(number, wins, channels)
        cv2.max(plane, best, best)
    return channels, None if second is None else best - second


def _half_pixel(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Upsample bilinearly with pixel centers at (i + 0.5): ONNX's half_pixel."""
    return cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)


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
    return cv2.resize(plane, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


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
