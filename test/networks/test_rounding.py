# SPDX-License-Identifier: Apache-2.0
"""Rounded weights: on INT8's grid, for good, and nearer in what they make of their inputs."""

import itertools

import numpy as np
from onnx import numpy_helper
import pytest
from support.networks import Builder, infer_all

from trt_segmentation.calibration.moments import Moments, Window, windows_of
from trt_segmentation.networks.quantize import quantize_weight
from trt_segmentation.networks.rounding import Inputs, round_weight, with_rounded_weights


def correlated(random, groups, size, number=4000):
    """Return samples (groups, size, number) of variables that go together, with a mean."""
    mix = random.normal(0, 1, (groups, size, size)) + 2 * np.eye(size)
    return mix @ random.normal(0, 1, (groups, size, number)) + random.normal(1, 1, (
        groups, size, 1))


def inputs_of(samples):
    return Inputs(samples.mean(axis=2), np.stack(
        [np.atleast_2d(np.cov(each, bias=True)) for each in samples]))


@pytest.mark.parametrize('groups', [1, 3])
def test_rounded_weights_are_quantized_to_themselves(groups):
    random = np.random.default_rng(0)
    weight = random.laplace(0, 1, (60, 4, 3, 3)).astype(np.float32)
    weight[1] = 0
    weight[2] *= 1e-30
    rounded = round_weight(weight, inputs_of(correlated(random, groups, 36)), groups)
    codes, scale = quantize_weight(rounded)
    wanted = quantize_weight(weight)[1]
    np.testing.assert_allclose(scale, wanted, rtol=2e-7)
    np.testing.assert_array_equal(codes * scale[:, None, None, None], rounded)
    np.testing.assert_array_equal(round_weight(rounded, Inputs(np.zeros((groups, 36)), None),
                                               groups), rounded)


@pytest.mark.parametrize('groups', [1, 3])
def test_the_output_changes_less_than_with_the_nearest_codes(groups):
    random = np.random.default_rng(1)
    samples = correlated(random, groups, 36)
    weight = random.normal(0, 1, (12, 4, 3, 3)).astype(np.float32)

    def error(changed):
        change = (changed - weight).astype(np.float64).reshape(groups, 12 // groups, 36)
        return (change @ samples).var(axis=2).mean()
    nearest = round_weight(weight, Inputs(samples.mean(axis=2), None), groups)
    found = round_weight(weight, inputs_of(samples), groups)
    assert error(found) < .6 * error(nearest)


def test_few_weights_are_rounded_as_well_as_can_be():
    random = np.random.default_rng(2)
    near = 0
    for _ in range(20):
        samples = correlated(random, 1, 4)
        weight = random.normal(0, 1, (1, 4, 1, 1)).astype(np.float32)
        codes, scale = quantize_weight(weight)
        matrix = inputs_of(samples).covariance[0]

        def error(candidate, step=scale[0], wanted=weight, matrix=matrix):
            change = candidate * float(step) - wanted.ravel().astype(np.float64)
            return change @ matrix @ change
        best = min(error(codes.ravel() + np.array(step))
                   for step in itertools.product((-2, -1, 0, 1, 2), repeat=4)
                   if np.abs(codes.ravel() + np.array(step)).max() == 127
                   and step[int(np.abs(codes).argmax())] == 0)
        found = error(round_weight(weight, inputs_of(samples)).ravel() / float(scale[0]))
        near += found <= 1.5 * best + 1e-12
        assert found <= error(codes.ravel()) * 1.02 + 1e-12
    assert near >= 14


def test_a_networks_outputs_keep_their_mean():
    b = Builder()
    x = b.conv_relu('image', 'x', 3, 8)
    b.node('Add', [b.conv(x, 'a', 8, 6, group=2, bias=False), b.conv(x, 'b', 8, 6, kernel=1)],
           'y')
    model = b.model('y')
    image = np.random.default_rng(0).normal(0, 1, (1, 3, 32, 64)).astype(np.float32)
    before = infer_all(model, image)
    values = {'image': image, 'x': before['x']}
    inputs = {layer: Moments.of(values[tensor], window).inputs()
              for tensor, layer, window in windows_of(model)}
    derived = with_rounded_weights(model, inputs, exclude=['x_conv_node'])
    weights = {node.output[0]: numpy_helper.to_array(tensor) for node in derived.graph.node
               for tensor in derived.graph.initializer if node.input[1:2] == [tensor.name]}
    old = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(weights['x_conv'], old['x_conv_weight'])
    assert (weights['a'] != old['a_weight']).any()
    after = infer_all(derived, image)
    for name in ('a', 'b'):
        spread = before[name].std(axis=(2, 3))
        off = np.abs((after[name] - before[name]).mean(axis=(2, 3)))
        assert (off < .002 * spread).all()


@pytest.mark.parametrize('window', [
    Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
    Window((3, 2), (2, 1), (2, 3), (2, 0, 1, 4), 2),
    Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 4)])
def test_moments_are_those_of_all_windows(window):
    random = np.random.default_rng(0)
    images = [random.normal(1, 1, (1, 4, 11, 13)).astype(np.float32) for _ in range(3)]
    moments = Moments.of(images[0], window)
    for image in images[1:]:
        moments.merge(Moments.of(image, window))
    found = []
    for image in images:
        padded = np.pad(image[0], ((0, 0), window.pads[::2], window.pads[1::2]))
        reach = [d * (k - 1) + 1 for d, k in zip(window.dilations, window.kernel)]
        for top in range(0, padded.shape[1] - reach[0] + 1, window.strides[0]):
            for left in range(0, padded.shape[2] - reach[1] + 1, window.strides[1]):
                part = padded[:, top:top + reach[0]:window.dilations[0],
                              left:left + reach[1]:window.dilations[1]]
                found.append(part.reshape(window.groups, -1))
    windows = np.stack(found, axis=2)
    factors, offset = np.array([1, 2, 4, .5]), 3.0
    per_value = np.repeat(factors, windows.shape[1] * window.groups // 4).reshape(
        window.groups, -1, 1)
    for inputs, values in ((moments.inputs(), windows),
                           (moments.inputs(factors, offset), windows / per_value - offset)):
        expected = inputs_of(values)
        # Values are sampled on 8 bits.
        np.testing.assert_allclose(inputs.mean, expected.mean, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(inputs.covariance, expected.covariance, rtol=.01, atol=.02)
