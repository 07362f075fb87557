# SPDX-License-Identifier: Apache-2.0
"""
The share of the work in INT8: equal to what a run under ONNX Runtime counts, or unknown.

The count that it is compared with knows nothing of shape inference: every tensor is made an
output, the network is run, and each layer's multiplications are counted from the arrays.
"""

import math
import re

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import pytest
from support.networks import Builder, fcn, infer_all

from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.layers import float_layers, int8_share, Layer
from trt_segmentation.networks.placement import INTEGER_OPS, quantizable_share
from trt_segmentation.networks.quantize import quantize
from trt_segmentation.networks.work import does_work

SIZE = (32, 64)


def counted(model, size=SIZE):
    """Return the multiplications of each layer, by name, from the arrays of a run."""
    tensor = np.random.default_rng(0).normal(0, 1, (1, 3, *size)).astype(np.float32)
    arrays = infer_all(model, tensor)
    arrays.update((t.name, numpy_helper.to_array(t)) for t in model.graph.initializer)
    result = {}
    for node in model.graph.node:
        if node.op_type in ('Conv', 'ConvTranspose', 'Gemm', 'MatMul'):
            x, w, y = (arrays[name] for name in (*node.input[:2], node.output[0]))
            if node.op_type == 'Conv':  # one sum over the window for each element
                result[node.name] = sum(w[0].size for _ in range(y.shape[1])) * y[0, 0].size
            elif node.op_type == 'ConvTranspose':  # each element is spread over the window
                result[node.name] = x.size * w[0].size
            else:
                result[node.name] = y.size * x.shape[-1]
    return result


def check(model, size=SIZE):
    expected = counted(model, size)
    shapes = {'image': (1, 3, *size)}
    assert {layer.name: layer.macs for layer in float_layers(model, shapes)} == expected
    scales = {name: 1.0 for node in model.graph.node for name in node.output} | {'image': 1.0}
    layers = quantize(model, scales, 'tensorrt', input_shapes=shapes).layers
    assert {layer.name: layer.macs for layer in layers} == expected
    able = sum(macs for name, macs in expected.items() if not name.startswith('float'))
    share = able / sum(expected.values())
    assert quantizable_share(model, shapes) == pytest.approx(share)
    assert int8_share(layers) == pytest.approx(share)
    return share


@st.composite
def networks(draw):
    """Draw a chain of layers of all kinds; those that stay in float have it in their names."""
    size = draw(st.tuples(st.integers(9, 40), st.integers(9, 40)))
    b = Builder(size)
    x, channels = 'image', 3
    for i in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(['conv', 'depthwise', 'dilated', 'strided', 'up', 'resize',
                                     'pool']))
        wider = draw(st.sampled_from([4, 6, 8]))
        if kind == 'depthwise':
            x = b.conv(x, f'l{i}', channels, channels, group=channels)
        elif kind == 'up':
            x, channels = b.transposed(x, f'float{i}', channels, wider), wider
        elif kind == 'resize':
            x = b.node('Resize', [x, '', b.constant(f's{i}', np.float32([1, 1, 1.5, 2]))],
                       f'r{i}', mode='linear')
        elif kind == 'pool':
            x = b.node('AveragePool', [x], f'p{i}', kernel_shape=[3, 3], strides=[2, 2],
                       pads=[1] * 4, ceil_mode=1)
        else:
            options = {'dilated': {'dilations': [2, 2], 'pads': [2] * 4},
                       'strided': {'strides': [2, 1]}}.get(kind, {})
            x = b.conv(x, f'l{i}', channels, wider, **options)
            channels = wider
    b.conv(x, 'logits', channels, 5, kernel=1)
    return b.model('logits'), size


@settings(max_examples=40, deadline=None)
@given(networks())
def test_the_share_is_what_a_run_counts(drawn):
    check(*drawn)


def unet(size):
    """Return a U-Net whose decoder pads to the encoder's size, as PyTorch's exporter writes it."""
    b = Builder(size)
    skip = b.conv_relu('image', 'down1', 3, 8)
    x = b.conv_relu(skip, 'down2', 8, 16, strides=[2, 2])
    x = b.transposed(x, 'float_up', 16, 8)
    differences = []
    for axis in (2, 3):
        index = b.constant(f'axis{axis}', np.int64([axis]))
        lengths = [b.node('Cast', [b.node('Gather', [b.node('Shape', [t], f'{t}_shape{axis}'),
                                                      index], f'{t}_length{axis}')],
                          f'{t}_float{axis}', to=TensorProto.FLOAT) for t in (skip, x)]
        differences.append(b.node('Sub', lengths, f'difference{axis}'))
    two, zeros = b.constant('two', np.float32([2])), b.constant('zeros', np.int64([0, 0]))
    begins, ends = [], []
    for axis, difference in zip((2, 3), differences):
        begin = b.node('Floor', [b.node('Div', [difference, two], f'half{axis}')], f'b{axis}')
        begins.append(b.node('Cast', [begin], f'begin{axis}', to=TensorProto.INT64))
        end = b.node('Sub', [difference, begin], f'e{axis}')
        ends.append(b.node('Cast', [end], f'end{axis}', to=TensorProto.INT64))
    pads = b.node('Concat', [zeros, *begins, zeros, *ends], 'pads', axis=0)
    x = b.node('Concat', [skip, b.node('Pad', [x, pads], 'padded')], 'both', axis=1)
    x = b.conv_relu(x, 'large', 16, 32)
    b.conv(x, 'logits', 32, 5, kernel=1)
    return b.model('logits', shape=['N', 5, *size])


@pytest.mark.parametrize('size', [(33, 47), (32, 64)])
def test_shapes_that_depend_on_shapes_are_known(size):
    model = unet(size)
    share = check(model, size)
    excluded = quantize(
        model, dict.fromkeys(('image', 'down1', 'down2', 'both', 'large'), 1.0), 'tensorrt',
        input_shapes={'image': (1, 3, *size)}, exclude=['large_conv_node'])
    assert excluded.int8_share < share / 2


def test_shapes_that_only_a_run_can_tell_come_from_a_run():
    """How many places are not zero is in no shape; the layer behind it is counted all the same."""
    b = Builder(SIZE)
    x = b.conv('image', 'first', 3, 4)
    flat = b.node('Reshape', [x, b.constant('two', np.int64([-1, 8]))], 'flat')
    rows = b.node('Squeeze', [b.node('NonZero', [b.node('ReduceSum', [
        b.node('Add', [b.node('Abs', [flat], 'abs'), b.constant('one', np.float32(1))], 'above'),
        b.constant('axis', np.int64([1]))], 'sum', keepdims=0)], 'places'),
        b.constant('zero', np.int64([0]))], 'rows')
    weight = b.constant('weight', b.rng.normal(0, 1, (8, 5)).astype(np.float32))
    b.node('MatMul', [b.node('Gather', [flat, rows], 'taken'), weight], 'logits')
    check(b.model('logits', shape=[None, 5]))


def as_functions(model, *names):
    """Return the model with each named Conv moved into a function of its own file."""
    for name in names:
        node = next(node for node in model.graph.node if node.name == name)
        inner = onnx.NodeProto.FromString(node.SerializeToString())
        inner.input[:], inner.output[:] = ['x', 'w', 'b'][:len(node.input)], ['y']
        model.functions.append(helper.make_function(
            'local', f'Block_{name}', list(inner.input), ['y'], [inner],
            [helper.make_opsetid('', 17)]))
        node.op_type, node.domain = f'Block_{name}', 'local'
        del node.attribute[:]
    model.opset_import.append(helper.make_opsetid('local', 1))
    return model


def test_layers_in_functions_of_the_file_are_counted_and_quantized(tmp_path):
    expected = quantizable_share(fcn(), {'image': (1, 3, *SIZE)})
    model = as_functions(fcn(), 'relu2_conv_node', 'relu3_conv_node')
    onnx.save(model, tmp_path / 'model.onnx')
    loaded = onnx_model.load(tmp_path / 'model.onnx')
    assert quantizable_share(loaded, {'image': (1, 3, *SIZE)}) == pytest.approx(expected)
    x = np.random.default_rng(1).normal(0, 50, (1, 3, *SIZE)).astype(np.float32)
    whole = infer_all(fcn(), x)
    here = infer_all(loaded, x)
    np.testing.assert_allclose(here['logits'], whole['logits'], rtol=1e-5, atol=1e-4)
    assert {'relu1', 'pool1', 'relu2', 'logits'} <= set(here)  # tensors keep their names
    scales = {name: float(np.abs(value).max() / 127) for name, value in whole.items()}
    assert quantize(loaded, scales, 'tensorrt', input_shapes={'image': (1, 3, *SIZE)}
                    ).int8_share == pytest.approx(expected)


def test_weights_that_the_file_computes_are_constants():
    """Weight normalization as exporters leave it: w = g * v / |v|."""
    b = Builder(SIZE)
    v = b.constant('v', b.rng.normal(0, 1, (8, 3, 3, 3)).astype(np.float32))
    norm = b.node('ReduceL2', [v], 'norm', axes=[1, 2, 3], keepdims=1)
    gain = b.constant('gain', b.rng.uniform(.5, 2, (8, 1, 1, 1)).astype(np.float32))
    weight = b.node('Mul', [b.node('Div', [v, norm], 'unit'), gain], 'weight')
    x = b.node('Relu', [b.node('Conv', ['image', weight], 'conv', pads=[1] * 4)], 'relu')
    b.conv(x, 'logits', 8, 5)
    model = b.model('logits')
    assert check(model) == 1
    x = np.random.default_rng(1).normal(0, 1, (1, 3, *SIZE)).astype(np.float32)
    codes = {t.name: numpy_helper.to_array(t) for t in quantize(
        model, dict.fromkeys(('image', 'relu'), 1.0), 'tensorrt',
        input_shapes={'image': (1, 3, *SIZE)}).model.graph.initializer}
    exact = infer_all(model, x)['weight']
    step = np.abs(exact).max((1, 2, 3)) / 127
    np.testing.assert_allclose(codes['weight_scale'], step, rtol=1e-5)
    assert np.abs(codes['weight_int8'] * step[:, None, None, None] - exact).max() <= step.max() / 2


def test_the_work_of_a_foreign_operator_is_unknown_and_says_why():
    b = Builder(SIZE)
    x = b.conv_relu('image', 'relu1', 3, 8)
    b.conv(x, 'logits', 8, 5)
    model = b.model('logits')
    node = next(node for node in model.graph.node if node.name == 'logits_node')
    node.op_type, node.domain = 'FusedConv', 'com.microsoft'
    model.opset_import.append(helper.make_opsetid('com.microsoft', 1))
    shapes = {'image': (1, 3, *SIZE)}
    assert quantizable_share(model, shapes) is None
    result = quantize(model, {'image': 1.0, 'relu1': 1.0}, 'tensorrt', input_shapes=shapes)
    assert result.int8_share is None
    layer = next(layer for layer in result.layers if layer.name == 'logits_node')
    assert layer.macs is None and layer.precision == 'float'
    assert layer.reason == 'com.microsoft.FusedConv is not an operator of ONNX'


def test_the_work_in_a_branch_is_unknown():
    b = Builder(SIZE)
    x = b.conv_relu('image', 'relu1', 3, 8)
    weight = b.constant('weight', b.rng.normal(0, .2, (8, 8, 3, 3)).astype(np.float32))
    total = b.node('ReduceSum', ['image'], 'total', keepdims=0)
    flag = b.node('Greater', [total, b.constant('low', np.float32(-1e9))], 'flag')
    branches = {name: helper.make_graph([node], name, [], [helper.make_tensor_value_info(
        node.output[0], TensorProto.FLOAT, None)]) for name, node in (
            ('then_branch', helper.make_node('Conv', [x, weight], ['a'], pads=[1] * 4)),
            ('else_branch', helper.make_node('Neg', [x], ['b'])))}
    x = b.node('If', [flag], 'branch', **branches)
    b.conv(x, 'logits', 8, 5)
    model = b.model('logits', shape=['N', 5, *SIZE])
    layers = {layer.name: layer for layer in float_layers(model, {'image': (1, 3, *SIZE)})}
    assert layers['branch_node'].macs is None
    assert layers['branch_node'].reason == 'it has layers in a branch or a loop'
    assert layers['logits_node'].macs == math.prod(SIZE) * 5 * 8 * 9


def single(op, inputs, shapes, output, opset=17, **attributes):
    """Return the macs of a one-node graph with inputs of the given shapes."""
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ['y'], name='y', **attributes)], 'g',
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
         for name, shape in zip(filter(None, inputs), shapes)],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, output)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)])
    (layer,) = float_layers(model, {inputs[0]: shapes[0]})
    return layer.macs


def test_layers_of_other_kinds_are_counted_by_their_formulas():
    assert single('MatMul', ['a', 'b'], [(2, 7, 5), (5, 3)], (2, 7, 3)) == 2 * 7 * 3 * 5
    assert single('Gemm', ['a', 'b'], [(5, 7), (5, 3)], (7, 3), transA=1) == 7 * 3 * 5
    assert single('LSTM', ['x', 'w', 'r'], [(6, 2, 10), (1, 4 * 8, 10), (1, 4 * 8, 8)],
                  (6, 1, 2, 8), hidden_size=8) == 6 * 2 * (4 * 8 * 10 + 4 * 8 * 8)


@pytest.mark.skipif(tuple(map(int, onnx.__version__.split('.')[:2])) < (1, 18),
                    reason='this ONNX has no Attention, and no shapes of Einsum')
def test_layers_that_newer_onnx_knows_are_counted_by_their_formulas():
    assert single('Einsum', ['a', 'b'], [(2, 7, 5), (5, 3)], (2, 7, 3),
                  equation='...ij,jk->...ik') == 2 * 7 * 5 * 3
    assert single('Einsum', ['a', 'b'], [(2, 4, 7, 5), (2, 4, 9, 5)], (2, 4, 7, 9),
                  equation='bhqd, bhkd -> bhqk') == 2 * 4 * 7 * 5 * 9
    assert single('Einsum', ['a', 'b', 'c'], [(2, 3), (3, 4), (4, 5)], (2, 5),
                  equation='ij,jk,kl->il') is None
    queries, keys = (2, 4, 7, 5), (2, 4, 9, 5)
    assert single('Attention', ['q', 'k', 'v'], [queries, keys, keys], (2, 4, 7, 5),
                  opset=23) == 2 * 4 * 7 * 9 * 5 * 2


def test_what_multiplies_without_a_formula_is_unknown():
    assert single('DFT', ['x'], [(1, 8, 1)], (1, 8, 2)) is None
    telling = re.compile('Attention|Conv|DFT|Einsum|Gemm|GRU|LSTM|MatMul|RNN')
    names = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain
             and telling.search(schema.name)} - set(INTEGER_OPS)
    nodes = [helper.make_node(name, ['x'], ['y']) for name in names]
    assert [node.op_type for node in nodes if not does_work(node)] == []


def test_one_uncounted_layer_makes_the_share_unknown():
    known = Layer('a', 'Conv', 10, 'int8')
    assert int8_share([known]) == 1
    assert int8_share([known, Layer('b', 'Conv', None, 'int8')]) is None
    assert int8_share([]) == 0
