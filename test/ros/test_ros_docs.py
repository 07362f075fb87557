# SPDX-License-Identifier: Apache-2.0
"""The page for the integrator says what the code says."""

from __future__ import annotations

from pathlib import Path
import re

import pytest

pytest.importorskip('rclpy', reason='the parameters are of a ROS node')

from trt_segmentation.recordings.limits import CAUSES
from trt_segmentation.ros import outputs
from trt_segmentation.ros.parameters import markdown_table

PAGE = Path(__file__).parents[2] / 'docs/node.md'


def test_the_table_of_parameters_is_the_codes():
    """Make it anew with: python -m trt_segmentation.ros.parameters."""
    found = re.search(r'ros\.parameters -->\n(.*)<!-- end -->', PAGE.read_text(), re.DOTALL)
    assert found.group(1) == markdown_table()


@pytest.mark.parametrize('name', [
    *(f'~/{topic}' for topic in outputs._TYPES), '~/shadow', '~/labels', '~/label_info',
    '~/self_test'])
def test_topics_and_services_are_named(name):
    assert f'| `{name}`' in PAGE.read_text()


@pytest.mark.parametrize('cause', CAUSES)
def test_causes_are_named(cause):
    assert f'`{cause}`' in PAGE.read_text()
