# SPDX-License-Identifier: Apache-2.0
"""Networks that benchmarks make: for their size, hard to quantize, or with other codes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.networks.model import onnx
from trt_segmentation.sample import BUNDLE as SAMPLE
from trt_segmentation.sample.scenes import scene
from trt_segmentation.segmenters.preprocessing import Preprocessor

_CLASSES, _SCENES, _RIDGE = 19, 24, 1e-3


class Writer:
    """A chain of layers under construction."""

    def __init__(self, seed: int):
        """Start at the image."""
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.data, self.channels = 'image', 3

    def add(self, op: str, inputs: list[str], **attributes: object) -> str:
        """Append a node; its output is what comes next."""
        self.data = f'{op.lower()}{len(self.nodes)}'
        self.nodes.append(onnx.helper.make_node(op, inputs, [self.data], name=self.data,
                                                **attributes))
        return self.data

    def constant(self, value: np.ndarray) -> str:
        """Add a constant; return its name."""
        name = f'constant{len(self.constants)}'
        self.constants.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def conv(self, outputs: int, kernel: int, *, groups: int = 1, stride: int = 1,
             octaves: float = 0.0) -> str:
        """
        Append a convolution of random weights and bias.

        :param octaves: the deviation of the output channels' sizes, as powers of two
        """
        fan = self.channels // groups * kernel ** 2
        sizes = 2.0 ** self.random.normal(0, octaves, outputs)
        weight = self.random.normal(0, (2 / fan) ** 0.5, (outputs, self.channels // groups,
                                                          kernel, kernel))
        bias = self.random.normal(0, 0.3, outputs) * sizes
        result = self.add(
            'Conv', [self.data, self.constant(weight * sizes[:, None, None, None]),
                     self.constant(bias)],
            kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, group=groups, strides=[stride] * 2)
        self.channels = outputs
        return result

    def save(self, path: Path, size: tuple[int, int], output: tuple[int, int, int]) -> None:
        """Write the network, whose output is `logits` of shape (channels, height, width)."""
        self.nodes[-1].output[0] = 'logits'
        float32 = onnx.TensorProto.FLOAT
        graph = onnx.helper.make_graph(
            self.nodes, path.stem,
            [onnx.helper.make_tensor_value_info('image', float32, ['N', 3, *size])],
            [onnx.helper.make_tensor_value_info('logits', float32, ['N', *output])],
            self.constants)
        onnx.save(onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid('', 17)], ir_version=8), path)


def vgg16_fcn(path: Path, size: tuple[int, int] = (512, 1024)) -> Path:
    """Write a bundle of VGG16's convolutions with an FCN head, 19 classes, random weights."""
    writer = Writer(0)
    for layers, outputs in [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]:
        for _ in range(layers):
            writer.conv(outputs, 3)
            writer.add('Relu', [writer.data])
        writer.add('MaxPool', [writer.data], kernel_shape=[2, 2], strides=[2, 2])
    writer.conv(_CLASSES, 1)
    path.mkdir()
    writer.save(path / 'model.onnx', size, (_CLASSES, size[0] // 32, size[1] // 32))
    (path / 'model.yaml').write_text('version: 1\nmodel: model.onnx\n')
    return path


def unequal(path: Path, kind: str) -> Path:
    """
    Write a bundle of a network with very unequal channels that segments the drawn scenes.

    Its features are random; the layer that makes the logits is fitted to the sample network's
    by least squares, so the masks mean something.

    :param kind: 'depthwise' (depthwise and pointwise convolutions, with residual additions), or
        'grouped' (convolutions of four groups)
    """
    writer = Writer(1 if kind == 'depthwise' else 2)
    writer.conv(32, 3, stride=2)
    writer.add('Relu', [writer.data])
    for block in range(4):
        before, stride = writer.data, 2 if block == 0 else 1
        if kind == 'grouped':
            writer.conv(64, 3, groups=4, stride=stride, octaves=2)
            writer.add('Relu', [writer.data])
            writer.conv(64, 1, octaves=2)
        else:
            writer.conv(64, 1, octaves=2)
            writer.add('Relu', [writer.data])
            writer.conv(64, 3, groups=64, stride=stride, octaves=1)
            writer.add('Relu', [writer.data])
            writer.conv(64, 1, octaves=1)
        if block:
            writer.add('Add', [writer.data, before])
        writer.add('Relu', [writer.data])
    path.mkdir()
    model = path / 'model.onnx'
    sample = Bundle.open(SAMPLE, verify=False)
    (path / 'model.yaml').write_text(
        (SAMPLE / 'model.yaml').read_text().replace(sample.spec.model, 'model.onnx'))
    features = writer.channels
    _fit(writer, model, sample, features)
    return path


def _fit(writer: Writer, model: Path, sample: Bundle, features: int) -> None:
    """Append the layer that makes the logits, and save the network."""
    height, width = sample.spec.input.size
    shape = (height // 4, width // 4)
    writer.save(model, (height, width), (features, *shape))
    preprocess = Preprocessor(sample.spec.input)
    engine, teacher = OnnxRuntimeEngine(model), OnnxRuntimeEngine(sample.model_path)
    normal, wanted = 0.0, 0.0
    for seed in range(80000, 80000 + _SCENES):
        tensor = preprocess(scene(seed)[0])
        found = engine.infer(tensor)['logits'][0].reshape(features, -1)
        found = np.vstack([found, np.ones((1, found.shape[1]))]).astype(np.float64)
        logits = teacher.infer(tensor)[sample.spec.output.tensor][0]
        target = np.stack([cv2.resize(each, shape[::-1], interpolation=cv2.INTER_AREA)
                           for each in logits]).reshape(len(logits), -1)
        normal = normal + found @ found.T
        wanted = wanted + found @ target.T
    diagonal = np.diag_indices(features + 1)
    normal[diagonal] = normal[diagonal] * (1 + _RIDGE) + 1e-9  # a feature may be 0 throughout
    solution = np.linalg.solve(normal, wanted).T
    writer.nodes[-1].output[0] = writer.data
    writer.add('Conv', [writer.data, writer.constant(solution[:, :-1, None, None]),
                        writer.constant(solution[:, -1])], kernel_shape=[1, 1])
    writer.save(model, (height, width), (len(solution), *shape))


def signed(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a network with uint8 codes with int8 ones of zero point 0; None if it has none."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    done: dict[tuple[str, str], list[str]] = {}
    for node in model.graph.node:
        if node.op_type not in ('QuantizeLinear', 'DequantizeLinear') or len(node.input) < 3 or (
                node.input[0] in constants):  # a weight's codes stay what they are
            continue
        names = tuple(node.input[1:3])
        zero = onnx.numpy_helper.to_array(constants[names[1]])
        if names not in done and zero.dtype == np.uint8:
            scale = onnx.numpy_helper.to_array(constants[names[0]])
            wide = np.maximum(zero, 255 - zero).astype(np.float32) / 127
            done[names] = [f'{name}_signed_{len(done)}' for name in names]
            for name, value in zip(done[names], (scale * wide, np.zeros_like(zero, np.int8))):
                model.graph.initializer.append(onnx.numpy_helper.from_array(
                    np.asarray(value, value.dtype), name))
        if names in done:
            node.input[1:3] = done[names]
    del model.graph.value_info[:]
    return model if done else None
