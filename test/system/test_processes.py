# SPDX-License-Identifier: Apache-2.0
"""Worker processes end with the command that started them, whatever ends it and when."""

from __future__ import annotations

import os
from select import select
import signal
import subprocess
import sys

import pytest

from trt_segmentation.system import processes

# Its workers hold the FIFO open as long as they live; `importing` ones are still being started.
COMMAND = """
import os, sys, threading, time
from trt_segmentation.cli import seal
from trt_segmentation.start import command
from trt_segmentation.system.processes import Processes

def hold():
    global held
    held = os.open(os.environ['FIFO'], os.O_WRONLY)
    os.write(held, b'.')

def work():
    hold()
    threading.Event().wait()

def main(args):
    with Processes(2, 1) as executor:
        futures = [executor.submit(work) for _ in range(2)]
        [future.result() for future in futures]

if __name__ == '__main__':
    seal.main = main
    sys.exit(command())
elif os.environ['MOMENT'] == 'importing':
    parent = os.getppid()
    hold()
    while os.getppid() == parent:
        time.sleep(0.01)
"""


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize('moment', ['importing', 'working'])
def test_workers_end_with_their_command(number, moment, tmp_path):
    fifo, script = tmp_path / 'fifo', tmp_path / 'command.py'
    os.mkfifo(fifo)
    script.write_text(COMMAND)
    with subprocess.Popen(
            [sys.executable, str(script), 'seal', 'x'], stderr=subprocess.PIPE, text=True,
            env={**os.environ, 'FIFO': str(fifo), 'MOMENT': moment,
                 'PYTHONPATH': os.pathsep.join(sys.path)}) as process:
        with open(fifo, 'rb', buffering=0) as workers:
            for _ in range(2):
                assert workers.read(1) == b'.'
            process.send_signal(number)
            assert process.wait(60) == {signal.SIGKILL: -9, signal.SIGTERM: 143}[number]
            while select([workers], [], [], 60)[0]:
                if not workers.read(1):  # the end of file: nobody holds it any more
                    break
            else:
                pytest.fail('a worker is left')
        said = process.stderr.read()
    if number == signal.SIGTERM:
        assert said == 'trt-segmentation seal: interrupted\n'


@pytest.mark.parametrize('script, expected', [
    ('exec "$3"', True), ('echo "unrecognized option" >&2; exit 1', False), (None, False)])
def test_children_are_bound_where_setpriv_can(script, expected, tmp_path, monkeypatch):
    if script is not None:
        (tmp_path / 'setpriv').write_text(f'#!/bin/sh\n{script}\n')
        (tmp_path / 'setpriv').chmod(0o755)
    (tmp_path / 'true').symlink_to('/bin/true')
    monkeypatch.setenv('PATH', str(tmp_path))
    assert processes.can_bind.__wrapped__() is expected
