# SPDX-License-Identifier: Apache-2.0
"""The calibration cache against the published format and the rules of its other readers."""

import math
import struct

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from trt_segmentation.bundles.cache import Cache, compare, coverage, version_token
from trt_segmentation.errors import InputError

TEXT = b'TRT-8601-EntropyCalibration2\ninput_1:0: 3c010a14\nconv1: 3e000000\n'

names = st.text(st.characters(blacklist_characters='\r\n', blacklist_categories=('Cs',)),
                min_size=1)
floats32 = st.floats(width=32, allow_nan=False)


def test_reads_what_tensorrt_wrote():
    cache = Cache.parse(TEXT)
    assert (cache.version, cache.algorithm) == ('8601', 'EntropyCalibration2')
    assert list(cache.scales) == ['input_1:0', 'conv1']
    # Sign 0, exponent 0x78, fraction 0x010a14.
    assert cache.scales['input_1:0'] == 2.0 ** (0x78 - 127) * (1 + 0x010a14 / 2 ** 23)
    assert cache.scales['conv1'] == 0.125
    assert cache.amax('conv1') == 15.875
    assert cache.to_bytes() == TEXT


def test_writes_amax_over_127_as_big_endian_hex():
    cache = Cache.from_amax({'a': 1.0, 'b:0': 254.0}, tensorrt_version='10.3.0')
    expected = np.array([1 / 127], '>f4').tobytes().hex()
    assert cache.to_bytes().decode() == (
        f'TRT-100300-EntropyCalibration2\na: {expected}\nb:0: 40000000\n')


@pytest.mark.parametrize('version, token', [
    ('7.0.0', '7000'), ('7.1.3', '7103'), ('8.2.3', '8203'), ('8.5.2.2', '8502'),
    ('8.6.1', '8601'), ('8.6.1.post1', '8601'), ('9.1.0', '9100'), ('10.3.0', '100300'),
    ('10.13.0.35', '101300'), ('10.3', '100300'),
])
def test_version_tokens_are_those_seen_in_files(version, token):
    assert version_token(version) == token


def test_version_that_is_none():
    with pytest.raises(InputError, match="found 'newest'"):
        version_token('newest')


@pytest.mark.parametrize('header', [
    'TRT-7134-EntropyCalibration2', 'TRT-101300-MinMaxCalibration', 'TRT-7000-EntropyCalibration',
    'TRT-8600-LegacyCalibration',
])
def test_header_variants(header):
    assert Cache.parse(f'{header}\n'.encode()).to_bytes() == f'{header}\n'.encode()


def test_tolerates_crlf_blank_lines_case_short_hex_and_no_final_newline():
    cache = Cache.parse(b'TRT-8601-MinMaxCalibration\r\n\r\na: 0\r\nb: 3F800000\r\n  \r\nc: 1')
    assert cache.scales == {'a': 0.0, 'b': 1.0, 'c': 2.0 ** -149}


@pytest.mark.parametrize('text, message', [
    (b'', r'cache:1: found \'\', expected a header'),
    (b'a: 3f800000\n', r'cache:1: .*expected a header'),
    (b'TRT-x-EntropyCalibration2\n', r'cache:1:'),
    (b'TRT-8601-EntropyCalibration2\na 3f800000\n', r'cache:2: .*expected a tensor name'),
    (b'TRT-8601-EntropyCalibration2\n\n: 3f800000\n', r'cache:3:'),
    (b'TRT-8601-EntropyCalibration2\na: 3f8000000\n', r'cache:2:'),
    (b'TRT-8601-EntropyCalibration2\na: \n', r'cache:2:'),
    (b'TRT-8601-EntropyCalibration2\na: 0x3f80\n', r'cache:2:'),
    (b'TRT-8601-EntropyCalibration2\na: 0.5\n', r'cache:2:'),
    (b'TRT-8601-EntropyCalibration2\na: 1\nb: 1\na: 1\n', r"cache:4: tensor 'a' appears a second"),
    (b'\x00\xff\xfe', 'binary data'),
])
def test_refuses_garbage_with_the_line(text, message):
    with pytest.raises(InputError, match=message):
        Cache.parse(text, 'cache')


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match='No such file'):
        Cache.read(tmp_path / 'none.cache')


def test_unusable_scales_are_listed_apart():
    cache = Cache.parse(b'TRT-8601-EntropyCalibration2\ngood: 3f800000\ninf: 7f800000\n'
                        b'nan: 7fc00000\nzero: 0\nnegative: bf800000\n')
    assert list(cache.usable()) == ['good']
    assert list(cache.unusable()) == ['inf', 'nan', 'zero', 'negative']
    # They are kept: rewriting a foreign file must not change what it says.
    assert Cache.parse(cache.to_bytes()).to_bytes() == cache.to_bytes()


def test_rewriting_the_header_leaves_the_rest_alone():
    rewritten = Cache.parse(TEXT).with_header('10.13.0').to_bytes()
    assert rewritten == TEXT.replace(b'8601', b'101300')
    assert Cache.parse(TEXT).with_header('8.5.2', 'MinMaxCalibration').to_bytes().startswith(
        b'TRT-8502-MinMaxCalibration\n')


@pytest.mark.parametrize('name', ['', 'two\nlines', 'carriage\rreturn'])
def test_names_that_no_cache_can_hold(name):
    with pytest.raises(InputError, match='cannot stand in a calibration cache'):
        Cache.from_amax({name: 1.0}).to_bytes()


def test_write_is_what_read_gives_back(tmp_path):
    Cache.parse(TEXT).write(tmp_path / 'calibration.cache')
    assert (tmp_path / 'calibration.cache').read_bytes() == TEXT
    assert Cache.read(tmp_path / 'calibration.cache') == Cache.parse(TEXT)


@given(st.dictionaries(names.filter(lambda name: name.strip()), floats32))
def test_round_trip(scales):
    cache = Cache('8601', 'EntropyCalibration2', scales)
    again = Cache.parse(cache.to_bytes())
    assert list(again.scales.items()) == list(scales.items())


@given(st.binary())
def test_any_bytes_are_read_or_refused(data):
    for candidate in (data, b'TRT-8601-EntropyCalibration2\n' + data):
        try:
            cache = Cache.parse(candidate)
        except InputError:
            continue
        assert Cache.parse(cache.to_bytes()).to_bytes() == cache.to_bytes()


def read_like_trtexec(text):
    """Follow readScalesFromCalibrationCache of trtexec: last colon, then stoi(8 digits, 16)."""
    scales = {}
    for line in text.split('\n'):
        colon = line.rfind(':')
        if colon < 0:
            continue
        bits = int(line[colon + 2:colon + 2 + 8], 16)
        assert bits < 2 ** 31, 'stoi throws'
        scales[line[:colon]] = struct.unpack('<f', struct.pack('<i', bits))[0]
    return scales


def read_like_onnxruntime(text):
    """Follow ONNX Runtime's TensorRT provider: TRT- in line 1, then the first colon; amax."""
    header, *lines = text.split('\n')
    assert 'TRT-' in header
    ranges = {}
    for line in filter(None, lines):
        name, _, value = line.partition(':')
        ranges[name] = struct.unpack('<f', struct.pack('<I', int(value.strip(), 16)))[0] * 127
    return ranges


def read_like_modelopt(text):
    """Follow ModelOpt: split at ': ', bytes.fromhex, network byte order."""
    scales = {}
    for line in text.splitlines()[1:]:
        name, value = line.split(': ')
        scales[name] = struct.unpack('!f', bytes.fromhex(value))[0]
    return scales


def test_other_readers_see_the_same_scales():
    amax = {'image': 2.8, '/conv1/Conv_output_0': 6.0, 'tiny': 1e-30}
    cache = Cache.from_amax(amax)
    text = cache.to_bytes().decode()
    assert read_like_trtexec(text) == cache.scales
    assert read_like_modelopt(text) == cache.scales
    assert read_like_onnxruntime(text) == pytest.approx(amax, rel=1e-6)


def test_trtexec_reads_names_with_colons():
    assert read_like_trtexec(TEXT.decode()) == Cache.parse(TEXT).scales


def test_compare():
    first = Cache('8601', 'EntropyCalibration2', {'a': 1.0, 'b': 2.0, 'c': math.nan})
    second = Cache('8601', 'EntropyCalibration2', {'b': 2.5, 'c': math.nan, 'd': 1.0})
    difference = compare(first, second)
    assert difference.only_first == ('a',) and difference.only_second == ('d',)
    assert difference.changed == (('b', 2.0, 2.5),)
    assert difference.same_header and not difference.identical
    assert compare(first, first).identical
    assert not compare(first, first.with_header('10.3.0')).identical


def test_coverage():
    cache = Cache('8601', 'EntropyCalibration2',
                  {'image': 1.0, 'a': 1.0, 'b': math.inf, 'Reshape__12': 1.0})
    result = coverage(cache, [('conv1', ['image', 'a']), ('conv2', ['a', 'b']),
                              ('add', ['b', 'b', 'c'])])
    assert result.covered == ('image', 'a')
    assert result.missing == {'b': ('conv2', 'add'), 'c': ('add',)}
    assert result.stale == ('Reshape__12',)
