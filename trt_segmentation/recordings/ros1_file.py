# SPDX-License-Identifier: Apache-2.0
"""Messages of ROS 1 bags (wiki.ros.org/Bags/Format/2.0), as rosbags reads them."""

from __future__ import annotations

import bz2
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
import shlex
import threading
from typing import Any

from trt_segmentation.errors import missing_library, one_line
from trt_segmentation.recordings.storage import Channel, MAX_UNPACKED, Message, Problem

_MAGIC = b'#ROSBAG V2.'


class Ros1File:
    """A .bag file, open."""

    def __init__(self, path: Path, problem: Problem):
        """
        Look into a file.

        :raises ValueError: if it cannot be read; a recorder that was killed leaves no index
        """
        try:
            from rosbags import rosbag1
        except ImportError:
            raise missing_library('rosbags', 'Reading recordings', 'cpu') from None
        with open(path, 'rb') as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError('no ROS 1 bag: it does not begin as one')
        self._problem, self._turn = problem, threading.Lock()
        self._reader = rosbag1.Reader(path)
        try:
            self._reader.open()
            self._bound()
        except Exception as error:  # of many types, by how the file is damaged
            raise ValueError(f'no ROS 1 bag that can be read: {one_line(error)}; mend it with: '
                             f'rosbag reindex {shlex.quote(path.name)}') from None
        self._connections = dict(enumerate(self._reader.connections))
        self.channels = {number: Channel(connection.topic, connection.msgtype, 'ros1',
                                         connection.msgcount)
                         for number, connection in self._connections.items()}

    def messages(self, channels: Collection[int]) -> Iterator[Message]:
        """Yield messages by their time; a damaged chunk ends it."""
        numbers = {self._connections[number].id: number for number in channels}
        counts: Counter[tuple[int, int]] = Counter()
        found = self._reader.messages([self._connections[number] for number in channels])
        while True:
            try:
                with self._turn:
                    connection, time_ns, data = next(found)
            except StopIteration:
                return
            except Exception as error:  # of many types, by how the file is damaged
                self._problem(f'breaks off: {one_line(error)}')
                return
            channel = numbers[connection.id]
            # Of several messages of one time, the place tells which.
            place = channel << 32 | counts[channel, time_ns], time_ns
            counts[channel, time_ns] += 1
            yield Message(channel, time_ns, bytes(data), place)

    def load(self, place: tuple[int, int]) -> bytes:
        """Return a message's data; raises ValueError if it cannot be read."""
        number, count, time_ns = place[0] >> 32, place[0] & 0xFFFFFFFF, place[1]
        try:
            with self._turn:
                for i, (_, _, data) in enumerate(self._reader.messages(
                        [self._connections[number]], time_ns, time_ns + 1)):
                    if i == count:
                        return bytes(data)
        except Exception as error:  # of many types, by how the file is damaged
            raise ValueError(one_line(error)) from None
        raise ValueError('no such message')

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def _bound(self) -> None:
        """Let no chunk become larger than any that is honest."""
        from rosbags.rosbag1 import reader
        bounded = {reader.decompressors['bz2']: _bz2, reader.decompressors['lz4']: _lz4}
        for at, chunk in self._reader.chunks.items():
            self._reader.chunks[at] = chunk._replace(
                decompressor=bounded.get(chunk.decompressor, chunk.decompressor))


def _bz2(data: bytes) -> bytes:
    """Decompress a chunk, unless it becomes too large."""
    return _whole(bz2.BZ2Decompressor(), data)


def _lz4(data: bytes) -> bytes:
    """Decompress a chunk, unless it becomes too large."""
    from lz4.frame import LZ4FrameDecompressor
    return _whole(LZ4FrameDecompressor(), data)


def _whole(decompressor: Any, data: bytes) -> bytes:
    """Return what comes out; raises ValueError if it is more than `MAX_UNPACKED`, or cut short."""
    out = bytes(decompressor.decompress(data, max_length=MAX_UNPACKED + 1))
    if len(out) > MAX_UNPACKED or not decompressor.eof:
        raise ValueError(f'a chunk is cut short, or more than {MAX_UNPACKED} bytes when '
                         'decompressed')
    return out
