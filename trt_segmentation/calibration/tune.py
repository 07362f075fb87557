# SPDX-License-Identifier: Apache-2.0
"""
Tuning: which method, and which few layers in float, serve a network best.

The criterion is what the network says on images that it was not calibrated with, in the
vehicle's arithmetic. First each method as a whole; then, layer by layer, how much harm each one
does when it alone is in INT8; then the most harmful ones in float, one more at a time, whether it
gains or not, since some gain together; and from the best of these on, one more at a time that goes
back to INT8 if it gains nothing. Single thresholds are not searched: what they win on the frames
at hand they lose on the next drive.

How much is tried follows from the network: each method once, each layer once, and then two
settings a layer at most. Where that would take too long, each of the four parts ends at its limit
of time with what it has, which the result names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import TypeVar

from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import LEVELS
from trt_segmentation.calibration.calibrator import Calibrator
from trt_segmentation.calibration.equalization import Network
from trt_segmentation.calibration.lab import Frame, Lab, Setting, Trial, WHOLE
from trt_segmentation.calibration.selection import Progress
from trt_segmentation.networks.layers import int8_share

#: Methods with the share of values they keep, the default first.
CANDIDATES = (('mse', WHOLE), ('entropy', WHOLE), ('percentile', 99.99),
              ('percentile', 99.999), ('percentile', 99.9999), ('minmax', WHOLE))
# Another method than the first must be better by this much. A method that clips more can do
# better on the frames at hand, and worse where the next drive has larger values.
_METHOD_MARGIN = 0.05
# What layers in float must gain of the score: this much each, which is noise, and this much for
# the whole of the work, as they take longer in float.
_LAYER_GAIN, _WORK_GAIN = 0.001, 0.1
# The search ends when so many layers in a row gained nothing.
_PATIENCE = 8
# Frames that are enough to rank layers; the choices are made on all.
_RANKING_FRAMES = 2
# Seconds after which a part of the search begins nothing new.
_LIMIT_S = 600.0

T = TypeVar('T')


@dataclass(frozen=True)
class Tuning:
    """The best setting, all that was tried, how layers alone in INT8 do, and what had no time."""

    best: Trial
    trials: Sequence[Trial]
    sensitivity: Mapping[str, float]
    limits: Sequence[str]

    def record(self) -> manifest.Tuning:
        """Return it for the manifest."""
        return manifest.Tuning(self.best.setting.name,
                               tuple(trial.record() for trial in self.trials),
                               dict(self.sensitivity), tuple(self.limits))


def tune(bundle: Bundle, network: Network, calibrator: Calibrator,
         fixed: Mapping[str, float | str], frames: Sequence[Frame], progress: Progress) -> Tuning:
    """
    Search the best setting.

    :param network: the one that the vehicle gets
    :param calibrator: with the statistics of the calibration's images
    :param fixed: as `Calibrator.thresholds` takes it
    :param frames: images that were not calibrated with
    """
    lab = Lab(bundle, network.model, frames)
    done = Counter[str]()

    def step(value: T, stage: str, of: int | None) -> T:
        done[stage] += 1
        progress(stage, done[stage], of)
        return value

    excluded = tuple(bundle.spec.calibration.exclude)
    trials, limits = [], list[str]()
    for method, percentile in _timely(CANDIDATES, 'methods were tried', limits):
        thresholds = calibrator.thresholds(method, percentile=percentile, fixed=fixed)
        scales = {name: threshold.value / LEVELS for name, threshold in thresholds.items()}
        trials.append(step(lab.trial(
            Setting(method, percentile, scales, excluded, network.words)),
            'trying methods', len(CANDIDATES)))
    best = max(trials, key=lambda trial: trial.score)
    if best.score < trials[0].score + _METHOD_MARGIN:
        best = trials[0]

    setting = best.setting
    layers = lab.layers(setting)

    def fits(floats: Sequence[str]) -> bool:
        """Tell whether enough of the work is in INT8 with some more layers in float."""
        share = int8_share(replace(layer, precision='float') if layer.name in floats else layer
                           for layer in layers)
        return (share or 0) >= bundle.spec.acceptance.min_int8_share

    # Those that cost least in float first, in case there is no time for all.
    candidates = sorted((layer for layer in layers
                         if layer.precision == 'int8' and fits([layer.name])),
                        key=lambda layer: layer.macs or 0)
    references = lab.references(_RANKING_FRAMES) if candidates else []
    sensitivity = {layer.name: step(lab.alone(setting, layer.name, references),
                                    'ranking layers', len(candidates))
                   for layer in _timely(candidates, 'layers were ranked', limits)}
    ranked = sorted(sensitivity, key=sensitivity.__getitem__)
    for goes_back in (False, True):
        floats, futile = [*best.setting.exclude[len(excluded):]], 0
        for name in _timely([name for name in ranked if name not in floats],
                            'layers were considered for float', limits):
            other = replace(setting, exclude=(*excluded, *floats, name))
            if not fits([*floats, name]) or other.name in [
                    trial.setting.name for trial in trials]:
                continue
            trials.append(step(lab.trial(other), 'leaving layers in float', None))
            futile += 1
            if _worth(trials[-1]) > _worth(best):
                best, futile = trials[-1], 0
            if best is trials[-1] or not goes_back:
                floats.append(name)
            if futile == _PATIENCE:
                break
    return Tuning(best, trials, sensitivity, limits)


def _timely(items: Sequence[T], what: str, limits: list[str]) -> Iterator[T]:
    """Yield items, the first in any case, until their time is over; then note of how many."""
    end = monotonic() + _LIMIT_S
    for number, item in enumerate(items):
        if number and monotonic() >= end:
            limits.append(f'{_LIMIT_S / 60:g} minutes were over when {number} of {len(items)} '
                          f'{what}')
            return
        yield item


def _worth(trial: Trial) -> float:
    """Return a trial's score less what its layers in float cost."""
    return (trial.score - _LAYER_GAIN * len(trial.setting.exclude)
            - _WORK_GAIN * (1 - (trial.int8_share or 0)))
