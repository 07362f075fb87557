# SPDX-License-Identifier: Apache-2.0
"""The launch files, and the YAML files that they give to the node."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
import subprocess
import sys

import pytest
import yaml

pytest.importorskip('rclpy', reason='the launch files start a ROS node')

from support.ros import BACKEND, built_bundle, direct_segmenter, picture
from support.ros_peer import NodeProcess, peer, pixels_of

from trt_segmentation.ros.parameters import PARAMETERS
from trt_segmentation.system import environment

ROOT = Path(__file__).parents[2]
YAML_FILES = sorted((ROOT / 'config').glob('*.yaml'))
LAUNCH_FILES = sorted((ROOT / 'launch').glob('*.launch.py'))
needs_launch = pytest.mark.skipif(
    importlib.util.find_spec('launch_ros') is None,
    reason='launch and launch_ros come with a ROS distribution; they are not on PyPI')


@pytest.mark.parametrize('path', YAML_FILES, ids=lambda path: path.name)
def test_the_yaml_files_name_parameters_that_there_are(path):
    document = yaml.safe_load(path.read_text())
    assert list(document) == ['/**'] and list(document['/**']) == ['ros__parameters']
    known = {declaration.name: declaration for declaration in PARAMETERS}
    for name, value in document['/**']['ros__parameters'].items():
        if name == 'use_sim_time':
            continue
        declaration = known[name]
        assert type(value) is type(declaration.default), name
        assert not declaration.choices or value in declaration.choices, name
        if declaration.range:
            assert declaration.range[0] <= value <= declaration.range[1], name


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    """Return a directory with a bundle, and a store with its engine."""
    path = tmp_path_factory.mktemp('built')
    built_bundle(path / 'bundle', path / 'store', size=(64, 128))
    return path


@pytest.mark.parametrize('path', YAML_FILES, ids=lambda path: path.name)
def test_the_node_takes_the_yaml_files(path, bundle, tmp_path):
    with NodeProcess(tmp_path / 'log', arguments=('--params-file', str(path)),
                     bundle=bundle / 'bundle', store=bundle / 'store', backend=BACKEND,
                     precision='fp32') as node, peer() as other:
        other.wait_for_state('active', node)
        for name, value in yaml.safe_load(path.read_text())['/**']['ros__parameters'].items():
            if name != 'precision':
                assert other.get_parameter(name, node) == value


def load(path: Path):
    """Return the launch description of a file."""
    spec = importlib.util.spec_from_file_location(path.name.partition('.')[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description()


@needs_launch
@pytest.mark.parametrize('path', LAUNCH_FILES, ids=lambda path: path.name)
def test_arguments_are_described(path):
    arguments = load(path).get_launch_arguments()
    assert {'bundle', 'backend', 'store', 'params_file', 'log_level'} <= {
        argument.name for argument in arguments}
    for argument in arguments:
        assert argument.description and argument.description != 'no description given'
        assert (argument.default_value is None) == (argument.name in ('bundle', 'bag'))


@needs_launch
@pytest.mark.parametrize('path', LAUNCH_FILES, ids=lambda path: path.name)
def test_a_missing_bundle_is_an_error(path):
    from launch import LaunchService
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource
    service = LaunchService()
    from launch import LaunchDescription
    service.include_launch_description(LaunchDescription([
        IncludeLaunchDescription(PythonLaunchDescriptionSource(str(path)))]))
    assert service.run() != 0


LAUNCHER = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
path, *arguments = sys.argv[1:]
service = LaunchService(argv=arguments)
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    PythonLaunchDescriptionSource(path),
    launch_arguments=[tuple(argument.split(':=', 1)) for argument in arguments])]))
sys.exit(service.run())
"""


class Launched(NodeProcess):
    """A launch file run in a process of its own, as `ros2 launch` does."""

    def __init__(self, path: Path, prefix: Path, log: Path, *arguments: str):
        script = prefix / 'launcher.py'
        script.write_text(LAUNCHER)
        # Where `Node(package=..., executable=...)` looks.
        (prefix / 'share/ament_index/resource_index/packages').mkdir(parents=True)
        (prefix / 'share/ament_index/resource_index/packages/trt_segmentation').touch()
        (prefix / 'lib/trt_segmentation').mkdir(parents=True)
        executable = prefix / 'lib/trt_segmentation/segmentation_node'
        executable.write_text(f'#!/bin/sh\nexec {sys.executable} -m trt_segmentation.ros.node '
                              '"$@"\n')
        executable.chmod(0o755)
        found = os.environ.get('AMENT_PREFIX_PATH')
        environ = {name: value for name, value in os.environ.items()
                   if name not in environment.variables()}
        self.log_path = log
        with log.open('w') as file:
            self._process = subprocess.Popen(
                [sys.executable, str(script), str(path), *arguments], stdout=file,
                stderr=subprocess.STDOUT, env={
                    **environ, 'AMENT_PREFIX_PATH': os.pathsep.join(filter(None, (
                        str(prefix), found))),
                    'ROS_DOMAIN_ID': os.environ['ROS_DOMAIN_ID'], 'ROS_LOG_DIR': str(prefix)})


@needs_launch
def test_segmentation_launch_runs_the_node(bundle, tmp_path):
    with peer() as other, Launched(
            ROOT / 'launch/segmentation.launch.py', tmp_path, tmp_path / 'log',
            f'bundle:={bundle / "bundle"}', f'store:={bundle / "store"}',
            'backend:=onnxruntime', 'image:=/camera/image_raw', 'namespace:=/car',
            f'params_file:={parameters(tmp_path)}') as launched:
        name, topic = 'car/segmentation', '/camera/image_raw'
        other.wait(lambda: other.status(name=name).get('state') == 'active', 'it', launched)
        publisher = other.publisher(topic)
        other.subscribe('/car/segmentation/class_mask')
        # As large as only the Fast DDS profile carries it, which the launch file sets.
        image = picture((1024, 2048), 1)
        mask = other.exchange(publisher, image, '/car/segmentation/class_mask', launched)
        with direct_segmenter(bundle / 'bundle') as direct:
            assert (pixels_of(mask) == direct.segment(image).classes).all()
        assert launched.stop() == 0
    assert 'process has finished cleanly' in launched.log


@needs_launch
def test_multi_camera_launch_runs_the_node(bundle, tmp_path):
    with peer() as other, Launched(
            ROOT / 'launch/multi_camera.launch.py', tmp_path, tmp_path / 'log',
            f'bundle:={bundle / "bundle"}', f'store:={bundle / "store"}', 'cameras:=a,b',
            'backend:=onnxruntime', 'image:=/sensing/CAMERA/image_raw',
            f'params_file:={parameters(tmp_path)}') as launched:
        other.wait_for_state('active', launched)
        for camera in 'ab':
            publisher = other.publisher(f'/sensing/{camera}/image_raw')
            topic = f'/segmentation/{camera}/class_mask'
            other.subscribe(topic)
            other.exchange(publisher, picture((64, 128), 1), topic, launched)


@needs_launch
def test_replay_launch_plays_records_and_ends(bundle, tmp_path, monkeypatch):
    calls, tools = tmp_path / 'calls', tmp_path / 'bin'
    tools.mkdir()
    (tools / 'ros2').write_text(f'#!/bin/sh\necho "$@" >>{calls}\n'
                                '[ "$2" = record ] && exec sleep 60\nexit 0\n')
    (tools / 'ros2').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tools}{os.pathsep}{os.environ["PATH"]}')
    with peer(), Launched(
            ROOT / 'launch/replay.launch.py', tmp_path, tmp_path / 'log',
            f'bundle:={bundle / "bundle"}', f'store:={bundle / "store"}', f'backend:={BACKEND}',
            'bag:=drive', 'rate:=2.0', f'params_file:={parameters(tmp_path)}') as launched:
        assert launched.wait() == 0, launched.log
    play, = (line for line in calls.read_text().splitlines() if line.startswith('bag play'))
    assert play.startswith('bag play drive --clock') and '--rate 2.0' in play
    assert 'bag record --output masks /segmentation/class_mask' in calls.read_text()


@needs_launch
@pytest.mark.parametrize('name', ['segmentation', 'multi_camera'])
def test_what_is_not_given_stays_as_the_parameter_file_says(name, bundle, tmp_path):
    wanted = {'backend': BACKEND, 'store': str(bundle / 'store'), 'use_sim_time': True,
              'cameras': ['left_cam', 'right_cam']}
    with peer() as other, Launched(
            ROOT / f'launch/{name}.launch.py', tmp_path, tmp_path / 'log',
            f'bundle:={bundle / "bundle"}',
            f'params_file:={parameters(tmp_path, **wanted)}') as launched:
        other.wait_for_state('active', launched)
        for parameter, value in wanted.items():
            assert other.get_parameter(parameter, launched) == value


def parameters(path: Path, **others) -> Path:
    """Return a parameter file for the float engine that was built."""
    file = path / 'parameters.yaml'
    file.write_text(yaml.safe_dump({'/**': {'ros__parameters': {
        'precision': 'fp32', 'max_frame_age_ms': 5000, **others}}}))
    return file
