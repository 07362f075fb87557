# SPDX-License-Identifier: Apache-2.0
"""
Tuning: which method, which thresholds and which few layers in float serve a network best.

The criterion is what the network says on images that it was not calibrated with, in the
vehicle's arithmetic. Three searches, one after the other: each method as a whole; for the layers
that hurt most when they alone are in INT8, other thresholds of their inputs; then those layers
in float, one by one, as long as each one gains enough.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
import math
from typing import Any

import numpy as np

from trt_segmentation import onnx_model
from trt_segmentation.bundle import Bundle
from trt_segmentation.cache import LEVELS
from trt_segmentation.calibration import methods
from trt_segmentation.calibration.calibrator import Calibrator
from trt_segmentation.calibration.methods import Threshold
from trt_segmentation.calibration.selection import Progress
from trt_segmentation.engines.onnxruntime import input_shapes, OnnxRuntimeEngine
from trt_segmentation.metrics import Confusion
from trt_segmentation.preprocessing import Preprocessor
from trt_segmentation.quantization import quantize, Quantized
from trt_segmentation.segmenter import CLASSES, CpuSegmenter

CANDIDATES = (('mse', 0.0), ('entropy', 0.0), ('percentile', 99.99), ('percentile', 99.999),
              ('percentile', 99.9999), ('minmax', 0.0))
# Thresholds of a sensitive layer's input to try, as multiples of the method's.
_FACTORS = (0.5, 0.71, 1.41, 2.0)
# A layer costs time in float. It must gain this much of the score to be left there.
_MIN_GAIN = 0.005
_MAX_EXCLUDED = 8
_MAX_REFINED = 12
# Frames that are enough to rank layers; the choices are made on all.
_RANKING_FRAMES = 2


@dataclass(frozen=True)
class Frame:
    """A held-out image with the mask that it should have, both BGR and train ids as usual."""

    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Setting:
    """A way to quantize the network: thresholds by tensor, and nodes that stay in float."""

    name: str
    method: str
    percentile: float
    thresholds: Mapping[str, Threshold]
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trial:
    """
    A setting and what came of it, each a share 0..1.

    agreement: pixels with the wanted class; iou: mean over classes; classes: IoU by class
    int8_share: of the convolution work
    """

    setting: Setting
    agreement: float
    iou: float
    classes: Mapping[str, float] = field(repr=False)
    int8_share: float

    @property
    def score(self) -> float:
        """The mean of agreement and IoU: of all pixels, and of small classes."""
        return (self.agreement + self.iou) / 2

    def as_json(self) -> dict[str, Any]:
        """Return it for the manifest."""
        return {'name': self.setting.name, 'agreement': self.agreement, 'iou': self.iou,
                'int8_share': self.int8_share, 'exclude': list(self.setting.exclude),
                'classes': {name: None if iou != iou else iou
                            for name, iou in self.classes.items()}}


@dataclass(frozen=True)
class Tuning:
    """The best setting, all that was tried, and how each layer alone in INT8 does."""

    best: Trial
    trials: Sequence[Trial]
    sensitivity: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return it for the manifest."""
        return {'chosen': self.best.setting.name,
                'trials': [trial.as_json() for trial in self.trials],
                'sensitivity_db': dict(self.sensitivity)}


def tune(bundle: Bundle, calibrator: Calibrator, fixed: Mapping[str, float],
         frames: Sequence[Frame], progress: Progress) -> Tuning:
    """
    Search the best setting.

    :param calibrator: with the statistics of the calibration's images
    :param fixed: thresholds that are given
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
        name = f'{method} {percentile:g}' if percentile else method
        thresholds = calibrator.thresholds(method, percentile=percentile, fixed=fixed)
        trials.append(step(lab.trial(Setting(name, method, percentile, thresholds, excluded))))
    best = max(trials, key=lambda trial: trial.score)

    sensitivity = {layer: step(lab.alone(best.setting, [layer]))
                   for layer in lab.int8_layers(best.setting)}
    ranked = sorted(sensitivity, key=sensitivity.__getitem__)

    refined = dict(best.setting.thresholds)
    for tensor in dict.fromkeys(lab.inputs[layer] for layer in ranked[:_MAX_REFINED]):
        if tensor not in fixed:
            refined[tensor] = _refine(lab, best.setting, tensor, calibrator, step)
    trials.append(step(lab.trial(replace(
        best.setting, name=f'{best.setting.name}, refined', thresholds=refined))))
    best = max(best, trials[-1], key=lambda trial: trial.score)

    base = best.setting
    for layer in ranked[:_MAX_EXCLUDED]:
        exclude = (*best.setting.exclude, layer)
        trial = step(lab.trial(replace(
            base, exclude=exclude, name=f'{base.name}, {len(exclude)} layers in float')))
        trials.append(trial)
        if (trial.score >= best.score + _MIN_GAIN
                and trial.int8_share >= bundle.spec.acceptance.min_int8_share):
            best = trial
    return Tuning(best, trials, sensitivity)


def _refine(lab: _Lab, setting: Setting, tensor: str, calibrator: Calibrator, step: Any
            ) -> Threshold:
    """Return the threshold with which the layers that read a tensor, alone in INT8, do best."""
    statistics = calibrator.statistics[tensor]
    readers = [layer for layer in lab.int8_layers(setting) if lab.inputs[layer] == tensor]
    chosen = setting.thresholds[tensor]
    best = step(lab.alone(setting, readers))
    for factor in _FACTORS:
        value = min(setting.thresholds[tensor].value * factor, statistics.amax)
        candidate = replace(methods.fixed(value, statistics.histogram), method='tuned')
        found = step(lab.alone(replace(
            setting, thresholds={**setting.thresholds, tensor: candidate}), readers))
        if found > best:
            best, chosen = found, candidate
    return chosen


class _Lab:
    """Runs settings on the held-out frames."""

    def __init__(self, bundle: Bundle, frames: Sequence[Frame]):
        self._bundle = bundle
        self._frames = frames
        self._model = onnx_model.load(bundle.model_path)
        #: The tensor that each node reads first, by the node's name.
        self.inputs = {onnx_model.node_name(node): node.input[0]
                       for node in self._model.graph.node if node.input}
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

    def int8_layers(self, setting: Setting) -> list[str]:
        """Return the names of the layers that a setting runs in INT8."""
        return [layer.name for layer in self._quantize(setting).layers
                if layer.precision == 'int8']

    def alone(self, setting: Setting, layers: Collection[str]) -> float:
        """Return the output's signal to noise, in dB, with some layers alone in INT8."""
        others = [name for name in self.int8_layers(setting) if name not in layers]
        engine = _engine(self._quantize(replace(setting, exclude=(*setting.exclude, *others))))
        signal = noise = 0.0
        for tensor, expected in zip(self._tensors, self._outputs):
            found = self._output(engine, tensor)
            signal += float(np.square(expected).sum())
            noise += float(np.square(expected - found).sum())
        engine.close()
        return 10 * math.log10(signal / noise) if signal and noise else math.inf

    def _quantize(self, setting: Setting) -> Quantized:
        """Return the network in the vehicle's flavor."""
        scales = {name: threshold.value / LEVELS
                  for name, threshold in setting.thresholds.items()}
        return quantize(self._model, scales, 'tensorrt', exclude=setting.exclude,
                        input_shapes=input_shapes(self._bundle))

    def _output(self, engine: OnnxRuntimeEngine, tensor: np.ndarray) -> np.ndarray:
        """Return what the network says, as float64."""
        return engine.infer(tensor)[self._bundle.spec.output.tensor].astype(np.float64)


def _engine(quantized: Quantized) -> OnnxRuntimeEngine:
    """Return an engine that computes in the vehicle's arithmetic."""
    return OnnxRuntimeEngine(quantized.model.SerializeToString(), 'int8', unfused=True)
