# SPDX-License-Identifier: Apache-2.0
"""What each mask carries with it, as a consumer checks it, over real DDS."""

from __future__ import annotations

import json
from pathlib import Path
import re
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='the node needs ROS')
from rclpy.duration import Duration
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from std_msgs.msg import String
from support.ros import picture
from support.ros_peer import NodeProcess, peer, pixels_of, stamp_of

from trt_segmentation.bundles.labels import CITYSCAPES
from trt_segmentation.engines.evidence import Evidence
from trt_segmentation.engines.record import Acceptance, Frame

ROOT = Path(__file__).parents[2]
CLASS, STATUS = '/segmentation/class_mask', '/segmentation/status'
SIZE = (64, 128)


def consumer():
    """Return the ten lines of the documentation."""
    code = next(block for block in re.findall(
        r'```python\n(.*?)```', (ROOT / 'docs/node.md').read_text(), re.DOTALL)
        if 'def objection' in block)
    assert len([line for line in code.splitlines()
                if line.strip() and '"""' not in line and 'import' not in line]) <= 10
    names: dict = {}
    exec(code, names)
    return names['objection']


def stamp_in(status) -> int:
    return status['stamp']['sec'] * 10**9 + status['stamp']['nanosec']


def test_a_consumer_checks_each_mask_with_the_lines_of_the_documentation(built, tmp_path):
    objection = consumer()
    deep = QoSProfile(depth=100, reliability=QoSReliabilityPolicy.RELIABLE)
    with NodeProcess(tmp_path / 'log', **built) as node, peer() as other:
        publisher = other.publisher()
        other.subscribe(CLASS, qos=deep)
        other.subscribe(STATUS, String, qos=deep)
        other.wait_for_state('active', node)
        other.wait_for_match(publisher, node, CLASS, 'status')

        def statuses():
            return {stamp_in(status): status for status in (
                json.loads(message.data) for message in other.messages[STATUS])}

        pairs = []
        for seed in range(4):
            mask = other.exchange(publisher, picture(SIZE, seed), CLASS, node)
            stamp = stamp_of(mask)
            pairs.append((mask, other.wait(lambda stamp=stamp: statuses().get(stamp), 'status',
                                           node)))
        found = sorted(statuses().values(), key=stamp_in)
        numbers = [status['sequence'] for status in found]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        record = json.loads(next(built['store'].glob('*/record.json')).read_text())
        known = record['acceptance']['unproven_classes']
        names = {label.name: label.train_id for label in CITYSCAPES.classes}
        for mask, status in pairs:
            assert objection(mask, status, status['sequence'] - 1) == ''
            assert status['engine'] == {'key': record['key'], 'precision': 'fp32'}
            assert status['camera'] == '/image' and status['frame_id'] == 'camera'
            assert not status['validity']['late'] and status['fallback'] is None
            assert not status['validity']['foreign_stamp']
            pixels = pixels_of(mask)
            assert status['validity']['unproven_classes'] == {
                name: pytest.approx((pixels == names[name]).mean(), abs=1e-6)
                for name in known if (pixels == names[name]).any()}
            assert status['stage_ms']['inference'] >= 0 and status['stage_ms']['total'] >= 0
            assert len(json.dumps(status)) < 2000
        (first, one), (second, two) = pairs[:2]
        assert 'another frame' in objection(first, two, None)
        assert 'lost' in objection(second, two, two['sequence'] - 3)
        second.data[7] ^= 1
        assert 'pixels' in objection(second, two, None)
        assert 'unproven' in objection(first, {**one, 'validity': {'proven': False}}, None)


def test_a_frame_whose_mask_would_be_late_says_so(built, tmp_path):
    options = {**built, 'max_frame_age_ms': 1}
    with NodeProcess(tmp_path / 'log', **options) as node, peer() as other:
        publisher = other.publisher()
        other.subscribe(STATUS, String)
        other.wait_for_state('active', node)
        other.wait_for_match(publisher, node, 'status')

        def late():
            other.send(publisher, picture(SIZE, 1), stamp_ns=other.now() - 10**9)
            return other.messages[STATUS]

        status = json.loads(other.wait(late, 'a status', node)[0].data)
        assert status['validity']['late'] and status['crc32'] is None
        assert not status['validity']['foreign_stamp']


def test_a_stamp_of_another_clock_is_not_called_late(built, tmp_path):
    with NodeProcess(tmp_path / 'log', **built) as node, peer() as other:
        publisher = other.publisher()
        other.subscribe(STATUS, String)
        other.wait_for_state('active', node)
        other.wait_for_match(publisher, node, 'status')

        def status_of(stamp):
            other.send(publisher, picture(SIZE, 1), stamp_ns=stamp)
            return next((status for status in (
                json.loads(message.data) for message in other.messages[STATUS])
                if stamp_in(status) == stamp and not status['validity']['late']), None)

        served = other.wait(lambda: status_of(7), 'a status', node)
        assert served['validity']['foreign_stamp'] and served['crc32'] is not None
        assert other.set_parameter('strict_stamps', True, node) == (True, '')
        dropped = other.wait(lambda: status_of(8), 'another one', node)
        assert dropped['validity']['foreign_stamp'] and dropped['crc32'] is None
        assert dropped['stage_ms'] == {}


def test_a_subscriber_s_deadline_is_offered_and_one_that_is_missed_is_counted(built, tmp_path):
    asked = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                       deadline=Duration(seconds=2), liveliness_lease_duration=Duration(seconds=2))
    with NodeProcess(tmp_path / 'log', mask_deadline_ms=500, **built) as node, peer() as other:
        publisher = other.publisher()
        other.subscribe(CLASS, qos=asked)
        other.wait_for_state('active', node)
        other.wait_for_match(publisher, node, CLASS)
        other.exchange(publisher, picture(SIZE, 1), CLASS, node)
        # Then no image comes any more.
        other.wait(lambda: int(other.status('/image')['mask_deadlines_missed']) > 0,
                   'a missed deadline', node)
        assert other.status('/image')['incompatible_subscribers'] == '0'
        other.unsubscribe(CLASS)
        tighter = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                             deadline=Duration(nanoseconds=10**7))
        other.subscribe(CLASS, qos=tighter)
        other.wait(lambda: int(other.status('/image')['incompatible_subscribers']) > 0,
                   'an incompatible subscriber', node)


def test_without_a_record_nothing_is_proven():
    classes = np.zeros((2, 4), np.uint8)
    classes[0, 0] = CITYSCAPES.classes[3].train_id
    status = json.loads(Evidence(None, CITYSCAPES, 'why').status('/a', 3, 5 * 10**9 + 7, 'f',
                                                                classes, low_margin=(0.5, 2)))
    assert status['engine'] is None and not status['validity']['proven']
    assert status['validity']['unproven_classes'] == {
        CITYSCAPES.classes[0].name: 7 / 8, CITYSCAPES.classes[3].name: 1 / 8}
    assert status['stamp'] == {'sec': 5, 'nanosec': 7} and status['fallback'] == 'why'
    assert status['validity']['low_margin'] == {'share': 0.5, 'age_s': 2.0}


@pytest.mark.parametrize('pixels, proven', [
    ({'road': 500, 'sky': 499, 'car': 1}, True), ({'road': 999, 'sky': 1, 'car': 0}, False)])
def test_golden_frames_of_one_class_prove_nothing(pixels, proven):
    accepted = SimpleNamespace(key='k', precision='int8', acceptance=Acceptance(
        1.0, {'road': 1.0}, 1.0, frames=(Frame('000', ''),), pixels=pixels))
    status = json.loads(Evidence(accepted, CITYSCAPES).status(
        '/a', 0, 0, 'f', np.zeros((2, 4), np.uint8)))
    assert status['validity']['proven'] is proven
