# SPDX-License-Identifier: Apache-2.0
"""Whoever reads diagnostics hears that a node was asked to end, whatever it did just then."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip('rclpy', reason='the node needs ROS')
from diagnostic_msgs.msg import DiagnosticStatus
from support.ros_peer import peer

from trt_segmentation.ros.diagnostics import Reporter


def test_who_is_asked_to_end_while_a_report_is_made_reports_once_more():
    made = []

    def statuses():
        if not made:
            ending = threading.Thread(target=reporter.stop, args=(0,))
            ending.start()
            ending.join()
        made.append(DiagnosticStatus.STALE if made else DiagnosticStatus.OK)
        return [DiagnosticStatus(level=made[-1], name='segmentation: node')]

    with peer() as other:
        reporter = Reporter(other.node, statuses)
        reporter.soon()
        other.wait(lambda: other.status().get('level') == '3', 'the last report')
        reporter.stop(10)
    assert made == [DiagnosticStatus.OK, DiagnosticStatus.STALE]


def test_a_report_over_a_topic_that_is_destroyed_just_then_is_no_error(capfd):
    with peer() as other:
        publisher, made = other.publisher('/gone'), []

        def statuses():
            made.append(True)
            if len(made) == 1:
                other.node.destroy_publisher(publisher)
                publisher.get_subscription_count()
            return [DiagnosticStatus(name='segmentation: node')]

        reporter = Reporter(other.node, statuses)
        reporter.soon()
        other.wait(other.status, 'the next report')
        reporter.stop(10)
    assert len(made) >= 2 and 'ERROR' not in capfd.readouterr().err
