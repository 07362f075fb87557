# SPDX-License-Identifier: Apache-2.0
"""Which images become golden frames, who judges them, and what is said before the work."""

from html import unescape
import json
from pathlib import Path
import re
import shlex

import cv2
import numpy as np
import onnx
from onnx import helper, TensorProto
import pytest
from support.bundles import save
from support.calibration import pictures, run, write_pictures
from support.networks import Builder, fcn, write_bundle
import yaml

from trt_segmentation import calibrate
from trt_segmentation.bundles import golden, manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.calibration.run import record
from trt_segmentation.cli import main
from trt_segmentation.errors import command_line, InputError
from trt_segmentation.system import files

LABELS = [{'name': name, 'train_id': i, 'color': [i, i, i]}
          for i, name in enumerate(('dark', 'blue', 'green', 'red'))]


def colors(kind='logits'):
    """Return a network that says which of blue, green and red is above 200, else dark."""
    b = Builder()
    weight = np.zeros((4, 3, 1, 1), np.float32)
    weight[1:, :, 0, 0] = np.eye(3) * 1.0
    bias = b.constant('bias', np.array([200, 0, 0, 0], np.float32))
    b.node('Conv', ['image', b.constant('weight', weight), bias], 'logits', kernel_shape=[1, 1])
    model = b.model('logits', shape=['N', 4, 32, 64])
    if kind == 'class_ids':
        graph = model.graph
        graph.node.append(helper.make_node('ArgMax', ['logits'], ['ids'], axis=1, keepdims=0))
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info('ids', TensorProto.INT64, ['N', 32, 64]))
    return model


def bundle_of(tmp_path, model=None, **sections):
    return write_bundle(tmp_path / 'bundle', model or colors(), labels=LABELS,
                        input={'mean': [0, 0, 0]}, **sections)


def dark(number, seed=0):
    """Return images that are below 200 everywhere and unlike each other."""
    return [image // 2 for image in pictures(number, seed=seed)]


def with_spot(image, channel):
    """Return an image with a small saturated spot: 0.4% of it."""
    image = image.copy()
    image[4:6, 10:14] = 0
    image[4:6, 10:14, channel] = 255
    return image


def masks(bundle):
    return [mask for _, _, mask in golden.read(Bundle.open(bundle).golden_path)]


@pytest.mark.parametrize('seed', range(3))
def test_golden_frames_cover_the_classes_that_the_images_show(tmp_path, seed):
    images = dark(16, seed)
    for channel, i in enumerate(np.random.default_rng(seed).permutation(12)[:3]):
        images[i] = with_spot(images[i], channel)
    bundle = bundle_of(tmp_path)
    run(bundle, images, count=12, golden=4, equalize='off')
    assert set(np.unique(masks(bundle))) == {0, 1, 2, 3}


def test_classes_that_are_never_shown_are_named(tmp_path):
    images = dark(12)
    images[2] = with_spot(images[2], 0)
    warnings = run(bundle_of(tmp_path), images, count=8, golden=4,
                   equalize='off').manifest.coverage.warnings
    assert any(warning.startswith('no golden frame shows green, red: an engine is not proven')
               for warning in warnings)
    assert any(warning.startswith('no image shows blue, green, red to the float network')
               for warning in warnings)


def test_the_share_of_classes_is_that_of_the_masks(tmp_path):
    images = [with_spot(image, 2) for image in dark(6)]
    classes = run(bundle_of(tmp_path), images).manifest.coverage.classes
    assert classes == pytest.approx({'dark': 1 - 8 / 2048, 'blue': 0, 'green': 0,
                                     'red': 8 / 2048})


def test_each_drive_gives_a_golden_frame(tmp_path):
    for i in range(4):
        write_pictures(tmp_path / f'drive{i}', 6, seed=i)
    folders = [str(tmp_path / f'drive{i}') for i in range(4)]
    manifest = calibrate(bundle_of(tmp_path), folders, count=20, golden=4, report=False,
                         equalize='off').manifest
    assert len({image.name.split('/')[0] for image in manifest.golden}) == 4
    assert not any('one folder' in warning for warning in manifest.coverage.warnings)
    manifest = calibrate(bundle_of(tmp_path), folders[0], count=4, golden=2, report=False,
                         equalize='off').manifest
    assert any('all images are of one folder or recording, drive0: if' in warning
               for warning in manifest.coverage.warnings)


def test_the_command_for_golden_frames_of_another_drive_can_be_typed(tmp_path):
    bundle = write_bundle(tmp_path / 'Mein Bündel ß', colors(), labels=LABELS)
    warnings = calibrate(bundle, str(write_pictures(tmp_path / 'drive', 6)), count=4, golden=2,
                         equalize='off').warnings
    advice, = (warning for warning in warnings if 'one folder or recording' in warning)
    command = ['trt-segmentation', 'golden', str(bundle), '--images', 'OTHER']
    assert shlex.split(advice.rpartition(' with: ')[2]) == command
    # What is handed on does not tell where it was made.
    manifest = (bundle / 'calibration.json').read_text()
    kept, = (warning for warning in json.loads(manifest)['coverage']['warnings']
             if 'one folder or recording' in warning)
    command[2] = '.../Mein Bündel ß'
    assert shlex.split(kept.rpartition(' with: ')[2]) == command
    for text in (manifest, (bundle / 'calibration.html').read_text()):
        assert str(tmp_path) not in text


def test_a_contract_that_was_changed_is_led_to_a_command_that_can_be_typed(tmp_path, capsys):
    bundle = write_bundle(tmp_path / 'Mein Bündel ß', colors(), labels=LABELS)
    images = write_pictures(tmp_path / 'Straßen Bilder', 6)
    calibrate(bundle, str(images), count=4, golden=2, report=False, equalize='off')
    contract = bundle / 'model.yaml'
    document = yaml.safe_load(contract.read_text())
    document['calibration'] = {'ranges': {'image': 400}}
    contract.write_text(yaml.safe_dump(document))
    assert main(['seal', str(bundle)]) == 0
    capsys.readouterr()
    assert main(['build', str(bundle), '--store', str(tmp_path / 'store')]) == 2
    program, *words = shlex.split(capsys.readouterr().err.rpartition(' run: ')[2])
    assert program == 'trt-segmentation' and words[-1] == 'DIRECTORY'
    assert main([*words[:-1], str(images)]) == 0


def test_near_duplicates_of_golden_frames_are_told(tmp_path):
    images = dark(3)
    warnings = run(bundle_of(tmp_path), [*images, *(image + 1 for image in images)], count=4,
                   golden=2, equalize='off').manifest.coverage.warnings
    assert any('of 2 golden frames are near-duplicates' in warning for warning in warnings)


def logarithmic(kind):
    """Return a network whose hidden tensor is nan for a pixel below 10; its ids never are."""
    b = Builder()
    x = b.node('Log', ['image'], 'log')
    x = b.conv(x, 'logits', 3, 4)
    if kind == 'logits':
        return b.model(x, shape=['N', 4, 32, 64])
    b.node('ArgMax', [x], 'ids', axis=1, keepdims=0)
    return b.model('ids', shape=['N', 32, 64], dtype=TensorProto.INT64)


@pytest.mark.parametrize('kind', ['logits', 'class_ids'])
@pytest.mark.parametrize('command', ['calibrate', 'golden'])
def test_one_judge_of_images_for_calibration_and_golden_frames(tmp_path, kind, command):
    images = [np.maximum(image, 20) for image in pictures(6)]
    for i in (0, 3):
        images[i][3, 5] = 0
    bundle = write_bundle(tmp_path / 'bundle', logarithmic(kind), labels=LABELS,
                          input={'mean': [10, 10, 10]}, output={'kind': kind})
    if command == 'calibrate':
        manifest = run(bundle, images, count=2, golden=2, equalize='off').manifest
        assert [skipped.name for skipped in manifest.skipped] == ['000000', '000003']
        assert all('nan' in skipped.reason or 'not finite' in skipped.reason
                   for skipped in manifest.skipped)
    else:
        frames = record(bundle, images, count=4)
        assert {frame.name for frame in frames} == {'000001', '000002', '000004', '000005'}
    for _, image, _ in golden.read(Bundle.open(bundle).golden_path):
        assert image.min() >= 20


def test_a_float_network_that_cannot_be_calibrated_still_gets_golden_frames(tmp_path):
    model = colors()
    model.graph.node.insert(0, helper.make_node('Cast', ['image'], ['half'], to=10))
    model.graph.node.insert(1, helper.make_node('Cast', ['half'], ['float'], to=1))
    model.graph.node[2].input[0] = 'float'
    onnx.checker.check_model(model)
    record(bundle_of(tmp_path, model), dark(3), count=2)
    assert len(masks(tmp_path / 'bundle')) == 2


def test_few_images_are_taken_as_they_are(tmp_path, capsys):
    source = write_pictures(tmp_path / 'images', 16)
    bundle = write_bundle(tmp_path / 'bundle', fcn())
    assert main(['calibrate', str(bundle), '--images', str(source), '--no-report']) == 0
    out, err = capsys.readouterr()
    assert '16 images: 13 to calibrate with and 3 to hold out' in err
    assert out.splitlines()[-1] == f'next       {command_line("build", bundle)}'
    counts = json.loads((bundle / 'calibration.json').read_text())['counts']
    assert (counts['used'], counts['golden']) == (13, 3)


def test_too_few_images_are_told_before_the_network_runs(tmp_path, monkeypatch):
    source = write_pictures(tmp_path / 'images', 16)
    bundle = write_bundle(tmp_path / 'bundle', fcn())
    monkeypatch.setattr('trt_segmentation.calibration.measure.Observer.__call__', None)
    with pytest.raises(InputError, match=r'images: 16 can be used, expected 100 to calibrate '
                                         r'with and 3 to hold out.*--count.*--allow-fewer'):
        calibrate(bundle, source, count=100)


def test_pictures_that_cannot_be_read_do_not_count_as_usable(tmp_path, capsys):
    source = write_pictures(tmp_path / 'images', 4)
    data = (source / '000.png').read_bytes()
    (source / '000.png').write_bytes(data[:len(data) // 2])
    (source / '001.png').write_bytes(b'no picture')
    bundle = write_bundle(tmp_path / 'bundle', fcn())
    with pytest.raises(InputError, match=r'images: 2 can be used, expected 4 to calibrate with '
                                         r'.*the first of 2 skipped is images/00[01].png: '):
        calibrate(bundle, source, count=4)
    assert main(['calibrate', str(bundle), '--images', str(source), '--format', 'json']) == 0
    said = capsys.readouterr()
    assert '2 images: 1 to calibrate with and 1 to hold out' in said.err
    found = json.loads(said.out)
    assert (found['counts']['used'], found['counts']['golden']) == (1, 1)
    assert sorted(entry['name'] for entry in found['skipped']) == [
        'images/000.png', 'images/001.png']


def test_one_picture_is_not_calibrated_with_and_judged_by(tmp_path, capsys):
    source = write_pictures(tmp_path / 'images', 5)
    bundle = write_bundle(tmp_path / 'bundle', fcn())
    kept, = calibrate(bundle, str(source), golden=1, report=False).manifest.golden
    golden = source / Path(kept.name).name
    cache = (bundle / 'calibration.cache').read_bytes()
    assert main(['calibrate', str(bundle), '--images', str(golden)]) == 2
    assert f'{golden.name}: it is a golden frame; give others' in capsys.readouterr().err
    assert (bundle / 'calibration.cache').read_bytes() == cache
    other = next(path for path in source.iterdir() if path != golden)
    assert main(['calibrate', str(bundle), '--images', str(other)]) == 0
    assert 'nothing is held out: 1 golden frame of before stays' in capsys.readouterr().err


def test_where_equal_pictures_leave_none_to_calibrate_with_it_is_said_what_was_expected(
        tmp_path, capsys):
    source = write_pictures(tmp_path / 'images', 1)
    (source / 'again.png').write_bytes((source / '000.png').read_bytes())
    bundle = write_bundle(tmp_path / 'bundle', fcn())
    words = 'calibrate', str(bundle), '--images', str(source), '--count', '1', '--allow-fewer'
    assert main([*words, '--golden', '1']) == 2
    error = capsys.readouterr().err
    assert ('images: 1 can be used, expected 1 or more to calibrate with beside the 1 to hold '
            'out; the first of 1 skipped is ') in error
    assert error.endswith('; give more, or hold out fewer (--golden)\n')
    assert main([*words, '--golden', '0']) == 0


def test_where_nothing_can_be_read_nothing_is_said_to_be_usable(tmp_path, capsys):
    (tmp_path / 'text.onnx').write_bytes(b'no picture')
    bundle = write_bundle(tmp_path / 'bundle', fcn())
    assert main(['calibrate', str(bundle), '--images', str(tmp_path / 'text.onnx')]) == 2
    error = capsys.readouterr().err
    assert 'images: 0 can be used, expected 1 or more; the first of 1 skipped is text.onnx: ' in (
        error)
    assert 'to calibrate with' not in error and '--allow-fewer' not in error


def test_golden_takes_what_there_is_and_names_the_next_command(tmp_path, capsys):
    source = write_pictures(tmp_path / 'images', 5)
    bundle = write_bundle(tmp_path / 'bundle', fcn())
    assert main(['golden', str(bundle), '--images', str(source)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [f'golden     5 frames recorded in {bundle}',
                   f'next       {command_line("calibrate", bundle, "--images", "DIRECTORY")}']
    assert main(['golden', str(bundle), '--images', str(source), '--count', '6']) == 2
    assert capsys.readouterr().err.endswith('; give more, or ask for fewer (--count)\n')
    assert main(['calibrate', str(bundle), '--images', str(source), '--count', '3', '--golden',
                 '1']) == 0
    assert '5 images: 3 to calibrate with and 1 to hold out as golden frames\n' in (
        capsys.readouterr().err)
    assert main(['golden', str(bundle), '--images', str(source)]) == 0
    said = capsys.readouterr()
    assert '5 images, of which up to 8 that show most become golden frames' in said.err
    assert '3 images left out: the bundle was calibrated with it' in said.err
    assert said.out.startswith('golden     2 frames recorded')


def test_a_name_that_is_not_utf_8_is_calibrated_with(tmp_path):
    source = write_pictures(tmp_path / 'images', 4)
    image = cv2.imread(str(source / '000.png'))
    (source / '000.png').rename(source / b'caf\xe9.png'.decode('utf-8', 'surrogateescape'))
    bundle = write_bundle(tmp_path / 'bundle', fcn())
    assert main(['calibrate', str(bundle), '--images', str(source), '--golden', '1']) == 0
    names = [entry['name'] for key in ('images', 'golden')
             for entry in json.loads((bundle / 'calibration.json').read_text())[key]]
    assert 'images/caf\\xe9.png' in names and image is not None


def manifest_of(bundle):
    return manifest.read(Bundle.open(bundle).manifest_path)


def used(bundle):
    """Return the hashes of the files that a bundle was calibrated with."""
    return {image.sha256 for image in manifest_of(bundle).images}


def judging(bundle, *sources):
    """Return the hashes of the files whose pixels are golden frames."""
    frames = {image.tobytes() for _, image, _ in golden.read(Bundle.open(bundle).golden_path)}
    return {files.sha256_file(path) for source in sources for path in source.iterdir()
            if cv2.imread(str(path)).tobytes() in frames}


def test_new_golden_frames_are_not_calibrated_with_by_whoever_extends(tmp_path, capsys):
    bundle = write_bundle(tmp_path / 'bundle', fcn())
    old = write_pictures(tmp_path / 'old', 10)
    new = write_pictures(tmp_path / 'new', 9, seed=1)
    assert main(['calibrate', str(bundle), '--images', str(old), '--equalize', 'off']) == 0
    assert main(['golden', str(bundle), '--images', str(new), '--count', '4']) == 0
    assert 'calibration.html still judges by the golden frames of before' in (
        capsys.readouterr().err)
    document = manifest_of(bundle)
    assert len(document.golden) == document.counts.golden == 4
    words = ['calibrate', str(bundle), '--images', str(new), '--extend', '--equalize', 'off']
    assert main(words) == 0
    frames = judging(bundle, old, new)
    assert len(frames) == len(masks(bundle)) == len(manifest_of(bundle).golden) > 4
    assert used(bundle) and not used(bundle) & frames


def test_golden_frames_from_before_the_calibration_are_not_calibrated_with(tmp_path):
    bundle = write_bundle(tmp_path / 'bundle', fcn())
    source = write_pictures(tmp_path / 'images', 8)
    assert main(['golden', str(bundle), '--images', str(source), '--count', '3']) == 0
    assert main(['calibrate', str(bundle), '--images', str(source), '--golden', '0',
                 '--equalize', 'off']) == 0
    frames = judging(bundle, source)
    assert len(masks(bundle)) == len(frames) == 3
    assert len(used(bundle)) == 5 and not used(bundle) & frames


@pytest.mark.parametrize('traces', [False, True])
def test_a_network_that_says_one_class_is_not_trusted(tmp_path, capsys, traces):
    bundle = bundle_of(tmp_path)
    source = tmp_path / 'dark'
    for number, image in enumerate(dark(12)):
        save(source / f'{number}.png', with_spot(image, number % 3) if traces else image)
    assert main(['calibrate', str(bundle), '--images', str(source), '--equalize', 'off']) == 0
    out = capsys.readouterr().out
    share = '99.6' if traces else '100.0'
    assert f"the float network says 'dark' on {share}% of all pixels: the network may see" in out
    assert out.splitlines()[-1].startswith('next       trt-segmentation preview')
    page = (bundle / 'calibration.html').read_text(encoding='utf-8')
    assert 'to be trusted? That is not known' in page
    text = unescape(re.sub('<[^>]+>', '', page))
    assert f'trt-segmentation preview .../{bundle.name} --images DIRECTORY' in text
    assert 'BUNDLE' not in text and str(tmp_path) not in page
    assert main(['build', str(bundle), '--backend', 'onnxruntime', '--store',
                 str(tmp_path / 'store')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('UNPROVEN   int8') and 'next to nothing but dark' in lines[1]
    assert lines[-1].startswith(
        f'next       {command_line("preview", bundle, "--images", "DIRECTORY")}; if the masks are '
        f'right: here: segmentation_node {shlex.quote(str(bundle))} ')
