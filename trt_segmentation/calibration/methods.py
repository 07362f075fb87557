# SPDX-License-Identifier: Apache-2.0
"""
The methods: from a histogram to the magnitude that the largest INT8 code stands for.

Entropy: the threshold whose quantized distribution diverges least from the original, as
published by Migacz, "8-bit Inference with TensorRT", GTC 2017, S7310, with what the slides leave
open settled here:

- Every number of bins from 128 to all is a candidate (the slides stop before the last one).
- Bin k of i belongs to level k * 128 // i.
- The zero bin gets the count of its neighbor. A ReLU puts half of all values there; taken
  literally, that spike decides the search (NVIDIA's pytorch-quantization does the same).
- A candidate whose last bin is empty while values lie beyond it has an infinite divergence.
- Of candidates that are equally good the largest wins: it clips least.

Mean squared error: the threshold at which INT8 is nearest to the values themselves. A low
threshold clips, a high one rounds coarsely. Where the two errors balance depends on how long the
tail is, and needs no parameter. For long-tailed activations, where the entropy method clips far
too much, this is what keeps a network usable.
"""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np

from trt_segmentation.calibration import METHODS
from trt_segmentation.calibration.histogram import Histogram
from trt_segmentation.errors import InputError

#: Levels of a magnitude in INT8, the sign apart.
LEVELS = 128
# Divergences that differ by less are equal: it is the order of the rounding errors.
_DIVERGENCE_TIE = 1e-12
# Candidates a pass: the arrays of (candidates, levels or codes) stay in the processor's cache.
_BLOCK = 256
#: INT8 codes of a magnitude: 0 to 127.
CODES = 128
_CENTERED_CODES = 255  # of a tensor that is not negative, with half its range subtracted
# Errors that differ by less, relatively, are equal: it is the order of the rounding errors.
_ERROR_TIE = 1e-9


@dataclass(frozen=True)
class Threshold:
    """
    A tensor's threshold.

    value: the magnitude that code 127 stands for; larger ones are clipped to it
    method: how it was found: one of METHODS, 'fixed', or 'constant' for a tensor of zeros only
    clipped: the share 0..1 of the values that are larger; None where it is not known
    sqnr_db: the values' power over that of their quantization error; None where it is not known
    """

    value: float
    method: str
    clipped: float | None = None
    sqnr_db: float | None = None


def find(method: str, histogram: Histogram, *, percentile: float) -> Threshold:
    """
    Return the threshold that a method chooses for a tensor.

    :param method: 'mse', 'entropy', 'percentile' or 'minmax' (the largest magnitude)
    :param percentile: 0..100, the share of values not to be clipped, to a bin's precision
    :raises InputError: for another method
    """
    counts, width = histogram.counts, histogram.width
    if histogram.amax == 0:
        return whole_range(0)
    if method == 'minmax':
        return _judged(histogram.amax, method, histogram)
    if method == 'mse':
        value = min(mse_bins(counts) * width, histogram.amax)
    elif method == 'entropy':
        kept = entropy_bins(counts)
        # The middle of the first bin that is cut off, as published; not past what there is.
        value = min((kept + 0.5) * width, histogram.amax)
    elif method == 'percentile':
        cumulative = np.cumsum(counts)
        kept = int(np.searchsorted(cumulative, percentile / 100 * cumulative[-1])) + 1
        value = min(kept * width, histogram.amax)
    else:
        raise InputError(f'method: found {method!r}, expected one of {", ".join(METHODS)}')
    return _judged(value, method, histogram)


def centered(method: str, histogram: Histogram, *, percentile: float) -> Threshold:
    """
    Return the threshold of a tensor that is never negative, once it is centered.

    Its values from 0 on then have all the codes from -127 to 127. What is subtracted from them
    is the threshold, so that 0 is code -127.

    :param histogram: of the values as they are, before
    """
    counts, width = histogram.counts, histogram.width
    if histogram.amax == 0:
        return whole_range(0)
    if method == 'mse':
        whole = min(mse_bins(counts, _CENTERED_CODES) * width, histogram.amax)
    else:
        whole = find(method, histogram, percentile=percentile).value
    return Threshold(whole / 2, method, _beyond(whole, histogram))


def fixed(value: float, histogram: Histogram | None) -> Threshold:
    """Return a threshold that was given."""
    if histogram is None:
        return Threshold(value, 'fixed')
    return _judged(value, 'fixed', histogram)


def whole_range(amax: float) -> Threshold:
    """Return the threshold that clips nothing of a tensor whose values were not counted."""
    if amax == 0:
        # Any positive scale is right for a tensor of zeros. None would send its layers to float.
        return Threshold(1.0, 'constant')
    return Threshold(amax, 'minmax', clipped=0.0)


def _judged(value: float, method: str, histogram: Histogram) -> Threshold:
    """Return a threshold with what it does to the values."""
    sqnr = signal_to_noise(histogram.counts, value / histogram.width)
    return Threshold(value, method, _beyond(value, histogram),
                     sqnr if math.isfinite(sqnr) else None)


def _beyond(value: float, histogram: Histogram) -> float:
    """Return the share 0..1 of the values that are larger than one, to a bin's precision."""
    if value >= histogram.amax:
        return 0.0  # also where the largest ones lie at the beginning of a bin
    larger = histogram.counts[math.ceil(value / histogram.width):].sum()
    return float(larger / max(histogram.total, 1))


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


def entropy_bins(counts: np.ndarray) -> int:
    """
    Return how many bins to keep: the candidate of least divergence.

    :param counts: integers >= 0, with the zero spike or without: it is removed here
    :returns: from 128 to len(counts), or len(counts) if there are fewer than 128
    """
    counts = without_zero_spike(counts)
    if len(counts) <= LEVELS or not counts.any():
        return len(counts)
    divergence = divergences(counts)
    best = np.flatnonzero(divergence <= divergence.min() + _DIVERGENCE_TIE)
    return int(best[-1]) + LEVELS


def squared_errors(counts: np.ndarray, thresholds: np.ndarray, number_of_codes: int = CODES
                   ) -> np.ndarray:
    """
    Return the squared error, summed over all values, for each of some thresholds.

    A value counts as the middle of its bin. With the threshold T, it becomes the nearest of the
    multiples 0 to n - 1 of T / (n - 1), for n codes. The sums of the values and of their squares
    within each code come from cumulative sums.

    :param counts: integers >= 0
    :param thresholds: above 0, in bins, shape (n,)
    :returns: float64, shape (n,), in squares of a bin's width
    """
    counts = np.asarray(counts, np.float64)
    middles = np.arange(len(counts)) + 0.5
    number, total = _cumulative(counts), _cumulative(counts * middles)
    squares = float((counts * middles ** 2).sum())
    codes = np.arange(number_of_codes)
    result = np.empty(len(thresholds))
    for start in range(0, len(thresholds), _BLOCK):
        steps = thresholds[start:start + _BLOCK, None] / (number_of_codes - 1)
        # Code j takes the middles from (j - 1/2) steps on; the last code all that remain.
        edges = np.ceil((codes - 0.5) * steps - 0.5).astype(int).clip(0, len(counts))
        edges = np.append(edges, np.full((len(steps), 1), len(counts)), axis=1)
        values = codes * steps
        result[start:start + _BLOCK] = squares - (
            values * (2 * np.diff(total[edges]) - values * np.diff(number[edges]))).sum(axis=1)
    return result


def mse_bins(counts: np.ndarray, codes: int = CODES) -> int:
    """
    Return the threshold of least squared error, in bins; of equal ones the largest.

    :param counts: integers >= 0
    :returns: from `codes` to len(counts), or len(counts) if there are fewer
    """
    if len(counts) < codes or not counts.any():
        return len(counts)
    errors = squared_errors(counts, np.arange(codes, len(counts) + 1), codes)
    best = np.flatnonzero(errors <= errors.min() * (1 + _ERROR_TIE))
    return int(best[-1]) + codes


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
