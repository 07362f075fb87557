# SPDX-License-Identifier: Apache-2.0
"""
Whether to equalize the channels of a network's activations: tried on images that are held out.

Three networks are compared in the vehicle's arithmetic: the one there is, the one in which those
tensors are equalized whose channels gain much by it, and the one in which all are. What is behind
an equalized tensor costs an engine a multiplication at most, so each must gain more than noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import LEVELS
from trt_segmentation.calibration.calibrator import Calibrator, Statistics
from trt_segmentation.calibration.lab import Frame, Lab, Setting, Trial, WHOLE
from trt_segmentation.calibration.selection import Progress
from trt_segmentation.networks.equalize import equalize, targets
from trt_segmentation.networks.model import onnx

EQUALIZE = ('auto', 'off')
#: Images to try it on; more would take longer than the calibration itself.
TRIAL_IMAGES = 4
# The mean gain of a tensor's channels, in dB, below which it is left alone; and that of a tensor
# whose channels are very unequal.
_SOME_GAIN, _LARGE_GAIN = 1.0, 6.0
# What a network must gain of the score (0..1) before it takes the place of a simpler one.
_MARGIN = 0.001


@dataclass(frozen=True)
class Network:
    """
    A network that is to be quantized.

    equalized: which of its tensors are equalized, in words; '' for the bundle's own network
    names: for each equalized tensor, the name of the tensor it was made of
    """

    model: onnx.ModelProto
    equalized: str = ''
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """The network that was chosen, and what was tried."""

    network: Network
    trials: Sequence[Trial] = ()

    def record(self, network: manifest.File | None) -> manifest.Equalization:
        """Return it for the manifest; `network` is the file of the chosen one."""
        return manifest.Equalization(
            self.network.equalized, network, tuple(sorted(self.network.names.values())),
            tuple(trial.record() for trial in self.trials))


def choose(bundle: Bundle, model: onnx.ModelProto, calibrator: Calibrator, method: str,
           percentile: float, fixed: Mapping[str, float | str], frames: Sequence[Frame],
           progress: Progress) -> Choice:
    """
    Return the network that does best on some frames.

    The calibrator's statistics then have the tensors of that network too.

    :param model: the bundle's network
    :param calibrator: with the statistics of all images, by channel too
    :param method, percentile, fixed: as `Calibrator.thresholds` takes them
    :param frames: images that were not calibrated with, with the float network's masks
    """
    exclude = tuple(bundle.spec.calibration.exclude)
    factors, gains = {}, {}
    for name in targets(model, exclude):
        channels = calibrator.channels.get(name)
        if channels is not None and name not in fixed:
            factors[name] = channels.factors()
            gains[name] = (channels.signal_to_noise(factors[name])
                           - channels.signal_to_noise(np.ones_like(factors[name])))
    original = dict(calibrator.statistics)
    best: tuple[Network, dict[str, Statistics]] = (Network(model), original)
    trials: list[Trial] = []
    chosen: Trial | None = None
    done = ''
    for words, least in (('', np.inf), ('unequal channels', _LARGE_GAIN),
                         ('all channels', _SOME_GAIN)):
        taken = [name for name, gain in gains.items() if gain >= least]
        if words and str(taken) == done:
            continue  # the same as before, or none
        done = str(taken)
        network = Network(model)
        if taken:
            derived, names = equalize(model, {name: factors[name] for name in taken}, exclude)
            network = Network(derived, words, {new: old for old, new in names.items()})
        calibrator.statistics = _with_equalized(original, calibrator, network, factors)
        thresholds = calibrator.thresholds(method, percentile=percentile, fixed=fixed)
        setting = Setting(
            method, percentile if method == 'percentile' else WHOLE,
            {name: threshold.value / LEVELS for name, threshold in thresholds.items()},
            exclude, network.equalized)
        trials.append(Lab(bundle, network.model, frames).trial(setting))
        progress('equalizing', len(trials))
        if chosen is None or trials[-1].score > chosen.score + _MARGIN:
            chosen, best = trials[-1], (network, calibrator.statistics)
    network, calibrator.statistics = best
    return Choice(network, trials)


def _with_equalized(statistics: Mapping[str, Statistics], calibrator: Calibrator,
                    network: Network, factors: Mapping[str, np.ndarray]) -> dict[str, Statistics]:
    """Return the statistics of a network's tensors, the equalized ones behind what they are of."""
    of = {old: new for new, old in network.names.items()}
    found = {}
    for name, known in statistics.items():
        found[name] = known
        if name in of:
            histogram = calibrator.channels[name].histogram(factors[name])
            found[of[name]] = Statistics(-histogram.amax, histogram.amax, histogram,
                                         [(calibrator.images, histogram.amax)])
    return found
