# SPDX-License-Identifier: Apache-2.0
"""Typed records from plain values, and what was written by 0.1.0."""

from dataclasses import dataclass, field, fields, make_dataclass
import hashlib
import json
from pathlib import Path

import pytest
import yaml

from trt_segmentation.bundles import form, manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.spec import AcceptanceSpec, InputSpec
from trt_segmentation.engines.acceptance import basis
from trt_segmentation.errors import InputError

OLD = Path(__file__).parent / 'data' / 'bundle-0.1.0'  # made and sealed by release 0.1.0


def test_a_bundle_of_0_1_0_stays_valid():
    bundle = Bundle.open(OLD)
    cache, document = manifest.verify(bundle)
    assert document.counts == manifest.Counts(asked=4, used=4, golden=2, skipped=0)
    assert document.images[0].name == '000002' and document.tuning is None
    assert document.tensors['relu2'].method == 'minmax'
    assert document.tensors['relu2'].scale == cache.scales['relu2']
    # What 0.1.0 printed for this bundle.
    assert bundle.spec.input.sha256 == (
        '8ed34ac8371f5a76fe963a3c1b0025c9080761373cdee2b255bf99f0a9a51c4c')
    assert basis(bundle) == (
        '1a94473cfa8a65535c72cd314cee0930f8d6536aa38579c7ea808a106487a995')


@pytest.mark.parametrize('kind', [InputSpec, AcceptanceSpec])
def test_a_new_field_with_its_default_changes_no_hash(kind):
    grown = make_dataclass('Grown', [('later', float, field(default=0.5, metadata=form.ADDED))],
                           bases=(kind,), frozen=True)
    given = ('image', (32, 64)) if kind is InputSpec else ()
    assert form.contract(grown(*given)) == form.contract(kind(*given))
    assert form.contract(grown(*given, later=0.25))['later'] == 0.25


def test_the_hash_of_an_input_is_that_of_its_canonical_json():
    text = ('{"color":"bgr","fit":"stretch","interpolation":"linear","mean":[71.6,82.1,72.31],'
            '"scale":[1.0,1.0,1.0],"size":[32,64],"tensor":"image"}')
    assert InputSpec('image', (32, 64)).sha256 == hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Inner:
    x: float
    y: int | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    pair: tuple[int, int] = (1, 2)
    inner: tuple[Inner, ...] = ()
    table: dict[str, float | str] = field(default_factory=dict)
    on: bool = False


def test_a_record_is_what_its_json_says():
    value = {'name': 'a', 'pair': [3, 4], 'inner': [{'x': 1}, {'x': 2.5, 'y': 7}],
             'table': {'t': 1, 'u': 'float'}, 'on': True}
    found = form.record(Outer, value, 'file')
    assert found == Outer('a', (3, 4), (Inner(1.0), Inner(2.5, 7)), {'t': 1.0, 'u': 'float'}, True)
    assert form.record(Outer, json.loads(form.to_json(found)), 'file') == found


@pytest.mark.parametrize('value, message', [
    ([], r'file: expected a mapping of keys to values, found \[\]'),
    ({}, 'file: key name is missing'),
    ({'name': 5}, 'file: name: expected a text, found 5'),
    ({'name': 'a', 'more': 1}, "file: unknown key 'more'; expected one of name, pair"),
    ({'name': 'a', 'pair': [1]}, r'file: pair: expected 2 values, found \[1\]'),
    ({'name': 'a', 'pair': [1, 2.0]}, r'file: pair\[1\]: expected an integer, found 2.0'),
    ({'name': 'a', 'pair': [True, 1]}, r'file: pair\[0\]: expected an integer, found True'),
    ({'name': 'a', 'inner': [{'x': 'b'}]}, r"file: inner\[0\].x: expected a number, found 'b'$"),
    ({'name': 'a', 'inner': [{'x': '1e-3'}]}, "expected a number, found '1e-3'; write 0.001 for"),
    ({'nam': 'a'}, "unknown key 'nam'; expected one of .*; did you mean name[?]"),
    ({'name': 'a', 'inner': [{'x': 10**400}]}, 'expected a number'),
    ({'name': 'a', 'inner': 5}, 'file: inner: expected a list, found 5'),
    ({'name': 'a', 'table': {'t': None}}, 'file: table.t: expected a text, found None'),
    ({'name': 'a', 'on': 1}, 'file: on: expected true or false, found 1'),
    ({'name': None}, 'file: name: expected a text, found None'),
])
def test_what_is_no_record_names_the_key(value, message):
    with pytest.raises(InputError, match=message):
        form.record(Outer, value, 'file')


@pytest.mark.parametrize('text, value', [
    ('1e-3', 0.001), ('1e20', 1e20), ('-2E+30', -2e30), ('1,5', 1.5), ('1/255', 1 / 255),
    ('1/0.229/255', 1 / 0.229 / 255), ('1e-9', 1e-9)])
def test_what_yaml_takes_for_a_text_is_told_as_yaml_takes_it_for_a_number(text, value):
    assert isinstance(yaml.safe_load(text), str)
    word, told, *rest = form.as_number(text).split()
    assert (word, rest) == ('write', ['for', text])
    assert yaml.safe_load(told) == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize('text', ['', 'a', '1/0', '1/b', 'nan', 'inf', '1e999', '1.2.3', '1/'])
def test_what_is_no_number_is_not_told_as_one(text):
    assert form.as_number(text) == ''


@pytest.mark.parametrize('text, message', [
    ('[' * 200_000, 'nested too deeply'), ('{"a": NaN}', 'NaN is no number of JSON'),
    ('{"a": 1, "a": 2}', "key 'a' is there twice"), ('\xff', 'not valid JSON'),
    ('{"a": -Infinity}', '-Infinity is no number'),
])
def test_json_that_is_refused(tmp_path, text, message):
    path = tmp_path / 'x.json'
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(InputError, match=message):
        form.read_json(path)


def test_files_are_read_within_limits(tmp_path, monkeypatch):
    path = tmp_path / 'x'
    path.write_text(' ' * (form.MAX_YAML_BYTES + 1))
    with pytest.raises(InputError, match='more than 131072 bytes'):
        form.read_yaml(path)
    monkeypatch.setattr(form, 'MAX_JSON_BYTES', 1000)
    with pytest.raises(InputError, match='more than 1000 bytes'):
        form.read_json(path)


def test_every_field_that_came_later_says_so():
    # A field without the mark would change the hash of every bundle that there is.
    first = {'tensor', 'size', 'color', 'mean', 'scale', 'fit', 'interpolation', 'min_agreement',
             'min_class_agreement', 'min_int8_share', 'kind', 'upsample'}
    for kind in (InputSpec, AcceptanceSpec, type(Bundle.open(OLD).spec.output)):
        for entry in fields(kind):
            assert entry.name in first or entry.metadata.get('added'), entry.name
