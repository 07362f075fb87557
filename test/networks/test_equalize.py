# SPDX-License-Identifier: Apache-2.0
"""An equalized network computes what the network computed, whatever its convolutions follow."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import onnx
from onnx import numpy_helper
import pytest
from support.networks import Builder, fcn, infer_all
from support.random_networks import assert_same_output, networks, SIZE

from trt_segmentation.networks.equalize import equalize, targets, watched
from trt_segmentation.networks.graph import node_name

IMAGE = np.random.default_rng(3).normal(0, 50, (2, 3, 32, 64)).astype(np.float32)


def relu(b):
    x = b.conv_relu('image', 'x', 3, 8)
    return b.conv(x, 'y', 8, 5)


def grouped(b):
    x = b.conv_relu('image', 'x', 3, 12)
    return b.conv(x, 'y', 12, 8, group=4)


def depthwise_with_several_outputs(b):
    x = b.conv('image', 'x', 3, 6)
    return b.conv(x, 'y', 6, 18, group=6, bias=False)


def concat_of_two(b):
    x = b.conv_relu('image', 'p', 3, 4)
    z = b.node('Concat', [x, b.conv('image', 'q', 3, 5)], 'x', axis=1)
    return b.conv(z, 'y', 9, 7, kernel=1)


def sum_that_is_read_elsewhere_too(b):
    x = b.conv_relu('image', 'p', 3, 6)
    z = b.node('Add', [x, b.conv(x, 'q', 6, 6)], 'x')
    return b.node('Add', [b.conv(z, 'y1', 6, 6), z], 'y')


def pooled_and_resized(b):
    x = b.node('MaxPool', [b.conv('image', 'p', 3, 6)], 'pool', kernel_shape=[2, 2],
               strides=[2, 2])
    scales = b.constant('scales', np.array([1, 1, 2, 2], np.float32))
    x = b.node('Resize', [x, '', scales], 'x', mode='nearest')
    return b.conv(x, 'y', 6, 4, strides=[2, 2])


def batch_norm_and_prelu(b):
    x = b.conv('image', 'p', 3, 6)
    names = [b.constant(f'bn{i}', np.abs(b.rng.normal(1, .2, 6)).astype(np.float32))
             for i in range(4)]
    x = b.node('BatchNormalization', [x, *names], 'bn')
    x = b.node('PRelu', [x, b.constant('slope', np.full((6, 1, 1), .2, np.float32))], 'x')
    return b.conv(x, 'y', 6, 4)


def read_by_two(b):
    x = b.conv_relu('image', 'x', 3, 6)
    return b.node('Add', [b.conv(x, 'a', 6, 4), b.conv(x, 'b', 6, 4, kernel=1)], 'y')


def one_weight_for_two(b):
    x = b.conv_relu('image', 'x', 3, 3)
    weight = b.constant('shared', b.rng.normal(0, .3, (3, 3, 3, 3)).astype(np.float32))
    first = b.node('Conv', [x, weight], 'first', pads=[1] * 4, kernel_shape=[3, 3])
    return b.node('Conv', [first, weight], 'y', pads=[1] * 4, kernel_shape=[3, 3])


def weight_of_a_constant_node(b):
    x = b.conv_relu('image', 'x', 3, 4)
    value = numpy_helper.from_array(b.rng.normal(0, .3, (5, 4, 1, 1)).astype(np.float32))
    b.node('Constant', [], 'weight', value=value)
    return b.node('Conv', [x, 'weight'], 'y', kernel_shape=[1, 1])


def sum_of_two_branches(b):
    x = b.node('Add', [b.conv('image', 'p', 3, 6), b.conv_relu('image', 'q', 3, 6)], 'sum')
    return b.conv(b.node('LeakyRelu', [x], 'x', alpha=.3), 'y', 6, 4)


def sums_and_pools_in_a_concat(b):
    left = b.node('Add', [b.conv('image', 'p', 3, 4), b.conv('image', 'q', 3, 4)], 'sum')
    right = b.node('AveragePool', [b.conv_relu('image', 'r', 3, 5)], 'mean',
                   kernel_shape=[3, 3], pads=[1] * 4)
    return b.conv(b.node('Concat', [left, right], 'x', axis=-3), 'y', 9, 6, group=3)


FOLDED = [relu, grouped, depthwise_with_several_outputs, concat_of_two, pooled_and_resized,
          batch_norm_and_prelu, read_by_two, one_weight_for_two, weight_of_a_constant_node,
          sum_of_two_branches, sums_and_pools_in_a_concat]


def sum_with_a_side_that_is_read_elsewhere(b):
    side = b.conv('image', 'q', 3, 6)
    x = b.node('Add', [b.conv('image', 'p', 3, 6), side], 'x')
    return b.node('Add', [b.conv(x, 'y1', 6, 6), side], 'y')


def sum_of_one_tensor(b):
    p = b.conv('image', 'p', 3, 6)
    return b.conv(b.node('Add', [p, p], 'x'), 'y', 6, 4)


def sum_that_spreads_a_channel(b):
    x = b.node('Add', [b.conv('image', 'p', 3, 6), b.conv('image', 'q', 3, 1)], 'x')
    return b.conv(x, 'y', 6, 4)


def sum_with_a_constant(b):
    x = b.node('Add', [b.conv('image', 'p', 3, 6), b.constant('one', np.float32(1))], 'x')
    return b.conv(x, 'y', 6, 4)


def concat_of_the_image(b):
    x = b.node('Concat', [b.conv('image', 'p', 3, 6), 'image'], 'x', axis=1)
    return b.conv(x, 'y', 9, 4)


def concat_of_rows(b):
    x = b.node('Concat', [b.conv('image', 'p', 3, 6), b.conv('image', 'q', 3, 6)], 'x', axis=2)
    return b.conv(x, 'y', 6, 4, strides=[2, 1])


def clipped(b):
    low, high = (b.constant(f'bound{value}', np.float32(value)) for value in (0, 6))
    return b.conv(b.node('Clip', [b.conv('image', 'p', 3, 6), low, high], 'x'), 'y', 6, 4)


def resized_into_what_it_has_not(b):
    roi = b.constant('roi', np.array([0, 0, 0, 0, 1, 1, 1.5, 1.5], np.float32))
    scales = b.constant('scales', np.array([1, 1, 1, 1], np.float32))
    x = b.node('Resize', [b.conv('image', 'p', 3, 6), roi, scales], 'x', mode='linear',
               coordinate_transformation_mode='tf_crop_and_resize', extrapolation_value=3.)
    return b.conv(x, 'y', 6, 4)


def weight_that_is_computed(b):
    weight = b.constant('half', b.rng.normal(0, .3, (4, 3, 1, 1)).astype(np.float32))
    b.node('Mul', [weight, weight], 'weight')
    return b.conv(b.node('Conv', ['image', 'weight'], 'x', kernel_shape=[1, 1]), 'y', 4, 5)


def bias_that_is_computed(b):
    weight = b.constant('weight', b.rng.normal(0, .3, (4, 3, 1, 1)).astype(np.float32))
    half = b.constant('half', b.rng.normal(0, .3, 4).astype(np.float32))
    b.node('Mul', [half, half], 'bias')
    x = b.node('Conv', ['image', weight, 'bias'], 'x', kernel_shape=[1, 1])
    return b.conv(x, 'y', 4, 5)


def relu_whose_input_is_read_elsewhere(b):
    p = b.conv('image', 'p', 3, 4)
    y = b.conv(b.node('Relu', [p], 'x'), 'y1', 4, 4)
    return b.node('Add', [y, p], 'y')


MULTIPLIED = [sum_that_is_read_elsewhere_too, sum_with_a_side_that_is_read_elsewhere,
              sum_of_one_tensor, sum_that_spreads_a_channel, sum_with_a_constant,
              concat_of_the_image, concat_of_rows, clipped, resized_into_what_it_has_not,
              weight_that_is_computed, bias_that_is_computed, relu_whose_input_is_read_elsewhere]


def unequal(model, seed=0):
    """Return factors over four decades for all that can be equalized."""
    random = np.random.default_rng(seed)
    return {name: 10 ** random.uniform(-3, 1, target.channels)
            for name, target in targets(model).items()}


def assert_equal(model, factors):
    """Assert that tensors keep their values, and that the new ones are quotients."""
    derived, new = equalize(model, factors)
    onnx.checker.check_model(derived, full_check=True)
    before, after = infer_all(model, IMAGE), infer_all(derived, IMAGE)
    divided = {quotient.of for quotient in new.values()}
    assert {quotient.of: quotient.target for quotient in new.values()}.keys() >= factors.keys()
    assert before.keys() - divided <= after.keys() <= before.keys() | new.keys()
    for name, value in before.items():
        if name in after:
            scale = max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(after[name], value, atol=1e-5 * scale, rtol=0,
                                       err_msg=name)
    for name, quotient in new.items():
        expected = before[quotient.of] / quotient.factor.reshape(1, -1, 1, 1)
        np.testing.assert_allclose(after[name], expected, rtol=1e-4, err_msg=name,
                                   atol=1e-6 * float(np.abs(expected).max()))
        if quotient.target == name:
            np.testing.assert_allclose(quotient.factor, factors[quotient.of], rtol=1e-6)
    return derived, new


def reads_quotients_alone(derived, new):
    """Tell whether convolutions read the equalized tensors, and nothing they are made of."""
    read = {node.input[0] for node in derived.graph.node if node.op_type == 'Conv'}
    return {quotient.target for quotient in new.values()} <= read and not read & {
        quotient.of for quotient in new.values()}


def equalized(pattern):
    """Return a pattern's model, the one derived of it, and the quotients that layers read."""
    b = Builder()
    model = b.model(pattern(b))
    factors = unequal(model)
    assert 'x' in factors
    derived, new = assert_equal(model, factors)
    assert reads_quotients_alone(derived, new)
    return model, derived, new


@pytest.mark.parametrize('pattern', FOLDED)
def test_what_makes_a_tensor_divides_it(pattern):
    model, derived, new = equalized(pattern)
    assert [node.op_type for node in derived.graph.node] == [
        node.op_type for node in model.graph.node]
    assert not {quotient.of for quotient in new.values()} & {
        name for node in derived.graph.node for name in node.output}


@pytest.mark.parametrize('pattern', MULTIPLIED)
def test_where_that_cannot_be_a_mul_does(pattern):
    _, derived, new = equalized(pattern)
    made = {node.op_type: node for node in derived.graph.node if node.output[0] == next(
        name for name, quotient in new.items() if quotient.of == 'x')}
    assert [*made] == ['Mul'] and made['Mul'].input[0] == 'x'


def test_the_given_model_stays_as_it_is():
    model = fcn()
    data = model.SerializeToString()
    equalize(model, unequal(model))
    assert model.SerializeToString() == data


def test_an_excluded_layer_reads_on_what_it_read():
    b = Builder()
    x = b.conv_relu('image', 'x', 3, 6)
    b.conv(x, 'a', 6, 4)
    b.conv(x, 'b', 6, 4)
    model = b.model(b.node('Add', ['a', 'b'], 'y'))
    assert targets(model)['x'].layers == ('a_node', 'b_node')
    derived, (new,) = equalize(model, {'x': np.full(6, .5)}, exclude=['a_node'])
    inputs = {node.name: node.input[0] for node in derived.graph.node}
    assert inputs['a_node'] == 'x' and inputs['b_node'] == new
    # The channel's weights carry the factor, and nothing else.
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in derived.graph.initializer}
    np.testing.assert_array_equal(weights['b_weight_equalized'], weights_of(model)['b_weight'] / 2)
    np.testing.assert_array_equal(weights['a_weight'], weights_of(model)['a_weight'])
    assert 'b_weight' not in weights


def test_an_output_of_the_network_keeps_its_value():
    b = Builder()
    x = b.conv_relu('image', 'x', 3, 6)
    model = b.model(b.conv(x, 'y', 6, 4))
    model.graph.output.append(onnx.helper.make_tensor_value_info('x', 1, ['N', 6, 32, 64]))
    derived, new = assert_equal(model, unequal(model))
    assert [node.op_type for node in derived.graph.node] == ['Conv', 'Relu', 'Mul', 'Conv']
    assert [quotient.of for quotient in new.values()] == ['x']


def test_a_tensor_that_is_to_be_kept_keeps_its_value():
    b = Builder()
    x = b.conv_relu('image', 'x', 3, 6)
    model = b.model(b.conv(x, 'y', 6, 4))
    for name in ('x_conv', 'x'):
        derived, new = equalize(model, unequal(model), keep=[name])
        assert [node.op_type for node in derived.graph.node] == ['Conv', 'Relu', 'Mul', 'Conv']
        assert [quotient.of for quotient in new.values()] == ['x']


def test_a_layer_without_a_name_keeps_that_of_its_output():
    b = Builder()
    x = b.conv_relu('image', 'x', 3, 6)
    model = b.model(b.conv(x, 'y', 6, 4))
    for node in model.graph.node:
        node.name = ''
    derived, _ = assert_equal(model, unequal(model))
    assert [*map(node_name, derived.graph.node)] == ['x_conv', 'x', 'y']


def test_what_is_watched_are_targets_and_what_is_divided_for_them():
    b = Builder()
    model = b.model(sum_of_two_branches(b))
    assert watched(model) == {'x', 'sum', 'p', 'q', 'q_conv'}
    b = Builder()
    assert watched(b.model(sum_of_one_tensor(b))) == {'x'}


def weights_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_what_cannot_be_equalized_is_no_target():
    b = Builder()
    b.conv_relu('image', 'relu', 3, 3)  # the image has a known range
    x = b.transposed('relu', 'up', 3, 3)
    b.node('Conv', [x, x], 'dynamic')
    row = b.node('Reshape', ['relu', b.constant('shape', np.array([0, 3, -1]))], 'row')
    b.node('Conv', [row, b.constant('weight_of_rows', np.ones((3, 3, 1), np.float32))], 'rows')
    wide = b.node('Cast', ['relu'], 'wide', to=onnx.TensorProto.DOUBLE)
    b.node('Conv', [wide, b.constant('weight_of_doubles', np.ones((3, 3, 1, 1)))], 'doubles')
    model = b.model(b.node('Relu', ['up'], 'y'), shape=['N', 3, 64, 128])
    assert targets(model) == {}
    old = fcn()
    old.opset_import[0].version = 6
    assert targets(old) == {}


@settings(max_examples=25, deadline=None)
@given(networks(['conv', 'conv_relu', 'depthwise', 'residual', 'relu', 'concat', 'add', 'mul']),
       st.integers(0, 99))
def test_random_graphs_keep_their_output(model, seed):
    image = np.random.default_rng(0).normal(0, 1, (1, 3, *SIZE)).astype(np.float32)
    assert_same_output(equalize(model, unequal(model, seed))[0], model, image)
