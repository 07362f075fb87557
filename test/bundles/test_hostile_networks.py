# SPDX-License-Identifier: Apache-2.0
"""Networks that would make wrong masks or none: one line at init, in bounded time."""

from types import SimpleNamespace

import cv2
import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import pytest
from support.networks import Builder, fcn, infer_all, write_bundle

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.create import create
from trt_segmentation.bundles.implausible import open_notes
from trt_segmentation.cli import main
from trt_segmentation.errors import InputError
from trt_segmentation.networks import adapt, session, shapes


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('name', ['relu2_conv_weight', 'score3_bias'])
def test_weights_that_are_not_finite_are_named(tmp_path, name, value):
    model = fcn()
    tensor = next(each for each in model.graph.initializer if each.name == name)
    weight = numpy_helper.to_array(tensor).copy()
    weight.flat[3] = value
    tensor.CopyFrom(numpy_helper.from_array(weight, name))
    onnx.save(model, tmp_path / 'fcn.onnx')
    with pytest.raises(InputError, match=f"weight '{name}' of layer .* holds nan or infinity"):
        create(tmp_path / 'fcn.onnx', tmp_path / 'bundle')
    assert not (tmp_path / 'bundle').exists()


def test_a_loop_without_an_end_is_stopped(tmp_path, monkeypatch):
    for module in (adapt, shapes):
        monkeypatch.setattr(module, 'FIRST_RUN_S', 0.5)
    b = Builder()
    x = b.conv('image', 'pre', 3, 19)
    make = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node('Identity', ['on'], ['on_still']),
         helper.make_node('Relu', ['value'], ['next'])], 'body',
        [make('i', TensorProto.INT64, []), make('on', TensorProto.BOOL, []),
         make('value', TensorProto.FLOAT, None)],
        [make('on_still', TensorProto.BOOL, []), make('next', TensorProto.FLOAT, None)])
    names = [b.constant('times', np.int64(2 ** 62)), b.constant('go', np.array(True)), x]
    b.nodes.append(helper.make_node('Loop', names, ['logits'], name='loop', body=body))
    onnx.save(b.model('logits', shape=['N', 19, 32, 64]), tmp_path / 'loop.onnx')
    with pytest.raises(InputError, match='has not ended after 0.5 s of work: a loop in it may'):
        create(tmp_path / 'loop.onnx', tmp_path / 'bundle')


def test_a_network_that_waits_for_a_processor_is_not_stopped(monkeypatch):
    spent, waited = iter([7.0, 7.5, 8.75, 9.0]), []
    monkeypatch.setattr(session, 'process_time', lambda: next(spent))
    options = SimpleNamespace(terminate=False)
    ended = SimpleNamespace(wait=lambda seconds: waited.append((seconds, options.terminate)))
    session._stop_late(options, 2.0, ended)
    assert waited == [(2.0, False), (1.5, False), (0.25, False)] and options.terminate


def behind_a_constant_node(model):
    weight = next(each for each in model.graph.initializer if each.name == 'relu2_conv_weight')
    copy = onnx.TensorProto.FromString(weight.SerializeToString())
    model.graph.initializer.remove(weight)
    model.graph.node.insert(0, helper.make_node('Constant', [], [copy.name], value=copy))


def in_a_branch(model):
    index = next(i for i, node in enumerate(model.graph.node) if node.name == 'relu2_conv_node')
    weight = next(each for each in model.graph.initializer if each.name == 'relu2_conv_weight')
    copy = onnx.TensorProto.FromString(weight.SerializeToString())
    model.graph.initializer.remove(weight)
    node = model.graph.node[index]
    inner = onnx.NodeProto.FromString(node.SerializeToString())
    inner.output[0] = 'inner'
    branches = []
    for name in ('then', 'else'):
        body = helper.make_graph([inner], name, [], [
            helper.make_tensor_value_info('inner', TensorProto.FLOAT, None)], [copy])
        branches.append(body)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), 'yes'))
    model.graph.node.remove(node)
    model.graph.node.insert(index, helper.make_node(
        'If', ['yes'], [node.output[0]], name='if', then_branch=branches[0],
        else_branch=branches[1]))


@pytest.mark.parametrize('move', [behind_a_constant_node, in_a_branch])
def test_weights_in_other_files_are_seen_wherever_they_are(tmp_path, move):
    model = fcn()
    move(model)
    onnx.checker.check_model(model)
    outside = tmp_path / 'outside'
    outside.mkdir()
    onnx.save(model, outside / 'fcn.onnx', save_as_external_data=True, location='weights.bin',
              size_threshold=0, convert_attribute=True)
    assert (outside / 'weights.bin').stat().st_size > 1000
    # A bundle that somebody put together so is refused, for no hash covers the weights..
    bundle = write_bundle(tmp_path / 'by_hand', fcn())
    for name in ('fcn.onnx', 'weights.bin'):
        (bundle / name).write_bytes((outside / name).read_bytes())
    (bundle / 'fcn.onnx').replace(bundle / 'model.onnx')
    with pytest.raises(InputError, match='keeps weights in other files'):
        Bundle.open(bundle)
    # .. and init packs them.
    create(outside / 'fcn.onnx', tmp_path / 'made')
    (outside / 'weights.bin').unlink()
    image = np.random.default_rng(0).normal(0, 50, (1, 3, 32, 64)).astype(np.float32)
    made = onnx.load(Bundle.open(tmp_path / 'made').model_path, load_external_data=False)
    np.testing.assert_allclose(infer_all(made, image)['logits'],
                               infer_all(fcn(), image)['logits'], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(('kind', 'said'), [
    ('output', r"output 'logits' is sequence \[\]; expected a tensor of numbers"),
    ('input', r"input 'image' is sequence \[\]; expected four axes")])
def test_sequences_are_refused_by_name(tmp_path, kind, said):
    model = fcn()
    value = getattr(model.graph, kind)[0]
    value.type.CopyFrom(onnx.helper.make_sequence_type_proto(
        onnx.helper.make_tensor_type_proto(TensorProto.FLOAT, None)))
    onnx.save(model, tmp_path / 'net.onnx')
    with pytest.raises(InputError, match=said):
        create(tmp_path / 'net.onnx', tmp_path / 'bundle')


@pytest.mark.parametrize('channels', [1, 4])
def test_images_that_are_not_in_color_are_refused(tmp_path, channels):
    b = Builder(channels=channels)
    onnx.save(b.model(b.conv('image', 'logits', channels, 19)), tmp_path / 'net.onnx')
    with pytest.raises(InputError, match=r'net.onnx: input .* images in color'):
        create(tmp_path / 'net.onnx', tmp_path / 'bundle')


@pytest.mark.parametrize('given, taken', [
    ({}, 'color bgr, mean 71.6 82.1 72.31, scale 1 1 1'),
    ({'color': 'rgb', 'scale': [0.5, 0.5, 0.5]}, 'mean 71.6 82.1 72.31'),
    ({'color': 'rgb', 'mean': [0, 0, 0], 'scale': [1, 1, 1]}, '')])
def test_what_a_contract_leaves_out_is_noted(tmp_path, given, taken):
    bundle = Bundle.open(write_bundle(tmp_path / 'bundle', fcn(), input=given), verify=False)
    assert open_notes(bundle) == [
        f'model.yaml leaves out what is taken for {taken}: compare with the training code, and '
        'write it under input'] * bool(taken)


def test_randomness_is_noted(tmp_path):
    b = Builder()
    noise = b.node('RandomNormalLike', ['image'], 'noise', scale=1e-9)
    x = b.node('Add', ['image', noise], 'noisy')
    onnx.save(b.model(b.conv(x, 'logits', 3, 19)), tmp_path / 'net.onnx')
    notes = create(tmp_path / 'net.onnx', tmp_path / 'bundle').notes
    assert any('RandomNormalLike: masks differ each time' in note for note in notes)


@pytest.mark.parametrize('training, ratio', [(True, 1e-9), (False, 0.5), (None, 0.5)])
def test_dropout_that_may_drop_is_noted(tmp_path, training, ratio):
    b = Builder()
    inputs = ['image', b.constant('ratio', np.float32(ratio))]
    if training is not None:
        inputs.append(b.constant('training', np.bool_(training)))
    x = b.node('Dropout', inputs, 'dropped')
    onnx.save(b.model(b.conv(x, 'logits', 3, 19)), tmp_path / 'net.onnx')
    notes = create(tmp_path / 'net.onnx', tmp_path / 'bundle').notes
    assert any('Dropout: masks differ each time' in note for note in notes) is bool(training)


def test_an_output_that_differs_each_time_is_refused(tmp_path):
    b = Builder()
    x = b.node('Dropout', ['image', b.constant('ratio', np.float32(0.5)),
                           b.constant('training', np.bool_(True))], 'dropped')
    onnx.save(b.model(b.conv(x, 'logits', 3, 19)), tmp_path / 'net.onnx')
    with pytest.raises(InputError, match="net.onnx: its output 'logits' differs each time"):
        create(tmp_path / 'net.onnx', tmp_path / 'bundle')


def test_an_output_that_is_not_finite_is_said(tmp_path, recwarn):
    b = Builder()
    x = b.node('Sqrt', [b.conv('image', 'scores', 3, 19)], 'logits')  # of negative numbers
    onnx.save(b.model(x), tmp_path / 'net.onnx')
    with pytest.raises(InputError, match=r"net.onnx: its output 'logits' holds nan or infinity"):
        create(tmp_path / 'net.onnx', tmp_path / 'bundle')
    assert not (tmp_path / 'bundle').exists() and not recwarn.list


@pytest.mark.parametrize('kind', [TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_a_precision_that_onnx_runtime_does_not_run_is_made_float32(tmp_path, kind):
    b = Builder()
    model = b.model(b.conv('image', 'logits', 3, 19))
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    for tensor in model.graph.initializer:
        values = helper.make_tensor(tensor.name, kind, tensor.dims, expected[tensor.name].ravel())
        tensor.CopyFrom(values)
    onnx.save(model, tmp_path / 'net.onnx')
    created = create(tmp_path / 'net.onnx', tmp_path / 'bundle')
    assert any('the two were not compared' in change for change in created.changes)
    found = onnx.load(tmp_path / 'bundle' / 'net.onnx')
    for tensor in found.graph.initializer:
        values = numpy_helper.to_array(tensor)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[tensor.name], rtol=2 ** -7)


def test_a_network_that_runs_as_a_whole_only_ends_calibration_with_one_line(tmp_path, capsys):
    """ONNX Runtime runs a Scan whose results have no shapes in one way, and not in the other."""
    b = Builder()
    x = b.node('Transpose', [b.conv('image', 'scores', 3, 19)], 'turned', perm=[1, 0, 2, 3])
    value = onnx.helper.make_tensor_value_info
    body = onnx.helper.make_graph(
        [onnx.helper.make_node('Add', ['sum', 'part'], ['more']),
         onnx.helper.make_node('Identity', ['more'], ['seen'])], 'body',
        [value('sum', TensorProto.FLOAT, None), value('part', TensorProto.FLOAT, None)],
        [value('more', TensorProto.FLOAT, None), value('seen', TensorProto.FLOAT, None)])
    zero = b.constant('zero', np.zeros((1, 32, 64), np.float32))
    b.nodes.append(onnx.helper.make_node('Scan', [zero, x], ['last', 'sums'], body=body,
                                         num_scan_inputs=1))
    b.node('Transpose', ['sums'], 'logits', perm=[1, 0, 2, 3])
    b.input.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(b.model('logits', shape=[1, 19, 32, 64]), tmp_path / 'net.onnx')
    create(tmp_path / 'net.onnx', tmp_path / 'bundle')
    (tmp_path / 'images').mkdir()
    for i in range(3):
        image = np.random.default_rng(i).integers(0, 256, (32, 64, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f'images/{i}.png'), image)
    code = main(['calibrate', str(tmp_path / 'bundle'), '--images', str(tmp_path / 'images'),
                 '--count', '2', '--golden', '1', '--no-report'])
    errors = capsys.readouterr().err
    assert 'Traceback' not in errors
    assert code == 0 or 'cannot be run part by part' in errors.splitlines()[-1]
