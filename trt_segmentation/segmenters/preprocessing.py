# SPDX-License-Identifier: Apache-2.0
"""From an image to the input tensor: the one definition that every command and the node use."""

from __future__ import annotations

import cv2
import numpy as np

from trt_segmentation.bundles.geometry import Geometry
from trt_segmentation.bundles.spec import InputSpec
from trt_segmentation.recordings import layouts

__all__ = ['Geometry', 'Preprocessor', 'resize']

_INTERPOLATIONS = {
    'nearest': cv2.INTER_NEAREST_EXACT,  # at pixel centers; INTER_NEAREST is off by half a pixel
    'linear': cv2.INTER_LINEAR,
    'area': cv2.INTER_AREA,
}


class Preprocessor:
    """Turns images of any size into the input tensor that the spec describes."""

    def __init__(self, spec: InputSpec):
        """Take the input section of the spec."""
        self.spec = spec

    def __call__(self, image: np.ndarray, color: str = 'bgr',
                 out: np.ndarray | None = None) -> np.ndarray:
        """
        Return the input tensor of one image.

        :param image: uint8, shape (height, width, 3), any strides; or as a camera gives it
        :param color: the image's channel order, 'bgr' or 'rgb', or another layout of `layouts`
        :param out: written and returned if given: float32, C order, shape (1, 3, h, w)
        :returns: float32, shape (1, 3, h, w), (pixel - mean) * scale; padding is 0
        :raises InputError: if the image has another dtype or shape, or color another value
        """
        layouts.check(image, color)
        image, color = layouts.to_channels(image, color)
        spec = self.spec
        if out is None:
            out = np.empty((1, 3, *spec.size), np.float32)
        geometry = Geometry.of(image.shape[:2], spec.size, spec.fit)
        image = resize(image, geometry, spec.interpolation)[geometry.on_resized]
        if image.shape[:2] != spec.size:
            out.fill(0)
        for i in range(3):
            plane = cv2.extractChannel(image, i if color == spec.color else 2 - i)
            # OpenCV's weighted sum is its fastest way from uint8 to scaled float, and writes
            # where it shall; a fresh 2 MB array for each plane would cost more than the sum.
            cv2.addWeighted(plane, spec.scale[i], plane, 0, -spec.mean[i] * spec.scale[i],
                            dst=out[0, i][geometry.on_network], dtype=cv2.CV_32F)
        return out


def resize(image: np.ndarray, geometry: Geometry, interpolation: str) -> np.ndarray:
    """
    Return the whole image at its size on the network's plane; itself if it has that size.

    :param geometry: of the image
    :param interpolation: 'nearest', 'linear' or 'area'
    """
    if geometry.resized == geometry.image:
        return image
    if image.shape[:2] == (1, 1):  # OpenCV 4.5 takes no image of one pixel from NumPy
        return np.broadcast_to(image, (*geometry.resized, 3)).copy()
    return np.asarray(cv2.resize(image, geometry.resized[::-1],
                                 interpolation=_INTERPOLATIONS[interpolation]))
