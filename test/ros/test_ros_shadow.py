# SPDX-License-Identifier: Apache-2.0
"""The shadow check and what it keeps, over real DDS."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='the node needs ROS')
from mcap.reader import make_reader
from rclpy.qos import QoSProfile
from rosbags.typesys import get_typestore, Stores
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String
from support.ros import BACKEND, calibrated_bundle, direct_segmenter, picture
from support.ros_peer import compressed_message, NodeProcess, peer, pixels_of

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.build import build
from trt_segmentation.recordings import captures

CLASS, SHADOW = '/segmentation/class_mask', '/segmentation/shadow'
SIZE = (64, 128)
DEEP = QoSProfile(depth=100)


@pytest.fixture(scope='module')
def options(tmp_path_factory):
    """Return the options of a node with an INT8 engine, and no float one in its store."""
    path = tmp_path_factory.mktemp('int8')
    bundle = calibrated_bundle(path / 'bundle', SIZE)
    build(Bundle.open(bundle), backend=BACKEND, precision='int8', store=path / 'store')
    return {'bundle': bundle, 'store': path / 'store', 'backend': BACKEND,
            'max_frame_age_ms': 5000, 'shadow_backend': 'onnxruntime', 'shadow_period_s': 0.2,
            'shadow_max_share': 0.5}


def test_served_frames_are_compared_with_the_float_network(options, tmp_path):
    with NodeProcess(tmp_path / 'log', **options) as node, peer() as other, \
            direct_segmenter(options['bundle']) as network:
        publisher = other.publisher()
        other.subscribe(CLASS, qos=DEEP)
        other.subscribe(SHADOW, String, qos=DEEP)
        other.wait_for_state('active', node)
        other.wait_for_match(publisher, node, CLASS)
        images = {}

        def checked():
            images[other.send(publisher, picture(SIZE, len(images)))] = picture(SIZE, len(images))
            other.spin(0.05)
            return len(other.messages[SHADOW]) >= 7

        other.wait(checked, 'seven checks', node)
        reports = [json.loads(message.data) for message in other.messages[SHADOW]]
        for report in reports:
            stamp = report['stamp']['sec'] * 10**9 + report['stamp']['nanosec']
            mask = pixels_of(other.wait_for_mask(CLASS, stamp, node))
            expected = network.segment(images[stamp], ('classes',)).classes
            assert report['agreement'] == pytest.approx((mask == expected).mean(), abs=1e-6)
            assert report['camera'] == '/image' and report['captured'] == []
            assert report['engine']['precision'] == 'int8'
            assert report['reference']['precision'] == 'fp32'
        node_status = other.wait(
            lambda: int(other.status().get('live_agreement_frames', 0)) >= len(reports)
            and other.status(), 'figures', node)
        assert float(node_status['live_agreement_worst']) <= min(
            report['agreement'] for report in reports) + 1e-3
        assert 0 <= float(node_status['live_agreement_p50']) <= 1
        assert node_status['live_agreement_by_class']
        limit = float(node_status['live_agreement'])
        for asked, warned in ((min(1.0, limit + 0.02), limit < 1), (0.0, False)):
            assert other.set_parameter('warn_live_agreement', asked, node)[0]
            other.wait_for_reports()
            assert ('live agreement' in other.status()['message']) == warned
        assert other.set_parameter('shadow_period_s', 0.0, node)[0]
        other.wait(lambda: other.status().get('shadow') == 'off', 'off', node)


@pytest.mark.parametrize('transport', ['raw', 'compressed'])
def test_a_frame_that_disagrees_is_kept_as_it_came_and_once(transport, options, tmp_path):
    ring = tmp_path / 'ring'
    with NodeProcess(tmp_path / 'log', capture_directory=ring, capture_agreement=1.0,
                     capture_min_free_mb=0, transport=transport, **options) as node, \
            peer() as other:
        topic = '/image' if transport == 'raw' else '/image/compressed'
        kind = {} if transport == 'raw' else {'message_type': CompressedImage}
        publisher = other.publisher(topic, **kind)
        other.subscribe(SHADOW, String, qos=DEEP)
        other.wait_for_state('active', node)
        other.wait(publisher.get_subscription_count, 'a subscriber', node)
        image = picture(SIZE, 3)
        png = cv2.imencode('.png', image)[1].tobytes()

        def captured():
            if transport == 'raw':
                other.send(publisher, image)
            else:
                publisher.publish(compressed_message(png, other.now()))
            other.spin(0.05)
            return (other.status().get('captured_frames') == '1'
                    and int(other.status().get('captured_duplicates', 0)) >= 2)

        other.wait(captured, 'one frame, and duplicates', node)
        reports = [json.loads(message.data) for message in other.messages[SHADOW]]
        report = next(report for report in reports if report['captured'])
        assert 'agreement' in report['captured']
    (path,) = ring.glob('*.mcap')
    captures.mend(path)  # the process does not wait long for a check that runs at its end
    types, found = get_typestore(Stores.LATEST), {}
    with path.open('rb') as stream:
        for schema, channel, message in make_reader(stream).iter_messages():
            found[channel.topic] = types.deserialize_cdr(message.data, schema.name)
    message = found[topic]
    if transport == 'raw':
        np.testing.assert_array_equal(message.data.reshape(image.shape), image)
    else:
        assert message.data.tobytes() == png
    figures = json.loads(found['/segmentation/capture'].data)
    assert figures['stamp']['sec'] == message.header.stamp.sec == report['stamp']['sec']
    assert figures['engine'] == report['engine'] and len(figures['bundle_sha256']) == 64
    assert len(figures['cache_sha256']) == 64
    masks = [cv2.imdecode(found[f'{CLASS}{part}/compressed'].data, cv2.IMREAD_UNCHANGED)
             for part in ('', '/float')]
    assert (masks[0] == masks[1]).mean() == pytest.approx(figures['agreement'], abs=1e-6)


def test_a_directory_that_cannot_be_written_is_said_and_stops_nothing(options, tmp_path):
    (tmp_path / 'file').write_text('')
    with NodeProcess(tmp_path / 'log', capture_directory=tmp_path / 'file/ring',
                     capture_agreement=1.0, **options) as node, peer() as other:
        publisher = other.publisher()
        other.subscribe(CLASS)
        other.wait_for_state('active', node)

        def said():
            other.send(publisher, picture(SIZE, 3))
            other.spin(0.05)
            return 'cannot be written' in other.status().get('message', '')

        other.wait(said, 'a warning', node)
        assert other.status()['level'] == '1'
        other.exchange(publisher, picture(SIZE, 4), CLASS, node)


def test_a_float_engine_has_no_shadow(options, tmp_path):
    build(Bundle.open(options['bundle']), backend=BACKEND, precision='fp32',
          store=options['store'])
    with NodeProcess(tmp_path / 'log', precision='fp32', **options) as node, peer() as other:
        other.wait_for_state('active', node)
        other.wait(lambda: 'float network' in other.status().get('shadow', ''), 'its state', node)
        assert 'live_agreement' not in other.status()
