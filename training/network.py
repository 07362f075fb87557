# SPDX-License-Identifier: Apache-2.0
"""
The sample network: a VGG-style encoder with an FCN head, and its ONNX graph.

The graph is written node by node from the trained weights, batch normalization folded in, so that
every tensor has a name that a person can read in a calibration cache.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import torch
from torch import nn

SIZE = (512, 1024)  # height, width
CLASSES = 19
MEAN = (71.60, 82.10, 72.31)  # blue, green, red: of Cityscapes, by convention
SCALE = 1 / 64

# (name, channels, stride, dilation) of the 3x3 convolutions, or the name of a 2x2 max pooling.
# Few channels where the resolution is high: INT8 gains little there. The dilations at the end
# let a pixel see 577 pixels around it, about the length of a bus.
ENCODER = (
    ('conv1_1', 24, 2, 1), 'pool1',
    ('conv2_1', 48, 1, 1), ('conv2_2', 48, 1, 1), 'pool2',
    ('conv3_1', 96, 1, 1), ('conv3_2', 96, 1, 1), ('conv3_3', 96, 1, 1), ('conv3_4', 96, 1, 1),
    'pool3',
    ('conv4_1', 160, 1, 1), ('conv4_2', 160, 1, 2), ('conv4_3', 160, 1, 4),
    ('conv4_4', 160, 1, 8),
)
SKIP = 'conv3_4'  # the stride-8 features that the head adds to the stride-16 scores


class Network(nn.Module):
    """The network as it is trained; blue, green, red 0..255 in, logits at stride 4 out."""

    def __init__(self) -> None:
        """Make the layers, with He's initialization and bilinear upsampling."""
        super().__init__()
        self.encoder = nn.ModuleDict()
        channels, skip_channels = 3, 0
        for layer in ENCODER:
            if isinstance(layer, str):
                self.encoder[layer] = nn.MaxPool2d(2)
                continue
            name, width, stride, dilation = layer
            conv = nn.Conv2d(channels, width, 3, stride, dilation, dilation, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')
            self.encoder[name] = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
            channels = width
            skip_channels = width if name == SKIP else skip_channels
        self.score4 = nn.Conv2d(channels, CLASSES, 1)
        self.score3 = nn.Conv2d(skip_channels, CLASSES, 1)
        self.up4, self.up3 = _upsampling(), _upsampling()
        self.register_buffer('mean', torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 19, height / 4, width / 4) of images (N, 3, height, width)."""
        x = (image - self.mean) * SCALE
        for name, layer in self.encoder.items():
            x = layer(x)
            if name == SKIP:
                skip = x
        return self.up3(self.up4(self.score4(x)) + self.score3(skip))


def _upsampling() -> nn.ConvTranspose2d:
    """Return a learned upsampling by 2, each class for itself, that starts as bilinear."""
    layer = nn.ConvTranspose2d(CLASSES, CLASSES, 4, 2, 1, groups=CLASSES, bias=False)
    tap = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        layer.weight.copy_(torch.outer(tap, tap))
    return layer


def to_onnx(network: Network) -> onnx.ModelProto:
    """
    Return the network as an ONNX model (opset 17, symbolic batch 'N') in inference mode.

    The input `image` is float32 and normalized already: (pixel - MEAN) * SCALE.
    """
    nodes, weights = [], []

    def convolution(kind: str, name: str, source: str, target: str, layer: nn.Module,
                    weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        tensors = {'weight': weight, 'bias': bias}
        names = [f'{name}.{key}' for key, tensor in tensors.items() if tensor is not None]
        for key, tensor in tensors.items():
            if tensor is not None:
                value = tensor.detach().cpu().numpy().astype(np.float32)
                weights.append(numpy_helper.from_array(value, f'{name}.{key}'))
        nodes.append(helper.make_node(
            kind, [source, *names], [target], name, kernel_shape=layer.kernel_size,
            strides=layer.stride, pads=layer.padding * 2, dilations=layer.dilation,
            group=layer.groups))

    x = 'image'
    for name, layer in network.encoder.items():
        if isinstance(layer, nn.MaxPool2d):
            nodes.append(helper.make_node('MaxPool', [x], [name], name, kernel_shape=[2, 2],
                                          strides=[2, 2]))
            x = name
            continue
        weight, bias = _folded(layer[0], layer[1])
        convolution('Conv', name, x, name, layer[0], weight, bias)
        x = name.replace('conv', 'relu')
        nodes.append(helper.make_node('Relu', [name], [x], x))
    skip = SKIP.replace('conv', 'relu')
    for name, source in (('score4', x), ('score3', skip)):
        layer = getattr(network, name)
        convolution('Conv', name, source, name, layer, layer.weight, layer.bias)
    convolution('ConvTranspose', 'up4', 'score4', 'up4', network.up4, network.up4.weight, None)
    nodes.append(helper.make_node('Add', ['up4', 'score3'], ['fuse3'], 'fuse3'))
    convolution('ConvTranspose', 'up3', 'fuse3', 'logits', network.up3, network.up3.weight, None)

    height, width = SIZE
    graph = helper.make_graph(
        nodes, 'fcn',
        [helper.make_tensor_value_info('image', TensorProto.FLOAT, ['N', 3, height, width])],
        [helper.make_tensor_value_info('logits', TensorProto.FLOAT,
                                       ['N', CLASSES, height // 4, width // 4])],
        weights)
    # IR version 8 is what came with opset 17: older readers take nothing newer.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8,
                              producer_name='trt_segmentation/training')
    onnx.checker.check_model(model, full_check=True)
    return model


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight and bias of one convolution that does what these two layers do."""
    gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    weight = conv.weight.double() * gain.view(-1, 1, 1, 1)
    return weight, norm.bias.double() - norm.running_mean.double() * gain
