# SPDX-License-Identifier: Apache-2.0
"""Records of engines: one of 0.1.0 stays readable, and no changed byte is believed."""

import json

import numpy as np
import pytest
from support.bundles import small_bundle

from trt_segmentation import Segmenter
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cli import main
from trt_segmentation.engines.build import build
from trt_segmentation.engines.opening import open_segmenter
from trt_segmentation.engines.record import Record
from trt_segmentation.engines.store import Store
from trt_segmentation.engines.summary import describe
from trt_segmentation.errors import EngineMissing, InputError


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """A bundle, and a store with its engine: (bundle path, store path, what was built)."""
    home = tmp_path_factory.mktemp('built')
    path = small_bundle(home)
    return path, home / 'store', build(Bundle.open(path), backend='onnxruntime',
                                       store=home / 'store')


@pytest.fixture
def record_file(built):
    """The record's file, put back afterwards."""
    path = built[1] / built[2].key / 'record.json'
    data = path.read_bytes()
    yield path
    path.write_bytes(data)


def reopened(built):
    bundle, store, _ = built
    with open_segmenter(bundle, backend='onnxruntime', store=store,
                        build_missing=False) as segmenter:
        return segmenter.record


def first_schema(record):
    """Return a record as 0.1.0 wrote it."""
    acceptance = {key: record['acceptance'][key] for key in (
        'basis', 'frames', 'agreement', 'classes', 'int8_share')}
    values = {key: record[key] for key in (
        'inputs', 'bundle', 'built', 'build_seconds', 'package_version', 'layers', 'log',
        'timing_cache_sha256', 'key', 'plan_sha256')}
    return {'schema': 2, **values, 'acceptance': {**acceptance, 'failures': [], 'waived': ['w']}}


def test_a_record_is_the_same_after_its_file(built):
    record = built[2].record
    assert Record.from_json(json.loads(json.dumps(record.to_json())), 'file') == record
    assert Store(built[1]).record(record.key) == record


def test_no_changed_byte_of_a_record_is_opened(built, record_file):
    data = record_file.read_bytes()
    rng = np.random.default_rng(7)
    for position in rng.choice(len(data), 200, replace=False):
        changed = bytearray(data)
        changed[position] ^= 1 << rng.integers(8)
        record_file.write_bytes(changed)
        try:
            same = json.loads(changed) == json.loads(data)  # a space that became a tab
        except ValueError:
            same = False
        if not same:
            with pytest.raises(EngineMissing):
                reopened(built)


@pytest.mark.parametrize('change', [
    lambda record: {'acceptance': {**record['acceptance'], 'agreement': 0.01}},
    lambda record: {'acceptance': {**record['acceptance'], 'int8_share': 0.01}},
])
def test_limits_are_judged_again_even_where_the_hash_is_right(built, record_file, change):
    record = json.loads(record_file.read_text())
    unproven = {'acceptance': dict(change(record)['acceptance'])}
    del unproven['acceptance']['unproven_classes']
    forged = Record.from_json(
        {**first_schema(record), **unproven, 'schema': 2}, 'file')
    record_file.write_text(json.dumps({**forged.to_json(), 'plan_sha256': record['plan_sha256']}))
    assert Store(built[1]).record(record['key']) is not None
    with pytest.raises(EngineMissing):
        reopened(built)


def test_a_key_that_is_not_the_hash_of_the_inputs_is_refused(built):
    values = first_schema(built[2].record.to_json())
    values['inputs'] = {**values['inputs'], 'model': 'another'}
    with pytest.raises(InputError, match='key is not the hash of its inputs'):
        Record.from_json(values, 'file')


def test_a_record_of_0_1_0_is_read_and_proven_again_without_building(built, record_file, capsys):
    record = json.loads(record_file.read_text())
    record_file.write_text(json.dumps(first_schema(record), indent=1) + '\n')
    read = Store(built[1]).record(record['key'])
    assert read.acceptance.waived[0].text == 'w' and not read.vouched
    assert any('record is one of 0.1.0' in line for line in describe(read))
    assert main(['inspect', str(record_file.parent)]) == 0
    assert record['key'] in capsys.readouterr().out
    with pytest.raises(EngineMissing, match='trt-segmentation build'):
        reopened(built)
    lines = []
    again = build(Bundle.open(built[0]), backend='onnxruntime', store=built[1],
                  report=lines.append)
    assert lines[0] == 'proving the int8 engine of onnxruntime that is in the store'
    assert again.record.built == record['built']
    assert reopened(built).vouched


@pytest.mark.parametrize('name', ['int8_share', 'frames', 'classes', 'basis', 'failures'])
@pytest.mark.parametrize('value', [None, [], {}, 'x', -1, True, [[]], {'a': 'b'}, [1]])
def test_whatever_stands_in_a_record_of_0_1_0_it_is_read_or_absent(built, record_file, name,
                                                                   value):
    record = first_schema(json.loads(record_file.read_text()))
    record['acceptance'][name] = value
    record_file.write_text(json.dumps(record))
    read = Store(built[1]).record(record['key'])
    assert read is None or describe(read)


def test_the_method_of_0_1_0_still_opens(built):
    with Segmenter.open(built[0], backend='onnxruntime', store=built[1],
                        build_missing=False) as segmenter:
        assert segmenter.record.key == built[2].key
