# SPDX-License-Identifier: Apache-2.0
"""What the commands do on a machine besides their work: no host is asked, and no file is left."""

import os
from pathlib import Path
from pkgutil import iter_modules
import subprocess
import sys

import cv2
import numpy as np
import onnx
import pytest
from support.networks import fcn
from support.strace import asked, STRACE, written

from trt_segmentation import cli
from trt_segmentation.recordings import bags

COMMANDS = """
init fcn.onnx bundle
preview bundle --images pictures --output preview.png
calibrate bundle --images pictures --count 6 --golden 2
golden bundle --images pictures --count 2
build bundle --backend onnxruntime --store store
evaluate bundle --images pictures --backend onnxruntime --store store --output evaluation
benchmark bundle --backend onnxruntime --store store --output benchmark
replay bundle --bag bag --backend onnxruntime --store store --output masks --record-golden golden
replay bundle --bag bag --backend onnxruntime --store store --golden golden --report replay.html
export bundle --for tensorrt-10 --output exported
inspect bundle
inspect bundle/calibration.cache
adopt bundle exported/calibration.cache
seal bundle
doctor
"""
# Each in a process of its own: what one switches off must not keep another one quiet. How well
# noise through random weights keeps its classes in INT8 is a matter of the CPU, and of no test.
RUN = """
import pathlib, subprocess, sys
for line in sys.argv[1].strip().splitlines():
    code = subprocess.run([sys.executable, '-m', 'trt_segmentation', *line.split()]).returncode
    assert code == 0 or line == 'doctor', (line, code)
    if line.startswith('init'):
        contract = pathlib.Path('bundle/model.yaml')
        contract.write_text(contract.read_text().replace(
            'min_agreement: 0.95', 'min_agreement: 0.5').replace(
            'min_class_agreement: 0.8', 'min_class_agreement: 0'))
"""


def test_every_command_is_among_them_but_the_demo_which_runs_these():
    assert {line.split()[0] for line in COMMANDS.strip().splitlines()} | {'demo'} == {
        module.name for module in iter_modules(cli.__path__)}


@pytest.fixture(scope='module')
def traced(tmp_path_factory):
    """Run every command once under strace; return the home, the place for output, the trace."""
    top = tmp_path_factory.mktemp('privacy')
    home, work = top / 'home', top / 'work'
    for directory in (home, work, work / 'tmp', work / 'pictures'):
        directory.mkdir()
    onnx.save(fcn(), work / 'fcn.onnx')
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 8, 3), np.uint8)
        cv2.imwrite(str(work / 'pictures' / f'{i}.png'), cv2.resize(pixels, (64, 32)))
    with bags.Writer(work / 'bag') as writer:
        for i in range(2):
            writer.write_image('/c/image', cv2.imread(str(work / f'pictures/{i}.png')), 'bgr8',
                               i + 1, 'c')
    trace = top / 'trace'
    variables = {name: value for name, value in os.environ.items()
                 if not name.startswith(('XDG_', 'ORT_', 'MPL'))}
    package = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*STRACE, *[str(trace)] * bool(STRACE), sys.executable, '-c', RUN, COMMANDS], cwd=work,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**variables, 'HOME': str(home), 'TMPDIR': str(work / 'tmp'),
             'PYTHONPATH': package, 'PYTHONDONTWRITEBYTECODE': '1'})
    assert done.returncode == 0, done.stdout[-3000:]
    return home, work, trace.read_text(errors='replace') if STRACE else None


def test_the_home_directory_stays_as_it_was(traced):
    home, work, _ = traced
    assert list(home.iterdir()) == []
    assert list((work / 'tmp').iterdir()) == []


def test_no_host_is_asked_and_no_file_written_outside_the_output(traced):
    _, work, trace = traced
    if trace is None:
        pytest.skip('needs strace')
    assert 'onnxruntime' in trace  # it has seen what it is to see
    assert asked(trace) == []
    paths = [Path(os.path.normpath(work / path)) for path in written(trace)]
    assert paths and [path for path in paths if not path.is_relative_to(work)] == []
