# SPDX-License-Identifier: Apache-2.0
"""The child that builds: what it imports, and where from."""

import os
import re
import shlex
import signal
import sys
import time

import pytest

from trt_segmentation.ros import engine_build
from trt_segmentation.ros.engine_build import EngineBuild
from trt_segmentation.ros.supervisor import Kind


def test_the_child_imports_nothing_from_the_working_directory(tmp_path, monkeypatch):
    for name in ('numpy', 'yaml', 'argparse', 'cv2', 'trt_segmentation'):
        (tmp_path / f'{name}.py').write_text(
            'import pathlib; pathlib.Path(__file__).with_name("imported").touch()')
    monkeypatch.chdir(tmp_path)
    # An empty entry and a relative one mean the working directory too.
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(['', '.', os.environ.get('PYTHONPATH', '')]))
    lines = []
    build = EngineBuild('bundle', 'onnxruntime', 'fp32', 'store', 1, None, lines.append,
                        lines.append)
    while not build.ended():
        time.sleep(0.01)
    kind, reason = build.outcome()
    assert kind is Kind.LATER
    # Names are taken from where the node was started all the same.
    assert f'{tmp_path}/bundle: no such bundle directory' in reason, (reason, lines)
    assert not (tmp_path / 'imported').exists()


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Return what begins a build whose program is a shell script."""
    def begin(script, log=print, warn=print):
        program = tmp_path / 'program'
        program.write_text(f'#!/bin/sh\n{script}')
        program.chmod(0o755)
        monkeypatch.setattr(sys, 'executable', str(program))
        return EngineBuild('bundle', 'onnxruntime', 'fp32', 'store', 1, None, log, warn)

    return begin


def test_warnings_of_the_build_are_warnings_of_the_node(begun, capfd):
    logging = pytest.importorskip('rclpy.logging', reason='its loggers know the severities')
    logger = logging.get_logger('test_engine_build')
    build = begun('echo calibrating >&2; echo "warning: INT8 is slower" >&2\n'
                  'echo "a warning: of TensorRT" >&2; echo done >&2\n',
                  logger.info, logger.warning)
    build._process.wait()
    build._reader.join()
    lines = [re.sub(r'\[[\d.]+\] ', '', line) for line in ''.join(capfd.readouterr()).splitlines()]
    assert lines == [f'[{severity}] [test_engine_build]: {text}' for severity, text in (
        ('INFO', 'calibrating'), ('WARN', 'INT8 is slower'),
        ('INFO', 'a warning: of TensorRT'), ('INFO', 'done'))]


@pytest.mark.parametrize('name', ['KILL', 'TERM', 'INT'])
def test_a_build_that_somebody_ended_is_begun_again(name, begun):
    """Also one that could still clean up, as the command does at a signal that asks it to."""
    number = int(getattr(signal, f'SIG{name}'))
    build = begun('echo "trt-segmentation build: interrupted" >&2\n'
                  + (f'kill -{name} $$\n' if name == 'KILL' else f'exit {128 + number}\n'))
    build._process.wait()
    assert build.outcome() == (Kind.ENGINE, f'the engine build was ended by signal {number}')


def test_what_is_no_text_does_not_stop_the_build(begun):
    """A pipe that nobody reads would hold it for ever."""
    build = begun("printf '\\344 from below\\n' >&2\n"
                  'head -c 200000 /dev/zero | tr "\\0" "\\n" >&2\necho done >&2\n')
    build._process.wait(60)
    build._reader.join()
    assert build.progress == 'done' and build.outcome() == (None, '')


def test_the_error_is_waited_for_though_the_build_has_ended(begun, tmp_path, monkeypatch):
    """Its last words come late, from a process that outlives it and holds the same pipe."""
    os.mkfifo(tmp_path / 'fifo')
    fifo = shlex.quote(str(tmp_path / 'fifo'))
    build = begun(f'(read line < {fifo}; echo "$line" >&2) &\nexit 2\n')
    build._process.wait()
    assert not build.ended()
    with monkeypatch.context() as later:
        moment = time.monotonic() + 60
        later.setattr(engine_build, 'monotonic', lambda: moment)
        assert build.ended()  # but not for ever
    (tmp_path / 'fifo').write_text('the disk is full\n')
    build._reader.join()
    assert build.ended() and build.outcome() == (Kind.LATER, 'the disk is full')
