# SPDX-License-Identifier: Apache-2.0
"""Images in rosbag2 recordings: reading what is readable, and writing, without ROS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import os
from pathlib import Path
import shutil
import sqlite3
import tempfile
from typing import Any

import numpy as np

from trt_segmentation.errors import InputError, missing_library
from trt_segmentation.recordings import image_messages
from trt_segmentation.recordings import recovery as bag_recovery
from trt_segmentation.recordings.limits import MalformedImage

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
STORAGES = {'mcap': '.mcap', 'sqlite3': '.db3'}
"""The storage formats that can be written, and how their files end."""


@dataclass(frozen=True)
class Recorded:
    """
    One image message of a bag.

    time_ns: when it was recorded, nanoseconds since 1970
    message: with the fields of sensor_msgs/Image or CompressedImage; `data` is a read-only view
    """

    topic: str
    time_ns: int
    message: Any

    @property
    def stamp_ns(self) -> int:
        """Return the header's stamp, nanoseconds."""
        stamp = self.message.header.stamp
        return stamp.sec * 1_000_000_000 + stamp.nanosec

    @property
    def frame_id(self) -> str:
        """Return the header's frame_id."""
        return self.message.header.frame_id


@dataclass(frozen=True)
class Frame:
    """
    A decoded image of a bag.

    stamp_ns, frame_id: of the message's header
    image: uint8 (height, width, 3), or (height, width) where the encoding is mono8
    color: the image's channel order: 'bgr', 'rgb' or 'mono'
    """

    stamp_ns: int
    frame_id: str
    image: np.ndarray
    color: str


class Reader:
    """
    The image messages of a bag, in their order; every iteration reads the bag anew.

    topics: the message type of each topic that is read, by name
    count: how many messages the bag says there are on them; 0 if it does not say
    problems: a sentence for each thing that could not be read; complete after an iteration
    """

    def __init__(self, path: str | os.PathLike, topics: Collection[str] = ()):
        """
        Look into a bag: a directory, or one .mcap or .db3 file, compressed and split as may be.

        :param topics: the topics to read; all image topics if none is named
        :raises InputError: if it is no bag, or has not the topics
        """
        self.path = Path(path)
        self.problems: list[str] = []
        if not is_bag(self.path):
            raise InputError(f'{path}: no rosbag2 recording; expected a directory with '
                             'metadata.yaml, or a file .mcap or .db3')
        self._damaged = False
        self._found = {topic: (msgtype, count) for topic, (msgtype, count) in self._look().items()
                       if msgtype in (IMAGE, COMPRESSED_IMAGE)}
        if not self._found:
            cause = f': {self.problems[0]}' if self.problems else ''
            raise InputError(f'{path}: no images in it (sensor_msgs Image or CompressedImage)'
                             f'{cause}')
        self.select(topics or self._found)

    def select(self, topics: Collection[str]) -> None:
        """Read these topics from now on; raises InputError if the bag has no images on one."""
        if missing := sorted(set(topics) - set(self._found)):
            raise InputError(f'{self.path}: no image topic {missing[0]!r}; the bag has '
                             f'{", ".join(sorted(self._found))}')
        self.topics = {topic: self._found[topic][0] for topic in sorted(topics)}
        self.count = sum(self._found[topic][1] for topic in self.topics)

    def __iter__(self) -> Iterator[Recorded]:
        """Yield the messages; what cannot be read is named in `problems`."""
        typestore = _typestore()
        for topic, time_ns, data in self._raw_messages():
            try:
                message = typestore.deserialize_cdr(data, self.topics[topic])
            except Exception as error:  # of many types, by what the bytes happen to say
                self._problem(f'{topic} at {time_ns} ns: not a message of type '
                              f'{self.topics[topic]}: {_one_line(error)}')
                continue
            yield Recorded(topic, time_ns, message)

    def _look(self) -> dict[str, tuple[str, int]]:
        """Return type and number of the messages on each topic, by name."""
        rosbag2 = _rosbags()
        try:
            if cut := bag_recovery.cut_in_page(self.path):
                raise rosbag2.ReaderError(cut)
            with rosbag2.Reader(self.path) as reader:
                return {connection.topic: (connection.msgtype, connection.msgcount)
                        for connection in reader.connections}
        except Exception as error:  # of many types, by how the files are damaged
            self._damaged = True
            self._problem(f'{self.path}: {_one_line(error)}')
            return {topic: (msgtype, 0)
                    for topic, msgtype in bag_recovery.topics(self.path).items()}

    def _raw_messages(self) -> Iterator[tuple[str, int, bytes]]:
        """Yield (topic, time, data), through recovery from where the plain way breaks off."""
        seen: Counter[tuple[str, int]] = Counter()
        if not self._damaged:
            try:
                with _rosbags().Reader(self.path) as reader:
                    connections = [c for c in reader.connections if c.topic in self.topics]
                    for connection, time_ns, data in reader.messages(connections):
                        seen[connection.topic, time_ns] += 1
                        yield connection.topic, time_ns, data
                return
            except Exception as error:  # of many types, by how the files are damaged
                self._problem(f'{self.path}: {_one_line(error)}')
        for topic, time_ns, data in bag_recovery.messages(self.path, self._problem):
            if seen[topic, time_ns]:
                seen[topic, time_ns] -= 1
            elif topic in self.topics:
                yield topic, time_ns, data

    def _problem(self, sentence: str) -> None:
        """Note what could not be read, once."""
        if sentence not in self.problems:
            self.problems.append(sentence)


class Writer:
    """
    A new bag, which appears when the `with` block ends without an error, or not at all.

    Equal calls write equal bytes.
    """

    def __init__(self, path: str | os.PathLike, *, storage: str = '', compress: bool = False):
        """
        Prepare to write.

        :param path: a directory to be made, or a single file if it ends in .mcap or .db3
        :param storage: 'mcap' or 'sqlite3'; by default what the path's end says, else mcap
        :param compress: compress with zstd (mcap: by chunks; sqlite3: by messages)
        :raises InputError: if the path exists already
        """
        self.path = Path(path)
        by_suffix = {suffix: name for name, suffix in STORAGES.items()}
        self._single = self.path.suffix in by_suffix
        self._storage = storage or by_suffix.get(self.path.suffix, 'mcap')
        if self._single and by_suffix[self.path.suffix] != self._storage:
            raise InputError(f'{path}: found storage {storage}, expected '
                             f'{by_suffix[self.path.suffix]} for a file of this name')
        if self._single and compress and self._storage == 'sqlite3':
            raise InputError(f'{path}: a single .db3 file cannot be compressed, because only '
                             'metadata.yaml would say so; expected a directory, or .mcap')
        if self.path.exists():
            raise InputError(f'{path}: exists already; remove it, or name another output')
        self._compress = compress
        self._connections: dict[str, Any] = {}

    def __enter__(self) -> Writer:
        """Open the bag under a hidden name beside its own."""
        rosbag2 = _rosbags()
        with self._writing():
            self.path.absolute().parent.mkdir(parents=True, exist_ok=True)
            self._directory = Path(tempfile.mkdtemp(
                prefix=f'.{self.path.name}.', dir=self.path.absolute().parent))
        self._writer = rosbag2.Writer(
            self._directory / self.path.stem, version=9,
            storage_plugin=rosbag2.StoragePlugin[self._storage.upper()])
        if self._compress:
            mode = (rosbag2.CompressionMode.STORAGE if self._storage == 'mcap'
                    else rosbag2.CompressionMode.MESSAGE)
            self._writer.set_compression(mode, rosbag2.CompressionFormat.ZSTD)
        try:
            with self._writing():
                self._writer.open()
        except InputError:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Put the bag in its place; or remove it after an error."""
        try:
            with self._writing():
                self._writer.__exit__(kind, error, traceback)
                if kind is None:
                    written = self._directory / self.path.stem
                    if self._single:
                        written /= f'{self.path.stem}{self.path.suffix}'
                    os.rename(written, self.path)
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    def write(self, topic: str, message: Any, time_ns: int) -> None:
        """
        Write a message.

        :param message: as `Recorded.message` has it, or as `image_message` makes it
        :param time_ns: when it is to be played, nanoseconds since 1970
        """
        typestore = _typestore()
        msgtype = message.__msgtype__
        data = typestore.serialize_cdr(message, msgtype)
        with self._writing():
            if topic not in self._connections:
                self._connections[topic] = self._writer.add_connection(
                    topic, msgtype, typestore=typestore)
            self._writer.write(self._connections[topic], time_ns, data)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what a disk that is full or cannot be written does into an InputError."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f'{self.path}: cannot be written: {reason}') from None

    def write_image(self, topic: str, pixels: np.ndarray, encoding: str, stamp_ns: int,
                    frame_id: str, time_ns: int | None = None) -> None:
        """
        Write pixels as a sensor_msgs/Image.

        :param pixels: uint8 (height, width) or (height, width, channels)
        :param time_ns: when it is to be played; at its stamp if left out
        """
        self.write(topic, image_message(pixels, encoding, stamp_ns, frame_id),
                   stamp_ns if time_ns is None else time_ns)


def is_bag(path: str | os.PathLike) -> bool:
    """Tell whether a path is a rosbag2 recording: a directory with its files, or one of them."""
    path = Path(path)
    if path.is_dir():
        return (path / 'metadata.yaml').is_file() or bool(bag_recovery.storage_files(path))
    return path.is_file() and path.suffix in STORAGES.values()


def read_images(path: str | os.PathLike, topics: Collection[str] = ()
                ) -> Iterator[tuple[str, Frame]]:
    """
    Yield (topic, frame) of a bag's images, in their order.

    :param topics: the topics to read; all image topics if none is named
    :raises InputError: if anything in the bag cannot be read or decoded
    """
    reader = Reader(path, topics)
    for recorded in reader:
        message = recorded.message
        try:
            image, color = image_messages.to_image(message)
        except MalformedImage as error:
            raise InputError(f'{path}: {recorded.topic} at stamp {recorded.stamp_ns} ns: '
                             f'{error}') from None
        if getattr(message, 'encoding', '') == 'mono8':
            image, color = image[..., 0], 'mono'
        yield recorded.topic, Frame(recorded.stamp_ns, recorded.frame_id, image, color)
    if reader.problems:
        raise InputError(reader.problems[0])


def image_message(pixels: np.ndarray, encoding: str, stamp_ns: int, frame_id: str) -> Any:
    """
    Return a sensor_msgs/Image for `Writer.write`.

    :param pixels: uint8 (height, width) or (height, width, channels)
    :param encoding: an 8-bit encoding with as many channels
    """
    types = _typestore().types
    height, width = pixels.shape[:2]
    header = types['std_msgs/msg/Header'](
        types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 1_000_000_000)), frame_id)
    return types[IMAGE](header, height, width, encoding, 0, pixels.nbytes // height,
                        np.ascontiguousarray(pixels).reshape(-1))


def compressed_image_message(data: bytes, image_format: str, stamp_ns: int, frame_id: str) -> Any:
    """
    Return a sensor_msgs/CompressedImage for `Writer.write`.

    :param data: a picture file's bytes
    :param image_format: 'jpeg' or 'png'
    """
    types = _typestore().types
    header = types['std_msgs/msg/Header'](
        types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 1_000_000_000)), frame_id)
    return types[COMPRESSED_IMAGE](header, image_format, np.frombuffer(data, np.uint8))


def _rosbags():
    """Return the module `rosbags.rosbag2`; raises InputError with what to install if missing."""
    try:
        from rosbags import rosbag2
    except ImportError:
        raise missing_library('rosbags', 'Reading and writing bags', 'cpu') from None
    return rosbag2


_store: Any = None


def _typestore():
    """Return the message types; those of images are the same in every ROS 2 distribution."""
    global _store
    if _store is None:
        from rosbags.typesys import get_typestore, Stores
        _store = get_typestore(Stores.ROS2_HUMBLE)
    return _store


def _one_line(error: Exception) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
