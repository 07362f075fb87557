# SPDX-License-Identifier: Apache-2.0
"""
The network that NVIDIA's method was published with, to time it: a VGG16-FCN with random weights.

FCN-8s without the two large fully connected layers, at 512x1024: 161 billion multiply-accumulates.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.networks.model import onnx

SIZE = (512, 1024)
CLASSES = 19
_TRUNK = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16_fcn(stride: int, seed: int = 0) -> onnx.ModelProto:
    """Return the network with logits at stride 1 or 8."""
    rng = np.random.default_rng(seed)
    nodes, weights = [], []

    def layer(op: str, data: str, name: str, shape: tuple[int, ...], **attributes) -> str:
        fan_in = shape[1] * shape[2] * shape[3] if op == 'Conv' else shape[0] * 4
        values = rng.normal(0, (2 / fan_in) ** .5, shape).astype(np.float32)
        bias = np.zeros(shape[0] if op == 'Conv' else shape[1], np.float32)
        weights.extend([onnx.numpy_helper.from_array(values, f'{name}_weight'),
                        onnx.numpy_helper.from_array(bias, f'{name}_bias')])
        nodes.append(onnx.helper.make_node(op, [data, f'{name}_weight', f'{name}_bias'], [name],
                                           name=name, kernel_shape=shape[2:], **attributes))
        return name

    def node(op: str, inputs: list[str], name: str, **attributes) -> str:
        nodes.append(onnx.helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def up(data: str, name: str, factor: int) -> str:
        return layer('ConvTranspose', data, name, (CLASSES, CLASSES, 2 * factor, 2 * factor),
                     strides=[factor] * 2, pads=[factor // 2] * 4)

    x, channels, pools = 'data', 3, []
    for block, widths in enumerate(_TRUNK, 1):
        for i, width in enumerate(widths, 1):
            name = f'conv{block}_{i}'
            x = node('Relu', [layer('Conv', x, name, (width, channels, 3, 3), pads=[1] * 4)],
                     f'{name}_relu')
            channels = width
        x = node('MaxPool', [x], f'pool{block}', kernel_shape=[2, 2], strides=[2, 2])
        pools.append((x, channels))
    (pool3, c3), (pool4, c4), (pool5, c5) = pools[2:]
    score = up(layer('Conv', pool5, 'score5', (CLASSES, c5, 1, 1)), 'up5', 2)
    score = node('Add', [score, layer('Conv', pool4, 'score4', (CLASSES, c4, 1, 1))], 'sum4')
    score = node('Add', [up(score, 'up4', 2), layer('Conv', pool3, 'score3',
                                                    (CLASSES, c3, 1, 1))], 'sum3')
    logits = up(score, 'logits', 8) if stride == 1 else score
    graph = onnx.helper.make_graph(
        nodes, 'vgg16_fcn',
        [onnx.helper.make_tensor_value_info('data', onnx.TensorProto.FLOAT, [1, 3, *SIZE])],
        [onnx.helper.make_tensor_value_info(
            logits, onnx.TensorProto.FLOAT,
            [1, CLASSES, *(side // stride for side in SIZE)])], weights)
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid('', 17)], ir_version=8)


def write_bundle(folder: Path, stride: int, *, calibrated: bool) -> Bundle:
    """Write a bundle of the network; calibrated with noise, which is enough to time it."""
    folder.mkdir(exist_ok=True)
    model = vgg16_fcn(stride)
    onnx.save(model, folder / 'vgg16_fcn.onnx')
    output = model.graph.output[0].name
    (folder / 'model.yaml').write_text(yaml.safe_dump({
        'version': 1, 'model': 'vgg16_fcn.onnx', 'input': {'tensor': 'data'},
        'output': {'tensor': output}}))
    if calibrated:
        from trt_segmentation.calibration import calibrate
        rng = np.random.default_rng(0)
        images = (rng.integers(0, 256, (*SIZE, 3), np.uint8) for _ in range(3))
        calibrate(folder, images, count=2, golden=1, method='minmax', report=False)
    return Bundle.open(folder)
