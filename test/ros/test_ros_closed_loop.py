# SPDX-License-Identifier: Apache-2.0
"""Once around the closed loop, over real DDS, with a network small enough for a test."""

from __future__ import annotations

from pathlib import Path
import sys

import pytest

pytest.importorskip('rclpy', reason='the node needs ROS')
from support.ros import BACKEND
from support.ros_peer import environ

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))
from closed_loop import LIMIT, PARTS, run  # noqa: E402


@pytest.mark.skipif(BACKEND != 'onnxruntime', reason='the loop is driven on the CPU')
def test_a_night_that_the_calibration_never_saw_is_noticed_kept_and_learned(tmp_path):
    figures = run(tmp_path, environ(), (128, 256), 16, 6)
    _, dark = PARTS
    assert figures['failures'] == []
    assert figures['second'][dark]['agreement'] > LIMIT > figures['first'][dark]['agreement'] + 0.1
    added = figures['extension']['sets'][-1]
    assert added['agreement_after'] > added['agreement_before'] + 0.1
    assert figures['extension']['images_added'] >= 4
