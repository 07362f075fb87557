# SPDX-License-Identifier: Apache-2.0
"""What the launch files share; only they import this, since `launch` is not needed otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, TimerAction
from launch.events.process import ProcessExited
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue
import yaml

from trt_segmentation.engines import BACKENDS
from trt_segmentation.errors import nearest
from trt_segmentation.ros import given
from trt_segmentation.ros.parameters import cameras_problem, COMPRESSED, RAW
from trt_segmentation.ros.topics import TOPIC
from trt_segmentation.system import environment

# The node's parameters that are arguments too, of one launch file or another.
_PARAMETERS = {'bundle': str, 'store': str, 'backend': str, 'transport': str, 'gpu': str,
               'dla_core': int, 'gpu_fallback': bool, 'use_sim_time': bool}
_RESPAWN_SECONDS = 2.0
_ASKED_TO_END, _WRONG_USE = 0, 2  # exit codes after which the node is not started again


class Refused(RuntimeError):
    """Report arguments that cannot work; `ros2 launch` shows the sentence and ends with 1."""


def arguments(params_file: str) -> list[Action]:
    """
    Return the arguments that each launch file has.

    :param params_file: the name of the default in `config`
    """
    return [
        DeclareLaunchArgument('bundle', description='the bundle directory'),
        DeclareLaunchArgument('params_file',
                              default_value=str(environment.config_path(params_file)),
                              description="a YAML file with the node's parameters, with "
                              'substitutions such as $(env HOME)'),
        DeclareLaunchArgument('store', default_value='',
                              description='where built engines live; empty: as params_file says, '
                              'else the default place'),
        DeclareLaunchArgument('backend', default_value='', choices=['', 'auto', *BACKENDS],
                              description='what runs the engine; empty: as params_file says, '
                              'else auto'),
        DeclareLaunchArgument('transport', default_value='', choices=['', RAW, COMPRESSED],
                              description='raw or compressed images; empty: compressed if the '
                              'image topic ends with /compressed, else as params_file says'),
        DeclareLaunchArgument('log_level', default_value='info',
                              choices=['debug', 'info', 'warn', 'error', 'fatal'],
                              description='what is logged'),
    ]


def vehicle_arguments() -> list[Action]:
    """Return the further arguments of the launch files for a vehicle."""
    return [
        DeclareLaunchArgument('namespace', default_value='', description="the node's namespace"),
        DeclareLaunchArgument('use_sim_time', default_value='', choices=['', 'true', 'false'],
                              description='true: take the time from /clock; empty: as params_file '
                              'says, else false'),
        DeclareLaunchArgument('gpu', default_value='',
                              description='which GPU, by index or UUID; empty: as params_file '
                              'says, else the first'),
        DeclareLaunchArgument('dla_core', default_value='',
                              description='the deep learning accelerator to run on; empty: as '
                              'params_file says, else the GPU'),
        DeclareLaunchArgument('gpu_fallback', default_value='', choices=['', 'true', 'false'],
                              description='true: layers that the accelerator cannot run use the '
                              'GPU; empty: as params_file says, else false'),
        DeclareLaunchArgument('respawn', default_value='true', choices=['true', 'false'],
                              description='start the node again when its process ends; never '
                              'after 0 (it was asked to end) and 2 (wrong use)'),
    ]


def description(*actions: Action) -> LaunchDescription:
    """Return a launch file's description, which names arguments that are nearly one of its own."""
    names = [action.name for action in actions if isinstance(action, DeclareLaunchArgument)]

    def name_misspelt(context: LaunchContext) -> list[Action]:
        # Launch ignores them; those of a file that includes this one may have any name.
        found = context.launch_configurations
        return [LogInfo(msg=f'argument {name}: there is none of this name{question}')
                for name in found if name not in names and (
                    question := nearest(name, set(names).difference(found), 0.8))]

    return LaunchDescription([OpaqueFunction(function=name_misspelt), *actions])


def value(context: LaunchContext, name: str) -> str:
    """Return the value of an argument."""
    return LaunchConfiguration(name).perform(context)


def path(context: LaunchContext, name: str) -> Path:
    """Return the value of an argument that is a path, with `~` expanded."""
    return Path(value(context, name)).expanduser()


def topic(context: LaunchContext, name: str, camera: str = '') -> str:
    """
    Return the value of an argument that is a topic.

    :param camera: what CAMERA in it stands for
    :raises Refused: if it cannot be one
    """
    found = value(context, name)
    if not TOPIC.fullmatch(text := found.replace('CAMERA', camera) if camera else found):
        raise Refused(f'{name}: found {found!r}, expected the name of a topic, as '
                      '/camera/image_raw')
    return text


def number(context: LaunchContext, name: str, least: float = 0.0) -> str:
    """
    Return the value of an argument that is a number, as it is written.

    :raises Refused: if it is none, or below the least
    """
    text = value(context, name)
    try:
        if least <= float(text) < inf:
            return text
    except ValueError:
        pass
    raise Refused(f'{name}: found {text!r}, expected a number from {least:g} on')


def image_environment() -> dict[str, EnvironmentVariable]:
    """Return the environment that images need; what the user's shell has set stays."""
    return {name: EnvironmentVariable(name, default_value=default)
            for name, default in environment.variables().items()}


def node(context: LaunchContext, remappings: Iterable[tuple[str, Any]],
         parameters: Mapping[str, Any], **options: Any) -> Node:
    """
    Return the node; parameters whose arguments are empty stay as the params_file has them.

    :param parameters: what is set unless an argument says otherwise
    :param options: of launch_ros's Node, beside what every launch file gives it
    :raises Refused: if params_file is not there
    """
    arguments = {name: ParameterValue(LaunchConfiguration(name), value_type=kind)
             for name, kind in _PARAMETERS.items()
             if context.launch_configurations.get(name)}
    return Node(
        package='trt_segmentation',
        executable='segmentation_node',
        parameters=[_parameter_file(context), {**parameters, **arguments}],
        remappings=list(remappings),
        arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
        additional_env=image_environment(),
        output='both',
        **options,
    )


def vehicle_node(context: LaunchContext, remappings: Sequence[tuple[str, Any]],
                 parameters: Mapping[str, Any]) -> Node:
    """Return the node with what `vehicle_arguments` add."""
    def start_again(event: ProcessExited, context: LaunchContext) -> Action | None:
        # The launch system's own respawn knows no exit codes.
        if context.is_shutdown or event.returncode == _ASKED_TO_END:
            return None
        if event.returncode == _WRONG_USE:
            return LogInfo(msg='segmentation_node: another start would give the same (code 2): '
                           'not started again')
        return TimerAction(period=_RESPAWN_SECONDS,
                           actions=[vehicle_node(context, remappings, parameters)])

    return node(context, remappings, parameters, namespace=value(context, 'namespace'),
                on_exit=start_again if value(context, 'respawn') == 'true' else None)


def cameras(context: LaunchContext) -> list[str]:
    """
    Return the cameras' names, from the arguments or as the parameter file has them for the node.

    :raises Refused: if there are none, or names that the node cannot have
    """
    names: Any = [name.strip() for name in value(context, 'cameras').split(',') if name.strip()]
    source = 'cameras'
    if not names:
        source = str(path(context, 'params_file'))
        names = _from_file(context, f'/{value(context, "namespace").strip("/")}/segmentation'
                           .replace('//', '/'))
    if not names:
        raise Refused(f'{source}: lists no cameras for this node; name them with '
                      'cameras:=front,rear')
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refused(f'{source}: cameras: found {names!r}, expected a list of names')
    if reason := cameras_problem(names):
        raise Refused(reason if source == 'cameras' else f'{source}: {reason}')
    return names


def camera_topics(context: LaunchContext, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """
    Return the topics `image` and `camera_info` of each camera.

    :raises Refused: if two cameras would have one topic
    """
    topics = {name: {kind: topic(context, kind, name) for kind in ('image', 'camera_info')}
              for name in names}
    for kind in ('image', 'camera_info'):
        if len(names) > 1 and 'CAMERA' not in value(context, kind):
            raise Refused(f'{kind}: found {value(context, kind)!r}, which is one topic for '
                          f'{len(names)} cameras; write CAMERA where the name of the camera '
                          'belongs')
    return topics


def _parameter_file(context: LaunchContext) -> ParameterFile:
    """Return the parameter file, in which substitutions are made; raises Refused without one."""
    file = path(context, 'params_file')
    if not file.is_file():  # the node would run with defaults
        raise Refused(f'params_file: {file}: there is no such file')
    try:
        return ParameterFile(file, allow_substs='$(' in file.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise Refused(f'params_file: {file}: {error}') from None


def _from_file(context: LaunchContext, node_name: str) -> Any:
    """Return the cameras that the parameter file has for a node; later entries win, as in rcl."""
    file = _parameter_file(context)
    try:
        document = yaml.safe_load(file.evaluate(context).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise Refused(f'{path(context, "params_file")}: {" ".join(str(error).split())}') from None
    found: Any = []
    for section, values in given.sections(document):
        if given.is_for(section, node_name):
            found = values.get('cameras', found)
    return found
