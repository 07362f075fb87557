# SPDX-License-Identifier: Apache-2.0
"""How the messages of recordings are serialized, by rosbags."""

from __future__ import annotations

from functools import cache
from typing import Any

from trt_segmentation.errors import missing_library, one_line
from trt_segmentation.recordings import storage
from trt_segmentation.recordings.storage import Channel
from trt_segmentation.recordings.topics import COMPRESSED_IMAGE, IMAGE

_ENCODINGS = ('cdr', 'ros1')  # of ROS 2 and of ROS 1


def has_images(channel: Channel) -> bool:
    """Tell whether a channel has images that can be read."""
    return channel.msgtype in (IMAGE, COMPRESSED_IMAGE) and channel.encoding in _ENCODINGS


def rosbags() -> Any:
    """Return the module `rosbags.rosbag2`; raises InputError with what to install if missing."""
    try:
        from rosbags import rosbag2
    except ImportError:
        raise missing_library('rosbags', 'Reading and writing bags', 'cpu') from None
    return rosbag2


@cache
def typestore(name: str = 'ROS2_HUMBLE') -> Any:
    """Return the message types; those of images are the same in every ROS 2 distribution."""
    rosbags()
    from rosbags.typesys import get_typestore, Stores
    return get_typestore(Stores[name])


def deserialized(data: bytes | memoryview, channel: Channel) -> Any:
    """Return a message's fields; raises ValueError if the bytes are no such message."""
    types = typestore('ROS1_NOETIC' if channel.encoding == 'ros1' else 'ROS2_HUMBLE')
    try:
        if channel.encoding == 'ros1':
            return types.deserialize_ros1(data, channel.msgtype)
        if data[:4] == storage.ZSTD_MAGIC:  # compressed message by message
            data = storage.unzstd(data)
        return types.deserialize_cdr(data, channel.msgtype)
    except Exception as error:  # of many types, by what the bytes happen to say
        raise ValueError(f'not a message of type {channel.msgtype}: {one_line(error)}') from None
