# SPDX-License-Identifier: Apache-2.0
"""What is run by hand says what it is for, or what it lacks, on a machine with the core alone."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from trt_segmentation.errors import install

ROOT = Path(__file__).parents[2]
# What `pip install .` alone does not bring.
MISSING = ('onnx', 'onnxruntime', 'matplotlib', 'PIL', 'jinja2', 'tqdm', 'rosbags', 'mcap',
           'rclpy', 'rosgraph_msgs', 'sensor_msgs', 'diagnostic_msgs', 'tensorrt', 'pycuda',
           'torch', 'openvino', 'nncf')
ALONE = f'import runpy, sys; sys.modules.update(dict.fromkeys({MISSING!r})); '


def run(code: str, **options) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    return subprocess.run([sys.executable, '-c', ALONE + code], text=True, capture_output=True,
                          env={**os.environ, 'PYTHONPATH': path}, **options)


def by_hand(words: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a directory, whose modules come first."""
    path = os.pathsep.join([str(directory), str(ROOT), *sys.path])
    return subprocess.run([sys.executable, *words], text=True, capture_output=True, cwd=directory,
                          env={**os.environ, 'PYTHONPATH': path})


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


@pytest.mark.parametrize('script, words, lacks', [
    ('benchmarks/pipeline.py', [], install('cpu')),
    ('benchmarks/segments.py', [], "no module 'rclpy'"),
    ('benchmarks/calibration_peers.py', ['nncf', 'fast', 'm', 'i', 'images.npy', 'o'],
     'pip install nncf'),
    ('training/train.py', [], install('cpu,train')),
    ('training/from_openvino.py', [], 'pip install openvino'),
    ('trt_segmentation/demo/player.py', [], install('ros')),
    ('trt_segmentation/demo/recorder.py', [], install('ros')),
    ('trt_segmentation/ros/replaying.py', [], install('ros')),
])
def test_a_script_names_in_a_line_what_it_lacks(script, words, lacks, tmp_path):
    np.save(tmp_path / 'images.npy', [])
    path = ROOT / script
    done = run(f"""
sys.path.insert(0, {str(path.parent)!r})
sys.argv = {[str(path), *words]!r}
runpy.run_path({str(path)!r}, run_name='__main__')
""", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f'{path.stem}: ') and lacks in line
    assert 'Traceback' not in done.stderr


def test_help_that_lacks_a_library_says_at_least_what_the_script_is_for(tmp_path):
    (tmp_path / 'rclpy.py').write_text('raise ModuleNotFoundError("gone", name="rclpy")')
    done = by_hand(['-m', 'trt_segmentation.demo.player', '--help'], tmp_path)
    assert done.returncode == 2 and install('ros') in done.stderr
    assert done.stdout.startswith("Publish a camera's images of a recording")


@pytest.mark.parametrize('line, said', [
    ('cpu.py --bundles nix', 'nix: No such file or directory'),
    ('pictures.py nix.jpg', 'nix.jpg: No such file or directory'),
    ('node.py --bundle nix', 'nix: no such bundle directory'),
    ('pipeline.py --frames 0', 'argument --frames: found 0, expected 1 or more'),
])
def test_a_script_refuses_in_a_line_what_it_is_given(line, said, tmp_path):
    script, *words = line.split()
    done = by_hand([str(ROOT / 'benchmarks' / script), *words], tmp_path)
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr


def test_a_fault_of_a_script_keeps_its_traceback():
    done = run("""
from trt_segmentation.system import scripts
scripts.end_in_a_line()
raise ValueError('a fault')
""")
    assert done.returncode == 1
    assert 'Traceback' in done.stderr and done.stderr.endswith('ValueError: a fault\n')
