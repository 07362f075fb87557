# SPDX-License-Identifier: Apache-2.0
"""What is known of a network's activations as a header for JSON and a few arrays, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from trt_segmentation.calibration.calibrator import Calibrator, Statistics
from trt_segmentation.calibration.channels import Channels
from trt_segmentation.calibration.exact import ExactSum
from trt_segmentation.calibration.histogram import Histogram
from trt_segmentation.calibration.moments import Moments

Arrays = Mapping[str, np.ndarray]


class Known(NamedTuple):
    """A calibrator's statistics, as it has them, over a number of images."""

    images: int
    statistics: dict[str, Statistics]
    channels: dict[str, Channels]
    moments: dict[str, Moments]


def packed(calibrator: Calibrator) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what `unpacked` takes: the same for the same images, whatever order they came in."""
    statistics = dict(sorted(calibrator.statistics.items()))
    histograms = {name: each.histogram for name, each in statistics.items()
                  if each.histogram is not None}
    channels = dict(sorted(calibrator.channels.items()))
    moments = dict(sorted(calibrator.moments.items()))
    sums = {name: each.summed.rounded() for name, each in moments.items()}
    products = {name: each.product.rounded() for name, each in moments.items()
                if each.product is not None}
    header = {
        'images': calibrator.images, 'tensors': list(statistics), 'histograms': list(histograms),
        'channels': {name: [each.images, len(each.amax)] for name, each in channels.items()},
        # Beyond any integer of NumPy's: the sums are exact.
        'sums': {name: [f'{value:x}' for value in each.summed] for name, each in channels.items()},
        'moments': {name: [each.number, *sums[name].shape[1:], int(name in products)]
                    for name, each in moments.items()},
    }
    return header, {
        'ranges': np.array([[each.minimum, each.maximum] for each in statistics.values()],
                           np.float64),
        **packed_histograms(histograms.values()),
        'channel_amax': _joined((each.amax for each in channels.values()), np.float64),
        'channel_counts': _joined((each.counts for each in channels.values()), np.int64),
        **_packed_sums('moment_sums', sums.values()),
        **_packed_sums('moment_products', map(_upper, products.values())),
    }


def unpacked(header: Mapping[str, Any], arrays: Arrays) -> Known:
    """Return what was packed; raises ValueError, KeyError or TypeError for what was not."""
    images = int(header['images'])
    histograms = dict(zip(header['histograms'], unpacked_histograms(arrays), strict=True))
    statistics = {}
    for name, (minimum, maximum) in zip(header['tensors'], arrays['ranges'].tolist(),
                                        strict=True):
        statistics[name] = found = Statistics(minimum, maximum, histograms.get(name))
        if found.amax:
            found.growth.append((images, found.amax))
    amax, counts = _Reader(arrays['channel_amax']), _Reader(arrays['channel_counts'])
    bins = counts.size // max(1, amax.size)
    channels = {
        name: Channels(number, np.array([int(text, 16) for text in header['sums'][name]], object),
                       amax.take(size), counts.take(size, bins))
        for name, (number, size) in header['channels'].items()}
    moments = {}
    sums, products = (_sums(arrays, name) for name in ('moment_sums', 'moment_products'))
    for name, (number, groups, size, whole) in header.get('moments', {}).items():
        product = None
        if whole:
            rows, columns = np.triu_indices(size)
            upper = products.take(groups, len(rows))
            parts = np.empty((len(upper), groups, size, size))
            parts[..., rows, columns] = parts[..., columns, rows] = upper
            product = ExactSum(parts)
        moments[name] = Moments(number, ExactSum(sums.take(groups, size)), product)
    return Known(images, statistics, channels, moments)


def packed_histograms(histograms: Iterable[Histogram], prefix: str = '') -> dict[str, np.ndarray]:
    """Return histograms as arrays, whose names begin with a prefix."""
    histograms = list(histograms)
    return {
        f'{prefix}exponents': np.array([each.exponent for each in histograms], np.int64),
        f'{prefix}amax': np.array([each.amax for each in histograms], np.float64),
        f'{prefix}lengths': np.array([len(each.counts) for each in histograms], np.int64),
        f'{prefix}counts': _joined((each.counts for each in histograms), np.int64),
    }


def unpacked_histograms(arrays: Arrays, prefix: str = '') -> list[Histogram]:
    """Return the histograms; raises ValueError for what cannot be one."""
    counts = _Reader(arrays[f'{prefix}counts'])
    return [Histogram.restored(exponent, amax, counts.take(length))
            for exponent, amax, length in zip(*(
                arrays[f'{prefix}{name}'].tolist() for name in ('exponents', 'amax', 'lengths')),
                strict=True)]


def _packed_sums(name: str, sums: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Return exact sums as an array; and what it lacks as another, where it lacks something."""
    flat = [each.reshape(len(each), -1) for each in sums]
    most = max([1, *map(len, flat)])
    first, *rest = np.concatenate([np.empty((most, 0)), *(
        np.pad(each, ((0, most - len(each)), (0, 0))) for each in flat)], axis=1)
    return {name: first, **({f'{name}_rest': np.array(rest)} if rest else {})}


def _sums(arrays: Arrays, name: str) -> _Reader:
    """Return a reader of the parts of exact sums; raises ValueError if they are none."""
    first = arrays.get(name, np.empty(0))  # none, in a file from before there were any
    parts = np.stack([first, *arrays.get(f'{name}_rest', ())])
    if not np.isfinite(parts).all():
        raise ValueError(f'{name}: not finite')
    return _Reader(parts)


def _upper(matrices: np.ndarray) -> np.ndarray:
    """Return the upper triangles of symmetric matrices: (..., numbers)."""
    rows, columns = np.triu_indices(matrices.shape[-1])
    return matrices[..., rows, columns]


def _joined(arrays: Iterable[np.ndarray], dtype: type) -> np.ndarray:
    """Return the values of arrays one behind the other, as one array of a type."""
    return np.concatenate([np.empty(0, dtype), *(each.ravel() for each in arrays)]).astype(dtype)


class _Reader:
    """Takes arrays from the front of one that has them all; of each row of one that has rows."""

    def __init__(self, array: np.ndarray):
        """Begin at the front."""
        self._array, self._at = array, 0
        self.size = array.shape[-1]

    def take(self, *shape: int) -> np.ndarray:
        """Return a copy of the next ones, in a shape; raises ValueError where there are fewer."""
        start = self._at
        self._at += int(np.prod(shape))
        found = self._array[..., start:self._at]
        return found.reshape(*found.shape[:-1], *shape).copy()
