# SPDX-License-Identifier: Apache-2.0
"""What the command line says and returns whatever it is given, and wherever it prints to."""

import subprocess
import sys

import pytest
from support.networks import fcn, write_bundle

from trt_segmentation.cli import main

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


@pytest.mark.parametrize('line, usage, message', [
    ('calibrate rb --images val --cout 3', 'trt-segmentation calibrate ',
     'no option --cout; did you mean --count?'),
    ('calibrate rb --imges val', 'trt-segmentation calibrate ',
     'no option --imges; did you mean --images?'),
    ('calibrate rb --imges=val', 'trt-segmentation calibrate ',
     'no option --imges; did you mean --images?'),
    ('calibrate rb --images val -count 3', 'trt-segmentation calibrate ',
     'unrecognized arguments: -count 3; did you mean --count?'),
    ('seal a b', 'trt-segmentation seal ', 'unrecognized arguments: b'),
    ('seal a --xyzzy', 'trt-segmentation seal ', 'no option --xyzzy'),
    ('calibarte rb', 'trt-segmentation [-h]',
     "no command 'calibarte' (there are adopt, benchmark, "),
    ('calibarte rb', 'trt-segmentation [-h]', 'seal); did you mean calibrate?'),
    ('xyzzy', 'trt-segmentation [-h]', "no command 'xyzzy' (there are adopt, "),
])
def test_a_misspelt_word_gets_the_usage_of_its_command_and_the_nearest(line, usage, message,
                                                                       capsys):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith(f'usage: {usage}')
    assert message in error.splitlines()[-1]


def test_options_may_be_shortened_and_what_follows_two_dashes_is_a_path(tmp_path, capsys):
    assert main(['calibrate', str(tmp_path / 'none'), '--image', 'val']) == 2
    assert 'no such bundle directory' in capsys.readouterr().err
    assert main(['seal', '--', '--bundle']) == 2
    assert '--bundle: ' in capsys.readouterr().err
