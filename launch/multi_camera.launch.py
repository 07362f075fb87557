# SPDX-License-Identifier: Apache-2.0
"""Segment several cameras' images with one engine: ... multi_camera.launch.py bundle:=DIR."""

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from trt_segmentation.ros import launching
from trt_segmentation.ros.topics import image_topic


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the node."""
    return launching.description(
        *launching.arguments('four_cameras.yaml'),
        *launching.vehicle_arguments(),
        DeclareLaunchArgument('cameras', default_value='',
                              description='names of the cameras, joined by commas; empty: as '
                              'params_file says for this node'),
        DeclareLaunchArgument('image', default_value='CAMERA/image',
                              description="the topics of the cameras' images; CAMERA stands for "
                              "the camera's name"),
        DeclareLaunchArgument('camera_info', default_value='CAMERA/camera_info',
                              description="the topics of the cameras' parameters, likewise"),
        OpaqueFunction(function=_node),
    )


def _node(context: LaunchContext) -> list[Action]:
    """Return the node, now that the cameras' names are known."""
    cameras, remappings = launching.cameras(context), []
    parameters = {'cameras': cameras}
    for camera, topics in launching.camera_topics(context, cameras).items():
        image, transport = image_topic(topics['image'])
        parameters |= transport
        remappings += [(f'{camera}/image', image), (f'{camera}/camera_info',
                                                    topics['camera_info'])]
    # A rule of a topic to itself is none.
    return [launching.vehicle_node(context, [(name, to) for name, to in remappings if name != to],
                                   parameters)]
