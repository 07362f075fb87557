# SPDX-License-Identifier: Apache-2.0
"""Segment one camera's images: ros2 launch trt_segmentation segmentation.launch.py bundle:=DIR."""

from launch import Action, LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction

from trt_segmentation.ros import launching
from trt_segmentation.ros.topics import image_topic


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the node."""
    return launching.description(
        *launching.arguments('one_camera.yaml'),
        *launching.vehicle_arguments(),
        DeclareLaunchArgument('image', default_value='image',
                              description="the topic of the camera's images"),
        DeclareLaunchArgument('camera_info', default_value='camera_info',
                              description="the topic of the camera's parameters"),
        OpaqueFunction(function=_node),
    )


def _node(context: LaunchContext) -> list[Action]:
    """Return the node, now that it is known which arguments were given."""
    image, parameters = image_topic(launching.topic(context, 'image'))
    return [launching.vehicle_node(
        context, [('image', image), ('camera_info', launching.topic(context, 'camera_info'))],
        parameters)]
