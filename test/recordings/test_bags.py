# SPDX-License-Identifier: Apache-2.0
"""Bags: every storage there is, what is left of damaged ones, and that writing is repeatable."""

from contextlib import closing
from pathlib import Path
import sqlite3
import subprocess
import sys

import cv2
import mcap.reader
import mcap.writer
import numpy as np
import pytest
from rosbags import rosbag2
from rosbags.typesys import get_typestore, Stores
import yaml

from trt_segmentation.errors import InputError
from trt_segmentation.recordings import bags, storage

COUNT = 12
START = 1_700_000_000_000_000_000
STEP = 50_000_000
STORE = get_typestore(Stores.ROS2_HUMBLE)


def picture(number, size=(60, 100)):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def write(path, count=COUNT, first=0, topics=('/front', '/rear'), storage='mcap', mode=None):
    """Write a bag with rosbags' own writer; `mode` is how it is compressed."""
    plugin = rosbag2.StoragePlugin[storage.upper()]
    writer = rosbag2.Writer(path, version=9, storage_plugin=plugin)
    if mode:
        writer.set_compression(rosbag2.CompressionMode[mode], rosbag2.CompressionFormat.ZSTD)
    with writer:
        connections = {topic: writer.add_connection(topic, bags.IMAGE, typestore=STORE)
                       for topic in topics}
        other = writer.add_connection('/chatter', 'std_msgs/msg/String', typestore=STORE)
        for i in range(first, first + count):
            time_ns = START + i * STEP
            for number, topic in enumerate(topics):
                message = bags.image_message(picture(10 * i + number), 'bgr8',
                                             time_ns - 7, f'camera{number}')
                writer.write(connections[topic], time_ns,
                             STORE.serialize_cdr(message, bags.IMAGE))
            writer.write(other, time_ns, STORE.serialize_cdr(
                STORE.types['std_msgs/msg/String']('x' * 100), 'std_msgs/msg/String'))
    return path


def check(recorded, topics=('/front', '/rear')):
    """Check that each message is one of those written; return (topic, number) of each."""
    found = []
    for entry in recorded:
        i, rest = divmod(entry.time_ns - START, STEP)
        assert rest == 0
        number = topics.index(entry.topic)
        assert entry.stamp_ns == entry.time_ns - 7
        assert entry.frame_id == f'camera{number}'
        expected = picture(10 * i + number)
        assert (entry.message.height, entry.message.width) == expected.shape[:2]
        np.testing.assert_array_equal(entry.message.data, expected.reshape(-1))
        found.append((entry.topic, i))
    assert len(set(found)) == len(found)
    return found


EVERYTHING = [(topic, i) for i in range(COUNT) for topic in ('/front', '/rear')]


@pytest.mark.parametrize(('storage', 'mode'), [
    ('mcap', None), ('mcap', 'STORAGE'), ('mcap', 'FILE'), ('mcap', 'MESSAGE'),
    ('sqlite3', None), ('sqlite3', 'FILE'), ('sqlite3', 'MESSAGE')])
def test_every_storage_and_compression_is_read(tmp_path, storage, mode):
    reader = bags.Reader(write(tmp_path / 'bag', storage=storage, mode=mode))
    assert reader.topics == {'/front': bags.IMAGE, '/rear': bags.IMAGE}
    assert reader.count == 2 * COUNT
    for _ in range(2):  # it can be read again
        assert check(reader) == EVERYTHING
    assert reader.problems == []


def test_topics_can_be_chosen_and_a_single_file_read(tmp_path):
    path = write(tmp_path / 'bag')
    reader = bags.Reader(path / 'bag.mcap', ['/rear'])
    assert check(reader) == [('/rear', i) for i in range(COUNT)]


def split(path, parts=12):
    """Make a split bag as rosbag2 writes it: numbered files and one metadata.yaml."""
    path.mkdir()
    for number in range(parts):
        part = write(path.parent / f'part{number}', count=1, first=number)
        (part / f'part{number}.mcap').rename(path / f'{path.name}_{number}.mcap')
    document = yaml.safe_load((path.parent / 'part0' / 'metadata.yaml').read_text())
    information = document['rosbag2_bagfile_information']
    information['relative_file_paths'] = [f'{path.name}_{n}.mcap' for n in range(parts)]
    for topic in information['topics_with_message_count']:
        topic['message_count'] = parts
    (path / 'metadata.yaml').write_text(yaml.safe_dump(document))
    return path


def test_split_bags_are_read_in_order(tmp_path):
    reader = bags.Reader(split(tmp_path / 'bag'))
    assert check(reader) == EVERYTHING
    assert reader.problems == []


def test_of_a_split_bag_with_files_missing_and_damaged_the_rest_is_read_in_order(tmp_path):
    path = split(tmp_path / 'bag')
    (path / 'bag_3.mcap').unlink()
    data = (path / 'bag_10.mcap').read_bytes()
    (path / 'bag_10.mcap').write_bytes(b'no bag' + data[6:])
    reader = bags.Reader(path)
    assert check(reader) == [(topic, i) for topic, i in EVERYTHING if i not in (3, 10)]
    assert any('bag_3.mcap' in problem for problem in reader.problems)
    assert any('bag_10.mcap' in problem for problem in reader.problems)


def test_without_metadata_as_after_a_crash_everything_is_read_and_said(tmp_path):
    path = write(tmp_path / 'bag')
    (path / 'metadata.yaml').unlink()
    reader = bags.Reader(path)
    assert check(reader) == EVERYTHING
    assert len(reader.problems) == 1


@pytest.mark.parametrize(('storage', 'mode'), [
    ('mcap', None), ('mcap', 'STORAGE'), ('mcap', 'FILE'), ('mcap', 'MESSAGE'),
    ('sqlite3', None), ('sqlite3', 'FILE'), ('sqlite3', 'MESSAGE')])
@pytest.mark.parametrize('share', [0.5, 0.9])
def test_of_a_bag_cut_short_the_first_part_is_read(tmp_path, storage, mode, share):
    path = write(tmp_path / 'bag', count=150, storage=storage, mode=mode)  # 5 MB
    file = next(file for file in path.iterdir() if file.name != 'metadata.yaml')
    data = file.read_bytes()
    file.write_bytes(data[:int(len(data) * share)])
    reader = bags.Reader(path)
    found = check(reader)
    expected = [(topic, i) for i in range(150) for topic in ('/front', '/rear')]
    assert found == expected[:len(found)]
    assert len(found) > 300 * (share - 0.22)  # chunks have 1 MB
    assert reader.problems
    assert all('\n' not in problem for problem in reader.problems)


def write_with_mcap(path, count):
    """Write a bag with the mcap project's own writer, which adds checksums."""
    definition, _ = STORE.generate_msgdef(bags.IMAGE, ros_version=2)
    with open(path, 'wb') as stream:
        writer = mcap.writer.Writer(stream, chunk_size=40_000)
        writer.start('ros2', 'test')
        schema = writer.register_schema(bags.IMAGE, 'ros2msg', definition.encode())
        channels = [writer.register_channel(topic, 'cdr', schema) for topic in ('/front', '/rear')]
        for i in range(count):
            for number, channel in enumerate(channels):
                time_ns = START + i * STEP
                message = bags.image_message(picture(10 * i + number), 'bgr8', time_ns - 7,
                                             f'camera{number}')
                writer.add_message(channel, time_ns, bytes(STORE.serialize_cdr(
                    message, bags.IMAGE)), time_ns)
        writer.finish()
    return path


@pytest.mark.parametrize('where', ['content', 'header'])
def test_a_damaged_chunk_costs_no_other(tmp_path, where):
    path = write_with_mcap(tmp_path / 'bag.mcap', 60)
    with open(path, 'rb') as stream:
        chunks = mcap.reader.make_reader(stream).get_summary().chunk_indexes
    data = bytearray(path.read_bytes())
    start = chunks[10].chunk_start_offset + (2000 if where == 'content' else 0)
    data[start:start + 64] = b'x' * 64
    path.write_bytes(data)
    reader = bags.Reader(path)
    found = check(reader)
    assert found[0] == ('/front', 0)
    assert found[-1] == ('/rear', 59)
    lost = sum(len(list(chunk.message_index_offsets)) for chunk in chunks[10:11])
    assert 120 - 2 * lost <= len(found) < 120
    assert any('chunk at byte' in problem for problem in reader.problems)


@pytest.mark.parametrize('missing', [1, 100, 4095, 4096, 4097])
def test_a_database_whose_last_page_is_cut_gives_no_picture_with_black_rows(tmp_path, missing):
    path = write(tmp_path / 'bag', storage='sqlite3')
    data = (path / 'bag.db3').read_bytes()
    (path / 'bag.db3').write_bytes(data[:-missing])
    reader = bags.Reader(path)
    found = check(reader)  # which compares all pixels
    assert len(found) >= 2 * COUNT - 4
    assert reader.problems


@pytest.mark.parametrize('cut', [True, False])
def test_where_nothing_is_left_of_any_topic_none_is_proposed(tmp_path, cut):
    path = write(tmp_path / 'bag', storage='sqlite3') / 'bag.db3'
    if cut:
        path.write_bytes(path.read_bytes()[:20000])
    else:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute('DELETE FROM messages')
    with pytest.raises(InputError) as error:
        bags.Reader(path).choose_cameras()
    assert '/front (it has no messages)' in str(error.value) and '--topic' not in str(error.value)
    assert str(error.value).endswith(f'; {path}: cut short') == cut


def test_a_damaged_page_costs_the_messages_on_it(tmp_path):
    path = write(tmp_path / 'bag', storage='sqlite3', count=60)
    file = path / 'bag.db3'
    data = bytearray(file.read_bytes())
    size = int.from_bytes(data[16:18], 'big')
    # Page 2 on: some of the tree's pages, so that rows cannot be walked from end to end.
    for page in range(len(data) // size // 2, len(data) // size // 2 + 12):
        data[page * size:page * size + size] = b'\xff' * size
    file.write_bytes(data)
    reader = bags.Reader(path)
    count = 0
    for recorded in reader:
        count += recorded.message.height == 60
    assert 80 < count <= 120


def test_a_message_that_is_none_is_named_and_the_rest_is_read(tmp_path):
    path = tmp_path / 'bag'
    with rosbag2.Writer(path, version=9, storage_plugin=rosbag2.StoragePlugin.MCAP) as writer:
        connection = writer.add_connection('/front', bags.IMAGE, typestore=STORE)
        for i in range(5):
            data = STORE.serialize_cdr(
                bags.image_message(picture(10 * i), 'bgr8', START + i * STEP - 7, 'camera0'),
                bags.IMAGE)
            writer.write(connection, START + i * STEP, data[:200] if i == 2 else data)
    reader = bags.Reader(path)
    assert check(reader) == [('/front', i) for i in (0, 1, 3, 4)]
    assert len(reader.problems) == 1
    assert '/front' in reader.problems[0]
    assert str(START + 2 * STEP) in reader.problems[0]


@pytest.mark.parametrize('make', [
    lambda path: None,
    lambda path: path.mkdir(),
    lambda path: path.write_text('no bag'),
    lambda path: (path.mkdir(), (path / 'metadata.yaml').write_text('rosbag2: [')),
    lambda path: (path.mkdir(), (path / 'a.mcap').write_bytes(b'')),
    lambda path: (path.mkdir(), (path / 'a.db3').write_bytes(b'SQLite format 3\0' + bytes(99))),
    lambda path: (path.mkdir(), (path / 'a.mcap.zstd').write_bytes(b'no zstd')),
    lambda path: write(path, topics=()),
])
def test_what_is_no_bag_with_images_is_refused_in_one_line(tmp_path, make):
    make(tmp_path / 'bag')
    with pytest.raises(InputError) as error:
        bags.Reader(tmp_path / 'bag')
    assert str(tmp_path / 'bag') in str(error.value)
    assert '\n' not in str(error.value)


def test_an_unknown_topic_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(InputError, match=r"'/left'.*/front, /rear"):
        bags.Reader(write(tmp_path / 'bag'), ['/left'])
    with pytest.raises(InputError, match=r"'/reer'.*/front, /rear; did you mean /rear\?"):
        bags.Reader(tmp_path / 'bag', ['/reer'])


def read_elsewhere(path):
    """Return (topic, type, data) of each message, by readers that are not this package's."""
    if path.suffix == '.mcap':
        with open(path, 'rb') as stream:
            return [(channel.topic, schema.name, message.data) for schema, channel, message in
                    mcap.reader.make_reader(stream).iter_messages()]
    if path.suffix == '.db3':
        with closing(sqlite3.connect(path)) as database:
            return database.execute('SELECT name, type, data FROM messages JOIN topics '
                                    'ON topic_id = topics.id ORDER BY messages.id').fetchall()
    with rosbag2.Reader(path) as reader:
        return [(connection.topic, connection.msgtype, data)
                for connection, _, data in reader.messages(reader.connections)]


@pytest.mark.parametrize(('name', 'storage', 'compress'), [
    ('masks', 'mcap', False), ('masks', 'mcap', True), ('masks', 'sqlite3', False),
    ('masks', 'sqlite3', True), ('masks.mcap', '', False), ('masks.mcap', '', True),
    ('masks.db3', '', False)])
def test_what_is_written_is_read_by_rosbags_and_written_alike_twice(
        tmp_path, name, storage, compress):
    def write_masks(path):
        with bags.Writer(path, storage=storage, compress=compress) as writer:
            for i in range(3):
                writer.write_image('/mask', picture(i)[..., 0], 'mono8', START + i, 'camera',
                                   START + i * STEP)
                _, jpeg = cv2.imencode('.jpg', picture(i))
                writer.write('/jpeg', bags.compressed_image_message(
                    jpeg.tobytes(), 'jpeg', START + i, 'camera'), START + i * STEP)
        return path

    first, second = (write_masks(tmp_path / part / name) for part in 'ab')
    assert [path.name for path in first.parent.iterdir()] == [name]
    messages = [(topic, STORE.deserialize_cdr(data, kind)) for topic, kind, data in
                read_elsewhere(first)]
    masks = [message for topic, message in messages if topic == '/mask']
    assert len(messages) == 6
    for i, message in enumerate(masks):
        assert (message.encoding, message.step, message.is_bigendian) == ('mono8', 100, 0)
        assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == START + i
        np.testing.assert_array_equal(message.data.reshape(60, 100), picture(i)[..., 0])
    if storage != 'sqlite3' and name != 'masks.db3':
        def files(path):
            return sorted(path.rglob('*')) if path.is_dir() else [path]
        assert ([file.read_bytes() for file in files(first)]
                == [file.read_bytes() for file in files(second)])


def test_a_bag_that_failed_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), bags.Writer(tmp_path / 'masks') as writer:
        writer.write_image('/mask', picture(0), 'bgr8', START, 'camera')
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_not_overwritten(tmp_path):
    (tmp_path / 'masks').mkdir()
    with pytest.raises(InputError, match='exists already'):
        bags.Writer(tmp_path / 'masks')


def test_read_images_gives_pixels_and_their_order(tmp_path):
    path = tmp_path / 'bag'
    _, png = cv2.imencode('.png', picture(4))
    with bags.Writer(path) as writer:
        writer.write_image('/bgr', picture(1), 'bgr8', START, 'a')
        writer.write_image('/rgb', picture(2), 'rgb8', START + 1, 'b')
        writer.write_image('/mask', picture(3)[..., 0], 'mono8', START + 2, 'c')
        writer.write('/png', bags.compressed_image_message(png.tobytes(), 'png', START + 3, 'd'),
                     START + 3)
    found = list(bags.read_images(path))
    assert [(topic, frame.color, frame.frame_id, frame.stamp_ns - START)
            for topic, frame in found] == [('/bgr', 'bgr', 'a', 0), ('/rgb', 'rgb', 'b', 1),
                                           ('/mask', 'mono', 'c', 2), ('/png', 'bgr', 'd', 3)]
    for (_, frame), expected in zip(found, [picture(1), picture(2), picture(3)[..., 0],
                                            picture(4)]):
        np.testing.assert_array_equal(frame.image, expected)
    assert [topic for topic, _ in bags.read_images(path, ['/rgb'])] == ['/rgb']


def test_read_images_fails_where_anything_is_wrong(tmp_path):
    path = write(tmp_path / 'bag', count=60)
    data = (path / 'bag.mcap').read_bytes()
    (path / 'bag.mcap').write_bytes(data[:len(data) // 2])
    with pytest.raises(InputError, match='the file ends within a record'):
        list(bags.read_images(path))
    with bags.Writer(tmp_path / 'odd') as writer:
        writer.write_image('/x', picture(1), 'what', START, 'a')
    with pytest.raises(InputError, match='encoding'):
        list(bags.read_images(tmp_path / 'odd'))


def test_is_bag(tmp_path):
    assert storage.is_bag(write(tmp_path / 'bag'))
    assert storage.is_bag(tmp_path / 'bag' / 'bag.mcap')
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'a.png').write_bytes(b'')
    assert not storage.is_bag(tmp_path / 'images')
    assert not storage.is_bag(tmp_path / 'images' / 'a.png')
    assert not storage.is_bag(Path('/nowhere'))


@pytest.mark.parametrize('name', ['bag.db3', 'bag.mcap', 'bag'])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, name):
    program = ("import sys, numpy as np; from trt_segmentation.recordings.bags import Writer; "
               "from trt_segmentation.errors import InputError\n"
               "try:\n"
               "    with Writer(sys.argv[1]) as writer:\n"
               "        for i in range(20):\n"
               "            image = np.zeros((100, 100, 3), np.uint8)\n"
               "            writer.write_image('/a', image, 'bgr8', i, 'camera')\n"
               "except InputError as error: print(error)\n")
    # No file may grow past 200 kB: writing fails as on a full disk, with another errno.
    done = subprocess.run(
        ['bash', '-c', 'ulimit -f 200; exec "$@"', '', sys.executable, '-c', program,
         str(tmp_path / name)], capture_output=True, text=True, check=True)
    assert f'{name}: cannot be written: ' in done.stdout, done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
