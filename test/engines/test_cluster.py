# SPDX-License-Identifier: Apache-2.0
"""What is said of a Dask cluster; test/fleet has one."""

import shlex

import pytest

from trt_segmentation.engines.cluster import worker_command


@pytest.mark.parametrize(('address', 'words'), [
    ('tcp://host:8786', ['tcp://host:8786']),
    ('/mein Platz/scheduler.json', ['--scheduler-file', '/mein Platz/scheduler.json'])])
def test_the_command_that_starts_a_worker_can_be_typed(address, words):
    """As docs/fleet.md and `dask worker --help` have it."""
    assert shlex.split(worker_command(address)) == ['dask', 'worker', *words, '--nthreads', '1']
