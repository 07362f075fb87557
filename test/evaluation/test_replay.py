# SPDX-License-Identifier: Apache-2.0
"""Replay: the pipeline's masks, in order and repeatable; golden masks; every exit status."""

from contextlib import contextmanager
from functools import lru_cache
import json
from pathlib import Path
import re
import shlex
import zlib

import cv2
from mcap.reader import make_reader
import numpy as np
import pytest
from rosbags import rosbag1
from rosbags.highlevel import AnyReader
from rosbags.typesys import get_typestore, Stores
from support.bundles import foreign_bundle, sample_bundle, scene
from support.work import kill_one

from trt_segmentation import Segmenter
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cli import main
from trt_segmentation.engines.workers import Engines, Workers
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation.frames import InProcess, OnWorkers
from trt_segmentation.evaluation.replay import open_bag, output_prefixes, replay
from trt_segmentation.recordings import bags
from trt_segmentation.system.processes import Processes

START = 1_700_000_000_000_000_000
STEP = 50_000_000
COUNT = 6
COUNTED = 'images of /'  # what is said before the work


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A directory with two bundles, a store, and a bag of two cameras."""
    path = tmp_path_factory.mktemp('replay')
    foreign_bundle(path)
    sample_bundle(path)
    write_bag(path / 'drive')
    return path


@lru_cache(maxsize=200)
def frame(number, size=(120, 200)):
    return scene(30 + number % 12, size)[0]


def write_bag(path, count=COUNT, storage='mcap', size=(120, 200)):
    """Write two cameras: one plain, rgb8; one compressed, as PNG, of another size."""
    with bags.Writer(path, storage=storage) as writer:
        for i in range(count):
            time_ns = START + i * STEP
            image = frame(i, size)
            writer.write_image('/front/image_raw', image[..., ::-1], 'rgb8', time_ns - 11,
                               'front_frame', time_ns)
            small = np.ascontiguousarray(image[::2, :151])
            _, png = cv2.imencode('.png', small)
            writer.write('/rear/image_raw/compressed', bags.compressed_image_message(
                png.tobytes(), 'png', time_ns - 22, 'rear_frame'), time_ns + 5)
    return path


def masks_of(path):
    """Read a bag of masks with other programs' readers: {topic: [(time, message)]}."""
    found = {}
    if path.is_file():  # which older releases of rosbags do not take
        types = get_typestore(Stores.LATEST)
        with path.open('rb') as stream:
            for schema, channel, message in make_reader(stream).iter_messages():
                found.setdefault(channel.topic, []).append(
                    (message.log_time, types.deserialize_cdr(message.data, schema.name)))
        return found
    with AnyReader([path]) as reader:
        for connection, time_ns, data in reader.messages():
            found.setdefault(connection.topic, []).append(
                (time_ns, reader.deserialize(data, connection.msgtype)))
    return found


def pixels(message):
    return message.data.reshape(message.height, message.width, -1)


def run(home, *words, bundle='foreign'):
    return main(['replay', str(home / bundle), '--store', str(home / 'store'),
                 *map(str, words)])


@pytest.mark.parametrize('bundle', ['foreign', 'sample'])
@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_masks_are_the_segmenters_with_stamps_and_frames_kept(home, tmp_path, bundle, storage):
    bag = write_bag(tmp_path / 'in', 3, storage)
    assert run(home, '--bag', bag, '--output', tmp_path / 'out', '--storage', storage,
               bundle=bundle) == 0
    found = masks_of(tmp_path / 'out')
    assert sorted(found) == [f'/segmentation/{camera}/{topic}' for camera in ('front', 'rear')
                             for topic in ('class_mask', 'color_mask', 'status')]
    with Segmenter.open(home / bundle, store=home / 'store') as segmenter:
        for camera, early, late in (('front', 11, 0), ('rear', 22, 5)):
            classes, colors = (found[f'/segmentation/{camera}/{kind}_mask']
                               for kind in ('class', 'color'))
            assert len(classes) == len(colors) == 3
            for i in range(3):
                image = frame(i) if camera == 'front' else frame(i)[::2, :151]
                expected = segmenter.segment(image)
                for (time_ns, message), encoding, mask in (
                        (classes[i], 'mono8', expected.classes[..., None]),
                        (colors[i], 'bgr8', expected.color)):
                    stamp = message.header.stamp
                    assert stamp.sec * 10**9 + stamp.nanosec == START + i * STEP - early
                    assert time_ns == START + i * STEP + late
                    assert message.header.frame_id == f'{camera}_frame'
                    assert message.encoding == encoding
                    np.testing.assert_array_equal(pixels(message), mask)


def test_equal_input_gives_equal_bytes(home, tmp_path):
    for name in ('first', 'second'):
        assert run(home, '--bag', home / 'drive', '--output', tmp_path / name / 'masks') == 0
    first, second = (sorted((tmp_path / name / 'masks').iterdir())
                     for name in ('first', 'second'))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_one_camera_has_the_nodes_topics_and_masks_are_not_segmented_again(home, tmp_path):
    assert run(home, '--bag', home / 'drive', '--topic', '/front/image_raw', '--output',
               tmp_path / 'masks') == 0
    found = masks_of(tmp_path / 'masks')
    assert sorted(found) == ['/segmentation/class_mask', '/segmentation/color_mask',
                             '/segmentation/status']
    statuses = [json.loads(message.data) for _, message in found['/segmentation/status']]
    for number, (status, (_, mask)) in enumerate(zip(statuses, found['/segmentation/class_mask'],
                                                     strict=True)):
        assert status['sequence'] == number and status['camera'] == '/front/image_raw'
        assert status['crc32'] == zlib.crc32(mask.data.tobytes()) and status['stage_ms'] == {}
        assert status['stamp'] == {'sec': mask.header.stamp.sec,
                                   'nanosec': mask.header.stamp.nanosec}
    with pytest.raises(InputError, match=r'class_mask \(masks\)'):
        open_bag(tmp_path / 'masks')
    with bags.Writer(tmp_path / 'all') as writer:
        for topic in ('/camera/image', '/segmentation/class_mask/compressed',
                      '/segmentation/overlay'):
            writer.write_image(topic, frame(0), 'bgr8', START, '')
    assert list(open_bag(tmp_path / 'all').topics) == ['/camera/image']


@pytest.mark.parametrize(('topics', 'expected'), [
    (['/image'], ['']),
    (['/front/image_raw', '/rear/image_raw'], ['/front', '/rear']),
    (['/front/image_raw/compressed', '/rear/image_raw'], ['/front', '/rear']),
    (['/a/front/image', '/b/front/image'], ['/a/front', '/b/front']),
    (['/cam/image_raw', '/cam/image_color', '/rear/image'],
     ['/cam/image_raw', '/cam/image_color', '/rear']),
    (['/cam/image_raw', '/cam/image_raw/compressed'],
     ['/cam/image_raw', '/cam/image_raw/compressed']),
    (['/left', '/right'], ['/left', '/right']),
])
def test_output_topics(topics, expected):
    prefixes = output_prefixes(topics)
    assert [prefixes[topic] for topic in topics] == [f'/segmentation{part}' for part in expected]
    assert len(set(prefixes.values())) == len(topics)


def test_many_frames_stay_in_order(home, tmp_path):
    bag = write_bag(tmp_path / 'in', 40, size=(30, 50))
    count = []
    with Segmenter.open(home / 'foreign', store=home / 'store') as segmenter:
        result = replay(InProcess(segmenter), bag, output=tmp_path / 'out',
                        progress=lambda: count.append(1))
    assert result.frames == len(count) == 80
    for entries in masks_of(tmp_path / 'out').values():
        times = [time_ns for time_ns, _ in entries]
        assert times == sorted(times)
        assert len(times) == 40
    assert set(result.stage_ms) == {'preprocess', 'inference', 'postprocess'}


# ---- golden masks


@pytest.fixture(scope='module')
def golden(home):
    assert run(home, '--bag', home / 'drive', '--record-golden', home / 'golden.mcap') == 0
    return home / 'golden.mcap'


def test_golden_masks_are_met_by_the_same_engine(home, golden, tmp_path, capsys):
    assert run(home, '--bag', home / 'drive', '--golden', golden, '--min-agreement', 1,
               '--format', 'json', '--report', tmp_path / 'report.html') == 0
    found = json.loads(capsys.readouterr().out)
    assert found['golden']['frames'] == found['golden']['identical'] == 2 * COUNT
    assert found['golden']['agreement'] == found['golden']['worst_agreement'] == 1
    assert found['failures'] == []
    assert 'the masks are the golden ones' in (tmp_path / 'report.html').read_text().lower()


def test_another_engine_is_measured_frame_by_frame(home, golden, tmp_path, capsys):
    words = ['--bag', home / 'drive', '--golden', golden, '--precision', 'fp32', '--output']
    assert run(home, *words, tmp_path / 'masks', '--min-agreement', 0.5) == 0
    out = capsys.readouterr().out
    found = masks_of(tmp_path / 'masks')
    worst = 1.0
    for topic, entries in masks_of(golden).items():
        for (_, expected), (_, message) in zip(entries, found[topic]):
            worst = min(worst, np.mean(expected.data == message.data))
    assert 0.5 < worst < 1
    assert f'{100 * worst:.3f}% in the worst frame' in out
    assert f'{100 * worst:.2f}% agree' in out
    assert run(home, *words, tmp_path / 'again', '--min-agreement', 0.99999, '--report',
               tmp_path / 'report.html') == 1
    error = capsys.readouterr().err
    assert f'the worst on {worst:.4f}' in error
    page = (tmp_path / 'report.html').read_text()
    assert 'data:image/jpeg' in page
    assert 'less than 0.99999' in page


def test_frames_without_a_golden_mask_and_masks_without_a_frame_fail(home, golden, tmp_path,
                                                                     capsys):
    short = write_bag(tmp_path / 'short', COUNT - 1)
    assert run(home, '--bag', short, '--golden', golden) == 1
    streams = capsys.readouterr()
    assert '2 golden masks have no frame' in streams.err
    assert 'see where they differ' not in streams.out
    long = write_bag(tmp_path / 'long', COUNT + 1)
    assert run(home, '--bag', long, '--golden', golden) == 1
    assert '2 frames have no golden mask' in capsys.readouterr().err


def test_a_golden_mask_of_another_size_is_named(home, golden, tmp_path, capsys):
    other = write_bag(tmp_path / 'other', size=(122, 200))
    assert run(home, '--bag', other, '--golden', golden) == 2
    assert '200x122, but the golden mask is 200x120' in capsys.readouterr().err


def test_equal_stamps_are_compared_in_their_order(home, tmp_path, capsys):
    with bags.Writer(tmp_path / 'bag') as writer:
        for i in range(4):
            writer.write_image('/camera/image', frame(i), 'bgr8', 0, '', START + i * STEP)
    assert run(home, '--bag', tmp_path / 'bag', '--record-golden', tmp_path / 'g.mcap') == 0
    assert run(home, '--bag', tmp_path / 'bag', '--golden', tmp_path / 'g.mcap',
               '--min-agreement', 1) == 0


def test_what_was_ignored_must_be_ignored_again(home, golden, tmp_path, capsys):
    """A mask that lost its ignored border differs, although metrics would leave that out."""
    changed = []
    with bags.Writer(tmp_path / 'g.mcap') as writer:
        for topic, entries in masks_of(golden).items():
            for time_ns, message in entries:
                mask = pixels(message)[..., 0].copy()
                mask[:3] = 255
                changed.append((3 * mask.shape[1], mask.size))
                stamp = message.header.stamp
                writer.write_image(topic, mask, 'mono8', stamp.sec * 10**9 + stamp.nanosec,
                                   message.header.frame_id, time_ns)
    assert run(home, '--bag', home / 'drive', '--golden', tmp_path / 'g.mcap', '--format',
               'json') == 1
    found = json.loads(capsys.readouterr().out)['golden']
    lost, of = map(sum, zip(*changed))
    assert found['agreement'] == pytest.approx(1 - lost / of)
    assert found['worst_agreement'] == pytest.approx(1 - max(n / m for n, m in changed))


# ---- exit status and bad input


def test_nothing_to_do_is_wrong_use(home, capsys):
    assert run(home, '--bag', home / 'drive') == 2
    assert 'expected --output' in capsys.readouterr().err


@pytest.mark.parametrize('words', [
    ['--bag', 'nowhere'], ['--bag', 'foreign'], ['--bag', 'drive', '--topic', '/left'],
    ['--bag', 'drive', '--golden', 'nowhere'], ['--bag', 'drive', '--golden', 'drive'],
    ['--bag', 'drive', '--backend', 'onnxruntime', '--precision', 'fp16']])
def test_wrong_input_ends_with_code_2_and_one_line(home, tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(home)
    assert run(home, *words, '--output', tmp_path / 'masks') == 2
    *before, _ = capsys.readouterr().err.splitlines()
    assert all(COUNTED in line for line in before)
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_work_enough(home, tmp_path, capsys):
    assert run(home, '--bag', home / 'drive', '--report', tmp_path / 'report.html') == 0
    said = capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ['report.html']
    assert said.startswith(f'{2 * COUNT} frames replayed, and nothing to compare them with')
    assert f'written    {tmp_path}/report.html\n' in said


@pytest.mark.parametrize('option, path', [
    ('--report', 'text/report.html'), ('--report', ''), ('--record-golden', 'text/golden.mcap'),
    ('--output', 'text/masks')])
def test_what_cannot_be_written_is_named_before_the_work(home, tmp_path, capsys, option, path):
    (tmp_path / 'text').touch()
    assert run(home, '--bag', home / 'drive', '--record-golden', tmp_path / 'golden.mcap',
               option, tmp_path / path) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f'trt-segmentation replay: {tmp_path / path}: cannot be written: ')
    assert [entry.name for entry in tmp_path.iterdir()] == ['text']


def test_a_report_is_written_where_no_directory_is_yet(home, tmp_path):
    assert run(home, '--bag', home / 'drive', '--report', tmp_path / 'no' / 'report.html') == 0
    assert (tmp_path / 'no' / 'report.html').is_file()


def test_golden_masks_that_are_missing_are_named_before_the_work(home, tmp_path, capsys,
                                                                 monkeypatch):
    monkeypatch.setattr('trt_segmentation.engines.opening.open_segmenter', None)
    golden = tmp_path / 'Masken Ü.mcap'
    assert run(home, '--bag', home / 'drive', '--golden', golden) == 2
    assert shlex.split(capsys.readouterr().err.rpartition(' with: ')[2]) == [
        'trt-segmentation', 'replay', str(home / 'foreign'), '--bag', str(home / 'drive'),
        '--store', str(home / 'store'), '--record-golden', str(golden)]


def test_the_advice_after_recording_compares_the_same_topics_by_the_same_engine(home, tmp_path,
                                                                                capsys):
    golden = tmp_path / 'golden.mcap'
    assert run(home, '--bag', home / 'drive', '--topic', '/front/image_raw', '--precision',
               'fp32', '--record-golden', golden) == 0
    advised = shlex.split(capsys.readouterr().out.rpartition('after a change: ')[2])
    assert main([*advised[1:], '--format', 'json']) == 0
    assert json.loads(capsys.readouterr().out)['golden']['identical'] == COUNT


def test_an_existing_output_is_left_alone(home, tmp_path, capsys):
    (tmp_path / 'masks').mkdir()
    assert run(home, '--bag', home / 'drive', '--output', tmp_path / 'masks') == 2
    assert 'exists already' in capsys.readouterr().err
    assert list((tmp_path / 'masks').iterdir()) == []


def test_an_interrupted_replay_leaves_nothing(home, tmp_path):
    def interrupt():
        raise KeyboardInterrupt
    with Segmenter.open(home / 'foreign', store=home / 'store') as segmenter, \
            pytest.raises(KeyboardInterrupt):
        replay(InProcess(segmenter), home / 'drive', output=tmp_path / 'masks', progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_of_a_bag_cut_short_the_readable_part_is_replayed_and_the_rest_named(
        home, tmp_path, capsys, storage):
    bag = write_bag(tmp_path / 'in', 60, storage)
    file = next(path for path in bag.iterdir() if path.suffix in ('.mcap', '.db3'))
    file.write_bytes(file.read_bytes()[:-file.stat().st_size // 3])
    assert run(home, '--bag', bag, '--output', tmp_path / 'masks') == 2
    error = capsys.readouterr().err
    assert file.name in error
    found = masks_of(tmp_path / 'masks')['/segmentation/front/class_mask']
    assert 10 < len(found) < 60
    assert [time_ns for time_ns, _ in found] == [START + i * STEP for i in range(len(found))]


def cut(path, count=12):
    """Write a bag whose database has lost its second half; return how many messages it had."""
    write_bag(path, count, 'sqlite3', (240, 400))
    file, = path.glob('*.db3')
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
    return 2 * count


@pytest.mark.parametrize('golden', [False, True])
def test_the_verdict_on_a_damaged_recording_begins_with_what_is_missing(home, tmp_path, capsys,
                                                                        monkeypatch, golden):
    monkeypatch.chdir(tmp_path)
    write_bag(tmp_path / 'whole', 12, 'sqlite3', (240, 400))
    assert run(home, '--bag', 'whole', '--record-golden', 'g.mcap') == 0
    number = cut(tmp_path / 'cut')
    words = ['--bag', 'cut', *(['--golden', 'g.mcap'] if golden else []), '--report', 'page.html']
    capsys.readouterr()
    assert run(home, *words) == 2
    lines = capsys.readouterr().out.splitlines()
    assert run(home, *words, '--format', 'json') == 2
    found = json.loads(capsys.readouterr().out)
    assert run(home, *words, '--format', 'markdown') == 2
    markdown = [line for line in capsys.readouterr().out.splitlines() if line]
    read = found['frames']
    assert 0 < read < number
    answer = 'The recording could not be read whole'
    lost = f'{number - read} of {number} messages could not be read'
    assert found['verdict'] == lines[0] == answer and lines[1].strip() == lost
    assert found['reasons'][0] == found['damage'] == lost
    assert markdown[1:3] == [f'**{answer}**', f'- {lost}']
    page = Path('page.html').read_text()
    assert page.index(answer) < page.index(lost) < page.index('class="facts"')
    following, = (line for line in lines if line.startswith('next '))
    assert '--record-golden' not in following and 'differ' not in following
    if golden:
        assert 'No: golden masks and frames are not of the same images' in lines
        assert f'  {read} masks that could be compared: the golden ones, within the limit' in lines
        assert 'the masks are not the golden ones' not in page


def test_where_masks_of_a_damaged_recording_differ_too_the_page_of_that_follows(
        home, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bag(tmp_path / 'whole', 12, 'sqlite3', (240, 400))
    assert run(home, '--bag', 'whole', '--precision', 'fp32', '--record-golden', 'g.mcap') == 0
    cut(tmp_path / 'cut')
    assert run(home, '--bag', 'cut', '--golden', 'g.mcap', '--min-agreement', 1) == 2
    out = capsys.readouterr().out
    assert 'No: the masks are not the golden ones' in out and 'see where they differ: ' in out


def test_malformed_messages_are_dropped_counted_and_named(home, tmp_path, capsys):
    with bags.Writer(tmp_path / 'bag') as writer:
        for i in range(4):
            message = bags.image_message(frame(i), 'bgr8', START + i, 'x')
            if i == 1:
                message.encoding = 'what'
            if i == 2:
                message.data = message.data[:-1]
            writer.write('/camera/image', message, START + i)
        writer.write('/camera/image', bags.image_message(
            np.zeros((2, 4, 3), np.uint8), 'bgr8', START + 9, 'x'), START + 9)
    assert run(home, '--bag', tmp_path / 'bag', '--output', tmp_path / 'masks', '--format',
               'json') == 2
    streams = capsys.readouterr()
    found = json.loads(streams.out)
    assert found['frames'] == 3
    assert found['dropped'] == {'unknown_encoding': 1, 'short_data': 1}
    assert found['verdict'] == '2 messages of 5 gave no masks' and found['damage'] == ''
    assert f'/camera/image at stamp {START + 1} ns' in streams.err
    assert f'/camera/image at stamp {START + 2} ns' in streams.err
    assert len(masks_of(tmp_path / 'masks')['/segmentation/class_mask']) == 3
    with bags.Writer(tmp_path / 'sound') as writer:
        for i in range(4):
            writer.write_image('/camera/image', frame(i), 'bgr8', START + i, 'x')
    assert run(home, '--bag', tmp_path / 'sound', '--record-golden', tmp_path / 'golden.mcap') == 0
    capsys.readouterr()
    assert run(home, '--bag', tmp_path / 'bag', '--golden', tmp_path / 'golden.mcap') == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'No: golden masks and frames are not of the same images'
    assert '2 messages of 5 gave no masks' in lines
    assert '--record-golden' not in lines[-1]  # of a part


def test_a_corrupt_picture_is_dropped(home, tmp_path, capsys):
    with bags.Writer(tmp_path / 'bag') as writer:
        _, png = cv2.imencode('.png', frame(0))
        for i, data in enumerate([png.tobytes(), b'no picture', png.tobytes()]):
            stamp = START + i
            writer.write('/c/compressed', bags.compressed_image_message(data, 'png', stamp, ''),
                         stamp)
    assert run(home, '--bag', tmp_path / 'bag', '--output', tmp_path / 'masks') == 2
    assert 'neither JPEG nor PNG' in capsys.readouterr().err
    assert len(masks_of(tmp_path / 'masks')['/segmentation/class_mask']) == 2


def test_an_engine_that_fails_ends_the_replay_and_leaves_nothing(home, tmp_path):
    class Broken:
        """A segmenter whose engine breaks at the third frame."""

        calls, layouts = 0, frozenset()

        def __init__(self, segmenter):
            self.spec, self.segmenter = segmenter.spec, segmenter
            self.record, self.engine = segmenter.record, segmenter.engine

        def segment(self, *arguments, **options):
            Broken.calls += 1
            if Broken.calls == 3:
                raise RuntimeError('the engine broke')
            return self.segmenter.segment(*arguments, **options)

    with Segmenter.open(home / 'foreign', store=home / 'store') as segmenter, \
            pytest.raises(RuntimeError, match='the engine broke'):
        replay(InProcess(Broken(segmenter)), home / 'drive', output=tmp_path / 'masks')
    assert not Path(tmp_path / 'masks').exists()


@pytest.mark.parametrize(('encoding', 'words'), [
    ('no_such', '2 unknown_encoding'), (None, 'there are no messages')])
def test_a_run_that_did_nothing_fails_with_its_reason_and_writes_nothing(
        home, tmp_path, capsys, encoding, words):
    with bags.Writer(tmp_path / 'bag') as writer:
        for i in range(2 if encoding else 0):
            writer.write_image('/camera/image', frame(i), encoding, START + i, '')
        if not encoding:
            writer.write_image('/other', frame(0), 'bgr8', START, '')
            writer._writer.add_connection('/camera/image', bags.IMAGE,
                                          typestore=get_typestore(Stores.ROS2_HUMBLE))
    assert run(home, '--bag', tmp_path / 'bag', '--topic', '/camera/image', '--record-golden',
               tmp_path / 'g.mcap', '--output', tmp_path / 'masks') == 2
    error = capsys.readouterr().err
    assert 'no frame gave masks: on /camera/image' in error
    assert words in error.splitlines()[-1] and error.count('\n') == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bag']


def test_what_is_left_out_is_said_once_and_what_was_promised_is_counted(home, tmp_path, capsys):
    with bags.Writer(tmp_path / 'bag') as writer:
        for i in range(3):
            writer.write_image('/camera/image', frame(i), 'bgr8', START + i, '')
            writer.write_image('/camera/depth', frame(i)[..., :2], '16UC1', START + i, '')
            writer.write_image('/segmentation/overlay', frame(i), 'bgr8', START + i, '')
    assert run(home, '--bag', tmp_path / 'bag', '--output', tmp_path / 'masks', '--format',
               'json') == 0
    streams = capsys.readouterr()
    found = json.loads(streams.out)
    assert found['left_out'] == {'/camera/depth': 'depth images (16UC1)',
                                 '/segmentation/overlay': 'masks'}
    assert found['promised'] == 3 and found['read'] == {'/camera/image': 3}
    *left_out, counted, written = streams.err.splitlines()
    assert ['is left out' in line for line in left_out] == [True, True]
    assert written == f'trt-segmentation replay: written {tmp_path / "masks"}'
    assert counted == ('trt-segmentation replay: 3 images of /camera/image, network 160x96, int8, '
                       'backend onnxruntime')


def test_promises_that_are_not_kept_are_exit_code_2(home, tmp_path, capsys):
    path = write_bag(tmp_path / 'in', 3)
    text = (path / 'metadata.yaml').read_text()
    (path / 'metadata.yaml').write_text(text.replace('message_count: 3', 'message_count: 8', 1))
    assert run(home, '--bag', path, '--output', tmp_path / 'masks') == 2
    assert '8 messages are promised, 3 could be read' in capsys.readouterr().err


def test_a_ros1_bag_gives_the_same_masks(home, tmp_path):
    store = get_typestore(Stores.ROS1_NOETIC)
    with rosbag1.Writer(tmp_path / 'drive.bag') as writer:
        connection = writer.add_connection('/front/image_raw', bags.IMAGE, typestore=store)
        for i in range(COUNT):
            message = bags.image_message(frame(i)[..., ::-1], 'rgb8', START + i * STEP - 11, '')
            header = store.types['std_msgs/msg/Header'](i, message.header.stamp, 'front_frame')
            writer.write(connection, START + i * STEP, store.serialize_ros1(
                store.types[bags.IMAGE](header, message.height, message.width, 'rgb8', 0,
                                        message.step, message.data), bags.IMAGE))
    for name, bag in (('first', tmp_path / 'drive.bag'), ('second', home / 'drive')):
        assert run(home, '--bag', bag, '--topic', '/front/image_raw', '--output',
                   tmp_path / name / 'masks') == 0
    first, second = (sorted((tmp_path / name / 'masks').iterdir())
                     for name in ('first', 'second'))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_frames_that_are_decoded_ahead_come_in_order_with_the_same_masks(home, tmp_path):
    """As where a GPU runs the engine, which one thread then feeds."""
    with Segmenter.open(home / 'foreign', store=home / 'store') as segmenter:
        for name, decoders in (('by one', 0), ('ahead', 3)):
            replay(InProcess(segmenter, decoders), home / 'drive',
                   output=tmp_path / name / 'masks')
    one, ahead = ({path.name: path.read_bytes() for path in (tmp_path / name / 'masks').iterdir()}
                  for name in ('by one', 'ahead'))
    assert one == ahead


# ---- one recording by several processes


@contextmanager
def processes(home):
    """Yield two processes that replay with the INT8 engine."""
    bundle = Bundle.open(home / 'foreign')
    with Processes(2, 1) as executor:
        workers = Workers(executor, 2)
        engines = Engines(workers.place(bundle), ('int8',), store=str(home / 'store'), proven=True)
        yield OnWorkers(workers, engines, bundle.spec.labels)


@pytest.fixture(scope='module')
def long(home):
    """A bag with messages that cannot be used, and golden masks that are wrong here and there."""
    with bags.Writer(home / 'long') as writer:
        for i in range(20):
            message = bags.image_message(frame(i), 'what' if i in (3, 11) else 'bgr8',
                                         START + i // 2 * STEP, 'front')
            writer.write('/front/image_raw', message, START + i * STEP)
            writer.write('/rear/image_raw/compressed', bags.compressed_image_message(
                b'cut' if i == 7 else cv2.imencode('.png', frame(i + 1))[1].tobytes(), 'png',
                START + i * STEP, 'rear'), START + i * STEP)
    assert run(home, '--bag', home / 'long', '--record-golden', home / 'right.mcap') == 2
    with bags.Writer(home / 'wrong.mcap') as writer:
        for number, recorded in enumerate(bags.Reader(home / 'right.mcap')):
            mask = pixels(recorded.message)[..., 0].copy()
            mask[:number % 5] = 7
            if number != 9:
                writer.write_image(recorded.topic, mask, 'mono8', recorded.stamp_ns, 'x',
                                   recorded.time_ns)
    return home / 'long'


def all_that_is_written(home, bag, output, *words):
    """Return files, figures and page of a replay, without the times that it took."""
    assert run(home, '--bag', bag, '--output', output / 'masks', '--record-golden',
               output / 'golden.mcap', '--golden', home / 'wrong.mcap', '--report',
               output / 'report.html', *words) == 2
    found = {path.name: path.read_bytes() for path in output.rglob('*') if path.is_file()}
    page = found.pop('report.html').decode()
    return found, re.findall(r'<img[^>]*>|stamp \d+ ns[^<]*|<h[12]>[^<]*', page)


def test_a_recording_by_processes_gives_the_bytes_of_one(home, long, tmp_path):
    alone = all_that_is_written(home, long, tmp_path / 'one', '--jobs', '1')
    assert len(alone[0]) == 3 and len(alone[1]) > 10
    assert all_that_is_written(home, long, tmp_path / 'three', '--jobs', '3') == alone


def test_a_recording_by_processes_that_are_killed_gives_the_figures_of_one(home, long, tmp_path):
    frames, kills = [], []

    def kill():
        frames.append(1)
        if len(frames) % 8 == 0:
            kills.append(kill_one(len(kills)))

    def figures(source, name, **options):
        found = replay(source, long, output=tmp_path / name / 'masks.mcap',
                       golden=home / 'wrong.mcap', **options)
        summary = found.summary()
        for times in ('seconds', 'frames_per_second', 'stage_ms_p50'):
            del summary[times]
        assert set(found.stage_ms) == {'preprocess', 'inference', 'postprocess'}
        # As text, in which nan equals itself.
        return repr(summary), found.comparison.worst, (tmp_path / name / 'masks.mcap').read_bytes()

    with Segmenter.open(home / 'foreign', store=home / 'store') as segmenter:
        alone = figures(InProcess(segmenter), 'one')
    assert "'dropped': {'unknown_encoding': 2, 'undecodable': 1}" in alone[0]
    assert "'missing': 1" in alone[0]
    with processes(home) as source:
        assert figures(source, 'killed', progress=kill) == alone
    assert sum(kills) > 2


def test_an_interrupted_replay_by_processes_leaves_nothing(home, long, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), processes(home) as source:
        replay(source, long, output=tmp_path / 'masks', progress=interrupt)
    assert list(tmp_path.iterdir()) == []
