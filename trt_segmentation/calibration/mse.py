# SPDX-License-Identifier: Apache-2.0
"""
The mean squared error method: the threshold at which INT8 is nearest to the values themselves.

A low threshold clips, a high one rounds coarsely. Where the two errors balance depends on how
long the tail is, and needs no parameter. For long-tailed activations, where the entropy method
clips far too much, this is what keeps a network usable.
"""

from __future__ import annotations

import numpy as np

#: INT8 codes of a magnitude: 0 to 127.
CODES = 128
# Errors that differ by less, relatively, are equal: it is the order of the rounding errors.
_TIE = 1e-9
# Candidates a pass: the arrays of (candidates, codes) stay in the processor's cache.
_BLOCK = 256


def squared_errors(counts: np.ndarray) -> np.ndarray:
    """
    Return the squared error, summed over all values, for each threshold from 128 bins to all.

    A value counts as the middle of its bin. With the threshold T, it becomes the nearest of the
    multiples 0 to 127 of T / 127. The sums of the values and of their squares within each code
    come from cumulative sums.

    :param counts: integers >= 0, at least 128 of them
    :returns: float64, shape (len(counts) - 127,), in squares of a bin's width
    """
    counts = np.asarray(counts, np.float64)
    middles = np.arange(len(counts)) + 0.5
    number, total = _cumulative(counts), _cumulative(counts * middles)
    squares = float((counts * middles ** 2).sum())
    codes = np.arange(CODES)
    thresholds = np.arange(CODES, len(counts) + 1)
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
    errors = squared_errors(counts)
    best = np.flatnonzero(errors <= errors.min() * (1 + _TIE))
    return int(best[-1]) + CODES


def _cumulative(values: np.ndarray) -> np.ndarray:
    """Return the sums before each index: one more than there are values."""
    return np.concatenate([[0], np.cumsum(values)])
