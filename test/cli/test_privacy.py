# SPDX-License-Identifier: Apache-2.0
"""
What the commands do on a machine besides their work: no host is asked, and no file is left.

The one exception is matplotlib's list of the machine's fonts, in its own cache directory.
"""

import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import onnx
import pytest
from support.networks import fcn

COMMANDS = """
init fcn.onnx bundle
calibrate bundle --images pictures --count 6 --golden 2
golden bundle --images pictures --count 2
build bundle --backend onnxruntime --store store
evaluate bundle --images pictures --backend onnxruntime --store store --output evaluation
benchmark bundle --backend onnxruntime --store store --output benchmark
inspect bundle
inspect bundle/calibration.cache
adopt bundle bundle/calibration.cache
seal bundle
doctor
"""
RUN = """
import sys
from trt_segmentation.cli import main
for line in sys.argv[1].strip().splitlines():
    code = main(line.split())
    assert code == 0 or line == 'doctor', (line, code)
"""
# The kernel's own, which are no files, and what a library writes to share memory.
FONTS = Path('.cache/matplotlib')
NO_FILES = ('/dev/null', '/dev/shm/', '/proc/')


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
    trace = top / 'trace'
    strace = shutil.which('strace')
    prefix = [strace, '-f', '--seccomp-bpf', '-qq', '-s', '200', '-o', str(trace), '-e',
              'trace=connect,sendto,sendmsg,sendmmsg,openat,open,creat,rename,renameat,renameat2'
              ] if strace else []
    variables = {name: value for name, value in os.environ.items()
                 if not name.startswith(('XDG_', 'ORT_', 'MPL'))}
    package = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*prefix, sys.executable, '-c', RUN, COMMANDS], cwd=work, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**variables, 'HOME': str(home), 'TMPDIR': str(work / 'tmp'),
             'PYTHONPATH': package, 'PYTHONDONTWRITEBYTECODE': '1'})
    assert done.returncode == 0, done.stdout[-3000:]
    return home, work, trace.read_text(errors='replace') if strace else None


def test_the_home_directory_stays_as_it_was(traced):
    home, work, _ = traced
    assert [str(path.relative_to(home)) for path in home.rglob('*')
            if path.is_file() and path.parent != home / FONTS] == []
    assert list((work / 'tmp').iterdir()) == []


def test_no_host_is_asked_and_no_file_written_outside_the_output(traced):
    home, work, trace = traced
    if trace is None:
        pytest.skip('needs strace')
    assert 'onnxruntime' in trace  # it has seen what it is to see
    asked = [line for line in trace.splitlines()
             if re.search(r'(connect|sendto|sendmsg|sendmmsg)\(', line)
             and re.search(r'AF_INET|htons\(53\)', line)]
    assert asked == []
    written = re.findall(r'open(?:at)?\([^"]*"([^"]*)", [A-Z_|]*(?:O_WRONLY|O_RDWR|O_CREAT)'
                         r'.*\) = \d', trace)
    outside = [path for path in written
               if not (work / path).is_relative_to(work) and not path.startswith(NO_FILES)
               and not Path(path).is_relative_to(home / FONTS)]
    assert outside == []
