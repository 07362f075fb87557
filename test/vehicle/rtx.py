# SPDX-License-Identifier: Apache-2.0
"""The graphs under the real TensorRT-RTX builder, which needs no GPU: what runs in INT8."""

import os
import signal
import threading

import numpy as np
import onnx
import pytest
from support.networks import amax_scales, Builder, fcn, write_calibrated_bundle

from trt_segmentation import sample
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.bundles.spec import load_spec
from trt_segmentation.engines.tensorrt import backend as tensorrt
from trt_segmentation.engines.tensorrt import builder as tensorrt_builder
from trt_segmentation.engines.tensorrt.graph import check, make_ready
from trt_segmentation.engines.tensorrt.layers import parse_dump, prove
from trt_segmentation.engines.tensorrt.module import import_tensorrt
from trt_segmentation.errors import InputError
from trt_segmentation.networks.layers import int8_share
from trt_segmentation.networks.quantize import quantize

trt = import_tensorrt('tensorrt_rtx')
SIZE = (64, 128)
GPUS = ('SM86', 'SM89', 'SM120')


def bundle_of(model, directory, scales=None, exclude=(), size=SIZE):
    """Return a bundle with the given scales, or those of a random image."""
    if scales is None:
        image = np.random.default_rng(1).normal(0, 50, (1, 3, *size)).astype(np.float32)
        scales = amax_scales(model, image)
    return write_calibrated_bundle(directory / 'bundle', model, scales,
                                   input={'size': list(size)},
                                   calibration={'exclude': list(exclude)})


def build(bundle, precision='int8', gpu='SM86', batch=1, **settings):
    """Return the layers as they run, by name, and what was built."""
    order, layers = tensorrt.make_order(trt, bundle, precision, 'explicit', batch)
    assert order.strongly_typed
    built = tensorrt_builder.build(
        trt, order, tensorrt_builder.Settings(compute_capability=gpu, **settings))
    return {layer.name: layer for layer in prove(layers, parse_dump(built.log.dump))}, built


def residual(b):
    x = b.conv_relu('image', 'stem', 3, 32)
    y = b.conv(b.conv_relu(x, 'a', 32, 32), 'b', 32, 32)
    x = b.node('Relu', [b.node('Add', [y, x], 'sum')], 'block')
    return b.conv(x, 'score', 32, 19, kernel=1)


def concat_of_different_scales(b):
    x = b.conv_relu('image', 'stem', 3, 32)
    large = b.node('Mul', [b.conv_relu(x, 'a', 32, 32), b.constant('ten', np.float32(10))], 'big')
    x = b.node('Concat', [x, large], 'both', axis=1)
    return b.conv(x, 'score', 64, 19, kernel=1)


def resized(mode):
    def network(b):
        x = b.conv_relu('image', 'stem', 3, 32, strides=[2, 2])
        scales = b.constant('scales', np.array([1, 1, 2, 2], np.float32))
        x = b.node('Resize', [x, '', scales], 'up', mode=mode)
        return b.conv(x, 'score', 32, 19, kernel=1)
    return network


def max_pool(b):
    x = b.conv_relu('image', 'stem', 3, 32)
    x = b.node('MaxPool', [x], 'pool', kernel_shape=[2, 2], strides=[2, 2])
    return b.conv(x, 'score', 32, 19, kernel=1)


def depthwise(b):
    x = b.conv_relu('image', 'stem', 3, 32)
    x = b.conv_relu(x, 'each', 32, 32, group=32)
    return b.conv(x, 'score', 32, 19, kernel=1)


def dilated(b):
    x = b.conv_relu('image', 'stem', 3, 32)
    x = b.conv_relu(x, 'wide', 32, 32, dilations=[2, 2], pads=[2, 2, 2, 2])
    return b.conv(x, 'score', 32, 19, kernel=1)


def batch_normalization(b):
    x = b.conv('image', 'stem', 3, 32, bias=False)
    parameters = [b.constant(name, b.rng.uniform(.5, 2, 32).astype(np.float32))
                  for name in ('gamma', 'beta', 'mean', 'variance')]
    x = b.node('Relu', [b.node('BatchNormalization', [x, *parameters], 'normal')], 'relu')
    return b.conv(x, 'score', 32, 19, kernel=1)


NETWORKS = {
    'residual addition': residual, 'concat of different scales': concat_of_different_scales,
    'nearest resize': resized('nearest'), 'linear resize': resized('linear'),
    'max pooling': max_pool, 'depthwise': depthwise, 'dilated': dilated,
    'batch normalization': batch_normalization,
}


@pytest.mark.parametrize('gpu', GPUS)
@pytest.mark.parametrize('network', NETWORKS.values(), ids=NETWORKS)
def test_every_convolution_runs_in_int8(network, gpu, tmp_path):
    b = Builder(SIZE)
    layers, _ = build(bundle_of(b.model(network(b)), tmp_path), gpu=gpu)
    assert {layer.precision for layer in layers.values()} == {'int8'}, layers


@pytest.mark.parametrize('gpu', GPUS)
def test_a_transposed_convolution_stays_in_fp16_and_the_rest_runs_in_int8(gpu, tmp_path):
    layers, _ = build(bundle_of(fcn(SIZE), tmp_path), gpu=gpu)
    up = layers.pop('up3_node')
    assert (up.precision, up.reason) == ('fp16', 'transposed convolutions stay in float')
    assert {layer.precision for layer in layers.values()} == {'int8'}, layers


def test_an_excluded_layer_stays_in_fp16(tmp_path):
    layers, _ = build(bundle_of(fcn(SIZE), tmp_path, exclude=('score2_node',)))
    assert (layers['score2_node'].precision, layers['score2_node'].reason) == (
        'fp16', 'excluded by the spec')
    assert layers['score3_node'].precision == 'int8'


@pytest.mark.parametrize('precision', ['fp16', 'fp32'])
def test_float_engines_run_in_the_type_that_was_asked_for(precision, tmp_path):
    layers, _ = build(bundle_of(fcn(SIZE), tmp_path), precision)
    assert {layer.precision for layer in layers.values()} == {precision}
    assert int8_share(layers.values()) == 0


def test_the_sample_network_runs_in_int8(tmp_path):
    folder = sample.BUNDLE
    spec = load_spec(folder / 'model.yaml')
    bundle = bundle_of(onnx.load(folder / spec.model), tmp_path, size=spec.input.size)
    layers, built = build(bundle)
    share = int8_share(layers.values())
    assert share >= spec.acceptance.min_int8_share, layers
    print(f'sample network: {share:.1%} of {sum(layer.macs for layer in layers.values()):,} '
          f'multiply-accumulates in INT8, plan {len(built.plan):,} bytes')


@pytest.mark.parametrize('network', NETWORKS.values(), ids=NETWORKS)
def test_a_plan_for_batches_runs_in_int8_too(network, tmp_path):
    b = Builder(SIZE)
    layers, built = build(bundle_of(b.model(network(b)), tmp_path), batch=4)
    assert {layer.precision for layer in layers.values()} == {'int8'}, layers
    assert '4,3,64,128' in built.log.dump.replace(' ', '')


def test_a_network_of_one_image_with_a_resize_to_fixed_sizes_takes_batches(tmp_path):
    b = Builder(SIZE)
    b.input.type.tensor_type.shape.dim[0].dim_value = 1
    x = b.conv_relu('image', 'stem', 3, 32, strides=[2, 2])
    x = b.node('Resize', [x, '', '', b.constant('sizes', np.array([1, 32, *SIZE]))], 'up',
               mode='linear')
    model = b.model(b.conv(x, 'score', 32, 19, kernel=1), shape=(1, 19, *SIZE))
    layers, _ = build(bundle_of(model, tmp_path), batch=4)
    assert {layer.precision for layer in layers.values()} == {'int8'}, layers


# What the check refuses, and what RTX would make of it.

def quantized(tmp_path, network=max_pool):
    b = Builder(SIZE)
    bundle = bundle_of(b.model(network(b)), tmp_path)
    made = quantize(onnx.load(bundle.model_path), cache_of(bundle).scales, 'tensorrt',
                    input_shapes={'image': (1, 3, *SIZE)})
    return make_ready(made.model, {'image': (1, 3, *SIZE)}), made.layers


def types_of(model, layers):
    order = tensorrt_builder.Order(model.SerializeToString(), strongly_typed=True)
    built = tensorrt_builder.build(trt, order,
                                   tensorrt_builder.Settings(compute_capability='SM86'))
    return {layer.precision for layer in prove(layers, parse_dump(built.log.dump))}


def test_rtx_takes_a_weight_quantized_along_the_wrong_axis_in_silence(tmp_path):
    model, layers = quantized(tmp_path, residual)
    check(model)
    assert types_of(model, layers) == {'int8'}
    for node in model.graph.node:  # 32 channels in and out: the shapes allow either axis
        if node.op_type == 'DequantizeLinear' and node.input[0].startswith(('a_conv_w', 'b_w')):
            node.attribute[0].i = 1
    assert 'fp32' in types_of(model, layers)
    with pytest.raises(InputError, match='quantized along axis 1, expected 0'):
        check(model)


def test_rtx_takes_uint8_codes_in_silence(tmp_path):
    model, layers = quantized(tmp_path)
    for tensor in model.graph.initializer:
        if tensor.name == 'pool_zero_point':
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.uint8(0), tensor.name))
    assert types_of(model, layers) == {'int8'}
    with pytest.raises(InputError, match='its codes are uint8, expected int8'):
        check(model)


def test_a_network_that_rtx_cannot_read_is_an_error_with_its_reason(tmp_path):
    model, _ = quantized(tmp_path)
    for tensor in model.graph.initializer:
        if tensor.name == 'pool_scale':
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(-1), tensor.name))
    order = tensorrt_builder.Order(model.SerializeToString(), strongly_typed=True)
    with pytest.raises(InputError, match='cannot read the network.*[Ss]cale'):
        tensorrt_builder.build(trt, order, tensorrt_builder.Settings())


def test_a_gpu_that_rtx_does_not_build_for_is_an_error_with_its_reason(tmp_path):
    # FP8 types aside, RTX takes every GPU that it names; an order it cannot fulfil is a graph
    # that is strongly typed and mixes types.
    b = Builder(SIZE)
    x = b.conv('image', 'a', 3, 8)
    model = b.model(x)
    for tensor in model.graph.initializer:
        if tensor.name == 'a_bias':
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(8, np.float16), tensor.name))
    order = tensorrt_builder.Order(make_ready(model, {'image': (1, 3, *SIZE)})
                                   .SerializeToString(), strongly_typed=True)
    with pytest.raises(InputError, match='TensorRT cannot'):
        tensorrt_builder.build(trt, order,
                               tensorrt_builder.Settings(compute_capability='SM86'))


@pytest.fixture
def heard():
    """Let SIGINT be heard as in a terminal, also in a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_the_build(tmp_path, monkeypatch, heard):
    monkeypatch.setattr(tensorrt_builder, '_REPORT_SECONDS', 0.01)
    b = Builder((256, 512))
    x = b.conv_relu('image', 'c0', 3, 64)
    for i in range(1, 24):
        x = b.conv_relu(x, f'c{i}', 64, 64)
    x = b.conv(x, 'score', 64, 19, kernel=1)
    order, _ = tensorrt.make_order(trt, bundle_of(b.model(x), tmp_path, {}, size=(256, 512)),
                                   'fp16', 'explicit')
    lines = []

    def report(line):
        lines.append(line)
        if len(lines) == 1:  # TensorRT has begun, and says so in its own thread
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tensorrt_builder.build(trt, order, tensorrt_builder.Settings(
            compute_capability='SM86', report=report))
    assert 'stopping TensorRT' in lines
    assert 'tensorrt-build' not in {thread.name for thread in threading.enumerate()}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_turing_has_no_int8_convolutions_and_the_proof_says_so(tmp_path):
    layers, _ = build(bundle_of(fcn(), tmp_path, size=(32, 64)), gpu='SM75')
    assert {layer.precision for layer in layers.values()} == {'fp16'}
