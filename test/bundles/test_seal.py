# SPDX-License-Identifier: Apache-2.0
"""Only `seal` vouches for what somebody changed; it says what that is."""

import shutil

import pytest
from support.calibration import pictures, run, write_pictures
from support.networks import fcn, write_bundle

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.bundles.seal import seal
from trt_segmentation.calibration.adoption import adopt
from trt_segmentation.calibration.run import record
from trt_segmentation.cli import main
from trt_segmentation.errors import command_line, InputError
from trt_segmentation.system import files


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    path = write_bundle(tmp_path_factory.mktemp('seal') / 'bundle', fcn())
    run(path, pictures(6), count=4, golden=2)
    return path


@pytest.fixture
def bundle(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'bundle')


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


CHANGES = {
    'calibrate': lambda bundle: run(bundle, pictures(4, seed=9)),  # none is a golden frame
    'adopt': lambda bundle: adopt(bundle, bundle.parent / 'made.cache'),
    'golden': lambda bundle: record(bundle, pictures(3, seed=5), count=2),
}
REPLACED = {'calibrate': ('calibration.cache', 'calibration.json'),
            'adopt': ('calibration.cache', 'calibration.json'),
            'golden': ('golden/000.png', 'golden/001.mask.png')}


@pytest.mark.parametrize('name', ['model.onnx', 'model.yaml', 'calibration.json',
                                  'calibration.cache', 'golden/000.png', 'golden/001.mask.png'])
@pytest.mark.parametrize('command', CHANGES)
def test_damage_is_never_vouched_for(bundle, command, name):
    shutil.copy(bundle / 'calibration.cache', bundle.parent / 'made.cache')
    flip(bundle / name)
    if name in REPLACED[command]:
        CHANGES[command](bundle)
        Bundle.open(bundle)
    else:
        with pytest.raises(InputError, match=f'{name}: sha256 is not the one.*seal'):
            CHANGES[command](bundle)
        with pytest.raises(InputError, match=f'{name}: sha256 is not the one'):
            Bundle.open(bundle)


def test_it_says_what_changed(bundle, capsys):
    (bundle / 'model.yaml').write_text((bundle / 'model.yaml').read_text() + '# a comment\n')
    (bundle / 'notes.txt').write_text('of mine')
    (bundle / 'golden' / '001.png').unlink()
    (bundle / 'golden' / '001.mask.png').unlink()
    assert main(['seal', str(bundle)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        'missing    golden/001.mask.png', 'missing    golden/001.png',
        'changed    model.yaml', 'not listed notes.txt', f'sealed     {bundle}',
        f'next       {command_line("build", bundle)}']
    cache_of(Bundle.open(bundle))
    assert main(['seal', str(bundle)]) == 0
    assert 'unchanged' in capsys.readouterr().out


def test_a_changed_contract_is_sealed_and_then_calibrated(bundle, tmp_path, capsys):
    text = (bundle / 'model.yaml').read_text()
    (bundle / 'model.yaml').write_text(f'{text}input: {{mean: [1, 2, 3]}}\n')
    images = write_pictures(tmp_path / 'images', 6)
    calibrate = ['calibrate', str(bundle), '--images', str(images), '--count', '4', '--golden',
                 '2', '--no-report']
    assert main(calibrate) == 2
    assert command_line('seal', bundle) in capsys.readouterr().err
    assert main(['seal', str(bundle)]) == 0
    assert 'with another preprocessing' in capsys.readouterr().out
    with pytest.raises(InputError, match='another preprocessing'):
        cache_of(Bundle.open(bundle))
    assert main(calibrate) == 0
    cache_of(Bundle.open(bundle))


@pytest.mark.parametrize('name, message', [
    ('calibration.cache', 'sha256 is'), ('golden/000.png', '000.png'),
])
def test_what_no_hash_can_make_good_is_not_sealed(bundle, name, message):
    (bundle / name).write_bytes((bundle / name).read_bytes()[:-20])
    with pytest.raises(InputError, match=message):
        seal(bundle)


@pytest.mark.parametrize('key, value, message', [
    ('exclude', '[/gibtsnicht]', "exclude: the graph has no node '/gibtsnicht'"),
    ('ranges', '{gibtsnicht: 3}', "ranges: the network has no float tensor 'gibtsnicht'"),
])
def test_what_build_would_refuse_of_the_contract_is_not_sealed(bundle, key, value, message,
                                                               capsys):
    contract = bundle / 'model.yaml'
    contract.write_text(f'{contract.read_text()}calibration: {{{key}: {value}}}\n')
    files.write_sums(bundle)  # as somebody may who does not call seal
    for command in (['seal'], ['inspect'], ['calibrate', '--images', str(bundle / 'golden')]):
        assert main([command[0], str(bundle), *command[1:]]) == 2
        assert f'{contract}: calibration.{message}' in capsys.readouterr().err


def test_broken_sums_are_made_anew(bundle):
    (bundle / 'SHA256SUMS').write_text('garbage\n')
    with pytest.raises(InputError, match='line 1'):
        Bundle.open(bundle)
    assert {kind for _, kind in seal(bundle).differences} == {'not listed'}
    Bundle.open(bundle)


def test_golden_frames_without_sums_prove_nothing(bundle):
    for name in ('SHA256SUMS', 'calibration.cache', 'calibration.json'):
        (bundle / name).unlink()
    with pytest.raises(InputError, match='SHA256SUMS: missing, so golden may be'):
        Bundle.open(bundle)
    with pytest.raises(InputError, match='SHA256SUMS: missing, so golden may be'):
        run(bundle, pictures(4))
    seal(bundle)
    Bundle.open(bundle)
