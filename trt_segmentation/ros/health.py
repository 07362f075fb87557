# SPDX-License-Identifier: Apache-2.0
"""Signs that a camera, or what the network makes of its images, is not as it should be."""

from __future__ import annotations

import zlib

import numpy as np

from trt_segmentation.cuda.images import DeviceImage
from trt_segmentation.recordings import layouts

_DARK, _BRIGHT = 8, 247  # of 0..255
_UNIFORM_SHARE = 0.98
LOW_MARGIN = 26
"""A confidence below this (a tenth of 255) is a low margin."""
_FAST, _SLOW = 0.2, 0.01  # weights of a new sample in the two averages: 5 and 100 samples
_SETTLED = 20  # samples before the slow average says what is usual


class InputHealth:
    """
    Looks at a coarse grid of each image's pixels.

    repeated: how many images in a row have been equal to the one before
    exposure: 'black', 'blown_out' or ''
    """

    def __init__(self):
        """Start without having seen an image."""
        self.repeated = 0
        self.exposure = ''
        self._checksum: int | None = None

    def see(self, image: np.ndarray | DeviceImage, layout: str) -> None:
        """
        Look at an image, at the same pixels wherever it lies.

        :param image, layout: as `layouts.check` takes them, or on the GPU
        """
        step = max(1, min(layouts.size(image, layout)) // 16)
        pixels = (layouts.sample(image.coarse(step), layout, 1, step)
                  if isinstance(image, DeviceImage)
                  else layouts.sample(image, layout, step, step))
        grid = np.ascontiguousarray(pixels)
        checksum = zlib.crc32(grid)
        # The noise of a camera's sensor never repeats itself, not even at night.
        self.repeated = self.repeated + 1 if checksum == self._checksum else 0
        self._checksum = checksum
        enough = _UNIFORM_SHARE * grid.size
        if np.count_nonzero(grid <= _DARK) >= enough:
            self.exposure = 'black'
        elif np.count_nonzero(grid >= _BRIGHT) >= enough:
            self.exposure = 'blown_out'
        else:
            self.exposure = ''


class OutputHealth:
    """
    Looks at masks now and then.

    low_margin_share: share of pixels of the last mask whose best class hardly leads; None before
    class_drift: distance 0..1 (total variation) between the shares of classes in the last five
        masks looked at and those in the last hundred; None until there are enough
    """

    def __init__(self):
        """Start without having seen a mask."""
        self.low_margin_share: float | None = None
        self.class_drift: float | None = None
        self._recent: np.ndarray | None = None
        self._usual: np.ndarray | None = None
        self._samples = 0

    def see(self, classes: np.ndarray, confidence: np.ndarray | None) -> None:
        """
        Look at a frame's masks.

        :param classes, confidence: uint8 (height, width), as `Masks` has them
        """
        if confidence is not None:  # class ids have none
            self.low_margin_share = float((confidence < LOW_MARGIN).mean())
        shares = np.bincount(classes[::4, ::4].ravel(), minlength=256).astype(float)
        shares /= shares.sum()
        if self._recent is None or self._usual is None:
            self._recent = self._usual = shares
        self._recent = (1 - _FAST) * self._recent + _FAST * shares
        self._usual = (1 - _SLOW) * self._usual + _SLOW * shares
        self._samples += 1
        if self._samples >= _SETTLED:
            self.class_drift = float(np.abs(self._recent - self._usual).sum() / 2)
