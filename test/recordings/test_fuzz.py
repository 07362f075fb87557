# SPDX-License-Identifier: Apache-2.0
"""Damaged recordings, pictures and messages at random; `make audit` tries many more."""

from pathlib import Path
import subprocess
import sys

import pytest

AUDIT = Path(__file__).parents[1] / 'audit/recordings.py'


def test_no_damage_is_an_error_of_another_kind_or_takes_the_memory():
    pytest.importorskip('simplejpeg')
    # In a process of its own, whose memory is limited.
    done = subprocess.run([sys.executable, str(AUDIT), '--trials', '120'], capture_output=True,
                          text=True, cwd=AUDIT.parents[2])
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].endswith(' 0 failures')
    assert int(done.stdout.splitlines()[-1].split()[0]) > 360
