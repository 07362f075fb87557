# SPDX-License-Identifier: Apache-2.0
"""Segment several cameras' images with one engine: ... multi_camera.launch.py bundle:=DIR."""

from pathlib import Path

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
import yaml

from trt_segmentation.ros import launching


def generate_launch_description() -> LaunchDescription:
    """Return the arguments, the environment for images, and the node."""
    return LaunchDescription([
        *launching.arguments('four_cameras.yaml'),
        *launching.vehicle_arguments(),
        DeclareLaunchArgument('cameras', default_value='',
                              description='names of the cameras, joined by commas; empty: as '
                              'params_file says'),
        DeclareLaunchArgument('image', default_value='CAMERA/image',
                              description="the topics of the cameras' images; CAMERA stands for "
                              "the camera's name"),
        DeclareLaunchArgument('camera_info', default_value='CAMERA/camera_info',
                              description="the topics of the cameras' parameters, likewise"),
        OpaqueFunction(function=_node),
    ])


def _node(context: LaunchContext) -> list[Action]:
    """Return the node, now that the cameras' names are known."""
    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    cameras = [name.strip() for name in value('cameras').split(',') if name.strip()]
    cameras = cameras or _cameras_of(Path(value('params_file')))
    remappings = [(f'{camera}/{topic}', value(topic).replace('CAMERA', camera))
                  for camera in cameras for topic in ('image', 'camera_info')]
    # A rule of a topic to itself is none.
    return [launching.vehicle_node(
        context, [(name, to) for name, to in remappings if name != to], {'cameras': cameras})]


def _cameras_of(params_file: Path) -> list[str]:
    """Return the cameras that a parameter file lists for any node."""
    def search(section) -> list[str]:
        if not isinstance(section, dict):
            return []
        found = section.get('ros__parameters', {}).get('cameras', [])
        return found or next((inner for value in section.values() if (inner := search(value))), [])

    if found := search(yaml.safe_load(params_file.read_text())):
        return found
    raise RuntimeError(f'{params_file}: lists no cameras; name them with cameras:=front,rear')
