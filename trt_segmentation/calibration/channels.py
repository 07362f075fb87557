# SPDX-License-Identifier: Apache-2.0
"""
What is known of each channel of an activation after any number of images.

For each channel the range of each image is summed up, and a sample of its values is counted in
bins of a quarter octave: half a kilobyte a channel, whatever the number of images. From these
follow the factors that make all channels equal (see `networks.equalize`), and the histogram that
the tensor has when they are, without another pass over the images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trt_segmentation.calibration.histogram import Histogram

_BINS = 128
_SAMPLES = 256  # values of a channel that are counted, of each image
_SMALLEST_EXPONENT = -16  # magnitudes below 2 to this count as zero
_UNITS = 149  # the smallest float32 is 2 to minus this
_PARTS = 8  # equal parts that a bin's count is spread over
# Of a channel that hardly ever differs from zero, noise would be amplified.
_SMALLEST_FACTOR = 2.0 ** -10
_MANTISSA_BITS = 2
_SHIFT = 23 - _MANTISSA_BITS
_BASE = (127 + _SMALLEST_EXPONENT) << _MANTISSA_BITS
_EDGES = ((np.arange(_BINS + 1) - 1 + _BASE).astype(np.uint32) << _SHIFT).view(np.float32)


@dataclass
class Channels:
    """
    The channels of one activation over some images.

    images: how many there were
    summed: integers (channels,), the sum of the largest magnitudes of each image in units of the
        smallest float32: exact, so that it does not depend on the order of the images
    amax: float64 (channels,), the largest magnitudes of all
    counts: int64 (channels, 128), of sampled magnitudes: zeros, then quarters of octaves
    """

    images: int
    summed: np.ndarray
    amax: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Channels:
        """Look at one image: float32 (1, channels, height, width), finite."""
        flat = values.reshape(values.shape[1], -1)
        amax = np.maximum(flat.max(axis=1), -flat.min(axis=1)).astype(np.float64)
        step = max(1, flat.shape[1] // _SAMPLES) | 1  # odd: not along one column only
        sample = np.abs(flat[:, ::step])
        bins = (sample.view(np.uint32) >> _SHIFT).astype(np.int64) - _BASE + 1
        bins = bins.clip(0, _BINS - 1) + _BINS * np.arange(len(flat))[:, None]
        counts = np.bincount(bins.ravel(), minlength=_BINS * len(flat))
        # Of an image that is not finite nothing is counted, but that shows later.
        finite = np.where(np.isfinite(amax), amax, 0)
        summed = np.array([int(value) for value in np.ldexp(finite, _UNITS)], object)
        return cls(1, summed, amax, counts.reshape(len(flat), _BINS))

    def merge(self, other: Channels) -> None:
        """Count in what another object has seen."""
        self.images += other.images
        self.summed = self.summed + other.summed
        self.amax = np.maximum(self.amax, other.amax)
        self.counts += other.counts

    def factors(self) -> np.ndarray:
        """
        Return what to divide each channel by: its typical range, of the largest one.

        Typical is the mean over the images of the largest magnitude, which one odd image cannot
        spoil. float64 (channels,), above 0, at most 1.
        """
        largest = self.summed.max()
        if largest == 0:
            return np.ones_like(self.amax)
        relative = (self.summed / largest).astype(np.float64)  # rounded once: of integers
        return np.where(relative > 0, relative.clip(_SMALLEST_FACTOR, 1), 1.0)

    def histogram(self, factors: np.ndarray) -> Histogram:
        """Return the histogram that the tensor has with each channel divided by its factor."""
        amax = float((self.amax / factors).max())
        parts = (np.arange(_PARTS) + 0.5) / _PARTS
        points = _EDGES[:-1, None] + np.diff(_EDGES)[:, None] * parts
        points[0] = 0
        magnitudes = (points / factors[:, None, None]).ravel().clip(0, amax)
        weights = np.repeat(self.counts, _PARTS)
        return Histogram.of(magnitudes, weights, amax)

    def signal_to_noise(self, factors: np.ndarray) -> float:
        """
        Return the mean over the channels of signal to noise, dB, in INT8 that clips nothing.

        Channels that are always zero are left out.
        """
        middles = (_EDGES[:-1] + _EDGES[1:]) / 2
        middles[0] = 0
        power = (self.counts * middles.astype(np.float64) ** 2).sum(axis=1) / np.maximum(
            self.counts.sum(axis=1), 1)
        power = power / factors ** 2
        step = (self.amax / factors).max() / 127
        alive = power > 0
        if not alive.any() or step == 0:
            return 0.0
        noise = np.minimum(step ** 2 / 12, power[alive])
        return float((10 * np.log10(power[alive] / noise)).mean())
