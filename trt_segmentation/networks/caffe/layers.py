# SPDX-License-Identifier: Apache-2.0
"""What the layers of Caffe that have weights or windows compute, in operators of ONNX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trt_segmentation.networks.caffe.builder import Builder, Layer, Shape, Stop
from trt_segmentation.networks.caffe.files import Message
from trt_segmentation.networks.caffe.forms import FORMS


def _pair(param: Message, name: str, default: int, *, prefix: str | None = None
          ) -> tuple[int, int]:
    """Return a setting for height and width: `name_h` and `name_w`, or `name` once or twice."""
    short = name if prefix is None else prefix
    if f'{short}_h' in param.fields or f'{short}_w' in param.fields:
        return param.integer(f'{short}_h', default), param.integer(f'{short}_w', default)
    given = [int(value) for value in param.numbers(name)] or [default]
    return given[0], given[-1]


def _window(param: Message) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return kernel, stride and pad of a convolution or a pooling."""
    kernel = _pair(param, 'kernel_size', 0, prefix='kernel')
    if min(kernel) < 1:
        raise Stop('it has no kernel_size')
    stride, pad = _pair(param, 'stride', 1), _pair(param, 'pad', 0)
    if min(stride) < 1 or min(pad) < 0:
        raise Stop(f'it has stride {stride} and pad {pad}')
    return kernel, stride, pad


def _weights(blobs: list[np.ndarray], least: int) -> list[np.ndarray]:
    """Return the blobs; raises Stop if there are too few."""
    if len(blobs) < least:
        raise Stop(f'the caffemodel has {len(blobs)} of its {least} blobs of weights; expected '
                   'the weights of this prototxt')
    return blobs


def _reshaped(blob: np.ndarray, shape: Shape) -> np.ndarray:
    """Return a blob in the shape that the prototxt says."""
    if blob.size != math.prod(shape):
        raise Stop(f'its weights have the shape {"x".join(map(str, blob.shape))}, the prototxt '
                   f'says {"x".join(map(str, shape))}')
    return blob.reshape(shape)


def _convolution(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
                 blobs: list[np.ndarray], name: str) -> None:
    param = layer.message('convolution_param')
    deconvolution = layer.text('type').lower() == 'deconvolution'
    kernel, stride, pad = _window(param)
    dilation = _pair(param, 'dilation', 1)
    count, group = param.integer('num_output', 0), param.integer('group', 1)
    if min(dilation) < 1 or group < 1 or count < 1 or count % group:
        raise Stop(f'it has dilation {dilation}, {count} outputs and {group} groups')
    bias = param.flag('bias_term', True)
    _, channels, *size = g.shapes[bottoms[0]]
    first = (channels, count // group) if deconvolution else (count, channels // group)
    if deconvolution and not blobs and (
            param.message('weight_filler').text('type') == 'bilinear'):
        blobs = [_bilinear((*first, *kernel))]  # which is often left out, as it is not trained
        bias = False
    blobs = _weights(blobs, 1 + bias)
    inputs = [bottoms[0], g.constant(f'{name}/weight', _reshaped(blobs[0], (*first, *kernel)))]
    if bias:
        inputs.append(g.constant(f'{name}/bias', blobs[1].ravel()))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    shape = ([s * (n - 1) + span - 2 * p for n, s, span, p in zip(size, stride, spans, pad)]
             if deconvolution else
             [(n + 2 * p - span) // s + 1 for n, s, span, p in zip(size, stride, spans, pad)])
    g.node('ConvTranspose' if deconvolution else 'Conv', inputs, tops[0], (1, count, *shape),
           kernel_shape=kernel, strides=stride, pads=pad * 2, dilations=dilation, group=group)


def _bilinear(shape: Shape) -> np.ndarray:
    """Return Caffe's filler for upsampling: a tent over the kernel, in every channel."""
    sides = []
    for length in shape[2:]:
        factor = -(-length // 2)
        center = (2 * factor - 1 - factor % 2) / (2 * factor)
        sides.append(1 - np.abs(np.arange(length) / factor - center))
    return np.broadcast_to(np.outer(*sides), shape).astype(np.float32)


def _pooling(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
             blobs: list[np.ndarray], name: str) -> None:
    param = layer.message('pooling_param')
    mode = param.text('pool', 'MAX')
    if mode not in ('MAX', 'AVE'):
        raise Stop(f'pooling of kind {mode}; expected MAX or AVE')
    if len(tops) > 1:
        raise Stop('it gives the places of the largest values, for unpooling, which TensorRT '
                   'does not have')
    _, channels, *size = g.shapes[bottoms[0]]
    if param.flag('global_pooling', False):
        g.node('GlobalMaxPool' if mode == 'MAX' else 'GlobalAveragePool', bottoms, tops[0],
               (1, channels, 1, 1))
        return
    kernel, stride, pad = _window(param)
    down = param.text('round_mode') == 'FLOOR' or param.text('ceil_mode') == 'false' or (
        not param.flag('ceil_mode', True))
    shape, extra = [], []
    for n, k, s, p in zip(size, kernel, stride, pad):
        steps = (n + 2 * p - k) / s
        count = (math.floor(steps) if down else math.ceil(steps)) + 1
        if p and (count - 1) * s >= n + p:  # no window begins beyond the picture
            count -= 1
        shape.append(count)
        extra.append(max((count - 1) * s + k - n - 2 * p, 0))
    source = bottoms[0]
    if mode == 'MAX':
        pads = [*pad, *(p + e for p, e in zip(pad, extra))]
    else:  # the padding counts in Caffe's mean, what a window has beyond it does not
        pads = [0, 0, *extra]
        if any(pad):
            source = f'{tops[0]}/padded'
            g.node('Pad', [bottoms[0], g.constant(f'{name}/pads', [0, 0, *pad, 0, 0, *pad])],
                   source, (1, channels, *(n + 2 * p for n, p in zip(size, pad))))
    g.node('MaxPool' if mode == 'MAX' else 'AveragePool', [source], tops[0],
           (1, channels, *shape), kernel_shape=kernel, strides=stride, pads=pads)


def _unary(op: str, **fixed: Any) -> Layer:
    """Return the layer that is one operator of ONNX."""
    def convert(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
                blobs: list[np.ndarray], name: str) -> None:
        g.node(op, bottoms[:1], tops[0], g.shapes[bottoms[0]], **fixed)
    return convert


def _relu(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
          blobs: list[np.ndarray], name: str) -> None:
    slope = layer.message('relu_param').number('negative_slope', 0)
    g.node('LeakyRelu' if slope else 'Relu', bottoms, tops[0], g.shapes[bottoms[0]],
           **({'alpha': slope} if slope else {}))


def _prelu(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
           blobs: list[np.ndarray], name: str) -> None:
    slope = g.constant(f'{name}/slope', _weights(blobs, 1)[0].reshape(-1, 1, 1))
    g.node('PRelu', [bottoms[0], slope], tops[0], g.shapes[bottoms[0]])


def _elu(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
         blobs: list[np.ndarray], name: str) -> None:
    g.node('Elu', bottoms, tops[0], g.shapes[bottoms[0]],
           alpha=layer.message('elu_param').number('alpha', 1))


def _power(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
           blobs: list[np.ndarray], name: str) -> None:
    """Compute (shift + scale * x) ** power."""
    param = layer.message('power_param')
    steps = [('Mul', param.number('scale', 1), 1), ('Add', param.number('shift', 0), 0),
             ('Pow', param.number('power', 1), 1)]
    steps = [step for step in steps if step[1] != step[2]] or steps[:1]
    source = bottoms[0]
    for i, (op, value, _) in enumerate(steps):
        target = tops[0] if i == len(steps) - 1 else f'{tops[0]}/{op}'
        g.node(op, [source, g.constant(f'{name}/{op}', np.float32(value))], target,
               g.shapes[bottoms[0]])
        source = target


def _batch_norm(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
                blobs: list[np.ndarray], name: str) -> None:
    mean, variance, *rest = _weights(blobs, 2)
    factor = float(rest[0].ravel()[0]) if rest else 1.0
    factor = 1 / factor if factor else 0.0
    count = g.shapes[bottoms[0]][1]
    values = {'scale': np.ones(count, np.float32), 'bias': np.zeros(count, np.float32),
              'mean': mean.ravel() * np.float32(factor),
              'variance': variance.ravel() * np.float32(factor)}
    g.node('BatchNormalization', [bottoms[0], *(g.constant(f'{name}/{key}', value)
                                                for key, value in values.items())],
           tops[0], g.shapes[bottoms[0]],
           epsilon=layer.message('batch_norm_param').number('eps', 1e-5))


def _bn(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
        blobs: list[np.ndarray], name: str) -> None:
    """Do what `BN` means in the branches of Caffe that have it: ENet's has 2 blobs, PSPNet's 4."""
    scale, bias, *rest = (blob.ravel() for blob in _weights(blobs, 2))
    count = len(scale)
    mean, variance = rest[:2] if len(rest) >= 2 else (np.zeros(count, np.float32),
                                                      np.ones(count, np.float32))
    g.node('BatchNormalization', [bottoms[0], *(
        g.constant(f'{name}/{key}', value) for key, value in (
            ('scale', scale), ('bias', bias), ('mean', mean), ('variance', variance)))],
        tops[0], g.shapes[bottoms[0]],
        epsilon=layer.message('bn_param').number('eps', 1e-5) if len(rest) >= 2 else 0.0)


def _scale(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
           blobs: list[np.ndarray], name: str) -> None:
    param = layer.message('scale_param')
    shape = g.shapes[bottoms[0]]
    if len(bottoms) > 1:  # one factor a channel that the network computes
        factor = bottoms[1]
        if len(g.shapes[factor]) == 2:
            factor = f'{tops[0]}/factor'
            g.node('Reshape', [bottoms[1], g.constant(f'{name}/shape', [0, 0, 1, 1])], factor,
                   (*g.shapes[bottoms[1]], 1, 1))
        g.node('Mul', [bottoms[0], factor], tops[0], shape)
        return
    if param.integer('axis', 1) != 1:
        raise Stop(f'it scales axis {param.integer("axis", 1)}; expected 1')
    bias = param.flag('bias_term', False)
    blobs = _weights(blobs, 1 + bias)
    before = next((node for node in g.nodes if bottoms[0] in node.output), None)
    if before is not None and before.op_type == 'BatchNormalization' and (
            not any(bottoms[0] in node.input for node in g.nodes)):
        for key, value in zip((1, 2), blobs):  # the other half of one normalization
            g.constants[before.input[key]] = value.ravel()
        before.output[0] = tops[0]
        g.shapes[tops[0]] = shape
        return
    scaled = f'{tops[0]}/scaled' if bias else tops[0]
    g.node('Mul', [bottoms[0], g.constant(f'{name}/weight', blobs[0].reshape(-1, 1, 1))], scaled,
           shape)
    if bias:
        g.node('Add', [scaled, g.constant(f'{name}/bias', blobs[1].reshape(-1, 1, 1))], tops[0],
               shape)


def _bias(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
          blobs: list[np.ndarray], name: str) -> None:
    value = g.constant(f'{name}/bias', _weights(blobs, 1)[0].reshape(-1, 1, 1))
    g.node('Add', [bottoms[0], value], tops[0], g.shapes[bottoms[0]])


def _inner_product(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
                   blobs: list[np.ndarray], name: str) -> None:
    param = layer.message('inner_product_param')
    old = g.shapes[bottoms[0]]
    if param.integer('axis', 1) != 1 or param.flag('transpose', False):
        raise Stop('it multiplies along other axes (axis, transpose)')
    count, bias = param.integer('num_output', 0), param.flag('bias_term', True)
    blobs = _weights(blobs, 1 + bias)
    flat = f'{tops[0]}/flat'
    g.node('Flatten', bottoms, flat, (old[0], math.prod(old[1:])), axis=1)
    inputs = [flat, g.constant(f'{name}/weight', _reshaped(blobs[0], (count, math.prod(old[1:]))))]
    if bias:
        inputs.append(g.constant(f'{name}/bias', blobs[1].ravel()))
    g.node('Gemm', inputs, tops[0], (old[0], count), transB=1)


LAYERS: dict[str, Layer] = {
    **FORMS, 'AbsVal': _unary('Abs'), 'BN': _bn, 'BNLL': _unary('Softplus'),
    'BatchNorm': _batch_norm, 'Bias': _bias, 'Convolution': _convolution,
    'Deconvolution': _convolution, 'ELU': _elu, 'InnerProduct': _inner_product,
    'PReLU': _prelu, 'Pooling': _pooling, 'Power': _power, 'ReLU': _relu, 'Scale': _scale,
    'Sigmoid': _unary('Sigmoid'), 'TanH': _unary('Tanh'),
}
"""By type of layer what it becomes: each takes a layer's own message, tensors, blobs and name."""
