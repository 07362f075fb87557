# SPDX-License-Identifier: Apache-2.0
"""Finding, choosing, decoding and judging the images of a calibration."""

from itertools import permutations
import os
from pathlib import Path
import subprocess
import sys
import tempfile

import cv2
import numpy as np
from PIL import Image
import pytest
from support.calibration import pictures, write_pictures

from trt_segmentation.calibration import sources
from trt_segmentation.calibration.selection import (
    describe,
    drive,
    Exclusion,
    Impression,
    Selection,
)
from trt_segmentation.errors import InputError
from trt_segmentation.recordings import bags
from trt_segmentation.recordings import pictures as images
from trt_segmentation.recordings.pictures import Picture, Unusable


def names(*arguments, **options):
    return [candidate.name for candidate in sources.find(arguments, **options)]


def load(path):
    return images.decode(Path(path).read_bytes())


@pytest.fixture
def picture():
    """Return a smooth picture, 48x64."""
    return pictures(1, size=(48, 64))[0]


def test_directory_with_subdirectories(tmp_path):
    for name in ('a/1.png', 'a/2.JPG', 'b/c/3.bmp', 'notes.md', '.hidden/4.png', 'a/.5.png'):
        (tmp_path / 'set' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'set' / name).touch()
    assert names(tmp_path / 'set') == ['set/a/1.png', 'set/a/2.JPG', 'set/b/c/3.bmp']


def test_names_do_not_depend_on_where_the_data_lies(tmp_path):
    for place in ('here', 'there'):
        write_pictures(tmp_path / place / 'set', 2) if (tmp_path / place).mkdir() is None else 0
    assert names(tmp_path / 'here/set') == names(tmp_path / 'there/set')


def test_file_glob_and_list(tmp_path):
    source = write_pictures(tmp_path / 'set', 3)
    assert names(source / '001.png') == ['001.png']
    assert len(names(f'{tmp_path}/**/*.png')) == 3
    (tmp_path / 'list.txt').write_text('# comment\nset/000.png\n\nset/002.png\n')
    assert names(tmp_path / 'list.txt') == ['set/000.png', 'set/002.png']
    (tmp_path / 'windows.txt').write_bytes(b'\xef\xbb\xbfset/000.png\r\nset/002.png\r\n')
    assert names(tmp_path / 'windows.txt') == ['set/000.png', 'set/002.png']


def test_overlapping_sources_give_each_image_once(tmp_path):
    source = write_pictures(tmp_path / 'set', 3)
    assert len(names(source, f'{source}/*.png', source / '001.png')) == 3


def test_the_order_of_overlapping_sources_changes_nothing(tmp_path):
    write_pictures(tmp_path / 'set', 2)
    write_pictures(tmp_path / 'set' / 'night', 2, seed=1)
    (tmp_path / 'more').mkdir()
    (tmp_path / 'more' / 'linked.png').symlink_to(tmp_path / 'set' / '000.png')
    (tmp_path / 'list.txt').write_text('./set/night/001.png\nset/night/001.png\n')
    given = [tmp_path / 'set', tmp_path / 'set/night', tmp_path / 'more', tmp_path / 'list.txt']
    expected = names(*given)
    assert len(expected) == 4
    for order in permutations(given):
        assert names(*order) == expected


def test_links_beside_what_they_lead_to_count_once_and_name_it_if_they_come_later(tmp_path):
    source = write_pictures(tmp_path / 'set', 2)
    (source / '000-first.png').symlink_to('000.png')
    (source / '001z.png').symlink_to('001.png')
    notes = []
    assert names(source, notes=notes) == ['set/000.png', 'set/001z.png']
    assert notes == [f'2 pictures from {source}']


def test_the_order_of_recordings_changes_nothing(tmp_path):
    for name in ('a/drive', 'b/drive', 'b/other'):
        with bags.Writer(tmp_path / name) as writer:
            writer.write_image('/camera', pictures(1, size=(48, 64))[0], 'bgr8', len(name), 'x')
    (tmp_path / 'b' / 'zlink').symlink_to('other')
    given = [tmp_path / 'a', tmp_path / 'b/drive', tmp_path / 'b/zlink', tmp_path / 'b/other']

    def contents(order):
        return [(candidate.name, candidate.load()[0]) for candidate in sources.find(order)]

    expected = contents(given)
    assert [name.partition('@')[0] for name, _ in expected] == [
        'drive/camera', 'drive/camera', 'other/camera']
    for order in permutations(given):
        assert contents(order) == expected


def test_neither_spelling_nor_working_directory_changes_names_or_order(tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir()
    source = write_pictures(tmp_path / 'data' / 'set', 2)
    write_pictures(source / 'night', 2, seed=1)
    write_pictures(tmp_path / 'data' / 'c', 2, seed=2)
    monkeypatch.chdir(tmp_path / 'data')
    expected = ['c/000.png', 'c/001.png', 'set/000.png', 'set/001.png']
    assert names(f'{source}/*.png', 'c') == expected
    assert names('set/*.png', f'{tmp_path}/data/c') == expected
    assert names('c/../set/*.png', './c/*') == expected
    monkeypatch.chdir(source)
    assert names('*.png', '../c') == expected
    assert names('**/*.png') == names('.') == names('night/..') == names(source)


def test_cityscapes_gives_training_images_only(tmp_path):
    for name in ('leftImg8bit/train/aachen/a_leftImg8bit.png',
                 'leftImg8bit/val/bonn/b_leftImg8bit.png',
                 'gtFine/train/aachen/a_gtFine_labelIds.png'):
        (tmp_path / 'cs' / name).parent.mkdir(parents=True)
        (tmp_path / 'cs' / name).touch()
    expected = ['train/aachen/a_leftImg8bit.png']
    assert [name.partition('leftImg8bit/')[2] for name in names(tmp_path / 'cs')] == expected
    assert [name.partition('leftImg8bit/')[2] for name in
            names(tmp_path / 'cs/leftImg8bit')] == expected


def test_symlink_loop(tmp_path):
    source = write_pictures(tmp_path / 'set', 2)
    (source / 'again').symlink_to(source)
    (source / 'more').mkdir()
    (source / 'more/up').symlink_to('..')
    assert names(source) == ['set/000.png', 'set/001.png']


def test_symlinked_directory_is_followed(tmp_path):
    elsewhere = write_pictures(tmp_path / 'elsewhere', 2)
    (tmp_path / 'set').mkdir()
    (tmp_path / 'set/drive').symlink_to(elsewhere)
    assert names(tmp_path / 'set') == ['set/drive/000.png', 'set/drive/001.png']


@pytest.mark.parametrize('source, message', [
    ('none', 'no such file, directory or glob'), ('*.png', 'no such file, directory or glob'),
    ('empty', 'no image found'),
])
def test_nothing_found(tmp_path, source, message):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match=message):
        names(tmp_path / source)


def test_a_video_is_none(tmp_path):
    (tmp_path / 'film.mp4').write_bytes(b'x')
    with pytest.raises(InputError, match='film.mp4: .mp4 is a video, take pictures'):
        names(tmp_path / 'film.mp4')


def test_list_with_a_missing_file(tmp_path):
    (tmp_path / 'list.txt').write_text('gone.png\n')
    with pytest.raises(InputError, match=r'list\.txt:1: no such file'):
        names(tmp_path / 'list.txt')


def test_directory_without_permission():
    # Not below pytest's directory, which each session of this user closes to others again.
    with tempfile.TemporaryDirectory() as place:
        _refuse_what_nobody_may_read(Path(place))


def _refuse_what_nobody_may_read(place):
    place.chmod(0o755)
    source = write_pictures(place / 'set', 2)
    source.chmod(0o755)  # whatever the umask is
    (source / 'closed').mkdir(mode=0)
    # As root nothing is forbidden, so the search runs as nobody.
    code = ('import os, sys\n'
            'from trt_segmentation.calibration import sources\n'
            'from trt_segmentation.errors import InputError\n'
            'if os.geteuid() == 0: os.seteuid(65534)\n'
            'try: sources.find([sys.argv[1]])\n'
            'except InputError as error: print(error)\n')
    done = subprocess.run([sys.executable, '-c', code, source], capture_output=True, text=True,
                          check=True, cwd=Path(__file__).parents[2])
    assert done.stdout == f'{source}/closed: cannot be read: Permission denied\n'


def test_order_is_the_seeds(tmp_path):
    candidates = sources.find([write_pictures(tmp_path / 'set', 20)])
    orders = [[c.name for c in sources.shuffled(candidates, seed)] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == [c.name for c in candidates]


@pytest.mark.parametrize('suffix', ['.png', '.bmp', '.tif', '.ppm', '.webp'])
def test_decodes_to_the_pixels(tmp_path, picture, suffix):
    path = tmp_path / f'x{suffix}'
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == '.webp' else [])
    np.testing.assert_array_equal(load(path), picture)


def test_gray_palette_alpha_and_sixteen_bits(tmp_path, picture):
    rgb = Image.fromarray(picture[..., ::-1])
    rgb.convert('L').save(tmp_path / 'gray.png')
    rgb.quantize(16).save(tmp_path / 'palette.png')
    rgb.convert('RGBA').save(tmp_path / 'alpha.png')
    cv2.imwrite(str(tmp_path / 'deep.png'), picture.astype(np.uint16) * 257)
    for name in ('gray', 'palette', 'alpha', 'deep'):
        found = load(tmp_path / f'{name}.png')
        expected = np.array(Image.open(tmp_path / f'{name}.png').convert('RGB'))[..., ::-1] \
            if name != 'deep' else picture
        assert found.dtype == np.uint8 and found.shape == (48, 64, 3)
        assert np.abs(found.astype(int) - expected).max() <= 1, name


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
@pytest.mark.parametrize('part', [0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_unusable(tmp_path, picture, suffix, part):
    large = cv2.resize(picture, (640, 480))
    data = cv2.imencode(suffix, large)[1].tobytes()
    images.decode(data)
    with pytest.raises(Unusable):
        images.decode(data[:int(len(data) * part)])


def test_jpeg_with_a_thumbnail_and_a_trailer(picture):
    # A thumbnail has an end of image of its own, which must not pass for the picture's.
    thumbnail = cv2.imencode('.jpg', cv2.resize(picture, (16, 12)))[1].tobytes()
    data = cv2.imencode('.jpg', picture)[1].tobytes()
    segment = b'\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
    with_thumbnail = data[:2] + segment + data[2:]
    images.decode(with_thumbnail + b'trailer of a camera')
    with pytest.raises(Unusable, match='cut short'):
        images.decode(with_thumbnail[:-200])


@pytest.mark.parametrize('data, message', [
    (b'', 'empty'), (b'hello', 'not a picture'), (b'\xff\xd8\xff', 'cut short'),
    (b'\x89PNG\r\n\x1a\n', 'cut short'), (bytes(1000), 'not a picture'),
])
def test_what_is_no_picture(data, message):
    with pytest.raises(Unusable, match=message):
        images.decode(data)


def test_unreadable_images_are_skipped_with_their_reasons(tmp_path):
    source = write_pictures(tmp_path / 'set', 4)
    (source / '001.png').write_bytes(b'')
    (source / '002.png').write_bytes((source / '003.png').read_bytes())
    selection = Selection(source)
    used = [picture.name for picture in selection]
    assert len(used) == 2 and 'set/000.png' in used
    reasons = {entry.name: entry.reason for entry in selection.skipped}
    assert reasons['set/001.png'] == 'the file is empty'
    duplicate = reasons.get('set/002.png') or reasons['set/003.png']
    assert duplicate.startswith('the same content as set/00')


def test_file_that_vanishes_is_skipped(tmp_path):
    source = write_pictures(tmp_path / 'set', 3)
    selection = Selection(source)
    os.remove(source / '001.png')
    assert len(list(selection)) == 2
    assert 'No such file' in selection.skipped[0].reason


def test_images_load_in_order_whatever_their_size():
    sizes = [(2000, 2000), (10, 10), (1000, 1000), (20, 20)] * 3
    arrays = [np.full((*size, 3), i, np.uint8) for i, size in enumerate(sizes)]
    loaded = list(images.load_ahead(images.from_arrays(arrays)))
    assert [int(picture.pixels[0, 0, 0]) for picture in loaded] == list(range(12))


def test_images_are_decoded_only_a_few_ahead():
    asked = []

    def arrays():
        for i in range(100):
            asked.append(i)
            yield np.zeros((4, 4, 3), np.uint8)

    loaded = images.load_ahead(images.from_arrays(arrays()), workers=2)
    next(loaded)
    assert len(asked) <= 4


def examined(*arrays):
    return list(images.load_ahead(images.from_arrays(arrays)))


def noisy(picture):
    """Return the picture as another compression and another size make it."""
    jpeg = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    decoded = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    return cv2.resize(decoded, None, fx=1.5, fy=1.5)


def test_exclusion_by_content_and_by_resemblance():
    first, second, other = pictures(3, size=(120, 160))
    exclusion = Exclusion(examined(first, second))
    same, similar, fresh = examined(first, noisy(second), other)
    assert 'the same content as 000000' in exclusion.reason(same)
    assert 'a near-duplicate of 000001' in exclusion.reason(similar)
    assert exclusion.reason(fresh) == ''


def test_perceptual_hashes_of_different_pictures_are_far_apart():
    hashes = [picture.perceptual_hash for picture in examined(*pictures(20, size=(90, 120)))]
    distances = [images.distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(distances) > 10 and 25 < np.mean(distances) < 39


def test_excluded_images_are_not_used(tmp_path):
    source = write_pictures(tmp_path / 'set', 6, size=(90, 120))
    validation = tmp_path / 'val'
    validation.mkdir()
    for name in ('000.png', '003.png'):
        cv2.imwrite(str(validation / name), noisy(cv2.imread(str(source / name))))
    selection = Selection(source, exclude=[validation])
    assert sorted(picture.name for picture in selection) == [
        f'set/00{i}.png' for i in (1, 2, 4, 5)]


def impression(brightness=100.0, contrast=50.0, perceptual_hash=0, size=(10, 20)):
    return Impression('x', size, brightness, contrast, perceptual_hash, b'')


def test_brightness_and_contrast_are_those_of_the_gray_values(picture):
    (found,) = examined(picture)
    gray = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    assert found.brightness == pytest.approx(gray.mean())
    assert found.contrast == pytest.approx(gray.std())


def test_lack_of_dark_scenes_is_told_first():
    described = describe([impression(), impression(perceptual_hash=2 ** 40 - 1)])
    assert 'no dark scene' in described.warnings[0]


def test_varied_images_get_no_warning():
    random = np.random.default_rng(0)
    described = describe([
        impression(brightness, contrast, int(random.integers(2 ** 63)))
        for brightness, contrast in ((30, 40), (100, 50), (180, 20), (90, 60))])
    assert described.warnings == ()
    assert described.dark == described.bright == described.flat == 0.25


def test_near_duplicates_do_not_depend_on_the_order():
    # The first is like the second and that like the third; the first is not like the third.
    first, third = 0, 2 ** (2 * images._NEAR) - 1
    hashes = [first, 2 ** images._NEAR - 1, third]
    found = {describe([impression(perceptual_hash=each) for each in order]).near_duplicates
             for order in permutations(hashes)}
    assert len(found) == 1


def test_near_duplicates_and_sizes_are_told():
    described = describe([impression(), impression(perceptual_hash=3),
                          impression(perceptual_hash=2 ** 30 - 1, size=(20, 40))])
    assert described.near_duplicates == pytest.approx(1 / 3, abs=1e-3)
    assert described.sizes == ('20x10', '40x20')
    assert any('near-duplicates' in warning for warning in described.warnings)
    assert any('2 sizes' in warning for warning in described.warnings)


def write_bag(path, storage, frames, **options):
    """Write a bag with an image topic, a compressed one and one that is none."""
    second = 1_000_000_000
    with bags.Writer(path, storage=storage, **options) as writer:
        for i, frame in enumerate(frames):
            stamp = 100 * second + i * second // 10
            writer.write_image('/front', frame, 'bgr8', stamp, 'front')
            jpeg = cv2.imencode('.png', cv2.flip(frame, 1))[1].tobytes()
            writer.write('/rear/compressed', bags.compressed_image_message(
                jpeg, 'png', stamp, 'rear'), stamp)
    return path


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('compress', [False, True])
def test_bag_gives_each_message_as_an_image(tmp_path, storage, compress):
    frames = pictures(6)
    path = write_bag(tmp_path / 'bag', storage, frames, compress=compress)
    found = {picture.name: picture for picture in Selection(path, seed=4)}
    assert len(found) == 12 and all(isinstance(picture, Picture) for picture in found.values())
    for i, frame in enumerate(frames):
        stamp = 100_000_000_000 + i * 100_000_000
        np.testing.assert_array_equal(found[f'bag/front@{stamp}'].pixels, frame)
        np.testing.assert_array_equal(found[f'bag/rear/compressed@{stamp}'].pixels,
                                      cv2.flip(frame, 1))


def test_topics_and_spacing_of_a_bag(tmp_path):
    path = write_bag(tmp_path / 'bag', 'mcap', pictures(10))
    assert len(names(path, topics=['/front'])) == 10
    assert [name.partition('@')[2] for name in names(path, topics=['/front'], spacing=0.3)] == [
        str(100_000_000_000 + i * 100_000_000) for i in (0, 3, 6, 9)]
    assert len(names(path, spacing=0.3)) == 8
    with pytest.raises(InputError, match="no image topic '/left'"):
        names(path, topics=['/left'])
    with pytest.raises(InputError, match="'/frnt'.*; did you mean /front[?]"):
        names(path, topics=['/frnt'])


def test_rgb_bag_becomes_bgr(tmp_path):
    (frame,) = pictures(1)
    with bags.Writer(tmp_path / 'bag.mcap') as writer:
        writer.write_image('/camera', np.ascontiguousarray(frame[..., ::-1]), 'rgb8', 10 ** 9, '')
    (found,) = Selection(tmp_path / 'bag.mcap')
    np.testing.assert_array_equal(found.pixels, frame)


def test_message_that_is_malformed_is_skipped(tmp_path):
    frames = pictures(3)
    with bags.Writer(tmp_path / 'bag') as writer:
        for i, frame in enumerate(frames):
            encoding = 'bgr8' if i != 1 else 'no_such'
            writer.write_image('/camera', frame, encoding, (i + 1) * 10 ** 9, '')
    selection = Selection(tmp_path / 'bag')
    assert len(list(selection)) == 2
    assert 'no_such' in selection.skipped[0].reason


def test_damaged_bag(tmp_path):
    path = write_bag(tmp_path / 'bag', 'mcap', pictures(6))
    (file,) = path.glob('*.mcap')
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(InputError, match='the bag is damaged|no images in it'):
        names(path)


def test_images_much_smaller_than_the_network_sees_are_not_used():
    arrays = [np.full((*size, 3), i, np.uint8)
              for i, size in enumerate([(64, 128), (1, 1), (8, 4000), (512, 16), (65, 200)])]
    selection = Selection(arrays, size=(512, 1024))
    assert [picture.name for picture in selection] == ['000000', '000004']
    assert {entry.reason for entry in selection.skipped} >= {
        "its size 1x1 is below 1/8 of the network's 1024x512"}


@pytest.mark.parametrize(('name', 'expected'), [
    ('night@rain/0.png', 'night@rain'), ('a/x@1.png', 'a'), ('0.png', ''), ('x@1.png', ''),
    ('drive/camera@1700000000000000000', 'drive/camera'), ('drive/camera@17#2', 'drive/camera'),
    ('drive@2/camera@17', 'drive@2/camera')])
def test_the_folder_or_the_recording_that_an_image_is_of(name, expected):
    assert drive(name) == expected
