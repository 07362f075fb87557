# SPDX-License-Identifier: Apache-2.0
"""The histogram of one tensor's magnitudes, over any number of images, in a fixed 32 kB."""

from __future__ import annotations

import math

import cv2
import numpy as np

#: Most bins a histogram has; it has at least half of them, unless all values are close to zero.
MAX_BINS = 4095

# Room for one bin more than are used: an even number merges in pairs.
_CAPACITY = MAX_BINS + 1
# Below this exponent 1 / width leaves float32. A tensor so small is zero for every purpose.
_MIN_EXPONENT = -100
# Values a pass: the buffers stay in the processor's cache, and the counts that OpenCV returns
# as float32 stay exact (they are up to 2 ** 24).
_CHUNK = 1 << 18


class Histogram:
    """
    Counts of magnitudes in bins of width 2 ** `exponent`, the first one starting at 0.

    The width is the smallest power of two with which the largest magnitude seen falls into the
    first 4095 bins. When a larger one comes, bins merge in pairs until it does. So the result
    depends on the values alone: not on their order, nor on how they were divided into calls.
    """

    def __init__(self) -> None:
        """Make an empty histogram."""
        self.exponent = _MIN_EXPONENT
        self.amax = 0.0
        self._counts = np.zeros(_CAPACITY, np.int64)

    @property
    def width(self) -> float:
        """Return the width of a bin."""
        return 2.0 ** self.exponent

    @property
    def counts(self) -> np.ndarray:
        """Return the counts up to the largest magnitude's bin: int64, 2048 to 4095 of them."""
        return self._counts[:_bin(self.amax, self.exponent) + 1]

    @property
    def total(self) -> int:
        """Return the number of values seen."""
        return int(self._counts.sum())

    def add(self, values: np.ndarray, amax: float) -> None:
        """
        Count the values of an array.

        :param values: float32, any shape, C order, finite
        :param amax: the largest magnitude among them
        """
        self._widen(amax)
        reciprocal = np.float32(1 / self.width)  # exact, as is the product with it
        flat = values.reshape(-1)
        magnitudes = np.empty(min(_CHUNK, flat.size), np.float32)
        bins = np.empty(magnitudes.shape, np.uint16)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start:start + _CHUNK]
            scaled = np.multiply(part, reciprocal, out=magnitudes[:part.size])
            np.abs(scaled, out=scaled)
            # Truncation is what bins need. 16 bits: OpenCV counts them twice as fast as floats.
            np.copyto(bins[:part.size], scaled, casting='unsafe')
            counts = cv2.calcHist([bins[:part.size]], [0], None, [_CAPACITY], [0, _CAPACITY])
            self._counts += counts.ravel().astype(np.int64)

    @classmethod
    def of(cls, magnitudes: np.ndarray, counts: np.ndarray, amax: float) -> Histogram:
        """
        Return the histogram of magnitudes that stand for some numbers of values.

        :param magnitudes: float64, 0..amax; counts: integers of the same shape
        """
        histogram = cls()
        histogram._widen(amax)
        bins = (magnitudes / histogram.width).astype(np.int64)
        histogram._counts += np.bincount(bins, counts, _CAPACITY).astype(np.int64)
        return histogram

    @classmethod
    def restored(cls, exponent: int, amax: float, counts: np.ndarray) -> Histogram:
        """
        Return the histogram that had this exponent, largest magnitude and counts.

        :raises ValueError: if none can have had them
        """
        histogram = cls()
        histogram.exponent, histogram.amax = exponent, amax
        if not (math.isfinite(amax) and amax >= 0 and exponent >= _MIN_EXPONENT
                and len(counts) == _bin(amax, exponent) + 1 <= MAX_BINS and (counts >= 0).all()):
            raise ValueError('no histogram')
        histogram._counts[:len(counts)] = counts
        return histogram

    def merge(self, other: Histogram) -> None:
        """Count in all that another histogram has counted."""
        self._widen(other.amax)
        counts = other._counts
        for _ in range(self.exponent - other.exponent):
            counts = np.pad(counts.reshape(-1, 2).sum(axis=1), (0, _CAPACITY // 2))
        self._counts += counts

    def _widen(self, amax: float) -> None:
        """Merge bins until `amax` falls into the last one at most."""
        self.amax = max(self.amax, float(amax))
        while _bin(self.amax, self.exponent) >= MAX_BINS:
            # From an empty histogram straight to the width; one by one would be as right.
            if not self._counts.any():
                self.exponent = max(self.exponent + 1,
                                    math.frexp(self.amax)[1] - MAX_BINS.bit_length())
                continue
            merged = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts[:merged.size] = merged
            self._counts[merged.size:] = 0
            self.exponent += 1


def _bin(magnitude: float, exponent: int) -> int:
    """Return the bin that a magnitude falls into."""
    return math.floor(math.ldexp(magnitude, -exponent))
