# SPDX-License-Identifier: Apache-2.0
"""A bundle made from a network loads back as what was asked for."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import pytest
from support.networks import Builder, fcn
import yaml

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.create import create
from trt_segmentation.bundles.labels import CITYSCAPES, Label, LabelSet
from trt_segmentation.cli import main
from trt_segmentation.errors import command_line, InputError
from trt_segmentation.segmenters.cpu import CpuSegmenter

EIGHT = LabelSet(tuple(Label(f'class: {i}', 255 if i == 7 else i, (i, 20 * i, 255 - i),
                             'void' if i == 7 else 'yes') for i in range(8)))


def save(tmp_path, model, name='fcn.onnx'):
    path = tmp_path / name
    onnx.save(model, path)
    return path


def foreign(size=(96, 160), classes=8, names=('data', 'out:0')):
    """A network with another size, other names, and logits at stride 8."""
    builder = Builder(size)
    x = builder.conv_relu('image', 'a', 3, 8, strides=[2, 2])
    x = builder.conv_relu(x, 'b', 8, 8, strides=[4, 4])
    model = builder.model(builder.conv(x, 'logits', 8, classes, kernel=1))
    text = model.SerializeToString()
    model = onnx.ModelProto.FromString(text)
    for node in model.graph.node:
        node.input[:] = [names[0] if name == 'image' else name for name in node.input]
        node.output[:] = [names[1] if name == 'logits' else name for name in node.output]
    model.graph.input[0].name, model.graph.output[0].name = names
    onnx.checker.check_model(model)
    return model


def test_what_the_file_says_is_read_and_the_rest_is_marked_assumed(tmp_path):
    created = create(save(tmp_path, fcn()), tmp_path / 'bundle')
    spec, assumed = created.spec, created.assumed
    assert (spec.input.tensor, spec.input.size) == ('image', (32, 64))
    assert (spec.output.tensor, spec.output.kind) == ('logits', 'logits')
    assert spec.labels == CITYSCAPES
    assert assumed == ['color', 'mean', 'scale', 'fit', 'interpolation', 'upsample', 'labels']
    text = (tmp_path / 'bundle' / 'model.yaml').read_text()
    assert text.count('assumed') == 1 + len(assumed)
    assert Bundle.open(tmp_path / 'bundle').spec == spec


def test_everything_that_is_given_is_in_the_bundle(tmp_path):
    created = create(
        save(tmp_path, foreign()), tmp_path / 'bundle', labels=EIGHT, color='rgb',
        mean=(123.675, 116.28, 103.53), scale=(1 / 58.395, 1 / 57.12, 1 / 57.375),
        fit='letterbox', interpolation='area', upsample='align_corners')
    spec, assumed = created.spec, created.assumed
    assert assumed == []
    assert spec == Bundle.open(tmp_path / 'bundle').spec
    assert spec.input.tensor == 'data'
    assert spec.output.tensor == 'out:0'
    assert spec.input.scale == (1 / 58.395, 1 / 57.12, 1 / 57.375)
    assert (spec.input.color, spec.input.fit, spec.input.interpolation) == (
        'rgb', 'letterbox', 'area')
    assert spec.output.upsample == 'align_corners'
    assert spec.labels == EIGHT
    text = (tmp_path / 'bundle' / 'model.yaml').read_text()
    assert text.count('assumed') == 1
    assert '# ' in text


def test_the_new_bundle_segments(tmp_path):
    from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
    create(save(tmp_path, foreign()), tmp_path / 'bundle', labels=EIGHT, fit='letterbox')
    bundle = Bundle.open(tmp_path / 'bundle')
    with CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path)) as segmenter:
        image = np.random.default_rng(0).integers(0, 256, (123, 77, 3), np.uint8)
        assert segmenter.segment(image).classes.shape == (123, 77)


def test_the_model_is_copied_byte_by_byte(tmp_path):
    path = save(tmp_path, fcn())
    create(path, tmp_path / 'bundle')
    assert (tmp_path / 'bundle' / 'fcn.onnx').read_bytes() == path.read_bytes()


def test_weights_in_other_files_come_along(tmp_path):
    plain = fcn()
    (tmp_path / 'exported').mkdir()
    path = tmp_path / 'exported' / 'fcn.onnx'
    onnx.save(onnx.ModelProto.FromString(plain.SerializeToString()), str(path),
              save_as_external_data=True, location='weights.bin', size_threshold=0)
    create(path, tmp_path / 'bundle')
    assert sorted(p.name for p in (tmp_path / 'bundle').iterdir()) == ['fcn.onnx', 'model.yaml']
    found = onnx.load(tmp_path / 'bundle' / 'fcn.onnx', load_external_data=False)
    for a, b in zip(found.graph.initializer, plain.graph.initializer):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(a),
                                      onnx.numpy_helper.to_array(b))
    (tmp_path / 'exported' / 'weights.bin').unlink()
    with pytest.raises(InputError, match='weights'):
        create(path, tmp_path / 'other')
    assert not (tmp_path / 'other').exists()


numbers = st.tuples(*[st.floats(-1e6, 1e6, allow_nan=False)] * 3)


@settings(max_examples=25, deadline=None)
@given(mean=numbers, scale=numbers.filter(lambda v: min(map(abs, v)) > 1e-35),
       name=st.text(st.characters(codec='utf-8', exclude_categories=['Cs', 'Cc']), min_size=1,
                    max_size=12))
def test_any_numbers_and_names_load_back_equal(tmp_path_factory, mean, scale, name):
    tmp_path = tmp_path_factory.mktemp('init')
    labels = LabelSet((*EIGHT.labels[:7], Label(name, 7, (1, 2, 3), name)))
    created = create(save(tmp_path, foreign()), tmp_path / 'bundle', labels=labels, mean=mean,
                     scale=scale)
    spec = created.spec
    assert spec.input.mean == mean
    assert spec.input.scale == scale
    assert spec.labels == labels


@pytest.mark.parametrize('names', [('a: b', 'c # d'), ('yes', 'null'), ('1', '2.5'),
                                   ('{x}', '[y]'), ("it's", '"q"'), ('ü/é:0', '*&!')])
def test_odd_tensor_names_load_back_equal(tmp_path, names):
    spec = create(save(tmp_path, foreign(names=names)), tmp_path / 'bundle', labels=EIGHT).spec
    assert (spec.input.tensor, spec.output.tensor) == names


def with_types(input_shape, output_shape, output_type):
    node = helper.make_node('Cast', ['image'], ['out'], to=output_type)
    graph = helper.make_graph(
        [node], 'g', [helper.make_tensor_value_info('image', TensorProto.FLOAT, input_shape)],
        [helper.make_tensor_value_info('out', output_type, output_shape)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)


def test_class_ids_are_recognized_by_their_type(tmp_path):
    path = save(tmp_path, with_types(['N', 3, 32, 64], ['N', 32, 64], TensorProto.INT64))
    created = create(path, tmp_path / 'bundle')
    spec, assumed = created.spec, created.assumed
    assert spec.output.kind == 'class_ids'
    assert 'upsample' not in assumed


def plain(input_shape, output_shape, extra=False):
    """A network of one layer with these shapes, and another input if wanted."""
    weight = numpy_helper.from_array(
        np.zeros((output_shape[1], input_shape[1], 1, 1), np.float32), 'weight')
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, input_shape)
              for name in ('image', 'second')[:1 + extra]]
    outputs = [helper.make_tensor_value_info('out', TensorProto.FLOAT, output_shape)]
    nodes = [helper.make_node('Conv', ['image', 'weight'], ['out'])]
    return helper.make_model(
        helper.make_graph(nodes, 'g', inputs, outputs, [weight]),
        opset_imports=[helper.make_opsetid('', 17)], ir_version=8)


@pytest.mark.parametrize(('model', 'options', 'said'), [
    (plain(['N', 3, 'H', 'W'], ['N', 19, 'h', 'w']), {}, '--size'),
    (plain(['N', 3, 8, 8], ['N', 19, 8, 8], extra=True), {},
     '--input: image float32 [?, 3, 8, 8], second float32'),
    (plain(['N', 3, 8, 8], ['N', 19, 8, 8]), {'output_tensor': 'no'}, "'no'; expected one"),
    (plain([4, 3, 8, 8], [4, 19, 8, 8]), {}, 'fixed batch of 4'),
    (plain(['N', 3, 8, 8], ['N', 21, 8, 8]), {}, '21 classes'),
    (plain(['N', 3, 8, 8], ['N', 19, 8, 8]), {'size': (8, 9)},
     "fcn.onnx has its size: 'image' is float32 [?, 3, 8, 8]; leave --size out"),
    (plain(['N', 3, 'H', 'W'], ['N', 19, 'h', 'w']), {'size': (16384, 16384)},
     '--size: found [16384, 16384], expected [height, width], two integers 1..16384, at most '
     '67108864 pixels'),
    (plain(['N', 4, 8, 8], ['N', 19, 8, 8]), {}, 'images in color'),
    (plain(['N', 3, 8, 8], ['N', 19, 8, 8]), {'scale': (1, 0, 1)}, 'input.scale'),
    (plain(['N', 3, 8, 8], ['N', 19, 8, 8]), {'labels': EIGHT}, 'the list of labels has 8 labels'),
])
def test_what_cannot_be_is_refused_and_nothing_is_left(tmp_path, model, options, said):
    path = save(tmp_path, model)
    with pytest.raises(InputError) as error:
        create(path, tmp_path / 'bundle', **options)
    assert said in str(error.value)
    assert '\n' not in str(error.value)
    assert '.bundle.' not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ['fcn.onnx']


def test_an_existing_directory_is_left_alone(tmp_path):
    (tmp_path / 'bundle').mkdir()
    with pytest.raises(InputError, match='exists already'):
        create(save(tmp_path, fcn()), tmp_path / 'bundle')


def test_the_command(tmp_path, capsys):
    path = save(tmp_path, foreign())
    labels = tmp_path / 'labels.yaml'
    labels.write_text(yaml.safe_dump(EIGHT.to_dict()))
    bundle = tmp_path / 'bundle'
    code = main(['init', str(path), str(bundle), '--labels', str(labels), '--mean', '-1.5', '2',
                 '3', '--scale', '1/58.395', '1/0.5/255', '0.017', '--color', 'rgb', '--fit',
                 'crop'])
    assert code == 0
    out = capsys.readouterr().out
    assert 'assumed    interpolation, upsample' in out
    spec = Bundle.open(bundle).spec
    assert spec.input.mean == (-1.5, 2, 3)
    assert spec.input.scale == (1 / 58.395, 1 / 0.5 / 255, 0.017)
    assert spec.input.fit == 'crop'
    assert spec.labels == EIGHT


def test_labels_for_another_number_of_channels_name_what_was_given(tmp_path, capsys):
    path = save(tmp_path, foreign())
    assert main(['init', str(path), str(tmp_path / 'bundle'), '--labels', 'cityscapes']) == 2
    error = capsys.readouterr().err
    assert '--labels cityscapes has 19 labels, but output' in error and '8 classes' in error
    assert 'model.yaml' not in error and not (tmp_path / 'bundle').exists()


def test_logits_of_the_network_s_size_need_no_upsampling_and_preview_comes_next(tmp_path, capsys):
    builder = Builder()
    path = save(tmp_path, builder.model(builder.conv('image', 'logits', 3, 19)))
    assert main(['init', str(path), str(tmp_path / 'bundle')]) == 0
    preview = command_line('preview', tmp_path / 'bundle', '--images', 'DIRECTORY')
    out = capsys.readouterr().out
    assert f'next       {preview}' in out
    out = out.replace(str(tmp_path), '')
    assert 'assumed' in out and 'upsample' not in out


@pytest.mark.parametrize(('content', 'said'), [
    (None, 'cannot be read'), (b'', 'expected'), (b'[', 'not valid YAML'), (b'\xff', 'YAML'),
    (b'- {name: a}', 'train_id'), (b'ade20k', 'expected')])
def test_broken_labels_end_with_code_2_and_one_line(tmp_path, capsys, content, said):
    path = save(tmp_path, foreign())
    labels = tmp_path / 'labels.yaml'
    if content is not None:
        labels.write_bytes(content)
    assert main(['init', str(path), str(tmp_path / 'bundle'), '--labels', str(labels)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(labels) in error
    assert error.count('\n') == 1


@pytest.mark.parametrize('content', [None, b'', b'no onnx'])
def test_a_broken_network_ends_with_code_2_and_one_line(tmp_path, capsys, content):
    path = tmp_path / 'fcn.onnx'
    if content is not None:
        path.write_bytes(content)
    assert main(['init', str(path), str(tmp_path / 'bundle')]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count('\n') == 1
    assert not (tmp_path / 'bundle').exists()


@pytest.mark.parametrize('text', ['1/0', 'a', '1//2', '', '/2', 'inf'])
def test_a_quotient_that_is_none_is_refused(text, tmp_path):
    with pytest.raises(SystemExit) as error:
        main(['init', 'x.onnx', str(tmp_path / 'b'), '--scale', text, '1', '1'])
    assert error.value.code == 2


def test_a_size_that_the_network_cannot_run_at_is_refused(tmp_path):
    b = Builder(('h', 'w'))
    x = b.conv(b.conv('image', 'half', 3, 8, strides=[2, 2]), 'quarter', 8, 8, strides=[2, 2])
    b.node('Add', [b.transposed(x, 'up', 8, 8), 'half'], 'logits')
    path = save(tmp_path, b.model('logits', shape=['N', 8, 'h', 'w']))
    with pytest.raises(InputError, match='cannot run on input .image. of shape 1x3x30x60'):
        create(path, tmp_path / 'bundle', size=(30, 60), labels=EIGHT)
    assert not (tmp_path / 'bundle').exists()
    create(path, tmp_path / 'bundle', size=(32, 64), labels=EIGHT)


def test_what_is_worth_a_second_look_is_said(tmp_path):
    b = Builder((32, 64))
    x = b.conv('image', 'deep', 3, 8, strides=[2, 2])
    b.node('Softmax', [b.transposed(x, 'up', 8, 8)], 'probabilities', axis=1)
    path = save(tmp_path, b.model('probabilities', shape=['N', 8, 32, 64]))
    created = create(path, tmp_path / 'bundle', labels=EIGHT, mean=(0.485, 0.456, 0.406))
    mean, colors, share = created.notes
    assert 'multiplied by 255' in mean
    assert 'hardly told apart' in colors
    (change,) = created.changes
    assert 'Softmax' in change and 'logits' in change
    # 16 * 32 * 8 * 3 * 9 of 16 * 32 * 8 * 3 * 9 + 16 * 32 * 8 * 8 * 16 multiply-accumulates.
    assert share.startswith('17.4% of the work can be in INT8')
    assert Bundle.open(tmp_path / 'bundle').spec.acceptance.min_int8_share == 0.16
    b = Builder((32, 64))
    b.conv(b.conv_relu('image', 'relu1', 3, 8), 'logits', 8, 19)
    plain = create(save(tmp_path, b.model('logits')), tmp_path / 'other', mean=(71, 82, 72))
    assert plain.notes == []
    outside = create(tmp_path / 'fcn.onnx', tmp_path / 'outside', mean=(71, 600, 72))
    assert ['cannot have a mean of 600' in note for note in outside.notes] == [True]
    assert plain.spec.acceptance.min_int8_share == 0.9


def test_one_label_for_one_channel_is_refused(tmp_path):
    b = Builder((32, 64))
    b.conv('image', 'logits', 3, 1)
    one = (Label('road', 0, (128, 64, 128), 'flat'),)
    with pytest.raises(InputError, match='found one label.*two classes.*the background first'):
        create(save(tmp_path, b.model('logits')), tmp_path / 'bundle', labels=LabelSet(one))
