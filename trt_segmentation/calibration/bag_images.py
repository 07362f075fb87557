# SPDX-License-Identifier: Apache-2.0
"""Single images of a rosbag2 recording, in any order."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
import threading

import cv2
import numpy as np

from trt_segmentation.errors import InputError
from trt_segmentation.recordings import bags
from trt_segmentation.recordings.image_messages import to_image
from trt_segmentation.recordings.limits import MalformedImage
from trt_segmentation.recordings.pictures import Candidate, Unusable


def find(path: Path, topics: Collection[str] = (), spacing: float = 0.0) -> list[Candidate]:
    """
    Return the images of a bag.

    :param path: a bag's directory, or its .mcap or .db3 file
    :param topics: the image topics to take; all if none is named
    :param spacing: seconds between two images of a topic, by the time of recording
    :raises InputError: if it is no bag, is damaged, or has no such topic
    """
    wanted = bags.Reader(path, topics).topics
    bag = _Bag(path, wanted)
    found = []
    last: dict[str, int] = {}
    for topic, time_ns in bag.times():
        if time_ns - last.get(topic, -2 ** 63) >= spacing * 1e9:
            last[topic] = time_ns
            found.append(Candidate(
                f'{path.absolute().name}{topic}@{time_ns}',
                lambda topic=topic, time_ns=time_ns: bag.load(topic, time_ns)))
    return found


class _Bag:
    """An open recording; the threads that decode images take turns in reading it."""

    def __init__(self, path: Path, topics: dict[str, str]):
        from rosbags import rosbag2
        from rosbags.typesys import get_typestore, Stores
        # Image messages are the same in every ROS 2 distribution.
        self._types = get_typestore(Stores.ROS2_HUMBLE)
        self._path = path
        self._turn = threading.Lock()
        try:
            self._reader = rosbag2.Reader(path)
            self._reader.open()
        except Exception as error:  # of many types, by how the files are damaged
            raise self._damaged(error) from None
        self._connections = {connection.topic: connection
                             for connection in self._reader.connections
                             if connection.topic in topics}

    def times(self) -> list[tuple[str, int]]:
        """Return topic and time of each image message."""
        try:
            return [(connection.topic, time_ns) for connection, time_ns, _
                    in self._reader.messages(list(self._connections.values()))]
        except Exception as error:  # of many types, by how the files are damaged
            raise self._damaged(error) from None

    def load(self, topic: str, time_ns: int) -> tuple[bytes, np.ndarray]:
        """Return the message's bytes and its picture as BGR."""
        connection = self._connections[topic]
        try:
            with self._turn:
                _, _, data = next(self._reader.messages([connection], time_ns, time_ns + 1))
            message = self._types.deserialize_cdr(data, connection.msgtype)
        except Exception as error:  # of many types, by what the bytes happen to say
            raise Unusable(f'the message cannot be read: {error}') from None
        try:
            pixels, color = to_image(message)
        except MalformedImage as error:
            raise Unusable(str(error)) from None
        # A header's stamp and sequence are no content: the same picture twice is a duplicate.
        content = bytes(message.data)
        return content, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if color == 'rgb' else pixels

    def _damaged(self, error: Exception) -> InputError:
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        return InputError(f'{self._path}: the bag is damaged: {text}; mend it with '
                          '`ros2 bag reindex`, or take the images out with another tool')
