# SPDX-License-Identifier: Apache-2.0
"""What is run by hand says what it is for, or what it lacks, on a machine with the core alone."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys

from trt_segmentation.errors import install

ROOT = Path(__file__).parents[2]
# What `pip install .` alone does not bring.
MISSING = ('onnx', 'onnxruntime', 'matplotlib', 'PIL', 'jinja2', 'tqdm', 'rosbags', 'mcap',
           'rclpy', 'rosgraph_msgs', 'sensor_msgs', 'tensorrt', 'pycuda')
ALONE = f'import runpy, sys; sys.modules.update(dict.fromkeys({MISSING!r})); '


def run(code: str, **options) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    return subprocess.run([sys.executable, '-c', ALONE + code], text=True, capture_output=True,
                          env={**os.environ, 'PYTHONPATH': path}, **options)


def test_every_benchmark_shows_its_help():
    scripts = [path for path in sorted((ROOT / 'benchmarks').glob('*.py'))
               if 'ArgumentParser(' in path.read_text()]
    assert len(scripts) > 15
    done = run(f"""
sys.path.insert(0, {str(ROOT / 'benchmarks')!r})
for script in {[*map(str, scripts)]!r}:
    sys.argv = [script, '--help']
    try:
        runpy.run_path(script, run_name='__main__')
    except SystemExit as ended:
        assert ended.code == 0, script
""")
    assert done.returncode == 0, done.stderr
    for script in scripts:
        assert f'usage: {script.name} ' in done.stdout


def test_the_player_names_what_it_lacks():
    done = run("runpy.run_module('trt_segmentation.demo.player', run_name='__main__')")
    assert done.returncode == 2
    line, = done.stderr.splitlines()
    assert line.startswith("player: no module 'rclpy' is found by ") and install('ros') in line
