# SPDX-License-Identifier: Apache-2.0
"""The ring of captured frames: bounded, readable by others, and whole whenever it is cut."""

from __future__ import annotations

import errno
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys

import cv2
from mcap.reader import make_reader
import numpy as np
import pytest
from rosbags.typesys import get_typestore, Stores

from trt_segmentation.errors import InputError
from trt_segmentation.recordings import bags, captures, storage
from trt_segmentation.recordings.captures import Capture, Captures
from trt_segmentation.recordings.mcap_file import McapFile
from trt_segmentation.recordings.pictures import from_bag, perceptual_hash

SIZE = (48, 96)
MB = 1 << 20


def frame(number: int, size=SIZE) -> Capture:
    random = np.random.default_rng(number)
    image = random.integers(0, 256, (*size, 3), np.uint8)
    mask = random.integers(0, 19, size, np.uint8)
    message = bags.image_message(image, 'bgr8', number * 10**9 + 7, 'camera')
    types = get_typestore(Stores.ROS2_JAZZY)  # another one than the writer's
    data = bytes(types.serialize_cdr(message, 'sensor_msgs/msg/Image'))
    return Capture('/front/image', 'sensor_msgs/msg/Image', data, '/segmentation/class_mask',
                   '/segmentation', mask, mask // 2, number * 10**9 + 7, 'camera',
                   number * 10**9 + 9, {'agreement': 0.5, 'number': number},
                   random.integers(0, 2**63).item())


def opened(path: Path, most: int = 64 * MB, free: int = 0) -> Captures:
    return Captures(path, most, free)


def numbers(path: Path) -> list[int]:
    """Return the frames that are in a directory, by their figures."""
    return [values['number'] for file in sorted(path.glob('*.mcap'))
            for values in captures.figures(file)]


def test_another_reader_finds_all_of_a_frame(tmp_path):
    ring = opened(tmp_path)
    assert ring.add(frame(3)) and ring.add(frame(4))
    ring.close()
    (path,) = tmp_path.glob('*.mcap')
    types, found = get_typestore(Stores.LATEST), {}
    with path.open('rb') as stream:
        for schema, channel, message in make_reader(stream).iter_messages():
            found.setdefault(channel.topic, []).append(
                (message.log_time, types.deserialize_cdr(message.data, schema.name)))
    wanted = frame(3)
    assert set(found) == {'/front/image', '/segmentation/class_mask/compressed',
                          '/segmentation/class_mask/float/compressed', '/segmentation/capture'}
    time_ns, image = found['/front/image'][0]
    assert time_ns == wanted.time_ns and image.header.frame_id == 'camera'
    assert bytes(image.data) in wanted.data
    for topic, mask in (('class_mask', wanted.classes), ('class_mask/float', wanted.reference)):
        png = found[f'/segmentation/{topic}/compressed'][0][1]
        np.testing.assert_array_equal(cv2.imdecode(png.data, cv2.IMREAD_UNCHANGED), mask)
        assert png.header.stamp.sec == 3 and png.header.stamp.nanosec == 7


def test_only_the_cameras_picture_is_taken_for_one(tmp_path):
    ring = opened(tmp_path)
    ring.add(frame(1))
    ring.close()
    reader = bags.Reader(next(tmp_path.glob('*.mcap')))
    reader.choose_cameras()
    assert list(reader.topics) == ['/front/image'] and len(reader.left_out) == 2
    assert len(from_bag(next(tmp_path.glob('*.mcap')))) == 1


def test_the_directory_is_one_recording_in_which_nothing_is_missing(tmp_path):
    for turn in range(2):
        ring = opened(tmp_path)
        assert ring.add(frame(2 * turn)) and ring.add(frame(2 * turn + 1))
        ring.close()
    assert len([*tmp_path.glob('*.mcap')]) == 2 and storage.is_bag(tmp_path)
    reader = bags.Reader(tmp_path)
    reader.choose_cameras()
    assert [recorded.stamp_ns // 10**9 for recorded in reader] == [0, 1, 2, 3]
    assert reader.problems == []


def test_pictures_that_are_alike_are_kept_once_also_after_a_start(tmp_path):
    first = frame(1)
    ring = opened(tmp_path)
    assert ring.add(first) and not ring.add(first)
    assert (ring.written, ring.duplicates) == (1, 1)
    ring.close()
    again = opened(tmp_path)
    assert not again.add(first) and again.add(frame(2))
    again.close()
    assert numbers(tmp_path) == [1, 2]


def test_the_hash_of_a_picture_is_that_of_the_picture_compressed_again():
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8), (160, 96))
    jpeg = cv2.imdecode(cv2.imencode('.jpg', smooth)[1], cv2.IMREAD_COLOR)
    assert (perceptual_hash(smooth) ^ perceptual_hash(jpeg)).bit_count() <= 4


def test_it_never_takes_more_than_it_may_and_the_oldest_goes(tmp_path):
    most = 600_000
    ring = opened(tmp_path, most)
    for number in range(1, 60):
        assert ring.add(frame(number))
        assert sum(path.stat().st_size for path in tmp_path.glob('*.mcap')) <= most
    ring.close()
    left = numbers(tmp_path)
    assert left == list(range(60 - len(left), 60)) and len(left) > 10
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= most


def test_a_frame_larger_than_all_is_refused_and_a_full_disk_is_left_alone(tmp_path):
    ring = opened(tmp_path / 'small', 10_000)
    with pytest.raises(InputError, match='more than all files may have'):
        ring.add(frame(1))
    ring = opened(tmp_path / 'full', free=1 << 60)
    with pytest.raises(InputError, match='would stay free'):
        ring.add(frame(1))
    assert not list((tmp_path / 'full').glob('*.mcap'))


def test_files_that_are_taken_home_meanwhile_cost_no_frame(tmp_path):
    ring, home = opened(tmp_path / 'ring'), tmp_path / 'home'
    home.mkdir()
    for number in range(1, 7):
        assert ring.add(frame(number))
        if number % 2 == 0:
            for path in (tmp_path / 'ring').glob('*.mcap'):
                path.rename(home / f'{number}_{path.name}')
    assert numbers(home) == [1, 2, 3, 4, 5, 6]
    assert ring.add(frame(1))  # it is not there any more
    ring.close()
    assert numbers(tmp_path / 'ring') == [1]


def test_two_processes_do_not_write_into_one_directory(tmp_path):
    ring = opened(tmp_path)
    with pytest.raises(InputError, match='another process captures'):
        opened(tmp_path)
    ring.close()
    opened(tmp_path).close()


def test_a_disk_that_fails_for_a_while_does_not_keep_the_directory_locked(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    ring = opened(tmp_path)
    ring.add(frame(1))
    monkeypatch.setattr(ring._writer, 'finish', fail)
    ring.close()
    with monkeypatch.context() as patch:
        patch.setattr(captures, 'mend', fail)
        with pytest.raises(InputError, match='cannot be written: Input/output error'):
            opened(tmp_path)
    again = opened(tmp_path)
    assert again.add(frame(2))
    again.close()
    assert numbers(tmp_path) == [1, 2]


def test_cut_anywhere_all_frames_that_were_whole_are_there(tmp_path):
    ring = opened(tmp_path / 'whole')
    ends = []
    for number in range(1, 4):
        ring.add(frame(number, (12, 24)))
        ends.append(next((tmp_path / 'whole').glob('*.mcap')).stat().st_size)
    data = next((tmp_path / 'whole').glob('*.mcap')).read_bytes()
    for cut in sorted({*range(0, len(data), 97), *ends, *(end - 1 for end in ends), 8, 7}):
        shutil.rmtree(tmp_path / 'cut', ignore_errors=True)
        (tmp_path / 'cut').mkdir()
        (tmp_path / 'cut/capture_000001.mcap').write_bytes(data[:cut])
        again = opened(tmp_path / 'cut')
        expected = [number for number, end in enumerate(ends, 1) if end <= cut]
        assert numbers(tmp_path / 'cut')[:len(expected)] == expected, cut
        assert again.add(frame(9, (12, 24)))
        again.close()
        assert numbers(tmp_path / 'cut')[-1] == 9
        for path in (tmp_path / 'cut').glob('*.mcap'):
            problems: list[str] = []
            captures_reader(path, problems)
            assert problems == [], cut
    ring.close()


def captures_reader(path: Path, problems: list[str]) -> None:
    """Read a file with the reader of recordings, and collect what it cannot read."""
    file = McapFile(path, problems.append)
    for _ in file.messages(file.channels):
        pass
    file.close()


WRITER = """
import sys
sys.path.insert(0, sys.argv[2])
from recordings.test_captures import frame, opened
from pathlib import Path
ring = opened(Path(sys.argv[1]), 400_000)
number = 0
while True:
    number += 1
    print(number, flush=True)  # begun: the one before is kept
    ring.add(frame(number))
"""


@pytest.mark.parametrize('last', [1, 5, 23])
def test_a_process_that_is_killed_loses_at_most_the_frame_it_was_writing(last, tmp_path):
    process = subprocess.Popen(
        [sys.executable, '-c', WRITER, str(tmp_path), str(Path(__file__).parents[1])],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
    for line in process.stdout:
        if int(line) > last:
            break
    process.send_signal(signal.SIGKILL)
    begun = max([last + 1, *map(int, process.stdout.read().split())])
    process.wait()
    found = numbers(tmp_path)  # before anybody mends it
    assert found[-1] in (begun - 1, begun) and found == list(range(found[0], found[-1] + 1))
    ring = opened(tmp_path, 400_000)
    assert numbers(tmp_path) == found
    ring.add(frame(1000))
    ring.close()
    assert not [path for path in tmp_path.iterdir() if path.suffix != '.mcap'
                and path.name != '.lock']
