# SPDX-License-Identifier: Apache-2.0
"""A way down instead of silence, over real DDS: another engine serves, says so, and goes again."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='the node needs ROS')
from std_msgs.msg import String
from std_srvs.srv import Trigger
from support.ros import BACKEND, calibrated_bundle, direct_segmenter, picture
from support.ros_peer import NodeProcess, peer, pixels_of

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.build import build

pytestmark = pytest.mark.skipif(BACKEND != 'onnxruntime', reason='goes from one CPU engine to '
                                'another')
CLASS, STATUS = '/segmentation/class_mask', '/segmentation/status'
SIZE = (64, 128)
IMAGE = picture(SIZE, 3)


@pytest.fixture
def options(tmp_path):
    """Return the options of a node with a calibrated bundle and an empty store."""
    bundle = calibrated_bundle(tmp_path / 'bundle', SIZE)
    return {'bundle': bundle, 'store': tmp_path / 'store', 'backend': BACKEND,
            'max_frame_age_ms': 5000, 'shadow_period_s': 0.1, 'shadow_max_share': 0.5,
            'warn_live_agreement': 0.0, 'fallback': "['fp16', 'cpu']"}


def serving(other, node, publisher, precision: str):
    """Send frames until one comes back from an engine of this precision; return its status."""
    def found():
        stamp = other.send(publisher, IMAGE)
        other.spin(0.05)
        statuses = [json.loads(message.data) for message in other.messages[STATUS]]
        other.messages[STATUS].clear()
        return next((status for status in statuses if stamp and not status['validity']['late']
                     and status['engine']['precision'] == precision), None)

    return other.wait(found, f'masks of {precision}', node)


@pytest.mark.parametrize('off', ['shadow_period_s', 'shadow_max_share'])
def test_another_proven_engine_serves_until_the_wanted_one_is_there(off, options, tmp_path):
    build(Bundle.open(options['bundle']), backend=BACKEND, precision='fp32',
          store=options['store'])
    with NodeProcess(tmp_path / 'log', build_missing=False, **options) as node, peer() as other:
        publisher = other.publisher()
        other.subscribe(CLASS)
        other.subscribe(STATUS, String)
        status = serving(other, node, publisher, 'fp32')
        assert 'no proven int8 engine' in status['fallback'] and status['validity']['proven']
        mask = other.exchange(publisher, IMAGE, CLASS, node)
        with direct_segmenter(options['bundle']) as network:
            np.testing.assert_array_equal(pixels_of(mask),
                                          network.segment(IMAGE, ('classes',)).classes)
        # While it changes engines, and gives no masks, the level is another one.
        other.wait(lambda: other.status().get('level') == '1' and 'no proven int8 engine'
                   in other.status().get('fallback', ''), 'its reason', node)
        assert 'a fallback serves, fp32 of onnxruntime' in other.status()['message']
        answer = other.call(Trigger, '/segmentation/self_test', Trigger.Request(), node)
        assert answer.success and 'a fallback serves' in answer.message
        build(Bundle.open(options['bundle']), backend=BACKEND, precision='int8',
              store=options['store'])
        # It is looked for once a minute; asking for a configuration is quicker.
        assert other.set_parameter(off, 0.0, node)[0]
        other.wait(lambda: other.status().get('shadow') == 'off', 'no shadow', node)
        other.call(Trigger, '/segmentation/self_test', Trigger.Request(), node)
        assert serving(other, node, publisher, 'int8')['fallback'] is None
        other.wait(lambda: other.status().get('precision') == 'int8', 'diagnostics', node)
        assert 'fallback' not in other.status()


def test_masks_that_disagree_on_the_road_give_way_and_come_back(options, tmp_path):
    build(Bundle.open(options['bundle']), backend=BACKEND, precision='int8',
          store=options['store'])
    with NodeProcess(tmp_path / 'log', **options) as node, peer() as other:
        publisher = other.publisher()
        other.subscribe(STATUS, String)
        assert serving(other, node, publisher, 'int8')['fallback'] is None
        assert other.set_parameter('warn_live_agreement', 1.0, node)[0]
        status = serving(other, node, publisher, 'fp32')
        assert status['fallback'].startswith('live agreement')
        assert other.set_parameter('warn_live_agreement', 0.0, node)[0]
        assert serving(other, node, publisher, 'int8')['fallback'] is None
        assert 'it serves again' in node.log


def test_without_a_fallback_it_is_silent_and_says_why(options, tmp_path):
    del options['fallback']
    with NodeProcess(tmp_path / 'log', build_missing=False, **options) as node, peer() as other:
        other.wait_for_reason('no proven int8 engine', node)
        assert other.status()['level'] == '2' and other.status()['state'] == 'unconfigured'


@pytest.mark.parametrize('value', ["['int4']", "['cpu', 'cpu']"])
def test_what_is_no_fallback_ends_it_with_one_line(value, tmp_path):
    with NodeProcess(tmp_path / 'log', fallback=value) as node:
        assert node.wait() == 2
    assert 'fallback: found' in node.log and 'Traceback' not in node.log
