# SPDX-License-Identifier: Apache-2.0
"""
Caffe's networks: equal to what OpenCV's own reader of Caffe computes.

The files are written here: the prototxt as text, the caffemodel by the field numbers of Caffe's
format. OpenCV reads Caffe below version 5.
"""

import re
import struct

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import yaml

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cli import main
from trt_segmentation.errors import InputError
from trt_segmentation.networks.caffe.convert import convert
from trt_segmentation.networks.caffe.files import read_mean, read_network, read_weights

needs_oracle = pytest.mark.skipif(not hasattr(cv2.dnn, 'readNetFromCaffe'),
                                  reason='OpenCV 5 reads no Caffe')


def varint(number):
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes([*data, number])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def blob(values, old=False):
    values = np.asarray(values, np.float32)
    if old:  # num, channels, height, width
        dims = [1] * (4 - values.ndim) + list(values.shape)
        shape = b''.join(varint(i << 3) + varint(dim) for i, dim in enumerate(dims, 1))
    else:
        shape = field(7, field(1, b''.join(map(varint, values.shape))))
    return shape + field(5, values.astype('<f4').tobytes())


def caffemodel(weights, old=False):
    """Return the bytes of a caffemodel, of the first generation of layers if wanted."""
    name, blobs, layer = (4, 6, 2) if old else (1, 7, 100)
    return b''.join(field(layer, field(name, key.encode()) + b''.join(
        field(blobs, blob(value, old)) for value in values)) for key, values in weights.items())


class Network:
    """Grows a prototxt and its weights together."""

    def __init__(self, size, channels=3, seed=0):
        self.rng = np.random.default_rng(seed)
        self.size, self.channels = size, channels
        self.text = (f'name: "test"  # written by a test\ninput: "data"\ninput_shape {{ dim: 1 '
                     f'dim: {channels} dim: {size[0]} dim: {size[1]} }}\n')
        self.weights = {}

    def layer(self, kind, name, bottoms, tops=None, settings='', blobs=()):
        tops = [name] if tops is None else tops
        self.text += (f'layer {{ name: "{name}" type: "{kind}" '
                      + ' '.join(f'bottom: "{b}"' for b in bottoms) + ' '
                      + ' '.join(f'top: "{t}"' for t in tops) + f' {settings} }}\n')
        if len(blobs):
            self.weights[name] = list(blobs)
        return tops[0]

    def random(self, *shape, scale=None):
        scale = scale or (2 / np.prod(shape[1:])) ** .5
        return self.rng.normal(0, scale, shape).astype(np.float32)

    def conv(self, name, bottom, inputs, outputs, kernel=3, settings='', group=1, relu=True):
        shape = (outputs, inputs // group, kernel, kernel)
        self.layer('Convolution', name, [bottom], settings=(
            f'convolution_param {{ num_output: {outputs} kernel_size: {kernel} group: {group} '
            f'{settings} }}'), blobs=[self.random(*shape), self.random(outputs, scale=.1)])
        if relu:
            self.layer('ReLU', f'{name}_relu', [name], [name])
        return name

    def up(self, name, bottom, channels, kernel, stride, settings='bias_term: false', group=1):
        return self.layer('Deconvolution', name, [bottom], settings=(
            f'convolution_param {{ num_output: {channels} kernel_size: {kernel} '
            f'stride: {stride} group: {group} {settings} }}'),
            blobs=[self.random(channels, channels // group, kernel, kernel)])

    def pool(self, name, bottom, kind='MAX', settings='kernel_size: 2 stride: 2'):
        return self.layer('Pooling', name, [bottom],
                          settings=f'pooling_param {{ pool: {kind} {settings} }}')

    def crop(self, name, bottom, like, offset):
        return self.layer('Crop', name, [bottom, like],
                          settings=f'crop_param {{ axis: 2 offset: {offset} }}')

    def add(self, name, *bottoms):
        return self.layer('Eltwise', name, bottoms, settings='eltwise_param { operation: SUM }')

    def save(self, directory):
        (directory / 'deploy.prototxt').write_text(self.text)
        (directory / 'net.caffemodel').write_bytes(
            caffemodel(self.weights or {'unused': [np.ones(1)]}))
        return directory / 'deploy.prototxt', directory / 'net.caffemodel'


def check(network, directory, output):
    """Compare ONNX Runtime on the converted network with OpenCV on Caffe's files."""
    paths = network.save(directory)
    tensor = network.rng.normal(0, 1, (1, network.channels, *network.size)).astype(np.float32)
    model = convert(*paths)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(),
                                           providers=['CPUExecutionProvider'])
    names = [value.name for value in session.get_outputs()]
    found = dict(zip(names, session.run(None, {'data': tensor})))[output]
    oracle = cv2.dnn.readNetFromCaffe(*map(str, paths))
    oracle.setInput(tensor)
    expected = oracle.forward(output)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    declared = tuple(dim.dim_value for dim in next(
        v for v in model.graph.output if v.name == output).type.tensor_type.shape.dim)
    assert declared == expected.shape
    return model


def vgg(network, widths=(4, 6, 8, 8, 8), first=100):
    """Add VGG16's encoder with fewer channels; return its last pool, the third and the fourth."""
    x, inputs, pools = 'data', 3, []
    for block, (width, count) in enumerate(zip(widths, (2, 2, 3, 3, 3)), 1):
        for i in range(1, count + 1):
            pad = first if (block, i) == (1, 1) else 1
            x = network.conv(f'conv{block}_{i}', x, inputs, width, settings=f'pad: {pad}')
            inputs = width
        x = network.pool(f'pool{block}', x)
        pools.append(x)
    x = network.conv('fc6', x, inputs, 12, kernel=7)
    network.layer('Dropout', 'drop6', [x], [x], 'dropout_param { dropout_ratio: 0.5 }')
    x = network.conv('fc7', x, 12, 12, kernel=1)
    network.layer('Dropout', 'drop7', [x], [x], 'dropout_param { dropout_ratio: 0.5 }')
    return network.conv('score_fr', x, 12, 5, kernel=1, relu=False), pools[2], pools[3]


SIZES = [(64, 96), (67, 101), (50, 33)]


def fcn8s(size):
    network = Network(size)
    x, third, fourth = vgg(network)
    x = network.up('upscore2', x, 5, 4, 2)
    skip = network.conv('score_pool4', fourth, 8, 5, kernel=1, relu=False)
    x = network.add('fuse_pool4', x, network.crop('score_pool4c', skip, x, 5))
    x = network.up('upscore_pool4', x, 5, 4, 2)
    skip = network.conv('score_pool3', third, 8, 5, kernel=1, relu=False)
    x = network.add('fuse_pool3', x, network.crop('score_pool3c', skip, x, 9))
    x = network.up('upscore8', x, 5, 16, 8)
    network.crop('score', x, 'data', 31)
    return network


@needs_oracle
@pytest.mark.parametrize('size', SIZES)
def test_fcn8s_as_it_was_published(tmp_path, size):
    model = check(fcn8s(size), tmp_path, 'score')
    names = {name for node in model.graph.node for name in node.output}
    # Caffe's names are those that a cache of TensorRT's reader of Caffe refers to.
    assert {'conv1_1', 'pool5', 'fc6', 'fuse_pool4', 'score'} <= names


@needs_oracle
@pytest.mark.parametrize('size', SIZES)
def test_fcn32s(tmp_path, size):
    network = Network(size)
    x, _, _ = vgg(network)
    network.crop('score', network.up('upscore', x, 5, 64, 32), 'data', 19)
    check(network, tmp_path, 'score')


@needs_oracle
@pytest.mark.parametrize('size', SIZES)
def test_a_dilated_network_with_groups_and_interp(tmp_path, size):
    network = Network(size)
    x = network.conv('a', 'data', 3, 8, settings='pad: 1 stride: 2')
    x = network.conv('b', x, 8, 8, settings='pad: 2 dilation: 2')
    x = network.conv('c', x, 8, 8, settings='pad_h: 4 pad_w: 3 dilation: 4 dilation: 3', group=4)
    x = network.conv('d', x, 8, 5, kernel=1, relu=False, settings='stride_h: 2 stride_w: 1')
    network.layer('Interp', 'score', [x],
                  settings=f'interp_param {{ height: {size[0]} width: {size[1]} }}')
    check(network, tmp_path, 'score')


def normalized(network, name, bottom, channels, in_place=True):
    blobs = [network.random(channels, scale=1), network.rng.uniform(.5, 2, channels),
             np.float32([2.5])]
    top = bottom if in_place else f'{name}_bn'
    network.layer('BatchNorm', f'{name}_bn', [bottom], [top],
                  'batch_norm_param { use_global_stats: true eps: 1e-4 }', blobs)
    return network.layer('Scale', f'{name}_scale', [top], [top if in_place else f'{name}_scale'],
                         'scale_param { bias_term: true }',
                         [network.random(channels, scale=1), network.random(channels, scale=1)])


@needs_oracle
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('in_place', [True, False])
def test_a_network_like_enet(tmp_path, size, in_place):
    network = Network(size)
    x = network.conv('initial', 'data', 3, 5, settings='pad: 1 stride: 2', relu=False)
    x = network.layer('Concat', 'both', [x, network.pool('initial_pool', 'data')])
    x = normalized(network, 'n1', x, 8, in_place)
    x = network.layer('PReLU', 'p1', [x], blobs=[network.random(8, scale=.3)])
    network.layer('Split', 'split', [x], ['left', 'right'])
    y = network.conv('m1', 'left', 8, 4, kernel=1, relu=False)
    y = normalized(network, 'n2', y, 4, in_place)
    y = network.layer('PReLU', 'p2', [y], blobs=[network.random(1, scale=.3)],
                      settings='prelu_param { channel_shared: true }')
    y = network.conv('m2', y, 4, 8, settings='pad: 1', relu=False)
    x = network.layer('Eltwise', 'sum', ['right', normalized(network, 'n3', y, 8, in_place)],
                      settings='eltwise_param { operation: SUM coeff: 1 coeff: -0.5 }')
    network.up('score', x, 8, 2, 2, 'bias_term: false', group=8)
    model = check(network, tmp_path, 'score')
    # One normalization of two layers: what is folded into convolutions.
    operators = [node.op_type for node in model.graph.node]
    assert operators.count('BatchNormalization') == 3 and 'Mul' in operators
    assert operators.count('Mul') == 1  # the coefficient


@needs_oracle
@pytest.mark.parametrize(('kind', 'settings'), [
    ('MAX', 'kernel_size: 3 stride: 2'), ('MAX', 'kernel_size: 3 stride: 2 pad: 1'),
    ('AVE', 'kernel_size: 3 stride: 2'), ('AVE', 'kernel_size: 3 stride: 2 pad: 1'),
    ('AVE', 'kernel_size: 5 stride: 3 pad: 2'), ('AVE', 'global_pooling: true'),
    ('MAX', 'global_pooling: true'), ('MAX', 'kernel_h: 2 kernel_w: 3 stride_h: 2 stride_w: 1')])
@pytest.mark.parametrize('size', [(10, 11), (13, 16), (9, 12)])
def test_pooling_rounds_as_caffe_does(tmp_path, kind, settings, size):
    network = Network(size)
    network.pool('out', 'data', kind, settings)
    check(network, tmp_path, 'out')


@needs_oracle
@pytest.mark.parametrize(('kind', 'settings', 'blobs'), [
    ('ReLU', 'relu_param { negative_slope: 0.1 }', []), ('ELU', '', []), ('Sigmoid', '', []),
    ('TanH', '', []), ('AbsVal', '', []), ('BNLL', '', []),
    ('Power', 'power_param { power: 2 scale: -0.5 shift: 1.5 }', []),
    ('LRN', 'lrn_param { local_size: 3 alpha: 0.5 beta: 0.75 }', []),
    ('Softmax', '', []), ('Flatten', '', []), ('Permute', 'permute_param { order: 0 order: 2 '
                                               'order: 3 order: 1 }', []),
    ('Reshape', 'reshape_param { shape { dim: 0 dim: -1 dim: 4 dim: 9 } }', []),
    ('InnerProduct', 'inner_product_param { num_output: 7 }', [(7, 6 * 8 * 9), (7,)]),
    ('Scale', 'scale_param { bias_term: true }', [(6,), (6,)])])
def test_layers_alone(tmp_path, kind, settings, blobs):
    network = Network((8, 9), channels=6)
    network.layer(kind, 'out', ['data'], settings=settings,
                  blobs=[network.random(*shape, scale=.2) for shape in blobs])
    check(network, tmp_path, 'out')


@needs_oracle
def test_slices_and_the_largest_of_them(tmp_path):
    network = Network((8, 9), channels=6)
    network.layer('Slice', 'slice', ['data'], ['a', 'b', 'c'],
                  'slice_param { axis: 1 slice_point: 2 slice_point: 4 }')
    for operation in ('PROD', 'MAX'):
        network.layer('Eltwise', operation, ['a', 'b', 'c'],
                      settings=f'eltwise_param {{ operation: {operation} }}')
    network.add('out', 'PROD', 'MAX')
    check(network, tmp_path, 'out')


def run(model, tensor):
    session = onnxruntime.InferenceSession(model.SerializeToString(),
                                           providers=['CPUExecutionProvider'])
    return session.run(None, {'data': tensor})[0]


@pytest.mark.parametrize('blobs', [2, 4])
def test_bn_of_the_branches_by_its_formula(tmp_path, blobs):
    network = Network((4, 5))
    values = [network.random(3, scale=1), network.random(3, scale=1),
              network.random(3, scale=1), network.rng.uniform(.5, 2, 3).astype(np.float32)][:blobs]
    network.layer('BN', 'out', ['data'], blobs=values)
    x = network.rng.normal(0, 1, (1, 3, 4, 5)).astype(np.float32)
    scale, bias, *rest = (value.reshape(3, 1, 1) for value in values)
    y = (x - rest[0]) / np.sqrt(rest[1] + 1e-5) if rest else x
    np.testing.assert_allclose(run(convert(*network.save(tmp_path)), x), y * scale + bias,
                               rtol=1e-4, atol=1e-5)


def test_the_first_generation_of_layers(tmp_path):
    network = Network((16, 20))
    weight, bias = network.random(4, 3, 3, 3), network.random(4, scale=.1)
    (tmp_path / 'old.prototxt').write_text("""
        input: "data" input_dim: 1 input_dim: 3 input_dim: 16 input_dim: 20
        layers { name: 'conv' type: CONVOLUTION bottom: 'data' top: 'conv'
                 blobs_lr: 1 blobs_lr: 2; convolution_param { num_output: 4, kernel_size: 3 } }
        layers < name: "relu" type: RELU bottom: "conv" top: "conv" >
        layers { name: "pool" type: POOLING bottom: "conv" top: "pool"
                 pooling_param: { pool: MAX kernel_size: 2 stride: 2 } }
        layers { name: "loss" type: SOFTMAX_LOSS bottom: "pool" bottom: "label" }""")
    (tmp_path / 'old.caffemodel').write_bytes(caffemodel({'conv': [weight, bias]}, old=True))
    model = convert(tmp_path / 'old.prototxt', tmp_path / 'old.caffemodel')
    assert [v.name for v in model.graph.output] == ['pool']
    x = network.rng.normal(0, 1, (1, 3, 16, 20)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x[0], (3, 3), (1, 2))
    y = np.maximum(np.einsum('cijhw,ochw->oij', windows, weight) + bias[:, None, None], 0)
    np.testing.assert_allclose(run(model, x)[0], y.reshape(4, 7, 2, 9, 2).max((2, 4)), rtol=1e-4,
                               atol=1e-5)


def test_layers_for_training_alone_are_left_out_and_data_layers_name_the_input(tmp_path):
    network = Network((8, 8))
    network.conv('conv', 'data', 3, 2, settings='pad: 1')
    body = network.text.split('\n', 3)[3]
    (tmp_path / 'p').write_text("""
        layer { name: "d" type: "ImageData" top: "data" top: "label" include { phase: TRAIN } }
        layer { name: "e" type: "Data" top: "data" top: "label" include { phase: TEST }
                transform_param { mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.5
                                  crop_size: 8 } }
        """ + body + """
        layer { name: "x" type: "Dropout" bottom: "conv" top: "dropped" include { phase: TRAIN } }
        layer { name: "l" type: "SoftmaxWithLoss" bottom: "conv" bottom: "label" top: "loss" }
        layer { name: "a" type: "Accuracy" bottom: "conv" bottom: "label" top: "accuracy" }""")
    (tmp_path / 'w').write_bytes(caffemodel(network.weights))
    model = convert(tmp_path / 'p', tmp_path / 'w')
    assert [v.name for v in model.graph.output] == ['conv']
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 8, 8]
    model = convert(tmp_path / 'p', tmp_path / 'w', (10, 12))
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [1, 2, 10,
                                                                                       12]


@pytest.mark.parametrize(('kind', 'settings', 'tops', 'said'), [
    ('Python', '', ['out'], ''), ('Upsample', '', ['out'], 'no operator for it'),
    ('Pooling', 'pooling_param { kernel_size: 2 stride: 2 }', ['out', 'mask'], 'unpooling'),
    ('ArgMax', '', ['out'], 'more than the best channel'),
    ('Convolution', 'convolution_param { num_output: 4 kernel_size: 3 }', ['out'],
     '0 of its 2 blobs'),
    ('Pooling', 'pooling_param { pool: STOCHASTIC }', ['out'], 'STOCHASTIC'),
    ('LRN', 'lrn_param { norm_region: WITHIN_CHANNEL }', ['out'], 'within channels')])
def test_what_cannot_be_converted_is_named_with_its_layer(tmp_path, kind, settings, tops, said):
    network = Network((8, 8))
    network.conv('first', 'data', 3, 3)
    network.layer(kind, 'strange', ['first'], tops, settings)
    network.add('end', 'out', 'out')
    with pytest.raises(InputError) as error:
        convert(*network.save(tmp_path))
    assert said in str(error.value) and '\n' not in str(error.value)
    assert ('strange' if kind != 'Python' else 'end') in str(error.value)


@pytest.mark.parametrize('text', ['', 'layer {', 'layer }', 'a: "b', 'a: [1, 2', 'layer { a }',
                                  '@', 'layer: 5 name: "x"', '{' * 200, 'a {' * 200, 'a: <'])
def test_broken_prototxts_are_refused_in_one_line(tmp_path, text):
    (tmp_path / 'p').write_text(text)
    network = Network((8, 8))
    network.conv('a', 'data', 3, 3)
    (tmp_path / 'w').write_bytes(caffemodel(network.weights))
    with pytest.raises(InputError) as error:
        convert(tmp_path / 'p', tmp_path / 'w')
    assert str(tmp_path / 'p') in str(error.value) and '\n' not in str(error.value)


def test_changed_prototxts_are_converted_or_refused_in_one_line(tmp_path):
    network = fcn8s((40, 48))
    prototxt, weights = network.save(tmp_path)
    rng = np.random.default_rng(0)
    numbers = ['0', '-1', '1', '3', '1000', '99999999999', '1e30', '0.5', 'nan', 'true']
    refused = 0
    for _ in range(150):
        text = network.text
        for _ in range(rng.integers(1, 4)):
            places = list(re.finditer(r'(?<=: )-?\d+', text))
            lines = text.split('\n')
            kind, at = rng.integers(3), places[rng.integers(len(places))]
            if kind == 0:
                text = text[:at.start()] + str(rng.choice(numbers)) + text[at.end():]
            elif kind == 1:
                del lines[rng.integers(len(lines))]
                text = '\n'.join(lines)
            else:
                position = rng.integers(len(text))
                text = text[:position] + text[position + rng.integers(1, 9):]
        prototxt.write_text(text)
        try:
            convert(prototxt, weights)
        except InputError as error:
            refused += 1
            assert '\n' not in str(error) and str(prototxt) in str(error)
    assert refused > 75


def test_damaged_caffemodels_are_refused_or_say_what_is_missing(tmp_path):
    network = Network((8, 8))
    network.conv('a', 'data', 3, 3)
    prototxt, weights = network.save(tmp_path)
    whole = weights.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole[:rng.integers(0, len(whole) + 1)])
        for _ in range(rng.integers(0, 4)):
            if data:
                data[rng.integers(len(data))] = rng.integers(256)
        weights.write_bytes(data)
        try:
            convert(prototxt, weights)
        except InputError as error:
            refused += 1
            assert '\n' not in str(error)
    assert refused > 200


def test_the_mean_file_and_lists_are_read(tmp_path):
    mean = np.random.default_rng(0).uniform(0, 255, (1, 3, 4, 6)).astype(np.float32)
    (tmp_path / 'mean').write_bytes(blob(mean, old=True))
    np.testing.assert_allclose(read_mean(tmp_path / 'mean'), mean.mean((0, 2, 3)), rtol=1e-5)
    single = b''.join(varint(5 << 3 | 5) + struct.pack('<f', value) for value in (1, 2, 3))
    (tmp_path / 'mean').write_bytes(single)  # one by one, as the oldest files have them
    assert read_mean(tmp_path / 'mean').tolist() == [1, 2, 3]
    (tmp_path / 'p').write_text("a: [1, -2.5e1, 3] b: 'x\\'y' c { d: true e: MAX }")
    message = read_network(tmp_path / 'p')
    assert message.numbers('a') == [1, -25, 3] and message.text('b') == "x'y"
    assert message.message('c').flag('d', False) and message.message('c').text('e') == 'MAX'
    (tmp_path / 'w').write_bytes(caffemodel({'l': [np.ones((2, 3))]}))
    assert read_weights(tmp_path / 'w')['l'][0].shape == (2, 3)


def test_from_the_files_of_the_published_network_to_a_proven_engine(tmp_path, capsys):
    prototxt, weights = fcn8s((64, 96)).save(tmp_path)
    mean = np.full((1, 3, 2, 2), 100, np.float32)
    (tmp_path / 'mean.binaryproto').write_bytes(blob(mean, old=True))
    labels = [{'name': f'l{i}', 'train_id': i, 'color': [i, i, i], 'category': 'c'}
              for i in range(5)]
    (tmp_path / 'labels.yaml').write_text(yaml.safe_dump(labels))
    bundle = tmp_path / 'bundle'
    assert main(['init', str(prototxt), str(bundle), '--weights', str(weights), '--mean-file',
                 str(tmp_path / 'mean.binaryproto'), '--labels',
                 str(tmp_path / 'labels.yaml')]) == 0
    spec = Bundle.open(bundle).spec
    assert spec.input.mean == (100, 100, 100) and spec.input.color == 'bgr'
    assert spec.input.size == (64, 96) and spec.output.tensor == 'score'
    text = (bundle / 'model.yaml').read_text()
    for key in ('min_agreement: 0.95', 'min_class_agreement: 0.8'):
        text = text.replace(key, key.split()[0] + ' 0.0')  # its weights are random
    (bundle / 'model.yaml').write_text(text)
    (tmp_path / 'images').mkdir()
    for i in range(6):
        small = np.random.default_rng(i).integers(0, 256, (4, 6, 3), np.uint8)
        cv2.imwrite(str(tmp_path / 'images' / f'{i}.png'), cv2.resize(small, (96, 64)))
    images, store = str(tmp_path / 'images'), str(tmp_path / 'store')
    assert main(['calibrate', str(bundle), '--images', images, '--count', '4', '--golden', '2',
                 '--no-report']) == 0
    assert main(['build', str(bundle), '--backend', 'onnxruntime', '--store', store]) == 0
    assert main(['evaluate', str(bundle), '--images', images, '--backend', 'onnxruntime',
                 '--store', store]) == 0
