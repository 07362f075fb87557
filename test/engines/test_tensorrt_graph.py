# SPDX-License-Identifier: Apache-2.0
"""Graphs that TensorRT would misread are refused; FP16 by Casts computes the same network."""

import numpy as np
import onnx
from onnx import numpy_helper, TensorProto
import pytest
from support.networks import amax_scales, Builder, fcn

from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.engines.tensorrt.graph import check, make_ready
from trt_segmentation.errors import InputError
from trt_segmentation.networks.float16 import to_float16
from trt_segmentation.networks.prepare import prepare
from trt_segmentation.networks.quantize import quantize

SIZE = (32, 64)
SHAPES = {'image': (1, 3, *SIZE)}
IMAGE = np.random.default_rng(1).normal(0, 50, (1, 3, *SIZE)).astype(np.float32)


def quantized(flavor='tensorrt', model=None):
    model = model or fcn()
    return quantize(model, amax_scales(model, IMAGE), flavor, input_shapes=SHAPES).model


def replace(model, name, value):
    """Give an initializer another value."""
    tensor, = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
    return model


def node(model, name):
    return next(n for n in model.graph.node if n.name == name)


def test_what_the_quantizer_writes_is_taken_with_and_without_casts():
    check(quantized())
    check(to_float16(quantized()))
    check(fcn())


def test_the_other_flavor_is_refused():
    with pytest.raises(InputError, match='codes are uint8, expected int8'):
        check(quantized('onnxruntime'))


@pytest.mark.parametrize('name, value, part', [
    ('relu2_zero_point', np.uint8(0), 'its codes are uint8, expected int8'),
    ('relu2_zero_point', np.int8(3), 'its zero point is not 0'),
    ('relu2_zero_point', np.int32(0), 'codes are int32, expected int8; leave the bias in float'),
    ('relu2_scale', np.float32(0), 'its scale is 0.0, expected finite and above 0'),
    ('relu2_scale', np.float32(-1), 'its scale is -1.0'),
    ('relu2_scale', np.float32('nan'), 'its scale is nan'),
    ('relu2_scale', np.float32('inf'), 'its scale is inf'),
    ('relu2_scale', np.float16(1), 'its scale is float16, expected float32'),
    ('relu2_scale', np.full(16, 1, np.float32), 'it has several scales, but only weights'),
])
def test_a_pair_that_tensorrt_misreads_is_refused(name, value, part):
    with pytest.raises(InputError, match=part):
        check(replace(quantized(), name, value))


def test_a_weight_along_the_wrong_axis_is_refused():
    model = quantized()
    node(model, 'score2_weight_dequantize').attribute[0].i = 1
    with pytest.raises(InputError, match="'score2_node'.*along axis 1, expected 0"):
        check(model)


@pytest.mark.parametrize('which, part', [(0, 'only its weight'), (1, 'only its activation')])
def test_a_layer_quantized_by_half_is_refused(which, part):
    model = quantized()
    layer = node(model, 'score2_node')
    original = {0: 'pool1', 1: 'score2_weight'}[which]
    if which == 1:
        model.graph.initializer.append(numpy_helper.from_array(
            np.zeros((19, 16, 1, 1), np.float32), original))
    layer.input[which] = 'relu2' if which == 0 else original
    with pytest.raises(InputError, match=f"'score2_node'.*{part}"):
        check(model)


def test_a_quantized_bias_is_refused():
    model = quantized()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(19, np.int8), 'codes'))
    model.graph.node.insert(0, onnx.helper.make_node(
        'DequantizeLinear', ['codes', 'relu2_scale', 'relu2_zero_point'], ['new_bias'],
        name='bias_dequantize'))
    node(model, 'score2_node').input[2] = 'new_bias'
    with pytest.raises(InputError, match="'score2_node'.*bias is quantized, expected float"):
        check(model)


def test_a_pair_without_a_zero_point_is_refused():
    model = quantized()
    del node(model, 'relu2_quantize').input[2]
    with pytest.raises(InputError, match='no constant zero point'):
        check(model)


def transposed(axis):
    """Return a network of one transposed convolution, quantized."""
    b = Builder(SIZE)
    scale, zero = b.constant('s', np.float32(.1)), b.constant('z', np.int8(0))
    b.constant('codes', np.ones((3, 5, 4, 4), np.int8))
    count = {None: (), 0: 3, 1: 5}[axis]
    scales = b.constant('ws', np.full(count, .1, np.float32))
    zeros = b.constant('wz', np.zeros(count, np.int8))
    x = b.node('DequantizeLinear', [
        b.node('QuantizeLinear', ['image', scale, zero], 'q'), scale, zero], 'd')
    w = b.node('DequantizeLinear', ['codes', scales, zeros], 'w',
               **({} if axis is None else {'axis': axis}))
    return b.model(b.node('ConvTranspose', [x, w], 'up', strides=[2, 2], pads=[1] * 4))


@pytest.mark.parametrize('axis', [None, 0, 1])
def test_a_quantized_transposed_convolution_is_refused(axis):
    with pytest.raises(InputError, match='a transposed convolution is quantized'):
        check(transposed(axis))


def test_matrices_count_their_outputs_along_the_axis_of_their_layout():
    b = Builder((1, 1), channels=8)
    flat = b.node('Flatten', ['image'], 'flat')
    weight = b.rng.normal(0, 1, (8, 5)).astype(np.float32)
    x = b.node('Gemm', [flat, b.constant('w', weight.T.copy())], 'gemm', transB=1)
    model = b.model(x, shape=['N', 5])
    image = np.ones((1, 8, 1, 1), np.float32)
    made = quantize(model, amax_scales(model, image), 'tensorrt',
                    input_shapes={'image': (1, 8, 1, 1)}).model
    check(made)
    node(made, 'w_dequantize').attribute[0].i = 1
    with pytest.raises(InputError, match='along axis 1, expected 0'):
        check(made)


def test_a_ready_graph_has_fixed_shapes_and_a_name_for_every_node():
    model = fcn()
    for n in model.graph.node[2:5]:
        n.name = 'same'
    model.graph.node[0].name = ''
    ready = make_ready(model, SHAPES)
    names = [n.name for n in ready.graph.node]
    assert len(set(names)) == len(names) and all(names)
    assert names[0] == model.graph.node[0].output[0]
    shape, = ([d.dim_value for d in value.type.tensor_type.shape.dim]
              for value in ready.graph.output)
    assert shape == [1, 19, 8, 16]
    expected = OnnxRuntimeEngine(fcn().SerializeToString()).infer(IMAGE)['logits']
    found = OnnxRuntimeEngine(ready.SerializeToString()).infer(IMAGE)['logits']
    assert np.array_equal(found, expected)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == 'N'


def test_a_graph_with_a_second_input_is_refused():
    model = fcn()
    model.graph.input.append(onnx.helper.make_tensor_value_info('mask', TensorProto.FLOAT, [1]))
    with pytest.raises(InputError, match="input 'mask': the graph needs it beside the image"):
        make_ready(model, SHAPES)


# FP16 by Casts.

def infer16(model):
    engine = OnnxRuntimeEngine(model.SerializeToString(), unfused=True)
    return engine.infer(IMAGE.astype(np.float16))['logits']


@pytest.mark.parametrize('make', [lambda: prepare(fcn()), quantized], ids=['float', 'quantized'])
def test_float16_computes_the_same_network(make):
    model = make()
    before = model.SerializeToString()
    half = to_float16(model)
    assert model.SerializeToString() == before
    expected = OnnxRuntimeEngine(before, unfused=True).infer(IMAGE)['logits']
    found = infer16(half)
    assert found.dtype == np.float16
    error, largest = np.abs(found - expected), np.abs(expected).max()
    # A value between two INT8 codes may be rounded to the other one.
    assert error.max() < .03 * largest and np.median(error) < .001 * largest
    types = {value.type.tensor_type.elem_type for value in (*half.graph.input,
                                                            *half.graph.output)}
    assert types == {TensorProto.FLOAT16}


def test_scales_stay_float32_and_what_they_quantize_is_cast():
    half = to_float16(quantized())
    constants = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    producer = {name: n for n in half.graph.node for name in n.output}
    pairs = [n for n in half.graph.node if n.op_type in ('QuantizeLinear', 'DequantizeLinear')]
    assert pairs
    for pair in pairs:
        assert constants[pair.input[1]] == TensorProto.FLOAT
        if pair.op_type == 'QuantizeLinear':
            assert producer[pair.input[0]].op_type == 'Cast'
    weights = [n.input[1] for n in half.graph.node if n.op_type == 'ConvTranspose']
    assert [constants[name] for name in weights] == [TensorProto.FLOAT16]


def test_sizes_and_scales_of_a_resize_stay_as_they_are():
    b = Builder(SIZE)
    x = b.conv_relu('image', 'a', 3, 8, strides=[2, 2])
    scales = b.constant('scales', np.array([1, 1, 2, 2], np.float32))
    x = b.conv(b.node('Resize', [x, '', scales], 'up', mode='linear'), 'logits', 8, 19)
    model = b.model(x)
    expected = OnnxRuntimeEngine(model.SerializeToString()).infer(IMAGE)['logits']
    found = infer16(to_float16(prepare(model)))
    assert np.abs(found - expected).max() < .01 * np.abs(expected).max()


def test_a_weight_beyond_float16_is_an_error():
    b = Builder(SIZE)
    model = b.model(b.node('Mul', ['image', b.constant('huge', np.float32(1e5))], 'logits'))
    with pytest.raises(InputError, match="weight 'huge'.*100000 is beyond FP16.*--precision fp32"):
        to_float16(prepare(model))
    b = Builder(SIZE)
    model = b.model(b.node('Mul', ['image', b.constant('bad', np.float32('nan'))], 'logits'))
    with pytest.raises(InputError, match="weight 'bad'"):
        to_float16(prepare(model))


def test_an_operator_without_float16_is_an_error():
    b = Builder(SIZE)
    x = b.node('Cast', ['image'], 'cast', to=TensorProto.DOUBLE)
    y = b.node('Cast', [x], 'back', to=TensorProto.FLOAT)
    model = b.model(b.node('Det', [y], 'logits'), shape=['N', 3])
    # ONNX allows Det of float16; a graph that mixes types is what the check must find.
    model.graph.node.insert(2, onnx.helper.make_node('Add', ['back', 'cast'], ['mixed'],
                                                     name='mixed'))
    with pytest.raises(InputError, match='cannot be made FP16.*--precision fp32'):
        to_float16(model)


def test_branches_are_an_error():
    b = Builder(SIZE)
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node('Identity', ['image'], ['inner'])], 'branch', [],
        [onnx.helper.make_tensor_value_info('inner', TensorProto.FLOAT, None)])
    b.node('If', [b.constant('yes', np.array(True))], 'logits', then_branch=branch,
           else_branch=branch)
    model = b.model('logits', shape=['N', 3, *SIZE])
    with pytest.raises(InputError, match="'logits_node' .If.: a graph with branches or loops"):
        to_float16(prepare(model))
