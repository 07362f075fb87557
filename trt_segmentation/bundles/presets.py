# SPDX-License-Identifier: Apache-2.0
"""
Presets: how the networks that people deploy were trained to see an image, and their classes.

Each value is that of the network's own repository, in the file that `source` names; a network that
was trained anew may have others. What a repository leaves to its user is left out here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trt_segmentation.bundles.labels import CITYSCAPES, Label, LabelSet
from trt_segmentation.errors import InputError, nearest, shown

Three = tuple[float, float, float]


@dataclass(frozen=True)
class Preset:
    """
    What a network expects, and what it gives.

    source: repository and file; networks: which ones these are
    color, mean, scale, fit, interpolation, upsample: as in model.yaml
    labels: of the published weights; None where each training has its own
    size: (height, width) that the repository runs it at, where a graph leaves it free
    caution: what this package does otherwise, or what differs between its networks
    """

    source: str
    networks: str
    mean: Three
    scale: Three
    color: str = 'rgb'
    fit: str = 'stretch'
    interpolation: str = 'linear'
    upsample: str = 'half_pixel'
    labels: LabelSet | None = CITYSCAPES
    size: tuple[int, int] | None = None
    caution: str = ''

    def fill(self, name: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """
        Return its values for what was not given, by key, and what was given otherwise, in words.

        :param name: its own; given: keys of model.yaml's input and output, and labels
        """
        own = {key: getattr(self, key) for key in _KEYS if getattr(self, key) is not None}
        notes = [f'{key}: {_short(given[key])} as given, and not the {_short(own[key])} of preset '
                 f'{name}' for key in own if key in given and given[key] != own[key]]
        return {key: value for key, value in own.items() if key not in given}, notes


_KEYS = ('size', 'color', 'mean', 'scale', 'fit', 'interpolation', 'upsample', 'labels')


def _short(value: Any) -> str:
    """Return a value for a message."""
    if isinstance(value, LabelSet):
        return 'cityscapes' if value == CITYSCAPES else f'{len(value.labels)} labels'
    return ', '.join(f'{each:g}' for each in value) if isinstance(value, tuple) else str(value)


def _normalized(mean: Three, deviation: Three) -> tuple[Three, Three]:
    """Return mean and scale for pixels 0..255 of those for pixels 0..1."""
    first, second, third = (255 * value for value in mean)
    scales = [1 / (255 * value) for value in deviation]
    return (first, second, third), (scales[0], scales[1], scales[2])


_IMAGENET = _normalized((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = _normalized((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# Pascal VOC's classes in the order of pytorch/vision: torchvision/models/_meta.py, and the colors
# of the VOC development kit: bit i of a color's channel c is bit c of the id, from the top down.
_VOC = ('background', 'aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat',
        'chair', 'cow', 'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant',
        'sheep', 'sofa', 'train', 'tvmonitor')


def _voc_color(number: int) -> tuple[int, int, int]:
    """Return the color of a class of Pascal VOC."""
    first, second, third = (
        sum((number >> 3 * i + channel & 1) << 7 - i for i in range(8)) for channel in range(3))
    return first, second, third


VOC = LabelSet(tuple(Label(name, i, _voc_color(i), name) for i, name in enumerate(_VOC)))

PRESETS = {
    'pidnet': Preset(
        'github.com/XuJiacong/PIDNet: tools/custom.py, configs/cityscapes', 'PIDNet-S, -M, -L',
        *_IMAGENET, upsample='align_corners', size=(1024, 2048)),
    'ddrnet': Preset(
        'github.com/chenjun2hao/DDRNet.pytorch: lib/datasets/base_dataset.py, '
        'experiments/cityscapes/ddrnet23_slim.yaml', 'DDRNet-23-slim, -23, -39',
        *_IMAGENET, size=(1024, 2048)),
    'bisenetv2': Preset(
        'github.com/CoinCheung/BiSeNet: tools/demo.py, tools/export_onnx.py', 'BiSeNetV2, V1',
        *_normalized((0.3257, 0.3690, 0.3223), (0.2112, 0.2148, 0.2115)), size=(1024, 2048)),
    'pp-liteseg': Preset(
        'github.com/PaddlePaddle/PaddleSeg: paddleseg/transforms/transforms.py, '
        'configs/_base_/cityscapes.yml', 'PP-LiteSeg-T, -B',
        *_HALF, caution='trained for 0.5, 0.75 or 1 times 1024x2048, as the name of its '
                        'configuration says: give the size that it was trained for'),
    'segformer': Preset(
        'github.com/NVlabs/SegFormer: local_configs/_base_/datasets/'
        'cityscapes_1024x1024_repeat.py', 'SegFormer-B0 to -B5, CitySemSegFormer',
        *_IMAGENET, caution='its authors slide a square window over the image; here the whole '
                            'image is resized to the size of the network'),
    'deeplabv3plus': Preset(
        'github.com/VainF/DeepLabV3Plus-Pytorch: predict.py, network/utils.py',
        'DeepLabV3+ in PyTorch', *_IMAGENET,
        caution="TensorFlow's own (tensorflow/models: research/deeplab/core/"
                'feature_extractor.py) takes pixels 0..255 and normalizes them itself'),
    'fcn-resnet': Preset(
        'github.com/pytorch/vision: torchvision/transforms/_presets.py, '
        'torchvision/models/segmentation/fcn.py', 'FCN-ResNet50, -ResNet101 of torchvision',
        *_IMAGENET, labels=VOC, caution='its authors resize the shorter side to 520 pixels'),
    'tao-unet': Preset(
        'github.com/NVIDIA/tao_tensorflow1_backend: nvidia_tao_tf1/cv/unet/utils/data_loader.py; '
        'github.com/NVIDIA-AI-IOT/deepstream_tao_apps: configs/nvinfer/unet_tao', 'U-Net of TAO',
        *_HALF, color='bgr', labels=None,
        caution='this is its preprocessing min_max_-1_1; with div_by_255 in the training '
                'specification give --mean 0 0 0 --scale 1/255 1/255 1/255'),
    'ultralytics': Preset(
        'github.com/ultralytics/ultralytics: ultralytics/engine/predictor.py, '
        'ultralytics/models/yolo/semantic/predict.py, ultralytics/cfg/datasets/cityscapes.yaml',
        'YOLO26-sem', (0, 0, 0), (1 / 255,) * 3, fit='letterbox',
        caution='its authors pad with gray 114; here the padding is zero in the tensor'),
}


def preset(name: str) -> Preset:
    """
    Return the preset of that name.

    :raises InputError: if there is none, with the nearest
    """
    found = PRESETS.get(name.lower())
    if found is None:
        raise InputError(f'--like {shown(name)}: there is no such preset; expected one of '
                         f'{", ".join(PRESETS)}{nearest(name, PRESETS)}')
    return found
