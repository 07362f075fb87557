# SPDX-License-Identifier: Apache-2.0
"""A network in segments computes what it computes in one."""

import numpy as np
import onnx
from onnx import helper, TensorProto
import pytest
from support.networks import Builder, fcn, infer_all

from trt_segmentation.calibration import segments
from trt_segmentation.calibration.observer import Observer


def branched():
    """Return a network with branches, a long skip, constants that are computed, and shapes."""
    b = Builder(size=(32, 64))
    first = b.conv_relu('image', 'first', 3, 8)
    left = b.conv_relu(first, 'left', 8, 8, kernel=1)
    right = b.conv(first, 'right', 8, 8)
    two = b.node('Constant', [], 'two', value=onnx.numpy_helper.from_array(
        np.float32(2), 'two_value'))
    four = b.node('Mul', [two, two], 'four')
    scaled = b.node('Div', [right, four], 'scaled')
    joined = b.node('Concat', [left, scaled, first], 'joined', axis=1)
    shape = b.node('Shape', [joined], 'shape')
    again = b.conv_relu(joined, 'again', 24, 24)
    flat = b.node('Reshape', [again, b.constant('flat_shape', np.array([1, 24, -1]))], 'flat')
    unflat = b.node('Reshape', [flat, shape], 'unflat')
    summed = b.node('Add', [unflat, joined], 'summed')
    b.conv(summed, 'logits', 24, 19, kernel=1)
    return b.model('logits', shape=['N', 19, 32, 64])


def conditional():
    """Return a network with an If whose branches read tensors from outside."""
    b = Builder(size=(32, 64))
    x = b.conv_relu('image', 'features', 3, 8)
    y = b.conv(x, 'other', 8, 8, kernel=1)
    value = helper.make_tensor_value_info('chosen_inner', TensorProto.FLOAT, None)
    branches = {key: helper.make_graph(
        [helper.make_node('Identity', [name], ['chosen_inner'])], key, [], [value])
        for key, name in (('then_branch', x), ('else_branch', y))}
    condition = b.constant('condition', np.array(True))
    b.node('If', [condition], 'chosen', **branches)
    b.conv('chosen', 'logits', 8, 19, kernel=1)
    return b.model('logits', shape=['N', 19, 32, 64])


def observed(model, path, monkeypatch, budget):
    """Return the number of segments, all values seen and all ranges."""
    monkeypatch.setattr(segments, '_BUDGET', budget)
    onnx.save(model, path)
    observer = Observer(path, 'image', (32, 64))
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 64)).astype(np.float32)
    values, ranges = {}, {}
    for observation in observer(image):
        values.update({name: value.copy() for name, value in observation.values.items()})
        ranges.update(observation.ranges)
    assert set(values) == observer.quantized
    assert set(values) | set(ranges) == set(observer.activations)
    return len(observer._stages), values, ranges, infer_all(model, image)


@pytest.mark.parametrize('make', [fcn, branched, conditional])
@pytest.mark.parametrize('budget', [1, 40_000, 1 << 30])
def test_values_and_ranges_are_those_of_the_whole(make, budget, tmp_path, monkeypatch):
    stages, values, ranges, expected = observed(make(), tmp_path / 'x.onnx', monkeypatch, budget)
    assert (stages > 2) == (budget == 1) or budget == 40_000
    assert stages == 1 or budget < 1 << 30
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
    for name, (smallest, largest) in ranges.items():
        assert smallest == pytest.approx(expected[name].min(), rel=1e-4, abs=1e-5), name
        assert largest == pytest.approx(expected[name].max(), rel=1e-4, abs=1e-5), name


def test_constants_and_shapes_are_no_activations(tmp_path, monkeypatch):
    _, values, ranges, _ = observed(branched(), tmp_path / 'x.onnx', monkeypatch, 1)
    assert not {'two', 'four', 'shape'} & (set(values) | set(ranges))
    assert {'flat', 'unflat', 'summed', 'joined'} <= set(values) | set(ranges)
