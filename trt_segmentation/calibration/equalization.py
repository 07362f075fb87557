# SPDX-License-Identifier: Apache-2.0
"""
What network of the same function is quantized best: tried on images that are held out.

Some networks are compared in the vehicle's arithmetic, each of them more than the one before: the
one there is; that with its weights rounded for what they read (`networks.rounding`); with tensors
centered that are never negative (`networks.center`); and with those tensors equalized whose
channels gain much by it, or all (`networks.equalize`). What is in front of a pair costs an engine
an elementwise operation at most, so each must gain more than noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import LEVELS
from trt_segmentation.bundles.spec import InputSpec
from trt_segmentation.calibration import methods
from trt_segmentation.calibration.calibrator import Calibrator, Statistics
from trt_segmentation.calibration.lab import Frame, Lab, Setting, Trial, WHOLE
from trt_segmentation.calibration.methods import Threshold
from trt_segmentation.calibration.selection import Progress
from trt_segmentation.networks import center, equalize
from trt_segmentation.networks.activations import activations
from trt_segmentation.networks.graph import Graph, node_name
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.placement import Placement
from trt_segmentation.networks.rounding import Inputs, with_rounded_weights

EQUALIZE = ('auto', 'off')
#: Images to try it on; more would take longer than the calibration itself.
TRIAL_IMAGES = 4
# The mean gain of a tensor's channels, in dB, below which it is left alone; and that of a tensor
# whose channels are very unequal.
_SOME_GAIN, _LARGE_GAIN = 1.0, 6.0
# What a network must gain of the score (0..1) before it takes the place of a simpler one. With
# 0.001 worse ones were taken, by what they gave on other frames of the road and sample networks.
_MARGIN = 0.0002


class _Step(NamedTuple):
    """A network to be tried: its name, the gain of a tensor to be equalized, and the rest."""

    words: str
    least: float = np.inf
    rounded: bool = True
    centered: bool = True


_STEPS = (
    _Step('', rounded=False, centered=False),
    _Step('weights rounded', centered=False),
    _Step('weights rounded, tensors centered'),
    _Step('weights rounded, tensors centered, unequal channels equalized', _LARGE_GAIN),
    _Step('weights rounded, tensors centered, all channels equalized', _SOME_GAIN))


@dataclass(frozen=True)
class Network:
    """
    A network that is to be quantized.

    words: what was done to it; '' for the bundle's own network
    names: for each equalized or centered tensor, the name of the tensor it was made of
    """

    model: onnx.ModelProto
    words: str = ''
    names: Mapping[str, str] = field(default_factory=dict)


class _Derived(NamedTuple):
    """A network, the statistics of its tensors, and thresholds that it was made for."""

    network: Network
    statistics: dict[str, Statistics]
    given: dict[str, Threshold]


@dataclass(frozen=True)
class Choice:
    """The network that was chosen, and what was tried."""

    network: Network
    trials: Sequence[Trial] = ()

    def record(self, network: manifest.File | None) -> manifest.Equalization:
        """Return it for the manifest; `network` is the file of the chosen one."""
        return manifest.Equalization(
            self.network.words, network, tuple(sorted(set(self.network.names.values()))),
            tuple(trial.record() for trial in self.trials))


def choose(bundle: Bundle, model: onnx.ModelProto, calibrator: Calibrator, method: str,
           percentile: float, fixed: Mapping[str, float | str], frames: Sequence[Frame],
           progress: Progress) -> Choice:
    """
    Return the network that does best on some frames.

    The calibrator's statistics and thresholds then have the tensors of that network too.

    :param model: the bundle's network
    :param calibrator: with the statistics of all images, by channel and by window too
    :param method, percentile, fixed: as `Calibrator.thresholds` takes them
    :param frames: images that were not calibrated with, with the float network's masks
    """
    exclude = tuple(bundle.spec.calibration.exclude)
    deriver = _Deriver(bundle.spec.input, model, exclude, calibrator, method, percentile, fixed)
    best = deriver.derive(_STEPS[0], ())
    trials: list[Trial] = []
    chosen: Trial | None = None
    steps: dict[object, tuple[_Step, tuple[str, ...]]] = {}
    for step in _STEPS:
        taken = tuple(name for name, gain in deriver.gains.items() if gain >= step.least)
        steps.setdefault((step.rounded, step.centered, taken), (step, taken))
    for step, taken in steps.values():
        derived = deriver.derive(step, taken)
        calibrator.statistics, calibrator.given = derived.statistics, derived.given
        thresholds = calibrator.thresholds(method, percentile=percentile, fixed=fixed)
        setting = Setting(
            method, percentile if method == 'percentile' else WHOLE,
            {name: threshold.value / LEVELS for name, threshold in thresholds.items()},
            exclude, derived.network.words)
        trials.append(Lab(bundle, derived.network.model, frames).trial(setting))
        progress('equalizing', len(trials), len(steps))
        if chosen is None or trials[-1].score > chosen.score + _MARGIN:
            chosen, best = trials[-1], derived
    calibrator.statistics, calibrator.given = best.statistics, best.given
    return Choice(best.network, trials)


class _Deriver:
    """Makes networks of one, by what is known of its tensors."""

    def __init__(self, image: InputSpec, model: onnx.ModelProto, exclude: Sequence[str],
                 calibrator: Calibrator, method: str, percentile: float,
                 fixed: Mapping[str, float | str]):
        """Find what each tensor would gain by equalization."""
        self._image, self._model, self._exclude = image, model, exclude
        self._method, self._percentile, self._fixed = method, percentile, fixed
        self._channels, self._moments = calibrator.channels, calibrator.moments
        self._original = dict(calibrator.statistics)
        self._factors: dict[str, np.ndarray] = {}
        #: By tensor, in dB.
        self.gains: dict[str, float] = {}
        for name in equalize.targets(model, exclude):
            channels = self._channels.get(name)
            if channels is not None and name not in fixed:
                factors = channels.factors()
                self._factors[name] = factors
                self.gains[name] = (channels.signal_to_noise(factors)
                                    - channels.signal_to_noise(np.ones_like(factors)))

    def derive(self, step: _Step, taken: Sequence[str]) -> _Derived:
        """Return the network of a step, in which some tensors are equalized."""
        model, names, on_the_way = self._model, dict[str, str](), set[str]()
        statistics, given = dict(self._original), dict[str, Threshold]()
        if taken:
            model, divided = equalize.equalize(
                model, {name: self._factors[name] for name in taken}, self._exclude,
                self._fixed)
            names = {equalized: quotient.of for equalized, quotient in divided.items()}
            on_the_way = {name for name, quotient in divided.items() if quotient.target != name}
            for equalized, quotient in divided.items():
                # What a Relu reads is not looked at by channel: it has the range behind it, which
                # is all that a kernel of convolution and Relu makes.
                seen = quotient if quotient.of in self._channels else divided[quotient.target]
                histogram = self._channels[seen.of].histogram(seen.factor)
                statistics[equalized] = Statistics(
                    -histogram.amax, histogram.amax, histogram)
        of: dict[str, str] = {}
        if step.centered:
            found = self._centered(model, names, statistics)
            model, new = center.center(model, {name: threshold.value for name, threshold
                                               in found.items()}, self._exclude)
            of = {centered: name for name, centered in new.items()}
            for centered, name in of.items():
                threshold = given[centered] = found[name]
                names[centered] = names.get(name, name)
                above = statistics[name].amax - threshold.value
                statistics[centered] = Statistics(-threshold.value, above)
        if step.rounded:
            model = with_rounded_weights(model, self._inputs(model, names, of, given),
                                         self._exclude)
        # Of the original's tensors too: an engine for the CPU is made of it with the same cache.
        kept = {name: statistics[name] for name in (*activations(model), *self._original)
                if name in statistics}
        return _Derived(Network(model, step.words, {
            name: source for name, source in names.items() if name not in on_the_way}),
            kept, given)

    def _centered(self, model: onnx.ModelProto, names: Mapping[str, str],
                  statistics: Mapping[str, Statistics]) -> dict[str, Threshold]:
        """Return the thresholds of the tensors to be centered; `names` are the equalized ones."""
        original = Placement(self._model, self._exclude).nonnegative
        found = {}
        for name in center.targets(model, {*statistics}, self._exclude):
            source = names.get(name, name)
            histogram = statistics[name].histogram
            if source == self._image.tensor:
                if self._image.is_nonnegative:
                    found[name] = Threshold(self._image.amax / 2, 'fixed', 0.0)
            elif source in original and source not in self._fixed and histogram is not None:
                threshold = methods.centered(self._method, histogram,
                                             percentile=self._percentile)
                if threshold.method != 'constant':
                    found[name] = threshold
        return found

    def _inputs(self, model: onnx.ModelProto, names: Mapping[str, str], of: Mapping[str, str],
                given: Mapping[str, Threshold]) -> dict[str, Inputs]:
        """Return what is known of the inputs of a derived network's convolutions."""
        found: dict[str, Inputs] = {}
        for node in Graph(model).nodes:
            moments = self._moments.get(node_name(node))
            if node.op_type == 'Conv' and moments is not None:
                equalized = of.get(node.input[0], node.input[0])
                source = names.get(equalized)
                offset = given[node.input[0]].value if node.input[0] in given else 0.0
                found[node_name(node)] = moments.inputs(
                    None if source is None else self._factors[source], offset)
        return found
