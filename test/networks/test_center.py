# SPDX-License-Identifier: Apache-2.0
"""A centered network computes what the network computed, and loses half of what INT8 loses."""

from hypothesis import given, settings
import numpy as np
import onnx
import pytest
from support.networks import Builder, infer_all
from support.random_networks import assert_same_output, networks, SIZE

from trt_segmentation.networks.center import center, targets
from trt_segmentation.networks.placement import Placement
from trt_segmentation.networks.quantize import quantize

IMAGE = np.random.default_rng(3).uniform(0, 255, (2, 3, 32, 64)).astype(np.float32)


def pointwise(b):
    return b.conv(b.conv_relu('image', 'x', 3, 8), 'y', 8, 5, kernel=1)


def without_bias(b):
    return b.conv(b.conv_relu('image', 'x', 3, 8), 'y', 8, 5, kernel=1, bias=False)


def grouped_with_a_kernel(b):
    return b.conv(b.conv_relu('image', 'x', 3, 8), 'y', 8, 12, group=4, pads=[0, 0, 0, 0])


def strided_and_valid(b):
    x = b.conv_relu('image', 'x', 3, 8)
    weight = b.constant('w', b.rng.normal(0, .3, (5, 8, 2, 2)).astype(np.float32))
    return b.node('Conv', [x, weight], 'y', strides=[2, 2], auto_pad='VALID')


def padded_unevenly(b):
    return b.conv(b.conv_relu('image', 'x', 3, 8, pads=[0, 1, 2, 3]), 'y', 8, 5, kernel=1)


def residual(b):
    x = b.conv_relu('image', 'x', 3, 6)
    z = b.conv_relu(x, 'z', 6, 4, kernel=1)
    return b.node('Add', [b.conv(z, 'w', 4, 6), x], 'y')


def residual_on_the_other_side(b):
    x = b.conv_relu('image', 'x', 3, 6)
    return b.node('Add', [x, b.conv(x, 'w', 6, 6, kernel=1, bias=False)], 'y')


def batch_norm_between(b):
    x = b.conv_relu('image', 'x', 3, 6)
    z = b.conv(x, 'w', 6, 6, kernel=1, bias=False)
    names = [b.constant(f'bn{i}', np.abs(b.rng.normal(1, .2, 6)).astype(np.float32))
             for i in range(4)]
    return b.node('Add', [b.node('BatchNormalization', [z, *names], 'bn'), x], 'y')


def pooled_and_joined(b):
    p = b.node('MaxPool', [b.conv_relu('image', 'p', 3, 6)], 'pool', kernel_shape=[2, 2],
               strides=[2, 2])
    x = b.node('Concat', [p, b.conv_relu(p, 'q', 6, 2)], 'x', axis=1)
    return b.conv(x, 'y', 8, 4, kernel=1)


PATTERNS = [pointwise, without_bias, grouped_with_a_kernel, strided_and_valid, padded_unevenly,
            residual, residual_on_the_other_side, batch_norm_between, pooled_and_joined]


def centered(model, image=IMAGE):
    """Return the network with all centered that can be, by half of their ranges, and the names."""
    nonnegative = Placement(model, ()).nonnegative | {'image'}
    values = infer_all(model, image) | {'image': image}
    offsets = {name: float(values[name].max()) / 2 for name in targets(model, nonnegative)}
    return *center(model, offsets), offsets


@pytest.mark.parametrize('pattern', PATTERNS)
def test_each_pattern_keeps_its_output(pattern):
    b = Builder()
    model = b.model(pattern(b))
    data = model.SerializeToString()
    derived, names, offsets = centered(model)
    assert model.SerializeToString() == data
    onnx.checker.check_model(derived, full_check=True)
    assert {'x', 'image'} <= set(names)
    before, after = infer_all(model, IMAGE), infer_all(derived, IMAGE)
    for name in ('x', 'y'):
        scale = max(1.0, float(np.abs(before[name]).max()))
        np.testing.assert_allclose(after[name], before[name], atol=1e-5 * scale, rtol=0)
    np.testing.assert_allclose(after[names['x']], before['x'] - offsets['x'], atol=1e-4)
    assert np.abs(after[names['x']]).max() <= offsets['x'] * (1 + 1e-6)


@pytest.mark.parametrize('pattern', PATTERNS)
def test_all_that_is_quantized_is_centered(pattern):
    b = Builder()
    model = b.model(pattern(b))
    derived, names, offsets = centered(model)
    scales = {names[name]: offset / 127 for name, offset in offsets.items()}
    quantized = quantize(derived, scales | dict.fromkeys(('z', 'w', 'q', 'pool'), 1.0),
                         'tensorrt', input_shapes={'image': (1, 3, 32, 64)})
    assert quantized.int8_share == 1
    read = {node.input[0] for node in quantized.model.graph.node
            if node.op_type == 'QuantizeLinear'}
    assert set(names.values()) <= read and not set(names) & read


def test_a_centered_image_is_nearly_exact():
    b = Builder()
    model = b.model(b.conv('image', 'y', 3, 5))
    derived, names, _ = centered(model)
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 64)).astype(np.float32)
    expected = infer_all(model, image)['y']

    def error(network, scales):
        found = quantize(network, scales, 'tensorrt', input_shapes={'image': image.shape}).model
        for node in found.graph.node:  # what the weights lose is not asked for
            if node.op_type == 'Conv':
                node.input[1] = 'w'
        found.graph.initializer.append(onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(model.graph.initializer[0]), 'w'))
        return np.abs(infer_all(found, image)['y'] - expected).mean()
    assert error(derived, {names['image']: 127.5 / 127}) < .6 * error(model, {'image': 255 / 127})


def test_what_cannot_be_centered_is_no_target():
    b = Builder()
    x = b.conv_relu('image', 'x', 3, 6)
    b.conv(x, 'padded', 6, 6)  # zeros around the image would be others
    z = b.conv('image', 'z', 3, 6)  # may be negative
    b.conv(z, 'point', 6, 6, kernel=1)
    b.node('Add', ['padded', 'point'], 'sum')
    u = b.node('Relu', ['sum'], 'u')
    b.node('Add', [b.conv(u, 'seen', 6, 6, kernel=1), u], 'y')
    model = b.model('y')
    nonnegative = Placement(model, ()).nonnegative
    assert targets(model, nonnegative) == ['u']
    assert targets(model, nonnegative, exclude=['seen_node']) == []
    # The image has two readers: its padding is not theirs alone.
    assert 'image' not in targets(model, nonnegative | {'image'})
    model.graph.output.append(onnx.helper.make_tensor_value_info('seen', 1, None))
    assert targets(model, nonnegative) == []  # the addition's bias would be seen in an output


@settings(max_examples=50, deadline=None)
@given(networks(['conv_relu', 'conv_relu', 'residual', 'residual', 'depthwise', 'concat', 'add']))
def test_random_graphs_keep_their_output(model):
    image = np.random.default_rng(0).uniform(0, 2, (1, 3, *SIZE)).astype(np.float32)
    assert_same_output(centered(model, image)[0], model, image)
