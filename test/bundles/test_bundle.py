# SPDX-License-Identifier: Apache-2.0
"""The bundle on disk: what is opened, and what is refused before anything is done with it."""

import os
import subprocess

import pytest
from support.networks import fcn, write_bundle

from trt_segmentation.bundles import form, manifest
from trt_segmentation.bundles.bundle import Bundle, exposed
from trt_segmentation.bundles.cache import Cache
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.errors import InputError
from trt_segmentation.system import files


@pytest.fixture
def path(tmp_path):
    return write_bundle(tmp_path / 'bundle', fcn())


@pytest.fixture
def calibrated(path):
    """A bundle with a cache that its manifest and SHA256SUMS vouch for."""
    bundle = Bundle.open(path)
    cache = Cache.from_amax({'image': 255.0, 'relu1': 3.0})
    cache.write(bundle.cache_path)
    bundle.manifest_path.write_text(form.to_json(manifest.new(bundle, cache)))
    files.write_sums(bundle.path)
    return path


def test_paths_are_those_of_the_contract(path):
    bundle = Bundle.open(str(path))
    assert bundle.path == path
    assert bundle.model_path == path / 'model.onnx'
    assert bundle.cache_path == path / 'calibration.cache'
    assert bundle.manifest_path == path / 'calibration.json'
    assert bundle.golden_path == path / 'golden'


def test_a_missing_bundle_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match='trt-segmentation init'):
        Bundle.open(tmp_path / 'nowhere')
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='no such bundle directory'):
        Bundle.open(tmp_path / 'file')


def test_a_new_bundle_needs_no_sums_and_has_no_cache(path):
    bundle = Bundle.open(path)
    with pytest.raises(InputError, match='no calibration cache; run: trt-segmentation calibrate'):
        cache_of(bundle)


def test_a_calibrated_bundle_opens_and_gives_its_cache(calibrated):
    cache = cache_of(Bundle.open(calibrated))
    assert cache.amax('relu1') == pytest.approx(3.0)


def test_the_sums_are_those_that_sha256sum_checks(calibrated):
    result = subprocess.run(['sha256sum', '-c', 'SHA256SUMS'], cwd=calibrated,
                            capture_output=True, text=True, check=False,
                            env={**os.environ, 'LC_ALL': 'C'})
    assert result.returncode == 0, result.stdout
    assert sorted(result.stdout.split()[::2]) == [
        'calibration.cache:', 'calibration.json:', 'model.onnx:', 'model.yaml:']


@pytest.mark.parametrize('name', ['model.onnx', 'model.yaml', 'calibration.cache',
                                  'calibration.json'])
def test_a_changed_file_is_refused_and_named(calibrated, name):
    file = calibrated / name
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError) as error:
        Bundle.open(calibrated)
    assert str(file) in str(error.value)
    assert 'seal' in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['model.onnx', 'calibration.json'])
def test_a_missing_file_is_refused_and_named(calibrated, name):
    (calibrated / name).unlink()
    with pytest.raises(InputError, match=f'{name}: listed in SHA256SUMS, but missing'):
        Bundle.open(calibrated)


def test_a_file_too_many_is_refused_but_an_editors_is_not(calibrated):
    (calibrated / '.model.yaml.swp').write_text('')
    Bundle.open(calibrated)
    (calibrated / 'golden').mkdir()
    (calibrated / 'golden' / '000.png').write_bytes(b'')
    with pytest.raises(InputError, match=r'golden/000\.png: not listed'):
        Bundle.open(calibrated)


def test_a_cache_without_sums_may_be_half_written(calibrated):
    (calibrated / 'SHA256SUMS').unlink()
    with pytest.raises(InputError, match='SHA256SUMS: missing'):
        Bundle.open(calibrated)
    assert cache_of(Bundle.open(calibrated, verify=False))


@pytest.mark.parametrize('content', [b'garbage\n', b'\xff\xfe', b'0' * 64 + b' one space\n'])
def test_broken_sums_are_refused(calibrated, content):
    (calibrated / 'SHA256SUMS').write_bytes(content)
    with pytest.raises(InputError, match='SHA256SUMS'):
        Bundle.open(calibrated)


def test_sealed_again_it_opens_but_a_cache_of_another_network_stays_an_error(calibrated):
    write_bundle(calibrated, fcn(seed=1))
    files.write_sums(calibrated)
    with pytest.raises(InputError, match='made for a network'):
        cache_of(Bundle.open(calibrated))


def test_a_cache_of_another_preprocessing_is_an_error(calibrated):
    text = (calibrated / 'model.yaml').read_text()
    (calibrated / 'model.yaml').write_text(f'{text}input: {{mean: [1, 2, 3]}}\n')
    files.write_sums(calibrated)
    with pytest.raises(InputError, match='another preprocessing'):
        cache_of(Bundle.open(calibrated))


def test_the_hash_depends_on_all_that_decides_the_masks(calibrated, tmp_path):
    before = Bundle.open(calibrated).sha256
    assert Bundle.open(calibrated).sha256 == before
    hashes = {before}
    for name in ('model.yaml', 'model.onnx', 'calibration.cache'):
        data = (calibrated / name).read_bytes()
        if name == 'model.onnx':
            write_bundle(tmp_path / 'other', fcn(seed=2))
            (calibrated / name).write_bytes((tmp_path / 'other' / name).read_bytes())
        else:
            (calibrated / name).write_bytes(data + b'\n')
        hashes.add(Bundle.open(calibrated, verify=False).sha256)
        (calibrated / name).write_bytes(data)
    assert len(hashes) == 4


def test_two_processes_cannot_change_a_bundle_at_once(path):
    with Bundle.changing(path, ()), pytest.raises(InputError, match='in use by another process'):
        with Bundle.changing(path, ()):
            pass
    with Bundle.changing(path, ()):
        pass


@pytest.mark.parametrize('name', ['.', 'model.onnx', 'golden'])
@pytest.mark.parametrize('mode', [0o020, 0o002])
def test_who_else_can_write_to_a_bundle_is_told_and_refused_on_request(path, name, mode):
    (path / 'golden').mkdir()
    files.write_sums(path)
    for each in (path, *path.rglob('*')):
        each.chmod(each.stat().st_mode & ~0o022)
    assert exposed(path) == ''
    Bundle.open(path, private=True)
    (path / name).chmod((path / name).stat().st_mode | mode)
    assert 'other users can write to it' in exposed(path)
    Bundle.open(path)
    with pytest.raises(InputError, match='other users can write to it.*chmod -R go-w'):
        Bundle.open(path, private=True)
