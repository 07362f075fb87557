# SPDX-License-Identifier: Apache-2.0
"""The command `segmentation_node`, as a person types it and as ros2 launch does."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys

import pytest

from trt_segmentation import __version__
from trt_segmentation.ros import command
from trt_segmentation.system import environment

ROOT = Path(__file__).parents[2]


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (environ.pop('PYTHONPATH', ''), str(ROOT),
                                         os.environ.get('PYTHONPATH', ''))))
    return subprocess.run(
        [sys.executable, '-m', 'trt_segmentation.ros.command', *arguments], text=True,
        capture_output=True, timeout=60,
        env={**os.environ, 'ROS_DOMAIN_ID': str(1 + os.getpid() % 100), 'PYTHONPATH': path,
             **environ})


@pytest.mark.parametrize('arguments, own, ros', [
    ('', '', ''),
    ('b --camera c', 'b --camera c', ''),
    ('--ros-args -p a:=b', '', '--ros-args -p a:=b'),
    ('b --ros-args -p a:=b -- --camera c', 'b --camera c', '--ros-args -p a:=b --'),
    ('--ros-args -r a:=b -- b --ros-args --log-level info',
     'b', '--ros-args -r a:=b -- --ros-args --log-level info'),
])
def test_arguments_of_ros_are_told_apart(arguments, own, ros):
    assert command.split(arguments.split()) == (own.split(), ros.split())


@pytest.mark.parametrize('camera, info', [
    ('/camera/image_raw', '/camera/camera_info'), ('image', 'camera_info'),
    ('/image', '/camera_info'), ('/compressed', '/camera_info'),
    ('front/left/image', 'front/left/camera_info')])
def test_camera_info_is_beside_the_images(camera, info):
    args = command._parser().parse_args(['--camera', camera])
    assert command.ros_arguments(args) == [
        '--ros-args', '-r', f'image:={camera}', '-r', f'camera_info:={info}', '--']


def test_a_compressed_topic_sets_the_transport_and_remaps_to_its_base():
    args = command._parser().parse_args(['--camera', '/front/image_raw/compressed'])
    assert command.ros_arguments(args) == [
        '--ros-args', '-p', 'transport:=compressed', '-r', 'image:=/front/image_raw',
        '-r', 'camera_info:=/front/camera_info', '--']


def test_without_arguments_ros_gets_nothing():
    """As launch files start it: what they give to the node is not overruled."""
    assert command.ros_arguments(command._parser().parse_args([])) == []


def test_its_help_has_an_example():
    done = run('--help')
    assert done.returncode == 0 and done.stderr == ''
    assert 'segmentation_node my_bundle --camera /camera/image_raw' in done.stdout


def test_a_misspelt_option_gets_the_nearest():
    done = run('bundle', '--camra', '/front/image_raw')
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        'segmentation_node: error: no option --camra; did you mean --camera?')


def test_its_version():
    assert run('--version').stdout == f'segmentation_node {__version__}\n'


@pytest.mark.parametrize('module, reason', [
    ('rclpy', 'cannot be imported'), ('sensor_msgs', 'cannot be imported')])
def test_without_ros_it_says_what_to_do(module, reason, tmp_path):
    (tmp_path / f'{module}.py').write_text('raise ImportError("built for another Python")')
    done = run('.', PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    line, = done.stderr.splitlines()
    assert line.startswith('segmentation_node: ') and reason in line
    assert sys.executable in line and "pip install '.[ros]'" in line


def test_without_the_extra_ros_nothing_is_traced(tmp_path):
    """An interpreter that has no packages at all."""
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'empty'], check=True)
    program = [tmp_path / 'empty/bin/python', '-m', 'trt_segmentation.ros.command']
    environ = {'PATH': os.environ['PATH'], 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([*program, '.'], text=True, capture_output=True, env=environ)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "no module 'rclpy' is found" in done.stderr
    done = subprocess.run([*program, '--help'], text=True, capture_output=True, env=environ)
    assert done.returncode == 0 and 'BUNDLE' in done.stdout


@pytest.mark.parametrize('arguments, word', [
    (['b', '--camera', 'a//b'], "found 'a//b'"),
    (['b', '--camera', '1a'], "found '1a'"),
    (['b', 'c'], 'unrecognized arguments: c'),
    (['b', '-p', 'precision:=auto'], '-p precision:=auto: ROS takes it after --ros-args only, as '
                                     'in: segmentation_node BUNDLE --ros-args -p precision:=auto'),
    (['--ros-args', '-p', 'x'], '-p x: found no'),
    (['--ros-args', '--params-file', '/nonexistent'], '/nonexistent'),
    (['--ros-args', '--nonsense'], '--nonsense'),
    (['.', '--backend', 'none'], 'parameter backend'),
    ([], 'no bundle is named'),
    (['nowhere'], 'nowhere: no such bundle directory; to wait for one, name it as the parameter'),
    ([f'{ROOT}/setup.yp'], f'no such bundle directory; did you mean {ROOT}/setup.py?; to wait'),
    (['--camera', 'c', '--ros-args', '-p', 'bundle:=""'], 'no bundle is named'),
    # Where the packaged file gives a value too.
    (['.', '--ros-args', '-p', 'max_frame_age_ms:=abc'], 'parameter max_frame_age_ms'),
    (['.', '--ros-args', '-p', 'strict_stamps:=maybe'], 'parameter strict_stamps'),
])
def test_wrong_use_ends_with_2_and_no_trace(arguments, word):
    pytest.importorskip('rclpy', reason='ROS takes its arguments')
    done = run(*arguments)
    assert done.returncode == 2
    assert word in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('camera', ['/front/image_raw', '/front/image_raw/compressed'])
def test_a_person_starts_it_with_bundle_and_camera(camera, tmp_path):
    """Without ros2 launch: the camera's images become masks, and camera_info is found."""
    pytest.importorskip('rclpy', reason='starts the ROS node')
    from support.ros import BACKEND, built_bundle
    from support.ros_peer import NodeProcess, peer
    bundle = built_bundle(tmp_path / 'a bundle', tmp_path / 'store', size=(64, 128))
    arguments = ('-p', 'precision:=fp32', '--', str(bundle), '--camera', camera,
                 '--store', str(tmp_path / 'store'), '--backend', BACKEND)
    with NodeProcess(tmp_path / 'log', module='trt_segmentation.ros.command',
                     arguments=arguments) as node, peer() as other:
        other.wait_for_state('active', node)
        assert other.get_parameter('bundle', node) == str(bundle)
        other.wait(lambda: other.node.get_subscriptions_info_by_topic(camera),
                   'its subscription', node)


def test_it_brings_the_environment_that_images_need(monkeypatch):
    given = {}
    monkeypatch.setattr(os, 'environ', {'MALLOC_TOP_PAD_': '5', 'PATH': os.environ['PATH']})
    monkeypatch.setattr(command, '_run', lambda argv: given.update(os.environ) or 0)
    assert command.main([]) == 0
    assert given == environment.completed({'MALLOC_TOP_PAD_': '5', 'PATH': given['PATH']})
    assert Path(given['FASTDDS_DEFAULT_PROFILES_FILE']).is_file()


def test_a_signal_while_the_node_is_imported_ends_it_as_later_ones_do(monkeypatch, capsys):
    def stopped(argv):
        raise KeyboardInterrupt(15)

    monkeypatch.setattr(command, '_run', stopped)
    assert command.main([]) == 0
    assert capsys.readouterr().err == ''


def test_a_user_without_a_home_has_no_log_file_unless_one_is_named(tmp_path, monkeypatch, capsys):
    pytest.importorskip('rclpy', reason="it is the node's")
    from trt_segmentation.ros import process

    monkeypatch.setattr(os.path, 'expanduser', lambda path: path)  # as where nobody has a name
    for name in ('ROS_HOME', 'ROS_LOG_DIR'):
        monkeypatch.delenv(name, raising=False)
    assert process.arguments(['node']) == ['node', '--ros-args', '--disable-external-lib-logs']
    assert '~/.ros/log cannot be written, so there is no log file' in capsys.readouterr().err
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))
    assert process.arguments(['node']) == ['node'] and (tmp_path / 'log').is_dir()
