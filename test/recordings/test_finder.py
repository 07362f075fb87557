# SPDX-License-Identifier: Apache-2.0
"""The one finder: what it takes, what it leaves, and that it says so."""

import os

import numpy as np
import pytest
from support.bundles import save

from trt_segmentation.errors import InputError
from trt_segmentation.recordings import finder

RNG = np.random.default_rng(0)


def picture(path, size=(24, 40)):
    """Write what a camera could have taken: a color for nearly every pixel."""
    save(path, RNG.integers(0, 256, (*size, 3), np.uint8))


def mask(path, size=(24, 40)):
    """Write a mask of two classes."""
    ids = np.zeros(size, np.uint8)
    ids[size[0] // 2:] = 1
    save(path, ids)


def names(found):
    return [file.name for file in found.files]


def test_links_are_followed_once_and_hidden_ones_are_not(tmp_path):
    picture(tmp_path / 'real' / '0.png')
    picture(tmp_path / 'set' / '1.png')
    picture(tmp_path / 'set' / '.Trash-0' / '2.png')
    picture(tmp_path / 'set' / '.3.png')
    os.symlink(tmp_path / 'real', tmp_path / 'set' / 'linked')
    os.symlink(tmp_path / 'set', tmp_path / 'set' / 'round')
    os.symlink(tmp_path / 'nowhere', tmp_path / 'set' / 'dangling.png')
    os.symlink(tmp_path / 'set' / 'itself', tmp_path / 'set' / 'itself')
    for found in (finder.directory(tmp_path / 'set'), finder.find([tmp_path / 'set'])):
        assert [name.removeprefix('set/') for name in names(found)] == ['1.png', 'linked/0.png']


def test_a_cityscapes_tree_gives_its_camera_pictures_alone(tmp_path):
    for split in ('train', 'val'):
        stem = f'{split}/aachen/aachen_000_000019'
        picture(tmp_path / 'leftImg8bit' / f'{stem}_leftImg8bit.png')
        picture(tmp_path / 'gtFine' / f'{stem}_gtFine_color.png')
        for kind in ('labelIds', 'labelTrainIds', 'instanceIds'):
            mask(tmp_path / 'gtFine' / f'{stem}_gtFine_{kind}.png')
        mask(tmp_path / 'disparity' / f'{stem}_disparity.png')
    top = finder.directory(tmp_path)
    assert names(top) == [f'leftImg8bit/{split}/aachen/aachen_000_000019_leftImg8bit.png'
                          for split in ('train', 'val')]
    assert sum(map(len, top.left.values())) == 10
    (only,) = names(finder.find([tmp_path]))  # its training images, as the layout says
    assert '/train/' in only


@pytest.mark.parametrize(('image', 'other'), [
    ('a.jpg', 'a.png'),
    ('a.png', 'a_mask.png'), ('a.png', 'a_L.png'), ('a.jpg', 'a_labels.png'),
    ('images/a.png', 'masks/a.png'), ('images/x/a.jpg', 'labels/x/a.png'),
    ('camera/a_camera_0.png', 'label/a_label_0.png'),
    ('rgb/a.png', 'classes/a.png'), ('a_leftImg8bit.png', 'a_gtFine_labelIds.png'),
    ('golden/000.png', 'golden/000.mask.png'),
])
def test_masks_of_pairs_are_not_taken_for_pictures(tmp_path, image, other):
    picture(tmp_path / image)
    mask(tmp_path / other)
    found = finder.directory(tmp_path)
    assert names(found) == [image]
    assert [name for left in found.left.values() for name in left] == [other]
    assert other in '\n'.join(found.sentences())


@pytest.mark.parametrize('both', [
    ('left/a.png', 'right/a.png'), ('a.jpg', 'a.png'), ('labels/a.png', 'labels/b.png'),
    ('front_mask.png', 'rear.png'), ('night_l.png', 'day_r.png')])
def test_pictures_are_taken_whatever_their_folder_is_called(tmp_path, both):
    for name in both:
        picture(tmp_path / name)
    found = finder.directory(tmp_path)
    assert names(found) == sorted(both)
    assert found.left == {}


def test_a_folder_of_masks_alone_is_questioned(tmp_path):
    for i in range(4):
        mask(tmp_path / 'set' / f'{i}.png')
    found = finder.find([tmp_path / 'set'])
    assert len(found.files) == 4
    (question,) = found.questions
    assert 'are they masks?' in question
    picture(tmp_path / 'other' / '0.png')
    assert finder.find([tmp_path / 'other']).questions == []


@pytest.mark.parametrize('suffix', ['.heic', '.gif', '.jp2', '.avif', '.dng', '.mp4', '.mcap'])
def test_what_is_not_read_is_named(tmp_path, suffix):
    (tmp_path / f'one{suffix}').write_bytes(b'x')
    with pytest.raises(InputError, match=rf'no image found.*one\{suffix}'):
        finder.directory(tmp_path)
    picture(tmp_path / 'two.png')
    found = finder.directory(tmp_path)
    assert names(found) == ['two.png']
    assert any(f'one{suffix}' in sentence for sentence in found.sentences())


@pytest.mark.parametrize('name', ['drive.db3', 'drive.MCAP', 'drive.bag'])
def test_where_a_directory_of_pictures_is_needed_replay_is_named_for_recordings(tmp_path, name):
    (tmp_path / name).write_bytes(b'x')
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match='a recording, which trt-segmentation replay') as told:
            finder.directory(path)
        assert 'itself' not in str(told.value) and 'no such' not in str(told.value)


def test_a_picture_is_no_directory_of_pictures(tmp_path):
    picture(tmp_path / 'a.png')
    with pytest.raises(InputError, match=r'a\.png: a file, no directory; expected a directory of'):
        finder.directory(tmp_path / 'a.png')
    with pytest.raises(InputError, match=r'b\.png: no such directory; expected a directory of'):
        finder.directory(tmp_path / 'b.png')


@pytest.mark.parametrize('suffix', ['.tif', '.TIFF', '.jfif', '.JPEG', '.webp', '.bmp'])
def test_every_kind_that_is_read_is_taken(tmp_path, suffix):
    (tmp_path / f'one{suffix}').write_bytes(b'')
    assert names(finder.directory(tmp_path)) == [f'one{suffix}']


def test_what_was_taken_from_where_is_said(tmp_path):
    for i in range(3):
        picture(tmp_path / 'a' / f'{i}.png')
    picture(tmp_path / 'b.png')
    found = finder.find([tmp_path / 'a', tmp_path / 'b.png', tmp_path / 'a' / '1.png'])
    assert len(found.files) == 4
    assert found.sentences() == [
        f'3 pictures from {tmp_path}/a', f'1 picture from {tmp_path}/b.png',
        f'0 pictures from {tmp_path}/a/1.png']


def test_what_a_shell_made_of_a_glob_is_said_in_one_line(tmp_path):
    for i in range(5):
        picture(tmp_path / 'a' / f'{i}.png')
    found = finder.find([*(tmp_path / 'a').iterdir()])
    assert found.sentences() == [f'5 pictures from {tmp_path}/a']


def test_names_that_are_not_utf8_can_be_printed(tmp_path):
    picture(tmp_path / 'a.png')
    os.rename(tmp_path / 'a.png', os.fsencode(tmp_path) + b'/stra\xdfe.png')
    (file,) = finder.directory(tmp_path).files
    assert file.name == 'stra\\xdfe.png'
    assert os.path.isfile(file.path)
    (tmp_path / 'list.txt').write_bytes(b'stra\xdfe.png\n')
    (file,) = finder.find([tmp_path / 'list.txt']).files
    assert file.name.encode() and os.path.isfile(file.path)


@pytest.mark.parametrize(('colors', 'few'), [(1, True), (32, True), (33, False), (4000, False)])
def test_few_colors_are_counted(colors, few):
    pixels = np.zeros((80, 100, 3), np.uint8)
    pixels.reshape(-1, 3)[:colors, 0] = np.arange(colors) % 256
    pixels.reshape(-1, 3)[:colors, 1] = np.arange(colors) // 256
    assert finder.few_colors(pixels) is few
