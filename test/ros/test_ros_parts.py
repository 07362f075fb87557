# SPDX-License-Identifier: Apache-2.0
"""The node's parts, each by itself."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import CancelledError
import threading
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='the parts belong to the ROS node')
from builtin_interfaces.msg import Time
from rclpy.clock import Clock
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest
from std_msgs.msg import Header

from trt_segmentation.bundles.labels import CITYSCAPES
from trt_segmentation.errors import InputError
from trt_segmentation.ros import camera_info, outputs, process
from trt_segmentation.ros import input as input_module
from trt_segmentation.ros import statistics as statistics_module
from trt_segmentation.ros import worker as worker_module
from trt_segmentation.ros.camera import Camera
from trt_segmentation.ros.health import InputHealth, OutputHealth
from trt_segmentation.ros.intake import Sequence, Turns
from trt_segmentation.ros.node_time import age
from trt_segmentation.ros.outputs import to_compute
from trt_segmentation.ros.statistics import Statistics
from trt_segmentation.ros.transitions import Transitions
from trt_segmentation.ros.worker import Ending, EngineStuck, EngineThread, Worker

SECOND = 10**9
RELIABLE, BEST_EFFORT = QoSReliabilityPolicy.RELIABLE, QoSReliabilityPolicy.BEST_EFFORT


# Whose turn it is


@settings(deadline=None)
@given(st.lists(st.sets(st.integers(0, 4)), max_size=100))
def test_no_camera_is_served_twice_while_another_one_waits(arrivals):
    """Let images come, serve one, and so on; look at who was served while a camera waited."""
    turns, waiting, served = Turns(), {}, []
    for came in arrivals:
        for camera in came:
            waiting.setdefault(camera, len(served))
        if waiting:
            camera = turns.next(waiting)
            counts = Counter(served[waiting.pop(camera):])
            assert not counts or max(counts.values()) == 1
            served.append(camera)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), max_size=100))
def test_messages_that_were_never_taken_are_counted_by_publisher(steps):
    """Publish some messages and take the last, as a reader of depth 1 does; and so on."""
    sequence, published, heard, expected = Sequence(), Counter(), set(), 0
    for publisher, count in steps:
        published[publisher] += count
        # What it sent before anybody listened is not missed.
        expected = count - 1 if publisher in heard else 0
        heard.add(publisher)
        assert sequence.missed({'publication_sequence_number': published[publisher],
                                'publisher_gid': {'data': bytes([publisher])}}) == expected
        assert sequence.known


def test_a_middleware_without_numbers_is_no_middleware_without_losses():
    sequence = Sequence()
    assert sequence.known is None
    assert sequence.missed({'received_timestamp': 1}) == 0 and sequence.known is False


def test_a_publisher_that_begins_anew_has_lost_nothing():
    sequence = Sequence()
    infos = [{'publication_sequence_number': number} for number in (5, 6, 1, 2, 4)]
    # Without the publisher's name a smaller number is another publisher, or a repetition.
    assert [sequence.missed(info) for info in infos] == [0, 0, 0, 0, 0]


# The worker


class Recorder:
    """What a worker did, and a way to wait for it."""

    def __init__(self):
        self.frames, self.errors = [], []
        self.changed = threading.Condition()

    def process(self, frame):
        if isinstance(frame, BaseException):
            raise frame
        self.add(self.frames, frame)

    def failed(self, error):
        self.add(self.errors, error)

    def add(self, where, what):
        with self.changed:
            where.append(what)
            self.changed.notify_all()

    def wait(self, condition):
        with self.changed:
            assert self.changed.wait_for(condition, 10)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def worker(recorder):
    result = Worker(recorder.process, recorder.failed)
    yield result
    assert result.stop(10)


def test_the_worker_runs_tasks_in_its_thread_and_hands_errors_back(worker):
    assert worker.call(threading.current_thread).result(10).name == 'engine'
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0).result(10)


@pytest.mark.parametrize('error', [ValueError('x'), SystemExit(), KeyboardInterrupt(),
                                   CancelledError()])
def test_the_worker_outlives_what_a_frame_raises(error, worker, recorder):
    worker.offer(error)
    recorder.wait(lambda: recorder.errors == [error])
    worker.offer('next')
    recorder.wait(lambda: recorder.frames == ['next'])


def test_a_busy_worker_keeps_the_newest_frame_and_puts_tasks_first(worker, recorder):
    gate = threading.Event()
    started = worker.call(lambda: None)
    started.result(10)
    busy = worker.call(gate.wait)
    assert worker.offer(1) is None
    assert worker.offer(2) == 1
    task = worker.call(lambda: list(recorder.frames))
    gate.set()
    busy.result(10)
    assert task.result(10) == []
    recorder.wait(lambda: recorder.frames == [2])


def test_frames_that_wait_can_be_forgotten(worker, recorder):
    gate = threading.Event()
    worker.call(gate.wait)
    worker.offer(1)
    assert worker.clear() == 1 and worker.clear() is None
    gate.set()
    worker.call(lambda: None).result(10)
    assert recorder.frames == []


def test_stopping_does_the_tasks_that_wait_but_no_frames(recorder):
    worker = Worker(recorder.process, recorder.failed)
    gate = threading.Event()
    worker.call(gate.wait)
    worker.offer(1)
    task = worker.call(lambda: 'freed')
    assert not worker.stop(0.01)
    gate.set()
    assert worker.stop(10) and task.result(0) == 'freed'
    assert recorder.frames == [] and not worker.alive


@pytest.fixture
def engine(recorder):
    stopping = threading.Event()
    result = EngineThread(recorder.process, recorder.failed, lambda: None, stopping)
    yield result
    stopping.set()
    result.stop()


def test_an_engine_that_does_not_return_is_not_asked_again(engine):
    gate = threading.Event()
    with pytest.raises(EngineStuck, match='has not returned for 0.1 s'):
        engine.run(gate.wait, 0.1)
    with pytest.raises(EngineStuck):
        engine.run(lambda: None, 60)  # at once, not after a minute
    gate.set()


@pytest.fixture
def looks(monkeypatch):
    """Let an iterator say what time it is when the engine's watch is looked at."""
    times = []
    monkeypatch.setattr(worker_module, 'monotonic', lambda: next(times[-1]))
    return times


def returning_at(times, gate):
    """Yield times; let the engine return with the last."""
    *before, last = times
    yield from before
    gate.set()
    while True:
        yield last


def test_at_the_end_only_waiting_for_the_engine_counts(recorder, looks):
    """What else is freed between two frames' ends takes a minute; the engine is not blamed."""
    stopping = threading.Event()
    engine = EngineThread(recorder.process, recorder.failed, lambda: None, stopping)
    stopping.set()
    for minute in (0, 60):
        gate = threading.Event()
        looks.append(returning_at((minute, minute + 0.05, minute + 0.1), gate))
        assert engine.run(gate.wait, 60)
    assert engine.stop()


def test_an_engine_that_does_not_return_at_the_end_gets_one_second(recorder, looks):
    stopping, gate = threading.Event(), threading.Event()
    engine = EngineThread(recorder.process, recorder.failed, lambda: None, stopping)
    stopping.set()
    looks.append(iter((0, 0.4, 0.8, 1.2)))
    with pytest.raises(Ending):
        engine.run(gate.wait, 60)
    assert not engine.stop()
    gate.set()


def test_the_time_in_which_the_process_stood_still_is_not_the_engines(engine, looks):
    gate = threading.Event()
    looks.append(returning_at((0, 0.1, 3600, 3600.1), gate))
    assert engine.run(gate.wait, 1.0)


def test_a_frame_is_stuck_when_the_process_has_run_for_so_long(looks):
    """An hour of standing still is half a second; the next frame begins anew."""
    looks.append(iter((0, 0, 3600, 3600.4, 3600.8, 3601, 3601.2)))
    pipeline = SimpleNamespace(in_work_since_ns=1, in_work=2)
    work = SimpleNamespace(pipeline=pipeline, _in_work_since=None,
                           _engine_seconds=lambda frames: 0.5 * frames)
    assert [Transitions.stuck(work) for _ in range(4)] == [
        '', '', '', 'the engine has not returned for 1 s']
    pipeline.in_work_since_ns = 2
    assert Transitions.stuck(work) == ''


def test_a_fallback_that_is_not_listed_any_more_is_the_last_that_is():
    """The list may be set while the node is unconfigured, on the way to one of them."""
    work = SimpleNamespace(build=None, _free=lambda: None, _settings=SimpleNamespace(
        backend='tensorrt', precision='int8', dla_core=-1, gpu_fallback=False, max_batch=1,
        fallback=['cpu'], bundle=''))
    with pytest.raises(InputError, match='parameter bundle: empty'):
        Transitions.configure(work, 2, 'it was not good enough')


def test_the_engines_own_timeout_is_its_error(engine):
    with pytest.raises(TimeoutError, match='of the engine itself'):
        engine.run(lambda: (_ for _ in ()).throw(TimeoutError('of the engine itself')), 60)


def test_who_is_idle_says_so_before_it_sleeps(recorder):
    idle = threading.Semaphore(0)
    worker = Worker(recorder.process, recorder.failed, idle.release)
    assert idle.acquire(timeout=10) and worker.free
    worker.offer('frame')
    assert idle.acquire(timeout=10) and worker.free and recorder.frames == ['frame']
    assert worker.stop(10)


def test_what_waits_when_a_frame_is_done_is_taken_by_the_worker_itself(recorder):
    """Frame after frame without being idle; then it is, and what is offered wakes it."""
    waiting, idle = ['second', 'third'], threading.Semaphore(0)
    worker = Worker(recorder.process, recorder.failed, idle.release,
                    lambda: waiting.pop(0) if waiting and recorder.frames else None)
    assert idle.acquire(timeout=10)
    worker.offer('first')
    assert idle.acquire(timeout=10)
    assert recorder.frames == ['first', 'second', 'third'] and not idle.acquire(blocking=False)
    worker.offer('fourth')
    recorder.wait(lambda: recorder.frames[3:] == ['fourth'])
    assert worker.stop(10)


def test_a_frame_that_is_offered_while_it_takes_one_goes_first(recorder):
    """It was taken from the middleware before; a task comes before both."""
    taken = iter(['newer'])

    def take():
        if recorder.frames == ['begin'] and (frame := next(taken, None)):
            worker.offer('older')
            return frame
        return None

    worker = Worker(recorder.process, recorder.failed, take=take)
    worker.offer('begin')
    recorder.wait(lambda: len(recorder.frames) == 3)
    assert recorder.frames == ['begin', 'older', 'newer']
    assert worker.stop(10)


# Time


@pytest.mark.parametrize(('stamp', 'expected'), [
    (100 * SECOND, (7, False)),
    (99 * SECOND, (SECOND, False)),
    (90 * SECOND, (10 * SECOND, False)),
    (90 * SECOND - 1, (7, True)),
    (100 * SECOND + SECOND // 2, (7, False)),
    (100 * SECOND + SECOND // 2 + 1, (7, True)),
    (0, (7, True)),
    (-5, (7, True)),
])
def test_the_age_of_a_frame(stamp, expected):
    assert age(stamp, 100 * SECOND, 7) == expected


def test_a_frame_from_the_near_future_ages_while_it_waits():
    assert age(100 * SECOND + 400_000_000, 100 * SECOND, 390_000_000) == (390_000_000, False)


def test_statistics_count_and_measure():
    statistics = Statistics()
    assert statistics.counts() == {} and statistics.percentiles() == {}
    assert statistics.rate('received') == 0 and statistics.seconds_since('received') is None
    for value in range(1, 1001):
        statistics.count('received')
        statistics.add_times({'inference': float(value)})
    assert statistics.counts() == {'received': 1000}
    assert statistics.rate('received') > 0
    assert 0 <= statistics.seconds_since('received') < 10
    assert statistics.last_times() == {'inference': 1000.0}
    # The last 300 values are 701 to 1000.
    p50, p95, p99 = statistics.percentiles()['inference']
    assert (p50, p95, p99) == pytest.approx((850.5, 985.05, 997.01))


def test_what_happens_together_is_counted_together_and_what_does_not_is_not_named():
    statistics = Statistics()
    statistics.count_all({'received': 1, 'dropped_replaced': 0})
    assert statistics.counts() == {'received': 1}
    statistics.count_all({'received': 4, 'dropped_replaced': 3})
    assert statistics.counts() == {'received': 5, 'dropped_replaced': 3}


def test_rates_above_what_is_kept(monkeypatch):
    now = 0.0
    monkeypatch.setattr(statistics_module, 'monotonic', lambda: now)
    statistics = Statistics()
    for _ in range(2000):
        now += 1 / 500
        statistics.count('received')
    assert statistics.rate('received') == pytest.approx(500, rel=0.01)
    now += 10
    assert statistics.rate('received') == 0


# Health


def test_a_frozen_image_is_counted():
    health, chance = InputHealth(), np.random.default_rng(0)
    first, second = chance.integers(0, 256, (2, 480, 640, 3), np.uint8)
    for image, repeated in ((first, 0), (first, 1), (first.copy(), 2), (second, 0), (second, 1)):
        health.see(image, 'bgr')
        assert health.repeated == repeated


@pytest.mark.parametrize(('value', 'exposure'), [(0, 'black'), (5, 'black'), (128, ''),
                                                 (255, 'blown_out'), (250, 'blown_out')])
@pytest.mark.parametrize('size', [(1, 1), (480, 640), (37, 2000)])
def test_exposure(value, exposure, size):
    health = InputHealth()
    health.see(np.full((*size, 3), value, np.uint8), 'bgr')
    assert health.exposure == exposure
    health.see(np.full((*size, 3), 100, np.uint8), 'bgr')
    assert health.exposure == ''


@pytest.mark.parametrize(('values', 'exposure'), [
    ((16, 128), 'black'), ((235, 128), 'blown_out'), ((120, 128), ''), ((16, 255), '')])
@pytest.mark.parametrize('layout', ['uyvy', 'yuyv', 'nv12', 'nv21'])
def test_exposure_of_luma_and_chroma(layout, values, exposure):
    """Limited range: black is 16 and white 235, where there is no color."""
    luma, chroma = (np.full((480, 640), value, np.uint8) for value in values)
    image = (np.vstack([luma, chroma[:240]]) if layout.startswith('nv')
             else np.stack([chroma, luma] if layout == 'uyvy' else [luma, chroma], -1))
    health = InputHealth()
    for repeated in range(3):
        health.see(image, layout)
        assert (health.exposure, health.repeated) == (exposure, repeated)


@pytest.mark.parametrize(('value', 'exposure'), [(5, 'black'), (128, ''), (250, 'blown_out')])
def test_exposure_of_a_mosaic(value, exposure):
    health = InputHealth()
    health.see(np.full((481, 640), value, np.uint8), 'bayer_grbg')
    assert health.exposure == exposure


def test_a_night_with_lamps_is_not_black():
    health, image = InputHealth(), np.zeros((480, 640, 3), np.uint8)
    image[:, :64] = 200
    health.see(image, 'bgr')
    assert health.exposure == ''


def test_low_margins_and_drifting_classes():
    health = OutputHealth()
    road, sky = np.zeros((64, 64), np.uint8), np.full((64, 64), 10, np.uint8)
    sure = np.full((64, 64), 255, np.uint8)
    half = sure.copy()
    half[:32] = 3
    health.see(road, half)
    assert health.low_margin_share == 0.5 and health.class_drift is None
    for _ in range(100):
        health.see(road, sure)
    assert health.low_margin_share == 0 and health.class_drift == pytest.approx(0, abs=1e-9)
    for _ in range(15):
        health.see(sky, sure)
    assert health.class_drift > 0.7  # all that was road is sky
    for _ in range(2000):
        health.see(sky, sure)
    assert health.class_drift < 0.01  # and this is usual now


# Outputs


def test_only_what_a_topic_needs_is_computed():
    assert to_compute(frozenset()) == {'classes'}
    assert to_compute(frozenset({'class_mask', 'class_mask/compressed'})) == {'classes'}
    assert to_compute(frozenset({'color_mask'})) == {'classes', 'color'}
    assert to_compute(frozenset({'overlay'})) == {'classes', 'color'}
    assert to_compute(frozenset({'confidence'})) == {'classes', 'confidence'}


@pytest.mark.parametrize('masks, has', [
    (('classes', 'color'), False), (('classes', 'color', 'confidence'), True)])
def test_a_mask_that_the_network_cannot_give_has_no_topic(masks, has):
    node = SimpleNamespace(resolve_topic_name=lambda name: name,
                           create_publisher=lambda kind, name, qos, **options: name)
    found = outputs.Outputs(node, '~/', masks)
    assert ('confidence' in found.topics) == has == ('~/confidence' in list(found))
    assert {'class_mask', 'color_mask', 'overlay', 'camera_info'} <= set(found.topics)


class Counting:
    """A node that counts publishers, and fails at the one of a number; names lead where told."""

    def __init__(self, rules=None, fails_at=0):
        self.rules, self.fails_at, self.made, self.left = rules or {}, fails_at, 0, []

    def resolve_topic_name(self, name, only_expand=False):
        name = name if name.startswith('/') else f'/{name}'
        return name if only_expand else self.rules.get(name, name)

    def create_publisher(self, kind, name, qos, **options):
        self.made += 1
        if self.made == self.fails_at:
            raise RuntimeError('no descriptor left')
        self.left.append(name)
        return name

    def destroy_publisher(self, publisher):
        self.left.remove(publisher)


def test_outputs_of_which_one_cannot_be_created_leave_none():
    node = Counting(fails_at=4)
    with pytest.raises(RuntimeError, match='no descriptor left'):
        outputs.Outputs(node, '~/', ('classes', 'color'))
    assert node.made == 4 and node.left == []


def test_a_middleware_that_tells_of_no_deadlines_offers_them_all_the_same():
    class Silent(Counting):
        def create_publisher(self, kind, name, qos, event_callbacks=None, **options):
            if event_callbacks is not None and event_callbacks.deadline is not None:
                raise outputs.UnsupportedEventTypeError('no such event')
            offered[name] = qos.deadline.nanoseconds
            return super().create_publisher(kind, name, qos, **options)

    offered = {}
    found = outputs.Outputs(Silent(), '~/', ('classes', 'color'), 200)
    assert offered['~/class_mask'] == offered['~/color_mask'] == 200_000_000
    assert set(found.events) == {outputs.INCOMPATIBLE}  # of the topics without a deadline


def test_a_camera_that_cannot_be_has_no_topics():
    rules = {'/front/image': '/a', '/a/compressed': '/b'}
    settings = SimpleNamespace(mask_deadline_ms=0, transport='compressed', reliability='auto')
    node = Counting(rules)
    with pytest.raises(InputError, match='and that is remapped to /b'):
        Camera(node, None, 0, 'front', settings, ('classes',), None, False)
    assert node.left == []


@pytest.mark.parametrize('exchanged', [False, True])
def test_the_graph_is_asked_by_names_that_are_not_remapped_yet(exchanged):
    """What tells of endpoints remaps, as what creates them does; what counts them does not."""
    rules = {'/front/image': '/rear/image', '/rear/image': '/front/image'} if exchanged else {}
    reliabilities = {'/rear/image': BEST_EFFORT, '/front/image': RELIABLE}
    node = Counting(rules)
    node.get_publishers_info_by_topic = lambda name: [SimpleNamespace(
        qos_profile=QoSProfile(depth=1, reliability=reliabilities[node.resolve_topic_name(name)]))]
    found = input_module.Input(node, None, 0, 'front/image', Image, 'auto', print, print, {})
    assert found._wants_reliable() == (not exchanged)
    assert reliabilities[found.topic] == (BEST_EFFORT if exchanged else RELIABLE)


def test_health_without_confidence_looks_at_the_classes_alone():
    health = OutputHealth()
    health.see(np.zeros((8, 8), np.uint8), None)
    assert health.low_margin_share is None


def test_labels_are_published_for_vision_msgs_too(monkeypatch):
    class Message(SimpleNamespace):
        def __init__(self, **fields):
            super().__init__(header=Header(), **fields)

    monkeypatch.setattr(outputs, 'LabelInfo', Message)
    monkeypatch.setattr(outputs, 'VisionClass', SimpleNamespace)
    published = {}

    def create_publisher(kind, topic, qos):
        assert qos.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL
        return SimpleNamespace(publish=lambda message: published.update({topic: message}))

    node = SimpleNamespace(create_publisher=create_publisher, get_clock=Clock)
    assert len(outputs.publish_labels(node, CITYSCAPES)) == 2
    classes = {entry.class_id: entry.class_name
               for entry in published['~/label_info'].class_map}
    assert len(classes) == 19 and classes[0] == 'road' and classes[18] == 'bicycle'


def info(**changes) -> CameraInfo:
    return CameraInfo(**{
        'height': 1000, 'width': 2000, 'k': [900., 0, 1000, 0, 910., 500, 0, 0, 1],
        'p': [900., 0, 1000, -90, 0, 910., 500, 0, 0, 0, 1, 0],
        'r': [1., 0, 0, 0, 1, 0, 0, 0, 1], 'd': [0.1] * 5, **changes})


@settings(deadline=None)
@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), st.integers(0, 300), st.integers(0, 300),
       st.tuples(st.integers(50, 900), st.integers(50, 900)))
def test_a_scaled_camera_sees_the_same_rays(binning, left, top, mask_size):
    """Project a point by the full sensor, then go by hand through region, binning and resize."""
    region = RegionOfInterest(x_offset=left, y_offset=top, height=600, width=1200)
    given_info = info(binning_x=binning[0], binning_y=binning[1], roi=region)
    image_size = 600 // binning[1], 1200 // binning[0]
    result = camera_info.for_mask(given_info, image_size, mask_size, Header(frame_id='c'))
    if mask_size == image_size:
        assert result.k.tolist() == given_info.k.tolist() and result.roi == region
        return
    assert (result.height, result.width) == mask_size
    assert (result.binning_x, result.roi.width) == (0, 0)
    point = np.array([0.2, -0.3, 1.5, 1.0])
    for columns, name in ((3, 'k'), (4, 'p')):
        on_sensor, on_mask = (
            (np.reshape(getattr(which, name), (3, columns)) @ point[:columns])[:2] / point[2]
            for which in (given_info, result))
        scale = np.array(mask_size[::-1]) / np.array(image_size[::-1]) / np.array(binning)
        by_hand = (on_sensor - (left, top) + 0.5) * scale - 0.5
        np.testing.assert_allclose(on_mask, by_hand, atol=1e-6)


NAN = float('nan')


@pytest.mark.parametrize(('changes', 'words'), [
    ({}, ''), ({'width': 0}, '0x1000'), ({'width': 1999}, 'it describes 1999x1000'),
    ({'binning_x': 2, 'binning_y': 2}, 'it describes 1000x500'),
    ({'roi': RegionOfInterest(x_offset=1, width=2000, height=1000)}, 'goes beyond'),
    ({'roi': RegionOfInterest(y_offset=2**32 - 1, width=20, height=10)}, 'goes beyond'),
    ({'k': [900., 0, NAN, 0, 910., 500, 0, 0, 1]}, 'not all of its numbers are finite'),
    ({'p': [float('inf')] * 12}, 'finite'), ({'d': [NAN]}, 'finite'),
])
def test_camera_info_that_does_not_describe_the_image_is_refused(changes, words):
    text = camera_info.problem(info(**changes), (1000, 2000))
    assert (words in text) if words else not text


def test_parameters_are_paired_with_their_frame_by_stamp():
    class Node:
        def resolve_topic_name(self, name):
            return f'/{name}'

        def create_subscription(self, kind, name, receive, qos):
            self.receive = receive
            return qos

    node = Node()
    heard = camera_info.InfoInput(node, 'camera_info')
    heard.listen(True)
    assert heard.of(Header()) is None
    for second in range(100):
        message = info(binning_x=second)
        message.header.stamp.sec = second
        node.receive(message)
    header = Header()
    header.stamp.sec = 95  # while it was worked on, newer ones came
    assert heard.of(header).binning_x == 95
    header.stamp.sec = 3  # long forgotten: the newest is the best guess
    assert heard.of(header).binning_x == 99


# The subscription that follows its publishers


class Graph:
    """A node and an intake, as an input sees them; publishers have the reliabilities given."""

    def __init__(self, *reliabilities):
        self.publishers, self.there, self.group = reliabilities, [], None
        self.now, self.heard = 100.0, []

    def resolve_topic_name(self, name):
        return f'/{name}'

    def get_publishers_info_by_topic(self, topic):
        return [SimpleNamespace(qos_profile=QoSProfile(depth=1, reliability=reliability))
                for reliability in self.publishers]

    def get_logger(self):
        return SimpleNamespace(info=print)

    def create_subscription(self, kind, name, callback, qos, **options):
        return SimpleNamespace(qos_profile=qos)

    def destroy_subscription(self, subscription):
        """What is removed is gone."""

    def add(self, subscription, camera, receive, failed):
        self.there.append((subscription, receive))

    def remove(self, subscription):
        self.there = [pair for pair in self.there if pair[0] is not subscription]

    @property
    def subscribed(self):
        """Return the reliability of each subscription, the oldest first."""
        return [subscription.qos_profile.reliability for subscription, _ in self.there]

    def hear(self, which, second):
        """Let a subscription hear a message."""
        self.there[which][1](Image(header=Header(stamp=Time(sec=second))), {})


@pytest.fixture
def graph(monkeypatch):
    """Return publishers that have just become reliable, and `input`, which has seen it."""
    graph = Graph(BEST_EFFORT)
    monkeypatch.setattr(input_module, 'monotonic', lambda: graph.now)
    graph.input = input_module.Input(graph, graph, 0, 'image', Image, 'auto',
                                     lambda message, info: graph.heard.append(message), print, {})
    graph.input.start()
    graph.hear(0, 1)
    graph.publishers = (RELIABLE,)
    graph.input.follow()
    assert graph.subscribed == [BEST_EFFORT, RELIABLE]
    return graph


def test_the_old_subscription_stays_until_the_new_one_has_heard_something(graph):
    for second in range(2, 6):  # the publisher takes its time to find the new one
        graph.input.follow()
        graph.hear(0, second)
    assert graph.subscribed == [BEST_EFFORT, RELIABLE] and len(graph.heard) == 5
    graph.hear(1, 6)
    graph.input.follow()
    assert graph.subscribed == [RELIABLE] and len(graph.heard) == 6


def test_the_old_subscription_goes_where_nothing_is_heard(graph):
    graph.now += 60
    graph.input.follow()
    assert graph.subscribed == [RELIABLE]


def test_publishers_that_change_again_and_again_leave_one_old_subscription(graph):
    graph.publishers = (BEST_EFFORT,)
    graph.input.follow()
    assert graph.subscribed == [RELIABLE, BEST_EFFORT]
    graph.input.stop()
    assert graph.subscribed == []


# The card's memory


class TwoGpus:
    """Stands for NVML: two GPUs of 10 and 20 GB, of which 3 and 7 are used."""

    def nvmlDeviceGetHandleByIndex_v2(self, index, handle):
        handle._obj.value = index + 1
        return 0 if index < 2 else 2

    def nvmlDeviceGetHandleByUUID(self, uuid, handle):
        handle._obj.value = {b'GPU-a': 1, b'GPU-b': 2}.get(uuid)
        return 0 if handle._obj.value else 2

    def nvmlDeviceGetMemoryInfo(self, handle, memory):
        memory._obj.total, memory._obj.used = {1: (10**10, 3 * 10**9), 2: (2 * 10**10, 7 * 10**9)
                                               }[handle.value]
        return 0


@pytest.mark.parametrize('visible, used', [
    (None, 3000.), ('0', 3000.), ('1,0', 7000.), ('GPU-b', 7000.), ('', None), ('-1', None),
    ('2', None), ('GPU-c', None)])
def test_the_memory_is_that_of_the_gpu_which_cuda_shows(monkeypatch, visible, used):
    monkeypatch.setattr(process, '_nvml', TwoGpus)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    if visible is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert process.gpu_memory().get('gpu_memory_used_mb') == used
