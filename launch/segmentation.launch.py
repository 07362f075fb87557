# SPDX-License-Identifier: Apache-2.0
"""Segment one camera's images: ros2 launch trt_segmentation segmentation.launch.py bundle:=DIR."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from trt_segmentation import environment


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the environment for images, and the node."""
    return LaunchDescription([
        DeclareLaunchArgument('bundle', description='the bundle directory'),
        DeclareLaunchArgument('params_file',
                              default_value=str(environment.config_path('one_camera.yaml')),
                              description="a YAML file with the node's parameters"),
        DeclareLaunchArgument('image', default_value='image',
                              description="the topic of the camera's images"),
        DeclareLaunchArgument('camera_info', default_value='camera_info',
                              description="the topic of the camera's parameters"),
        DeclareLaunchArgument('namespace', default_value='', description="the node's namespace"),
        DeclareLaunchArgument('store', default_value='',
                              description='where built engines live; empty for the default'),
        DeclareLaunchArgument('backend', default_value='auto',
                              description='auto, tensorrt, tensorrt_rtx or onnxruntime'),
        DeclareLaunchArgument('use_sim_time', default_value='false',
                              description='take the time from /clock'),
        DeclareLaunchArgument('log_level', default_value='info',
                              description='debug, info, warn, error or fatal'),
        DeclareLaunchArgument('respawn', default_value='true',
                              description='start the node again if its process ends'),
        # What the user's shell has set stays.
        *[SetEnvironmentVariable(name, EnvironmentVariable(name, default_value=value))
          for name, value in environment.variables().items()],
        Node(
            package='trt_segmentation',
            executable='segmentation_node',
            namespace=LaunchConfiguration('namespace'),
            parameters=[LaunchConfiguration('params_file'), {
                name: ParameterValue(LaunchConfiguration(name), value_type=kind)
                for name, kind in (('bundle', str), ('store', str), ('backend', str),
                                   ('use_sim_time', bool))}],
            remappings=[(name, LaunchConfiguration(name)) for name in ('image', 'camera_info')],
            arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
            respawn=LaunchConfiguration('respawn'),
            respawn_delay=2.0,
            output='both',
        ),
    ])
