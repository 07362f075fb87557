# SPDX-License-Identifier: Apache-2.0
"""
Networks as exporters write them: the bundle's network gives the masks of the file.

What the file itself gives under ONNX Runtime is the truth; its masks are taken by what its author
would do with its output: the largest channel, or the numbers as they are.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import onnxruntime
import pytest
from support.networks import Builder, fcn

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.create import create
from trt_segmentation.bundles.labels import Label, LabelSet
from trt_segmentation.cli import main
from trt_segmentation.errors import InputError
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.quantize import quantize

SIZE = (24, 40)
CLASSES = 5
# Of colors that are told apart.
LABELS = LabelSet(tuple(Label(f'l{i}', i, (200 * (i % 2), 200 * (i // 2 % 2), 60 * (i // 4)), 'c')
                        for i in range(CLASSES)))


def image():
    """Return a tensor as mean and deviation make it."""
    return (pixels() - 128) / 64


def pixels():
    """Return whole numbers 0..255 in blocks."""
    blocks = np.random.default_rng(3).integers(0, 256, (1, 3, 6, 10))
    return blocks.repeat(4, 2).repeat(4, 3).astype(np.float32)


def run(model, tensor):
    """Return the only output, or the first, of a file or a model."""
    source = str(model) if not isinstance(model, onnx.ModelProto) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: tensor})[0]


def body(b, data='image', classes=CLASSES, stride=1):
    x = b.conv_relu(data, 'relu1', 3, 8, strides=[stride, stride])
    return b.conv(x, 'scores', 8, classes, kernel=1)


def finished(b, output, dtype=TensorProto.FLOAT, shape=None, opset=17):
    return b.model(output, dtype=dtype, shape=shape, opset=opset)


def made(tmp_path, model, labels=LABELS, **options):
    """Make a bundle; return what was made, and the network in it."""
    onnx.save(model, tmp_path / 'file.onnx')
    options.setdefault('mean', (100, 110, 120))
    options.setdefault('scale', (.01, .02, .03))
    if options['mean'] is None:
        del options['mean'], options['scale']
    created = create(tmp_path / 'file.onnx', tmp_path / 'bundle', labels=labels, **options)
    opened = Bundle.open(tmp_path / 'bundle')
    assert opened.spec == created.spec and created.spec.input.size == SIZE
    description = onnx_model.describe(opened.model_path)
    assert list(description.inputs) == [created.spec.input.tensor]
    assert description.inputs[created.spec.input.tensor].dtype == 'float32'
    assert list(description.outputs) == [created.spec.output.tensor]
    # And it can be quantized, which not everything that runs can.
    scales = {name: 1.0 for node in onnx.load(opened.model_path).graph.node
              for name in node.output} | {created.spec.input.tensor: 1.0}
    quantize(onnx_model.load(opened.model_path), scales, 'tensorrt',
             input_shapes={created.spec.input.tensor: (1, 3, *SIZE)})
    return created, opened.model_path


def margins(logits):
    """Return how far the best channel is ahead of the second."""
    ordered = np.sort(logits, 1)
    return ordered[:, -1] - ordered[:, -2]


def check_masks(logits, mask, sure=1e-4):
    """Compare the largest channel with a mask wherever it is not a tie."""
    clear = margins(logits) > sure
    assert clear.mean() > 0.9 and len(np.unique(mask)) > 1
    assert (logits.argmax(1) == mask.reshape(len(mask), *logits.shape[2:]))[clear].all()


@pytest.mark.parametrize(('keepdims', 'dtype'), [
    (0, None), (1, None), (0, TensorProto.UINT8), (1, TensorProto.INT32),
    (0, TensorProto.FLOAT)])
def test_an_argmax_is_cut_so_that_logits_return(tmp_path, keepdims, dtype):
    b = Builder(SIZE)
    ids = b.node('ArgMax', [body(b)], 'ids', axis=1, keepdims=keepdims)
    if dtype:
        ids = b.node('Cast', [ids], 'out', to=dtype)
    model = finished(b, ids, dtype or TensorProto.INT64,
                     ['N', *([1] if keepdims else []), *SIZE])
    created, path = made(tmp_path, model)
    assert created.spec.output.kind == 'logits' and created.spec.output.tensor == 'scores'
    check_masks(run(path, image()), run(model, image()))
    assert any('ArgMax' in change for change in created.changes)


def test_class_ids_stay_if_their_author_wants_them(tmp_path):
    b = Builder(SIZE)
    model = finished(b, b.node('ArgMax', [body(b)], 'ids', axis=1, keepdims=0),
                     TensorProto.INT64, ['N', *SIZE])
    created, path = made(tmp_path, model, kind='class_ids')
    assert created.spec.output.kind == 'class_ids' and created.changes == []
    assert path.read_bytes() == (tmp_path / 'file.onnx').read_bytes()


def test_ids_that_are_resized_afterwards_are_left_alone(tmp_path):
    b = Builder(SIZE)
    ids = b.node('ArgMax', [body(b, stride=2)], 'ids', axis=1, keepdims=1)
    small = b.node('Cast', [ids], 'small', to=TensorProto.FLOAT)
    large = b.node('Resize', [small, '', b.constant('s', np.float32([1, 1, 2, 2]))], 'large',
                   mode='nearest')
    model = finished(b, b.node('Cast', [large], 'out', to=TensorProto.INT32), TensorProto.INT32,
                     ['N', 1, *SIZE])
    created, path = made(tmp_path, model)
    assert created.spec.output.kind == 'class_ids'
    np.testing.assert_array_equal(run(path, image()), run(model, image()))


@pytest.mark.parametrize('op', ['Softmax', 'LogSoftmax', 'Sigmoid'])
@pytest.mark.parametrize('opset', [11, 17])
def test_what_makes_probabilities_is_cut(tmp_path, op, opset):
    b = Builder(SIZE)
    model = finished(b, b.node(op, [body(b)], 'out', **({} if op == 'Sigmoid' else {'axis': 1})),
                     opset=opset)
    created, path = made(tmp_path, model)
    assert created.spec.output.tensor == 'scores'
    check_masks(run(path, image()), run(model, image()).argmax(1))


def test_a_softmax_between_two_transposes_is_cut(tmp_path):
    """As PyTorch's exporter writes Softmax(dim=1) for opsets below 13."""
    b = Builder(SIZE)
    turned = b.node('Transpose', [body(b)], 'turned', perm=[0, 3, 2, 1])
    soft = b.node('Softmax', [turned], 'soft', axis=3)
    model = finished(b, b.node('Transpose', [soft], 'out', perm=[0, 3, 2, 1]), opset=11)
    created, path = made(tmp_path, model)
    assert created.spec.output.tensor == 'scores'
    check_masks(run(path, image()), run(model, image()).argmax(1))


@pytest.mark.parametrize('resized', [False, True])
def test_a_softmax_before_the_channels_go_last_is_seen(tmp_path, resized):
    """As tf2onnx writes Keras' Softmax: by channel, and then a Transpose."""
    b = Builder(SIZE)
    x = b.node('Softmax', [body(b, stride=2)], 'softmax', axis=1)
    if resized:
        scales = b.constant('scales', np.array([1, 1, 2, 2], np.float32))
        x = b.node('Resize', [x, '', scales], 'larger', mode='linear')
    b.node('Transpose', [x], 'masks', perm=[0, 2, 3, 1])
    created, path = made(tmp_path, b.model('masks'))
    logits = run(path, image())
    given = run(tmp_path / 'file.onnx', image()).transpose(0, 3, 1, 2)
    found = np.exp(logits)
    assert np.allclose(found / found.sum(1, keepdims=True), given, atol=1e-5)
    assert created.spec.output.kind == 'logits'


def test_a_softmax_along_another_axis_is_not_cut(tmp_path):
    b = Builder(SIZE)
    model = finished(b, b.node('Softmax', [body(b)], 'out', axis=-1))
    created, path = made(tmp_path, model)
    assert created.changes == []
    np.testing.assert_array_equal(run(path, image()), run(model, image()))


def test_probabilities_that_are_resized_become_logarithms_and_confidence_is_theirs(tmp_path):
    b = Builder(SIZE)
    soft = b.node('Softmax', [body(b, stride=2)], 'soft', axis=1)
    model = finished(b, b.node('Resize', [soft, '', b.constant('s', np.float32([1, 1, 2, 2]))],
                               'out', mode='linear'))
    _, path = made(tmp_path, model)
    own, logits = run(model, image()), run(path, image())
    check_masks(logits, own.argmax(1))
    first, second = np.sort(own, 1)[:, -1], np.sort(own, 1)[:, -2]
    seen = second > 1e-5
    np.testing.assert_allclose(np.tanh(margins(logits) / 2)[seen],
                               ((first - second) / (first + second))[seen], atol=1e-4)


def test_probabilities_may_be_named(tmp_path):
    b = Builder(SIZE)
    x = b.node('Exp', [b.node('LogSoftmax', [body(b)], 'low', axis=1)], 'out')
    created, path = made(tmp_path, finished(b, x), kind='probabilities')
    assert created.spec.output.kind == 'logits'
    np.testing.assert_allclose(run(path, image()), np.log(np.maximum(
        run(tmp_path / 'file.onnx', image()), 1e-7)), atol=1e-4)


@pytest.mark.parametrize('form', ['logits', 'sigmoid', 'above', 'sigmoid above', 'resized'])
def test_one_channel_becomes_background_and_object(tmp_path, form):
    b = Builder(SIZE)
    x = body(b, classes=1, stride=2 if form == 'resized' else 1)
    truth = x
    dtype, shape = TensorProto.FLOAT, None
    if form in ('sigmoid', 'sigmoid above', 'resized'):
        x = b.node('Sigmoid', [x], 'probability')
    if form == 'resized':
        x = b.node('Resize', [x, '', b.constant('s', np.float32([1, 1, 2, 2]))], 'large',
                   mode='linear')
    if form.endswith('above'):
        limit = b.constant('limit', np.float32(0.25))
        x = b.node('Cast', [b.node('Greater', [x, limit], 'greater')], 'mask',
                   to=TensorProto.UINT8)
        dtype, shape = TensorProto.UINT8, ['N', 1, *SIZE]
    model = finished(b, x, dtype, shape)
    created, path = made(tmp_path, model, labels=None)
    assert [label.name for label in created.spec.labels.labels] == ['background', 'object']
    own = run(model, image())
    expected = own if form.endswith('above') else own > (.5 if form in ('sigmoid', 'resized')
                                                        else 0)
    logits = run(path, image())
    check_masks(logits, expected.astype(int))
    if form == 'logits':  # how sure: the probability of one against that of the other
        p = 1 / (1 + np.exp(-own.astype(np.float64)))
        np.testing.assert_allclose(np.tanh(margins(logits) / 2), np.abs(2 * p - 1)[:, 0],
                                   atol=1e-5)
    assert truth


@pytest.mark.parametrize('end', ['logits', 'transposed', 'softmax', 'ids'])
@pytest.mark.parametrize('start', ['plain', 'transposed'])
def test_channels_may_come_last(tmp_path, start, end):
    """As TensorFlow's networks have them: a Transpose at the start, one at the end, or none."""
    b = Builder(SIZE)
    b.input = helper.make_tensor_value_info('image', TensorProto.FLOAT, ['N', *SIZE, 3])
    first = 'image' if start == 'plain' else b.node('Neg', ['image'], 'negative')
    x = b.node('Transpose', [first], 'first', perm=[0, 3, 1, 2])
    x = body(b, x)
    if end == 'transposed':  # no Transpose at the end: it is computed with channels last
        x = b.node('Transpose', [x], 't', perm=[0, 2, 3, 1])
        weight = b.constant('w', b.rng.normal(0, 1, (CLASSES, CLASSES)).astype(np.float32))
        x = b.node('MatMul', [x, weight], 'out')
    else:
        x = b.node('Transpose', [x], 'out', perm=[0, 2, 3, 1])
    dtype, shape = TensorProto.FLOAT, ['N', *SIZE, CLASSES]
    if end in ('softmax', 'ids'):
        x = b.node('Softmax', [x], 'soft', axis=-1)
    if end == 'ids':
        x = b.node('ArgMax', [x], 'ids', axis=-1, keepdims=0)
        dtype, shape = TensorProto.INT64, ['N', *SIZE]
    model = finished(b, x, dtype, shape)
    created, path = made(tmp_path, model)
    assert created.spec.output.kind == 'logits'
    own = run(model, image().transpose(0, 2, 3, 1))
    check_masks(run(path, image()), own if end == 'ids' else own.argmax(-1))
    operators = [node.op_type for node in onnx.load(path).graph.node]
    # A Transpose that meets its inverse goes with it.
    assert operators.count('Transpose') == (start != 'plain') * 2 + (end == 'transposed') * 2


@pytest.mark.parametrize('first', ['Cast', 'Transpose', 'Add'])
def test_inputs_may_be_whole_pixels(tmp_path, first):
    b = Builder(SIZE)
    shape = ['N', *SIZE, 3] if first == 'Transpose' else ['N', 3, *SIZE]
    b.input = helper.make_tensor_value_info('image', TensorProto.UINT8, shape)
    x = 'image'
    if first == 'Transpose':
        x = b.node('Transpose', [x], 'first', perm=[0, 3, 1, 2])
    if first == 'Add':  # in whole numbers, so that 255 + 1 is 0
        x = b.node('Add', [x, b.constant('one', np.uint8(1))], 'more')
    x = b.node('Cast', [x], 'float', to=TensorProto.FLOAT)
    x = b.node('Div', [x, b.constant('many', np.float32(255))], 'unit')
    model = finished(b, body(b, x))
    created, path = made(tmp_path, model, mean=None)
    assert created.spec.input.mean == (0, 0, 0) and created.spec.input.scale == (1, 1, 1)
    assert 'mean' not in created.assumed and created.notes == []
    whole = pixels().astype(np.uint8)
    own = run(model, whole.transpose(0, 2, 3, 1) if first == 'Transpose' else whole)
    np.testing.assert_allclose(run(path, pixels()), own, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match='normalizes them itself; expected no mean'):
        create(tmp_path / 'file.onnx', tmp_path / 'other', labels=LABELS, mean=(1, 2, 3))


def half(model, keep_io):
    """Return a network in half precision, with float32 at both ends if wanted."""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    del model.graph.value_info[:]
    source, target = model.graph.input[0], model.graph.output[0]
    if keep_io:
        for node in model.graph.node:
            node.input[:] = ['half' if name == source.name else name for name in node.input]
            node.output[:] = ['low' if name == target.name else name for name in node.output]
        model.graph.node.insert(0, helper.make_node('Cast', [source.name], ['half'], name='c1',
                                                    to=TensorProto.FLOAT16))
        model.graph.node.append(helper.make_node('Cast', ['low'], [target.name], name='c2',
                                                 to=TensorProto.FLOAT))
    else:
        for value in (source, target):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize('keep_io', [False, True])
def test_networks_in_half_precision_become_float32(tmp_path, keep_io):
    b = Builder(SIZE)
    model = half(finished(b, body(b)), keep_io)
    created, path = made(tmp_path, model)
    assert created.spec.output.kind == 'logits'
    tensor = image()
    own = run(model, tensor if keep_io else tensor.astype(np.float16))
    np.testing.assert_allclose(run(path, tensor), own.astype(np.float32), atol=.03)
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count('Cast') <= keep_io


def test_heads_beside_the_wanted_one_are_left_out(tmp_path):
    b = Builder(SIZE)
    x = b.conv_relu('image', 'relu1', 3, 8)
    b.conv(b.conv_relu(x, 'deep', 8, 32), 'auxiliary', 32, CLASSES, kernel=1)
    b.conv(x, 'logits', 8, CLASSES, kernel=1)
    model = finished(b, 'logits')
    model.graph.output.append(helper.make_tensor_value_info(
        'auxiliary', TensorProto.FLOAT, ['N', CLASSES, *SIZE]))
    with pytest.raises(InputError, match=r'2 outputs.*--output.*logits float32 .*auxiliary'):
        made(tmp_path, model)
    created, path = made(tmp_path, model, output_tensor='logits')
    assert created.changes == ['outputs that are not wanted are left out: auxiliary']
    np.testing.assert_array_equal(run(path, image()), run(model, image()))
    assert 'deep_conv_node' not in {node.name for node in onnx.load(path).graph.node}


@pytest.mark.parametrize('opset', range(7, 24))
def test_every_opset_from_7_to_23(tmp_path, opset):
    b = Builder(SIZE)
    x = b.conv_relu('image', 'relu1', 3, 8, strides=[2, 2])
    x = b.node('MaxPool', [x], 'pool', kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)
    if opset < 9:
        x = b.node('Upsample', [x], 'up', mode='nearest', scales=[1.0, 1.0, 2.0, 2.0])
    else:
        scales = b.constant('scales', np.float32([1, 1, 2, 2]))
        roi = b.constant('roi', np.zeros(0, np.float32))
        x = b.node('Upsample' if opset == 9 else 'Resize',
                   [x, *([roi] if opset > 10 else []), scales], 'up',
                   mode='nearest' if opset < 11 else 'linear')
    b.conv(x, 'logits', 8, CLASSES, kernel=1)
    model = b.model('logits', opset=opset)
    created, path = made(tmp_path, model)
    np.testing.assert_allclose(run(path, image()), run(model, image()), rtol=1e-4, atol=1e-3)
    assert created.spec.output.kind == 'logits'


def test_an_opset_before_7_is_refused(tmp_path):
    b = Builder(SIZE)
    model = finished(b, body(b), shape=['N', CLASSES, *SIZE])
    model.opset_import[0].version = 6
    with pytest.raises(InputError, match='opset 6; expected 7 or later'):
        made(tmp_path, model)


def test_free_sizes_and_weights_as_inputs(tmp_path):
    b = Builder(SIZE)
    model = finished(b, body(b, stride=2))
    for value in (model.graph.input[0], model.graph.output[0]):
        for i in (2, 3):
            value.type.tensor_type.shape.dim[i].dim_param = f'{value.name}{i}'
    del model.graph.value_info[:]
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(
            tensor.name, tensor.data_type, tensor.dims))
    created, path = made(tmp_path, model, size=SIZE)
    assert created.changes == [] and path.read_bytes() == (tmp_path / 'file.onnx').read_bytes()


def test_weights_of_constant_nodes_in_another_file_come_along(tmp_path):
    b = Builder(SIZE)
    model = finished(b, body(b))
    weight = next(t for t in model.graph.initializer if t.name == 'scores_weight')
    (tmp_path / 'file.bin').write_bytes(numpy_helper.to_array(weight).tobytes())
    expected = run(model, image())
    outside = TensorProto(name='v', data_type=TensorProto.FLOAT, dims=weight.dims,
                          data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key='location', value='file.bin')
    model.graph.node.insert(0, helper.make_node('Constant', [], ['scores_weight'], name='c'))
    model.graph.node[0].attribute.append(helper.make_attribute('value', TensorProto()))
    model.graph.node[0].attribute[0].t.CopyFrom(outside)
    model.graph.initializer.remove(weight)
    _, path = made(tmp_path, model)
    (tmp_path / 'file.bin').unlink()
    np.testing.assert_allclose(run(path, image()), expected, rtol=1e-6)


def test_what_would_give_another_result_is_refused(tmp_path, monkeypatch):
    """Were a step wrong, the comparison with the file would say so."""
    from trt_segmentation.networks import outputs
    cut = outputs._cut_choice

    def wrong(tail):
        axis = cut(tail)
        tail.tensor = tail.node('Neg', [tail.tensor], 'wrong')
        return axis

    monkeypatch.setattr(outputs, '_cut_choice', wrong)
    b = Builder(SIZE)
    model = finished(b, b.node('ArgMax', [body(b)], 'ids', axis=1), TensorProto.INT64,
                     ['N', 1, *SIZE])
    with pytest.raises(InputError, match="gives something else than before for output 'ids'"):
        made(tmp_path, model)
    assert not (tmp_path / 'bundle').exists()


@pytest.mark.parametrize(('scale', 'mean', 'said'), [
    ((1 / .229, 1 / .224, 1 / .225), (123.7, 116.3, 103.5), 'divided by 255'),
    ((58.4, 57.1, 57.4), (123.7, 116.3, 103.5), 'expected 1 divided by it'),
    ((1 / 255 / 58.4, 1 / 255 / 57.1, 1 / 255 / 57.4), (123.7, 116.3, 103.5), 'twice'),
    ((1, 1, 1), (.485, .456, .406), 'multiplied by 255'),
    ((1 / 58.4, 1 / 57.1, 1 / 57.4), (123.7, 116.3, 103.5), ''),
    ((1 / 255, 1 / 255, 1 / 255), (0, 0, 0), ''),
    ((1, 1, 1), (71.6, 82.1, 72.3), '')])
def test_a_range_that_no_network_is_trained_with_is_questioned(tmp_path, scale, mean, said):
    b = Builder(SIZE)
    created, _ = made(tmp_path, finished(b, body(b)), scale=scale, mean=mean)
    assert len(created.notes) == bool(said)
    assert said in ''.join(created.notes)


def test_what_is_implausible_in_a_network_is_questioned(tmp_path):
    b = Builder(SIZE)
    x = b.conv('image', 'a', 3, 8)
    names = [b.constant(f'bn{i}', np.ones(8, np.float32)) for i in range(4)]
    x = b.node('BatchNormalization', [x, *names], 'bn', training_mode=1)
    b.nodes[-1].output.extend(['m', 'v'])
    pooled = b.node('MaxPool', [x], 'pool', kernel_shape=[2, 2], strides=[2, 2])
    b.nodes[-1].output.append('places')
    x = b.node('MaxUnpool', [pooled, 'places'], 'unpooled', kernel_shape=[2, 2], strides=[2, 2])
    x = b.conv(x, 'logits', 8, CLASSES, kernel=1)
    turned = b.node('Transpose', [x], 'turned', perm=[0, 1, 3, 2])
    created, _ = made(tmp_path, finished(b, turned))
    training, missing, sides = created.notes
    assert 'training mode' in training and 'evaluation mode' in training
    assert 'MaxPool with indices (1), MaxUnpool (1)' in missing
    assert '40x24 for an input of 24x40' in sides and 'transposed' in sides


def test_foreign_operators_are_named_at_init(tmp_path, capsys):
    b = Builder(SIZE)
    model = finished(b, body(b))
    node = model.graph.node[0]
    node.op_type, node.domain = 'FusedConv', 'com.microsoft'
    model.opset_import.append(helper.make_opsetid('com.microsoft', 1))
    created, _ = made(tmp_path, model)
    (note,) = created.notes
    assert 'com.microsoft.FusedConv (1)' in note and 'export the network without' in note
    assert created.spec.acceptance.min_int8_share == 0.9


def test_the_command_says_what_it_did(tmp_path, capsys):
    b = Builder(SIZE)
    onnx.save(finished(b, b.node('Softmax', [body(b, classes=19)], 'out', axis=1)),
              tmp_path / 'file.onnx')
    assert main(['init', str(tmp_path / 'file.onnx'), str(tmp_path / 'bundle')]) == 0
    assert "changed    the Softmax 'out_node' is left out" in capsys.readouterr().out


def test_the_sample_like_network_is_left_as_it_is(tmp_path):
    onnx.save(fcn(), tmp_path / 'file.onnx')
    created = create(tmp_path / 'file.onnx', tmp_path / 'bundle')
    assert created.changes == []
    assert ((tmp_path / 'bundle' / 'file.onnx').read_bytes()
            == (tmp_path / 'file.onnx').read_bytes())


@pytest.mark.parametrize(('kind', 'said'), [(None, 'say so with --kind'), ('logits', '')])
def test_an_output_without_an_axis_of_channels_has_to_be_explained(tmp_path, kind, said):
    b = Builder(SIZE)
    axis = b.constant('axis', np.int64([1]))
    model = finished(b, b.node('Squeeze', [body(b, classes=1), axis], 'out'))
    if said:
        with pytest.raises(InputError, match=said):
            made(tmp_path, model, labels=None, kind=kind)
        return
    _, path = made(tmp_path, model, labels=None, kind=kind)
    check_masks(run(path, image()), (run(model, image()) > 0).astype(int))


def test_an_input_without_a_batch_is_refused(tmp_path):
    b = Builder(SIZE)
    b.input = helper.make_tensor_value_info('image', TensorProto.FLOAT, [3, *SIZE])
    axis = b.constant('axis', np.int64([0]))
    model = finished(b, body(b, b.node('Unsqueeze', ['image', axis], 'batch')))
    with pytest.raises(InputError, match=r'float32 \[3, 24, 40\]; expected four axes'):
        made(tmp_path, model)


def test_weights_that_are_not_finite_are_refused_at_init(tmp_path):
    b = Builder(SIZE)
    model = finished(b, body(b))
    weight = next(t for t in model.graph.initializer if t.name == 'scores_weight')
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(InputError, match="'scores_weight'.*nan or infinity"):
        made(tmp_path, model)


def test_an_output_that_no_image_changes_is_refused(tmp_path):
    b = Builder(SIZE)
    b.conv('image', 'first', 3, CLASSES)
    model = finished(b, 'first')
    model.graph.node[0].input[0] = 'constant'
    model.graph.initializer.append(numpy_helper.from_array(
        np.zeros((1, 3, *SIZE), np.float32), 'constant'))
    model.graph.output.append(helper.make_tensor_value_info(
        'image_too', TensorProto.FLOAT, ['N', 3, *SIZE]))
    model.graph.node.append(helper.make_node('Identity', ['image'], ['image_too'], name='i'))
    with pytest.raises(InputError, match="'first' does not depend on input 'image'"):
        made(tmp_path, model, output_tensor='first')


def test_a_constant_that_a_few_numbers_make_endless_is_not_computed():
    from trt_segmentation.networks.prepare import prepare
    b = Builder(SIZE)
    b.node('ConstantOfShape', [b.constant('sizes', np.int64([1 << 20, 1 << 20]))], 'endless')
    x = b.node('ReduceMax', ['endless'], 'one', keepdims=0)
    b.node('Mul', [body(b), x], 'logits')
    model = finished(b, 'logits')
    assert 'endless' in {name for node in prepare(model).graph.node for name in node.output}
