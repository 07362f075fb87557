# SPDX-License-Identifier: Apache-2.0
"""Segment several cameras' images with one engine: ... multi_camera.launch.py bundle:=DIR."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from trt_segmentation import environment


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the environment for images, and the node."""
    return LaunchDescription([
        DeclareLaunchArgument('bundle', description='the bundle directory'),
        DeclareLaunchArgument('cameras', default_value='front,left,right,rear',
                              description='names of the cameras, joined by commas'),
        DeclareLaunchArgument('image', default_value='CAMERA/image',
                              description="the topics of the cameras' images; CAMERA stands for "
                              "the camera's name"),
        DeclareLaunchArgument('camera_info', default_value='CAMERA/camera_info',
                              description="the topics of the cameras' parameters, likewise"),
        DeclareLaunchArgument('params_file',
                              default_value=str(environment.config_path('four_cameras.yaml')),
                              description="a YAML file with the node's parameters"),
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
        OpaqueFunction(function=_node),
    ])


def _node(context: LaunchContext) -> list[Node]:
    """Return the node, now that the cameras' names are known."""
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    cameras = [name.strip() for name in value('cameras').split(',')]
    remappings = [(f'{camera}/{topic}', value(topic).replace('CAMERA', camera))
                  for camera in cameras for topic in ('image', 'camera_info')]
    return [Node(
        package='trt_segmentation',
        executable='segmentation_node',
        namespace=LaunchConfiguration('namespace'),
        parameters=[LaunchConfiguration('params_file'), {
            'cameras': cameras,
            **{name: ParameterValue(LaunchConfiguration(name), value_type=kind)
               for name, kind in (('bundle', str), ('store', str), ('backend', str),
                                  ('use_sim_time', bool))}}],
        # A rule of a topic to itself is none.
        remappings=[(name, to) for name, to in remappings if name != to],
        arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
        respawn=LaunchConfiguration('respawn'),
        respawn_delay=2.0,
        output='both',
    )]
