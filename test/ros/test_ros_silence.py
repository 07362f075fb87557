# SPDX-License-Identifier: Apache-2.0
"""No masks, no error: each way to publish nothing has its own sentence, with what to do."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

pytest.importorskip('rclpy', reason='the sentences are of the ROS node')
from rclpy.duration import Duration
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage
from support.ros import picture
from support.ros_peer import BEST_EFFORT, NodeProcess, peer, RELIABLE

from trt_segmentation.ros import silence
from trt_segmentation.ros.camera import Camera
from trt_segmentation.ros.silence import Drops, Figures

SIZE = (64, 128)
LATCHED = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                     durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)


@pytest.fixture
def other():
    """Return a peer."""
    with peer() as result:
        yield result


# The graph


class Graph:
    """A node that sees what it is told; topics: name to (type, QoS, node) of each publisher."""

    def __init__(self, topics, subscribers=()):
        self._topics, self._subscribers = topics, list(subscribers)

    def get_publishers_info_by_topic(self, topic):
        return [SimpleNamespace(topic_type=f'sensor_msgs/msg/{kind}', qos_profile=qos,
                                node_name=name, node_namespace='/')
                for kind, qos, name in self._topics.get(topic, ())]

    def get_subscriptions_info_by_topic(self, topic):
        return [SimpleNamespace(qos_profile=qos, node_name=name, node_namespace='/car')
                for where, qos, name in self._subscribers if where == topic]

    def get_topic_names_and_types(self):
        return [(name, [f'sensor_msgs/msg/{publishers[0][0]}'])
                for name, publishers in self._topics.items()]

    def count_publishers(self, topic):
        return len(self._topics.get(topic, ()))

    def get_fully_qualified_name(self):
        return '/segmentation'


GOOD = QoSProfile(depth=1)


@pytest.mark.parametrize(('topics', 'topic', 'taken', 'qos', 'words'), [
    ({}, '/image', 'Image', GOOD, ['nobody publishes /image', 'ROS_DOMAIN_ID']),
    ({'/camera/image_raw': [('Image', GOOD, 'cam')], '/x/depth': [('Image', GOOD, 'cam')],
      '/segmentation/class_mask': [('Image', GOOD, 'segmentation')]}, '/camera/image', 'Image',
     GOOD, ['published are /camera/image_raw, /x/depth:', '--camera', 'remapping image']),
    ({}, '/a/compressed/compressed', 'CompressedImage', GOOD, ['name /a with --camera']),
    ({'/image': [('CompressedImage', GOOD, 'cam')]}, '/image', 'Image', GOOD,
     ['/cam publishes /image as sensor_msgs/msg/CompressedImage', 'transport to compressed']),
    ({'/i/compressed': [('CompressedImage', GOOD, 'cam')]}, '/i/compressed', 'Image', GOOD,
     ['transport to compressed and name /i with --camera']),
    ({'/image': [('Image', GOOD, 'cam')]}, '/image', 'CompressedImage', GOOD,
     ['transport to raw']),
    ({'/image': [('PointCloud2', GOOD, 'lidar')]}, '/image', 'Image', GOOD,
     ['/lidar publishes /image as sensor_msgs/msg/PointCloud2', '--camera']),
    ({'/image': [('Image', BEST_EFFORT, 'cam')]}, '/image', 'Image', RELIABLE,
     ['/cam publishes /image with a QoS that does not fit', 'est effort', 'auto']),
    ({'/image': [('Image', RELIABLE, 'cam')]}, '/image', 'Image', LATCHED, ['olatile']),
    ({'/image': [('Image', BEST_EFFORT, 'cam'), ('Image', RELIABLE, 'b')]}, '/image', 'Image',
     RELIABLE, []),
    ({'/image': [('Image', LATCHED, 'cam')]}, '/image', 'Image', BEST_EFFORT, []),
])
def test_why_no_image_can_come(topics, topic, taken, qos, words):
    text = silence.no_images(Graph(topics), topic, f'sensor_msgs/msg/{taken}', qos)
    assert all(word in text for word in words) and bool(text) == bool(words), text


def test_topics_that_are_exchanged_are_told_of_by_their_own_names():
    """rclpy applies remapping rules to the names that it is asked for."""
    graph = Graph({'front/image': [('Image', BEST_EFFORT, 'rear_driver')],
                   'front/mask': [('Image', GOOD, 'a'), ('Image', GOOD, 'b')]},
                  [('front/mask', LATCHED, 'viewer')])
    assert '/rear_driver publishes /rear/image with a QoS' in silence.no_images(
        graph, '/rear/image', 'sensor_msgs/msg/Image', RELIABLE, 'front/image')
    assert silence.namesake(graph, '/rear/mask', 'front/mask').startswith(
        '2 nodes publish /rear/mask')
    assert '/car/viewer subscribes to /rear/mask' in silence.no_listener(
        graph, {'/rear/mask': RELIABLE}, {'/rear/mask': 'front/mask'})


def test_what_the_graph_fills_in_is_no_misfit():
    """A recorder's endpoint, as the graph shows it, has endless deadlines instead of none."""
    endless = QoSProfile(depth=1, deadline=Duration(seconds=2**31),
                         liveliness_lease_duration=Duration(seconds=2**31))
    hears = [('/segmentation/class_mask', endless, 'recorder')]
    assert silence.no_listener(Graph({}, hears), {'/segmentation/class_mask': RELIABLE}) == ''


def test_who_listens_to_masks_in_vain_is_named():
    topics = {'/segmentation/class_mask': RELIABLE}
    hears = [('/segmentation/class_mask', BEST_EFFORT, 'a'), ('/other', LATCHED, 'b')]
    assert silence.no_listener(Graph({}, hears), topics) == ''
    text = silence.no_listener(Graph({}, [*hears, ('/segmentation/class_mask', LATCHED, 'viewer')
                                          ]), topics)
    assert '/car/viewer subscribes to /segmentation/class_mask' in text and 'volatile' in text


# The counts


def figures(**changes):
    """Return figures of a camera whose frames take 30 ms."""
    return Figures(**{'age_ms': 700.0, 'foreign': 'the clock stands', 'processing_ms': 321.0,
                      'against_age': 'drive more slowly',
                      'malformed': 'step is 1', 'max_age_ms': 200, **changes})


@pytest.mark.parametrize(('cause', 'words'), [
    ('late_before_inference', ['too old on arrival', '700 ms', 'max_frame_age_ms is 200',
                               'or drive more slowly']),
    ('late_before_publishing', ['processing takes 321 ms', 'or drive more slowly']),
    ('foreign_stamp', ['another clock', ': the clock stands; or set strict_stamps to false']),
    ('malformed_short_step', ['malformed: step is 1']),
    ('not_ready', ['engine']),
    ('stopped', ['stopped']),
])
def test_why_all_frames_are_dropped(cause, words):
    drops, counts = Drops(), {'received': 5, 'published': 5}
    for turn in range(6):
        text = drops.look(counts, figures())
        assert bool(text) == (turn > 3)  # when all of the last seconds were dropped
        counts = {'received': counts['received'] + 10, 'published': 6,
                  f'dropped_{cause}': 7 * (turn + 1), 'dropped_replaced': 3 * (turn + 1)}
    assert all(word in text for word in words)
    if cause != 'not_ready':
        assert text.startswith('no mask of the last 30 images, 21 of them ')


@pytest.mark.parametrize('cause', ['late_before_inference', 'foreign_stamp', 'malformed_step'])
def test_one_image_is_no_images(cause):
    drops = Drops()
    for received in (0, 0, 0, 1):
        text = drops.look({'received': received, f'dropped_{cause}': received}, figures())
    assert text.startswith('no mask of the last image, which was ')


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30))
def test_whoever_publishes_is_told_nothing(steps):
    drops, received, published = Drops(), 0, 0
    for dropped, sent in steps:
        received, published = received + dropped + sent, published + sent
        text = drops.look({'received': received, 'published': published,
                           'dropped_late_before_inference': received - published}, figures())
        assert not (text and sent)


# All of it, over DDS


def test_a_camera_that_pauses_again_and_again_is_said_once():
    stall = 'no image came for {} s, though its publisher is there'
    troubles = ['', stall.format(2), stall.format(3), '', stall.format(2), '', 'nobody publishes',
                '', stall.format(4)]
    said = []
    camera = SimpleNamespace(
        topic='/image', _told='', _input=SimpleNamespace(follow=lambda: None, subscribed=True),
        info=SimpleNamespace(listen=lambda whether: None),
        outputs=SimpleNamespace(wanted=lambda: ()), _look_for_trouble=iter(troubles).__next__,
        _node=SimpleNamespace(get_logger=lambda: SimpleNamespace(warning=said.append)))
    shown = [Camera.follow(camera) or camera.trouble for _ in troubles]
    assert shown == troubles  # diagnostics say it as long as it is true
    assert said == [f'/image: {text}'
                    for text in (stall.format(2), 'nobody publishes', stall.format(4))]


def test_each_camera_tells_why_it_has_no_masks(built, other, tmp_path):
    """One node whose cameras have a trouble each; the last one has none."""
    names = ['nobody', 'type', 'qos', 'late', 'clock', 'bad', 'good']
    with NodeProcess(tmp_path / 'log', cameras=str(names), reliability='reliable',
                     strict_stamps=True, arguments=('-r', 'nobody/image:=/front/image_ra'),
                     **{**built, 'max_frame_age_ms': 2000}) as node:
        other.wait_for_state('active', node)
        other.publisher('/front/image_raw')
        other.publisher('/type/image', CompressedImage)
        other.publisher('/qos/image', qos=BEST_EFFORT)
        cameras = {name: other.publisher(f'/{name}/image')
                   for name in ('late', 'clock', 'bad', 'good')}
        topics = {name: f'/{name}/image' for name in names} | {'nobody': '/front/image_ra'}
        words = {'nobody': 'published are /front/image_raw', 'late': 'too old on arrival',
                 'type': 'set transport to compressed', 'qos': 'QoS that does not fit',
                 'clock': 'with stamps of another clock', 'bad': 'malformed: encoding'}

        def told():
            image = picture(SIZE, 1)
            other.send(cameras['late'], image, stamp_ns=other.now() - 3 * 10**9)
            other.send(cameras['clock'], image, stamp_ns=5)
            other.send(cameras['bad'], image, 'telepathy')
            other.send(cameras['good'], image)
            return all(text in other.status(topics[name]).get('trouble', '')
                       for name, text in words.items()) and not other.status(
                           topics['good']).get('trouble')

        other.wait(told, 'all sentences', node)
        for name, text in words.items():
            assert other.status(topics[name])['level'] != '0'
            # Once, not every second. A camera is also told that no image comes before one does.
            assert node.log.count(text) <= 2, name


def test_another_node_of_the_same_name_is_noticed(built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', **built) as node, \
            NodeProcess(tmp_path / 'second', **built) as second:
        publisher = other.publisher()

        def told():
            other.send(publisher, picture(SIZE, 1))
            other.send(publisher, picture(SIZE, 1))
            return all('2 nodes publish /segmentation/class_mask' in process.log
                       for process in (node, second))

        other.wait(told, 'that they notice each other', node)


def test_a_listener_with_another_qos_is_named(built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', **built) as node:
        publisher = other.publisher()
        other.subscribe('/segmentation/class_mask', qos=LATCHED)

        def told():
            other.send(publisher, picture(SIZE, 1))
            return '/peer subscribes to /segmentation/class_mask' in other.status(
                '/image').get('trouble', '')

        other.wait(told, 'its name', node)


# Camera info


def info_of(size=SIZE, **changes) -> CameraInfo:
    """Return the parameters of a camera."""
    return CameraInfo(**{
        'height': size[0], 'width': size[1], 'k': [100., 0, 50, 0, 110., 30, 0, 0, 1],
        'r': [1., 0, 0, 0, 1, 0, 0, 0, 1], 'p': [100., 0, 50, 0, 0, 110., 30, 0, 0, 0, 1, 0],
        **changes})


def test_parameters_that_were_latched_before_it_came_are_heard(built, other, tmp_path):
    infos = other.publisher('/camera_info', CameraInfo, LATCHED)
    infos.publish(info_of())
    with NodeProcess(tmp_path / 'log', **built) as node:
        publisher = other.publisher()
        other.subscribe('/segmentation/camera_info', CameraInfo)
        other.wait_for_state('active', node)
        info = other.exchange(publisher, picture(SIZE, 1), '/segmentation/camera_info', node)
        assert list(info.k) == list(info_of().k)
        # And what it publishes later is newer.
        infos.publish(info_of(k=[200., 0, 50, 0, 110., 30, 0, 0, 1]))

        def newer():
            other.send(publisher, picture(SIZE, 1))
            return [m for m in other.messages['/segmentation/camera_info'] if m.k[0] == 200]

        other.wait(newer, 'the newer ones', node)


@pytest.mark.parametrize(('info', 'words'), [
    (None, 'none came'), (info_of((0, 0)), 'its size is 0x0'),
    (info_of((10, 20)), 'it describes 20x10, but the image is 128x64')])
def test_why_masks_go_without_camera_info_is_said(info, words, built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', **built) as node:
        publisher, infos = other.publisher(), other.publisher('/camera_info', CameraInfo)
        other.subscribe('/segmentation/camera_info', CameraInfo)

        def told():
            if info is not None:
                infos.publish(info)
            other.send(publisher, picture(SIZE, 1))
            status = other.status('/image')
            return (words in status.get('camera_info_problem', '')
                    and '/camera_info: ' in status['message'])

        other.wait(told, words, node)
        assert not other.messages['/segmentation/camera_info']
