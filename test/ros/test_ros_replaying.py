# SPDX-License-Identifier: Apache-2.0
"""When replay.launch.py's session takes a recording to be through."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='the session belongs to ROS')
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from trt_segmentation.ros import replaying

ENDED = SimpleNamespace(poll=lambda: 0, returncode=0)


def report(received, published, **dropped):
    """Return what the node says of its camera."""
    values = {'received': received, 'published': published, **dropped}
    return DiagnosticArray(status=[DiagnosticStatus(name='segmentation: /camera', values=[
        KeyValue(key=key, value=str(value)) for key, value in values.items()])])


@pytest.mark.parametrize('reports', [
    [(5, 4), (5, 4), (5, 4), (5, 4), (5, 5), (5, 5)],  # a frame of several seconds
    [(4, 3), (4, 4), (5, 4), (5, 5), (5, 5)],  # the last one waited for it
    [(8, 5, 2), (8, 5, 3), (8, 5, 3)],
    [(0, 0), (0, 0)],
])
def test_a_replay_is_through_when_each_frame_has_its_end(reports, monkeypatch):
    heard, coming = [], [report(*counts[:2], dropped_replaced=sum(counts[2:]))
                         for counts in reports]
    node = SimpleNamespace(create_subscription=lambda _, topic, callback, __: heard.append(
        callback))
    monkeypatch.setattr(replaying.rclpy, 'spin_once', lambda *_, **__: heard[0](coming.pop(0)))
    monkeypatch.setattr(replaying.subprocess, 'Popen', lambda _: ENDED)
    session = replaying.Session(node, '/segmentation')
    for _ in range(2):  # what was said before the end of playing says nothing
        heard[0](report(3, 3))
    session.play('bag', '1.0', '0', ['/camera'], SimpleNamespace(poll=lambda: None))
    assert not coming
