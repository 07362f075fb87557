# SPDX-License-Identifier: Apache-2.0
"""
A ring of mcap files of frames that the engine got wrong: of bounded size, and never half a frame.

A frame is written as chunks of one message each and forced to the disk, so a process that is
killed loses no frame but the one it was writing; what it has left open is closed by the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
import fcntl
import json
import os
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from trt_segmentation.errors import InputError, missing_library
from trt_segmentation.recordings import bags, message_types
from trt_segmentation.recordings.image_messages import MASK_FORMAT, mask_png
from trt_segmentation.recordings.mcap_file import DATA_END, FOOTER, MAGIC, McapFile, PREFIX
from trt_segmentation.recordings.metadata import CAPTURED
from trt_segmentation.recordings.pictures import alike
from trt_segmentation.system import files

_OVERHEAD = 1 << 10  # bytes of a message's chunk and of its place in the index, at most
_FILE_OVERHEAD = 32 << 10  # of a file's schemas, which stand in it twice
_FILES = 8  # that the ring consists of, when it is full
# No summary: whoever reads the file reads it from its start.
_END = (PREFIX.pack(DATA_END, 4) + bytes(4) + PREFIX.pack(FOOTER, 20) + bytes(20) + MAGIC)
FIGURES_SUFFIX = '/capture'
"""What the topic of a frame's figures (std_msgs/String, JSON) ends with."""


@dataclass(frozen=True, eq=False)
class Capture:
    """
    A frame to be kept.

    topic, msgtype, data: of the image message as it came, serialized (CDR)
    mask_topic: of the class mask; both masks' topics begin with it, so no reader takes them for a
        camera's pictures
    node_topic: what the topic of the figures begins with
    classes, reference: the engine's mask and the float network's, uint8 (height, width) train ids
    stamp_ns, frame_id: of the image's header; time_ns: when it was captured
    figures: JSON values
    perceptual_hash: of the image, see `pictures.perceptual_hash`
    """

    topic: str
    msgtype: str
    data: bytes
    mask_topic: str
    node_topic: str
    classes: np.ndarray
    reference: np.ndarray
    stamp_ns: int
    frame_id: str
    time_ns: int
    figures: dict[str, Any]
    perceptual_hash: int


class Captures:
    """
    The files of a directory, of which one process writes.

    written, duplicates: how many frames were kept, and left because one alike is there
    """

    def __init__(self, directory: Path, max_bytes: int, min_free_bytes: int):
        """
        Take a directory, which is made, and close what a killed process has left open in it.

        :param max_bytes: that all files may have
        :param min_free_bytes: that stay free on the disk
        :raises InputError: if it cannot be written, another process writes into it, or a library
            is missing
        """
        self._directory, self._max, self._min_free = directory, max_bytes, min_free_bytes
        self.written = self.duplicates = 0
        self._hashes: dict[Path, list[int]] = {}
        self._writer: Any = None
        self._stream: Any = None
        self._path: Path | None = None
        self._temporary: Path | None = None  # where it lies until it has a frame
        self._channels: dict[tuple[str, str], int] = {}
        _mcap()
        message_types.rosbags()
        with ExitStack() as undo:
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._lock = os.open(directory / '.lock',
                                     os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                undo.callback(os.close, self._lock)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                files.remove_temporary(directory)
                for path in self._files():
                    mend(path)
                    self._hashes[path] = list(_hashes(path)) if path.exists() else []
            except BlockingIOError:
                raise InputError(f'{directory}: another process captures into it; name another '
                                 'directory') from None
            except OSError as error:
                raise self._unwritable(error) from None
            undo.pop_all()

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(path.stat().st_size for path in self._files())

    def add(self, capture: Capture) -> bool:
        """
        Keep a frame; return whether it was, which it is not if one alike is there.

        :raises InputError: if there is no room, or the directory cannot be written
        """
        # Somebody may bring files home meanwhile.
        self._hashes = {path: hashes for path, hashes in self._hashes.items()
                        if path.exists() or path == self._path}
        if any(alike(capture.perceptual_hash, other)
               for hashes in self._hashes.values() for other in hashes):
            self.duplicates += 1
            return False
        messages = _messages(capture)
        size = sum(len(data) + _OVERHEAD for _, _, data in messages)
        try:
            self._make_room(size)
            if self._path is None:
                self._begin()
            for topic, msgtype, data in messages:
                self._write(topic, msgtype, data, capture.time_ns)
            self._stream.flush()
            os.fsync(self._stream.fileno())
            if self._temporary is not None and self._path is not None:
                os.replace(self._temporary, self._path)
                files.sync_directory(self._directory)
                self._temporary = None
        except OSError as error:
            self._abandon()
            raise self._unwritable(error) from None
        assert self._path is not None
        self._hashes[self._path].append(capture.perceptual_hash)
        self.written += 1
        return True

    def close(self) -> None:
        """Close the file that is being written, with its index, and let the directory go."""
        with suppress(OSError):  # without its index, the file is closed by who comes next
            self._finish()
        os.close(self._lock)

    def _files(self) -> list[Path]:
        """Return the files of the ring, the oldest first."""
        return sorted((path for path in self._directory.iterdir()
                       if CAPTURED.fullmatch(path.name)),
                      key=lambda path: int(path.stem.rpartition('_')[2]))

    def _make_room(self, size: int) -> None:
        """Begin another file if this one is full, and remove the oldest ones."""
        if size + _FILE_OVERHEAD > self._max:
            raise InputError(f'{self._directory}: a frame has {size >> 20} MiB, more than all '
                             f'files may have ({self._max >> 20} MiB)')
        gone = (self._path is not None and self._temporary is None and not self._path.exists())
        if gone or (self._path is not None
                    and self._stream.tell() + size > self._max // _FILES):
            self._finish()
        while self.size() + size + _FILE_OVERHEAD > self._max:
            oldest = self._files()[0]
            if oldest == self._path:
                self._finish()
            oldest.unlink()
            self._hashes.pop(oldest, None)
        free = shutil.disk_usage(self._directory).free - size
        if free < self._min_free:
            raise InputError(f'{self._directory}: {max(free, 0) >> 20} MiB of the disk would stay '
                             f'free, less than {self._min_free >> 20}')

    def _begin(self) -> None:
        """Begin a new file, which takes its place with its first frame."""
        numbers = [int(path.stem.rpartition('_')[2]) for path in self._files()]
        path = self._directory / f'capture_{max(numbers, default=0) + 1:06d}.mcap'
        temporary = files.temporary_beside(path)
        self._stream = open(temporary, 'xb')
        self._writer = _mcap().Writer(self._stream, chunk_size=1)
        self._writer.start('ros2', 'trt_segmentation')
        self._path, self._temporary, self._channels = path, temporary, {}
        self._hashes[path] = []

    def _write(self, topic: str, msgtype: str, data: bytes, time_ns: int) -> None:
        """Write a message, in a chunk of its own."""
        if (topic, msgtype) not in self._channels:
            definition, _ = message_types.typestore().generate_msgdef(msgtype, ros_version=2)
            schema = self._writer.register_schema(msgtype, 'ros2msg', definition.encode())
            self._channels[topic, msgtype] = self._writer.register_channel(topic, 'cdr', schema)
        self._writer.add_message(self._channels[topic, msgtype], time_ns, data, time_ns)

    def _finish(self) -> None:
        """Close the file that is being written, with its index."""
        if self._path is None:
            return
        stream, writer, self._path = self._stream, self._writer, None
        if self._temporary is not None:  # it has no frame
            self._temporary.unlink()
            self._temporary = None
        try:
            writer.finish()
            stream.flush()
            os.fsync(stream.fileno())
        finally:
            stream.close()

    def _abandon(self) -> None:
        """Let a file go that could not be written to its end; close it as far as it goes."""
        path, temporary, self._path, self._temporary = self._path, self._temporary, None, None
        if path is not None:
            with suppress(OSError):  # what is buffered does not fit either
                self._stream.close()
        with suppress(OSError):
            if temporary is not None:
                temporary.unlink()
            elif path is not None:
                mend(path)

    def _unwritable(self, error: OSError) -> InputError:
        """Return the error for a directory that cannot be written."""
        return InputError(f'{self._directory}: cannot be written: {error.strerror}')


def mend(path: Path) -> None:
    """Close an mcap file that was cut anywhere: what is whole in it stays, and is readable."""
    with open(path, 'r+b') as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(MAGIC)))
        if size >= len(MAGIC) + len(_END) and file.read() == MAGIC:
            return
        file.seek(0)
        if file.read(len(MAGIC)) != MAGIC:
            path.unlink()
            return
        end = len(MAGIC)
        while end + PREFIX.size <= size:
            file.seek(end)
            opcode, length = PREFIX.unpack(file.read(PREFIX.size))
            after = end + PREFIX.size + length
            # From the end of the data on there is nothing but the index.
            if not 0 < opcode < DATA_END or opcode == FOOTER or after > size:
                break
            end = after
        file.seek(end)
        file.truncate()
        file.write(_END)
        file.flush()
        os.fsync(file.fileno())


def _messages(capture: Capture) -> Sequence[tuple[str, str, bytes]]:
    """Return topic, type and data of the messages of a frame; the figures come last."""
    types = message_types.typestore()
    found = [(capture.topic, capture.msgtype, capture.data)]
    for topic, mask in ((f'{capture.mask_topic}/compressed', capture.classes),
                        (f'{capture.mask_topic}/float/compressed', capture.reference)):
        message = bags.compressed_image_message(mask_png(mask), MASK_FORMAT, capture.stamp_ns,
                                                capture.frame_id)
        found.append((topic, message.__msgtype__,
                      bytes(types.serialize_cdr(message, message.__msgtype__))))
    text = json.dumps({**capture.figures, 'perceptual_hash': f'{capture.perceptual_hash:016x}'})
    string = types.types['std_msgs/msg/String'](text)
    found.append((capture.node_topic + FIGURES_SUFFIX, string.__msgtype__,
                  bytes(types.serialize_cdr(string, string.__msgtype__))))
    return found


def figures(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the figures of the frames of a file, as far as they can be read."""
    file = McapFile(path, lambda sentence: None)
    try:
        wanted = [number for number, channel in file.channels.items()
                  if channel.topic.endswith(FIGURES_SUFFIX)
                  and channel.msgtype == 'std_msgs/msg/String']
        for message in file.messages(wanted):
            try:
                text = message_types.typestore().deserialize_cdr(
                    message.data, 'std_msgs/msg/String').data
                values = json.loads(text)
            except Exception:  # of many types, by what the bytes happen to say
                continue
            if isinstance(values, dict):
                yield values
    finally:
        file.close()


def _hashes(path: Path) -> Iterator[int]:
    """Yield the perceptual hashes of the frames of a file."""
    try:
        for values in figures(path):
            yield int(str(values.get('perceptual_hash')), 16)
    except ValueError:  # no file of ours, or a damaged one
        return


def _mcap() -> Any:
    """Return `mcap.writer`; raises InputError with what to install where it is missing."""
    try:
        import mcap.writer
    except ImportError:
        raise missing_library('mcap', 'Capturing frames', 'cpu') from None
    return mcap.writer
