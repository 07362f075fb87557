# SPDX-License-Identifier: Apache-2.0
"""The launch files, and the YAML files that they give to the node."""

from __future__ import annotations

from collections import Counter
import importlib.util
import os
from pathlib import Path
import re
import shlex
import signal
import subprocess
import sys

import pytest
import yaml

pytest.importorskip('rclpy', reason='the launch files start a ROS node')

from support.ros import BACKEND, direct_segmenter, picture
from support.ros_peer import DOMAIN, NodeProcess, peer, pixels_of

from trt_segmentation.recordings import bags
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


@pytest.mark.parametrize('path', YAML_FILES, ids=lambda path: path.name)
def test_the_node_takes_the_yaml_files(path, built, tmp_path):
    with NodeProcess(tmp_path / 'log', arguments=('--params-file', str(path)),
                     bundle=built['bundle'], store=built['store'], backend=BACKEND,
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
@pytest.mark.parametrize('name', ['segmentation', 'multi_camera'])
def test_arguments_become_the_node_s_parameters_of_that_type(name):
    from trt_segmentation.ros import launching
    listed = {argument.name for argument in load(
        ROOT / f'launch/{name}.launch.py').get_launch_arguments()}
    assert {'gpu', 'dla_core', 'gpu_fallback'} <= listed
    declared = {entry.name: entry.default for entry in PARAMETERS}
    for parameter, kind in launching._PARAMETERS.items():
        assert parameter in listed
        assert parameter == 'use_sim_time' or type(declared[parameter]) is kind


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
code = service.run()
"""


class Launched(NodeProcess):
    """A launch file run in a process of its own, as `ros2 launch` does."""

    def __init__(self, path: Path, prefix: Path, log: Path, *arguments: str, after: str = ''):
        script = prefix / 'launcher.py'
        script.write_text(f'{LAUNCHER}{after}\nsys.exit(code)\n')
        # Where `Node(package=..., executable=...)` looks.
        (prefix / 'share/ament_index/resource_index/packages').mkdir(parents=True)
        found = os.environ.get('AMENT_PREFIX_PATH')
        for package in ('trt_segmentation', *(() if found else ('launch', 'launch_ros'))):
            (prefix / 'share/ament_index/resource_index/packages' / package).touch()
        (prefix / 'lib/trt_segmentation').mkdir(parents=True)
        executable = prefix / 'lib/trt_segmentation/segmentation_node'
        executable.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} '
                              '-m trt_segmentation.ros.node "$@"\n')
        executable.chmod(0o755)
        environ = {name: value for name, value in os.environ.items()
                   if name not in environment.variables()}
        self.log_path = log
        with log.open('w') as file:
            self._process = subprocess.Popen(
                [sys.executable, str(script), str(path), *arguments], stdout=file,
                stderr=subprocess.STDOUT, env={
                    **environ, 'AMENT_PREFIX_PATH': os.pathsep.join(filter(None, (
                        str(prefix), found))),
                    'ROS_DOMAIN_ID': DOMAIN, 'ROS_LOG_DIR': str(prefix)})


@needs_launch
def test_segmentation_launch_runs_the_node(built, tmp_path):
    with peer() as other, Launched(
            ROOT / 'launch/segmentation.launch.py', tmp_path, tmp_path / 'log',
            f'bundle:={built["bundle"]}', f'store:={built["store"]}',
            'backend:=onnxruntime', 'image:=/camera/image_raw', 'namespace:=/car',
            f'params_file:={parameters(tmp_path)}') as launched:
        name, topic = 'car/segmentation', '/camera/image_raw'
        other.wait(lambda: other.status(name=name).get('state') == 'active', 'it', launched)
        publisher = other.publisher(topic)
        other.subscribe('/car/segmentation/class_mask')
        # As large as only the Fast DDS profile carries it, which the launch file sets.
        image = picture((1024, 2048), 1)
        mask = other.exchange(publisher, image, '/car/segmentation/class_mask', launched)
        with direct_segmenter(built['bundle']) as direct:
            assert (pixels_of(mask) == direct.segment(image).classes).all()
        assert launched.stop() == 0
    assert 'process has finished cleanly' in launched.log


@needs_launch
def test_multi_camera_launch_runs_the_node(built, tmp_path):
    with peer() as other, Launched(
            ROOT / 'launch/multi_camera.launch.py', tmp_path, tmp_path / 'log',
            f'bundle:={built["bundle"]}', f'store:={built["store"]}', 'cameras:=a,b',
            'backend:=onnxruntime', 'image:=/sensing/CAMERA/image_raw',
            f'params_file:={parameters(tmp_path)}') as launched:
        other.wait_for_state('active', launched)
        for camera in 'ab':
            publisher = other.publisher(f'/sensing/{camera}/image_raw')
            topic = f'/segmentation/{camera}/class_mask'
            other.subscribe(topic)
            other.exchange(publisher, picture((64, 128), 1), topic, launched)


@pytest.fixture
def ros2(tmp_path, monkeypatch):
    """
    Put a `ros2 bag` on the path that plays and records with what this package has for the demo.

    As that of ROS, its recorder subscribes to nothing before it has a time, and takes topics as
    words (Humble), or with --topics only (Lyrical): where there is a file `lyrical` beside that
    of its calls, which is returned. A line `play CODE` or `record CODE` in `fail` there lets it
    fail instead.
    """
    calls, tools = tmp_path / 'calls', tmp_path / 'bin'
    tools.mkdir()
    (tools / 'ros2').write_text(f"""#!{sys.executable}
import os, pathlib, sys
with open({str(calls)!r}, 'a') as file:
    print(*sys.argv[1:], file=file)
verb, words = sys.argv[2], sys.argv[3:]
lyrical = pathlib.Path({str(tmp_path / 'lyrical')!r}).exists()
if words == ['--help']:
    print('usage: ros2 bag record [-h]', '[--topics Topic [Topic ...]] --topics Topic ...'
          if lyrical else '[topics ...]')
    sys.exit()
fail = pathlib.Path({str(tmp_path / 'fail')!r})
for line in fail.read_text().splitlines() if fail.exists() else []:
    if line.split()[0] == verb:
        sys.exit(int(line.split()[1]))
if verb == 'play':
    topic = words[words.index('--topics') + 1]
    words = ['trt_segmentation.demo.player', words[0], '--topic', topic, '--to', topic]
else:
    output = words[words.index('--output') + 1]
    if ('--topics' in words) != lyrical:
        sys.exit('unrecognized arguments')
    import rclpy
    from rosgraph_msgs.msg import Clock
    rclpy.init()
    node, times = rclpy.create_node('recorder_of_ros'), []
    subscription = node.create_subscription(Clock, '/clock', times.append, 1)
    while not times or not times[-1].clock.sec:
        rclpy.spin_once(node)
    print('time', times[-1].clock.sec, file=open({str(calls)!r}, 'a'))
    rclpy.shutdown()
    words = ['trt_segmentation.demo.recorder', output,
             *[word for word in words if word.endswith('_mask')]]
os.execv(sys.executable, [sys.executable, '-m', *words])
""")
    (tools / 'ros2').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tools}{os.pathsep}{os.environ["PATH"]}')
    return calls


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    """Return a recording of eight images, 0.2 s apart."""
    path = tmp_path_factory.mktemp('bag') / 'drive'
    with bags.Writer(path) as writer:
        for i in range(8):
            stamp = 1_700_000_000_000_000_000 + i * 200_000_000
            writer.write('/camera/image_raw', bags.image_message(
                picture((64, 128), i), 'bgr8', stamp, 'camera'), stamp)
    return path


def replay(built, bag, tmp_path, *arguments) -> Launched:
    """Return replay.launch.py as it runs."""
    return Launched(ROOT / 'launch/replay.launch.py', tmp_path, tmp_path / 'log',
                    f'bundle:={built["bundle"]}', f'store:={built["store"]}',
                    f'backend:={BACKEND}', f'bag:={bag}', f'output:={tmp_path / "masks"}',
                    f'params_file:={parameters(tmp_path)}', *arguments)


def told(log: str) -> int:
    """
    Return how many images have masks by the log, in which each other one has its cause.

    On a machine that is busy a newer image replaces one that waits, as the node promises.
    """
    masks, received, rest = re.search(r'(\d+) of (\d+) images have masks(.*)', log).groups()
    dropped = sum(map(int, re.findall(r'\d+', rest)))
    assert int(masks) + dropped == int(received) <= 8 and bool(dropped) == ('dropped: ' in rest)
    return int(masks)


@needs_launch
@pytest.mark.parametrize('ros', ['humble', 'lyrical'])
def test_replay_launch_plays_records_and_ends(ros, built, bag, ros2, tmp_path):
    (tmp_path / ros).touch()
    with peer(), replay(built, bag, tmp_path, 'rate:=2.0') as launched:
        assert launched.wait() == 0, launched.log
    play, = (line for line in ros2.read_text().splitlines() if line.startswith('bag play'))
    assert play.startswith(f'bag play {bag} --clock') and '--rate 2.0' in play
    assert f'bag record --use-sim-time --output {tmp_path / "masks"}' in ros2.read_text()
    assert 'time 1700000000' in ros2.read_text()  # that of the recording
    found = Counter(topic for topic, _ in bags.read_images(tmp_path / 'masks'))
    assert set(found) == {'/segmentation/class_mask', '/segmentation/color_mask'}
    assert all(1 <= count <= told(launched.log) for count in found.values())


@needs_launch
def test_replay_launch_plays_when_the_engine_has_been_built(built, bag, ros2, tmp_path):
    with peer(), replay(built, bag, tmp_path, f'store:={tmp_path / "new"}') as launched:
        assert launched.wait() == 0, launched.log
    assert told(launched.log) >= 1


@needs_launch
@pytest.mark.parametrize(('arguments', 'fail', 'words'), [
    (['bag:=/nowhere'], '', 'bag: /nowhere: there is no such recording'),
    (['output:=/tmp'], '', 'output: /tmp exists'),
    (['params_file:=/nonexistent.yaml'], '', 'params_file: /nonexistent.yaml'),
    (['bundle:=/nowhere'], '', 'no such bundle'),
    (['backend:=abacus'], '', 'abacus'),
    ([], 'play 3', 'the player has ended with code 3'),
    ([], 'record 4', 'the recorder has ended with code 4'),
    ([], 'play 0', 'the node has heard no image'),  # as one without the topic does
])
def test_replay_launch_fails_when_anything_does(arguments, fail, words, built, bag, ros2,
                                                tmp_path):
    (tmp_path / 'fail').write_text(fail)
    with peer(), replay(built, bag, tmp_path, *arguments) as launched:
        assert launched.wait() == 1, launched.log
    assert words in launched.log


@needs_launch
@pytest.mark.parametrize(('name', 'arguments', 'words'), [
    ('multi_camera', ['cameras:=a,b', 'image:=/camera/image_raw'], 'write CAMERA where'),
    ('multi_camera', ['cameras:=a,a'], 'each camera once'),
    ('multi_camera', ['cameras:=/a'], 'relative namespace'),
    ('multi_camera', ['params_file:=PARAMETERS'], 'lists no cameras for this node'),
    ('segmentation', ['log_level:=chatty'], 'chatty'),
    ('segmentation', ['params_file:=/nonexistent.yaml'], 'there is no such file'),
    ('segmentation', ['params_file:=BROKEN'], "can't decode byte 0xff"),
    ('segmentation', ['image:=/a//b'], "image: found '/a//b', expected the name of a topic"),
    ('multi_camera', ['cameras:=a,b', 'camera_info:=1/CAMERA'], "camera_info: found '1/CAMERA'"),
    ('replay', ['bag:=/tmp', 'rate:=fast'], "rate: found 'fast', expected a number from 0.01 on"),
    ('replay', ['bag:=/tmp', 'delay:=-1'], "delay: found '-1', expected a number from 0 on"),
    ('replay', ['bag:=/tmp', 'image:=/a b'], "image: found '/a b'"),
])
def test_arguments_that_cannot_work_are_refused(name, arguments, words, built, tmp_path):
    file = parameters(tmp_path, section='/other/segmentation', cameras=['x', 'y'])
    (broken := tmp_path / 'broken.yaml').write_bytes(b'\xff')
    with Launched(ROOT / f'launch/{name}.launch.py', tmp_path, tmp_path / 'log',
                  f'bundle:={built["bundle"]}',
                  *[argument.replace('PARAMETERS', str(file)).replace('BROKEN', str(broken))
                    for argument in arguments]) as launched:
        assert launched.wait() == 1, launched.log
    assert words in launched.log and 'segmentation_node-1' not in launched.log


@needs_launch
@pytest.mark.parametrize(('sections', 'namespace', 'expected'), [
    ({'/**': ['a', 'b']}, '', ['a', 'b']),
    ({'segmentation': ['a']}, '', ['a']), ({'/segmentation': ['a']}, '', ['a']),
    ({'/**': ['a'], '/car/segmentation': ['b']}, '/car', ['b']),
    ({'/car/segmentation': ['b'], '/**': ['a']}, '/car', ['a']),  # the later one, as in rcl
    ({'/other': ['a'], '/*/segmentation': ['b']}, 'car', ['b']),
    ({'/**/segmentation': ['c'], '/x/segmentation': ['d']}, 'a/b', ['c']),
])
def test_cameras_are_those_of_the_node(sections, namespace, expected, tmp_path):
    from launch import LaunchContext

    from trt_segmentation.ros import launching
    file = tmp_path / 'parameters.yaml'
    file.write_text(yaml.safe_dump({name: {'ros__parameters': {'cameras': cameras}}
                                    for name, cameras in sections.items()}, sort_keys=False))
    context = LaunchContext()
    context.launch_configurations.update(cameras='', params_file=str(file), namespace=namespace)
    assert launching.cameras(context) == expected


@needs_launch
def test_a_misspelt_argument_is_named_and_paths_from_home_are_expanded(built, tmp_path,
                                                                       monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    file = parameters(tmp_path, cameras=['$(env SIDE left)'])
    with peer() as other, Launched(
            ROOT / 'launch/multi_camera.launch.py', tmp_path, tmp_path / 'log',
            f'bundle:={built["bundle"]}', f'store:={built["store"]}', f'backend:={BACKEND}',
            f'params_file:=~/{file.name}', 'imgae:=/CAMERA/image_raw',
            'of_the_file_that_includes_it:=x') as launched:
        other.wait_for_state('active', launched)
        # Substitutions are made before the cameras' names are read.
        assert other.get_parameter('cameras', launched) == ['left']
    said = [line for line in launched.log.splitlines() if 'there is none of this name' in line]
    assert len(said) == 1 and said[0].endswith(
        'argument imgae: there is none of this name; did you mean image?')


@needs_launch
def test_wrong_use_is_not_tried_again_and_an_end_for_restart_is(built, tmp_path):
    bad = parameters(tmp_path, reliability='best')
    with Launched(ROOT / 'launch/segmentation.launch.py', tmp_path, tmp_path / 'log',
                  f'bundle:={built["bundle"]}', f'params_file:={bad}') as launched:
        assert launched.wait() == 0
    assert launched.log.count('process started') == 1 and 'not started again' in launched.log
    assert 'reliability' in launched.log and 'Traceback' not in launched.log


@needs_launch
def test_a_node_that_dies_is_started_again_and_nothing_leaks(built, tmp_path):
    with peer() as other, Launched(
            ROOT / 'launch/segmentation.launch.py', tmp_path, tmp_path / 'log',
            f'bundle:={built["bundle"]}', f'store:={built["store"]}', f'backend:={BACKEND}',
            f'params_file:={parameters(tmp_path)}', after='print(sorted(service.context.'
            "environment.get(name, '') for name in "
            f'{sorted(environment.variables())}))') as launched:
        other.wait_for_state('active', launched)
        first = int(re.findall(r'process started with pid \[(\d+)\]', launched.log)[0])
        os.kill(first, signal.SIGKILL)
        other.wait(lambda: launched.log.count('process started') == 2, 'a second', launched)
        other.wait(lambda: launched.log.count('activate: done') == 2, 'active again', launched)
        assert launched.stop() == 0
    # What is launched beside it has no environment of ours.
    assert str([''] * len(environment.variables())) in launched.log


@needs_launch
@pytest.mark.parametrize('name', ['segmentation', 'multi_camera'])
def test_what_is_not_given_stays_as_the_parameter_file_says(name, built, tmp_path):
    wanted = {'backend': BACKEND, 'store': str(built['store']), 'use_sim_time': True,
              'cameras': ['left_cam', 'right_cam']}
    with peer() as other, Launched(
            ROOT / f'launch/{name}.launch.py', tmp_path, tmp_path / 'log',
            f'bundle:={built["bundle"]}',
            f'params_file:={parameters(tmp_path, **wanted)}') as launched:
        other.wait_for_state('active', launched)
        for parameter, value in wanted.items():
            assert other.get_parameter(parameter, launched) == value


def parameters(path: Path, section: str = '/**', **others) -> Path:
    """Return a parameter file for the float engine that was built."""
    file = path / 'parameters.yaml'
    file.write_text(yaml.safe_dump({section: {'ros__parameters': {
        'precision': 'fp32', 'max_frame_age_ms': 5000, **others}}}))
    return file
