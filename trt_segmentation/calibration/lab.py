# SPDX-License-Identifier: Apache-2.0
"""Trying ways to quantize a network, in the vehicle's arithmetic, on frames that are held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
import math

import numpy as np

from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.acceptance import enough_to_judge
from trt_segmentation.engines.onnxruntime import emulated, input_shapes, OnnxRuntimeEngine
from trt_segmentation.errors import counted
from trt_segmentation.evaluation.metrics import Confusion, mean
from trt_segmentation.networks.layers import Layer
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.quantize import quantize, Quantized
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.segmenters.segmenter import CLASSES

WHOLE = 100.0
_NO_NOISE = 200.0  # dB; float32 itself has less


@dataclass(frozen=True)
class Frame:
    """
    A held-out image with the mask that it should have, both BGR and train ids as usual.

    labelled: whether somebody made the mask, and left out what is 255; a float network's says
        there that it is no class, from which a class is a difference, as `build` counts it
    """

    image: np.ndarray
    mask: np.ndarray
    labelled: bool = False


@dataclass(frozen=True)
class Setting:
    """
    A way to quantize the network.

    scales: by tensor; exclude: nodes that stay in float
    network: what was done to the network, in words, or ''
    """

    method: str
    percentile: float
    scales: Mapping[str, float] = field(repr=False)
    exclude: tuple[str, ...] = ()
    network: str = ''

    @property
    def name(self) -> str:
        """Return the setting in words."""
        name = self.method
        if self.percentile != WHOLE:
            name += f' {self.percentile:g}'
        if self.network:
            name += f', {self.network}'
        return name + (f', {counted(len(self.exclude), "layer")} in float, '
                       f'{self.exclude[-1]} the last' if self.exclude else '')


@dataclass(frozen=True)
class Trial:
    """
    A setting and what came of it, each a share 0..1.

    agreement: pixels with the wanted class, see `Frame`; classes: IoU by class
    iou: mean over the classes that the acceptance would judge by; those of a few pixels, whose
        IoU changes with any of them, have no part in the choice either
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


class Lab:
    """Runs settings of one network on held-out frames."""

    def __init__(self, bundle: Bundle, model: onnx.ModelProto, frames: Sequence[Frame]):
        """Take the network, which is the bundle's or one that was derived from it."""
        self._bundle = bundle
        self._model = model
        self._frames = frames

    def trial(self, setting: Setting) -> Trial:
        """Return what comes of a setting on all frames."""
        quantized = self._quantize(setting)
        confusion = Confusion(self._bundle.spec.labels)
        with CpuSegmenter(self._bundle.spec, emulated(quantized)) as segmenter:
            for frame in self._frames:
                confusion.add(frame.mask, segmenter.segment(frame.image, (CLASSES,)).classes)
        classes, shares = confusion.class_iou, confusion.class_share
        judged = [iou for name, iou in classes.items() if enough_to_judge(shares[name])]
        agreement = (confusion.agreement if all(frame.labelled for frame in self._frames)
                     else confusion.agreement_of_either)
        return Trial(setting, agreement, mean(judged), classes, quantized.int8_share)

    def layers(self, setting: Setting) -> tuple[Layer, ...]:
        """Return the layers that multiply, each with what a setting runs it in."""
        return self._quantize(setting).layers

    def references(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the input and the float network's output of the first frames."""
        preprocess = Preprocessor(self._bundle.spec.input)
        engine = OnnxRuntimeEngine(self._bundle.model_path)
        try:
            tensors = [preprocess(frame.image) for frame in self._frames[:number]]
            return [(tensor, self._output(engine, tensor)) for tensor in tensors]
        finally:
            engine.close()

    def alone(self, setting: Setting, layer: str,
              references: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
        """Return the output's signal to noise, in dB, with one layer alone in INT8."""
        others = [other.name for other in self.layers(setting)
                  if other.precision == 'int8' and other.name != layer]
        engine = emulated(self._quantize(replace(setting, exclude=(*setting.exclude, *others))))
        signal = noise = 0.0
        try:
            for tensor, expected in references:
                found = self._output(engine, tensor)
                signal += float(np.square(expected).sum())
                noise += float(np.square(expected - found).sum())
        finally:
            engine.close()
        return 10 * math.log10(signal / noise) if signal and noise else _NO_NOISE

    def _quantize(self, setting: Setting) -> Quantized:
        """Return the network in the vehicle's flavor."""
        return quantize(self._model, setting.scales, 'tensorrt', exclude=setting.exclude,
                        input_shapes=input_shapes(self._bundle))

    def _output(self, engine: OnnxRuntimeEngine, tensor: np.ndarray) -> np.ndarray:
        """Return what the network says, as float64."""
        return engine.infer(tensor)[self._bundle.spec.output.tensor].astype(np.float64)
