# SPDX-License-Identifier: Apache-2.0
"""The configuration files of other programs, written from a bundle's contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import yaml

from trt_segmentation.bundles.spec import Spec
from trt_segmentation.errors import InputError
from trt_segmentation.networks.model import onnx


def triton(spec: Spec, model: bytes) -> str:
    """Return Triton's config.pbtxt for a plan without a batch dimension of Triton's own."""
    graph = onnx.load_from_string(model).graph
    fields = []
    for kind, value in (('input', graph.input[0]), ('output', graph.output[0])):
        dims = ', '.join(str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        fields.append(f'{kind} [{{ name: "{value.name}" data_type: TYPE_FP32 '
                      f'dims: [{dims}] }}]')
    return '\n'.join(['platform: "tensorrt_plan"', 'default_model_filename: "model.plan"',
                      'max_batch_size: 0', *fields, ''])


def deepstream(spec: Spec) -> str:
    """
    Return a configuration of Gst-nvinfer for semantic segmentation.

    It computes net-scale-factor * (pixel - offset), and takes a pixel's class only where its
    value is above the threshold; the network that goes with it ends in a softmax therefore.
    """
    source = spec.input
    lines = {
        'onnx-file': 'model.onnx',
        'int8-calib-file': 'calibration.cache',
        'model-engine-file': 'model.onnx_b1_gpu0_int8.engine',
        'labelfile-path': 'labels.txt',
        'batch-size': 1,
        'network-mode': 1,  # INT8
        'network-type': 2,  # segmentation
        'segmentation-threshold': 0.0,
        'num-detected-classes': len(spec.labels.labels),
        'output-blob-names': spec.output.tensor,
        'infer-dims': f'3;{source.size[0]};{source.size[1]}',
        'model-color-format': 1 if source.color == 'bgr' else 0,
        'net-scale-factor': repr(source.scale[0]),
        'offsets': ';'.join(map(repr, source.mean)),
        'maintain-aspect-ratio': int(source.fit == 'letterbox'),
        'symmetric-padding': int(source.fit == 'letterbox'),
    }
    return '[property]\n' + ''.join(f'{key}={value}\n' for key, value in lines.items())


def isaac(spec: Spec, model: bytes) -> str:
    """
    Return parameters of Isaac ROS 4's image encoder, TensorRT node and U-Net decoder.

    The encoder computes (pixel / 255 - mean) / stddev; the decoder takes channels last, and the
    largest one above 0, so that the network that goes with it ends in a softmax.
    """
    source = spec.input
    height, width, channels = [
        dim.dim_value
        for dim in onnx.load_from_string(model).graph.output[0].type.tensor_type.shape.dim][1:]
    palette = [int(label.color[0]) << 16 | int(label.color[1]) << 8 | int(label.color[2])
               for label in spec.labels.labels]
    encoding = f'{source.color}8'
    return yaml.safe_dump({
        'dnn_image_encoder': {
            'network_image_width': source.size[1], 'network_image_height': source.size[0],
            'input_encoding': encoding, 'enable_padding': source.fit == 'letterbox',
            'image_mean': [mean / 255 for mean in source.mean],
            'image_stddev': [1 / (255 * scale) for scale in source.scale],
        },
        'tensor_rt': {
            'model_file_path': 'model.onnx', 'engine_file_path': 'model.plan',
            'force_engine_update': False,
            'input_tensor_names': ['input_tensor'], 'input_binding_names': [source.tensor],
            'input_tensor_formats': [f'nitros_tensor_list_nchw_{source.color}_f32'],
            'output_tensor_names': ['output_tensor'],
            'output_binding_names': [spec.output.tensor],
            'output_tensor_formats': ['nitros_tensor_list_nhwc_bgr_f32'],
        },
        'unet_decoder': {
            'network_output_type': 'softmax',
            'mask_width': width, 'mask_height': height,
            'color_segmentation_mask_encoding': 'rgb8',
            'color_palette': palette[:channels],
        },
    }, sort_keys=False)


def autoware(spec: Spec) -> str:
    """Return parameters in the form of Autoware's TensorRT nodes."""
    source = spec.input
    return yaml.safe_dump({'/**': {'ros__parameters': {
        'model_path': 'model.onnx', 'precision': 'as-is', 'color_map_path': 'color_map.csv',
        'mean': list(source.mean), 'std': [1 / scale for scale in source.scale],
        'number_classes': len(spec.labels.labels),
    }}}, sort_keys=False)


def color_map(spec: Spec) -> str:
    """Return a table of id, name and RGB color, a channel a row."""
    rows = [f'{i},{label.name},{label.color[0]},{label.color[1]},{label.color[2]}'
            for i, label in enumerate(spec.labels.labels)]
    return '\n'.join(['id,name,r,g,b', *rows, ''])


def label_lines(spec: Spec) -> str:
    """Return the channels' names, a line each."""
    return ''.join(f'{label.name}\n' for label in spec.labels.labels)


def _check_deepstream(spec: Spec) -> None:
    if len(set(spec.input.scale)) > 1:
        raise InputError(f'input.scale: found {list(spec.input.scale)}; DeepStream has one '
                         'net-scale-factor for all channels: fold the scales into the first '
                         'convolution of the network, or export for tensorrt-10')
    _check_fit(spec, 'DeepStream')


def _check_isaac(spec: Spec) -> None:
    _check_fit(spec, 'Isaac ROS')
    _check_logits(spec, 'Isaac ROS')


def _check_fit(spec: Spec, program: str) -> None:
    if spec.input.fit == 'crop':
        raise InputError(f'input.fit: found crop, which {program} does not do; expected stretch '
                         'or letterbox')
    _check_logits(spec, program)


def _check_logits(spec: Spec, program: str) -> None:
    if spec.output.kind != 'logits':
        raise InputError(f'output.kind: found {spec.output.kind}; {program} takes the largest '
                         'of several channels, expected logits')


CHECKS: Mapping[str, Callable[[Spec], None]] = {
    'deepstream': _check_deepstream, 'isaac': _check_isaac}
