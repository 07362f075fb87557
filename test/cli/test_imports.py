# SPDX-License-Identifier: Apache-2.0
"""What the package offers; a library that is of no use ends a command with a sentence."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys

import pytest

import trt_segmentation

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('module', ['cv2', 'numpy', 'yaml'])
@pytest.mark.parametrize('command', [
    ['build', 'bundle'], ['calibrate', 'bundle', '--images', 'drives'], ['inspect', 'bundle']])
def test_a_broken_library_is_named_with_what_to_do(module, command, tmp_path):
    (tmp_path / f'{module}.py').write_text('raise ImportError("built for another\\nworld")')
    (tmp_path / 'bundle').mkdir()
    path = os.pathsep.join(filter(None, (str(tmp_path), str(ROOT), os.environ.get('PYTHONPATH'))))
    run = subprocess.run([sys.executable, '-m', 'trt_segmentation', *command], cwd=tmp_path,
                         text=True, capture_output=True, env={**os.environ, 'PYTHONPATH': path})
    assert run.returncode == 2, run.stderr
    line, = run.stderr.splitlines()
    assert line.startswith(f'trt-segmentation {command[0]}: ')
    assert 'built for another' in line and 'trt-segmentation doctor' in line


def test_the_package_lists_what_people_import():
    names = [name for name in dir(trt_segmentation) if not name.startswith('_')]
    assert names == ['Segmenter', 'calibrate', 'open_segmenter']
