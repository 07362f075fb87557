# SPDX-License-Identifier: Apache-2.0
"""
Play a recording to the node and record its masks: ... replay.launch.py bundle:=DIR bag:=DIR.

Over DDS frames can be lost; `trt-segmentation replay` does without and loses none.
"""

import sys

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, Shutdown
from launch.conditions import IfCondition
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from trt_segmentation.ros import launching
from trt_segmentation.ros.topics import image_topic
from trt_segmentation.system import environment


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the node, what plays and records, and RViz."""
    return launching.description(
        *launching.arguments('replay.yaml'),
        DeclareLaunchArgument('bag', description='the recording to play'),
        DeclareLaunchArgument('output', default_value='masks',
                              description='the recording to write; must not exist'),
        DeclareLaunchArgument('image', default_value='/camera/image_raw',
                              description='the topic of the images in the recording; one that '
                              'ends with /compressed is taken as compressed images'),
        DeclareLaunchArgument('camera_info', default_value='/camera/camera_info',
                              description="the topic of the camera's parameters in it"),
        DeclareLaunchArgument('rate', default_value='1.0',
                              description='times the recorded speed'),
        DeclareLaunchArgument('delay', default_value='2.0',
                              description='seconds that the player waits for its listeners, once '
                              'the node is active'),
        DeclareLaunchArgument('rviz', default_value='false', description='show it in RViz'),
        OpaqueFunction(function=_processes),
        Node(
            package='rviz2', executable='rviz2', output='log',
            arguments=['-d', str(environment.config_path('segmentation.rviz'))],
            parameters=[{'use_sim_time': True}],
            remappings=[('image', LaunchConfiguration('image'))],
            additional_env=launching.image_environment(),
            condition=IfCondition(LaunchConfiguration('rviz'))),
    )


def _processes(context: LaunchContext) -> list[Action]:
    """Return the node, and what plays and records, now that the arguments are known."""
    bag, output = launching.path(context, 'bag'), launching.path(context, 'output')
    image, camera_info = (launching.topic(context, name) for name in ('image', 'camera_info'))
    rate, delay = launching.number(context, 'rate', 0.01), launching.number(context, 'delay')
    if not bag.exists():
        raise launching.Refused(f'bag: {bag}: there is no such recording')
    if output.exists():
        raise launching.Refused(f'output: {output} exists; name another directory')
    topic, parameters = image_topic(image)
    if launching.value(context, 'transport') == 'compressed':
        image = f'{topic}/compressed'
    return [
        launching.node(context, [('image', topic), ('camera_info', camera_info)],
                       {'use_sim_time': True, **parameters}, on_exit=_fails('the node')),
        ExecuteProcess(
            name='replay',
            cmd=[sys.executable, '-m', 'trt_segmentation.ros.replaying', str(bag), str(output),
                 '--rate', rate, '--delay', delay, '--topics', image, camera_info],
            additional_env=launching.image_environment(), output='both',
            on_exit=_fails('the replay', Shutdown(reason='the recording has been played'))),
    ]


def _fails(what: str, otherwise: Action | None = None):
    """Return what happens when a process has ended: an error, or another action after code 0."""
    def on_exit(event: ProcessExited, context: LaunchContext) -> Action | None:
        if context.is_shutdown:
            return None
        if event.returncode or otherwise is None:
            raise RuntimeError(f'{what} has ended with code {event.returncode}')
        return otherwise
    return on_exit
