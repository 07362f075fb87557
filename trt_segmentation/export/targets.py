# SPDX-License-Identifier: Apache-2.0
"""What each program that takes a calibrated network wants: which files, and how they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import shlex

from trt_segmentation.bundles.cache import DEFAULT_VERSION
from trt_segmentation.bundles.spec import Spec
from trt_segmentation.export import configs
from trt_segmentation.export.networks import Networks, with_tail
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.opset import lowered

Files = Mapping[str, 'bytes | str']


@dataclass(frozen=True)
class Target:
    """
    One program.

    summary: what is written, for the help
    files: makes the files' contents, by relative path
    fused: whether its program runs the CPU's fused integer kernels; else the Q/DQ form in
        TensorRT's arithmetic is compared with the golden frames, also for scales in a cache
    not_run: what about it nobody has run
    """

    summary: str
    files: Callable[[Networks], Files]
    fused: bool
    not_run: str


def _implicit(version: str) -> Callable[[Networks], Files]:
    """Return what TensorRT up to 10 takes: the float network, and the cache under its header."""
    def files(networks: Networks) -> Files:
        excluded = networks.bundle.spec.calibration.exclude
        kept = ' '.join(['--precisionConstraints=obey --layerPrecisions='
                         + shlex.quote(','.join(f'{name}:fp16' for name in excluded))]
                        if excluded else [])
        return {'model.onnx': networks.floating,
                'calibration.cache': networks.cache.with_header(version).to_bytes(),
                'build.sh': _script('trtexec --onnx=model.onnx --int8 --fp16 '
                                    f'--calib=calibration.cache {kept} --saveEngine=model.plan')}
    return files


def _tensorrt_8(networks: Networks) -> Files:
    lowered(onnx.load_from_string(networks.floating))  # or says why that version cannot parse it
    return _implicit(DEFAULT_VERSION)(networks)


def _tensorrt_11(networks: Networks) -> Files:
    return {'model.onnx': networks.quantized, 'model_fp16.onnx': networks.half,
            'build.sh': _script(
                '# FP16 beside INT8; its input and output are float16. For float32: model.onnx\n'
                'trtexec --onnx=model_fp16.onnx --saveEngine=model.plan')}


def _triton(networks: Networks) -> Files:
    return {'model.onnx': networks.quantized,
            'config.pbtxt': configs.triton(networks.bundle.spec, networks.quantized),
            'build.sh': _script(
                "# The plan belongs to the machine that serves it: build it there, with Triton's\n"
                '# TensorRT. From TensorRT 11 on leave out --stronglyTyped.\n'
                'mkdir -p 1\n'
                'trtexec --onnx=model.onnx --stronglyTyped --saveEngine=1/model.plan')}


def _deepstream(networks: Networks) -> Files:
    model = with_tail(networks.floating, ('Softmax',))
    return {'model.onnx': model,
            'calibration.cache': networks.cache.with_header('10.3.0').to_bytes(),
            'nvinfer.txt': configs.deepstream(networks.bundle.spec),
            'labels.txt': configs.label_lines(networks.bundle.spec)}


def _isaac(networks: Networks) -> Files:
    model = with_tail(networks.quantized, ('Softmax', 'Transpose'))
    return {'model.onnx': model,
            'isaac_ros.yaml': configs.isaac(networks.bundle.spec, model),
            'build.sh': _script(
                '# The node itself sets no INT8, so it gets a plan. From TensorRT 11 on leave\n'
                '# out --stronglyTyped.\n'
                'trtexec --onnx=model.onnx --stronglyTyped --saveEngine=model.plan')}


def _autoware(networks: Networks) -> Files:
    return {'model.onnx': networks.quantized,
            'segmentation.param.yaml': configs.autoware(networks.bundle.spec),
            'color_map.csv': configs.color_map(networks.bundle.spec)}


def _onnxruntime(networks: Networks) -> Files:
    return {'model.onnx': networks.cpu}


def _openvino(networks: Networks) -> Files:
    return {'model.onnx': networks.quantized}


def _script(commands: str) -> str:
    """Return a shell script that runs in its own directory."""
    return f'#!/bin/sh\nset -eu\ncd "$(dirname "$0")"\n{commands}\n'


_NO_GPU = 'no INT8 engine was built from it or run on a GPU'

TARGETS: Mapping[str, Target] = {
    'tensorrt-8': Target('float network, cache and trtexec line for TensorRT 8.6',
                         _tensorrt_8, False, _NO_GPU),
    'tensorrt-10': Target('float network, cache and trtexec line for TensorRT 10',
                          _implicit('10.3.0'), False, _NO_GPU),
    'tensorrt-11': Target('Q/DQ network, strongly typed, in float32 and with float16',
                          _tensorrt_11, False, _NO_GPU),
    'triton': Target("model repository's directory for a TensorRT plan",
                     _triton, False, f'{_NO_GPU}, and Triton was not run'),
    'deepstream': Target('network, cache and configuration for Gst-nvinfer',
                         _deepstream, False,
                         f'{_NO_GPU}, and DeepStream was not run'),
    'isaac': Target("Q/DQ network and parameters for Isaac ROS 4's U-Net pipeline",
                    _isaac, False, f'{_NO_GPU}, and Isaac ROS was not run'),
    'autoware': Target('Q/DQ network and parameters for engines taken as they are',
                       _autoware, False, f'{_NO_GPU}, and Autoware was not run'),
    'onnxruntime': Target("Q/DQ network as ONNX Runtime's CPU kernels fuse it",
                          _onnxruntime, True, ''),
    'openvino': Target('Q/DQ network that OpenVINO reads', _openvino, False,
                       'the agreement is that of the same arithmetic in ONNX Runtime'),
}


def check(spec: Spec, target: str) -> None:
    """Raise InputError if a program cannot preprocess as the bundle's contract says."""
    configs.CHECKS.get(target, lambda _: None)(spec)
