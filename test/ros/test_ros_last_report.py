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
