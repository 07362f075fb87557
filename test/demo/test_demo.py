# SPDX-License-Identifier: Apache-2.0
"""The demo's care for its surroundings; what it shows is tested part by part elsewhere."""

from contextlib import ExitStack
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest
import yaml

from trt_segmentation.cli import main
from trt_segmentation.demo import run as demo
from trt_segmentation.errors import CheckFailed, InputError


def processes_of(session):
    """Return the ids of the processes of a session that still run."""
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, _, _, number = path.read_text().rpartition(')')[2].split()[:4]
        except OSError:
            continue  # it has just ended
        if int(number) == session and state != 'Z':
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize('rate', ['0', '-1', 'nan', 'inf', '1e9'])
def test_a_rate_that_cannot_be_played_is_refused_before_anything_is_made(tmp_path, capsys, rate):
    assert main(['demo', f'--rate={rate}', '--output', str(tmp_path / 'out')]) == 2
    assert 'rate: found' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_only_what_a_demo_made_is_emptied(tmp_path):
    (tmp_path / 'keep').touch()
    with pytest.raises(InputError, match='not empty, and not made by an earlier demo'):
        demo._prepare(tmp_path)
    with pytest.raises(InputError, match='keep: cannot be written'):
        demo._prepare(tmp_path / 'keep')
    assert (tmp_path / 'keep').exists()
    outside = tmp_path / 'outside'
    outside.mkdir()
    (outside / 'precious').touch()
    output = tmp_path / 'link'
    output.symlink_to(tmp_path / 'real')
    (tmp_path / 'real').mkdir()
    demo._prepare(output)
    (output / 'store').mkdir()
    (output / 'store' / 'plan').touch()
    (output / 'summary.json').touch()
    (output / 'other').symlink_to(outside)
    demo._prepare(output)
    assert os.listdir(output) == ['.trt_segmentation_demo']
    assert (outside / 'precious').exists()


@pytest.mark.parametrize('path', ['plain', 'a: b', '#x', "it's", '"q"', '1', 'yes', '{a}', 'ü\\'])
def test_parameters_reach_ros_as_what_they_are(path):
    assert demo._ros({'bundle': path}) == ['-p', f'bundle:={demo._ros({"x": path})[1][3:]}']
    assert yaml.safe_load(demo._ros({'bundle': path})[1].partition(':=')[2]) == path
    assert demo._ros({'flag': True}) == ['-p', 'flag:=true']


@pytest.mark.parametrize('reaction', ['default_int_handler', 'SIG_IGN'])
def test_a_process_ends_with_the_stack_by_request_or_by_force(monkeypatch, reaction):
    monkeypatch.setattr(demo, '_GRACE', 0.5)
    code = (f'import signal, sys; signal.signal(signal.SIGINT, signal.{reaction})\n'
            'print("up", flush=True); sys.stdin.read()')
    process = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with ExitStack() as stack:
        stack.callback(demo._end, process)
        process.stdout.readline()
    asked = reaction == 'default_int_handler'
    assert process.wait(30) == (-signal.SIGINT if asked else -signal.SIGKILL)
    process.stdin.close()
    process.stdout.close()


def test_no_mask_at_all_is_one_line_with_the_causes(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.bags, 'read_images', lambda *_: iter(()))
    received = {demo.CLASS_TOPIC: {}, demo.COLOR_TOPIC: {}}
    with pytest.raises(CheckFailed, match="0 of 2 frames.*{'late': 2}.*doctor"):
        demo._check_masks(tmp_path, tmp_path, None, {1: 1, 2: 2}, received, {'late': 2})


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path, number):
    with subprocess.Popen(
            [sys.executable, '-m', 'trt_segmentation', 'demo', '--output', str(tmp_path / 'out')],
            stderr=subprocess.PIPE, text=True, start_new_session=True,
            # Under nohup the tests ignore SIGHUP, and what they start would inherit that.
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)) as process:
        assert 'Drawing' in process.stderr.readline()
        while not list((tmp_path / 'out').glob('images/*')):  # until the workers draw
            assert process.poll() is None
            time.sleep(0.05)
        assert len(processes_of(process.pid)) > 1
        process.send_signal(number)
        try:
            rest = process.communicate(timeout=60)[1]
            left = processes_of(process.pid)
        finally:
            for each in processes_of(process.pid):
                os.kill(each, signal.SIGKILL)
    assert process.returncode == 130 and left == []
    assert rest.strip().splitlines()[-1].startswith('trt-segmentation demo: interrupted')
