# SPDX-License-Identifier: Apache-2.0
"""What is known of each activation after any number of images, and its INT8 threshold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
import copy
from dataclasses import dataclass, field
import math
from typing import TypeVar

import numpy as np

from trt_segmentation.calibration import methods
from trt_segmentation.calibration.channels import Channels
from trt_segmentation.calibration.histogram import Histogram
from trt_segmentation.calibration.moments import Moments, Window
from trt_segmentation.calibration.observer import Observation
from trt_segmentation.system import cores

_PART = 1 << 20  # values that are counted in one piece

_Mergeable = TypeVar('_Mergeable', Channels, Moments)


@dataclass
class Statistics:
    """
    The values of one activation over all images.

    minimum, maximum: over all images
    histogram: of the magnitudes; None for an activation that no layer quantizes
    growth: (number of images, amax) each time amax grew; none of a derived network's tensors,
        and one that goes on from earlier images begins with all of those
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


def check_finite(ranges: Mapping[str, tuple[float, float]], order: Iterable[str]) -> None:
    """
    Raise NotFinite, naming the first tensor, if a range is not finite.

    :param ranges: (smallest, largest) value by tensor; both are nan if any value is
    :param order: the tensors' names in the graph's order
    """
    for name in filter(ranges.__contains__, order):
        if not all(map(math.isfinite, ranges[name])):
            kind = 'nan' if any(map(math.isnan, ranges[name])) else 'infinity'
            raise NotFinite(f'the float network computes {kind} in tensor {name!r}')


@dataclass(frozen=True)
class Wanted:
    """
    What is looked at besides ranges and histograms.

    by_channel: the activations of which each channel is looked at
    windows: (activation, convolution that reads it, how it does) for all that it reads
    """

    by_channel: frozenset[str] = frozenset()
    windows: frozenset[tuple[str, str, Window]] = frozenset()


@dataclass(frozen=True)
class Counted:
    """
    One image's activations, by name.

    ranges: smallest and largest value; histograms: of those that are quantized
    channels: of those that are looked at by channel; moments: by convolution
    """

    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    channels: dict[str, Channels] = field(default_factory=dict)
    moments: dict[str, Moments] = field(default_factory=dict)


class Calibrator:
    """
    Collects the activations of image after image; only counts and ranges are kept.

    channels: by activation; moments: by convolution
    given: by activation, thresholds that are not to be searched any more
    """

    def __init__(self, activations: Collection[str], quantized: Collection[str],
                 wanted: Wanted = Wanted()):
        """
        Start with no image.

        :param activations: all names, in the order in which the cache shall have them
        :param quantized: those to keep a histogram of
        :param wanted: what is to be looked at of the latter besides
        """
        self.images = 0
        self.wanted = wanted
        self.channels: dict[str, Channels] = {}
        self.moments: dict[str, Moments] = {}
        self.given: dict[str, methods.Threshold] = {}
        self.statistics = {
            name: Statistics(histogram=Histogram() if name in quantized else None)
            for name in activations}
        self._pool = ThreadPoolExecutor(cores.cores())

    def merge(self, image: Counted) -> None:
        """Add what was counted of one image."""
        self.images += 1
        _merge(self.channels, image.channels)
        _merge(self.moments, image.moments)
        for name, (minimum, maximum) in image.ranges.items():
            statistics = self.statistics[name]
            before = statistics.amax
            statistics.minimum = min(statistics.minimum, minimum)
            statistics.maximum = max(statistics.maximum, maximum)
            if statistics.amax > before:
                statistics.growth.append((self.images, statistics.amax))
            if statistics.histogram is not None and name in image.histograms:
                statistics.histogram.merge(image.histograms[name])

    def keep(self, channels: Mapping[str, Channels], moments: Mapping[str, Moments]) -> None:
        """Go on from what is known of channels and windows, and look at no others."""
        self.wanted = Wanted(
            self.wanted.by_channel & frozenset(channels),
            frozenset(each for each in self.wanted.windows if each[1] in moments))
        self.channels = {name: channels[name] for name in sorted(self.wanted.by_channel)}
        self.moments = {name: moments[name] for name in sorted(
            layer for _, layer, _ in self.wanted.windows)}

    def remember(self) -> None:
        """Keep a copy of each histogram as it is now."""
        for statistics in self.statistics.values():
            if statistics.histogram is not None:
                statistics.earlier[self.images] = copy.deepcopy(statistics.histogram)

    def thresholds(self, method: str, *, percentile: float, fixed: Mapping[str, float | str]
                   ) -> dict[str, methods.Threshold]:
        """
        Return the threshold of each activation that shall have one.

        :param method: one of `METHODS`
        :param percentile: for the method of that name
        :param fixed: by name, a threshold that is given, 'minmax', or 'float' for none
        """
        def find(name: str) -> methods.Threshold:
            if name in self.given:
                return self.given[name]
            histogram = self.statistics[name].histogram
            wanted = fixed.get(name, method)
            if not isinstance(wanted, str):
                return methods.fixed(wanted, histogram)
            if histogram is None:
                return methods.whole_range(self.statistics[name].amax)
            return methods.find(wanted, histogram, percentile=percentile)

        names = [name for name in self.statistics if fixed.get(name) != 'float']
        return dict(zip(names, self._pool.map(find, names)))


def count(observations: Iterable[Observation], order: Sequence[str], wanted: Wanted,
          pool: Executor) -> Counted:
    """
    Count one image, which comes in parts.

    :param order: the activations in the graph's order
    :param wanted: what is looked at besides ranges and histograms
    :param pool: threads that count
    :raises NotFinite: if an activation is not finite
    """
    image = Counted()
    counting: list[tuple[Observation, dict[str, list[Future]], dict[str, Future],
                         dict[str, Future]]] = []

    def finish() -> None:
        observation, parts, looking, windows = counting.pop()
        image.channels.update((name, future.result()) for name, future in looking.items())
        image.moments.update((name, future.result()) for name, future in windows.items())
        found = dict(observation.ranges)
        for name, futures in parts.items():
            counted = [future.result() for future in futures]
            found[name] = (_smallest(minimum for _, minimum, _ in counted),
                           -_smallest(-maximum for _, _, maximum in counted))
            image.histograms[name] = counted[0][0]
            for histogram, _, _ in counted[1:]:
                image.histograms[name].merge(histogram)
        check_finite(found, order)
        image.ranges.update(found)

    # While one part is counted the network already computes the next.
    for observation in observations:
        if counting:
            finish()
        counting.append((observation, {
            name: [pool.submit(_count, part) for part in _parts(values)]
            for name, values in observation.values.items()}, {
            name: pool.submit(Channels.of, values)
            for name, values in observation.values.items() if name in wanted.by_channel}, {
            layer: pool.submit(Moments.of, observation.values[name], window)
            for name, layer, window in wanted.windows if name in observation.values}))
    finish()
    return image


def _merge(known: dict[str, _Mergeable], found: Mapping[str, _Mergeable]) -> None:
    """Count what was found of one image into what is known of those before."""
    for name, each in found.items():
        if name in known:
            known[name].merge(each)
        else:
            known[name] = each


def _parts(values: np.ndarray) -> list[np.ndarray]:
    """Return an array in parts that can be counted in parallel."""
    flat = values.reshape(-1)
    return [flat[start:start + _PART] for start in range(0, flat.size, _PART)]


def _count(values: np.ndarray) -> tuple[Histogram, float, float]:
    """Return an array's histogram and range; the histogram is empty if that is not finite."""
    histogram = Histogram()
    # NumPy's minimum and maximum are nan if any value is.
    minimum, maximum = float(values.min()), float(values.max())
    if math.isfinite(minimum) and math.isfinite(maximum):
        histogram.add(values, max(maximum, -minimum))
    return histogram, minimum, maximum


def _smallest(values: Iterable[float]) -> float:
    """Return the smallest value, or nan if one is."""
    return float(np.min(list(values)))
