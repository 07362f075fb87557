# SPDX-License-Identifier: Apache-2.0
"""What the command line says and returns whatever it is given, and wherever it prints to."""

import subprocess
import sys

import pytest
from support.networks import fcn, write_bundle

RUN = [sys.executable, '-m', 'trt_segmentation']


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / 'bundle', fcn())


@pytest.mark.parametrize('words, unbuffered', [
    (['BUNDLE', '--format', 'json'], ''), (['BUNDLE'], ''), (['BUNDLE'], '1'), (['--help'], '')])
def test_a_full_output_is_said_in_one_line(bundle, words, unbuffered, monkeypatch):
    monkeypatch.setenv('PYTHONUNBUFFERED', unbuffered)
    words = ['inspect', *(str(bundle) if word == 'BUNDLE' else word for word in words)]
    with open('/dev/full', 'w') as full:
        done = subprocess.run([*RUN, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.stderr == ('trt-segmentation inspect: standard output cannot be written: '
                           'No space left on device\n')
    assert done.returncode == 2


def test_a_closed_output_is_no_error(bundle):
    done = subprocess.run(['sh', '-c', '"$@" >&-', 'sh', *RUN, 'inspect', str(bundle)],
                          stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, '')
