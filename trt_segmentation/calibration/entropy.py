# SPDX-License-Identifier: Apache-2.0
"""
The entropy method: the threshold whose quantized distribution diverges least from the original.

As published by Migacz, "8-bit Inference with TensorRT", GTC 2017, S7310, with what the slides
leave open settled here:

- Every number of bins from 128 to all is a candidate (the slides stop before the last one).
- Bin k of i belongs to level k * 128 // i.
- The zero bin gets the count of its neighbor. A ReLU puts half of all values there; taken
  literally, that spike decides the search (NVIDIA's pytorch-quantization does the same).
- A candidate whose last bin is empty while values lie beyond it has an infinite divergence.
- Of candidates that are equally good the largest wins: it clips least.
"""

from __future__ import annotations

import numpy as np

#: Levels of a magnitude in INT8, the sign apart.
LEVELS = 128
# Divergences that differ by less are equal: it is the order of the rounding errors.
_TIE = 1e-12
# Candidates a pass: the arrays of (candidates, levels) stay in the processor's cache.
_BLOCK = 256


def without_zero_spike(counts: np.ndarray) -> np.ndarray:
    """Return the counts with that of the zero bin replaced by its neighbor's."""
    counts = counts.copy()
    if len(counts) > 1:
        counts[0] = counts[1]
    return counts


def divergences(counts: np.ndarray) -> np.ndarray:
    """
    Return KL(P || Q) in nats for each number of bins kept, from 128 to all.

    P is the distribution clipped to the kept bins, with what lies beyond in the last of them;
    Q is the kept part alone, without what lies beyond, in 128 levels, each spread evenly over
    those of its bins that are not empty.

    With c the kept counts, S their sum, T that of all, and M and N a level's count and its
    number of bins that are not empty, every bin but the last contributes
    c/T * log(c/T / (M/N/S)). The sums over bins come from cumulative sums, the sums over levels
    remain: for 4095 bins about 5 ms, where the double loop takes seconds.

    :param counts: integers >= 0, at least 128 of them
    :returns: float64, shape (len(counts) - 127,)
    """
    counts = np.asarray(counts, np.float64)
    total = counts.sum()
    with np.errstate(divide='ignore', invalid='ignore'):
        entropies = np.where(counts > 0, counts * np.log(counts), 0.0)
    mass = _cumulative(counts)
    filled = _cumulative(counts > 0)
    entropy = _cumulative(entropies)
    kept = np.arange(LEVELS, len(counts) + 1)
    result = np.empty(len(kept))
    for start in range(0, len(kept), _BLOCK):
        size = kept[start:start + _BLOCK]
        # A level begins at the first bin k with k * LEVELS // size >= its number.
        edges = -(-np.arange(LEVELS + 1) * size[:, None] // LEVELS)
        level_mass = np.diff(mass[edges])
        level_filled = np.diff(filled[edges])
        last = counts[size - 1]
        kept_mass = mass[size]
        clipped_last = last + (total - kept_mass)  # P's last bin
        with np.errstate(divide='ignore', invalid='ignore'):
            log_mean = np.log(level_mass / level_filled)
            log_mean[level_mass == 0] = 0
            # sum over all kept bins of c * log(c / mean), then the last one exchanged.
            unclipped = entropy[size] - (level_mass * log_mean).sum(axis=1)
            last_entropy = np.where(last > 0, last * np.log(last), 0.0)
            unclipped -= last_entropy - last * log_mean[:, -1]
            clipped = np.where(
                clipped_last > 0, clipped_last * (np.log(clipped_last) - log_mean[:, -1]), 0.0)
            result[start:start + _BLOCK] = ((unclipped + clipped) / total
                                            + np.log(kept_mass / total))
            result[start:start + _BLOCK][(last == 0) & (clipped_last > 0)] = np.inf
    result[np.isnan(result)] = np.inf  # no value is kept at all
    return result


def best_bins(counts: np.ndarray) -> int:
    """
    Return how many bins to keep: the candidate of least divergence.

    :param counts: integers >= 0, with the zero spike or without: it is removed here
    :returns: from 128 to len(counts), or len(counts) if there are fewer than 128
    """
    counts = without_zero_spike(counts)
    if len(counts) <= LEVELS or not counts.any():
        return len(counts)
    divergence = divergences(counts)
    best = np.flatnonzero(divergence <= divergence.min() + _TIE)
    return int(best[-1]) + LEVELS


def _cumulative(values: np.ndarray) -> np.ndarray:
    """Return the sums before each index: one more than there are values."""
    return np.concatenate([[0], np.cumsum(values)])
