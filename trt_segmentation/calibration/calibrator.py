# SPDX-License-Identifier: Apache-2.0
"""What is known of each activation after any number of images, and its INT8 threshold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
import copy
from dataclasses import dataclass, field
import math
import os

import numpy as np

from trt_segmentation.calibration import methods
from trt_segmentation.calibration.histogram import Histogram
from trt_segmentation.calibration.observer import Observation


@dataclass
class Statistics:
    """
    The values of one activation over all images.

    minimum, maximum: over all images
    histogram: of the magnitudes; None for an activation that no layer quantizes
    growth: (number of images, amax) each time amax grew
    earlier: the histogram after some numbers of images: would fewer have done?
    """

    minimum: float = math.inf
    maximum: float = -math.inf
    histogram: Histogram | None = None
    growth: list[tuple[int, float]] = field(default_factory=list)
    earlier: dict[int, Histogram] = field(default_factory=dict)

    @property
    def amax(self) -> float:
        """Return the largest magnitude seen; 0 before the first image."""
        return max(self.maximum, -self.minimum, 0.0)


class NotFinite(Exception):
    """An image for which the float network computes nan or infinity."""


class Calibrator:
    """Collects the activations of image after image; only counts and ranges are kept."""

    def __init__(self, activations: Collection[str], quantized: Collection[str]):
        """
        Start with no image.

        :param activations: all names, in the order in which the cache shall have them
        :param quantized: those to keep a histogram of
        """
        self.images = 0
        self.statistics = {
            name: Statistics(histogram=Histogram() if name in quantized else None)
            for name in activations}
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def add(self, observations: Iterable[Observation]) -> None:
        """
        Count one image in, which comes in parts.

        :raises NotFinite: and counts nothing, if an activation is not finite
        """
        ranges: dict[str, tuple[float, float]] = {}
        histograms: dict[str, Histogram] = {}
        for observation in observations:
            # The largest first, so that no thread is left with one of them at the end.
            values = dict(sorted(observation.values.items(), key=lambda item: -item[1].size))
            counted = list(self._pool.map(_count, values.values()))
            histograms.update(zip(values, (histogram for histogram, _ in counted)))
            found = {**observation.ranges, **dict(zip(values, (pair for _, pair in counted)))}
            for name in filter(found.__contains__, self.statistics):  # the first in the graph
                pair = found[name]
                if not all(map(math.isfinite, pair)):
                    kind = 'nan' if any(map(math.isnan, pair)) else 'infinity'
                    raise NotFinite(f'the float network computes {kind} in tensor {name!r}')
            ranges.update(found)
        self.images += 1
        for name, (minimum, maximum) in ranges.items():
            statistics = self.statistics[name]
            before = statistics.amax
            statistics.minimum = min(statistics.minimum, minimum)
            statistics.maximum = max(statistics.maximum, maximum)
            if statistics.amax > before:
                statistics.growth.append((self.images, statistics.amax))
            if name in histograms:
                statistics.histogram.merge(histograms[name])

    def remember(self) -> None:
        """Keep a copy of each histogram as it is now."""
        for statistics in self.statistics.values():
            if statistics.histogram is not None:
                statistics.earlier[self.images] = copy.deepcopy(statistics.histogram)

    def thresholds(self, method: str, *, percentile: float, fixed: Mapping[str, float]
                   ) -> dict[str, methods.Threshold]:
        """
        Return the threshold of each activation.

        :param method: one of `methods.METHODS`
        :param percentile: for the method of that name
        :param fixed: thresholds that are given, by name
        """
        def find(item: tuple[str, Statistics]) -> methods.Threshold:
            name, statistics = item
            if name in fixed:
                return methods.fixed(fixed[name], statistics.histogram)
            if statistics.histogram is None:
                return methods.whole_range(statistics.amax)
            return methods.find(method, statistics.histogram, percentile=percentile)

        return dict(zip(self.statistics, self._pool.map(find, self.statistics.items())))


def _count(values: np.ndarray) -> tuple[Histogram, tuple[float, float]]:
    """Return the histogram of an array and its range; the histogram is empty if it has none."""
    histogram = Histogram()
    # NumPy's minimum and maximum are nan if any value is.
    minimum, maximum = float(values.min()), float(values.max())
    if math.isfinite(minimum) and math.isfinite(maximum):
        histogram.add(values, max(maximum, -minimum))
    return histogram, (minimum, maximum)
