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

from trt_segmentation.networks.equalize import equalize, targets

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


PATTERNS = [relu, grouped, depthwise_with_several_outputs, concat_of_two,
            sum_that_is_read_elsewhere_too, pooled_and_resized, batch_norm_and_prelu,
            read_by_two, one_weight_for_two, weight_of_a_constant_node]


def unequal(model, seed=0):
    """Return factors over four decades for all that can be equalized."""
    random = np.random.default_rng(seed)
    return {name: 10 ** random.uniform(-3, 1, target.channels)
            for name, target in targets(model).items()}


def assert_equal(model, factors):
    """Assert that all tensors keep their values, and that the new ones are quotients."""
    derived, names = equalize(model, factors)
    onnx.checker.check_model(derived, full_check=True)
    before, after = infer_all(model, IMAGE), infer_all(derived, IMAGE)
    for name, value in before.items():
        scale = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(after[name], value, atol=1e-5 * scale, rtol=0, err_msg=name)
    for name, new in names.items():
        np.testing.assert_allclose(after[new], after[name] / factors[name].reshape(1, -1, 1, 1),
                                   rtol=1e-5)
    return derived, names


@pytest.mark.parametrize('pattern', PATTERNS)
def test_each_pattern_keeps_all_its_values(pattern):
    b = Builder()
    model = b.model(pattern(b))
    factors = unequal(model)
    assert 'x' in factors
    derived, names = assert_equal(model, factors)
    read = {node.input[0] for node in derived.graph.node if node.op_type == 'Conv'}
    assert set(names.values()) <= read and not set(names) & read


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
    derived, names = equalize(model, {'x': np.full(6, .5)}, exclude=['a_node'])
    inputs = {node.name: node.input[0] for node in derived.graph.node}
    assert inputs['a_node'] == 'x' and inputs['b_node'] == names['x']
    # The channel's weights carry the factor, and nothing else.
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in derived.graph.initializer}
    np.testing.assert_array_equal(weights['b_weight_equalized'], weights_of(model)['b_weight'] / 2)
    np.testing.assert_array_equal(weights['a_weight'], weights_of(model)['a_weight'])
    assert 'b_weight' not in weights


def weights_of(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_what_cannot_be_equalized_is_no_target():
    b = Builder()
    b.conv_relu('image', 'relu', 3, 3)  # the image has a known range
    x = b.transposed('relu', 'up', 3, 3)
    b.node('Conv', [x, x], 'dynamic')
    model = b.model(b.node('Relu', ['up'], 'y'), shape=['N', 3, 64, 128])
    assert targets(model) == {}
    old = fcn()
    old.opset_import[0].version = 6
    assert targets(old) == {}


@settings(max_examples=25, deadline=None)
@given(networks(['conv', 'depthwise', 'residual', 'relu', 'concat', 'add', 'mul']),
       st.integers(0, 99))
def test_random_graphs_keep_their_output(model, seed):
    image = np.random.default_rng(0).normal(0, 1, (1, 3, *SIZE)).astype(np.float32)
    assert_same_output(equalize(model, unequal(model, seed))[0], model, image)
