# SPDX-License-Identifier: Apache-2.0
"""The methods: from a histogram to the magnitude that the largest INT8 code stands for."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    value: float
    method: str
    clipped: float | None = 0.0


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
        return whole_range(histogram.amax)
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
    return Threshold(value, method, _clipped(histogram, value))


def fixed(value: float, histogram: Histogram | None) -> Threshold:
    """Return a threshold that was given."""
    clipped = None if histogram is None else _clipped(histogram, value)
    return Threshold(value, 'fixed', clipped)


def whole_range(amax: float) -> Threshold:
    """Return the threshold that clips nothing."""
    if amax == 0:
        # Any positive scale is right for a tensor of zeros. None would send its layers to float.
        return Threshold(1.0, 'constant')
    return Threshold(amax, 'minmax')


def _clipped(histogram: Histogram, value: float) -> float:
    """Return the share of values above a threshold, to a bin's precision."""
    bins = int(np.ceil(value / histogram.width))
    return float(histogram.counts[bins:].sum() / max(histogram.total, 1))
