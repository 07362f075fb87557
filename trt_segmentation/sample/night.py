# SPDX-License-Identifier: Apache-2.0
"""
Nights and fog over drawn scenes, and a network with a part that daylight never wakes.

What they are for is benchmarks/closed_loop.py: a calibration of clear scenes that is wrong at
night, and what it takes to make it right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trt_segmentation.networks.model import onnx

DARK = 30.0
"""Mean pixel value 0..255 below which the low-light branch wakes."""
_GAIN = 6.0
_NOISE = 2.0  # of a dark picture's pixels, 0..255
_FOG = 190.0  # its gray


def night(image: np.ndarray, seed: int, gain: float = 0.15) -> np.ndarray:
    """
    Return a scene as a camera sees it at night.

    :param image: uint8 (height, width, 3); gain: of its light; seed: of the sensor's noise
    """
    noise = np.random.default_rng(seed).normal(0, _NOISE, image.shape)
    return np.clip(image * gain + noise, 0, 255).astype(np.uint8)


def fog(image: np.ndarray, density: float = 0.5) -> np.ndarray:
    """
    Return a scene in fog, which is densest at the horizon.

    :param image: uint8 (height, width, 3); density: of the fog there, 0..1
    """
    height = len(image)
    distance = np.abs(np.arange(height) / height - 0.45)[:, None, None]
    share = density * np.exp(-1.5 * distance)
    return np.clip(image * (1 - share) + _FOG * share, 0, 255).astype(np.uint8)


def with_low_light_branch(model: onnx.ModelProto, name: str, mean: Sequence[float],
                          scale: Sequence[float]) -> onnx.ModelProto:
    """
    Return a network that brightens dark images first, by a branch that is zero in daylight.

    With m the mean of an image's pixels p, it becomes p (1 + 6 g), g = max(0, 1 - m / 30). In
    daylight the network computes what it computed before, and a calibration sees a branch without
    values.

    :param model: takes (pixel - mean) * scale
    :param name: of its input
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for reader in graph.node:
        for i, read in enumerate(reader.input):
            if read == name:
                reader.input[i] = 'low_light.sum'
    factors = np.asarray(scale, np.float32).reshape(1, 3, 1, 1)

    def constant(label: str, values: np.ndarray) -> str:
        tensor = onnx.numpy_helper.from_array(np.asarray(values, np.float32), f'low_light.{label}')
        graph.initializer.append(tensor)
        return tensor.name

    def add(kind: str, label: str, *inputs: str, **attributes: object) -> str:
        output = f'low_light.{label}'
        nodes.append(onnx.helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    nodes: list = []
    pixels = add('Add', 'pixels', add('Div', 'unscaled', name, constant('scale', factors)),
                  constant('mean', np.asarray(mean, np.float32).reshape(1, 3, 1, 1)))
    brightness = add('ReduceMean', 'brightness', pixels, axes=[1, 2, 3], keepdims=1)
    darkness = add('Relu', 'darkness', add('Sub', 'lack', constant('one', np.ones(1)), add(
        'Div', 'share', brightness, constant('dark', np.array([DARK])))))
    dark_pixels = add('Mul', 'dark_pixels', pixels, darkness)
    weight = np.zeros((3, 3, 1, 1), np.float32)
    weight[range(3), range(3), 0, 0] = _GAIN * factors.ravel()
    light = add('Conv', 'light', dark_pixels, constant('weight', weight), kernel_shape=[1, 1])
    add('Add', 'sum', name, light)
    before = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *before])
    return result
