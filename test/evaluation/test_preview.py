# SPDX-License-Identifier: Apache-2.0
"""The contact sheet of the float network: what is on it, and what it warns of."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from unittest import mock

import cv2
import numpy as np
import onnx
import pytest
from support.bundles import FOREIGN_LABELS, foreign_network, save, scene

from trt_segmentation.bundles.create import create
from trt_segmentation.bundles.labels import CITYSCAPES, Label, LabelSet
from trt_segmentation.cli import main, next_step
from trt_segmentation.evaluation.preview import Preview, preview
from trt_segmentation.segmenters.postprocessing import Masks


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    """A bundle as `init` leaves it: not calibrated, without golden frames."""
    home = tmp_path_factory.mktemp('preview')
    onnx.save(foreign_network(), home / 'foreign.onnx')
    create(home / 'foreign.onnx', home / 'foreign', labels=FOREIGN_LABELS, color='rgb',
           mean=(123.675, 116.28, 103.53), scale=(1 / 58.395, 1 / 57.12, 1 / 57.375))
    return home / 'foreign'


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    for i in range(4):
        save(root / f'{i}.png', scene(i, (60, 110))[0])
        save(root / f'{i}_mask.png', scene(i, (60, 110))[1])
    return root


def run(*words):
    return main(['preview', *map(str, words)])


def test_a_sheet_is_written_of_what_was_asked_for(bundle, images, tmp_path, capsys):
    output = tmp_path / 'sheet.png'
    assert run(bundle, '--images', images, '--count', 3, '--output', output, '--format',
               'json') == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found['images']) == 3
    assert not any('_mask' in name for name in found['images'])
    assert sum(found['said'].values()) == pytest.approx(1)
    assert 0 <= found['confidence'] <= 1
    sheet = cv2.imread(str(output))
    rows = 3 * round(60 * 400 / 110)
    assert sheet.shape[1] == 4 * 400 + 3 * 4
    assert rows < sheet.shape[0] < rows + 300
    assert run(bundle, '--images', images, '--output', tmp_path / 'sheet.jpg') == 0
    text = capsys.readouterr().out
    assert '4 of 4' in text
    assert text.splitlines()[-1].endswith(
        shlex.join(['trt-segmentation', 'calibrate', str(bundle), '--images', str(images)]))


@pytest.mark.parametrize('given, named', [
    (['a.png'], ['a.png']),
    (['a b.png', 'c.png', 'd.png'], ['a b.png', 'c.png', 'd.png']),
    ([f'{i}.png' for i in range(4)], ['.']),
    ([f'/usr/bin/{i}.png' for i in range(37)], ['/usr/bin']),
    ([f'/usr/bin/{i}.png' for i in range(37)] + ['/usr/lib/1.png'], ['IMAGES']),
    ([f'https://host/{i}.png' for i in range(4)], ['IMAGES']),
])
def test_the_next_command_names_all_images_that_were_given(given, named, tmp_path):
    assert shlex.split(next_step(str(tmp_path / 'Mein Bündel'), given)) == [
        'trt-segmentation', 'calibrate', str(tmp_path / 'Mein Bündel'), '--images', *named]


def test_a_network_that_seems_to_see_nothing_is_mended_unless_its_masks_are_right(
        bundle, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Preview, 'warning', 'it sees nothing')
    assert run(bundle, '--images', images, '--output', tmp_path / 'sheet.png') == 0
    said = capsys.readouterr()
    assert 'it sees nothing' in said.err
    line = said.out.splitlines()[-1]
    assert line.startswith('next       correct model.yaml')
    assert line.endswith(f'; if the masks are right: {next_step(str(bundle), [str(images)])}')


def test_a_terminal_without_the_letters_of_a_name_gets_them_escaped(bundle, images, tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'trt_segmentation', 'preview', bundle, '--images', images,
         '--count', '1', '--output', tmp_path / 'straße.png'],
        capture_output=True, check=False, env={**os.environ, 'PYTHONIOENCODING': 'ascii'})
    assert done.returncode == 0, done.stderr
    assert b'stra\\xdfe.png' in done.stdout
    assert (tmp_path / 'straße.png').is_file()


class Told:
    """A segmenter that gives one mask for every image."""

    def __init__(self, classes, offers):
        self.classes, self.offers = classes, offers
        self.spec = argparse.Namespace(labels=CITYSCAPES)

    def segment(self, image, want, color='bgr'):
        assert set(want) <= self.offers
        confidence = np.full(self.classes.shape, 51, np.uint8) if 'confidence' in want else None
        return Masks(self.classes, None, confidence, {})


@pytest.mark.parametrize('offers', [{'classes'}, {'classes', 'confidence'}])
def test_the_sheet_has_input_mask_overlay_and_confidence_where_there_is_one(offers):
    image = np.full((40, 400, 3), (10, 200, 90), np.uint8)
    classes = np.full((40, 400), 13, np.uint8)
    classes[:, :100] = 0
    found = preview(Told(classes, offers), [('a', image)])
    row = found.sheet[22 + 4 + 20]  # below the titles, in the middle of the picture
    assert row[200].tolist() == [10, 200, 90]
    assert row[404 + 300].tolist() == [142, 0, 0]  # Cityscapes' car, BGR
    assert row[404 + 50].tolist() == [128, 64, 128]  # its road
    mixed = (np.array([142, 0, 0]) + [10, 200, 90]) / 2
    assert np.abs(row[808 + 300] - mixed).max() <= 1
    if 'confidence' in offers:
        assert row[1212 + 50].tolist() == [51, 51, 51]
        assert found.confidence == pytest.approx(0.2)
    else:
        assert len(row) == 3 * 400 + 2 * 4 and found.confidence is None
    assert list(found.said.items())[:2] == [('car', 0.75), ('road', 0.25)]
    assert found.warning == ''


def test_classes_of_one_color_are_told_apart_and_said(bundle, images, tmp_path, capsys):
    classes = np.full((40, 400), 13, np.uint8)
    classes[:, :200] = 0
    told = Told(classes, {'classes'})
    told.spec.labels = LabelSet((Label('road', 0, (128, 64, 128), 'a'),
                                 Label('car', 13, (128, 65, 128), 'b')))
    found = preview(told, [('a', np.zeros((40, 400, 3), np.uint8))])
    assert found.similar.startswith("the colors of 'road' and 'car' are hardly told apart")
    mask = found.sheet[22 + 4 + 20][404:804].astype(int).sum(1)
    assert mask[195:205].min() < 0.5 * mask[100] and mask[:190].min() > 0.9 * mask[100]
    with mock.patch('trt_segmentation.evaluation.preview.preview', return_value=found):
        assert run(bundle, '--images', images, '--output', tmp_path / 'a.png') == 0
    assert 'hardly told apart (CIE76 distance 0.' in capsys.readouterr().err


def test_a_network_that_sees_nothing_is_warned_of():
    classes = np.full((40, 80), 13, np.uint8)
    found = preview(Told(classes, {'classes'}), [('a', np.zeros((40, 80, 3), np.uint8))])
    assert "'car' on 100.0%" in found.warning


def test_a_network_that_says_no_class_is_warned_of():
    classes = np.full((40, 80), 255, np.uint8)
    found = preview(Told(classes, {'classes'}), [('a', np.zeros((40, 80, 3), np.uint8))])
    assert found.ignored == 1 and 'no class on 100.0%' in found.warning


def test_the_share_of_ignored_pixels_is_said(bundle, images, tmp_path, capsys):
    classes = np.full((40, 80), 13, np.uint8)
    classes[:30] = 255
    found = preview(Told(classes, {'classes'}), [('a', np.zeros((40, 80, 3), np.uint8))])
    assert found.ignored == pytest.approx(0.75) and found.said['car'] == pytest.approx(0.25)
    with mock.patch('trt_segmentation.evaluation.preview.preview', return_value=found):
        words = [bundle, '--images', images, '--output', tmp_path / 'a.png']
        assert run(*words) == 0
        assert 'says       car 25.0%' in (text := capsys.readouterr().out)
        assert ', ignored 75.0%\n' in text
        assert run(*words, '--format', 'json') == 0
        assert json.loads(capsys.readouterr().out)['ignored'] == pytest.approx(0.75)


def test_a_wrong_scale_is_warned_of(bundle, images, tmp_path, capsys):
    """With /255 forgotten, as people do, the nearest color is the same one everywhere."""
    create(bundle.parent / 'foreign.onnx', tmp_path / 'wrong', labels=FOREIGN_LABELS,
           color='rgb', mean=(0, 0, 0), scale=(1000, 1000, 1000))
    assert run(tmp_path / 'wrong', '--images', images, '--output', tmp_path / 'a.png') == 0
    assert 'may see nothing' in capsys.readouterr().err


@pytest.mark.parametrize(('words', 'said'), [
    (['nowhere'], 'no such bundle'),
    (['{}', '--output', 'sheet.txt'], 'ends in .png'),
    (['{}', '--count', '0'], '--count'),
    (['{}', '--count', '65'], '--count: found 65, expected 1 to 64'),
])
def test_wrong_use_ends_with_code_2_and_one_line(bundle, images, capsys, words, said):
    assert run(*(word.format(bundle) for word in words), '--images', images) == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1


def test_images_that_cannot_be_read_are_no_preview(bundle, tmp_path, capsys):
    (tmp_path / 'a.png').write_bytes(b'no picture')
    assert run(bundle, '--images', tmp_path) == 2
    error = capsys.readouterr().err
    assert 'none of 1 image can' in error and 'a.png: ' in error
    assert error.startswith('trt-segmentation preview: 1 of 1 image, network ')


def test_what_cannot_be_read_is_named_with_its_reason(bundle, images, tmp_path, capsys):
    data = cv2.imencode('.jpg', scene(0, (60, 110))[0])[1].tobytes()
    (tmp_path / 'good.jpg').write_bytes(data)
    (tmp_path / 'cut.jpg').write_bytes(data[:len(data) // 2])
    (tmp_path / 'text.jpg').write_bytes(b'no picture')
    output = tmp_path / 'sheet' / 'a.png'
    output.parent.mkdir()
    assert run(bundle, '--images', tmp_path, '--output', output, '--format', 'json') == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    good, *bad = (f'{tmp_path.name}/{name}.jpg' for name in ('good', 'cut', 'text'))
    assert found['images'] == [good] and set(found['unreadable']) == set(bad)
    for name, reason in found['unreadable'].items():
        assert reason and f'{name} is left out: {reason}\n' in said.err
    assert run(bundle, '--images', images, '--output', output) == 0
    assert 'left out' not in capsys.readouterr().err
