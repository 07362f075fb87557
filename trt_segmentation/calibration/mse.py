# SPDX-License-Identifier: Apache-2.0
"""
The mean squared error method: the threshold at which INT8 is nearest to the values themselves.

A low threshold clips, a high one rounds coarsely. Where the two errors balance depends on how
long the tail is, and needs no parameter. For long-tailed activations, where the entropy method
clips far too much, this is what keeps a network usable.
"""

from __future__ import annotations

import math

import numpy as np

#: INT8 codes of a magnitude: 0 to 127.
CODES = 128
# Errors that differ by less, relatively, are equal: it is the order of the rounding errors.
_TIE = 1e-9
# Candidates a pass: the arrays of (candidates, codes) stay in the processor's cache.
_BLOCK = 256


def squared_errors(counts: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """
    Return the squared error, summed over all values, for each of some thresholds.

    A value counts as the middle of its bin. With the threshold T, it becomes the nearest of the
    multiples 0 to 127 of T / 127. The sums of the values and of their squares within each code
    come from cumulative sums.

    :param counts: integers >= 0
    :param thresholds: above 0, in bins, shape (n,)
    :returns: float64, shape (n,), in squares of a bin's width
    """
    counts = np.asarray(counts, np.float64)
    middles = np.arange(len(counts)) + 0.5
    number, total = _cumulative(counts), _cumulative(counts * middles)
    squares = float((counts * middles ** 2).sum())
    codes = np.arange(CODES)
    result = np.empty(len(thresholds))
    for start in range(0, len(thresholds), _BLOCK):
        steps = thresholds[start:start + _BLOCK, None] / (CODES - 1)
        # Code j takes the middles from (j - 1/2) steps on; the last code all that remain.
        edges = np.ceil((codes - 0.5) * steps - 0.5).astype(int).clip(0, len(counts))
        edges = np.append(edges, np.full((len(steps), 1), len(counts)), axis=1)
        values = codes * steps
        result[start:start + _BLOCK] = squares - (
            values * (2 * np.diff(total[edges]) - values * np.diff(number[edges]))).sum(axis=1)
    return result


def best_bins(counts: np.ndarray) -> int:
    """
    Return the threshold of least squared error, in bins; of equal ones the largest.

    :param counts: integers >= 0
    :returns: from 128 to len(counts), or len(counts) if there are fewer than 128
    """
    if len(counts) < CODES or not counts.any():
        return len(counts)
    errors = squared_errors(counts, np.arange(CODES, len(counts) + 1))
    best = np.flatnonzero(errors <= errors.min() * (1 + _TIE))
    return int(best[-1]) + CODES


def signal_to_noise(counts: np.ndarray, threshold: float) -> float:
    """
    Return the ratio of the values' power to that of their quantization error, in dB.

    :param threshold: in bins; infinite for values that are all zero
    """
    middles = np.arange(len(counts)) + 0.5
    power = float((counts[1:] * middles[1:] ** 2).sum())  # the zero bin is noise to nothing
    error = float(squared_errors(counts, np.array([threshold]))[0])
    return 10 * math.log10(power / error) if power > 0 and error > 0 else math.inf


def _cumulative(values: np.ndarray) -> np.ndarray:
    """Return the sums before each index: one more than there are values."""
    return np.concatenate([[0], np.cumsum(values)])
