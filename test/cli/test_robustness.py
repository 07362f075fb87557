# SPDX-License-Identifier: Apache-2.0
"""Hostile and broken bundles and stores: one clear line, in bounded time and memory."""

import os
from pathlib import Path
import resource
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import onnx
import pytest
from support.networks import fcn, write_bundle

from trt_segmentation.bundles import form, golden
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.labels import parse_labels
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.bundles.spec import load_spec
from trt_segmentation.engines.acceptance import examine
from trt_segmentation.errors import InputError, shown
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.system import files

BOMB = 'a: &a [x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'{b}: &{b} [{", ".join([f"*{a}"] * 9)}]\n' for a, b in zip('abcdefgh', 'bcdefghi'))
MERGE_BOMB = 'a: &a {x: 1}\n' + ''.join(
    f'{b}: &{b} {{<<: [{", ".join([f"*{a}"] * 9)}]}}\n' for a, b in zip('abcdefgh', 'bcdefghi'))


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / 'bundle', fcn())


@pytest.mark.parametrize('text, message', [
    (BOMB, "unknown key 'a'|version is missing"),
    (MERGE_BOMB, r"line 2: not valid YAML: key '<<' is not taken here"),
    ('version: 1\nmodel: m.onnx\nlabels: ' + BOMB[3:].replace('\n', '\n  '), 'YAML'),
    ('&a [*a]', 'expected a mapping'),
    ('version: 1\nmodel: model.onnx\nlabels: &a [*a]', 'labels.0.: expected'),
    ('[' * 100_000, 'nested too deeply'),
    ('{a: ' * 5_000, 'nested too deeply'),
    ('version: 1\nversion: 1\n', "line 2: not valid YAML: key 'version' is there twice"),
    ('version: 1\ninput: {size: [1, 1], size: [2, 2]}', "line 2: .* key 'size' is there twice"),
    ('version: 2026-99-99', 'not valid YAML: month must be in 1..12'),
    ('version: ' + '9' * 5000, 'version: expected 1|not valid YAML: Exceeds the limit'),
    ('version: 0x' + 'f' * 9000, 'version: expected 1'),
    ('version: !!timestamp nonsense', 'not valid YAML'),
    ("version: !!int ''", 'not valid YAML'),
    ('version: !!python/object/apply:os.system [ls]', 'not valid YAML'),
    ('version: "\x00"', 'not valid YAML'),
    ('? [a, b]\n: 1', 'not valid YAML'),
    ('version: 1\nmodel: "a\\nb.onnx"', 'model: expected the name of an ONNX file'),
    ('version: 1\nmodel: "\\ud800.onnx"', 'model: expected the name of an ONNX file'),
    ('version: 1\nmodel: "\\0"', 'model: expected the name of an ONNX file'),
    (f'version: 1\n{"k" * 900}: 1\nmodel: model.onnx', r"unknown key 'kkk.*\.\.\..*kkk'"),
])
def test_hostile_yaml_is_refused_in_one_short_line(bundle, text, message):
    (bundle / 'model.yaml').write_text(text)
    start = time.process_time()
    with pytest.raises(InputError, match=message) as error:
        Bundle.open(bundle)
    assert time.process_time() - start < 20  # a bomb would take years
    assert '\n' not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize('section', [
    'input: {mean: [1%s, 1, 1]}', 'input: {scale: [1%s, 1, 1]}',
    'calibration: {ranges: {relu1: 1%s}}', 'acceptance: {min_agreement: 1%s}'])
@pytest.mark.parametrize('zeros', ['0' * 400, '.0e+300', '.0e-300'])
def test_numbers_beyond_float32_are_refused(bundle, section, zeros):
    (bundle / 'model.yaml').write_text(f'version: 1\nmodel: model.onnx\n{section % zeros}\n')
    if zeros == '.0e-300' and ('mean' in section or 'agreement' in section):
        load_spec(bundle / 'model.yaml')  # as good as zero
    else:
        with pytest.raises(InputError, match='expected'):
            load_spec(bundle / 'model.yaml')


def test_a_byte_order_mark_and_aliases_are_fine(tmp_path):
    path = tmp_path / 'file.yaml'
    path.write_bytes('\ufeffa: &a [1, 2]\nb: *a\n'.encode())
    assert form.read_yaml(path) == {'a': [1, 2], 'b': [1, 2]}


def test_what_is_no_small_plain_file_is_not_read(tmp_path):
    path = tmp_path / 'file.yaml'
    path.write_text('a: 1\n' * 300_000)
    with pytest.raises(InputError, match='more than 131072 bytes'):
        form.read_yaml(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match='not a regular file'):
        form.read_yaml(path)
    with pytest.raises(InputError, match='not a regular file'):
        form.read_yaml('/dev/zero')
    with pytest.raises(InputError, match='Is a directory'):
        form.read_yaml(tmp_path)


def test_values_are_shown_shortly_whatever_they_are():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    recursive = {}
    recursive['a'] = recursive
    for value in (deep, recursive, 'x' * 10_000, 1 << 100_000, list(range(10_000)), b'x' * 10_000):
        assert len(shown(value)) < 300
    assert shown('text') == "'text'" and shown([1, 2.5, None]) == '[1, 2.5, None]'


def test_labels_that_masks_or_metrics_could_not_tell_apart_are_refused():
    label = {'name': 'road', 'train_id': 0, 'color': [1, 2, 3], 'category': 'flat'}
    with pytest.raises(InputError, match="name 'road' is also that of 'road', train_id 0"):
        parse_labels([label, {**label, 'train_id': 1}], 'f')
    with pytest.raises(InputError, match='found 300 entries, expected at most 256'):
        parse_labels([label] * 300, 'f')


def test_weights_in_other_files_are_refused_for_no_hash_covers_them(tmp_path):
    path = write_bundle(tmp_path / 'bundle', fcn())
    onnx.save(fcn(), str(path / 'model.onnx'), save_as_external_data=True, location='weights.bin',
              size_threshold=0)
    with pytest.raises(InputError, match='model.onnx keeps weights in other files.*init'):
        Bundle.open(path)


@pytest.mark.parametrize('make', [
    lambda path, outside: path.symlink_to(outside),
    lambda path, outside: path.symlink_to(path.name),
    lambda path, outside: os.mkfifo(path),
], ids=['link', 'loop', 'pipe'])
@pytest.mark.parametrize('name', ['golden', 'model.yaml', 'SHA256SUMS', 'more'])
def test_a_sealed_bundle_has_plain_files_only(bundle, tmp_path, make, name):
    outside = tmp_path / 'outside'
    outside.mkdir()
    (outside / '000.png').write_bytes(b'picture that no hash vouches for')
    files.write_sums(bundle)
    (bundle / name).unlink(missing_ok=True)
    make(bundle / name, outside)
    with pytest.raises(InputError, match='a link, a device or a pipe|missing|cannot be read'):
        Bundle.open(bundle)
        cache_of(Bundle.open(bundle))


def test_names_that_sha256sum_would_escape_are_refused(bundle):
    for name in (b'line\nbreak', b'back\\slash', b'not utf-8 \xff'):
        path = os.fsencode(bundle) + b'/' + name
        Path(os.fsdecode(path)).write_bytes(b'')
        with pytest.raises(InputError, match='cannot stand in SHA256SUMS'):
            files.write_sums(bundle)
        os.unlink(path)
    files.write_sums(bundle)


@pytest.mark.parametrize('name', ['/etc/hostname', '../bundle/model.yaml', './model.yaml',
                                  'golden/../model.yaml'])
def test_sums_of_files_elsewhere_are_refused_unread(bundle, name):
    files.write_sums(bundle)
    with (bundle / 'SHA256SUMS').open('a') as sums:
        sums.write(f'{"0" * 64}  {name}\n')
    with pytest.raises(InputError, match='listed in SHA256SUMS, but missing'):
        Bundle.open(bundle)


def test_sums_with_the_line_ends_of_windows_are_read(bundle):
    files.write_sums(bundle)
    sums = bundle / 'SHA256SUMS'
    sums.write_bytes(sums.read_bytes().replace(b'\n', b'\r\n'))
    Bundle.open(bundle)


def test_hidden_golden_frames_which_nothing_vouches_for_are_not_used(tmp_path):
    for name in ('000', '.001'):
        for suffix, picture in (('.png', np.zeros((4, 4, 3), np.uint8)),
                                ('.mask.png', np.zeros((4, 4), np.uint8))):
            cv2.imwrite(str(tmp_path / f'{name}{suffix}'), picture)
    assert [name for name, _, _ in golden.read(tmp_path)] == ['000']


def test_golden_masks_that_ignore_every_pixel_prove_nothing(bundle):
    class Anything:
        def segment(self, image, want):
            return type('Masks', (), {'classes': np.full(image.shape[:2], 255, np.uint8)})

    (bundle / 'golden').mkdir()
    cv2.imwrite(str(bundle / 'golden' / '000.png'), np.zeros((32, 64, 3), np.uint8))
    cv2.imwrite(str(bundle / 'golden' / '000.mask.png'), np.full((32, 64), 255, np.uint8))
    files.write_sums(bundle)
    acceptance = examine(Bundle.open(bundle), Anything(), [], 'fp32')
    assert [failure.kind for failure in acceptance.failures] == ['nothing_judged']


def test_a_directory_that_cannot_take_its_place_puts_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / 'target'
    with files.atomic_directory(target) as directory:
        (directory / 'old').touch()
    replace, calls = os.replace, []

    def failing(source, destination):
        calls.append(destination)
        if len(calls) == 2:
            raise OSError(5, 'Input/output error')
        replace(source, destination)
    monkeypatch.setattr(os, 'replace', failing)
    monkeypatch.setattr(files, '_exchange', lambda first, second: False)
    with pytest.raises(InputError, match='target: cannot be written: Input/output error'):
        with files.atomic_directory(target) as directory:
            (directory / 'new').touch()
    assert [path.name for path in tmp_path.iterdir()] == ['target']
    assert (target / 'old').exists()


def test_what_was_put_aside_goes_back_where_nothing_took_its_place(tmp_path):
    # As left by a process that was killed between two renames.
    (tmp_path / '.engine.previous').mkdir()
    (tmp_path / '.engine.previous' / 'plan').touch()
    (tmp_path / '.engine.0123456789ab').mkdir()
    files.remove_temporary(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['engine']
    assert (tmp_path / 'engine' / 'plan').exists()


def test_a_killed_writers_folder_goes_with_the_next_and_a_living_ones_stays(tmp_path):
    left = tmp_path / '.target.0123456789ab'
    left.mkdir()
    other = tmp_path / '.other.0123456789ab'
    other.mkdir()
    with files.atomic_directory(tmp_path / 'target') as first:
        assert not left.exists() and other.exists()
        with files.atomic_directory(tmp_path / 'target') as second:
            assert first.exists() and second.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, 'target']


WRITER = """
import sys
from trt_segmentation.system import files
i = 0
while True:
    i += 1
    content = str(i) * (1 << 16)
    files.atomic_write(sys.argv[1] + '/file', content)
    with files.atomic_directory(sys.argv[1] + '/directory') as directory:
        for name in 'ab':
            files.atomic_write(directory / name, content)
    print(i, flush=True)
"""


def test_a_killed_writer_leaves_nothing_half_written(tmp_path):
    for delay in np.linspace(0, 0.02, 8):
        with subprocess.Popen([sys.executable, '-c', WRITER, tmp_path],
                              stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        assert len(set((tmp_path / 'file').read_text())) <= 10
        assert (tmp_path / 'file').stat().st_size % (1 << 16) == 0
        if (tmp_path / 'directory').exists():
            contents = {(tmp_path / 'directory' / name).read_bytes() for name in 'ab'}
            assert len(contents) == 1


def test_a_file_beyond_the_limit_is_one_line_and_leaves_the_old_one(tmp_path):
    path = tmp_path / 'file'
    files.atomic_write(path, 'old')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(InputError, match='file: cannot be written: File too large'):
            files.atomic_write(path, b'x' * (1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def broken_name(model):
    return model.SerializeToString().replace(b'score3_node', b'score\xff_node')


def broken_weight(model):
    weight = next(t for t in model.graph.initializer if t.name == 'score3_weight')
    weight.raw_data = weight.raw_data[:-4]
    return model.SerializeToString()


def broken_type(model):
    weight = next(t for t in model.graph.initializer if t.name == 'score3_weight')
    weight.data_type = 99
    return model.SerializeToString()


@pytest.mark.parametrize('damage', [broken_name, broken_weight, broken_type])
def test_a_damaged_network_that_onnx_takes_for_valid_is_refused(tmp_path, damage):
    path = tmp_path / 'model.onnx'
    path.write_bytes(damage(fcn()))
    with pytest.raises(InputError, match='model.onnx: not a valid ONNX model') as error:
        onnx_model.load(path)
    assert '\n' not in str(error.value)
