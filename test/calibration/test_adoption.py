# SPDX-License-Identifier: Apache-2.0
"""A foreign cache is compared with the values that the network really has."""

from pathlib import Path
import re
import shlex
import shutil

import numpy as np
import pytest
from support.calibration import pictures, run, values_of
from support.networks import fcn, write_bundle

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import Cache
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.calibration.adoption import adopt
from trt_segmentation.cli import main
from trt_segmentation.errors import CheckFailed, command_line, InputError


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Return a calibrated bundle whose input tensor reaches exactly 2."""
    path = write_bundle(tmp_path_factory.mktemp('adopt') / 'bundle', fcn(),
                        input={'mean': [127.5] * 3, 'scale': [2 / 127.5] * 3})
    run(path, pictures(8), count=4, golden=4)
    return path


@pytest.fixture
def bundle(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'bundle')


@pytest.fixture
def scales(bundle):
    return dict(Cache.read(bundle / 'calibration.cache').scales)


def write(bundle, scales):
    path = bundle.parent / 'foreign.cache'
    Cache('8601', 'EntropyCalibration2', scales).write(path)
    return path


def test_our_own_scales_are_plausible(bundle, scales):
    said = []
    adopt(bundle, write(bundle, scales), say=said.append)
    assert not [line for line in said if not line.startswith(('replaces ', 'removes '))]


def test_scales_that_a_calibrator_may_well_give_are_plausible(bundle, scales):
    # TensorRT's entropy calibration clips long tails to a small part of the range.
    factors = {name: 1.0 if name == 'image' else factor
               for name, factor in zip(scales, np.geomspace(0.05, 4, len(scales)))}
    adopt(bundle, write(bundle, {name: scales[name] * factors[name] for name in scales}))


def test_another_normalization_is_refused(bundle, scales):
    # Made with pixels 0..255, where the preprocessing gives -2..2.
    path = write(bundle, {**scales, 'image': 255 / 127})
    with pytest.raises(CheckFailed, match='1 of .* scales do not fit the values, first image: the '
                                          'scale is for 255, the values reach 2: was it made'):
        adopt(bundle, path)
    Bundle.open(bundle)
    adopt(bundle, path, allow_implausible=True)


@pytest.mark.parametrize('value', [1e-30, 1e-7, 3.0, 1e30])
def test_scales_far_from_the_values_are_refused_with_a_table(bundle, scales, value, capsys):
    images = pictures(8)
    largest = np.abs(values_of(fcn(), bundle, images)['relu2']).max()
    assert not largest / 64 < value * 127 < largest * 8
    path = write(bundle, {**scales, 'relu2': value, 'score3': value / 2})
    assert main(['adopt', str(bundle), str(path)]) == 1
    err = capsys.readouterr().err.splitlines()
    assert sorted(line.split()[2].strip(':') for line in err[:-1]) == ['relu2', 'score3']
    assert '2 of ' in err[-1] and '--allow-implausible' in err[-1]


@pytest.mark.parametrize('value', [1e-45, 3e38])
def test_absurd_numbers_are_no_scales(bundle, scales, value):
    with pytest.raises(CheckFailed, match="no usable scale for 1 of .*'relu2'"):
        adopt(bundle, write(bundle, {**scales, 'relu2': value}))


def test_a_last_line_without_an_end_is_suspect(bundle, scales):
    path = write(bundle, scales)
    path.write_bytes(path.read_bytes()[:-3])  # two digits and the end of the line
    with pytest.raises(CheckFailed, match='its last line has no end'):
        adopt(bundle, path)


def test_without_golden_frames_it_says_what_was_not_compared(tmp_path, scales):
    path = write_bundle(tmp_path / 'other', fcn(),
                        input={'mean': [127.5] * 3, 'scale': [2 / 127.5] * 3})
    said = []
    adopt(path, write(path, scales), say=said.append)
    assert any('no golden frames' in line for line in said)


def contents(bundle):
    return {path.name: path.read_bytes() for path in bundle.iterdir() if path.is_file()}


def test_it_says_what_it_replaces_and_removes(bundle, scales, capsys):
    (bundle / 'calibration.html').write_text('a report')
    before = contents(bundle)
    assert {'calibration.npz', 'calibration.html', 'equalized.onnx'} <= set(before)
    assert main(['adopt', str(bundle), str(write(bundle, scales))]) == 0
    said = [line.removeprefix('trt-segmentation adopt: ')
            for line in capsys.readouterr().err.splitlines()]
    after = contents(bundle)
    replaced = [line for line in said if line.startswith('replaces')]
    assert len(replaced) == 1 and 'with 4 images' in replaced[0]
    assert {name for name in after if name in replaced[0]} == {
        'calibration.cache', 'calibration.json'}
    assert {line.split()[1].strip(',') for line in said if line.startswith('removes')} == (
        set(before) - set(after))
    # What was adopted is said too, and nothing is removed that is not there.
    assert main(['adopt', str(bundle), str(write(bundle, scales))]) == 0
    said = capsys.readouterr().err
    assert 'adopted from foreign.cache' in said and 'removes' not in said


def damaged(bundle):
    """Change one digit of a scale that nothing but the cache's hash can tell."""
    path = bundle / 'calibration.cache'
    text = path.read_text()
    at = text.index('relu2: ') + len('relu2: 0')
    path.write_text(f'{text[:at]}{int(text[at], 16) ^ 1:x}{text[at + 1:]}')
    return path


def test_a_cache_that_was_changed_is_vouched_for_by_no_command_that_is_advised(bundle, capsys):
    damaged(bundle)
    before = contents(bundle)
    commands, seen = [['build', str(bundle), '--store', str(bundle.parent / 'store')],
                      ['adopt', str(bundle), str(bundle / 'calibration.cache')]], []
    while commands:
        command = commands.pop()
        seen.append(command[0])
        assert main(command) == 2
        error = capsys.readouterr().err
        assert 'again from where' in error and 'Traceback' not in error
        assert contents(bundle) == before
        _, *advised = error.strip().split('trt-segmentation ')[1:]
        for each in advised:
            verb, *words = shlex.split(each.partition(',')[0].rstrip(')'))
            # What needs the user's own files replaces the cache with them.
            if verb not in seen and not {'DIRECTORY', 'CACHE'} & set(words):
                commands.append([verb, *words])
    assert seen == ['adopt', 'build', 'seal']


def test_the_changed_cache_of_another_bundle_is_not_adopted_either(bundle, tmp_path, scales):
    other = shutil.copytree(bundle, tmp_path / 'other')
    adopt(other, bundle / 'calibration.cache')  # whole
    damaged(bundle)
    link = tmp_path / 'link.cache'
    link.symlink_to(bundle / 'calibration.cache')
    for path in (bundle / 'calibration.cache', link):
        with pytest.raises(InputError, match='not the cache that calibration.json beside it'):
            adopt(other, path)
    # Of an adopted one too, for which the advice is another.
    damaged(other)
    with pytest.raises(InputError, match='beside it'):
        adopt(other, other / 'calibration.cache')
    with pytest.raises(InputError, match=re.escape(command_line('adopt', other, 'CACHE'))):
        cache_of(Bundle.open(other, verify=False))
    adopt(other, write(other, scales))
    cache_of(Bundle.open(other))


def test_a_bundle_does_not_adopt_what_it_was_calibrated_with(bundle, monkeypatch):
    before = contents(bundle)
    monkeypatch.chdir(bundle)
    with pytest.raises(InputError, match='calibrated with it; there is nothing to adopt'):
        adopt('.', Path('calibration.cache'))
    assert contents(bundle) == before
