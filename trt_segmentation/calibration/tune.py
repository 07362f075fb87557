# SPDX-License-Identifier: Apache-2.0
"""
Tuning: which method, and which few layers in float, serve a network best.

The criterion is what the network says on images that it was not calibrated with, in the
vehicle's arithmetic. First each method as a whole; then, layer by layer, how much harm each one
does when it alone is in INT8; then the most harmful ones in float, one more at a time. Single
thresholds are not searched: what they win on the frames at hand they lose on the next drive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import LEVELS
from trt_segmentation.calibration.calibrator import Calibrator
from trt_segmentation.calibration.equalization import Network
from trt_segmentation.calibration.lab import Frame, Lab, Setting, Trial, WHOLE
from trt_segmentation.calibration.selection import Progress

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

T = TypeVar('T')


@dataclass(frozen=True)
class Tuning:
    """The best setting, all that was tried, and how each layer alone in INT8 does."""

    best: Trial
    trials: Sequence[Trial]
    sensitivity: Mapping[str, float]

    def record(self) -> manifest.Tuning:
        """Return it for the manifest."""
        return manifest.Tuning(self.best.setting.name,
                               tuple(trial.record() for trial in self.trials),
                               dict(self.sensitivity))


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
    done = 0

    def step(value: T) -> T:
        nonlocal done
        done += 1
        progress('tuning', done)
        return value

    excluded = tuple(bundle.spec.calibration.exclude)
    trials = []
    for method, percentile in CANDIDATES:
        thresholds = calibrator.thresholds(method, percentile=percentile, fixed=fixed)
        scales = {name: threshold.value / LEVELS for name, threshold in thresholds.items()}
        trials.append(step(lab.trial(
            Setting(method, percentile, scales, excluded, network.words))))
    best = max(trials, key=lambda trial: trial.score)
    if best.score < trials[0].score + _METHOD_MARGIN:
        best = trials[0]

    references = lab.references(_RANKING_FRAMES)
    sensitivity = {layer: step(lab.alone(best.setting, layer, references))
                   for layer in lab.int8_layers(best.setting)}
    setting = best.setting
    futile = 0
    for layer in sorted(sensitivity, key=sensitivity.__getitem__):
        more = replace(setting, exclude=(*setting.exclude, layer))
        if (lab.int8_share(more) or 0) < bundle.spec.acceptance.min_int8_share:
            continue  # too large to leave in float
        setting = more
        trials.append(step(lab.trial(setting)))
        if _worth(trials[-1]) > _worth(best):
            best, futile = trials[-1], 0
        else:
            futile += 1
        if futile == _PATIENCE:
            break
    return Tuning(best, trials, sensitivity)


def _worth(trial: Trial) -> float:
    """Return a trial's score less what its layers in float cost."""
    return (trial.score - _LAYER_GAIN * len(trial.setting.exclude)
            - _WORK_GAIN * (1 - (trial.int8_share or 0)))
