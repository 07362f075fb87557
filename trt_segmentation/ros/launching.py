# SPDX-License-Identifier: Apache-2.0
"""What the launch files share; only they import this, since `launch` is not needed otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from launch import Action, LaunchContext
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from trt_segmentation.system import environment

# The node's parameters that are arguments too, of one launch file or another.
_PARAMETERS = {'bundle': str, 'store': str, 'backend': str, 'use_sim_time': bool}


def arguments(params_file: str) -> list[Action]:
    """
    Return the arguments that each launch file has, and the environment that images need.

    :param params_file: the name of the default in `config`
    """
    return [
        DeclareLaunchArgument('bundle', description='the bundle directory'),
        DeclareLaunchArgument('params_file',
                              default_value=str(environment.config_path(params_file)),
                              description="a YAML file with the node's parameters"),
        DeclareLaunchArgument('store', default_value='',
                              description='where built engines live; empty: as params_file says, '
                              'else the default place'),
        DeclareLaunchArgument('backend', default_value='',
                              description='auto, tensorrt, tensorrt_rtx or onnxruntime; empty: as '
                              'params_file says, else auto'),
        DeclareLaunchArgument('log_level', default_value='info',
                              description='debug, info, warn, error or fatal'),
        # What the user's shell has set stays.
        *[SetEnvironmentVariable(name, EnvironmentVariable(name, default_value=value))
          for name, value in environment.variables().items()],
    ]


def vehicle_arguments() -> list[Action]:
    """Return the further arguments of the launch files for a vehicle."""
    return [
        DeclareLaunchArgument('namespace', default_value='', description="the node's namespace"),
        DeclareLaunchArgument('use_sim_time', default_value='',
                              description='true: take the time from /clock; empty: as params_file '
                              'says, else false'),
        DeclareLaunchArgument('respawn', default_value='true',
                              description='start the node again if its process ends'),
    ]


def node(context: LaunchContext, remappings: Iterable[tuple[str, Any]],
         parameters: Mapping[str, Any], **options: Any) -> Node:
    """
    Return the node; parameters whose arguments are empty stay as the params_file has them.

    :param parameters: what is set whatever the arguments are
    :param options: of launch_ros's Node, beside what every launch file gives it
    """
    given = {name: ParameterValue(LaunchConfiguration(name), value_type=kind)
             for name, kind in _PARAMETERS.items()
             if context.launch_configurations.get(name)}
    return Node(
        package='trt_segmentation',
        executable='segmentation_node',
        parameters=[LaunchConfiguration('params_file'), {**given, **parameters}],
        remappings=list(remappings),
        arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
        output='both',
        **options,
    )


def vehicle_node(context: LaunchContext, remappings: Iterable[tuple[str, Any]],
                 parameters: Mapping[str, Any]) -> Node:
    """Return the node with what `vehicle_arguments` add."""
    return node(context, remappings, parameters, namespace=LaunchConfiguration('namespace'),
                respawn=LaunchConfiguration('respawn'), respawn_delay=2.0)
