# SPDX-License-Identifier: Apache-2.0
"""The progress bar: on a terminal only, and nothing of a C library between its lines."""

import fcntl
import os
from pathlib import Path
import pty
import struct
import subprocess
import sys
import termios

import pytest

WORK = """
import os, sys
from trt_segmentation.system.progress import ProgressBar
with ProgressBar({'calibrating': 3, 'golden frames': None}, 'image') as bar:
    bar.say('what was found')
    for i in range(3):
        os.write(2, b'libpng warning: iCCP: known incorrect sRGB profile\\n')
        bar.show('calibrating', i + 1)
    os.write(2, b'Corrupt JPEG data: premature end of data segment\\n')
    bar.expect('golden frames', 2)
    bar.show('golden frames', 1)
    bar.expect('equalizing', 4)
    bar.show('equalizing', 1)
    bar.show('tuning', 1)
    print('from Python', file=sys.stderr)
    os.write(2, b'a message of a library\\n')
os.write(2, b'libpng warning: after it\\n')
"""


def environment():
    return {**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])}


def on_a_terminal(columns=80, rows=24):
    """Run the work with standard error on a terminal; return what it shows."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', rows, columns, 0, 0))
    process = subprocess.Popen([sys.executable, '-c', WORK], stderr=theirs, env=environment())
    os.close(theirs)
    shown = b''
    try:
        while block := os.read(ours, 65536):
            shown += block
    except OSError:  # the terminal's other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0
    return shown.decode()


def test_a_pipe_has_no_bar_and_no_noise():
    done = subprocess.run([sys.executable, '-c', WORK], capture_output=True, text=True,
                          check=True, env=environment())
    assert done.stderr.splitlines() == ['from Python', 'a message of a library',
                                        'libpng warning: after it']


# 0: one that does not know, as of a container
@pytest.mark.parametrize('size', [(80, 24), (0, 24), (80, 0), (0, 0)])
def test_a_terminal_has_a_bar_a_stage_and_no_noise(size):
    shown = on_a_terminal(*size)
    assert 'what was found' in shown
    assert '3/3' in shown and 'calibrating' in shown
    assert '1/2 ' in shown and 'image/s' in shown
    assert '1/4 ' in shown and 'step/s' in shown and 'tuning: 1step' in shown
    assert 'iCCP' not in shown and 'Corrupt' not in shown
    assert shown.index('from Python') < shown.index('a message of a library')


def test_an_error_passes_and_standard_error_is_as_before():
    from trt_segmentation.system.progress import quiet_decoders
    before = sys.stderr, os.fstat(2).st_ino
    with pytest.raises(ValueError, match='passes'), quiet_decoders():
        raise ValueError('passes')
    assert (sys.stderr, os.fstat(2).st_ino) == before


def test_without_a_standard_error_the_work_goes_on():
    code = ('import os; os.close(2)\n'
            'from trt_segmentation.system.progress import ProgressBar\n'
            'with ProgressBar({"": 2}) as bar: bar.say("x"); print("done")')
    done = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True,
                          check=True, env=environment())
    assert done.stdout == 'done\n'
