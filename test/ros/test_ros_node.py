# SPDX-License-Identifier: Apache-2.0
"""The node as a process, over real DDS: what goes in, what comes out, what it lets one set."""

from __future__ import annotations

import json
import os
from pathlib import Path
import shutil
import signal

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='the node needs ROS')
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import QoSDurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import Trigger
from support.ros import (
    BACKEND,
    built_bundle,
    calibrated_bundle,
    direct_segmenter,
    make_bundle,
    picture,
)
from support.ros_peer import (
    BEST_EFFORT,
    compressed_message,
    NodeProcess,
    peer,
    pixels_of,
    RELIABLE,
    stamp_of,
)

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines import choose_backend
from trt_segmentation.engines.build import build
from trt_segmentation.system import files

CLASS, COLOR = '/segmentation/class_mask', '/segmentation/color_mask'
SIZE = (64, 128)


@pytest.fixture
def other():
    """Return the peer."""
    with peer() as result:
        yield result


@pytest.fixture(scope='class')
def shared(built, tmp_path_factory):
    """Return an active node, and a peer that hears its masks, for tests that change neither."""
    log = tmp_path_factory.mktemp('shared') / 'node.log'
    with NodeProcess(log, **built) as node, peer() as other:
        publisher = other.publisher()
        topics = [CLASS, COLOR, '/segmentation/overlay', '/segmentation/confidence']
        for topic in topics:
            other.subscribe(topic)
        other.subscribe(f'{CLASS}/compressed', CompressedImage)
        other.wait_for_state('active', node)
        other.wait_for_match(publisher, node, *topics, f'{CLASS}/compressed')
        yield node, other, publisher


class TestOneNode:
    """What can be asked of one and the same active node."""

    @pytest.mark.parametrize('size', [SIZE, (512, 1024), (77, 131), (1, 1), (200, 9)])
    def test_masks_are_the_pipelines_and_belong_to_their_frame(self, size, shared, direct):
        node, other, publisher = shared
        image = picture(size, seed=size[1])
        mask = other.exchange(publisher, image, CLASS, node)
        expected = direct.segment(image, ('classes', 'color', 'confidence'))
        stamp = stamp_of(mask)
        assert mask.encoding == 'mono8' and (mask.height, mask.width) == size
        assert mask.header.frame_id == 'camera'
        np.testing.assert_array_equal(pixels_of(mask), expected.classes)
        color = other.wait_for_mask(COLOR, stamp, node)
        assert color.encoding == 'bgr8' and color.header == mask.header
        np.testing.assert_array_equal(pixels_of(color), expected.color)
        confidence = other.wait_for_mask('/segmentation/confidence', stamp, node)
        np.testing.assert_array_equal(pixels_of(confidence), expected.confidence)
        overlay = other.wait_for_mask('/segmentation/overlay', stamp, node)
        blend = (image.astype(float) + expected.color) / 2
        assert np.abs(pixels_of(overlay) - blend).max() <= 0.5
        png = other.wait_for_mask(f'{CLASS}/compressed', stamp, node)
        decoded = cv2.imdecode(np.frombuffer(png.data, np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(decoded, expected.classes)
        assert png.header == mask.header

    def test_encodings_change_in_mid_stream(self, shared, direct):
        node, other, publisher = shared
        image = picture((96, 128), seed=9)
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        cases = {
            'rgb8': (image[..., ::-1].copy(), image),
            'mono8': (gray, cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)),
            'bgra8': (cv2.cvtColor(image, cv2.COLOR_BGR2BGRA), image),
            'bgr8': (image, image),
        }
        for encoding, (pixels, seen) in cases.items():
            mask = other.exchange(publisher, pixels, CLASS, node, encoding)
            np.testing.assert_array_equal(pixels_of(mask), direct.segment(seen).classes)
            overlay = other.wait_for_mask('/segmentation/overlay', stamp_of(mask), node)
            assert np.abs(pixels_of(overlay).astype(float)
                          - (seen.astype(float) + direct.segment(seen).color) / 2).max() <= 0.5

    def test_masks_have_the_size_of_their_frame_when_that_changes(self, shared):
        node, other, publisher = shared
        other.exchange(publisher, picture(SIZE, 1), CLASS, node)
        before = int(other.status('/image')['size_changes'])
        for size in ((1, 1), SIZE, (512, 1024), (1, 1)):
            mask = other.exchange(publisher, picture(size, 1), CLASS, node)
            assert (mask.height, mask.width) == size

        def warned():
            status = other.status('/image')
            if status['level'] == '1' and 'size of the images changes' in status['message']:
                return True  # on a machine that is slow there may be worse to say meanwhile
            other.send(publisher, picture((1 + other.reports % 2, 1), 1))
            return False

        other.wait(warned, 'a warning', node)
        assert int(other.status('/image')['size_changes']) >= before + 4
        line, = (line for line in node.log.splitlines() if 'the size of the images has' in line)
        assert '[WARN]' in line and '/image: ' in line and line.endswith('size of their frame')

    def test_diagnostics_tell_state_figures_and_hashes(self, shared, built):
        node, other, publisher = shared
        other.exchange(publisher, picture(SIZE, 1), CLASS, node)
        other.wait_for_reports()
        status, camera = other.status(), other.status('/image')
        assert (status['state'], status['level'], status['self_test']) == ('active', '0', 'passed')
        assert status['backend'] == BACKEND and status['precision'] == 'fp32'
        record = json.loads(next(built['store'].glob('*/record.json')).read_text())
        assert status['engine_sha256'] == record['plan_sha256']
        assert len(status['bundle_sha256']) == 64
        for key in ('processing_time_ms', 'pipeline_latency_ms', 'cyclic_time_ms',
                    'consecutive_processing_delay_ms', 'inference_time_ms_p50',
                    'inference_time_ms_p95', 'inference_time_ms_p99', 'output_rate_hz',
                    'last_frame_age_ms', 'input_gap_ms'):
            assert float(camera[key]) >= 0
        assert camera['is_processing_time_ms_in_expected_range'] in ('True', 'False')
        assert int(camera['published']) <= int(camera['received'])

    def test_labels_are_there_for_whoever_comes_late(self, shared):
        node, other, _ = shared
        latched = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        other.subscribe('/segmentation/labels', String, latched)
        message = other.wait(lambda: other.messages['/segmentation/labels'], 'labels', node)[0]
        labels = json.loads(message.data)
        assert len(labels) == 19
        assert labels[13] == {'name': 'car', 'train_id': 13, 'color': [0, 0, 142],
                              'category': 'vehicle'}

    def test_the_self_test_can_be_asked_for(self, shared):
        node, other, _ = shared
        response = other.call(Trigger, '/segmentation/self_test', Trigger.Request(), node)
        assert response.success and response.message == 'passed'

    def test_parameters_are_described_and_checked(self, shared):
        node, other, _ = shared
        age = other.describe_parameter('max_frame_age_ms', node)
        assert age.description and age.integer_range[0].to_value == 10000
        assert 'at start' in other.describe_parameter('autostart', node).additional_constraints
        # As a dump of the node's own does, which names every parameter.
        for name in ('autostart', 'cameras', 'bundle', 'use_sim_time'):
            value = other.get_parameter(name, node)
            assert other.set_parameter(name, value, node) == (True, '')
        assert other.set_parameter('max_frame_age_ms', 4000, node) == (True, '')
        assert other.get_parameter('max_frame_age_ms', node) == 4000
        for name, value, words in (
                ('max_frame_age_ms', 0, 'range'), ('max_frame_age_ms', 'x', ''),
                ('mask_size', 'huge', 'source, network'),
                ('autostart', False, 'when the node starts'),
                ('bundle', '/other', 'clean it up first'), ('cameras', ['a'], 'clean it up')):
            taken, reason = other.set_parameter(name, value, node)
            assert not taken and reason and words in reason, (name, reason)
        assert other.get_parameter('mask_size', node) == 'source'


@pytest.mark.parametrize('parameters', [
    {'backend': 'abacus'}, {'max_frame_age_ms': -1}, {'max_frame_age_ms': 'soon'},
    {'cameras': "['/absolute']"}, {'cameras': "['twice', 'twice']"}, {'reliability': 'best'}])
def test_a_wrong_parameter_ends_the_node_with_one_line(parameters, tmp_path):
    with NodeProcess(tmp_path / 'log', **parameters) as node:
        assert node.wait() == 2
    lines = [line for line in node.log.splitlines() if 'segmentation_node: ' in line]
    assert len(lines) == 1 and next(iter(parameters)) in lines[0]
    assert 'Traceback' not in node.log


@pytest.mark.parametrize(('arguments', 'words'), [
    (['-p', 'cameras:=[]'], 'cameras'), (['-p', 'use_sim_time:=1'], 'use_sim_time'),
    (['-r', ':=x'], '-r :=x: expected -r FROM:=TO'),
    (['-p', 'max_frame_age_ms'], "-p max_frame_age_ms: found no ':='; expected -p NAME:=VALUE"),
    (['--log-level', 'chatty'], 'severity level; expected --log-level debug, info'),
    (['-r', '__node:=a-b'], '__node'),
    (['--params-file', '/nonexistent.yaml'], '/nonexistent.yaml')])
def test_whatever_is_wrong_at_the_start_is_one_line_and_code_2(arguments, words, tmp_path):
    with NodeProcess(tmp_path / 'log', arguments=tuple(arguments)) as node:
        assert node.wait() == 2, node.log
    line, = node.log.splitlines()
    assert line.startswith('segmentation_node: ') and words in line


def test_without_a_bundle_a_node_that_is_driven_waits_for_one(built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', autostart=False, **{**built, 'bundle': '""'}) as node:
        other.wait_for_state('unconfigured', node)
        assert other.set_parameter('bundle', str(built['bundle']), node) == (True, '')
        other.transition('configure', node)
        other.wait_for_state('inactive', node)


@pytest.mark.parametrize('domain', ['abc', '-1', '233'])
def test_a_domain_that_cannot_be_is_one_line_and_code_2(domain, tmp_path, monkeypatch):
    monkeypatch.setattr('support.ros_peer.DOMAIN', domain)
    with NodeProcess(tmp_path / 'log') as node:
        assert node.wait() == 2
    assert 'segmentation_node: ROS_DOMAIN_ID' in node.log and 'Traceback' not in node.log


def test_a_misspelt_parameter_and_a_path_from_home(built, other, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(built['bundle'].parent))
    options = {**built, 'bundle': f'~/{built["bundle"].name}', 'store': '~/store'}
    with NodeProcess(tmp_path / 'log', max_frame_age=5, **options) as node:
        other.wait_for_state('active', node)
        assert 'max_frame_age: there is none of this name' in node.log
        assert 'did you mean max_frame_age_ms?' in node.log
        assert node.log.count('there is none of this name') == 1


@pytest.mark.parametrize('name', ['bundle', 'store'])
def test_a_substitution_without_a_launch_file_is_named(name, built, other, tmp_path):
    text = '$(env HOME)/it'
    with NodeProcess(tmp_path / 'log', **{**built, name: text}) as node:
        status = other.wait_for_reason('launch file', node)
        assert f"parameter {name}: found '{text}'" in status['reason']
        assert status['state'] == 'unconfigured'
        other.wait(lambda: other.status()['supervision'] == 'retrying', 'a pause', node)
        assert other.set_parameter(name, str(built[name]), node) == (True, '')
        other.wait_for_state('active', node)


def test_what_a_parameter_file_has_for_another_name_is_named(tmp_path, other):
    ours, theirs = tmp_path / 'ours.yaml', tmp_path / 'theirs.yaml'
    ours.write_text('/**:\n  ros__parameters: {autostart: false}\n'
                    '/car/segmentation:\n  ros__parameters: {mask_siez: network}\n'
                    '/car/*:\n  ros__parameters: {strict_stamp: true}\n'
                    '/segmentation:\n  ros__parameters: {lasy: true}\n')
    theirs.write_text('segmentation:\n  ros__parameters: {lazy: true}\n')
    with NodeProcess(tmp_path / 'log', arguments=(
            '-r', '__ns:=/car', '-r', 'imag:=/y', '-r', 'image:=/z',
            '--params-file', str(ours), '--params-file', str(theirs))) as node:
        other.wait(lambda: other.status(name='car/segmentation'), 'it', node)
        other.wait(lambda: node.log.count('[WARN]') >= 4, 'the warnings', node)
        warnings = [line for line in node.log.splitlines() if '[WARN]' in line]
    for words in ('mask_siez: there is none of this name, so it does nothing; did you mean '
                  'mask_size?', 'strict_stamp: there is none of this name',
                  f'{theirs}: no section of it is for this node, /car/segmentation, so nothing '
                  'is taken from it; it has /segmentation', 'did you mean image?'):
        assert sum(words in line for line in warnings) == 1, words
    assert len(warnings) == 4


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(number, built, tmp_path):
    heard, attempts = set(), 0
    # Fast DDS takes what a process has sent away with it: whoever gets no processor time just then
    # does not hear the end.
    while '3' not in heard and attempts < 5:
        attempts += 1
        with peer() as other:
            with NodeProcess(tmp_path / 'log', **built) as node:
                other.wait_for_state('active', node)
                node.signal(number)
                node.signal(number)  # a terminal's Ctrl-C reaches it twice under ros2 launch
                assert node.wait() == 0
            assert 'Traceback' not in node.log
            reports = -1
            while reports != other.reports:
                reports = other.reports
                other.spin(1.0)
            said = [other.status(task) for task in ('node', '/image')]
            heard = {status['level'] for status in said}
    assert heard == {'3'}  # STALE of diagnostic_msgs: no error, and no news
    assert {status['message'] for status in said} == {'stopped: the process was asked to end'}


def test_it_serves_on_when_nobody_reads_its_log_any_more(built, other, tmp_path):
    """As of `segmentation_node ... | head -1`."""
    os.mkfifo(tmp_path / 'log')
    reader = os.open(tmp_path / 'log', os.O_RDONLY | os.O_NONBLOCK)
    with NodeProcess(tmp_path / 'log', **built) as node:
        node.log_path = Path(os.devnull)
        other.wait_for_state('active', node)
        os.close(reader)
        assert other.transition('deactivate', node)  # which it logs
        assert other.transition('activate', node)
        publisher = other.publisher()
        other.subscribe(CLASS)
        other.wait_for_match(publisher, node, CLASS)
        other.exchange(publisher, picture(SIZE, 1), CLASS, node)
        node.signal(signal.SIGTERM)
        assert node.wait() == 0


def test_a_signal_ends_it_while_it_starts(built, tmp_path):
    with NodeProcess(tmp_path / 'log', **built) as node, peer() as other:
        other.wait(lambda: other.node.count_publishers('/diagnostics'), 'the node', node)
        node.signal(signal.SIGTERM)
        # An engine that takes longer than a second to open is left behind, and that is said.
        assert node.wait() == ('the process ends without it' in node.log)
        assert '[ERROR]' not in node.log and 'Traceback' not in node.log


def test_the_lifecycle_is_managed_from_outside(built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', autostart=False, **{**built, 'bundle': '/no'}) as node:
        assert other.state(node) == 'unconfigured'
        assert not other.transition('configure', node)
        status = other.wait_for_reason('/no', node)
        assert status['level'] == '2' and 'no such bundle' in status['message']
        assert other.set_parameter('bundle', str(built['bundle']), node) == (True, '')
        # It tries again by itself too, and may have been first.
        assert other.transition('configure', node) or other.state(node) == 'inactive'
        for transition, state in (('activate', 'active'),
                                  ('deactivate', 'inactive'), ('activate', 'active'),
                                  ('deactivate', 'inactive'), ('cleanup', 'unconfigured'),
                                  ('configure', 'inactive')):
            assert other.transition(transition, node)
            assert other.state(node) == state
        other.wait(lambda: other.status()['state'] == 'inactive', 'inactive', node)
        assert other.status()['level'] == '0' and 'reason' not in other.status()
        assert not other.transition('configure', node)  # it is no transition of this state
        assert other.transition('inactive_shutdown', node)
        assert other.state(node) == 'finalized'


def test_no_mask_is_published_while_inactive(built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', autostart=False, **built) as node:
        assert other.transition('configure', node)
        other.subscribe(CLASS)
        publisher = other.publisher()
        assert other.transition('activate', node)
        other.wait_for_match(publisher, node, CLASS)
        other.exchange(publisher, picture(SIZE, 1), CLASS, node)
        assert other.transition('deactivate', node)
        other.wait(lambda: publisher.get_subscription_count() == 0, 'no subscriber', node)
        stamps = [other.send(publisher, picture(SIZE, seed)) for seed in range(5)]
        other.wait_for_reports()
        assert not any(other.masks_of(CLASS, stamp) for stamp in stamps)
        assert other.status('/image')['message'] == 'not active'


def test_an_engine_that_is_missing_is_built_in_a_child_process(built, other, tmp_path):
    options = {**built, 'store': tmp_path / 'store'}
    with NodeProcess(tmp_path / 'log', **options) as node:
        other.wait_for_state('active', node)
        assert 'building the engine in a child process' in node.log
        assert len(list((tmp_path / 'store').glob('*/plan'))) == 1
        assert other.status()['level'] == '0'


def test_auto_precision_takes_the_faster_one_of_what_was_built(built, other, tmp_path):
    bundle = calibrated_bundle(tmp_path / 'bundle', SIZE)
    options = {**built, 'bundle': bundle, 'store': tmp_path / 'store', 'precision': 'auto'}
    with NodeProcess(tmp_path / 'log', **options) as node:
        other.wait_for_state('active', node)
        chosen = other.status()['precision']
        assert f': taking {chosen}' in node.log
        records = [json.loads(path.read_text())
                   for path in (tmp_path / 'store').glob('*/record.json')]
        found = {record['inputs']['precision'] for record in records if 'inputs' in record}
        if 'this TensorRT-RTX has no INT8 convolutions' in node.log:  # before 1.7
            found.add('int8')
        assert found == set(choose_backend(BACKEND).precisions)
    # The choice stays, for a node that must not build too.
    with NodeProcess(tmp_path / 'again', **options, build_missing=False) as node:
        # Its own word: what the peer has heard last may be of the node before.
        other.wait(lambda: 'activate: done' in node.log, 'its activation', node)
        other.wait_for_reports()
        assert other.status()['precision'] == chosen


def test_a_build_that_fails_says_why(built, other, tmp_path):
    bundle = make_bundle(tmp_path / 'bundle', size=SIZE)
    options = {**built, 'bundle': bundle, 'precision': 'int8'}  # which needs a calibration
    with NodeProcess(tmp_path / 'log', **options) as node:
        status = other.wait_for_reason('calibrat', node)
        assert status['state'] == 'unconfigured' and status['level'] == '2'


def test_a_missing_engine_that_must_not_be_built_is_said_with_the_command(built, other, tmp_path):
    options = {**built, 'store': tmp_path / 'store', 'build_missing': False}
    with NodeProcess(tmp_path / 'log', **options) as node:
        status = other.wait_for_reason('', node)
        assert f'trt-segmentation build {built["bundle"]}' in status['reason']
        assert status['state'] == 'unconfigured' and status['level'] == '2'


def test_an_unproven_engine_runs_and_is_said_to_be_so(built, direct, other, tmp_path):
    bundle = tmp_path / 'bundle'
    shutil.copytree(built['bundle'], bundle)
    shutil.rmtree(bundle / 'golden')
    files.write_sums(bundle)
    build(Bundle.open(bundle), backend=BACKEND, precision='fp32', store=tmp_path / 'store',
          allow_unproven=True)
    options = {**built, 'bundle': bundle, 'store': tmp_path / 'store'}
    with NodeProcess(tmp_path / 'log', **options) as node:
        status = other.wait_for_state('active', node)
        assert status['level'] == '1' and 'unproven' in status['message']
        response = other.call(Trigger, '/segmentation/self_test', Trigger.Request(), node)
        assert not response.success and response.message == 'no golden frames'
        other.subscribe(CLASS)
        mask = other.exchange(other.publisher(), picture(SIZE, 1), CLASS, node)
        np.testing.assert_array_equal(pixels_of(mask), direct.segment(picture(SIZE, 1)).classes)


def test_reliability_follows_the_publishers(built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', **built) as node:
        other.wait_for_state('active', node)
        other.subscribe(CLASS)
        reliability = lambda: other.status('/image').get('reliability')  # noqa: E731
        publisher = other.publisher(qos=RELIABLE)
        other.wait(lambda: reliability() == 'reliable', 'reliable', node)
        other.exchange(publisher, picture(SIZE, 1), CLASS, node)
        second = other.publisher(qos=BEST_EFFORT)
        other.wait(lambda: reliability() == 'best_effort', 'best effort', node)
        other.exchange(second, picture(SIZE, 2), CLASS, node)
        other.exchange(publisher, picture(SIZE, 3), CLASS, node)
        other.node.destroy_publisher(second)
        other.wait(lambda: reliability() == 'reliable', 'reliable again', node)
        other.exchange(publisher, picture(SIZE, 4), CLASS, node)


def test_no_frame_is_lost_or_doubled_when_the_subscription_changes(built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', **built) as node:
        other.wait_for_state('active', node)
        other.subscribe(CLASS, qos=QoSProfile(depth=100))
        publisher = other.publisher(qos=QoSProfile(depth=100))
        other.wait_for_match(publisher, node, CLASS)
        sent, image = [], picture(SIZE, 1)

        def frame_answered():
            return other.masks_of(CLASS, sent[-1])

        # One frame after the other, while the node notices that the publisher is reliable.
        while len(sent) < 20 or other.status('/image')['reliability'] != 'reliable':
            sent.append(other.send(publisher, image))
            other.wait(frame_answered, f'the mask of frame {len(sent)}', node)
        assert 'now reliable' in node.log
        assert [stamp_of(message) for message in other.messages[CLASS]] == sent


def test_a_lazy_camera_listens_only_while_somebody_looks(built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', lazy=True, **built) as node:
        other.wait_for_state('active', node)
        publisher = other.publisher()
        other.wait(lambda: other.status('/image').get('publishers') == '1', 'publisher', node)
        assert publisher.get_subscription_count() == 0
        assert other.status('/image')['message'] == 'no subscribers'
        assert other.status('/image')['level'] == '0'
        other.subscribe(COLOR)
        other.wait(lambda: publisher.get_subscription_count() == 1, 'a subscriber', node)
        other.exchange(publisher, picture(SIZE, 1), COLOR, node)
        other.unsubscribe(COLOR)
        other.wait(lambda: publisher.get_subscription_count() == 0, 'no subscriber', node)
        assert other.set_parameter('lazy', False, node) == (True, '')
        other.wait(lambda: publisher.get_subscription_count() == 1, 'a subscriber', node)


def test_cameras_share_the_engine_and_keep_their_own_figures(built, direct, other, tmp_path):
    with NodeProcess(tmp_path / 'log', cameras="['front', 'rear/left', 'dead']",
                     **built) as node:
        other.wait_for_state('active', node)
        publishers = {name: other.publisher(f'/{name}/image') for name in ('front', 'rear/left')}
        for seed, (name, publisher) in enumerate(publishers.items()):
            topic = f'/segmentation/{name}/class_mask'
            other.subscribe(topic)
            other.wait(publisher.get_subscription_count, 'a subscriber', node)
            image = picture((60 + seed, 100), seed)
            mask = other.exchange(publisher, image, topic, node)
            np.testing.assert_array_equal(pixels_of(mask), direct.segment(image).classes)
        other.wait(lambda: other.status('/dead/image').get('level') == '2', 'an error', node)
        assert other.status('/dead/image')['published'] == '0'
        assert 'no image' in other.status('/dead/image')['message']
        other.wait(lambda: all(int(other.status(f'/{name}/image')['published'])
                               for name in publishers), 'figures of both cameras', node)
        assert not other.messages[CLASS]


def test_compressed_images_are_decoded(built, direct, other, tmp_path):
    with NodeProcess(tmp_path / 'log', transport='compressed', arguments=(
            '-r', 'image:=/camera/image_raw'), **built) as node:
        other.wait_for_state('active', node)
        topic = '/camera/image_raw/compressed'
        publisher = other.publisher(topic, CompressedImage)
        other.subscribe(CLASS)
        other.wait_for_match(publisher, node, CLASS, task=topic)
        image = picture(SIZE, 5)
        for format_ in ('.png', '.jpg'):
            data = cv2.imencode(format_, image)[1].tobytes()
            stamp = other.now()
            publisher.publish(compressed_message(data, stamp, format_))
            mask = other.wait_for_mask(CLASS, stamp, node)
            seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            np.testing.assert_array_equal(pixels_of(mask), direct.segment(seen).classes)


def camera_info(size: tuple[int, int]) -> CameraInfo:
    """Return a pinhole camera's parameters."""
    height, width = size
    return CameraInfo(height=height, width=width, distortion_model='plumb_bob', d=[0.1] * 5,
                      k=[100., 0, 50, 0, 110., 30, 0, 0, 1], r=[1., 0, 0, 0, 1, 0, 0, 0, 1],
                      p=[100., 0, 50, -20, 0, 110., 30, 0, 0, 0, 1, 0])


@pytest.mark.parametrize('fit', ['stretch', 'letterbox', 'crop'])
def test_masks_at_network_size_have_a_matching_camera_info(fit, other, tmp_path):
    size = (96, 130)
    bundle = built_bundle(tmp_path / 'bundle', tmp_path / 'store', size=SIZE, fit=fit)
    with NodeProcess(tmp_path / 'log', bundle=bundle, store=tmp_path / 'store',
                     backend=BACKEND, precision='fp32', mask_size='network',
                     max_frame_age_ms=5000) as node:
        other.wait_for_state('active', node)
        publisher, infos = other.publisher(), other.publisher('/camera_info', CameraInfo)
        other.subscribe(CLASS)
        other.subscribe('/segmentation/camera_info', CameraInfo)
        other.wait_for_match(publisher, node, CLASS, '/segmentation/camera_info')
        other.wait(lambda: infos.get_subscription_count() > 0, 'a subscriber', node)
        infos.publish(camera_info(size))
        image = picture(size, 3)
        info = other.exchange(publisher, image, '/segmentation/camera_info', node)
        mask = other.wait_for_mask(CLASS, stamp_of(info), node)
        ratio = {'letterbox': min, 'crop': max}.get(fit)
        ratios = SIZE[0] / size[0], SIZE[1] / size[1]
        expected = SIZE if ratio is None else tuple(round(s * ratio(ratios)) for s in size)
        assert (mask.height, mask.width) == expected == (info.height, info.width)
        assert info.header == mask.header
        # A ray meets the image and the mask at the same place: pixel centers are at + 0.5.
        scale = np.array([expected[1] / size[1], expected[0] / size[0]])
        ray = np.array([0.3, -0.1, 1.0])
        in_image = (np.reshape(camera_info(size).k, (3, 3)) @ ray)[:2]
        in_mask = (np.reshape(info.k, (3, 3)) @ ray)[:2]
        np.testing.assert_allclose(in_mask, (in_image + 0.5) * scale - 0.5, atol=1e-9)
        # The network sees the same tensor as when the mask has the image's size.
        with direct_segmenter(bundle) as direct:
            whole = direct.segment(image).classes
        rows = np.floor((np.arange(size[0]) + 0.5) * expected[0] / size[0]).astype(int)
        columns = np.floor((np.arange(size[1]) + 0.5) * expected[1] / size[1]).astype(int)
        same = pixels_of(mask)[np.ix_(rows, columns)] == whole
        # There the CPU resizes the image, and a GPU's own resizing may differ by a step of uint8.
        assert same.all() if BACKEND == 'onnxruntime' else same.mean() > 0.95
        # And at the image's size, odd as it may be, from one frame to the next.
        assert other.set_parameter('mask_size', 'source', node) == (True, '')
        for odd in ((97, 131), (64, 129), (301, 77)):
            image = picture(odd, 4)
            with direct_segmenter(bundle) as direct:
                expected = direct.segment(image).classes
            mask = other.exchange(publisher, image, CLASS, node)
            np.testing.assert_array_equal(pixels_of(mask), expected)


@pytest.mark.parametrize('qos', [RELIABLE, BEST_EFFORT], ids=['reliable', 'best effort'])
def test_camera_info_is_heard_whatever_its_reliability(qos, built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', **built) as node:
        other.wait_for_state('active', node)
        publisher = other.publisher()
        infos = other.publisher('/camera_info', CameraInfo, qos)
        other.subscribe('/segmentation/camera_info', CameraInfo)
        other.wait_for_match(publisher, node, '/segmentation/camera_info')
        other.wait(lambda: infos.get_subscription_count() > 0, 'a subscriber', node)
        infos.publish(camera_info(SIZE))
        info = other.exchange(publisher, picture(SIZE, 1), '/segmentation/camera_info', node)
        assert list(info.k) == list(camera_info(SIZE).k)


@pytest.mark.parametrize(('reliability', 'qos'), [
    ('best_effort', RELIABLE), ('best_effort', BEST_EFFORT), ('reliable', RELIABLE)])
def test_reliability_can_be_given(reliability, qos, built, direct, other, tmp_path):
    with NodeProcess(tmp_path / 'log', reliability=reliability, **built) as node:
        other.wait_for_state('active', node)
        publisher = other.publisher(qos=qos)
        other.subscribe(CLASS)
        other.wait_for_match(publisher, node, CLASS)
        image = picture(SIZE, 1)
        mask = other.exchange(publisher, image, CLASS, node)
        np.testing.assert_array_equal(pixels_of(mask), direct.segment(image).classes)
        other.wait_for_reports()
        assert other.status('/image')['reliability'] == reliability


def test_qos_can_be_overridden_as_ros_has_it(built, other, tmp_path):
    latched = QoSProfile(depth=1, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
    with NodeProcess(tmp_path / 'log', arguments=(
            '-p', 'qos_overrides./image.subscription.reliability:=best_effort',
            '-p', f'qos_overrides.{COLOR}.publisher.durability:=transient_local'),
            **built) as node:
        other.wait_for_state('active', node)
        publisher = other.publisher(qos=RELIABLE)
        other.subscribe(CLASS)
        other.exchange(publisher, picture(SIZE, 1), CLASS, node)
        assert other.status('/image')['reliability'] == 'best_effort'
        other.subscribe(COLOR, qos=latched)
        other.exchange(publisher, picture(SIZE, 1), COLOR, node)
        assert node.log.count('there is none of this name') == 0


@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_cameras_whose_topics_are_exchanged_by_remapping(transport, built, other, tmp_path):
    suffix, kind = ('', Image) if transport == 'raw' else ('/compressed', CompressedImage)
    rules = ('-r', 'front/image:=/rear/image', '-r', 'rear/image:=/front/image')
    with NodeProcess(tmp_path / 'log', arguments=rules, cameras="['front', 'rear']",
                     transport=transport, **built) as node:
        other.wait_for_state('active', node)
        topic = f'/rear/image{suffix}'
        publisher = other.publisher(topic, kind)
        other.subscribe('/segmentation/front/class_mask')
        other.wait(publisher.get_subscription_count, 'a subscriber', node)
        image = picture(SIZE, 1)

        def sent():
            if transport == 'raw':
                other.send(publisher, image)
            else:
                data = cv2.imencode('.png', image)[1].tobytes()
                publisher.publish(compressed_message(data, other.now()))
            return other.messages['/segmentation/front/class_mask']

        other.wait(sent, 'a mask of the front camera', node)
        other.wait_for_reports()
        assert other.status(topic)['publishers'] == '1'
        assert other.status(f'/front/image{suffix}')['publishers'] == '0'


def test_camera_info_of_another_size_is_not_published(built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', **built) as node:
        other.wait_for_state('active', node)
        publisher, infos = other.publisher(), other.publisher('/camera_info', CameraInfo)
        other.subscribe(CLASS)
        other.subscribe('/segmentation/camera_info', CameraInfo)
        other.wait_for_match(publisher, node, CLASS, '/segmentation/camera_info')
        other.wait(lambda: infos.get_subscription_count() > 0, 'a subscriber', node)
        infos.publish(camera_info((10, 20)))
        infos.publish(camera_info(SIZE))
        info = other.exchange(publisher, picture(SIZE, 1), '/segmentation/camera_info', node)
        assert list(info.k) == list(camera_info(SIZE).k) and info.header.frame_id == 'camera'
        seen = len(other.messages['/segmentation/camera_info'])
        mask = other.exchange(publisher, picture((20, 20), 1), CLASS, node)
        other.exchange(publisher, picture(SIZE, 2), '/segmentation/camera_info', node)
        stamps = [stamp_of(m) for m in other.messages['/segmentation/camera_info'][seen:]]
        assert stamp_of(mask) not in stamps


def test_frames_older_than_allowed_are_dropped_by_the_clock_of_the_recording(built, other,
                                                                             tmp_path):
    second = 10**9
    options = {**built, 'max_frame_age_ms': 900}
    with NodeProcess(tmp_path / 'log', use_sim_time=True, **options) as node:
        other.wait_for_state('active', node)
        clock, publisher = other.publisher('/clock', Clock), other.publisher()
        other.subscribe(CLASS)
        other.subscribe('/diagnostics', DiagnosticArray)
        other.wait_for_match(publisher, node, CLASS)
        other.wait(lambda: other.messages['/diagnostics'], 'diagnostics', node)
        other.wait(lambda: clock.get_subscription_count() > 0, 'a clock subscriber', node)

        def at(now_ns: int, stamp_ns: int) -> None:
            message = Clock()
            message.clock.sec, message.clock.nanosec = divmod(now_ns, second)

            def come() -> bool:
                clock.publish(message)
                return stamp_of(other.messages['/diagnostics'][-1]) == now_ns

            # Both travel by ways of their own: what the node publishes tells that this one has.
            other.wait(come, 'the time', node)
            other.send(publisher, picture(SIZE, 1), stamp_ns=stamp_ns)

        count = lambda name: int(other.status('/image').get(name, 0))  # noqa: E731
        at(100 * second, 100 * second)
        other.wait_for_mask(CLASS, 100 * second, node)
        at(102 * second, 101 * second)
        other.wait(lambda: count('dropped_late_before_inference') == 1, 'a drop', node)
        at(103 * second, 103 * second)
        other.wait_for_mask(CLASS, 103 * second, node)
        # The recording begins anew: the clock jumps back, and frames go on.
        at(50 * second, 50 * second)
        other.wait_for_mask(CLASS, 50 * second, node)
        assert not other.masks_of(CLASS, 101 * second)
        assert count('foreign_stamp') == 0


def test_stamps_of_another_clock_are_counted_and_aged_from_arrival(built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', **built) as node:
        other.wait_for_state('active', node)
        publisher = other.publisher()
        other.subscribe(CLASS)
        other.wait_for_match(publisher, node, CLASS)
        for stamp in (0, 10**18, other.now() + 3600 * 10**9):
            other.send(publisher, picture(SIZE, 1), stamp_ns=stamp)
            other.wait_for_mask(CLASS, stamp, node)
        count = lambda name: int(other.status('/image').get(name, 0))  # noqa: E731
        other.wait(lambda: count('foreign_stamp') == 3, 'three foreign stamps', node)
        assert node.log.count('use_sim_time') == 1
        assert other.set_parameter('strict_stamps', True, node) == (True, '')
        other.send(publisher, picture(SIZE, 1), stamp_ns=7)
        other.wait(lambda: count('dropped_foreign_stamp') == 1, 'a drop', node)
        other.exchange(publisher, picture(SIZE, 1), CLASS, node)
        assert not other.masks_of(CLASS, 7)


def test_a_publisher_without_frames_is_warned_of(built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', **built) as node:
        other.wait_for_state('active', node)
        publisher = other.publisher()
        other.wait(lambda: 'no image came' in node.log, 'a warning', node)
        assert 'Fast DDS profile' in node.log
        other.wait(lambda: other.status('/image')['level'] == '2', 'an error', node)
        other.subscribe(CLASS)
        other.exchange(publisher, picture(SIZE, 1), CLASS, node)
        other.wait(lambda: other.status('/image')['level'] != '2', 'no error any more', node)
        other.wait(lambda: 'was heard before' in node.log, 'the end of images', node)


def test_frozen_and_black_images_are_noticed(built, other, tmp_path):
    with NodeProcess(tmp_path / 'log', warn_frozen_frames=3, warn_input_gap_ms=600000,
                     error_input_gap_ms=600000, error_dropped_share=1.0,
                     max_acceptable_consecutive_delay_ms=600_000, **built) as node:
        other.wait_for_state('active', node)
        publisher = other.publisher()
        other.subscribe(CLASS)
        other.wait_for_match(publisher, node, CLASS)
        black = np.zeros((*SIZE, 3), np.uint8)
        for _ in range(4):
            stamp = other.send(publisher, black)
            other.wait_for_mask(CLASS, stamp, node)
        message = lambda: other.status('/image').get('message', '')  # noqa: E731
        other.wait(lambda: 'frozen' in message() and 'black' in message(), 'a warning', node)
        assert other.status('/image')['level'] == '1'
        other.exchange(publisher, np.full((*SIZE, 3), 255, np.uint8), CLASS, node)
        other.wait(lambda: 'blown out' in message() and 'frozen' not in message(), 'it', node)
        other.exchange(publisher, picture(SIZE, 3), CLASS, node)
        other.wait(lambda: 'image is' not in message(), 'nothing of the image', node)
