# SPDX-License-Identifier: Apache-2.0
"""The cores that a process may use: those that the system leaves it, and no others."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from trt_segmentation.system import cores

OPEN = """
import re
from pathlib import Path
from support.networks import fcn
from trt_segmentation.networks.session import Session
session = Session(fcn().SerializeToString())
for status in Path('/proc/self/task').glob('*/status'):
    print(re.search(r'Cpus_allowed_list:\\s*(\\S+)', status.read_text())[1])
"""


def test_a_session_keeps_to_the_cores_that_it_may_use():
    """As the kernel tells of each thread, which is what `taskset` and containers are for."""
    first = min(os.sched_getaffinity(0))
    done = subprocess.run([sys.executable, '-c', OPEN], stdout=subprocess.PIPE, text=True,
                          check=True,
                          preexec_fn=lambda: os.sched_setaffinity(0, {first}),
                          env={**os.environ, 'PYTHONPATH': os.pathsep.join(
                              [str(Path(__file__).parents[1]), *sys.path])})
    assert set(done.stdout.split()) == {str(first)}


@pytest.mark.parametrize('files, expected', [
    ({}, 64), ({'cpu.max': 'max 100000\n'}, 64), ({'cpu.max': '150000 100000\n'}, 2),
    ({'cpu.max': '1000 100000\n'}, 1), ({'cpu.max': 'rubbish'}, 64),
    ({'cpu/cpu.cfs_quota_us': '-1\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 64),
    ({'cpu/cpu.cfs_quota_us': '300000\n', 'cpu/cpu.cfs_period_us': '100000\n'}, 3)])
def test_a_container_s_share_of_time_counts(tmp_path, monkeypatch, files, expected):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cores, '_CGROUP', tmp_path)
    monkeypatch.setattr(cores, '_taken', 0)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(64)))
    monkeypatch.setattr(os, 'cpu_count', lambda: 64)
    assert cores.cores() == expected
    assert cores.threads() == (0 if expected == 64 else expected)
