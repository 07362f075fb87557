# SPDX-License-Identifier: Apache-2.0
"""Which topics of a recording are a camera's pictures: one choice for every command."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from trt_segmentation.recordings.image_messages import check, DEPTH
from trt_segmentation.recordings.limits import MalformedImage

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
MASKS = ('class_mask', 'color_mask', 'overlay', 'confidence')
"""Parts of the names of topics with masks, which are not segmented again."""

EMPTY = 'it has no messages'
"""Why a topic is left out that has none, or none that can be read."""

# What image_transport's plugins put behind the name of the base topic.
_COMPRESSED = 'compressed'
_OTHER_TRANSPORTS = ('zstd', 'theora', 'ffmpeg', 'foxglove', 'avif')
_DEPTH_TRANSPORT = 'compressedDepth'
_TRANSPORTS = (_COMPRESSED, _DEPTH_TRANSPORT, *_OTHER_TRANSPORTS)


def choose(topics: Iterable[str], count: Callable[[str], int | None],
           first: Callable[[str], Any]) -> tuple[list[str], dict[str, str]]:
    """
    Return the topics of cameras, one for each base topic, and why the others are left out.

    Raw messages go before compressed ones of the same base topic; masks, depth images, topics
    without messages and those that cannot be decoded are left out.

    :param count: returns how many messages a topic has; None if that is not known
    :param first: returns a topic's first message, or None if it has none
    """
    left_out: dict[str, str] = {}
    by_base: dict[str, str] = {}
    for topic in sorted(topics, key=lambda topic: (_transport(topic) != '', topic)):
        base = topic.removesuffix(f'/{_transport(topic)}') if _transport(topic) else topic
        if set(topic.split('/')) & set(MASKS):
            left_out[topic] = 'masks'
        elif _transport(topic) == _DEPTH_TRANSPORT:
            left_out[topic] = 'depth images'
        elif base in by_base:
            left_out[topic] = f'the pictures of {by_base[base]} again'
        elif reason := _useless(topic, count(topic), first):
            left_out[topic] = reason
        else:
            by_base[base] = topic
    return sorted(by_base.values()), left_out


def _transport(topic: str) -> str:
    """Return the transport that a topic's name tells, '' if it is raw."""
    last = topic.rpartition('/')[2]
    return last if last in _TRANSPORTS else ''


def _useless(topic: str, count: int | None, first: Callable[[str], Any]) -> str:
    """Return why a topic gives no pictures, by its first message; or ''."""
    if _transport(topic) in _OTHER_TRANSPORTS:
        return (f'{_transport(topic)} is not read; decode it with: ros2 run image_transport '
                f'republish {_transport(topic)} raw')
    message = None if count == 0 else first(topic)
    if message is None:
        return EMPTY
    encoding = getattr(message, 'encoding', '')
    if encoding in DEPTH:
        return f'depth images ({encoding})'
    if encoding == 'mono16' and 'depth' in topic:
        return 'depth images (mono16)'
    try:
        check(message)
    except MalformedImage as error:
        # One bad message says nothing of the others; an encoding does.
        return str(error) if error.cause == 'unknown_encoding' else ''
    return ''
