# SPDX-License-Identifier: Apache-2.0
"""model.yaml: every key wrong in turn gives one line with file, key, found and expected."""

import copy

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from onnx import helper, TensorProto
import pytest
from support.networks import fcn, write_bundle
import yaml

from trt_segmentation.bundles.labels import CITYSCAPES
from trt_segmentation.bundles.spec import load_spec
from trt_segmentation.errors import InputError

SIZE = (32, 64)
LABELS = [{'name': f'class {i}', 'train_id': i, 'color': [i, 2 * i, 3 * i], 'category': 'all'}
          for i in range(19)]
FULL = {
    'version': 1,
    'model': 'model.onnx',
    'input': {
        'tensor': 'image', 'size': [32, 64], 'color': 'rgb', 'mean': [123.7, 116.3, 103.5],
        'scale': [0.017, 0.018, 1], 'fit': 'letterbox', 'interpolation': 'area'},
    'output': {'tensor': 'logits', 'kind': 'logits', 'upsample': 'align_corners'},
    'labels': LABELS,
    'calibration': {'ranges': {'relu1': 3.5}, 'exclude': ['score3_node']},
    'acceptance': {'min_agreement': 0.9, 'min_class_agreement': 0.7, 'min_int8_share': 0.5},
}


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp('spec') / 'bundle', fcn(SIZE))


def load(bundle, document):
    path = bundle / 'model.yaml'
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return load_spec(path)


def error_of(bundle, document):
    with pytest.raises(InputError) as error:
        load(bundle, document)
    text = str(error.value)
    assert '\n' not in text
    assert text.startswith(f'{bundle / "model.yaml"}:')
    return text


def changed(keys, value):
    """Return FULL with one value changed; `keys` is its path, with dots."""
    document = copy.deepcopy(FULL)
    *parents, last = keys.split('.')
    part = document
    for key in parents:
        part = part[key]
    part[last] = value
    return document


def test_every_key_is_read(bundle):
    spec = load(bundle, FULL)
    assert spec.model == 'model.onnx'
    assert spec.input.tensor == 'image'
    assert spec.input.size == (32, 64)
    assert spec.input.color == 'rgb'
    assert spec.input.mean == (123.7, 116.3, 103.5)
    assert spec.input.scale == (0.017, 0.018, 1.0)
    assert (spec.input.fit, spec.input.interpolation) == ('letterbox', 'area')
    assert spec.output.tensor == 'logits'
    assert (spec.output.kind, spec.output.upsample) == ('logits', 'align_corners')
    assert spec.labels.to_dict() == LABELS
    assert spec.calibration.ranges == {'relu1': 3.5}
    assert spec.calibration.exclude == ('score3_node',)
    assert spec.acceptance.min_agreement == 0.9
    assert spec.acceptance.min_class_agreement == 0.7
    assert spec.acceptance.min_int8_share == 0.5


def test_what_is_left_out_comes_from_the_graph_or_is_the_default(bundle):
    spec = load(bundle, {'version': 1, 'model': 'model.onnx'})
    assert (spec.input.tensor, spec.input.size) == ('image', (32, 64))
    assert spec.input.mean == (71.60, 82.10, 72.31)
    assert spec.input.scale == (1, 1, 1)
    assert (spec.input.color, spec.input.fit, spec.input.interpolation) == (
        'bgr', 'stretch', 'linear')
    assert (spec.output.tensor, spec.output.kind, spec.output.upsample) == (
        'logits', 'logits', 'half_pixel')
    assert spec.labels == CITYSCAPES
    assert (dict(spec.calibration.ranges), spec.calibration.exclude) == ({}, ())
    acceptance = spec.acceptance
    assert (acceptance.min_agreement, acceptance.min_class_agreement,
            acceptance.min_int8_share) == (0.95, 0.80, 0.90)


WRONG = {
    'version': [2, '1', True, None, 1.5],
    'model': [None, 3, '', 'other.onnx', '../model.onnx', '/etc/passwd', 'sub/model.onnx',
              '.hidden.onnx', '..', ['model.onnx']],
    'input': [3, 'data', [1]],
    'input.tensor': [None, 3, '', 'data', ['image']],
    'input.size': [None, 32, [32], [32, 64, 3], [32.0, 64], ['32', 64], [0, 64], [-32, 64],
                   [True, 64], [64, 32], [32, 100000]],
    'input.color': [None, 'BGR', 'gray', 1, ['bgr'], {'a': 1}],
    'input.mean': [None, 1, [1, 2], [1, 2, 3, 4], ['a', 2, 3], [1, None, 3], [float('nan'), 2, 3],
                   [float('inf'), 2, 3], [True, 2, 3], {'r': 1}],
    'input.scale': [None, 1, [1, 2], [0, 1, 1], [1, 0.0, 1], ['a', 2, 3], [float('nan'), 1, 1]],
    'input.fit': [None, 'pad', 0],
    'input.interpolation': [None, 'cubic', 1],
    'output': [3, 'logits'],
    'output.tensor': [None, 3, 'mask'],
    'output.kind': [None, 'probabilities', 'class_ids'],
    'output.upsample': [None, 'bilinear', True],
    'labels': [None, 'ade20k', 3, [], {'a': 1}, LABELS[:18], LABELS + LABELS[:1]],
    'calibration': [3, []],
    'calibration.ranges': [None, [1], {'relu1': 0}, {'relu1': -1}, {'relu1': 'a'}, {3: 1.0},
                           {'relu1': float('inf')}, {'relu1': True}],
    'calibration.exclude': [None, 'score3_node', [3], [''], {'a': 1}],
    'acceptance': [0.9, []],
    'acceptance.min_agreement': [None, '0.9', -0.1, 1.1, 95, True, float('nan')],
    'acceptance.min_class_agreement': [None, 2],
    'acceptance.min_int8_share': [None, 90],
}


@pytest.mark.parametrize(('key', 'value'), [
    pytest.param(key, value, id=f'{key}={str(value)[:30]}')
    for key, values in WRONG.items() for value in values])
def test_a_wrong_value_names_the_key_what_was_found_and_what_is_expected(bundle, key, value):
    if value is None and key in ('input', 'output', 'calibration', 'acceptance'):
        return
    text = error_of(bundle, changed(key, value))
    assert key in text
    assert 'expected' in text or 'needs' in text
    if key == 'labels' and isinstance(value, list) and value:
        assert '19' in text  # the graph's channels
    elif not isinstance(value, list) or key != 'calibration.exclude':
        assert str(value).strip("'") in text.replace('"', "'") or repr(value) in text


@pytest.mark.parametrize('key', ['', 'input.', 'output.', 'calibration.', 'acceptance.'])
def test_an_unknown_key_is_named_with_those_there_are(bundle, key):
    document = changed(f'{key}sise', 3)
    text = error_of(bundle, document)
    assert "'sise'" in text
    section = document[key[:-1]] if key else document
    for known in section:
        assert known == 'sise' or known in text


@pytest.mark.parametrize('key', ['version', 'model'])
def test_a_missing_key_is_named(bundle, key):
    document = {k: v for k, v in FULL.items() if k != key}
    assert f'key {key} is missing' in error_of(bundle, document)


@pytest.mark.parametrize(('field', 'value'), [
    ('name', 3), ('name', ''), ('name', None), ('train_id', -1), ('train_id', 256),
    ('train_id', 1.0), ('train_id', True), ('color', [1, 2]), ('color', [1, 2, 256]),
    ('color', 'red'), ('category', 3), ('category', ''), ('extra', 1)])
def test_a_wrong_label_names_its_place(bundle, field, value):
    labels = copy.deepcopy(LABELS)
    labels[4][field] = value
    text = error_of(bundle, changed('labels', labels))
    assert 'labels[4]' in text
    assert field in text
    assert 'expected' in text


def test_two_labels_may_share_a_train_id_only_if_they_are_the_same(bundle):
    labels = copy.deepcopy(LABELS)
    labels[7]['train_id'] = 3
    text = error_of(bundle, changed('labels', labels))
    assert 'labels[7]' in text
    assert "'class 3'" in text


@pytest.mark.parametrize('text', [
    '', '3', '- a', 'a: [', 'a: b: c', '\tversion: 1', 'version: 1\nversion: 1\n\tx', '"',
    '!!python/object/apply:os.system ["true"]', '{1: 2}', 'version: !!python/name:os.system'])
def test_what_is_no_mapping_or_no_yaml_is_one_line(bundle, text):
    error_of(bundle, text)


def test_binary_and_missing_files(bundle, tmp_path):
    (bundle / 'model.yaml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(InputError, match="not valid YAML: 'utf-8' codec"):
        load_spec(bundle / 'model.yaml')
    (tmp_path / 'other').mkdir()
    with pytest.raises(InputError, match='other/model.yaml: not there, so .*other is no bundle; '
                                         'make one with: trt-segmentation init'):
        load_spec(tmp_path / 'other' / 'model.yaml')


def test_a_link_out_of_the_bundle_is_refused(tmp_path):
    bundle = write_bundle(tmp_path / 'bundle', fcn(SIZE))
    (bundle / 'model.onnx').rename(tmp_path / 'outside.onnx')
    (bundle / 'model.onnx').symlink_to(tmp_path / 'outside.onnx')
    assert 'not a file' in error_of(bundle, FULL)


def raw_network(input_shape, input_dtype, output_shape, output_dtype):
    """A graph whose input and output have any type; it could not run, but it can be described."""
    node = helper.make_node('Cast', ['image'], ['out'], to=output_dtype)
    graph = helper.make_graph(
        [node], 'network', [helper.make_tensor_value_info('image', input_dtype, input_shape)],
        [helper.make_tensor_value_info('out', output_dtype, output_shape)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.mark.parametrize(('model', 'kind', 'key'), [
    (raw_network(['N', 4, 32, 64], FLOAT, ['N', 19, 8, 16], FLOAT), 'logits', 'input.tensor'),
    (raw_network(['N', 3, 32, 64], INT64, ['N', 19, 8, 16], FLOAT), 'logits', 'input.tensor'),
    (raw_network([3, 32, 64], FLOAT, ['N', 19, 8, 16], FLOAT), 'logits', 'input.'),
    (raw_network(['N', 3, 32, 64], FLOAT, ['N', 19, 8, 16], INT64), 'logits', 'output.kind'),
    (raw_network(['N', 3, 32, 64], FLOAT, ['N', 8, 16], FLOAT), 'logits', 'output.kind'),
    (raw_network(['N', 3, 32, 64], FLOAT, ['N', 8, 16], FLOAT), 'class_ids', 'output.kind'),
    (raw_network(['N', 3, 32, 64], FLOAT, ['N', 18, 8, 16], FLOAT), 'logits', 'output.tensor'),
    (raw_network(['N', 3, 32, 64], FLOAT, ['N', 2, 8, 16], INT64), 'class_ids', 'output.tensor'),
])
def test_a_contradiction_to_the_graph_is_named(tmp_path, model, kind, key):
    bundle = write_bundle(tmp_path / 'bundle', model)
    document = {'version': 1, 'model': 'model.onnx', 'output': {'kind': kind}}
    if key == 'input.':
        document['input'] = {'size': [32, 64]}
    assert key in error_of(bundle, document)


@pytest.mark.parametrize('shape', [['N', 8, 16], ['N', 1, 8, 16]])
def test_class_ids_of_either_rank_are_accepted(tmp_path, shape):
    bundle = write_bundle(tmp_path / 'bundle',
                          raw_network(['N', 3, 32, 64], FLOAT, shape, INT64))
    spec = load(bundle, {'version': 1, 'model': 'model.onnx', 'output': {'kind': 'class_ids'}})
    assert spec.output.kind == 'class_ids'


def test_a_graph_with_a_free_size_needs_one(tmp_path):
    bundle = write_bundle(tmp_path / 'bundle',
                          raw_network(['N', 3, 'H', 'W'], FLOAT, ['N', 19, 'h', 'w'], FLOAT))
    assert 'size is missing' in error_of(bundle, {'version': 1, 'model': 'model.onnx'})
    spec = load(bundle, {'version': 1, 'model': 'model.onnx', 'input': {'size': [48, 96]}})
    assert spec.input.size == (48, 96)


@pytest.mark.parametrize('content', [b'', b'no onnx', b'\x08\x08', b'\x00' * 1000])
def test_a_broken_onnx_file_is_named(tmp_path, content):
    bundle = write_bundle(tmp_path / 'bundle', fcn(SIZE))
    (bundle / 'model.onnx').write_bytes(content)
    with pytest.raises(InputError) as error:
        load_spec(bundle / 'model.yaml')
    assert str(error.value).startswith(str(bundle / 'model.onnx'))
    assert '\n' not in str(error.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.text(max_size=8) | st.integers(), inner, max_size=4), max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from(list(WRONG)), value=values)
def test_any_value_is_taken_or_refused_in_one_line(bundle, key, value):
    try:
        load(bundle, changed(key, value))
    except InputError as error:
        assert len(str(error).splitlines()) == 1
        assert 'model.yaml' in str(error)


def test_the_preprocessing_hash_depends_on_every_field(bundle):
    hashes = {load(bundle, FULL).input.sha256}
    for key, value in (('color', 'bgr'), ('mean', [1, 2, 3]), ('scale', [1, 2, 3]),
                       ('fit', 'crop'), ('interpolation', 'linear')):
        hashes.add(load(bundle, changed(f'input.{key}', value)).input.sha256)
    assert len(hashes) == 6
    assert load(bundle, FULL).input.sha256 in hashes
    # Equal numbers are equal preprocessings, however they are written.
    same = changed('input.scale', [np.float64(0.017).item(), 1.8e-2, 1.0])
    assert load(bundle, same).input.sha256 == load(bundle, FULL).input.sha256
