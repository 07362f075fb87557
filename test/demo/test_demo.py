# SPDX-License-Identifier: Apache-2.0
"""The demo's care for its surroundings; what it shows is tested part by part elsewhere."""

from contextlib import ExitStack, suppress
from dataclasses import replace
import itertools
import os
from pathlib import Path
import shlex
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from support.bundles import foreign_bundle, scene
import yaml

from trt_segmentation.cli import main
from trt_segmentation.demo import children, passage, verdict
from trt_segmentation.demo import run as demo
from trt_segmentation.demo.passage import CLASS_TOPIC, COLOR_TOPIC, IMAGE_TOPIC, Passage
from trt_segmentation.engines.opening import open_segmenter
from trt_segmentation.errors import CheckFailed, InputError
from trt_segmentation.recordings import bags
from trt_segmentation.sample import BUNDLE
from trt_segmentation.system import domains, environment, trust
from trt_segmentation.system.processes import can_bind

SECOND = 1_000_000_000


def processes_of(session):
    """Return the ids of the processes of a session that still run."""
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, _, number = path.read_text().rpartition(')')[2].split()[:4]
        except OSError:
            continue  # it has just ended
        if int(number) == session and state != 'Z':
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize('rate', ['0', '-1', 'nan', 'inf', '1e9'])
def test_a_rate_that_cannot_be_played_is_refused_before_anything_is_made(tmp_path, capsys, rate):
    try:
        code = main(['demo', f'--rate={rate}', '--output', str(tmp_path / 'out')])
    except SystemExit as end:  # what is no number at all ends in the parser
        code = end.code
    assert code == 2
    assert 'rate: found' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def prepare(output):
    """Prepare an output directory, and write nothing there."""
    with demo._prepared(output):
        pass


def test_only_what_a_demo_made_is_emptied(tmp_path):
    (tmp_path / 'keep').touch()
    with pytest.raises(InputError, match='not empty, and not made by an earlier demo'):
        prepare(tmp_path)
    with pytest.raises(InputError, match='keep: cannot be written'):
        prepare(tmp_path / 'keep')
    assert (tmp_path / 'keep').exists()
    outside = tmp_path / 'outside'
    outside.mkdir()
    (outside / 'precious').touch()
    output = tmp_path / 'link'
    output.symlink_to(tmp_path / 'real')
    (tmp_path / 'real').mkdir()
    prepare(output)
    (output / 'store').mkdir()
    (output / 'store' / 'plan').touch()
    (output / 'summary.json').touch()
    (output / 'other').symlink_to(outside)
    prepare(output)
    assert os.listdir(output) == ['.trt_segmentation_demo']
    assert (outside / 'precious').exists()


def test_what_another_demo_writes_is_not_emptied(tmp_path):
    with demo._prepared(tmp_path / 'out'):
        (tmp_path / 'out' / 'drive').touch()
        with pytest.raises(InputError, match='out is in use by another process'):
            prepare(tmp_path / 'out')
        assert (tmp_path / 'out' / 'drive').exists()


@pytest.mark.parametrize('path', ['plain', 'a: b', '#x', "it's", '"q"', '1', 'yes', '{a}', 'ü\\'])
def test_parameters_reach_ros_as_what_they_are(path):
    option, text = passage.ros_parameters({'bundle': path})
    assert option == '-p' and text.startswith('bundle:=')
    assert yaml.safe_load(text.partition(':=')[2]) == path
    assert passage.ros_parameters({'flag': True}) == ['-p', 'flag:=true']


@pytest.mark.parametrize('reaction, grace', [('default_int_handler', 60), ('SIG_IGN', 0.5)])
def test_a_process_ends_with_the_stack_by_request_or_by_force(monkeypatch, reaction, grace):
    monkeypatch.setattr(children, '_GRACE', grace)
    code = (f'import signal, sys; signal.signal(signal.SIGINT, signal.{reaction})\n'
            'print("up", flush=True); sys.stdin.read()')
    process = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with ExitStack() as stack:
        stack.callback(children.end, process)
        process.stdout.readline()
    asked = reaction == 'default_int_handler'
    assert process.wait(30) == (-signal.SIGINT if asked else -signal.SIGKILL)
    process.stdin.close()
    process.stdout.close()


def test_the_first_line_comes_before_the_slow_imports():
    # Without OpenCV, whose import is slow, nothing works, but the first line is there.
    code = ('import sys; sys.modules["cv2"] = None\n'
            'from trt_segmentation.cli import main; main(["demo"])')
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stderr.startswith('== The demo: ') and 'cv2' in result.stderr


def test_a_demo_without_ros_says_so_before_it_makes_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match=r"'rclpy'.*pip install '\.\[ros\]'"):
        demo.run(tmp_path / 'out', None, 'onnxruntime')
    assert not (tmp_path / 'out').exists()


def test_a_middleware_that_is_not_there_is_told_before_anything_is_made(tmp_path, monkeypatch):
    pytest.importorskip('rclpy', reason='the node needs ROS')
    monkeypatch.setenv('RMW_IMPLEMENTATION', 'rmw_of_nobody')
    with pytest.raises(InputError, match='no ROS node can be started here: .* doctor$'):
        demo.run(tmp_path / 'out', None, 'onnxruntime')
    assert not (tmp_path / 'out').exists()


def test_a_disk_that_is_full_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device', str(tmp_path / 'out' / 'x'))

    monkeypatch.setattr(demo, '_draw_calibration_images', full)
    with pytest.raises(InputError, match='x: No space left on device.*400 MB.*--output'):
        demo.run(tmp_path / 'out', None, 'onnxruntime')


def test_what_the_disk_has_nothing_to_do_with_is_not_laid_on_it(tmp_path, monkeypatch):
    def no_process(*_):
        raise OSError(11, 'Resource temporarily unavailable')

    monkeypatch.setattr(demo, '_draw_calibration_images', no_process)
    with pytest.raises(CheckFailed, match='^the demo: Resource temporarily unavailable$'):
        demo.run(tmp_path / 'out', None, 'onnxruntime')


def test_below_a_directory_of_others_engines_are_kept_elsewhere(tmp_path, capsys):
    """As in a container whose root works in another user's clone."""
    tmp_path.chmod(0o777)
    with demo._store(tmp_path / 'demo output') as store:
        trust.check_directory(store, 'the store')
        assert not store.is_relative_to(tmp_path)
    assert not store.exists()
    assert f'its parent {tmp_path} others can write to it' in capsys.readouterr().err
    tmp_path.chmod(0o700)
    with demo._store(tmp_path / 'demo output') as store:
        trust.check_directory(store, 'the store')
    assert store == tmp_path / 'demo output/store' and store.exists()
    assert capsys.readouterr().err == ''


def test_a_worker_that_is_killed_is_one_line(tmp_path, monkeypatch):
    def killed(pool, _):
        pool.submit(os._exit, 1).result()

    monkeypatch.setattr(demo, '_draw_calibration_images', killed)
    with pytest.raises(CheckFailed, match='drew scenes was killed'):
        demo.run(tmp_path / 'out', None, 'onnxruntime')


def test_a_failed_step_names_a_command_that_can_be_typed(tmp_path, capfd):
    with pytest.raises(CheckFailed, match='inspect ended with code 2') as caught:
        demo._command('inspect', tmp_path / 'no such')
    line = str(caught.value).partition('the command was: ')[2]
    assert subprocess.run(shlex.split(line), capture_output=True).returncode == 2
    assert f'$ {line}' in capfd.readouterr().err


def test_what_a_step_prints_is_not_among_the_figures(capfd):
    demo._command('inspect', BUNDLE)
    said = capfd.readouterr()
    assert 'checked    files' in said.err and said.out == ''


def test_the_command_has_its_path_and_is_what_a_shell_takes(tmp_path, monkeypatch):
    python = tmp_path / 'my venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    monkeypatch.setattr(children.sys, 'executable', str(python))
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    assert shlex.split(children.program()) == [str(python), '-m', 'trt_segmentation']
    (python.parent / 'trt-segmentation').touch()
    assert shlex.split(children.program()) == [str(python.parent / 'trt-segmentation')]
    monkeypatch.chdir(tmp_path)
    assert shlex.split(children.program()) == ['my venv/bin/trt-segmentation']


def test_a_child_that_fails_is_told_with_its_last_words(tmp_path):
    with ExitStack() as stack:
        child = children.Child(stack, 'node', 'trt_segmentation', tmp_path / 'log',
                               dict(os.environ), 'inspect', tmp_path / 'no such')
        with pytest.raises(CheckFailed, match='the node ended with code 2: .*no such.*log'):
            child.wait()


def test_what_never_happens_is_given_up(tmp_path, monkeypatch, capsys):
    moments = itertools.count(0.0, 5.0)
    monkeypatch.setattr(children, 'time', SimpleNamespace(monotonic=lambda: next(moments)))
    with pytest.raises(CheckFailed, match=f'waited {children.PATIENCE:.0f} s for a miracle'):
        children.wait_until(lambda: False, 'a miracle', [])
    news = capsys.readouterr().err.splitlines()
    assert len(news) == children.PATIENCE // children._NEWS - 1
    assert all('still waiting for a miracle' in line for line in news)


def test_the_demo_keeps_to_a_domain_of_its_own_and_to_this_machine():
    environ = children.ros_environment()
    assert int(environ['ROS_DOMAIN_ID']) == domains.reserve() != 0
    assert environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'


def masks_of(number):
    """Return the class and the color mask of a frame."""
    rng = np.random.default_rng(number)
    return (rng.integers(0, 19, (4, 6), np.uint8), rng.integers(0, 255, (4, 6, 3), np.uint8))


class World:
    """Ten frames, the masks that they must give, and a passage in which each gave them."""

    def __init__(self, directory):
        self.directory = directory
        self.stamps = [i * SECOND // 20 for i in range(10)]
        self.masks = {stamp: masks_of(i) for i, stamp in enumerate(self.stamps)}
        self.expected = {stamp: verdict.Expected.of('camera', *masks)
                         for stamp, masks in self.masks.items()}
        self.left_out = set()  # (topic, stamp) of masks that do not arrive
        self.frame_id = 'camera'

    def passage(self, **report):
        bag = self.directory / 'masks'
        shutil.rmtree(bag, ignore_errors=True)
        received = {CLASS_TOPIC: {}, COLOR_TOPIC: {}}
        with bags.Writer(bag) as writer:
            for stamp, masks in self.masks.items():
                for topic, mask, encoding in zip(received, masks, ('mono8', 'bgr8')):
                    if (topic, stamp) not in self.left_out:
                        received[topic][stamp] = stamp + 30_000_000
                        writer.write_image(topic, mask, encoding, stamp, self.frame_id)
        counts = {'received': 10, 'published': 10, 'processing_time_ms_p95': '20.4', **report}
        return Passage(20.0, {stamp: stamp for stamp in self.stamps}, received,
                       {CLASS_TOPIC: 0, COLOR_TOPIC: 0},
                       {key: str(value) for key, value in counts.items()}, bag,
                       self.directory / 'node.log')

    def account(self, played=None, **report):
        return verdict.account(played or self.passage(**report), self.expected)

    def lose(self, *numbers, topics=(CLASS_TOPIC, COLOR_TOPIC)):
        self.left_out |= {(topic, self.stamps[i]) for topic in topics for i in numbers}
        return self


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def adds_up(delivery):
    """Tell whether each frame that was sent is in one of the counts."""
    return delivery.sent == (delivery.delivered + delivery.not_taken + delivery.masks_lost
                             + sum(delivery.dropped.values()))


def test_a_passage_without_loss(world):
    delivery, problems = world.account()
    assert problems == [] and adds_up(delivery)
    assert (delivery.delivered, delivery.identical, delivery.dropped) == (10, 10, {})


def test_frames_that_there_was_no_time_for_are_counted_and_no_problem(world):
    world.lose(1, 2, 3, 7)
    delivery, problems = world.account(
        received=9, published=6, dropped_replaced=2, dropped_late_before_publishing=1)
    assert problems == [] and adds_up(delivery)
    assert (delivery.delivered, delivery.not_taken) == (6, 1)
    assert delivery.dropped == {'replaced': 2, 'late_before_publishing': 1}


@pytest.mark.parametrize('cause', ['fault', 'not_ready', 'malformed_short_data', 'foreign_stamp',
                                   'something_new'])
def test_a_drop_for_another_cause_than_time_is_a_problem(world, cause):
    world.lose(4)
    delivery, problems = world.account(published=9, **{f'dropped_{cause}': 1})
    assert adds_up(delivery)
    assert len(problems) == 1 and cause in problems[0]


def test_a_frame_that_vanished_in_the_node_is_a_problem(world):
    _, problems = world.lose(4).account(published=9)
    assert len(problems) == 1 and 'do not add up' in problems[0]


def test_a_mask_that_was_not_published_is_a_problem_but_not_one_that_dds_lost(world):
    played = world.lose(5, topics=[COLOR_TOPIC]).passage()
    delivery, problems = world.account(played)
    assert adds_up(delivery) and delivery.masks_lost == 1
    assert len(problems) == 1 and COLOR_TOPIC in problems[0] and '0 lost' in problems[0]
    delivery, problems = world.account(replace(played, lost={CLASS_TOPIC: 0, COLOR_TOPIC: 1}))
    assert problems == [] and delivery.masks_lost == 1


@pytest.mark.parametrize('which', [0, 1])
def test_one_pixel_that_differs_is_a_problem(world, which):
    world.masks[world.stamps[3]][which].flat[-1] ^= 1
    delivery, problems = world.account()
    assert (delivery.delivered, delivery.identical) == (10, 9)
    assert len(problems) == 1 and str(world.stamps[3]) in problems[0]


def test_another_frame_id_is_a_problem(world):
    world.frame_id = 'other'
    delivery, problems = world.account()
    assert delivery.identical == 0 and "'other'" in problems[0]


def test_masks_of_swapped_frames_are_a_problem(world):
    first, second = world.stamps[:2]
    world.masks[first], world.masks[second] = world.masks[second], world.masks[first]
    assert world.account()[0].identical == 8


def test_no_mask_at_all_is_one_line_with_what_is_known(world, monkeypatch):
    monkeypatch.setattr(passage.middleware, 'problems', lambda _: [])
    played = world.lose(*range(10)).passage(published=0, dropped_late_before_publishing=10)
    _, problems = world.account(played)
    assert len(problems) == 1
    assert '0 of 10 frames' in problems[0] and '10 late before publishing' in problems[0]
    assert 'processing took 20 ms (p95), the period was 50 ms' in problems[0]
    assert 'node.log' in problems[0] and 'doctor' not in problems[0]
    with pytest.raises(CheckFailed, match='0 of 10 frames'):
        passage.rate_that_is_carried(played)
    monkeypatch.setattr(passage.middleware, 'problems', lambda _: ['/dev/shm has 64 MB: more'])
    assert verdict.account(played, world.expected)[1][0].endswith('/dev/shm has 64 MB: more')


def test_accuracy_may_not_fall_below_the_float_network():
    scores = {'fp32': {'class_iou': 0.85}, 'int8': {'class_iou': 0.845}}
    assert verdict.accuracy_problems(scores) == []
    for worse in (0.83, float('nan')):
        scores['int8']['class_iou'] = worse
        assert len(verdict.accuracy_problems(scores)) == 1


def test_the_rate_is_what_came_through_with_room_and_at_most_the_trials(world):
    rate, reason = passage.rate_that_is_carried(replace(world.passage(), rate=30.0))
    assert rate == 30 and 'all 10 frames' in reason
    world.lose(0, 2, 4, 6, 8)  # five came, the last 0.48 s after the first one was sent
    played = world.passage(published=5, dropped_replaced=5)
    rate, reason = passage.rate_that_is_carried(played)
    assert rate == pytest.approx(0.6 * 5 / 0.48, rel=0.05)
    assert 'of 10 frames at 20 Hz, 10.4 a second came through' in reason
    assert 'processing took 20 ms' in reason
    # Of one frame too: a machine may be that slow.
    world.lose(1, 3, 5, 7)
    slow = passage.rate_that_is_carried(world.passage(published=1, dropped_replaced=9))[0]
    assert slow == pytest.approx(0.6 / 0.48, rel=0.05)


def test_a_slow_machine_plays_fewer_frames():
    assert [passage.frames_at(rate, 120) for rate in (0.1, 1, 2.5, 3, 30, 100)] == [
        20, 40, 100, 120, 120, 120]


class Passages:
    """Stands in for playing: which share of the frames comes through at a rate."""

    def __init__(self, world, carried):
        self.world, self.carried, self.played = world, carried, []

    def __call__(self, directory, bundle, store, backend, bag, rate, count):
        self.played.append((directory.name, rate))
        world = World(self.world.directory)
        missing = 0 if rate <= self.carried else 5
        world.lose(*range(missing))
        played = world.passage(published=10 - missing, dropped_replaced=missing)
        return replace(played, rate=rate)


@pytest.mark.parametrize(('asked', 'carried', 'played'), [
    (None, 40, [('trial', 30.0), ('played', 30.0)]),
    (None, 5, [('trial', 30.0), ('played', 6.2), ('played_at_half', 3.1)]),
    (None, 1, [('trial', 30.0), ('played', 6.2), ('played_at_half', 3.1)]),
    (50.0, 1, [('played', 50.0)]),
])
def test_half_the_rate_once_if_frames_are_missing_but_not_if_a_rate_was_asked_for(
        world, monkeypatch, capsys, asked, carried, played):
    play = Passages(world, carried)
    monkeypatch.setattr(demo, 'passage', play)
    passages, reason = demo._passages(world.directory, asked, (Path(), Path(), '', Path()))
    assert play.played == played and len(passages) == len(played)
    assert passages[-1].rate == played[-1][1]
    said = capsys.readouterr().err
    assert reason == 'asked for' if asked else reason in said


def test_what_dds_loses_is_not_played_again(world, monkeypatch):
    def play(*_):
        played = World(world.directory).lose(3, topics=[COLOR_TOPIC]).passage()
        return replace(played, lost={CLASS_TOPIC: 0, COLOR_TOPIC: 1})

    monkeypatch.setattr(demo, 'passage', play)
    passages, _ = demo._passages(world.directory, None, (Path(), Path(), '', Path()))
    assert len(passages) == 2


def test_the_player_refuses_what_is_not_in_the_recording(tmp_path, monkeypatch, capsys):
    player = pytest.importorskip('trt_segmentation.demo.player', exc_type=ImportError)
    pixels = np.zeros((2, 4, 3), np.uint8)
    with bags.Writer(tmp_path / 'bag') as writer:
        for topic in ('/front/image_raw', '/rear/image_raw', '/a', '/b'):
            writer.write(topic, bags.image_message(pixels, 'bgr8', 1, ''), 1)
    (tmp_path / 'none').mkdir()
    (tmp_path / 'cut.mcap').write_bytes(next((tmp_path / 'bag').glob('*.mcap')).read_bytes()[:60])
    (tmp_path / 'cut.db3').write_bytes(b'SQLite format 3\0 and no more')
    monkeypatch.chdir(tmp_path)
    for words, message in (
            ('bag --topic /rear/image', "no image topic '/rear/image'; the bag has /a, /b, "
             '/front/image_raw, /rear/image_raw; did you mean /rear/image_raw?'),
            ('bag', 'several cameras, /a, /b, /front/image_raw, /rear/image_raw: name one with '
             '--topic'),
            ('none', 'none: no recording'), ('missing', 'missing: '),
            ('cut.mcap', 'cut.mcap: '), ('cut.db3', 'cut.db3: ')):
        monkeypatch.setattr(sys, 'argv', ['player', *words.split()])
        with pytest.raises(InputError) as refused:
            player.main()
        assert message in str(refused.value) and '\n' not in str(refused.value)
    for option, value, message in (
            ('--rate', '0', "found '0', expected a number above 0"),
            ('--rate', 'abc', "found 'abc', expected a number above 0"),
            ('--count', '2.5', "found '2.5', expected an integer above 0"),
            ('--to', 'no topic', "found 'no topic', expected the name of a topic")):
        monkeypatch.setattr(sys, 'argv', ['player', 'bag', option, value])
        with pytest.raises(SystemExit) as ended:
            player.main()
        assert ended.value.code == 2
        assert f'argument {option}: {message}' in capsys.readouterr().err.splitlines()[-1]


def test_the_player_reads_as_replay_does(tmp_path):
    """The one camera, compressed or not, and what a recording still has that was cut."""
    player = pytest.importorskip('trt_segmentation.demo.player', exc_type=ImportError)
    # Large enough for each message to fill a chunk of the file.
    pixels = np.random.default_rng(0).integers(0, 256, (800, 1000, 3), np.uint8)
    jpeg = cv2.imencode('.jpg', pixels, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes()
    with bags.Writer(tmp_path / 'bag') as writer:
        for i in range(6):
            stamp = SECOND + i
            writer.write('/front/image_raw/compressed', bags.compressed_image_message(
                jpeg, 'jpeg', stamp, 'front'), stamp)
            writer.write_image('/front/class_mask', pixels[..., 0], 'mono8', stamp, 'front')
    frames, problems = player._read(tmp_path / 'bag', None, 4)
    assert not problems and [when for when, _ in frames] == [SECOND + i for i in range(4)]
    for when, message in frames:
        assert bytes(message.data) == jpeg and message.format == 'jpeg'
        assert player._stamp_ns(message) == when and message.header.frame_id == 'front'
    whole = next((tmp_path / 'bag').glob('*.mcap')).read_bytes()
    (tmp_path / 'cut.mcap').write_bytes(whole[:whole.rindex(jpeg) + 9])
    frames, problems = player._read(tmp_path / 'cut.mcap', None, None)
    assert 0 < len(frames) < 6 and problems
    masks, _ = player._read(tmp_path / 'bag', '/front/class_mask', 1)
    assert bytes(masks[0][1].data) == pixels[..., 0].tobytes()


def test_a_camera_that_was_held_up_does_not_hurry(monkeypatch):
    player = pytest.importorskip('trt_segmentation.demo.player', exc_type=ImportError)
    from sensor_msgs.msg import Image
    now, moments = [0], []

    class Publisher:
        def publish(self, message):
            moments.append(now[0])
            now[0] += 260_000_000 if len(moments) == 2 else 1_000_000

    monkeypatch.setattr(player.time, 'monotonic_ns', lambda: now[0])
    monkeypatch.setattr(player.time, 'sleep', lambda s: now.__setitem__(0, now[0] + int(s * 1e9)))
    player._play([(i * 100_000_000, Image()) for i in range(5)], 1.0, Publisher(),
                 SimpleNamespace(reach=lambda *_: None))
    gaps = np.diff(moments) / 1e6
    assert gaps[1] == pytest.approx(260, abs=1)
    assert gaps[[0, 2, 3]] == pytest.approx([100, 100, 100], abs=3)


def test_the_time_of_a_recording_runs_on_between_its_frames(monkeypatch):
    """At its speed, and waits for a frame that is held up."""
    player = pytest.importorskip('trt_segmentation.demo.player', exc_type=ImportError)
    now, times = [0], []
    monkeypatch.setattr(player.time, 'monotonic_ns', lambda: now[0])
    monkeypatch.setattr(player._Clock, '_run', lambda self: None)
    node = SimpleNamespace(create_publisher=lambda *_: SimpleNamespace(
        publish=lambda message: times.append((message.clock.sec, message.clock.nanosec))))
    clock = player._Clock(node, 5 * SECOND, 0.5)
    steps = [('', 7.0, (5, 0)), ((5 * SECOND, 6 * SECOND), 7.0, (5, 0)),
             ('', 8.0, (5, SECOND // 2)), ('', 10.0, (6, 0)),
             ((6 * SECOND, None), 10.0, (6, 0)), ('', 14.0, (8, 0))]
    for reached, moment, _ in steps:
        now[0] = int(moment * SECOND)
        if reached:
            clock.reach(*reached)
        else:
            clock._publish()
    assert times == [expected for *_, expected in steps]
    clock.close()


def test_the_player_brings_the_environment_that_images_need(tmp_path, monkeypatch):
    player = pytest.importorskip('trt_segmentation.demo.player', exc_type=ImportError)
    with bags.Writer(tmp_path / 'bag') as writer:
        writer.write_image('/a', np.zeros((2, 4, 3), np.uint8), 'bgr8', SECOND, 'camera')
    given = {}

    def init():
        given.update(os.environ)
        raise InterruptedError

    monkeypatch.setattr(player.rclpy, 'init', init)
    monkeypatch.setattr(os, 'environ', {'PATH': os.environ['PATH']})
    monkeypatch.setattr(sys, 'argv', ['player', str(tmp_path / 'bag'), '--topic', '/a'])
    with pytest.raises(InterruptedError):
        player.main()
    assert given == environment.completed({'PATH': given['PATH']})


def test_the_player_brings_time_before_images_and_between_them(tmp_path):
    """As the documentation has it typed: without the profile in the environment."""
    pytest.importorskip('rclpy', reason='it plays over DDS')
    from rclpy.qos import QoSProfile
    from rosgraph_msgs.msg import Clock
    from support.ros_peer import environ, peer, stamp_of
    period, pixels = SECOND, np.zeros((540, 960, 3), np.uint8)  # a stall hides no moment
    with bags.Writer(tmp_path / 'bag') as writer:
        for i in range(4):
            writer.write_image(IMAGE_TOPIC, pixels, 'bgr8', SECOND + i * period, 'camera')
    bare = {key: value for key, value in environ().items()
            if key not in environment.PROFILE_VARIABLES}
    log = tmp_path / 'log'
    with peer() as other, ExitStack() as stack:
        came = []
        other.node.create_subscription(
            Clock, '/clock', lambda m: came.append(m.clock.sec * SECOND + m.clock.nanosec),
            QoSProfile(depth=1000))
        child = children.Child(stack, 'player', 'trt_segmentation.demo.player', log, bare,
                               tmp_path / 'bag', '--to', '/image')
        other.wait(lambda: len(came) > 3, 'the time before anybody hears images')
        assert set(came) == {SECOND}
        other.subscribe('/image', qos=QoSProfile(depth=10))
        other.wait(lambda: len(other.messages['/image']) == 4, 'all images')
        child.process.wait(children.PATIENCE)
        assert child.process.returncode == 0, log.read_text()
    assert [stamp_of(m) for m in other.messages['/image']] == [
        SECOND + i * period for i in range(4)]
    assert came == sorted(came)
    for i in range(3):  # not with the frames alone
        assert any(SECOND + i * period < moment < SECOND + (i + 1) * period for moment in came)


def test_the_player_plays_what_is_left_of_a_compressed_recording(tmp_path):
    pytest.importorskip('rclpy', reason='it plays over DDS')
    from sensor_msgs.msg import CompressedImage
    from support.ros_peer import environ, peer, stamp_of
    jpeg = cv2.imencode('.jpg', np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    with bags.Writer(tmp_path / 'bag') as writer:
        for i in range(3):
            writer.write('/a/compressed', bags.compressed_image_message(
                jpeg, 'jpeg', SECOND + i, 'camera'), SECOND + i)
    metadata = tmp_path / 'bag' / 'metadata.yaml'
    metadata.write_text(metadata.read_text().replace('message_count: 3', 'message_count: 4'))
    log = tmp_path / 'log'
    with peer() as other, ExitStack() as stack:
        other.subscribe('/a/compressed', CompressedImage)
        child = children.Child(stack, 'player', 'trt_segmentation.demo.player', log, environ(),
                               tmp_path / 'bag', '--to', '/a/compressed')
        other.wait(lambda: other.messages['/a/compressed'], 'an image')
        child.process.wait(children.PATIENCE)
        # They come at once, and who keeps the newest alone may miss the others.
        other.wait(lambda: stamp_of(other.messages['/a/compressed'][-1]) == SECOND + 2, 'the last')
    assert child.process.returncode == 2
    assert '4 messages are promised, 3 could be read' in log.read_text()
    played = [stamp_of(message) - SECOND for message in other.messages['/a/compressed']]
    assert played == sorted({0, 1, 2}.intersection(played))


def test_the_player_waits_for_acknowledgements_and_says_where_they_do_not_come(
        tmp_path, monkeypatch, capsys):
    player = pytest.importorskip('trt_segmentation.demo.player', exc_type=ImportError)
    with bags.Writer(tmp_path / 'bag') as writer:
        writer.write_image('/a', np.zeros((2, 4, 3), np.uint8), 'bgr8', SECOND, 'camera')
    now, answers = [0.0], iter([False] * 100 + [True] + [False] * 1000)

    def wait(duration):
        now[0] += duration.nanoseconds / SECOND
        return next(answers)

    publisher = SimpleNamespace(get_subscription_count=lambda: 1, publish=lambda _: None,
                                wait_for_all_acked=wait)
    node = SimpleNamespace(create_publisher=lambda *_: publisher, destroy_node=lambda: None)
    monkeypatch.setattr(player, 'rclpy', SimpleNamespace(
        init=lambda: None, create_node=lambda _: node, ok=lambda: True, shutdown=lambda: None))
    monkeypatch.setattr(player, '_LEAD_NS', 0)
    monkeypatch.setattr(player.time, 'monotonic', lambda: now[0])
    monkeypatch.setattr(sys, 'argv', ['player', str(tmp_path / 'bag'), '--to', '/a'])
    assert player.main() == 0 and not capsys.readouterr().err
    assert player.main() == 1
    assert 'player: not all subscribers of /a have acknowledged' in capsys.readouterr().err


def test_what_waits_when_the_recorder_is_asked_to_end_is_recorded():
    recorder = pytest.importorskip('trt_segmentation.demo.recorder', exc_type=ImportError)
    from rclpy.duration import Duration
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import Image
    from support.ros_peer import peer
    with peer() as other:
        came, qos = [], QoSProfile(depth=5)
        subscription = other.node.create_subscription(Image, '/a', came.append, qos, raw=True)
        publisher = other.publisher('/a', qos=qos)
        other.wait(publisher.get_subscription_count, 'the subscriber')
        for _ in range(5):
            publisher.publish(Image())
        assert publisher.wait_for_all_acked(Duration(seconds=children.PATIENCE)) and not came
        recorder._take_the_rest(subscription)
        assert len(came) == 5
        recorder._take_the_rest(subscription)
        assert len(came) == 5


def test_a_passage_through_the_real_node(tmp_path):
    pytest.importorskip('rclpy', reason='the node needs ROS')
    bundle, store, bag = foreign_bundle(tmp_path), tmp_path / 'store', tmp_path / 'drive'
    images = [scene(40 + i, (96, 160))[0] for i in range(6)]
    with bags.Writer(bag) as writer:
        for i, image in enumerate(images):
            writer.write_image(IMAGE_TOPIC, image, 'bgr8', SECOND + i * SECOND // 20, 'camera')
    with open_segmenter(bundle, backend='onnxruntime', store=store) as segmenter:
        expected = {}
        for i, image in enumerate(images[:5]):
            masks = segmenter.segment(image)
            expected[SECOND + i * SECOND // 20] = verdict.Expected.of(
                'camera', masks.classes, masks.color)
    played = passage.passage(tmp_path / 'played', bundle, store, 'onnxruntime', bag, 4.0, 5)
    delivery, problems = verdict.account(played, expected)
    assert problems == [] and adds_up(delivery)
    assert delivery.sent == 5 and delivery.identical == delivery.delivered >= 1
    assert set(played.latency_ms()) == {'p50', 'p95', 'p99'}


def test_a_child_ends_with_a_demo_that_is_killed(tmp_path):
    if not can_bind():
        pytest.skip('without setpriv of util-linux 2.33 nothing binds a child to its parent')
    # The child waits for input that never comes; its parent is killed as soon as it runs.
    (tmp_path / 'waiting.py').write_text(
        'import os, sys; print(os.getpid(), flush=True); sys.stdin.read()')
    code = ('import os, pathlib; from contextlib import ExitStack\n'
            'from trt_segmentation.demo.children import Child\n'
            'with ExitStack() as stack:\n'
            '    child = Child(stack, "child", "waiting", pathlib.Path("log"), dict(os.environ),\n'
            '                  listen=True)\n'
            '    print(child.next_line(60), flush=True); child.process.wait()')
    parent = subprocess.Popen(
        [sys.executable, '-c', code], cwd=tmp_path, stdin=subprocess.PIPE, text=True,
        stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': os.pathsep.join(
            [str(tmp_path), str(Path(children.__file__).parents[2])])})
    with parent:
        child = Path('/proc', parent.stdout.readline().strip(), 'stat')
        assert child.exists()
        parent.kill()
        with suppress(OSError):  # it is gone, or goes while it is read
            while ') Z ' not in child.read_text():
                time.sleep(0.02)
        parent.stdin.close()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP,
                                    signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path, number):
    with subprocess.Popen(
            [sys.executable, '-m', 'trt_segmentation', 'demo', '--output', str(tmp_path / 'out')],
            stderr=subprocess.PIPE, text=True, start_new_session=True,
            # Under nohup the tests ignore SIGHUP, and what they start would inherit that.
            preexec_fn=lambda: number != signal.SIGKILL and signal.signal(
                number, signal.SIG_DFL)) as process:
        while 'Drawing' not in process.stderr.readline():
            assert process.poll() is None
        while not list((tmp_path / 'out').glob('images/*')):  # until the workers draw
            assert process.poll() is None
            time.sleep(0.05)
        assert len(processes_of(process.pid)) > 1
        process.send_signal(number)
        try:
            rest = process.communicate(timeout=60)[1]  # until nobody holds its standard error
            deadline = time.monotonic() + 60  # what has let go of that may not have ended yet
            while (left := processes_of(process.pid)) and time.monotonic() < deadline:
                time.sleep(0.02)
        finally:
            for each in processes_of(process.pid):
                os.kill(each, signal.SIGKILL)
    assert left == []
    if number == signal.SIGKILL:
        return
    assert process.returncode == (143 if number == signal.SIGTERM else 130)
    assert rest.strip().splitlines()[-1].startswith('trt-segmentation demo: interrupted')
