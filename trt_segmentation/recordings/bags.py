# SPDX-License-Identifier: Apache-2.0
"""Images in rosbag2 recordings: reading what is readable, and writing, without ROS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, ExitStack
from dataclasses import dataclass
import os
from pathlib import Path
import re
import sqlite3
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from trt_segmentation.errors import counted, InputError, nearest, printable, shown
from trt_segmentation.recordings import image_messages, message_types
from trt_segmentation.recordings.bag_files import BagFiles
from trt_segmentation.recordings.limits import MalformedImage
from trt_segmentation.recordings.storage import NoImages
from trt_segmentation.recordings.topics import choose, COMPRESSED_IMAGE, EMPTY, IMAGE
from trt_segmentation.system import files

STORAGES = {'mcap': '.mcap', 'sqlite3': '.db3'}
"""The storage formats that can be written, and how their files end."""


class Place(NamedTuple):
    """Where a message lies: the number of its file, of its channel there, and the place in it."""

    file: int
    channel: int
    inner: tuple[int, int]


@dataclass(frozen=True)
class Recorded:
    """
    One image message of a bag.

    time_ns: when it was recorded, nanoseconds since 1970
    message: with the fields of sensor_msgs/Image or CompressedImage; `data` is a read-only view
    place: for `Reader.load`
    """

    topic: str
    time_ns: int
    message: Any
    place: Place

    @property
    def stamp_ns(self) -> int:
        """Return the header's stamp, nanoseconds."""
        stamp = self.message.header.stamp
        return int(stamp.sec * 1_000_000_000 + stamp.nanosec)

    @property
    def where(self) -> str:
        """Return topic and stamp in words."""
        return f'{self.topic} at stamp {self.stamp_ns} ns'

    @property
    def frame_id(self) -> str:
        """Return the header's frame_id."""
        return str(self.message.header.frame_id)


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
    The image messages of a recording, in their order; every iteration reads the files anew.

    Each message comes once. What is damaged costs what it has hit.

    topics: the message type of each topic that is read, by name
    count: how many messages the recording promises on them; 0 if it does not say
    given: how many of each topic the last iteration gave
    left_out: why a topic with images is not read, by name; of `choose_cameras`
    problems: a sentence for each thing that could not be read; complete after an iteration
    """

    def __init__(self, path: str | os.PathLike[str], topics: Collection[str] = ()):
        """
        Look into a recording: a directory, or one .mcap, .db3 or .bag file, split as may be.

        :param topics: the topics to read; all with images if none is named
        :raises NoImages: if it is no recording, or has not the topics
        """
        self.path = Path(path)
        self.problems: list[str] = []
        self.left_out: dict[str, str] = {}
        self.given: Counter[str] = Counter()
        try:
            self._files = BagFiles(self.path, self._problem)
        except OSError as error:
            raise NoImages(f'{path}: cannot be read: {error.strerror}') from None
        self._found: dict[str, str] = {}
        self._stored: dict[str, int] = {}
        others: dict[str, str] = {}
        for channels in self._files.channels.values():
            for channel in channels.values():
                if message_types.has_images(channel):
                    self._found.setdefault(channel.topic, channel.msgtype)
                    self._stored[channel.topic] = (self._stored.get(channel.topic, 0)
                                                   + (channel.count or 0))
                elif 'image' in channel.msgtype.lower():
                    others[channel.topic] = f'{channel.msgtype} in {channel.encoding}'
        if not self._found:
            cause = self.problems[:1] or [f'it has {kind} on {topic}'
                                          for topic, kind in sorted(others.items())][:3]
            raise NoImages(f'{path}: no images in it (sensor_msgs Image or CompressedImage)'
                             + (f': {", ".join(cause)}' if cause else ''))
        self.select(topics or self._found)

    def select(self, topics: Collection[str]) -> None:
        """Read these topics from now on; raises NoImages if there is not one of them."""
        if missing := sorted(set(topics) - set(self._found)):
            raise NoImages(f'{self.path}: no image topic {missing[0]!r}; the bag has '
                             f'{", ".join(sorted(self._found))}'
                             + nearest(missing[0], self._found))
        self.topics = {topic: self._found[topic] for topic in sorted(topics)}
        self.count = sum(self._promised(topic) for topic in self.topics)

    def choose_cameras(self, topics: Collection[str] = ()) -> None:
        """
        Read the topics with pictures of cameras, one for each of them (see `topics.choose`).

        :param topics: the topics to read instead, if any is named
        :raises NoImages: if there is no such topic; the message says why each was left out
        """
        if topics:
            self.select(topics)
            return
        chosen, self.left_out = choose(self._found, lambda topic: self._stored[topic] or None,
                                       self._first)
        if not chosen:
            reasons = ', '.join(f'{topic} ({why})' for topic, why in self.left_out.items())
            # One that has no messages, as where the file is cut, is not to be named.
            advice = self.problems[:1] or ['name one with --topic'] * (
                set(self.left_out.values()) != {EMPTY})
            raise NoImages('; '.join([f'{self.path}: no topic with pictures of a camera: '
                                        f'{reasons}', *advice]))
        self.select(chosen)

    def __iter__(self) -> Iterator[Recorded]:
        """Yield the messages; what cannot be read is named in `problems`."""
        self.given.clear()
        yield from self._read(self.topics)
        for topic in self.topics:
            if (promised := self._promised(topic)) != self.given[topic] and promised:
                self._problem(f'{self.path}: {topic}: '
                              f'{counted(promised, "message is", "messages are")} promised, '
                              f'{self.given[topic]} could be read')

    def load(self, place: Place) -> Any:
        """
        Return the message at a place of `Recorded.place`; several threads may ask.

        :raises ValueError: if it cannot be read any more
        """
        opened = self._files.open(place.file)
        if opened is None:
            raise ValueError('the file cannot be opened any more')
        return message_types.deserialized(opened.load(place.inner),
                             self._files.channels[place.file][place.channel])

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _read(self, topics: Collection[str]) -> Iterator[Recorded]:
        """Yield the messages of topics, file by file."""
        for number, channels in self._files.channels.items():
            wanted = [key for key, channel in channels.items()
                      if channel.topic in topics and message_types.has_images(channel)]
            opened = self._files.open(number) if wanted else None
            for message in opened.messages(wanted) if opened else ():
                channel = channels[message.channel]
                self.given[channel.topic] += 1
                try:
                    _check_time(message.time_ns)
                    decoded = message_types.deserialized(message.data, channel)
                    recorded = Recorded(channel.topic, message.time_ns, decoded,
                                        Place(number, message.channel, message.place))
                    _check_stamp(recorded.stamp_ns)
                except ValueError as error:
                    self._problem(f'{channel.topic} at {shown(message.time_ns)} ns: {error}')
                    continue
                yield recorded

    def _first(self, topic: str) -> Any:
        """Return a topic's first message that can be read, or None."""
        return next((recorded.message for recorded in self._read([topic])), None)

    def _promised(self, topic: str) -> int:
        """Return how many messages there are to be; 0 if nothing says so."""
        return self._files.promised.get(topic) or self._stored[topic]

    def _problem(self, sentence: str) -> None:
        """Note what could not be read, once, in one line whatever names it has in it."""
        sentence = printable(sentence)
        if sentence not in self.problems:
            self.problems.append(sentence)


class Writer:
    """
    A new bag, which appears when the `with` block ends without an error, or not at all.

    Equal calls write equal bytes.
    """

    def __init__(self, path: str | os.PathLike[str], *, storage: str = '', compress: bool = False):
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
        rosbag2 = message_types.rosbags()
        # rosbags makes a URI of a path, in which these mean something, also further up.
        self._name = re.sub('[?#%]', '_', self.path.stem)
        with self._writing(), ExitStack() as stack:
            self._directory, descriptor = stack.enter_context(
                files.hidden_directory(self.path.absolute()))
            self._writer = rosbag2.Writer(
                Path(f'/proc/self/fd/{descriptor}', self._name), version=8,  # the last of Humble
                storage_plugin=rosbag2.StoragePlugin[self._storage.upper()])
            if self._compress:
                mode = (rosbag2.CompressionMode.STORAGE if self._storage == 'mcap'
                        else rosbag2.CompressionMode.MESSAGE)
                self._writer.set_compression(mode, rosbag2.CompressionFormat.ZSTD)
            self._writer.open()
            self._hidden = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        """Put the bag in its place; or remove it after an error."""
        with self._hidden, self._writing():
            self._writer.__exit__(kind, error, traceback)
            if kind is None:
                written = self._directory / self._name
                if self._single:
                    written /= f'{self._name}{self.path.suffix}'
                os.rename(written, self.path)

    def write(self, topic: str, message: Any, time_ns: int) -> None:
        """
        Write a message.

        :param message: as `Recorded.message` has it, or as `image_message` makes it
        :param time_ns: when it is to be played, nanoseconds since 1970
        """
        typestore = message_types.typestore()
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

    def write_text(self, topic: str, text: str, time_ns: int) -> None:
        """Write a std_msgs/String."""
        string = message_types.typestore().types['std_msgs/msg/String']
        self.write(topic, string(text), time_ns)


def read_images(path: str | os.PathLike[str], topics: Collection[str] = ()
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
            raise InputError(f'{path}: {recorded.where}: {error}') from None
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
    height, width = pixels.shape[:2]
    return message_types.typestore().types[IMAGE](
        _header(stamp_ns, frame_id), height, width, encoding, 0, pixels.nbytes // height,
        np.ascontiguousarray(pixels).reshape(-1))


def compressed_image_message(data: bytes, image_format: str, stamp_ns: int, frame_id: str) -> Any:
    """
    Return a sensor_msgs/CompressedImage for `Writer.write`.

    :param data: a picture file's bytes
    :param image_format: 'jpeg' or 'png', or what image_transport writes
    """
    return message_types.typestore().types[COMPRESSED_IMAGE](
        _header(stamp_ns, frame_id), image_format, np.frombuffer(data, np.uint8))


def _check_time(time_ns: Any) -> None:
    """Raise ValueError unless it is a time that every storage can hold."""
    if not isinstance(time_ns, int) or not 0 <= time_ns < 1 << 63:
        raise ValueError('the time of recording is none; expected nanoseconds, 0 to 2^63 - 1')


def _check_stamp(stamp_ns: int) -> None:
    """Raise ValueError unless a message of ROS 2 can hold it, whose seconds have 32 bits."""
    if not -1 << 31 <= stamp_ns // 1_000_000_000 < 1 << 31:
        raise ValueError(f"the header's stamp is none: {stamp_ns} ns")


def _header(stamp_ns: int, frame_id: str) -> Any:
    """Return a std_msgs/Header."""
    types = message_types.typestore().types
    return types['std_msgs/msg/Header'](
        types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 1_000_000_000)), frame_id)
