# SPDX-License-Identifier: Apache-2.0
"""Classes that nothing was measured of are named on every page, by a count of the pixels."""

from html import unescape
from pathlib import Path
import shutil

import cv2
import numpy as np
import pytest
from support.bundles import save, small_bundle
from support.calibration import pictures

from trt_segmentation.bundles.labels import CITYSCAPES
from trt_segmentation.cli import main
from trt_segmentation.recordings import bags


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """Make a bundle, two pictures, a bag of them, and golden masks of that bag."""
    path = tmp_path_factory.mktemp('unproven')
    small_bundle(path)
    with bags.Writer(path / 'bag') as writer:
        for i, image in enumerate(pictures(2)):
            save(path / 'images' / f'{i}.png', image)
            writer.write_image('/c/image', image, 'bgr8', i + 1, 'c')
    assert main(['replay', str(path / 'bundle'), '--bag', str(path / 'bag'), '--record-golden',
                 str(path / 'golden.mcap'), '--store', str(path / 'store'), '--backend',
                 'onnxruntime']) == 0
    return path


def unproven(bundle):
    """Return the classes on less than a thousandth of the golden masks, counted plainly."""
    masks = np.concatenate([cv2.imread(str(path), cv2.IMREAD_UNCHANGED).ravel()
                            for path in (bundle / 'golden').glob('*.mask.png')])
    masks = masks[masks != 255]
    return [label.name for label in CITYSCAPES.classes
            if (masks == label.train_id).sum() * 1000 < len(masks)]


@pytest.mark.parametrize(('command', 'words', 'page'), [
    ('evaluate', ['--images', 'images', '--engines', 'fp32', 'int8', '--output', 'out'],
     'out/evaluation.html'),
    ('benchmark', ['--frames', '2', '--warmup', '1', '--engines', 'fp32', '--output', 'out'],
     'out/benchmark.html'),
    ('replay', ['--bag', 'bag', '--golden', 'golden.mcap', '--report', 'out/replay.html'],
     'out/replay.html')])
def test_pages_name_what_the_golden_frames_do_not_prove(home, monkeypatch, capsys, command, words,
                                                        page):
    monkeypatch.chdir(home)
    (home / 'out').mkdir(exist_ok=True)
    names = unproven(home / 'bundle')
    assert 0 < len(names) < 19
    said = (f'no engine of this bundle is proven whole: {len(names)} of 19 classes '
            f'{"covers" if len(names) == 1 else "cover"} less than 0.1% of the golden frames and '
            f'{"was" if len(names) == 1 else "were"} not judged: {", ".join(names)}')
    for style in ('text', 'markdown'):
        assert main([command, 'bundle', *words, '--format', style, '--store', 'store',
                     '--backend', 'onnxruntime']) == 0
        assert said in capsys.readouterr().out
    assert said in unescape((home / page).read_text())


def test_a_replay_names_what_no_golden_mask_shows(home, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with bags.Writer('gray') as writer:
        writer.write_image('/c/image', np.full((32, 64, 3), 90, np.uint8), 'bgr8', 1, 'c')
    words = ['replay', str(home / 'bundle'), '--bag', 'gray', '--store', str(home / 'store'),
             '--backend', 'onnxruntime']
    assert main([*words, '--record-golden', 'golden.mcap']) == 0
    assert main([*words, '--golden', 'golden.mcap', '--report', 'out.html']) == 0
    reader = bags.Reader('golden.mcap')
    reader.select(['/segmentation/class_mask'])
    seen = {value for each in reader for value in bytes(each.message.data)}
    names = [label.name for label in CITYSCAPES.classes if label.train_id not in seen]
    assert names
    said = f'no golden mask that was compared shows: {", ".join(names)}'
    assert said in capsys.readouterr().out and said in unescape(Path('out.html').read_text())


def test_a_replay_of_several_recordings_names_both_too(home, tmp_path, capsys):
    for name in 'ab':
        shutil.copytree(home / 'bag', tmp_path / 'bags' / name)
    words = ['replay', str(home / 'bundle'), '--bag', str(tmp_path / 'bags'), '--store',
             str(home / 'store'), '--backend', 'onnxruntime', '--jobs', '1']
    assert main([*words, '--record-golden', str(tmp_path / 'golden')]) == 0
    assert main([*words, '--golden', str(tmp_path / 'golden'), '--report',
                 str(tmp_path / 'fleet.html')]) == 0
    out, page = capsys.readouterr().out, unescape((tmp_path / 'fleet.html').read_text())
    names = ', '.join(unproven(home / 'bundle'))
    said = f' not judged: {names}'
    assert said in out and said in page


def test_no_page_has_the_directories_above_what_was_named(home, tmp_path, capsys):
    words = [str(home / 'bundle'), '--store', str(home / 'store'), '--backend', 'onnxruntime']
    assert main(['evaluate', *words, '--images', f'{home}/images/', '--engines', 'fp32',
                 '--output', str(tmp_path / 'out')]) == 0
    shutil.copytree(home / 'bag', tmp_path / 'bag')
    (tmp_path / 'bag' / 'more.mcap').touch()  # a file that cannot be read is named on the page
    assert main(['replay', *words, '--bag', str(tmp_path / 'bag'), '--golden',
                 str(home / 'golden.mcap'), '--report', str(tmp_path / 'out/replay.html')]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    for page in (tmp_path / 'out').iterdir():
        text = unescape(page.read_text())
        assert str(tmp_path) not in text and str(home) not in text, page
        assert '.../images' in text or '.../bag/more.mcap' in text
