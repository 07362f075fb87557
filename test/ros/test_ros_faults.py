# SPDX-License-Identifier: Apache-2.0
"""
What must not bring the node down: each test injects one fault, over real DDS.

After each of them the node must go on, or say why not; and every mask that it ever publishes must
be the pipeline's mask of the frame whose stamp it carries. `Drive` checks the latter for every
single mask that arrives.
"""

from __future__ import annotations

from array import array
from contextlib import contextmanager
import fcntl
from functools import partial
import os
from pathlib import Path
import random
import resource
import shutil
import signal
from time import monotonic, sleep

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='the node needs ROS')
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter as ParameterMsg
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger
from support.ros import BACKEND, direct_segmenter, make_bundle, picture
from support.ros_faulty_node import Fault, picture_of, SLOW_SECONDS
from support.ros_peer import (
    BEST_EFFORT,
    compressed_message,
    image_message,
    NodeProcess,
    PATIENCE,
    peer,
    pixels_of,
    RELIABLE,
    stamp_of,
)
from support.shm import needs_shared_memory, segment_locks

import trt_segmentation
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cli import main
from trt_segmentation.engines.build import build
from trt_segmentation.engines.store import Store
from trt_segmentation.recordings.image_messages import ENCODINGS
from trt_segmentation.system import files, sets

FAULTY = Path(__file__).parents[1] / 'support/ros_faulty_node.py'
SIZE = (64, 128)
CLASS = '/segmentation/class_mask'


class Drive:
    """A node, a peer with a good camera, and a check of every mask that ever arrives."""

    def __init__(self, node, other, direct, topic='/image', mask_topic=CLASS):
        self.node, self.other, self.direct = node, other, direct
        self.task, self.mask_topic = topic, mask_topic
        self.sent: dict[int, np.ndarray] = {}
        self._checked = 0
        other.subscribe(mask_topic, qos=QoSProfile(depth=100))
        other.wait_for_state('active', node)
        self.camera = other.publisher(topic)
        other.wait(self.camera.get_subscription_count, 'a subscriber', node)
        self.answer(0)

    def send(self, pixels: np.ndarray, publisher=None, encoding='bgr8', seen=None, **header
             ) -> int:
        """Publish a picture; remember what the network must see."""
        stamp = self.other.send(publisher or self.camera, pixels, encoding, **header)
        self.sent[stamp] = pixels if seen is None else seen
        return stamp

    def answer(self, seed: int, publisher=None, size=SIZE, **options):
        """Send good frames until one is answered; return the mask."""
        image, sent, patience = picture(size, seed), set(), 0

        def answered():
            nonlocal patience
            if patience % 10 == 0:
                sent.add(self.send(image, publisher, **options))
            patience += 1
            return [message for message in self.other.messages[self.mask_topic]
                    if stamp_of(message) in sent]

        mask = self.other.wait(answered, 'an answer to a good frame', self.node)[0]
        self.check()
        return mask

    def late_in_the_engine(self) -> list[int]:
        """Send frames that take longer than they may until one is dropped; return the stamps."""
        assert self.other.set_parameter('max_frame_age_ms', 400, self.node)[0]
        stamps: list[int] = []

        def dropped():  # others may be late before the engine has them
            stamps.append(self.send(picture_of(Fault.SLOW, SIZE)))
            self.other.spin(SLOW_SECONDS)
            return self.count('dropped_late_before_publishing')

        self.wait(dropped, 'a late frame')
        return stamps

    def check(self) -> None:
        """Compare every mask that came since the last check with the pipeline's."""
        messages = self.other.messages[self.mask_topic]
        for message in messages[self._checked:]:
            image = self.sent[stamp_of(message)]
            assert message.header.frame_id.startswith('camera')
            np.testing.assert_array_equal(pixels_of(message),
                                          self.direct.segment(image).classes)
        self._checked = len(messages)

    def count(self, name: str, task: str | None = None) -> int:
        """Return a count from the diagnostics."""
        return int(self.other.status(task or self.task).get(name, 0))

    def wait(self, condition, what: str):
        """Wait until something is true."""
        return self.other.wait(condition, what, self.node)

    def status(self) -> dict[str, str]:
        """Return the node's status."""
        return self.other.status()


def answer_to_compressed(other, publisher, data: bytes, topic: str, node):
    """Publish a good picture's bytes until one frame is answered on a topic; return the mask."""
    stamps = set()

    def answered():
        stamps.add(other.now())
        publisher.publish(compressed_message(data, max(stamps)))
        return [message for message in other.messages[topic] if stamp_of(message) in stamps]

    return other.wait(answered, 'an answer to a good frame', node)[0]


@contextmanager
def driving(options, direct, tmp_path, *, module='trt_segmentation.ros.node', topic='/image',
            mask_topic=CLASS, **parameters):
    """Start a node, and yield a drive with it; it must end well."""
    with peer() as other, NodeProcess(tmp_path / 'node.log', module=module,
                                      **{**options, **parameters}) as node:
        drive = Drive(node, other, direct, topic, mask_topic)
        yield drive
        drive.check()
        if node.running():
            assert node.stop() == 0
        assert 'Traceback' not in node.log


# Input


def hostile(random: random.Random) -> Image:
    """Return an Image that no camera would send."""
    big = (0, 1, 2, 7, 64, 128, 16385, 2**16, 2**31, 2**32 - 1)
    message = Image(
        height=random.choice(big), width=random.choice(big), step=random.choice(big),
        encoding=random.choice([*ENCODINGS, '', 'bgr', '32FC1', 'x' * 1000, '\0', 'é']),
        is_bigendian=random.randrange(256),
        data=array('B', random.randbytes(random.choice((0, 1, 100, 3000)))))
    message.header.stamp.sec = random.choice((0, -1, -2**31, 2**31 - 1))
    message.header.stamp.nanosec = random.choice((0, 2**32 - 1))
    message.header.frame_id = random.choice(('', 'x' * 1000, '/\n\0'))
    return message


def test_ten_thousand_hostile_images_beside_a_good_camera(built, direct, tmp_path):
    with driving(built, direct, tmp_path, topic='/good/image', cameras="['good', 'bad']",
                 mask_topic='/segmentation/good/class_mask') as drive:
        bad = drive.other.publisher('/bad/image', qos=QoSProfile(depth=100))
        drive.wait(bad.get_subscription_count, 'a subscriber of the bad one')
        chance = random.Random(0)
        answers = 0
        while drive.count('received', '/bad/image') < 10_000:
            for _ in range(200):
                bad.publish(hostile(chance))
            answers += 1
            drive.answer(answers)
        drive.other.wait_for_reports()
        status = drive.other.status('/bad/image')
        dropped = sum(int(value) for key, value in status.items() if key.startswith('dropped_'))
        # A few may by chance be images: those were segmented, or overtaken.
        assert dropped + int(status['published']) + 1 >= int(status['received'])
        assert drive.status()['engine_faults'] == '0'
        lines = [line for line in drive.node.log.splitlines() if 'frame dropped' in line]
        assert len(lines) < 200  # of ten thousand


def test_ten_thousand_damaged_serializations(built, direct, tmp_path):
    with driving(built, direct, tmp_path, topic='/good/image', cameras="['good', 'bad']",
                 mask_topic='/segmentation/good/class_mask') as drive:
        bad = drive.other.publisher('/bad/image', qos=QoSProfile(depth=100))
        drive.wait(bad.get_subscription_count, 'a subscriber of the bad one')
        chance = random.Random(0)
        good = serialize_message(image_message(picture((8, 8), 1), 'bgr8', 10**18))
        for number in range(10_000):
            data = bytearray(good)
            for _ in range(chance.randrange(1, 5)):
                at = chance.randrange(len(data) - 4)
                data[at:at + 4] = chance.choice((b'\xff\xff\xff\xff', b'\x00\x00\x00\x80',
                                                 chance.randbytes(4)))
            bad.publish(bytes(data[:chance.choice((len(data), chance.randrange(4, len(data))))]))
            if number % 500 == 0:
                drive.answer(number)
        drive.answer(1)
        assert drive.status()['engine_faults'] == '0'


def hostile_picture(chance: random.Random) -> CompressedImage:
    """Return a CompressedImage that no camera would send: claims of size, cuts, other formats."""
    side = chance.choice((0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1))
    chunk = chance.choice((0, 13, 2**31 - 1, 2**32 - 1))
    png = (b'\x89PNG\r\n\x1a\n' + chunk.to_bytes(4, 'big') + b'IHDR' + side.to_bytes(4, 'big')
           + chance.choice((1, 64, side)).to_bytes(4, 'big') + bytes((8, 2, 0, 0, 0)) + bytes(4)
           + chunk.to_bytes(4, 'big') + b'IDAT' + chance.randbytes(20))
    jpeg = (b'\xff\xd8' + b'\xff' * chance.choice((0, 5000)) + b'\xff\xc0\x00\x11\x08'
            + (side % 2**16).to_bytes(2, 'big') * 2 + b'\x03' + chance.randbytes(30)
            + b'\xff\xda\x00\x02' * chance.choice((0, 2000)))
    data = chance.choice((b'', png, jpeg, b'GIF89a' + chance.randbytes(50), chance.randbytes(300)))
    return compressed_message(
        data, chance.choice((0, 7, 2**61)),
        chance.choice(('', 'png', 'jpeg', 'rgb8; png compressed rgb8', '32FC1; compressedDepth',
                       'bayer_rggb8; jpeg compressed ', 'x' * 1000, '\0')))


def test_a_thousand_hostile_compressed_images_beside_a_good_camera(built, direct, tmp_path):
    with peer() as other, NodeProcess(tmp_path / 'log', transport='compressed',
                                      cameras="['good', 'bad']", **built) as node:
        other.wait_for_state('active', node)
        topic = '/segmentation/good/class_mask'
        other.subscribe(topic)
        good, bad = (other.publisher(f'/{name}/image/compressed', CompressedImage, qos)
                     for name, qos in (('good', RELIABLE), ('bad', QoSProfile(depth=100))))
        other.wait_for_match(good, node, '/segmentation/class_mask', task='/good/image/compressed')
        other.wait(bad.get_subscription_count, 'a subscriber of the bad one', node)
        image, chance = picture(SIZE, 1), random.Random(0)
        png = cv2.imencode('.png', image)[1].tobytes()
        before = other.status()
        while other.status('/bad/image/compressed').get('received', '0') in map(str, range(1000)):
            for _ in range(20):
                bad.publish(hostile_picture(chance))
            stamp = other.now()
            good.publish(compressed_message(png, stamp))
            other.spin(0.05)
        mask = answer_to_compressed(other, good, png, topic, node)
        np.testing.assert_array_equal(pixels_of(mask), direct.segment(image).classes)
        other.wait_for_reports()
        after, camera = other.status(), other.status('/bad/image/compressed')
        assert after['engine_faults'] == '0' and after['state'] == 'active'
        assert camera['published'] == '0' and 'Traceback' not in node.log
        # Claims of gigabytes take none.
        assert float(after['process_memory_mb']) < float(before['process_memory_mb']) + 256


def test_a_fast_camera_takes_nothing_from_a_slow_one(built, direct, tmp_path):
    """The engine is busy with the fast one all the time; each image of the slow one is served."""
    with driving(built, direct, tmp_path, module=FAULTY, topic='/slow/image',
                 cameras="['fast', 'slow']", mask_topic='/segmentation/slow/class_mask') as drive:
        fast = drive.other.publisher('/fast/image')
        drive.wait(fast.get_subscription_count, 'a subscriber of the fast one')
        for seed in range(5):
            stamp = drive.send(picture(SIZE, seed))

            def answered(stamp=stamp):
                # As many as it likes: all but the newest are replaced before they are taken.
                drive.other.send(fast, picture_of(Fault.SLOW, SIZE))
                return drive.other.masks_of(drive.mask_topic, stamp)

            drive.wait(answered, 'the mask of the slow camera')
        drive.wait(lambda: drive.count('dropped_replaced', '/fast/image') > 0, 'overtaken images')
        drive.other.wait_for_reports()
        assert drive.count('dropped_replaced') == 0  # of the slow camera: none
        figures = drive.other.status('/fast/image')
        dropped = sum(int(value) for key, value in figures.items() if key.startswith('dropped_'))
        assert figures['replaced_are_counted'] == 'True'
        # What it took, gave and dropped adds up, but for the one in work.
        assert 0 <= int(figures['received']) - int(figures['published']) - dropped <= 1


def test_cameras_that_wait_together_go_through_the_network_together(built, direct, tmp_path,
                                                                    monkeypatch):
    """A slow frame of one lets images of two others wait; a fault in their batch is both's."""
    monkeypatch.setattr('trt_segmentation.engines.batches.by_turns',
                        lambda calls: [1.0] * len(calls))
    store = tmp_path / 'store'  # the other tests' has one plan
    build(Bundle.open(built['bundle']), backend=BACKEND, precision='fp32', store=store,
          max_batch=2)
    with driving({**built, 'store': store}, direct, tmp_path, module=FAULTY,
                 cameras="['left', 'right', 'slow']", topic='/left/image',
                 mask_topic='/segmentation/left/class_mask',
                 max_batch=2, max_recoveries_per_minute=60) as drive:
        assert drive.status()['batch_sizes'] == '1, 2'
        cameras = {name: drive.other.publisher(f'/{name}/image') for name in ('right', 'slow')}
        for publisher in cameras.values():
            drive.wait(publisher.get_subscription_count, 'a subscriber')
        right = '/segmentation/right/class_mask'
        drive.other.subscribe(right, qos=QoSProfile(depth=100))

        def together(image):
            """Send to all until two went through together; `image` by left and right."""
            def sent():
                drive.other.send(cameras['slow'], picture_of(Fault.SLOW, SIZE))
                drive.send(image)
                drive.send(image, cameras['right'])
                left, _ = (drive.other.status(f'/{name}/image') for name in ('left', 'right'))
                return float(left.get('batch_size_2_share', 0)) > 0
            drive.wait(sent, 'a batch of two')

        together(picture(SIZE, 7))
        drive.answer(8)  # and with it all of the left ones were checked
        for mask in drive.other.messages[right]:
            np.testing.assert_array_equal(
                pixels_of(mask), direct.segment(drive.sent[stamp_of(mask)]).classes)
        assert drive.other.messages[right]

        def failed():
            drive.other.send(cameras['slow'], picture_of(Fault.SLOW, SIZE))
            # In one batch with the slow camera's, it may meet that frame's fault and be answered.
            drive.send(picture_of(Fault.RAISE, SIZE))
            drive.send(picture(SIZE, 9), cameras['right'])
            return drive.count('dropped_fault', '/right/image')
        drive.wait(failed, 'a fault in a batch')
        drive.wait(lambda: drive.count('dropped_fault'), "the left one's")
        drive.answer(10)  # it has recovered


def test_damaged_compressed_images(built, direct, tmp_path):
    with peer() as other, NodeProcess(tmp_path / 'log', transport='compressed', **built) as node:
        other.wait_for_state('active', node)
        other.subscribe(CLASS)
        publisher = other.publisher('/image/compressed', CompressedImage)
        other.wait_for_match(publisher, node, CLASS, task='/image/compressed')
        image, chance = picture(SIZE, 1), random.Random(0)
        files_ = [bytearray(cv2.imencode(kind, image)[1]) for kind in ('.png', '.jpg')]
        for number in range(1000):
            data = bytearray(chance.choice(files_))
            for _ in range(chance.randrange(1, 20)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            publisher.publish(compressed_message(
                bytes(data[:chance.choice((len(data), chance.randrange(len(data))))]), 7))
            if number % 250 == 0:
                other.wait_for_reports(1)
        mask = answer_to_compressed(other, publisher, bytes(files_[0]), CLASS, node)
        np.testing.assert_array_equal(pixels_of(mask), direct.segment(image).classes)
        other.wait_for_reports()
        assert other.status()['engine_faults'] == '0'
        assert 'Traceback' not in node.log


def test_publishers_come_and_go_and_change_everything(built, direct, tmp_path):
    with driving(built, direct, tmp_path) as drive:
        drive.other.node.destroy_publisher(drive.camera)
        for turn in range(8):
            publisher = drive.other.publisher(qos=(RELIABLE, BEST_EFFORT)[turn % 2])
            size = ((64, 128), (33, 77), (128, 64), (1, 300))[turn % 4]
            image = picture(size, turn)
            mask = drive.answer(turn, publisher, size, frame_id=f'camera_{turn}')
            assert mask.header.frame_id == f'camera_{turn}'
            gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
            drive.send(gray, publisher, 'mono8', cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR))
            drive.send(image[..., ::-1].copy(), publisher, 'rgb8', image)
            drive.answer(turn, publisher, size)
            drive.other.node.destroy_publisher(publisher)


def test_a_camera_that_stalls_and_then_bursts(built, direct, tmp_path):
    with driving(built, direct, tmp_path, max_frame_age_ms=1000,
                 warn_input_gap_ms=600, error_input_gap_ms=1200) as drive:
        level = lambda: drive.other.status('/image').get('level')  # noqa: E731
        drive.wait(lambda: level() == '2', 'an error during the stall')
        late = drive.count('dropped_late_before_inference')
        stamps: list[int] = []

        def burst():
            """Send what piled up during the stall; how much of it is overtaken is chance."""
            old = drive.other.now() - 2 * 10**9
            stamps.extend(drive.send(picture(SIZE, i), stamp_ns=old + i) for i in range(10))
            drive.other.spin(0.2)
            return drive.count('dropped_late_before_inference') > late

        drive.wait(burst, 'late frames')
        drive.answer(5)
        assert not [stamp for stamp in stamps if drive.other.masks_of(CLASS, stamp)]
        drive.wait(lambda: drive.answer(6) and level() != '2', 'the end of the error')


def test_the_clock_of_a_recording_jumps(built, direct, tmp_path):
    with peer() as other, NodeProcess(tmp_path / 'log', use_sim_time=True, **built) as node:
        clock = other.publisher('/clock', Clock)
        drive = Drive(node, other, direct)
        other.wait(clock.get_subscription_count, 'a subscriber of the clock', node)
        for seconds in (1000, 5, 10**9, 0, 2**31 - 1, 50):
            message = Clock()
            message.clock.sec = seconds
            clock.publish(message)
            drive.answer(seconds % 7)  # stamped with the time of day, whatever /clock says
        drive.wait(lambda: drive.count('foreign_stamp') > 0, 'stamps of another clock')
        assert '/clock' in node.log and 'set use_sim_time and' not in node.log


# The engine


@pytest.mark.parametrize(('fault', 'words'), [
    (Fault.RAISE, 'injected: the device is lost'),
    (Fault.GARBAGE_SHAPE, 'found shape (1, 3,'),
    (Fault.NO_OUTPUT, 'logits'),
    (Fault.EXIT, 'injected: exit'),
])
def test_an_engine_that_fails_is_opened_again(fault, words, built, direct, tmp_path):
    with driving(built, direct, tmp_path, module=FAULTY) as drive:
        bad = drive.send(picture_of(fault, SIZE))
        drive.wait(lambda: 'engine fault' in drive.node.log, 'the fault in the log')
        drive.wait(lambda: words in drive.status().get('last_fault', ''), 'the fault')
        drive.wait(lambda: drive.status()['state'] == 'active' and drive.status()['level'] == '0',
                   'the recovery')
        assert drive.status()['engine_faults'] == drive.status()['recoveries'] == '1'
        drive.answer(1)
        assert not drive.other.masks_of(CLASS, bad)


def test_no_frame_is_published_after_a_fault_until_the_engine_was_opened_again(
        built, direct, tmp_path, monkeypatch):
    monkeypatch.setenv('MAY_FAIL', str(tmp_path / 'may_fail'))
    with driving(built, direct, tmp_path, module=FAULTY, engine_timeout_ms=100_000) as drive:
        bad = drive.send(picture_of(Fault.RAISE_LET, SIZE))
        drive.wait(lambda: 'about to fail' in drive.node.log, 'the bad frame')
        waiting = drive.send(picture(SIZE, 1))  # for the worker, which fails meanwhile
        assert drive.camera.wait_for_all_acked(Duration(seconds=PATIENCE))
        (tmp_path / 'may_fail').touch()
        drive.wait(lambda: drive.status().get('recoveries') == '1', 'the recovery')
        drive.answer(2)
        assert not drive.other.masks_of(CLASS, bad) and not drive.other.masks_of(CLASS, waiting)
        drive.other.wait_for_reports()
        assert drive.status()['engine_faults'] == drive.status()['recoveries'] == '1'
        assert drive.count('dropped_fault') == 1


def test_no_frame_is_published_after_a_self_test_that_failed(built, tmp_path):
    with peer() as other, NodeProcess(tmp_path / 'log', module=FAULTY, **built) as node:
        other.wait_for_state('active', node)
        publisher = other.publisher()
        other.subscribe(CLASS)
        other.wait_for_match(publisher, node, CLASS)
        other.exchange(publisher, picture_of(Fault.DRIFT, SIZE), CLASS, node)
        other.wait_for_reports()
        received = int(other.status('/image').get('received', 0))
        other.send(publisher, picture_of(Fault.SLOW, SIZE))
        other.wait(lambda: int(other.status('/image')['received']) > received, 'it', node)
        client = other.node.create_client(Trigger, '/segmentation/self_test')
        other.wait(client.service_is_ready, 'the service', node)
        waiting = other.send(publisher, picture(SIZE, 1))
        answer = client.call_async(Trigger.Request())  # before the frame that waits
        other.wait(answer.done, 'the answer', node)
        assert not answer.result().success
        before = len(other.masks_of(CLASS, waiting))
        other.wait_for_state('inactive', node)
        other.wait_for_reports()
        assert len(other.masks_of(CLASS, waiting)) == before
        assert not other.transition('activate', node)


def test_an_exit_in_the_self_test_does_not_end_the_node(built, direct, tmp_path):
    with driving(built, direct, tmp_path, module=FAULTY) as drive:
        stamp = drive.send(picture_of(Fault.EXIT_LATER, SIZE))
        drive.other.wait_for_mask(CLASS, stamp, drive.node)
        answer = drive.other.call(Trigger, '/segmentation/self_test', Trigger.Request(),
                                  drive.node)
        assert not answer.success and 'injected: exit' in answer.message
        drive.wait(lambda: drive.status().get('recoveries') == '1', 'the recovery')
        drive.answer(1)


def test_a_bundle_that_is_another_one_after_a_fault_is_configured_anew(built, direct, tmp_path):
    bundle = Path(shutil.copytree(built['bundle'], tmp_path / 'bundle'))
    with driving({**built, 'bundle': bundle}, direct, tmp_path, module=FAULTY) as drive:
        files.write_sums(bundle)
        model = bundle / 'model.yaml'
        model.write_text(model.read_text() + '# another one\n')
        files.write_sums(bundle)
        answer = drive.other.call(Trigger, '/segmentation/self_test', Trigger.Request(),
                                  drive.node)
        assert answer.success  # the engine is what it was, whatever lies on the disk
        drive.send(picture_of(Fault.RAISE, SIZE))
        drive.wait(lambda: 'configuring anew' in drive.node.log, 'that it sees it')
        drive.wait(lambda: drive.status()['state'] == 'active' and drive.status()['level'] == '0',
                   'the new one')
        drive.answer(1)


def test_an_engine_too_slow_for_any_mask_shows_in_its_times(built, direct, tmp_path):
    with driving(built, direct, tmp_path, module=FAULTY) as drive:
        drive.late_in_the_engine()
        drive.other.wait_for_reports()
        status = drive.other.status('/image')
        assert float(status['processing_time_ms']) >= 500
        assert status['is_processing_time_ms_in_expected_range'] == 'False'


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('busy', ['', 'frame', 'open', 'close'])
def test_a_signal_ends_it_whatever_it_is_busy_with(busy, number, built, tmp_path,
                                                         monkeypatch):
    monkeypatch.setenv('HANG_AT', busy)
    with peer() as other, NodeProcess(tmp_path / 'log', module=FAULTY, **built) as node:
        if busy == 'open':
            other.wait(lambda: 'hanging' in node.log, 'the hang', node)
        else:
            other.wait_for_state('active', node)
        if busy == 'frame':
            publisher = other.publisher()
            other.wait_for_match(publisher, node)
            other.send(publisher, picture_of(Fault.HANG, SIZE))
            other.wait(lambda: int(other.status('/image').get('received', 0)), 'it', node)
        node.signal(number)
        code = node.wait()  # what hangs would never end
        assert code == (1 if busy else 0), node.log
        # Who asks for the end is told of no error, but once of what was left behind.
        assert '[ERROR]' not in node.log and '[FATAL]' not in node.log
        assert node.log.count('the process ends without it') == bool(busy)


@pytest.mark.parametrize('busy', ['open', 'close'])
def test_a_hang_while_it_opens_or_closes_the_engine_ends_the_process(busy, built, tmp_path,
                                                                     monkeypatch):
    monkeypatch.setenv('HANG_AT', busy)
    with peer() as other, NodeProcess(
            tmp_path / 'log', module=FAULTY, autostart=busy == 'close', **built) as node:
        client = other.node.create_client(ChangeState, '/segmentation/change_state')
        other.wait(client.service_is_ready, 'the service', node)
        if busy == 'open':
            other.wait_for_state('unconfigured', node)
            assert other.set_parameter('open_timeout_ms', 5000, node)[0]
            transition = Transition.TRANSITION_CONFIGURE
        else:
            other.wait_for_state('active', node)
            other.transition('deactivate', node)
            assert other.set_parameter('engine_timeout_ms', 1000, node)[0]
            transition = Transition.TRANSITION_CLEANUP
        client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        if busy == 'open':
            other.wait(lambda: 'configuring for' in other.status().get('message', ''), 'it', node)
            assert other.status()['level'] == '1'
        other.wait(lambda: not node.running(), 'its end')
        assert node.wait() == 1 and 'to be started again' in node.log


def test_an_engine_that_cannot_be_opened_is_tried_again(built, direct, tmp_path):
    with driving(built, direct, tmp_path, module=FAULTY) as drive:
        drive.send(picture_of(Fault.RAISE_AND_NOT_OPEN, SIZE))
        drive.wait(lambda: 'injected: cannot be opened' in drive.node.log, 'a failed recovery')
        drive.wait(lambda: drive.status().get('recoveries') == '2', 'a second one')
        drive.wait(lambda: drive.status()['state'] == 'active', 'the recovery')
        drive.answer(1)


def test_an_engine_that_fails_in_its_self_test_is_opened_again(built, direct, tmp_path):
    with driving(built, direct, tmp_path, module=FAULTY) as drive:
        stamp = drive.send(picture_of(Fault.RAISE_LATER, SIZE))
        drive.other.wait_for_mask(CLASS, stamp, drive.node)
        assert drive.other.transition('deactivate', drive.node)
        assert not drive.other.transition('activate', drive.node)
        drive.wait(lambda: 'device is lost' in drive.status().get('last_fault', ''), 'the fault')
        drive.wait(lambda: drive.status()['state'] == 'active', 'the recovery')
        drive.answer(1)


def test_recoveries_are_limited(built, direct, tmp_path):
    with driving(built, direct, tmp_path, module=FAULTY, max_recoveries_per_minute=2) as drive:
        for turn in range(3):
            drive.answer(turn)
            drive.send(picture_of(Fault.RAISE, SIZE))
            wanted = str(turn + 1)
            drive.wait(partial(lambda n: drive.status()['engine_faults'] == n, wanted), 'it')
        drive.wait(lambda: drive.status()['state'] == 'inactive', 'no recovery')
        drive.other.wait_for_reports(3)
        status = drive.status()
        assert status['level'] == '2' and status['recoveries'] == '2'
        assert 'engine fault' in status['message']
        # Who takes the engine away is not given it back by a self-test.
        assert drive.other.transition('cleanup', drive.node)
        answer = drive.other.call(Trigger, '/segmentation/self_test', Trigger.Request(),
                                  drive.node)
        assert (answer.success, answer.message) == (False, 'there is no engine to test')
        assert drive.other.transition('configure', drive.node)
        assert drive.other.transition('activate', drive.node)
        drive.send(picture_of(Fault.RAISE, SIZE))
        drive.wait(lambda: drive.status()['state'] == 'inactive', 'no recovery')
        # More of them may be allowed at any time.
        drive.other.set_parameter('max_recoveries_per_minute', 60, drive.node)
        drive.wait(lambda: drive.status()['state'] == 'active', 'the recovery')
        drive.answer(5)


def test_a_camera_that_cannot_be_listened_to_lets_none_listen(built, tmp_path):
    """While the node is inactive, and it cannot become active, no masks go."""
    wrong = ('-p', 'qos_overrides./rear/image.subscription.reliability:=best-effort')
    with peer() as other, NodeProcess(
            tmp_path / 'log', arguments=wrong, cameras="['front', 'rear']",
            max_recoveries_per_minute=0, **built) as node:
        publisher = other.publisher('/front/image')
        status = other.wait_for_reason('cannot activate', node)
        assert status['state'] == 'inactive'
        other.wait(lambda: other.node.count_publishers('/segmentation/front/class_mask'),
                   'its topics', node)
        other.wait_for_reports()
        assert publisher.get_subscription_count() == 0


def test_topics_go_when_one_of_them_cannot_be(built, tmp_path):
    """It is tried again and again, and each time would leave some behind."""
    rules = ('-r', 'rear/image:=/a/image', '-r', '/a/image/compressed:=/b')
    with peer() as other, NodeProcess(
            tmp_path / 'log', arguments=rules, cameras="['front', 'rear']",
            transport='compressed', **built) as node:
        status = other.wait_for_reason('and that is remapped to /b', node)
        assert status['state'] == 'unconfigured'
        other.wait(lambda: not other.node.count_publishers('/segmentation/front/class_mask'),
                   'no topic', node)


def test_an_error_while_it_deactivates_itself_does_not_strand_it(built, direct, tmp_path,
                                                                  monkeypatch):
    monkeypatch.setenv('FAIL_IN', 'deactivate:1')
    with driving(built, direct, tmp_path, module=FAULTY) as drive:
        drive.send(picture_of(Fault.RAISE, SIZE))
        drive.wait(lambda: 'injected: deactivate' in drive.node.log, 'the second error')
        drive.wait(lambda: drive.status()['state'] == 'active' and drive.status()['level'] == '0',
                   'the recovery')
        drive.answer(1)


def test_a_clean_up_that_fails_ends_the_process_to_be_started_again(built, direct, tmp_path,
                                                                     monkeypatch):
    monkeypatch.setenv('FAIL_IN', 'deactivate:1,cleanup:9')
    with peer() as other, NodeProcess(tmp_path / 'log', module=FAULTY, **built) as node:
        drive = Drive(node, other, direct)
        drive.send(picture_of(Fault.RAISE, SIZE))
        assert node.wait() == 1
        assert 'to be started again' in node.log and 'Traceback' not in node.log


def test_an_error_of_a_callback_that_is_not_ours_stops_nothing(built, direct, tmp_path):
    """A parameter of a type that there is not, and a time before all times, raise in rclpy."""
    with driving(built, direct, tmp_path, use_sim_time=True) as drive:
        clock = drive.other.publisher('/clock', Clock)
        drive.wait(clock.get_subscription_count, 'a subscriber of the clock')
        client = drive.other.node.create_client(SetParameters, '/segmentation/set_parameters')
        drive.wait(client.service_is_ready, 'the service')
        odd = SetParameters.Request(parameters=[ParameterMsg(name='x', value=ParameterValue(
            type=10))])
        before = Clock()
        before.clock.sec = -5
        began = monotonic()
        for turn in range(6):  # more than there may be recoveries in a minute
            client.call_async(odd)
            clock.publish(before)
            drive.wait(partial(lambda n: drive.count('callback_errors', 'node') > n, turn), 'it')
        drive.answer(1)
        assert drive.status()['engine_faults'] == '0' and drive.status()['level'] == '0'
        # At a limited rate, of one in five seconds.
        assert drive.node.log.count('a callback failed') <= 1 + (monotonic() - began) / 5


def test_a_bundle_that_appears_after_the_start_is_taken(built, direct, tmp_path):
    options = {**built, 'bundle': tmp_path / 'late'}
    with peer() as other, NodeProcess(tmp_path / 'log', **options) as node:
        status = other.wait_for_reason('', node)
        assert str(tmp_path / 'late') in status['reason'] and status['level'] == '2'
        other.wait(lambda: other.status()['supervision'] == 'retrying', 'a pause', node)
        shutil.copytree(built['bundle'], tmp_path / 'copy')
        (tmp_path / 'copy').rename(tmp_path / 'late')
        Drive(node, other, direct)
        # The reason is logged once, however often it is tried.
        assert node.log.replace(str(tmp_path), '').count('late') < 5
        assert node.log.count('trying again by itself') == 1


@pytest.fixture
def customized(tmp_path, monkeypatch):
    """Return the file that every Python of a node runs before anything else."""
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(
        filter(None, (str(tmp_path), os.environ.get('PYTHONPATH')))))
    return tmp_path / 'sitecustomize.py'


@pytest.mark.parametrize('name', ['model.yaml', 'plan'])
def test_a_disk_that_gives_errors_is_tried_again(name, customized, built, direct, tmp_path):
    broken = tmp_path / 'broken'
    broken.touch()
    customized.write_text(
        'import builtins, errno, io, os\n'
        'def failing(well):\n'
        '    def call(path, *arguments, **options):\n'
        f'        if str(path).endswith({name!r}) and os.path.exists({str(broken)!r}):\n'
        '            raise OSError(errno.EIO, os.strerror(errno.EIO), path)\n'
        '        return well(path, *arguments, **options)\n'
        '    return call\n'
        'builtins.open = io.open = failing(builtins.open)\n'
        'os.open = failing(os.open)\n')
    with peer() as other, NodeProcess(tmp_path / 'log', build_missing=False, **built) as node:
        status = other.wait_for_reason('Input/output error', node)
        assert name in status['reason'] and status['level'] == '2'
        other.wait(lambda: other.status()['supervision'] == 'retrying', 'a pause', node)
        broken.unlink()
        Drive(node, other, direct)


def test_a_bundle_that_is_being_sealed_is_waited_for(built, direct, tmp_path):
    bundle = shutil.copytree(built['bundle'], tmp_path / 'bundle')
    with (bundle / 'model.yaml').open('a') as file:  # edited, and not vouched for yet
        file.write('# by hand\n')
    with peer() as other, NodeProcess(tmp_path / 'log', **{**built, 'bundle': bundle}) as node:
        status = other.wait_for_reason('run: trt-segmentation seal', node)
        assert 'model.yaml' in status['reason'] and status['level'] == '2'
        with sets.locked(bundle, 'bundle'):  # as seal does as long as it reads
            other.wait(lambda: other.status()['supervision'] == 'retrying', 'a pause', node)
            assert main(['seal', str(bundle)]) == 2  # one at a time
        assert main(['seal', str(bundle)]) == 0
        Drive(node, other, direct)


def test_a_bundle_whose_files_are_being_exchanged_is_waited_for(built, direct, tmp_path):
    bundle = shutil.copytree(built['bundle'], tmp_path / 'bundle')
    directory = os.open(bundle, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)
    (impatient := tmp_path / 'node.py').write_text("""
import sys
from trt_segmentation.ros import node
from trt_segmentation.system import sets
sets._PATIENCE_SECONDS = 1.0
sys.exit(node.main())
""")
    with peer() as other, NodeProcess(tmp_path / 'log', module=impatient,
                                      **{**built, 'bundle': bundle}) as node:
        status = other.wait_for_reason('another process has been exchanging its files', node)
        assert status['level'] == '2'
        os.close(directory)
        Drive(node, other, direct)


def test_without_descriptors_it_speaks_and_goes_on_when_there_are_some(built, direct, tmp_path):
    options = {**built, 'bundle': tmp_path / 'late'}
    with peer() as other, NodeProcess(tmp_path / 'log', **options) as node:
        other.wait_for_reason('', node)
        used = len(list(Path(f'/proc/{node.pid}/fd').iterdir()))
        limit = resource.prlimit(node.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, (used, limit[1]))
        shutil.copytree(built['bundle'], tmp_path / 'late')
        other.wait_for_reason('Too many open files', node)
        other.wait_for_reports()
        resource.prlimit(node.pid, resource.RLIMIT_NOFILE, limit)
        Drive(node, other, direct)


def test_a_log_directory_that_cannot_be_written_is_no_reason_not_to_run(built, direct, tmp_path,
                                                                        monkeypatch):
    (tmp_path / 'file').touch()
    with peer() as other:
        monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'file/logs'))
        with NodeProcess(tmp_path / 'log', **built) as node:
            Drive(node, other, direct)
            assert 'cannot be written, so there is no log file' in node.log


def test_a_worker_that_dies_is_replaced(built, direct, tmp_path):
    with peer() as other, NodeProcess(tmp_path / 'log', module=FAULTY, **built) as node:
        drive = Drive(node, other, direct)
        drive.send(picture_of(Fault.KILL_WORKER, SIZE))
        drive.wait(lambda: 'worker thread ended' in drive.status().get('last_fault', ''), 'it')
        drive.wait(lambda: drive.status()['state'] == 'active', 'the recovery')
        drive.answer(1)


def test_a_slow_engine_drops_frames_and_stays_on_time(built, direct, tmp_path):
    with driving(built, direct, tmp_path, module=FAULTY, max_allowed_processing_time_ms=300,
                 max_acceptable_consecutive_delay_ms=600_000, error_input_gap_ms=600_000,
                 error_dropped_share=1.0) as drive:
        slow: list[int] = []

        def overtaken():
            slow.append(drive.send(picture_of(Fault.SLOW, SIZE)))
            drive.other.spin(0.2)
            for seed in range(10):  # while it is busy, at most one waits
                drive.send(picture(SIZE, seed))
                drive.other.spin(0.01)
            return (drive.count('dropped_replaced')
                    and any(drive.other.masks_of(CLASS, stamp) for stamp in slow))

        drive.wait(overtaken, 'overtaken frames, and the mask of a slow one')

        def told():
            drive.send(picture_of(Fault.SLOW, SIZE))
            status = drive.other.status('/image')
            return (status['is_processing_time_ms_in_expected_range'] == 'False'
                    and status['level'] == '1' and 'more than 300 ms' in status['message'])

        drive.wait(told, 'it')
        assert drive.status()['engine_faults'] == '0'


def test_a_frame_that_got_late_in_the_engine_is_not_published(built, direct, tmp_path):
    with driving(built, direct, tmp_path, module=FAULTY) as drive:
        slow = drive.late_in_the_engine()
        drive.answer(1)
        assert not [stamp for stamp in slow if drive.other.masks_of(CLASS, stamp)]


@needs_shared_memory
def test_an_engine_that_hangs_ends_the_process_to_be_started_again(built, direct, tmp_path):
    with peer() as other, NodeProcess(tmp_path / 'log', module=FAULTY, **built) as node:
        drive = Drive(node, other, direct)
        locks = segment_locks(node.pid)
        assert locks, 'DDS has no shared memory here'
        assert other.set_parameter('engine_timeout_ms', 1000, node)[0]
        drive.send(picture_of(Fault.HANG, SIZE))
        assert node.wait() == 1
        assert 'the engine has not returned for 1 s' in node.log
        assert not any(lock.exists() for lock in locks), 'its shared memory is left for ever'
        # What respawn does.
        with NodeProcess(tmp_path / 'second.log', **built) as again:
            drive.node = again
            drive.answer(1)


def test_an_engine_that_hangs_in_its_self_test_ends_the_process(built, direct, tmp_path):
    with peer() as other, NodeProcess(tmp_path / 'log', module=FAULTY, **built) as node:
        drive = Drive(node, other, direct)
        client = other.node.create_client(Trigger, '/segmentation/self_test')
        other.wait(client.service_is_ready, 'the service', node)
        before = drive.send(picture_of(Fault.HANG_LATER, SIZE))
        other.wait_for_mask(CLASS, before, node)
        assert other.set_parameter('engine_timeout_ms', 1000, node)[0]
        client.call_async(Trigger.Request())
        assert node.wait() == 1
        assert 'the engine has not returned for 2 s' in node.log


@needs_shared_memory
def test_a_callback_that_hangs_ends_the_process_to_be_started_again(built, tmp_path, monkeypatch):
    monkeypatch.setenv('HANG_AT', 'callback')
    with NodeProcess(tmp_path / 'log', module=FAULTY, autostart=False, **built) as node:
        while 'hanging' not in node.log:
            assert node.running(), node.log
            sleep(0.05)
        locks = segment_locks(node.pid)
        assert locks, 'DDS has no shared memory here'
        assert node.wait() == 1
        assert 'the executor has not come back' in node.log
        assert not [lock for lock in locks if lock.exists()]


@needs_shared_memory
@pytest.mark.parametrize('hangs', [False, True])
def test_its_end_gives_the_shared_memory_back(hangs, built, direct, tmp_path):
    with peer() as other, NodeProcess(tmp_path / 'log', module=FAULTY, **built) as node:
        drive = Drive(node, other, direct)
        locks = segment_locks(node.pid)
        assert locks
        if hangs:
            drive.send(picture_of(Fault.HANG, SIZE))
            drive.other.wait_for_reports()
        node.signal(signal.SIGTERM)
        assert node.wait() == hangs
        segments = [path.with_name(path.name.removesuffix('_el')) for path in locks]
        assert not [path for path in (*locks, *segments) if path.exists()]


def test_an_engine_that_drifts_fails_its_self_test_and_publishes_no_more(built, direct, tmp_path):
    with peer() as other, NodeProcess(tmp_path / 'log', module=FAULTY, **built) as node:
        drive = Drive(node, other, direct)
        stamp = drive.send(picture_of(Fault.DRIFT, SIZE))
        other.wait_for_mask(CLASS, stamp, node)  # nobody can know yet
        response = other.call(Trigger, '/segmentation/self_test', Trigger.Request(), node)
        assert not response.success and 'golden frame 000' in response.message
        assert other.state(node) == 'inactive'
        status = other.wait(lambda: other.status()['state'] == 'inactive' and other.status(), '')
        assert status['level'] == '2' and 'self-test' in status['message']
        before = len(other.messages[CLASS])
        for seed in range(3):
            other.send(drive.camera, picture(SIZE, seed))
        other.wait_for_reports()
        assert len(other.messages[CLASS]) == before
        # It stays so until somebody decides; activation runs the test again.
        assert not other.transition('activate', node)
        assert other.transition('cleanup', node) and other.transition('configure', node)
        assert other.transition('activate', node)


# Bundle, store, build


def test_a_bundle_swapped_on_disk_changes_nothing_until_it_is_configured(built, direct, tmp_path):
    bundle, store = tmp_path / 'bundle', tmp_path / 'store'
    shutil.copytree(built['bundle'], bundle)
    shutil.copytree(built['store'], store)
    with driving({**built, 'bundle': bundle, 'store': store}, direct, tmp_path) as drive:
        before = drive.status()['bundle_sha256']
        shutil.rmtree(bundle)
        make_bundle(bundle, size=(32, 64))
        drive.answer(1)
        drive.other.wait_for_reports()
        assert drive.status()['bundle_sha256'] == before
        for transition in ('deactivate', 'cleanup'):
            assert drive.other.transition(transition, drive.node)
        drive.other.wait_for_reports()
        drive.check()  # what the old network has answered
        # The other network's engine is not in the store: it is built, and then runs.
        drive.other.transition('configure', drive.node)
        drive.wait(lambda: drive.status()['state'] == 'inactive'
                   and drive.status()['bundle_sha256'] != before, 'the new bundle')
        assert drive.status()['bundle_sha256'] == Bundle.open(bundle).sha256
        with direct_segmenter(bundle) as other_network:
            drive.direct = other_network
            assert drive.other.transition('activate', drive.node)
            drive.answer(2)


@pytest.mark.parametrize('damage', ['model', 'sums', 'yaml', 'plan'])
def test_a_damaged_bundle_or_plan_is_refused(damage, built, tmp_path):
    bundle, store = tmp_path / 'bundle', tmp_path / 'store'
    shutil.copytree(built['bundle'], bundle)
    shutil.copytree(built['store'], store)
    files.write_sums(bundle)
    file = {'model': bundle / 'tiny.onnx', 'sums': bundle / 'SHA256SUMS',
            'yaml': bundle / 'model.yaml', 'plan': next(store.glob('*/plan'))}[damage]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with peer() as other, NodeProcess(tmp_path / 'log', **{
            **built, 'bundle': bundle, 'store': store, 'build_missing': False}) as node:
        status = other.wait_for_reason('', node)
        assert status['state'] == 'unconfigured' and status['level'] == '2'
        assert str(bundle if damage != 'plan' else store) in status['reason']
        assert node.stop() == 0


def test_a_damaged_plan_is_built_anew_where_that_is_allowed(built, direct, tmp_path):
    store = Path(shutil.copytree(built['store'], tmp_path / 'store'))
    plan = next(store.glob('*/plan'))
    good = plan.read_bytes()
    plan.write_bytes(good[:-1])
    with driving({**built, 'store': store}, direct, tmp_path) as drive:
        assert 'its bytes are not those of its record' in drive.node.log
        assert plan.read_bytes() == good


def test_a_full_disk_at_build_is_said_and_leaves_nothing(tmp_path):
    bundle = make_bundle(tmp_path / 'bundle', size=SIZE, work=4)  # 600 KB
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file can grow beyond this: writes fail as they do on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        node = NodeProcess(tmp_path / 'log', bundle=bundle, store=tmp_path / 'store',
                           backend=BACKEND, precision='fp32')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with node, peer() as other:
        # It may be full for a while only, so it is tried again; but not without end.
        status = other.wait_for_reason('3 builds failed', node)
        assert 'could not be built' in status['message'] and status['level'] == '2'
        assert not [path for path in (tmp_path / 'store').rglob('*') if path.name != '.lock']


@pytest.fixture
def slow_build(customized, tmp_path):
    """Make every build wait as long as a file exists; return the file."""
    hold = tmp_path / 'hold'
    hold.touch()
    customized.write_text(
        'import pathlib, sys, time\n'
        f'while "build" in sys.argv and pathlib.Path({str(hold)!r}).exists():\n'
        '    time.sleep(0.05)\n')
    return hold


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = stat.read_text().rpartition(')')[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != 'Z':
            found.append(int(stat.parent.name))
    return found


def test_a_build_that_is_killed_is_begun_again(slow_build, direct, built, tmp_path):
    options = {**built, 'store': tmp_path / 'store'}
    with peer() as other, NodeProcess(tmp_path / 'log', **options) as node:
        status = other.wait_for_state('building', node)
        assert status['level'] == '1' and float(status['building_s']) >= 0
        builder = other.wait(lambda: children(node.pid), 'a child', node)
        os.kill(builder[0], signal.SIGKILL)
        other.wait(lambda: 'ended by signal 9' in other.status().get('last_fault', ''), '', node)
        other.wait_for_state('building', node)
        slow_build.unlink()
        other.wait_for_state('active', node)
        Drive(node, other, direct)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_a_build_ends_with_the_node(number, slow_build, built, tmp_path):
    options = {**built, 'store': tmp_path / 'store'}
    with peer() as other, NodeProcess(tmp_path / 'log', **options) as node:
        other.wait_for_state('building', node)
        builder = other.wait(lambda: children(node.pid), 'a child', node)[0]
        node.signal(number)
        assert node.wait() in (0, -signal.SIGKILL)
        other.wait(lambda: not runs(builder), 'the end of the builder')


def test_whoever_asks_again_while_it_builds_gets_no_second_builder(slow_build, built, tmp_path):
    options = {**built, 'store': tmp_path / 'store'}
    with peer() as other, NodeProcess(tmp_path / 'log', **options) as node:
        other.wait_for_state('building', node)
        builder = other.wait(lambda: children(node.pid), 'a child', node)
        assert not other.transition('configure', node)
        assert children(node.pid) == builder and other.status()['state'] == 'building'
        # Something else than is being built may be asked for.
        assert other.set_parameter('store', str(tmp_path / 'another'), node)[0]
        assert not other.transition('configure', node)
        other.wait(lambda: not runs(builder[0]), 'the end of the first')
        other.wait(lambda: children(node.pid), 'another one', node)


def runs(pid: int) -> bool:
    """Tell whether a process is there and has not ended."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


@pytest.fixture
def updated(customized):
    """Let every child of a node have another version of the package, whose graphs are others."""
    customized.write_text(
        'import sys\n'
        'if "build" in sys.argv or sys.argv == ["-c"]:\n'
        '    import trt_segmentation\n'
        '    trt_segmentation.__version__ = "9.8.7"\n'
        'if "build" in sys.argv:\n'
        '    from trt_segmentation.networks import quantize\n'
        '    quantize.GRAPH_REVISION += 1\n')


def test_a_package_that_was_updated_under_the_node_is_said_and_builds_once(updated, built,
                                                                           tmp_path):
    options = {**built, 'store': tmp_path / 'store'}
    with peer() as other, NodeProcess(tmp_path / 'log', **options) as node:
        status = other.wait_for_reason('the package on disk is trt_segmentation 9.8.7, and '
                                       f'{trt_segmentation.__version__} runs here', node)
        assert status['supervision'] == 'given_up' and status['level'] == '2'
        other.wait_for_reports()
        assert node.log.count('building the engine in a child process') == 1
        assert node.log.count('9.8.7') == 1 and len(list((tmp_path / 'store').glob('*/plan'))) == 1
        # Whoever asks may have mended it.
        assert not other.transition('configure', node)
        assert node.log.count('building the engine in a child process') == 2


def test_a_store_in_which_another_process_builds_is_waited_for(built, direct, tmp_path):
    options = {**built, 'store': tmp_path / 'store'}
    store = Store(tmp_path / 'store')
    with peer() as other, NodeProcess(tmp_path / 'log', **options) as node:
        with store.lock(print):
            other.wait(lambda: 'waiting for another process' in other.status().get('message', ''),
                       'it says so', node)
            assert other.status()['state'] == 'building'
        other.wait_for_state('active', node)
        Drive(node, other, direct)


# Subscribers, and time


def test_storms_of_subscribers(built, direct, tmp_path):
    with driving(built, direct, tmp_path) as drive:
        topics = [CLASS, '/segmentation/color_mask', '/segmentation/overlay',
                  '/segmentation/confidence']
        for turn in range(10):
            storm = [drive.other.node.create_subscription(Image, topic, lambda message: None, 1)
                     for topic in topics * 5]
            drive.answer(turn)
            for subscription in storm:
                drive.other.node.destroy_subscription(subscription)
        drive.wait(lambda: drive.count('subscribers_overlay') == 0, 'the end of the storm')


def test_transitions_asked_for_in_haste(built, direct, tmp_path):
    with driving(built, direct, tmp_path, autostart=True) as drive:
        for _ in range(5):
            for transition in ('deactivate', 'cleanup', 'configure', 'activate'):
                drive.send(picture(SIZE, 1))
                assert drive.other.transition(transition, drive.node)
        drive.wait(lambda: drive.status()['state'] == 'active', 'active')
        drive.answer(3)


def test_memory_and_descriptors_stay_flat(built, direct, tmp_path):
    """The short form of benchmarks/soak.py."""
    with driving(built, direct, tmp_path) as drive:
        def usage():
            drive.other.wait_for_reports()
            status = drive.status()
            return (float(status['process_memory_mb']), int(status['process_file_descriptors']),
                    int(status['process_threads']))

        def frames(count):
            for seed in range(count):
                drive.send(picture((512, 1024), seed % 3))
                drive.wait(lambda: drive.other.masks_of(CLASS, max(drive.sent)), 'its mask')
                drive.sent = {max(drive.sent): drive.sent[max(drive.sent)]}
                drive.other.messages[CLASS].clear()
                drive._checked = 0

        frames(100)
        memory, descriptors, threads = usage()
        frames(400)
        after = usage()
        # 400 images of 1.5 MB went through: a leak of any of them, or of any mask, shows.
        assert after[0] < memory + 60
        assert after[1:] == (descriptors, threads)
