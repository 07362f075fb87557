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
from dataclasses import dataclass, field, replace
import math
from typing import Any

import numpy as np

from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import LEVELS
from trt_segmentation.calibration.calibrator import Calibrator
from trt_segmentation.calibration.selection import Progress
from trt_segmentation.engines.onnxruntime import input_shapes, OnnxRuntimeEngine
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.quantize import quantize, Quantized
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.segmenters.segmenter import CLASSES

_WHOLE = 100.0
#: Methods with the share of values they keep, the default first.
CANDIDATES = (('mse', _WHOLE), ('entropy', _WHOLE), ('percentile', 99.99),
              ('percentile', 99.999), ('percentile', 99.9999), ('minmax', _WHOLE))
# Another method than the first must be better by this much. A method that clips more can do
# better on the frames at hand, and worse where the next drive has larger values.
_METHOD_MARGIN = 0.05
# A layer costs time in float, so each one must gain this much of the score.
_LAYER_GAIN = 0.003
_MAX_EXCLUDED = 8
# Frames that are enough to rank layers; the choices are made on all.
_RANKING_FRAMES = 2
_NO_NOISE = 200.0  # dB; float32 itself has less


@dataclass(frozen=True)
class Frame:
    """A held-out image with the mask that it should have, both BGR and train ids as usual."""

    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Setting:
    """A way to quantize the network: scales by tensor, and nodes that stay in float."""

    method: str
    percentile: float
    scales: Mapping[str, float] = field(repr=False)
    exclude: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the setting in words."""
        name = self.method
        if self.percentile != _WHOLE:
            name += f' {self.percentile:g}'
        return name + (f', {len(self.exclude)} layers in float' if self.exclude else '')


@dataclass(frozen=True)
class Trial:
    """
    A setting and what came of it, each a share 0..1.

    agreement: pixels with the wanted class; iou: mean over classes; classes: IoU by class
    int8_share: of the convolution work; None if it is not known
    """

    setting: Setting
    agreement: float
    iou: float
    classes: Mapping[str, float] = field(repr=False)
    int8_share: float | None

    @property
    def score(self) -> float:
        """Return the mean of agreement and IoU: of all pixels, and of small classes."""
        return (self.agreement + self.iou) / 2

    def record(self) -> manifest.Trial:
        """Return it for the manifest."""
        return manifest.Trial(
            self.setting.name, self.agreement, self.iou, self.int8_share, self.setting.exclude,
            {name: None if math.isnan(iou) else iou for name, iou in self.classes.items()})


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


def tune(bundle: Bundle, calibrator: Calibrator, fixed: Mapping[str, float | str],
         frames: Sequence[Frame], progress: Progress) -> Tuning:
    """
    Search the best setting.

    :param calibrator: with the statistics of the calibration's images
    :param fixed: as `Calibrator.thresholds` takes it
    :param frames: images that were not calibrated with
    """
    lab = _Lab(bundle, frames)
    done = 0

    def step(value: Any) -> Any:
        nonlocal done
        done += 1
        progress('tuning', done)
        return value

    excluded = tuple(bundle.spec.calibration.exclude)
    trials = []
    for method, percentile in CANDIDATES:
        thresholds = calibrator.thresholds(method, percentile=percentile, fixed=fixed)
        trials.append(step(lab.trial(
            Setting(method, percentile, {name: threshold.value / LEVELS
                                         for name, threshold in thresholds.items()}, excluded))))
    best = max(trials, key=lambda trial: trial.score)
    if best.score < trials[0].score + _METHOD_MARGIN:
        best = trials[0]

    sensitivity = {layer: step(lab.alone(best.setting, layer))
                   for layer in lab.int8_layers(best.setting)}
    setting = best.setting
    for layer in sorted(sensitivity, key=sensitivity.__getitem__):
        if len(setting.exclude) == len(excluded) + _MAX_EXCLUDED:
            break
        more = replace(setting, exclude=(*setting.exclude, layer))
        if (lab.int8_share(more) or 0) < bundle.spec.acceptance.min_int8_share:
            continue  # too large to leave in float
        setting = more
        trials.append(step(lab.trial(setting)))
        best = max(best, trials[-1], key=_worth)
    return Tuning(best, trials, sensitivity)


def _worth(trial: Trial) -> float:
    """Return a trial's score less what its layers in float cost."""
    return trial.score - _LAYER_GAIN * len(trial.setting.exclude)


class _Lab:
    """Runs settings on the held-out frames."""

    def __init__(self, bundle: Bundle, frames: Sequence[Frame]):
        self._bundle = bundle
        self._frames = frames
        self._model = onnx_model.load(bundle.model_path)
        preprocess = Preprocessor(bundle.spec.input)
        self._tensors = [preprocess(frame.image) for frame in frames[:_RANKING_FRAMES]]
        reference = OnnxRuntimeEngine(bundle.model_path)
        self._outputs = [self._output(reference, tensor) for tensor in self._tensors]
        reference.close()

    def trial(self, setting: Setting) -> Trial:
        """Return what comes of a setting on all frames."""
        quantized = self._quantize(setting)
        confusion = Confusion(self._bundle.spec.labels)
        with CpuSegmenter(self._bundle.spec, _engine(quantized)) as segmenter:
            for frame in self._frames:
                confusion.add(frame.mask, segmenter.segment(frame.image, (CLASSES,)).classes)
        return Trial(setting, confusion.agreement, confusion.mean_class_iou,
                     confusion.class_iou, quantized.int8_share)

    def int8_share(self, setting: Setting) -> float | None:
        """Return the share of the work that a setting does in INT8."""
        return self._quantize(setting).int8_share

    def int8_layers(self, setting: Setting) -> list[str]:
        """Return the names of the layers that a setting runs in INT8."""
        return [layer.name for layer in self._quantize(setting).layers
                if layer.precision == 'int8']

    def alone(self, setting: Setting, layer: str) -> float:
        """Return the output's signal to noise, in dB, with one layer alone in INT8."""
        others = [name for name in self.int8_layers(setting) if name != layer]
        engine = _engine(self._quantize(replace(setting, exclude=(*setting.exclude, *others))))
        signal = noise = 0.0
        for tensor, expected in zip(self._tensors, self._outputs):
            found = self._output(engine, tensor)
            signal += float(np.square(expected).sum())
            noise += float(np.square(expected - found).sum())
        engine.close()
        return 10 * math.log10(signal / noise) if signal and noise else _NO_NOISE

    def _quantize(self, setting: Setting) -> Quantized:
        """Return the network in the vehicle's flavor."""
        return quantize(self._model, setting.scales, 'tensorrt', exclude=setting.exclude,
                        input_shapes=input_shapes(self._bundle))

    def _output(self, engine: OnnxRuntimeEngine, tensor: np.ndarray) -> np.ndarray:
        """Return what the network says, as float64."""
        return engine.infer(tensor)[self._bundle.spec.output.tensor].astype(np.float64)


def _engine(quantized: Quantized) -> OnnxRuntimeEngine:
    """Return an engine that computes in the vehicle's arithmetic."""
    return OnnxRuntimeEngine(quantized.model.SerializeToString(), 'int8', unfused=True)
