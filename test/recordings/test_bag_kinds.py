# SPDX-License-Identifier: Apache-2.0
"""Recordings as people have them: killed recorders, ROS 1, odd metadata, many topics, bombs."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
import io
import os
import pickle
import resource
import shutil
import sqlite3
import subprocess
import sys

import cv2
import mcap.reader
import mcap.writer
import numpy as np
import pytest
from rosbags import rosbag1
from rosbags.highlevel import AnyReader
from rosbags.typesys import get_typestore, Stores
from support.cleaning import cleaned_up_before_it_is_held
import yaml
import zstandard

from trt_segmentation.calibration import sources
from trt_segmentation.errors import InputError
from trt_segmentation.recordings import bags, message_types, pictures, storage

START = 1_700_000_000_000_000_000
STEP = 50_000_000
ROS2, ROS1 = get_typestore(Stores.ROS2_HUMBLE), get_typestore(Stores.ROS1_NOETIC)


def picture(number, size=(12, 20)):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def image(number, stamp=None):
    return bags.image_message(picture(number), 'bgr8',
                              START + number * STEP if stamp is None else stamp, 'camera')


def cdr(message):
    return bytes(ROS2.serialize_cdr(message, message.__msgtype__))


def numbers(reader):
    """Return which pictures the messages of a reader hold, each checked for all its pixels."""
    found = []
    for recorded in reader:
        number = (recorded.stamp_ns - START) // STEP
        np.testing.assert_array_equal(recorded.message.data, picture(number).reshape(-1))
        np.testing.assert_array_equal(reader.load(recorded.place).data, recorded.message.data)
        found.append(number)
    return found


def write(path, count=6, **options):
    with bags.Writer(path, **options) as writer:
        for i in range(count):
            writer.write('/camera/image_raw', image(i), START + i * STEP)
    return path


def change_metadata(path, change):
    document = yaml.safe_load((path / 'metadata.yaml').read_text())
    change(document['rosbag2_bagfile_information'])
    (path / 'metadata.yaml').write_text(yaml.safe_dump(document))
    return path


# ---- metadata.yaml


def other_qos(information):
    for topic in information['topics_with_message_count']:
        topic['topic_metadata']['offered_qos_profiles'] = '- history: 3\n  depth: 5'


@pytest.mark.parametrize('storage_', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('change', [
    other_qos,
    lambda information: information.update(version=10),
    lambda information: information.update(version=4),
    lambda information: information.update(storage_identifier=''),
    lambda information: information.update(compression_format='zstd', compression_mode=''),
    lambda information: information.pop('duration'),
    lambda information: information.update(relative_file_paths=[
        f'elsewhere/{name}' for name in information['relative_file_paths']]),
], ids=['qos', 'version 10', 'version 4', 'no storage', 'no mode', 'no duration', 'moved'])
def test_odd_metadata_costs_nothing(tmp_path, storage_, change):
    reader = bags.Reader(change_metadata(write(tmp_path / 'bag', storage=storage_), change))
    assert numbers(reader) == list(range(6))
    assert reader.problems == [] and reader.count == 6
    assert len(pictures.from_bag(tmp_path / 'bag')) == 6  # calibrate reads what replay reads


@pytest.mark.parametrize('promised', [5, 600])
def test_what_is_promised_is_compared_with_what_is_read(tmp_path, promised):
    def change(information):
        information['topics_with_message_count'][0]['message_count'] = promised
    reader = bags.Reader(change_metadata(write(tmp_path / 'bag'), change))
    assert numbers(reader) == list(range(6))
    assert reader.given == {'/camera/image_raw': 6}
    assert [f'{promised} messages are promised, 6 could be read' in problem
            for problem in reader.problems] == [True]


def promises_in_all(number, keep):
    """Promise a number of all messages, and so many of those of each topic."""
    def change(information):
        information['message_count'] = number
        if keep is None:
            information['topics_with_message_count'] = []
        else:
            information['topics_with_message_count'][0]['message_count'] = keep
    return change


@pytest.mark.parametrize('storage_', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('keep', [None, 6])
def test_what_is_promised_in_all_is_compared_where_the_topics_are_promised_less(tmp_path, keep,
                                                                                storage_):
    path = write(tmp_path / 'bag', storage=storage_)
    if storage_ == 'mcap':
        with open(path / 'bag.mcap', 'rb') as file:
            if mcap.reader.make_reader(file).get_summary().statistics is None:
                pytest.skip('this rosbags does not write how many messages there are')
    reader = bags.Reader(change_metadata(path, promises_in_all(9, keep)))
    assert numbers(reader) == list(range(6))
    assert [problem.partition(': ')[2] for problem in reader.problems] == [
        '9 messages are promised in all, 6 are there']
    for number in (6, 0):  # what is there, or nothing of use
        reader = bags.Reader(change_metadata(path, promises_in_all(number, keep)))
        assert numbers(reader) == list(range(6)) and reader.problems == []


def information_with(**changes):
    """Return metadata.yaml's text of one topic, with other values."""
    topic = {'topic_metadata': {'name': '/camera/image_raw'}, 'message_count': 6}
    return yaml.safe_dump({'rosbag2_bagfile_information': {
        'relative_file_paths': ['bag.mcap'], 'topics_with_message_count': [topic], **changes}})


@pytest.mark.parametrize(('text', 'words'), [
    ('', 'the file is empty, expected a mapping'), ('[]', 'the file is [], expected a mapping'),
    ('17', 'the file is 17, expected a mapping'),
    ('a: 3', "'rosbag2_bagfile_information' is missing"),
    ('rosbag2_bagfile_information: 3', 'rosbag2_bagfile_information is 3, expected a mapping'),
    ('\0', 'not valid YAML: unacceptable character'), ('[' * 5000, 'cannot be read: '),
    ('a:\n  b: [', 'not valid YAML: line '), ('a: 2026-99-99', 'not valid YAML: a value'),
    ('a: !!timestamp x', 'not valid YAML: a value'),
    (b'\xff\0', 'it is not UTF-8'),
    (information_with(relative_file_paths=3), 'relative_file_paths is 3, expected a list'),
    (information_with(relative_file_paths=[3]), 'relative_file_paths is 3, expected text'),
    (information_with(topics_with_message_count={}), 'is {}, expected a list'),
    (information_with(topics_with_message_count=['x']), "is 'x', expected a mapping"),
    (information_with(topics_with_message_count=[{'topic_metadata': {}}]), "'name' is missing"),
    (information_with(topics_with_message_count=[
        {'topic_metadata': {'name': ['a']}, 'message_count': 6}]), "is ['a'], expected text"),
    (information_with(message_count='many'), "message_count is 'many', expected a count"),
    (information_with(message_count=-1), 'message_count is -1, expected a count'),
    (information_with(message_count=None), 'message_count is empty, expected a count'),
])
def test_metadata_that_is_none_is_named_and_all_is_read(tmp_path, text, words):
    (write(tmp_path / 'bag') / 'metadata.yaml').write_bytes(
        text if isinstance(text, bytes) else text.encode())
    reader = bags.Reader(tmp_path / 'bag')
    assert numbers(reader) == list(range(6))
    (problem,) = reader.problems
    assert 'metadata.yaml: cannot be read: ' in problem and words in problem
    assert '\n' not in problem


# ---- times and names that are none


@pytest.mark.parametrize('value', [-5, 'abc', 'a\nb', 1.5, None, b'x', 1 << 63])
def test_a_message_whose_time_is_none_is_named_and_the_rest_is_read(tmp_path, value):
    if value == 1 << 63:  # as mcap can hold it, and nothing else
        path = write_mcap(tmp_path / 'bag.mcap', [
            (value if i == 2 else START + i * STEP, cdr(image(i))) for i in range(6)])
    else:
        path = write(tmp_path / 'bag', storage='sqlite3') / 'bag.db3'
        with closing(sqlite3.connect(path)) as database, database:
            database.executescript(  # rosbag2's own column takes no null
                'CREATE TABLE other(id INTEGER PRIMARY KEY, topic_id, timestamp, data);'
                'INSERT INTO other SELECT id, topic_id, timestamp, data FROM messages;'
                'DROP TABLE messages; ALTER TABLE other RENAME TO messages')
            database.execute('UPDATE messages SET timestamp = ? WHERE id = 3', (value,))
    reader = bags.Reader(path)
    reader.choose_cameras()
    assert numbers(reader) == [0, 1, 3, 4, 5]
    (problem,) = reader.problems
    assert problem.startswith('/camera/image_raw at ') and '\n' not in problem
    assert problem.endswith('the time of recording is none; expected nanoseconds, 0 to 2^63 - 1')
    assert len(pictures.from_bag(path, spacing=STEP / 2e9)) == 5


@pytest.mark.parametrize(('seconds', 'nanoseconds', 'is_one'), [
    (2**31 - 1, 10**9 - 1, True), (-2**31, 0, True), (1, 2**32 - 1, True),
    (2**31 - 1, 2**32 - 1, False)])
def test_a_stamp_that_no_mask_can_have_is_named(tmp_path, seconds, nanoseconds, is_one):
    message = image(0)
    message.header.stamp = ROS2.types['builtin_interfaces/msg/Time'](seconds, nanoseconds)
    path = write_mcap(tmp_path / 'bag.mcap', [(START, cdr(message)), (START + 1, cdr(image(1)))])
    reader = bags.Reader(path)
    found = [recorded.stamp_ns for recorded in reader]
    assert found == [seconds * 10**9 + nanoseconds] * is_one + [START + STEP]
    assert len(reader.problems) == (not is_one)
    with bags.Writer(tmp_path / 'masks') as writer:
        for stamp_ns in found:
            writer.write_image('/mask', picture(0), 'bgr8', stamp_ns, '', START)


@pytest.mark.parametrize('storage_', ['mcap', 'sqlite3'])
def test_a_topic_whose_name_has_control_characters_stays_one_line(tmp_path, storage_):
    topics = '/a\nb/image', '/c\x1b[31m\r/image_raw/zstd', '/\u00fc b/image'
    with bags.Writer(tmp_path / 'bag', storage=storage_) as writer:
        for topic in topics:
            writer.write(topic, image(0), START)
        writer.write(topics[0], bags.image_message(picture(1), 'bgr8', START, ''), START)
    change_metadata(tmp_path / 'bag', lambda information: information[
        'topics_with_message_count'][0].update(message_count=5))
    reader = bags.Reader(tmp_path / 'bag')
    reader.choose_cameras()
    assert list(reader.topics) == [r'/a\nb/image', '/\u00fc b/image']
    assert list(reader.left_out) == [r'/c\x1b[31m\r/image_raw/zstd']
    assert sorted(recorded.topic for recorded in reader) == [
        r'/a\nb/image', r'/a\nb/image', '/\u00fc b/image']
    assert [r': /a\nb/image: 5 messages are promised' in problem
            for problem in reader.problems] == [True]
    reader.choose_cameras([r'/a\nb/image'])  # as it is shown
    assert len(list(reader)) == 2


def test_a_file_that_metadata_does_not_list_is_named_and_not_read(tmp_path):
    path = write(tmp_path / 'bag')
    shutil.copy(path / 'bag.mcap', path / 'older.mcap')
    reader = bags.Reader(path)
    assert numbers(reader) == list(range(6))
    assert ['older.mcap: not read' in problem for problem in reader.problems] == [True]


def test_a_file_beside_its_packed_one_is_read_once(tmp_path):
    path = write(tmp_path / 'bag')
    (path / 'bag.mcap.zstd').write_bytes(zstandard.compress((path / 'bag.mcap').read_bytes()))
    (path / 'metadata.yaml').unlink()
    assert numbers(bags.Reader(path)) == list(range(6))


# ---- a recorder that was killed


@pytest.mark.parametrize('single', [False, True])
@pytest.mark.parametrize('mode', ['wal', 'delete'])
def test_what_a_killed_recorder_left_beside_the_database_is_read(tmp_path, single, mode):
    """A recorder is killed in the middle of its work; its database must not be changed."""
    path = write(tmp_path / 'bag', 2, storage='sqlite3')
    file = path / 'bag.db3'
    program = (
        'import os, signal, sqlite3, sys, pickle\n'
        'database = sqlite3.connect(sys.argv[1], isolation_level=None)\n'
        "database.execute('PRAGMA journal_mode=' + sys.argv[2])\n"
        "database.execute('PRAGMA wal_autocheckpoint=0')\n"
        "database.execute('PRAGMA cache_size=1')\n"
        'for time_ns, data in pickle.load(sys.stdin.buffer):\n'
        "    database.execute('BEGIN')\n"
        "    database.execute('INSERT INTO messages(topic_id, timestamp, data) VALUES (1, ?, ?)',"
        ' (time_ns, data))\n'
        "    database.execute('COMMIT')\n"
        "database.execute('BEGIN')\n"  # what is not committed is not there
        "database.execute('UPDATE messages SET data = zeroblob(50000)')\n"
        'os.kill(os.getpid(), signal.SIGKILL)\n')
    rows = [(START + i * STEP, cdr(image(i))) for i in range(2, 6)]
    subprocess.run([sys.executable, '-c', program, str(file), mode], input=pickle.dumps(rows),
                   check=False)
    side = file.with_name(f'bag.db3-{"wal" if mode == "wal" else "journal"}')
    assert side.stat().st_size
    (path / 'metadata.yaml').unlink()
    before = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    reader = bags.Reader(file if single else path)
    assert numbers(reader) == list(range(6))
    reader.close()
    assert {entry.name: entry.read_bytes() for entry in path.iterdir()} == before
    assert [problem for problem in reader.problems if 'metadata' not in problem] == []


def test_without_room_for_a_copy_the_unread_bytes_are_named(tmp_path, monkeypatch):
    path = write(tmp_path / 'bag', 2, storage='sqlite3')
    (path / 'bag.db3-wal').write_bytes(b'x' * 100)
    monkeypatch.setattr(storage, '_FREE', 1 << 60)
    with pytest.raises(InputError, match=r'bag\.db3: reading it takes a copy.*TMPDIR'):
        bags.Reader(path)


# ---- mcap as others write it


def write_mcap(path, messages, profile='ros2', channels=1, encoding='cdr', **options):
    """Write (time, data) with the mcap project's writer, by turns in several channels."""
    name = bags.IMAGE if encoding == 'cdr' else 'sensor_msgs/Image'
    definition, _ = ROS2.generate_msgdef(bags.IMAGE, ros_version=2 if encoding == 'cdr' else 1)
    with open(path, 'wb') as stream:
        writer = mcap.writer.Writer(stream, **options)
        writer.start(profile, 'test')
        schema = writer.register_schema(name, f'ros{2 if encoding == "cdr" else 1}msg',
                                        definition.encode())
        ids = [writer.register_channel('/camera/image_raw', encoding, schema)
               for _ in range(channels)]
        for i, (time_ns, data) in enumerate(messages):
            writer.add_message(ids[i % channels], time_ns, data, time_ns)
        writer.finish()
    return path


INDEX = dict.fromkeys(('use_chunking', 'use_statistics', 'use_summary_offsets'), False)
NO_INDEX = {**INDEX, 'index_types': mcap.writer.IndexType.NONE}


@pytest.mark.parametrize(('profile', 'options'), [
    ('', {}), ('ros2', {'compression': mcap.writer.CompressionType.LZ4}),
    ('ros2', {'compression': mcap.writer.CompressionType.NONE}),
    ('ros2', {'use_chunking': False}),
    ('ros2', NO_INDEX), ('ros2', {**NO_INDEX, 'use_chunking': True}),
    ('ros2', {'repeat_channels': False}), ('ros2', {'repeat_schemas': False}),
    ('ros2', {'index_types': mcap.writer.IndexType.CHUNK}),
    ('ros2', {'use_statistics': False}), ('ros2', {'enable_crcs': False}),
], ids=str)
@pytest.mark.parametrize('channels', [1, 2])
def test_every_kind_of_mcap_is_read(tmp_path, profile, options, channels):
    messages = [(START + i * STEP, cdr(image(i))) for i in range(9)]
    path = write_mcap(tmp_path / 'bag.mcap', messages, profile, channels, chunk_size=2000,
                      **options)
    reader = bags.Reader(path)
    assert numbers(reader) == list(range(9))
    assert reader.problems == []
    found = pictures.from_bag(path)  # one topic in two channels is one topic
    assert len({candidate.load()[0] for candidate in found}) == 9


def test_messages_out_of_order_and_of_one_time_come_by_time_each_once(tmp_path):
    """As after a loop, a clock set back, two drivers: what the index tells is the order."""
    order = [3, 0, 5, 1, 4, 2, 8, 7, 6]
    times = {i: START + (i // 3) * STEP for i in order}  # three of each time
    path = write_mcap(tmp_path / 'bag.mcap', [(times[i], cdr(image(i))) for i in order],
                      chunk_size=1500)
    found = numbers(bags.Reader(path))
    assert sorted(found) == list(range(9))
    assert [i // 3 for i in found] == sorted(i // 3 for i in found)
    assert [i for i in found if i < 3] == [0, 1, 2]  # of one time, as they were written
    candidates = pictures.from_bag(path)
    assert len({candidate.name for candidate in candidates}) == 9
    assert len({candidate.load()[0] for candidate in candidates}) == 9
    spaced = pictures.from_bag(path, spacing=1.5 * STEP / 1e9)
    assert len(spaced) == 2


def test_without_an_index_messages_come_as_they_lie_in_the_file(tmp_path):
    order = [3, 0, 2, 1]
    path = write_mcap(tmp_path / 'bag.mcap', [(START + i * STEP, cdr(image(i))) for i in order],
                      **NO_INDEX)
    assert numbers(bags.Reader(path)) == order
    assert len(pictures.from_bag(path)) == 4
    assert len(pictures.from_bag(path, spacing=1.5 * STEP / 1e9)) == 3


def test_a_damaged_index_is_named_and_the_file_read_from_its_start(tmp_path):
    path = write_mcap(tmp_path / 'bag.mcap', [(START + i * STEP, cdr(image(i)))
                                              for i in range(9)], chunk_size=2000)
    data = bytearray(path.read_bytes())
    data[-60] ^= 1  # within the summary
    path.write_bytes(data)
    reader = bags.Reader(path)
    assert numbers(reader) == list(range(9))
    assert ['index' in problem for problem in reader.problems] == [True]


def test_images_in_another_serialization_are_named(tmp_path):
    with open(tmp_path / 'bag.mcap', 'wb') as stream:
        writer = mcap.writer.Writer(stream)
        writer.start('', 'test')
        schema = writer.register_schema('foxglove.CompressedImage', 'protobuf', b'')
        channel = writer.register_channel('/front', 'protobuf', schema)
        writer.add_message(channel, START, b'data', START)
        writer.finish()
    with pytest.raises(InputError, match=r'foxglove\.CompressedImage in protobuf on /front'):
        bags.Reader(tmp_path / 'bag.mcap')


# ---- ROS 1


def ros1_image(number):
    types = ROS1.types
    message = image(number)
    header = types['std_msgs/msg/Header'](number, message.header.stamp, 'camera')
    return ROS1.serialize_ros1(types[bags.IMAGE](
        header, message.height, message.width, 'bgr8', 0, message.step, message.data), bags.IMAGE)


@pytest.mark.parametrize('compression', [None, 'BZ2', 'LZ4'])
def test_ros1_bags_are_read(tmp_path, compression):
    writer = rosbag1.Writer(tmp_path / 'drive.bag')
    if compression:
        writer.set_compression(rosbag1.Writer.CompressionFormat[compression])
    with writer:
        connection = writer.add_connection('/camera/image_raw', bags.IMAGE, typestore=ROS1)
        for i in range(6):
            writer.write(connection, START + (i // 2) * STEP, ros1_image(i))  # two of each time
    reader = bags.Reader(tmp_path / 'drive.bag')
    assert reader.count == 6 and numbers(reader) == list(range(6)) and reader.problems == []
    found = pictures.from_bag(tmp_path / 'drive.bag')
    assert len({candidate.load()[0] for candidate in found}) == 6


def test_ros1_messages_in_mcap_are_read(tmp_path):
    messages = [(START + i * STEP, bytes(ros1_image(i))) for i in range(6)]
    path = write_mcap(tmp_path / 'bag.mcap', messages, 'ros1', encoding='ros1')
    assert numbers(bags.Reader(path)) == list(range(6))


@pytest.mark.parametrize('data', [b'#ROSBAG V2.0\n', b'#ROSBAG V2.0\n' + b'x' * 5000])
def test_a_ros1_bag_without_index_is_named_with_what_mends_it(tmp_path, data):
    (tmp_path / 'drive.bag').write_bytes(data)
    with pytest.raises(InputError, match=r'rosbag reindex drive\.bag'):
        bags.Reader(tmp_path / 'drive.bag')


# ---- which topics


def test_one_transport_a_camera_and_no_masks_depth_or_empty_topics(tmp_path):
    """What `ros2 bag record -a` of a camera with depth, and of this node, has."""
    png = bytes(cv2.imencode('.png', picture(0))[1])
    depth = np.zeros((12, 20), np.uint16)

    def compressed(data, format_):
        return bags.compressed_image_message(data, format_, START, '')

    messages = {
        '/front/image_raw': image(0), '/front/image_raw/compressed': compressed(png, 'png'),
        '/front/image_raw/zstd': compressed(zstandard.compress(b'x' * 99), 'bgr8; zstd'),
        '/front/image_raw/compressedDepth': compressed(b'x' * 12 + png,
                                                       '16UC1; compressedDepth png'),
        '/rear/image_raw/compressed': compressed(png, 'png'),
        '/left/image_raw/zstd': compressed(zstandard.compress(b'x' * 99), 'bgr8; zstd'),
        '/depth/image_rect_raw': bags.image_message(depth.view(np.uint8), '16UC1', START, ''),
        '/odd': bags.image_message(depth.view(np.uint8), 'of_a_camera', START, ''),
        '/segmentation/class_mask': image(1), '/segmentation/color_mask': image(1),
        '/segmentation/overlay': image(1), '/segmentation/class_mask/compressed':
            compressed(png, 'png'),
    }
    with bags.Writer(tmp_path / 'bag') as writer:
        for topic, message in messages.items():
            writer.write(topic, message, START)
        writer._connections['/empty/image_raw'] = writer._writer.add_connection(
            '/empty/image_raw', bags.IMAGE, typestore=ROS2)
    reader = bags.Reader(tmp_path / 'bag')
    reader.choose_cameras()
    assert sorted(reader.topics) == ['/front/image_raw', '/rear/image_raw/compressed']
    assert set(reader.left_out) == {*messages, '/empty/image_raw'} - set(reader.topics)
    for topic, words in {
            '/front/image_raw/compressed': 'the pictures of /front/image_raw again',
            '/front/image_raw/zstd': 'again', '/front/image_raw/compressedDepth': 'depth',
            '/left/image_raw/zstd': 'republish zstd raw', '/depth/image_rect_raw': '16UC1',
            '/odd': 'of_a_camera', '/empty/image_raw': 'no messages',
            '/segmentation/class_mask': 'masks'}.items():
        assert words in reader.left_out[topic], topic
    found = pictures.from_bag(tmp_path / 'bag')  # the same choice
    assert len(found) == 2
    reader.choose_cameras(['/depth/image_rect_raw'])  # what is named is read
    assert list(reader.topics) == ['/depth/image_rect_raw']


def test_a_raw_topic_without_messages_does_not_hide_the_compressed_one(tmp_path):
    png = bytes(cv2.imencode('.png', picture(0))[1])
    with bags.Writer(tmp_path / 'bag') as writer:
        writer._connections['x'] = None
        writer._writer.add_connection('/front', bags.IMAGE, typestore=ROS2)
        writer.write('/front/compressed', bags.compressed_image_message(png, 'png', 0, ''), START)
    reader = bags.Reader(tmp_path / 'bag')
    reader.choose_cameras()
    assert list(reader.topics) == ['/front/compressed']


def test_recordings_below_a_directory_and_of_a_glob_are_found(tmp_path):
    write(tmp_path / 'drives/monday/bag')
    write(tmp_path / 'drives/tuesday.mcap')
    write(tmp_path / 'drives/.hidden/bag')
    (tmp_path / 'drives/tuesday.mcap.zstd').write_bytes(  # which was unpacked beside it
        zstandard.compress((tmp_path / 'drives/tuesday.mcap').read_bytes()))
    (tmp_path / 'drives/again').symlink_to(tmp_path / 'drives')
    expected = [tmp_path / 'drives/monday/bag', tmp_path / 'drives/tuesday.mcap']
    assert storage.within(tmp_path / 'drives') == expected
    assert storage.within(f'{tmp_path}/drives/*/bag') == expected[:1]
    assert storage.within(f'{tmp_path}/drives/*.mcap') == expected[1:]
    assert storage.within(f'{tmp_path}/drives/*.mcap*') == expected[1:]
    assert storage.within(f'{tmp_path}/drives/monday/**') == expected[:1]
    assert len(sources.find([tmp_path / 'drives'])) == 12
    cv2.imwrite(str(tmp_path / 'drives/x.png'), picture(0))
    assert len(sources.find([tmp_path / 'drives'])) == 13
    assert len(sources.find([f'{tmp_path}/drives/*'])) == 7
    assert storage.within(expected[1]) == expected[1:]
    (expected[0] / 'metadata.yaml').unlink()  # as after a crash
    crashed = [expected[0] / 'bag.mcap']
    assert storage.within(tmp_path / 'drives') == crashed + expected[1:]
    assert storage.within(f'{tmp_path}/drives/*/bag') == crashed
    assert storage.within(f'{tmp_path}/drives/monday/**') == crashed
    assert storage.within(tmp_path / 'nowhere') == []


def test_a_directory_is_one_recording_if_nothing_else_lies_there(tmp_path):
    bag = write(tmp_path / 'drives/monday/bag')
    data = (bag / 'bag.mcap').read_bytes()
    (bag / 'bag_1.mcap').write_bytes(data)
    assert storage.is_bag(bag) and not storage.is_bag(bag.parent)
    (bag / 'metadata.yaml').unlink()
    (bag / 'bag.mcap').rename(bag / 'bag_0.mcap')
    assert storage.is_bag(bag) and storage.is_bag(bag / 'bag_1.mcap')
    (bag / 'other.mcap').write_bytes(data)
    assert not storage.is_bag(bag)
    (tmp_path / 'drives/loose.bag').write_bytes(b'#ROSBAG V2.0')
    assert not storage.is_bag(tmp_path / 'drives')
    assert len(storage.within(tmp_path / 'drives')) == 4


# ---- what is written


@pytest.mark.parametrize('storage_', ['mcap', 'sqlite3'])
def test_what_is_written_opens_on_humble_and_in_other_readers(tmp_path, storage_):
    path = write(tmp_path / 'bag', storage=storage_)
    information = yaml.safe_load((path / 'metadata.yaml').read_text())[
        'rosbag2_bagfile_information']
    assert information['version'] <= 8
    # Up to version 8 the profiles are YAML within a string; Humble reads nothing else.
    assert all(isinstance(topic['topic_metadata']['offered_qos_profiles'], str)
               for topic in information['topics_with_message_count'])
    with AnyReader([path]) as reader:
        assert len(list(reader.messages())) == 6
    if storage_ == 'mcap':
        with open(path / 'bag.mcap', 'rb') as stream:
            reader = mcap.reader.make_reader(stream, validate_crcs=True)
            assert [message.log_time for _, _, message in reader.iter_messages()] == [
                START + i * STEP for i in range(6)]
            assert reader.get_header().profile == 'ros2'
            assert {schema.encoding for schema in reader.get_summary().schemas.values()} == {
                'ros2msg'}
    else:
        database = sqlite3.connect(path / 'bag.db3')
        assert database.execute('SELECT count(*) FROM messages').fetchone() == (6,)
        database.close()


# ---- bombs: small files that claim, or become, a great deal


def limited(path):
    """Read a recording in a process that may not have 1.5 GiB; return what it says."""
    program = ('import sys, logging\n'
               'from trt_segmentation.errors import InputError\n'
               'from trt_segmentation.recordings import bags\n'
               'try:\n'
               '    reader = bags.Reader(sys.argv[1])\n'
               '    print(sum(1 for _ in reader), "read")\n'
               '    print(*reader.problems, sep="\\n")\n'
               'except InputError as error: print(error)\n')

    def limit():
        resource.setrlimit(resource.RLIMIT_DATA, (3 << 29, 3 << 29))

    done = subprocess.run([sys.executable, '-c', program, str(path)], capture_output=True,
                          text=True, preexec_fn=limit)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'Traceback' not in done.stderr
    return done.stdout


def zeros(size):
    """Return zstd data of zeros."""
    stream = zstandard.ZstdCompressor(level=1).compressobj()
    out = io.BytesIO()
    block = bytes(1 << 20)
    for _ in range(size >> 20):
        out.write(stream.compress(block))
    return out.getvalue() + stream.flush()


def mcap_record(opcode, content):
    return bytes([opcode]) + len(content).to_bytes(8, 'little') + content


@pytest.mark.parametrize('claimed', [2 << 30, 1000])
def test_a_chunk_that_becomes_gigabytes_is_not_unpacked(tmp_path, claimed):
    path = write(tmp_path / 'bag.mcap')
    data = path.read_bytes()
    packed = zeros(2 << 30)
    chunk = (START.to_bytes(8, 'little') * 2 + claimed.to_bytes(8, 'little') + bytes(4)
             + (4).to_bytes(4, 'little') + b'zstd' + len(packed).to_bytes(8, 'little') + packed)
    end = data.rfind(b'\x0f' + (4).to_bytes(8, 'little'))  # the end of data
    path.write_bytes(data[:end] + mcap_record(6, chunk) + data[end:-37] + data[-8:])
    said = limited(path)
    assert said.startswith('6 read') and 'when decompressed' in said


def test_a_chunk_of_millions_of_empty_messages_is_not_listed(tmp_path):
    path = write(tmp_path / 'bag.mcap')
    data = path.read_bytes()
    record = mcap_record(5, (1).to_bytes(2, 'little') + bytes(4) + START.to_bytes(8, 'little') * 2)
    records = record * (3 << 20)
    packed = zstandard.compress(records)
    chunk = (START.to_bytes(8, 'little') * 2 + len(records).to_bytes(8, 'little') + bytes(4)
             + (4).to_bytes(4, 'little') + b'zstd' + len(packed).to_bytes(8, 'little') + packed)
    end = data.rfind(b'\x0f' + (4).to_bytes(8, 'little'))
    path.write_bytes(data[:end] + mcap_record(6, chunk) + data[end:-37] + data[-8:])
    assert 'more than 1048576 records' in limited(path)


def test_a_billion_laughs_in_metadata_are_none(tmp_path):
    path = write(tmp_path / 'bag')
    lines = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]']
    lines += [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]' for i in range(1, 12)]
    (path / 'metadata.yaml').write_text('\n'.join([
        *lines, 'rosbag2_bagfile_information:', '  relative_file_paths: [*a11]',
        '  topics_with_message_count: []']))
    said = limited(path)
    assert said.startswith('6 read') and 'metadata.yaml: cannot be read' in said


def test_what_is_no_file_does_not_stop_the_reader(tmp_path):
    path = write(tmp_path / 'bag')
    os.mkfifo(path / 'pipe.mcap')  # opening it would wait for ever
    (path / 'gone.mcap').symlink_to('nowhere')
    (path / 'folder.db3').mkdir()
    assert numbers(bags.Reader(path)) == list(range(6))
    assert bags.Reader(path).problems == []
    (path / 'metadata.yaml').unlink()
    assert numbers(bags.Reader(path)) == list(range(6))


def test_a_message_that_becomes_gigabytes_is_not_unpacked(tmp_path):
    path = write(tmp_path / 'bag', storage='sqlite3')
    database = sqlite3.connect(path / 'bag.db3')
    with database:
        database.execute('INSERT INTO messages(topic_id, timestamp, data) VALUES (1, ?, ?)',
                         (START + 9 * STEP, zeros(1 << 30)))
    database.close()
    said = limited(path)
    assert said.startswith('6 read') and 'when decompressed' in said


def test_a_packed_file_that_becomes_terabytes_stops_at_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, '_FREE', 1 << 22)
    monkeypatch.setattr(storage, '_RATIO', 10)
    (tmp_path / 'a.db3.zstd').write_bytes(zeros(1 << 27))
    with pytest.raises(InputError, match='unpacks to more than 4 MiB'):
        bags.Reader(tmp_path / 'a.db3.zstd')


@pytest.mark.parametrize('messages', [
    'CREATE VIEW messages AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) '
    'SELECT i AS id, 1 AS topic_id, i AS timestamp, zeroblob(1000000000) AS data FROM n',
    'CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, '
    'data BLOB AS (zeroblob(1000000000)))',
    'CREATE VIRTUAL TABLE messages USING fts4(id, topic_id, timestamp, data)',
    'CREATE TABLE messages(id INTEGER PRIMARY KEY, data BLOB)',
], ids=['view', 'computed', 'virtual', 'other columns'])
def test_a_database_that_makes_messages_out_of_nothing_is_refused(tmp_path, messages):
    path = write(tmp_path / 'bag', storage='sqlite3')
    database = sqlite3.connect(path / 'bag.db3')
    with database:
        database.execute('DROP TABLE messages')
        database.execute(messages)
    database.close()
    assert "no plain table 'messages'" in limited(path)


# ---- many files, many threads, missing libraries, killed writers


def test_pictures_of_many_files_are_loaded_by_many_threads(tmp_path):
    (tmp_path / 'bag').mkdir()
    for i in range(40):  # more than are open at once
        with bags.Writer(tmp_path / f'bag/bag_{i}.{"db3" if i % 2 else "mcap"}') as writer:
            writer.write('/camera', image(i), START + i * STEP)
    found = pictures.from_bag(tmp_path / 'bag')
    assert len(found) == 40  # though time goes back from one file to the next
    numbers_ = [(int(candidate.name.partition('@')[2]) - START) // STEP for candidate in found]
    order = list(np.random.default_rng(0).permutation(40)) * 3
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda i: found[i].load()[1], order))
    for i, pixels in zip(order, loaded):
        np.testing.assert_array_equal(pixels, picture(numbers_[i]))


@pytest.mark.parametrize(('library', 'name'), [
    ('mcap', 'bag.mcap'), ('rosbags', 'bag.bag'), ('rosbags', 'bag.mcap'), ('rosbags', 'bag.db3')])
def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch, library, name):
    if name == 'bag.bag':
        (tmp_path / name).write_bytes(b'x' * 100)
    else:
        write(tmp_path / name)
    message_types.typestore.cache_clear()
    for module in [module for module in sys.modules if module.partition('.')[0] == library]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"'{library}', which is not installed: pip install"):
        list(bags.Reader(tmp_path / name))


@pytest.mark.parametrize('name', ['bag', 'bag.mcap', 'b[a]g.db3'])
def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path, name):
    program = ('import os, signal, sys, numpy as np\n'
               'from trt_segmentation.recordings import bags\n'
               'with bags.Writer(sys.argv[1]) as writer:\n'
               '    writer.write_image("/a", np.zeros((9, 9), np.uint8), "mono8", 0, "")\n'
               '    if sys.argv[2] == "die": os.kill(os.getpid(), signal.SIGKILL)\n'
               '    print("there", flush=True)\n'
               '    sys.stdin.read()\n')
    command = [sys.executable, '-c', program, str(tmp_path / name)]
    subprocess.run([*command, 'die'], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith('.')
    living = subprocess.Popen([*command, 'live'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert living.stdout.readline() == b'there\n'
    assert not left.exists()
    (other,) = tmp_path.iterdir()
    write(tmp_path / 'elsewhere' / name)  # of the same name in another place
    with pytest.raises(RuntimeError), bags.Writer(tmp_path / name):
        raise RuntimeError
    assert other.exists()  # a writer that lives keeps its own
    living.communicate()
    assert (tmp_path / name).exists() and not other.exists()


def test_who_cleans_up_just_then_takes_nothing_from_who_begins_to_write(tmp_path, monkeypatch):
    """Of two processes that write the same at once, one looks for what others have left."""
    seen = cleaned_up_before_it_is_held(monkeypatch, tmp_path)
    write(tmp_path / 'bag')
    assert len(seen) == 2 and not seen[0].exists()
    assert [path.name for path in tmp_path.iterdir()] == ['bag']
    assert list(bags.Reader(tmp_path / 'bag'))
