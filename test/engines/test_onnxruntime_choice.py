# SPDX-License-Identifier: Apache-2.0
"""What is chosen for this CPU: the width of weights, layers in float, channels of the input."""

from itertools import cycle
import os
from pathlib import Path
import platform

import numpy as np
import pytest
from support.networks import amax_scales, Builder, fcn

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.calibration import calibrate
from trt_segmentation.cli import main
from trt_segmentation.engines import onnxruntime_choice as chooser
from trt_segmentation.engines import timing
from trt_segmentation.engines.opening import open_named
from trt_segmentation.engines.workers import identity_of
from trt_segmentation.evaluation.benchmark import open_engine
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.quantize import quantize
from trt_segmentation.networks.session import Session

SIZE = (32, 64)
SHAPES = {'image': (1, 3, *SIZE)}


def image(channels=3, seed=1):
    return np.random.default_rng(seed).normal(0, 1, (1, channels, *SIZE)).astype(np.float32)


def quantized(model, exclude=(), channels=3):
    """Return the network in INT8, with 7-bit weights, which are exact on every CPU."""
    return quantize(model, amax_scales(model, image(channels)), 'onnxruntime',
                    input_shapes={'image': (1, channels, *SIZE)}, exclude=exclude,
                    reduce_range=True)


def run(model, tensor):
    return Session(model.SerializeToString()).infer(tensor)['logits']


def test_saturation_is_found_by_trying():
    if os.environ.get('TRT_SEGMENTATION_EMULATED'):  # an emulated CPU without VNNI
        expected = False
    elif platform.machine() == 'x86_64':
        flags = Path('/proc/cpuinfo').read_text().split()
        expected = bool({'avx512_vnni', 'avx_vnni'}.intersection(flags))
    else:
        expected = True
    assert chooser.keeps_products() is expected


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 5, 8])
def test_channels_that_are_added_to_the_input_change_no_result(channels):
    builder = Builder(SIZE, channels=channels)
    x = builder.conv_relu('image', 'first', channels, 16, strides=[2, 2])
    builder.conv(x, 'logits', 16, 6)
    graph = quantized(builder.model('logits'), channels=channels).model
    wider = onnx.ModelProto.FromString(graph.SerializeToString())
    chooser.align_inputs(wider)
    onnx.checker.check_model(wider)
    shapes = {tensor.name: tensor.dims[1] for tensor in wider.graph.initializer
              if len(tensor.dims) == 4}
    assert shapes['first_conv_weight_int8'] == {1: 4, 2: 4, 3: 4, 4: 4, 5: 8, 8: 8}[channels]
    assert [value.type for value in wider.graph.input] == [value.type for value in
                                                           graph.graph.input]
    for seed in range(3):
        tensor = image(channels, seed) * 3  # beyond the calibrated range too
        np.testing.assert_array_equal(run(wider, tensor), run(graph, tensor))


def test_an_input_that_others_read_too_stays_as_it_is():
    builder = Builder(SIZE)
    first = builder.conv('image', 'first', 3, 3)
    second = builder.conv('image', 'second', 3, 3)
    builder.node('Add', [builder.node('Add', [first, second], 'sum'), 'image'], 'logits')
    graph = quantized(builder.model('logits')).model
    before = graph.SerializeToString()
    chooser.align_inputs(graph)
    del graph.graph.value_info[:]
    expected = onnx.ModelProto.FromString(before)
    del expected.graph.value_info[:]
    assert graph == expected


def mobile():
    """Return a network with dense, grouped and depthwise convolutions."""
    builder = Builder(SIZE)
    x = builder.conv_relu('image', 'dense', 3, 32, strides=[2, 2])
    x = builder.conv_relu(x, 'depthwise', 32, 32, group=32)
    x = builder.conv_relu(x, 'grouped', 32, 32, group=4)
    x = builder.conv_relu(x, 'pointwise', 32, 32, kernel=1)
    x = builder.conv_relu(x, 'wide', 32, 64)
    builder.conv(x, 'logits', 64, 7)
    return builder.model('logits')


def choose(model, times, floor=0.5):
    """Choose, while engines take given times; return the choice and what was reported."""
    said, turns = [], iter(times)
    patch = pytest.MonkeyPatch()
    with patch.context() as patched:
        patched.setattr(chooser, 'rounds', lambda calls: np.atleast_2d(next(turns)))
        choice = chooser.choose(model, lambda floats: quantized(model, floats), SHAPES, floor,
                                said.append)
    assert next(turns, None) is None and list(choice.log) == said
    return choice, said


def in_float(choice):
    return {layer.name for layer in choice.quantized.layers
            if layer.reason == 'faster in float on this CPU'}


@pytest.mark.parametrize(('times', 'expected'), [
    ([[10, 8], [8, 9]], {'grouped_conv_node'}),
    ([[10, 11], [10, 5]], {'depthwise_conv_node'}),
    ([[10, 8], [8, 6]], {'grouped_conv_node', 'depthwise_conv_node'}),
    ([[10, 9.9], [10, 9.9]], set()),  # that is noise
])
def test_kinds_of_layers_that_are_faster_in_float_are_in_float(times, expected):
    choice, said = choose(mobile(), times)
    assert in_float(choice) == expected
    precisions = {layer.name: layer.precision for layer in choice.quantized.layers}
    assert all(precisions[name] == 'float' for name in expected)
    assert '1 grouped convolution: in ' in said[0] and '1 depthwise convolution: in ' in said[1]
    assert f'{times[0][0]:.2f} ms with them in INT8, {times[0][1]:.2f} ms' in said[0]
    weights = {tensor.name for tensor in choice.quantized.model.graph.initializer}
    assert ('grouped_conv_weight' in weights) == ('grouped_conv_node' in expected)


@pytest.mark.parametrize(('slower', 'expected'), [(1, {'grouped_conv_node'}), (2, set())])
def test_other_work_beside_a_build_does_not_choose_float(slower, expected):
    """Where most rounds, and so the quartiles, speak for float, but not all but a few do."""
    times = [[10, 12]] * slower + [[10, 8]] * (5 - slower)
    choice, said = choose(mobile(), [times, [10, 11]])
    assert in_float(choice) == expected
    assert f'faster in {5 - slower} of 5 rounds' in said[0]


def test_no_speed_pays_for_too_little_in_int8():
    choice, said = choose(mobile(), [[10, 1]], floor=0.95)  # the depthwise one is 2% of the work
    assert in_float(choice) == {'depthwise_conv_node'}
    assert 'in INT8, since without them' in said[0]


def test_a_network_of_dense_convolutions_is_not_timed():
    assert choose(fcn(SIZE), [])[0].log == ()


def test_engines_take_turns_and_the_lower_quartile_counts(monkeypatch):
    clock, order = [0.0], []
    durations = {'a': cycle([9.0, 1.0, 2.0, 3.0, 4.0, 5.0]), 'b': cycle([2.0])}

    def call(name):
        order.append(name)
        clock[0] += next(durations[name])

    monkeypatch.setattr(timing, 'perf_counter', lambda: clock[0])
    calls = [lambda: call('a'), lambda: call('b')]
    # The first round, 9 s of it, is not counted; then five rounds, though they take longer.
    assert timing.by_turns(calls) == [2000.0, 2000.0]
    assert order == ['a', 'b'] * 6
    order.clear()
    timing.by_turns([lambda: order.append('c')])  # in no time
    assert order == ['c'] * 16


@pytest.fixture
def mobile_bundle(tmp_path):
    """A calibrated bundle of a network with all kinds of convolutions."""
    from support.networks import write_bundle
    bundle = write_bundle(
        tmp_path / 'bundle', mobile(), input={'size': list(SIZE), 'mean': [100, 100, 100],
                                              'scale': [0.02, 0.02, 0.02]},
        labels=[{'name': f'c{i}', 'train_id': i, 'color': [i, i, i], 'category': 'all'}
                for i in range(7)],
        acceptance={'min_agreement': 0.0, 'min_class_agreement': 0.0, 'min_int8_share': 0.5})
    rng = np.random.default_rng(0)
    calibrate(bundle, (rng.integers(0, 255, (*SIZE, 3), np.uint8) for _ in range(6)), count=4,
              golden=1, method='minmax', report=False)
    return bundle


def test_figures_are_of_the_same_network_whatever_a_clock_says(
        tmp_path, mobile_bundle, monkeypatch):
    bundle, tensor = Bundle.open(mobile_bundle), image()
    found, identities = [], []
    for times in ([2.0, 1.0], [1.0, 2.0]):
        monkeypatch.setattr(chooser, 'rounds', lambda calls, times=times: np.array([times]))
        with open_named(bundle, 'onnxruntime:int8', store=tmp_path / 'none') as segmenter:
            found.append(segmenter.engine.infer(tensor)['logits'])
            identities.append(identity_of({'int8': segmenter}))
    np.testing.assert_array_equal(*found)
    identities[0].check(identities[1])


def test_a_benchmark_times_the_network_that_a_build_would_choose(
        tmp_path, mobile_bundle, monkeypatch):
    timed = []
    monkeypatch.setattr(chooser, 'rounds',
                        lambda calls: timed.append(len(calls)) or np.array([[2.0, 1.0]]))
    open_engine(Bundle.open(mobile_bundle), 'onnxruntime:int8', store=tmp_path / 'none').close()
    assert timed == [2, 2]


def test_a_build_names_its_choices(tmp_path, mobile_bundle, capsys, monkeypatch):
    monkeypatch.setattr(chooser, 'keeps_products', lambda: False)
    monkeypatch.setattr('trt_segmentation.engines.onnxruntime.keeps_products', lambda: False)
    monkeypatch.setattr(chooser, 'rounds', lambda calls: np.array([[2.0, 1.0]]))
    command = ['build', str(mobile_bundle), '--store', str(tmp_path / 'store'), '--backend',
               'onnxruntime']
    assert main(command) == 0
    said = capsys.readouterr().err
    record = next((tmp_path / 'store').glob('*/record.json')).read_text()
    for text in ('weights have 7 bits', '1 grouped convolution: in float', '1.00 ms'):
        assert text in said and text in record
    assert record.count('faster in float on this CPU') == 2
