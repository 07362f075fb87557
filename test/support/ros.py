# SPDX-License-Identifier: Apache-2.0
"""What the node's tests share: a bundle with a tiny network, the node as a process, a peer."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from onnx import checker, helper, numpy_helper, save, TensorProto

from trt_segmentation import calibrate
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines import BuildOptions, choose_backend
from trt_segmentation.engines.build import build
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.segmenters.choice import segmenter_of
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.segmenter import Segmenter
from trt_segmentation.system import files

CLASSES = 19
BACKEND = os.environ.get('TRT_SEGMENTATION_BACKEND', 'onnxruntime')
"""What the node runs in the tests; tensorrt or tensorrt_rtx on a machine with a GPU."""


def make_bundle(path: Path, size: tuple[int, int] = (64, 128), fit: str = 'stretch',
                work: int = 0) -> Path:
    """
    Make a float bundle whose network looks at each 4x4 block of pixels; with one golden frame.

    :param work: add this many 3x3 convolutions of 64 channels, to make it slow
    """
    random = np.random.default_rng(0)
    path.mkdir(parents=True)
    nodes, weights = [], []

    def convolution(name, source, channels_in, channels_out, kernel, **attributes):
        weight = random.normal(size=(channels_out, channels_in, kernel, kernel))
        weights.append(numpy_helper.from_array(
            (weight / (8 * np.sqrt(channels_in) * kernel)).astype(np.float32), f'{name}.weight'))
        nodes.append(helper.make_node('Conv', [source, f'{name}.weight'], [name], name,
                                      **attributes))
        return name

    tensor = convolution('stem', 'data', 3, 64, 4, strides=[4, 4])
    for i in range(work):
        tensor = convolution(f'work{i}', tensor, 64, 64, 3, pads=[1] * 4)
    convolution('logits', tensor, 64, CLASSES, 1)
    graph = helper.make_graph(
        nodes, 'tiny',
        [helper.make_tensor_value_info('data', TensorProto.FLOAT, [1, 3, *size])],
        [helper.make_tensor_value_info('logits', TensorProto.FLOAT,
                                       [1, CLASSES, size[0] // 4, size[1] // 4])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)])
    model.ir_version = 8
    checker.check_model(model)
    save(model, path / 'tiny.onnx')
    (path / 'model.yaml').write_text(
        f'version: 1\nmodel: tiny.onnx\ninput: {{fit: {fit}, scale: [0.02, 0.02, 0.02]}}\n')
    frame = picture(size, seed=1)
    with direct_segmenter(path) as segmenter:
        mask = segmenter.segment(frame, ('classes',)).classes
    golden = path / 'golden'
    golden.mkdir()
    cv2.imwrite(str(golden / '000.png'), frame)
    cv2.imwrite(str(golden / '000.mask.png'), mask)
    files.write_sums(path)
    return path


def calibrated_bundle(path: Path, size: tuple[int, int] = (64, 128)) -> Path:
    """Make a bundle that is calibrated; its weights mean nothing, so INT8 is accepted anyhow."""
    make_bundle(path, size)
    with (path / 'model.yaml').open('a') as file:
        file.write('acceptance: {min_agreement: 0, min_class_agreement: 0, min_int8_share: 0}\n')
    files.write_sums(path)
    calibrate(path, (picture(size, seed) for seed in range(10)), count=8, golden=2, report=False)
    return path


def built_bundle(path: Path, store: Path, **options) -> Path:
    """Make a bundle and build its float engine into a store."""
    make_bundle(path, **options)
    build(Bundle.open(path), backend=BACKEND, precision='fp32', store=store)
    return path


def direct_segmenter(bundle: Path) -> Segmenter:
    """Return the bundle's float network without node and store: what its masks must equal."""
    opened = Bundle.open(bundle)
    if BACKEND == 'onnxruntime':
        return CpuSegmenter(opened.spec, OnnxRuntimeEngine(opened.model_path))
    backend = choose_backend(BACKEND)
    plan = backend.build(opened, 'fp32', BuildOptions())
    return segmenter_of(opened.spec, backend.load(plan.data, 'fp32'))


def picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """Return a BGR picture of smooth color regions: uint8 (height, width, 3)."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 8, 3), np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
