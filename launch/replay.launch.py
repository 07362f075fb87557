# SPDX-License-Identifier: Apache-2.0
"""
Play a recording to the node and record its masks: ... replay.launch.py bundle:=DIR bag:=DIR.

Over DDS frames can be lost; `trt-segmentation replay` does without and loses none.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from trt_segmentation.ros import launching
from trt_segmentation.system import environment


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the environment for images, player, node, recorder and RViz."""
    play = ExecuteProcess(
        cmd=['ros2', 'bag', 'play', LaunchConfiguration('bag'), '--clock', '100',
             '--rate', LaunchConfiguration('rate'),
             # For the node and the recorder to find each other first.
             '--delay', LaunchConfiguration('delay'),
             '--topics', LaunchConfiguration('image'), LaunchConfiguration('camera_info')],
        output='both')
    # The masks of the last frames are on their way when the player has ended.
    end = TimerAction(period=2.0, actions=[Shutdown(reason='the recording has been played')])
    return LaunchDescription([
        *launching.arguments('replay.yaml'),
        DeclareLaunchArgument('bag', description='the recording to play'),
        DeclareLaunchArgument('output', default_value='masks',
                              description='the recording to write; must not exist'),
        DeclareLaunchArgument('image', default_value='/camera/image_raw',
                              description='the topic of the images in the recording'),
        DeclareLaunchArgument('camera_info', default_value='/camera/camera_info',
                              description="the topic of the camera's parameters in it"),
        DeclareLaunchArgument('rate', default_value='1.0',
                              description='times the recorded speed'),
        DeclareLaunchArgument('delay', default_value='5.0',
                              description='seconds to wait before playing'),
        DeclareLaunchArgument('rviz', default_value='false', description='show it in RViz'),
        OpaqueFunction(function=_node),
        ExecuteProcess(
            cmd=['ros2', 'bag', 'record', '--output', LaunchConfiguration('output'),
                 '/segmentation/class_mask', '/segmentation/color_mask', '/segmentation/labels'],
            output='both'),
        Node(
            package='rviz2', executable='rviz2', output='log',
            arguments=['-d', str(environment.config_path('segmentation.rviz'))],
            parameters=[{'use_sim_time': True}],
            remappings=[('image', LaunchConfiguration('image'))],
            condition=IfCondition(LaunchConfiguration('rviz'))),
        play,
        RegisterEventHandler(OnProcessExit(target_action=play, on_exit=[end])),
    ])


def _node(context: LaunchContext) -> list[Node]:
    """Return the node, now that it is known which arguments were given."""
    return [launching.node(
        context, [(name, LaunchConfiguration(name)) for name in ('image', 'camera_info')],
        {'use_sim_time': True}, on_exit=Shutdown(reason='the node has ended'))]
