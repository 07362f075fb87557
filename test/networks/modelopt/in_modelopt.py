# SPDX-License-Identifier: Apache-2.0
"""Networks that NVIDIA's ModelOpt quantized become proven engines (`make test-modelopt`)."""

import os
from pathlib import Path
import subprocess

import cv2
import numpy as np
import onnx
import pytest
from support.networks import amax_scales, Builder, fcn, infer

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.manifest import cache_of, verify
from trt_segmentation.cli import main

SIZE = (64, 128)
SCRIPT = Path(__file__).parents[3] / 'benchmarks/calibration_peers.py'


def residual():
    b = Builder(SIZE)
    x = skip = b.conv_relu('image', 'stem', 3, 16, strides=[2, 2])
    x = b.conv(b.conv_relu(x, 'depthwise', 16, 16, group=16), 'pointwise', 16, 16, kernel=1)
    x = b.node('Relu', [b.node('Add', [x, skip], 'sum')], 'relu')
    x = b.node('Concat', [x, b.conv_relu(x, 'branch', 16, 16)], 'both', axis=1)
    return b.model(b.conv(x, 'logits', 32, 19, kernel=1), shape=['N', 19, 32, 64])


@pytest.mark.parametrize('network', [fcn(SIZE), residual()], ids=['fcn', 'residual'])
@pytest.mark.parametrize('method', ['max', 'entropy'])
def test_from_modelopt_s_file_to_an_engine(tmp_path, network, method, capfd):
    images = np.random.default_rng(0).normal(0, 50, (8, 3, *SIZE)).astype(np.float32)
    np.save(tmp_path / 'images.npy', images)
    onnx.save(network, tmp_path / 'float.onnx')
    subprocess.run([os.environ['MODELOPT_PYTHON'], SCRIPT, 'modelopt', method,
                    tmp_path / 'float.onnx', 'image', tmp_path / 'images.npy',
                    tmp_path / 'net.onnx'], check=True)
    bundle = tmp_path / 'bundle'
    assert main(['init', str(tmp_path / 'net.onnx'), str(bundle), '--color', 'rgb', '--mean',
                 '128', '128', '128', '--scale', '1', '1', '1']) == 0
    opened = Bundle.open(bundle)
    verify(opened)
    scales = cache_of(opened).scales
    largest = amax_scales(network, images)
    for name in scales:
        assert scales[name] <= largest[name] * 1.001, name
        if method == 'max':
            assert scales[name] == pytest.approx(largest[name], rel=1e-3), name
    # What is left without the pairs is the network that ModelOpt was given, its weights rounded.
    expected = infer(tmp_path / 'float.onnx', images[:1])
    found = infer(opened.model_path, images[:1])
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    (tmp_path / 'images').mkdir()
    for i in range(3):
        small = np.random.default_rng(i).integers(0, 256, (8, 16, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f'images/{i}.png'), cv2.resize(small, SIZE[::-1]))
    assert main(['golden', str(bundle), '--images', str(tmp_path / 'images')]) == 0
    assert main(['build', str(bundle), '--backend', 'onnxruntime', '--allow-float', '--store',
                 str(tmp_path / 'store')]) == 0
    out = capfd.readouterr().out
    assert "vehicle    TensorRT's arithmetic, computed here: agreement 0.9" in out
