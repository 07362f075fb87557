# SPDX-License-Identifier: Apache-2.0
"""Recordings wherever they lie and whatever they are called, and what is none of them."""

from contextlib import closing
import gzip
import os
from pathlib import Path
import shutil
import sqlite3
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
import yaml

from trt_segmentation.calibration import sources
from trt_segmentation.errors import InputError
from trt_segmentation.recordings import bags, finder
from trt_segmentation.recordings.sqlite_file import SqliteFile

START, STEP = 1_700_000_000_000_000_000, 50_000_000
TOPIC = '/front/image_raw'


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def write(path, numbers=range(3), **options):
    with bags.Writer(path, **options) as writer:
        for i in numbers:
            writer.write_image(TOPIC, picture(i), 'bgr8', START + i * STEP, 'camera')
    return path


def numbers(path):
    """Return which pictures a recording has, each checked for all its pixels."""
    reader, found = bags.Reader(path), []
    for recorded in reader:
        found.append((recorded.stamp_ns - START) // STEP)
        np.testing.assert_array_equal(recorded.message.data, picture(found[-1]).reshape(-1))
    assert reader.problems == []
    return found


@pytest.mark.parametrize('name', [
    'mit leer zeichen', 'Straße', '100%20', 'a?b', 'a#b', '[b]rack*et', '-dash', "it's", 'a\nb'])
@pytest.mark.parametrize(('end', 'options'), [
    ('', {}), ('', {'storage': 'sqlite3', 'compress': True}), ('.mcap', {}), ('.db3', {})])
def test_any_name_can_be_written_and_read(tmp_path, name, end, options):
    path = write(tmp_path / name / f'{name}{end}', **options)
    assert numbers(path) == [0, 1, 2]
    (path.parent / 'link').mkdir()
    (path.parent / 'link' / path.name).symlink_to(path)
    assert numbers(path.parent / 'link' / path.name) == [0, 1, 2]
    (found,) = finder.find([tmp_path], recordings=True).recordings
    assert found.resolve() == path
    if not end and not options:  # rosbags cannot read sqlite3 under such names
        with AnyReader([path]) as reader:
            assert reader.message_count == 3


@pytest.mark.parametrize('end', ['', '.mcap', '.db3', '.MCAP', '.Db3'])
def test_names_that_are_not_utf8_and_ends_in_capitals_are_read(tmp_path, end):
    path = write(tmp_path / f'bag{end.lower()}')
    other = path.rename(os.fsdecode(os.fsencode(tmp_path) + b'/b\xff' + end.encode()))
    assert numbers(other) == [0, 1, 2]


def test_a_damaged_database_whose_name_is_not_utf8_is_told_what_to_do(tmp_path, capfd):
    path = write(tmp_path / 'bag.db3')
    other = path.rename(os.fsdecode(os.fsencode(tmp_path) + b'/b\xff.db3'))
    os.truncate(other, other.stat().st_size - 100)
    with pytest.raises(InputError, match='cut short'):
        bags.Reader(other)
    with pytest.raises(ValueError, match='rename it'):
        SqliteFile(other, print)
    assert 'Traceback' not in capfd.readouterr().err


def refused(path):
    with pytest.raises(InputError) as caught:
        bags.Reader(path)
    text = str(caught.value)
    assert text.startswith(f'{path}: ') and '\n' not in text
    return text


def test_what_is_no_recording_is_told_what_it_is(tmp_path):
    mcap, database = write(tmp_path / 'a.mcap'), write(tmp_path / 'a.db3')
    (tmp_path / 'many').mkdir()
    write(tmp_path / 'many' / 'monday')
    write(tmp_path / 'many' / 'tuesday')
    for name, data, words in (
            ('x.mcap', b'', 'x.mcap: the file is empty'),
            ('x.db3', b'', 'x.db3: the file is empty'), ('x.bag', b'', 'x.bag: the file is empty'),
            ('y.mcap', mcap.read_bytes()[:8], 'its index cannot be read'),
            ('y.db3', mcap.read_bytes(), 'no database: it does not begin as one'),
            ('z.mcap', database.read_bytes(), 'no mcap file: it does not begin as one'),
            ('y.bag', database.read_bytes(), 'no ROS 1 bag: it does not begin as one'),
            ('a.mcap.gz', gzip.compress(mcap.read_bytes()), ': packed; unpack it first'),
            ('d.bag.active', b'#ROSBAG V2.0\n', 'mend it with: rosbag reindex d.bag.active'),
            ('notes.txt', b'x', ': no recording; expected')):
        (tmp_path / name).write_bytes(data)
        assert words in refused(tmp_path / name), name
    assert 'a directory of 2 recordings; name one of them, as ' in refused(tmp_path / 'many')
    assert 'name the directory' in refused(tmp_path / 'many/monday/metadata.yaml')
    (tmp_path / 'dead.mcap').symlink_to('/nowhere')
    os.mkfifo(tmp_path / 'pipe.mcap')
    (tmp_path / 'empty').mkdir()
    for name in ('dead.mcap', 'pipe.mcap', 'empty', 'nowhere'):
        assert ': no recording; expected' in refused(tmp_path / name)


@pytest.mark.parametrize('end', ['.mcap', '.db3'])
def test_a_split_of_twelve_is_read_in_order_whatever_lists_it(tmp_path, end):
    """NAME_10 comes after NAME_9; a file that is listed twice is read once."""
    (tmp_path / 'drive').mkdir()
    files = []
    for i in range(12):
        write(tmp_path / f'part{end}', [i]).rename(tmp_path / 'drive' / f'drive_{i}{end}')
        files.append(f'drive_{i}{end}')

    def information(names):
        return {'rosbag2_bagfile_information': {'version': 9, 'relative_file_paths': names,
                'topics_with_message_count': [{'message_count': 12, 'topic_metadata': {
                    'name': TOPIC}}]}}

    for names in (files, files + files, [str(tmp_path / 'drive' / name) for name in files]):
        (tmp_path / 'drive/metadata.yaml').write_text(yaml.safe_dump(information(names)))
        assert numbers(tmp_path / 'drive') == list(range(12))
    (tmp_path / 'drive/metadata.yaml').unlink()
    assert [recorded.stamp_ns for recorded in bags.Reader(tmp_path / 'drive')] == [
        START + i * STEP for i in range(12)]


@pytest.fixture
def anyones():
    """Return a directory that other users can enter; pytest's own they cannot."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name).resolve()
        path.chmod(0o755)
        yield path


@pytest.mark.parametrize('mode', [0, 0o100, 0o400])
def test_what_must_not_be_read_is_said_in_one_line(anyones, mode):
    write(anyones / 'closed')
    write(anyones / 'open')
    shutil.copy(write(anyones / 'a.mcap'), anyones / 'closed.mcap')
    # As root nothing is forbidden, so it runs as nobody.
    code = ('import os, sys\n'
            'from trt_segmentation.recordings import bags, finder, sqlite_file, mcap_file\n'
            'from trt_segmentation.errors import InputError\n'
            'directory, mode = sys.argv[1], int(sys.argv[2])\n'
            'list(bags.Reader(f"{directory}/open"))\n'  # imports all that it needs
            'if os.geteuid() == 0: os.seteuid(65534)\n'
            'def find(*sources): return finder.find(sources, recordings=True)\n'
            'for what, name in ((bags.Reader, "closed"), (bags.Reader, "closed.mcap"),\n'
            '                   (find, "closed"), (find, "closed/x.png"), (find, "closed/*")):\n'
            '    try: print("done", what, name)if what(f"{directory}/{name}") else 0\n'
            '    except InputError as error: print(error)\n'
            'print(*(path.name for path in find(f"{directory}/*").recordings))\n')
    for path in (anyones / 'open', *(anyones / 'open').iterdir()):
        path.chmod(0o755)
    (anyones / 'closed.mcap').chmod(0)
    (anyones / 'closed').chmod(mode)
    if os.geteuid() == 0:
        os.chown(anyones / 'closed', 65534, 65534)
    done = subprocess.run([sys.executable, '-c', code, str(anyones), str(mode)], text=True,
                          capture_output=True, cwd=os.path.dirname(bags.__file__) + '/../..')
    (anyones / 'closed').chmod(0o700)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6 and lines[0] == f'{anyones}/closed: cannot be read: Permission denied'
    assert lines[1].endswith(f'{anyones}/closed.mcap: Permission denied')
    assert all('closed' in line and not line.startswith('done') for line in lines[:5])
    assert 'open' in lines[5].split()


def test_of_a_directory_recordings_without_images_are_left_and_named(tmp_path):
    write(tmp_path / 'drives' / 'good')
    (tmp_path / 'drives' / 'empty.mcap').write_bytes(b'')
    path = write(tmp_path / 'drives' / 'other.db3')
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE topics SET type = 'sensor_msgs/msg/PointCloud2'")
    notes = []
    assert len(sources.find([tmp_path / 'drives'], notes=notes)) == 3
    assert [note for note in notes if note.startswith('left: ')] == [
        f'left: {tmp_path}/drives/empty.mcap: no images in it (sensor_msgs Image or '
        f'CompressedImage): {tmp_path}/drives/empty.mcap: the file is empty',
        f'left: {path}: no images in it (sensor_msgs Image or CompressedImage)']
    notes.clear()
    assert len(sources.find([f'{tmp_path}/drives/*'], topics=[TOPIC], notes=notes)) == 3
    assert sum(note.startswith('left: ') for note in notes) == 2
    with pytest.raises(InputError, match=r"empty.*; .*no image topic '/rear'"):
        sources.find([tmp_path / 'drives'], topics=['/rear'])
    with pytest.raises(InputError, match='the file is empty'):  # what is named must have some
        sources.find([tmp_path / 'drives', tmp_path / 'drives/empty.mcap'])
