# SPDX-License-Identifier: Apache-2.0
"""The methods: from a histogram to the magnitude that the largest INT8 code stands for."""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np

from trt_segmentation.calibration import entropy, METHODS, mse
from trt_segmentation.calibration.histogram import Histogram
from trt_segmentation.errors import InputError


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

    :param method: 'mse' (see `mse`), 'entropy' (see `entropy`), 'percentile' or 'minmax' (the
        largest magnitude)
    :param percentile: 0..100, the share of values not to be clipped, to a bin's precision
    :raises InputError: for another method
    """
    counts, width = histogram.counts, histogram.width
    if histogram.amax == 0:
        return whole_range(0)
    if method == 'minmax':
        return _judged(histogram.amax, method, histogram)
    if method == 'mse':
        value = min(mse.best_bins(counts) * width, histogram.amax)
    elif method == 'entropy':
        kept = entropy.best_bins(counts)
        # The middle of the first bin that is cut off, as published; not past what there is.
        value = min((kept + 0.5) * width, histogram.amax)
    elif method == 'percentile':
        cumulative = np.cumsum(counts)
        kept = int(np.searchsorted(cumulative, percentile / 100 * cumulative[-1])) + 1
        value = min(kept * width, histogram.amax)
    else:
        raise InputError(f'method: found {method!r}, expected one of {", ".join(METHODS)}')
    return _judged(value, method, histogram)


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
    bins = value / histogram.width
    beyond = histogram.counts[math.ceil(bins):].sum()
    sqnr = mse.signal_to_noise(histogram.counts, bins)
    return Threshold(value, method, float(beyond / max(histogram.total, 1)),
                     sqnr if math.isfinite(sqnr) else None)
