# SPDX-License-Identifier: Apache-2.0
"""
The files of a recording, and what every reader of one kind of them offers.

Nothing here needs metadata.yaml or an index, and damage costs what it has hit: a reader goes on
behind it and says what it could not read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import glob, has_magic
import os
from pathlib import Path
import re
import shlex
import shutil
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

from trt_segmentation.errors import counted, InputError, missing_library, one_line
from trt_segmentation.recordings import metadata
from trt_segmentation.system.files import nearest_path, own_name, temporary_directory

PLAIN_SUFFIXES = ('.mcap', '.db3', '.bag')
SUFFIXES = (*PLAIN_SUFFIXES, '.mcap.zstd', '.db3.zstd')
"""How the names of files end that hold messages."""

_PACKED = ('.7z', '.bz2', '.gz', '.lz4', '.tar', '.tgz', '.xz', '.zip', '.zst')

MAX_UNPACKED = 1 << 28
"""Bytes that a message or a chunk of an mcap file may have: the largest image that is taken."""

# Of a file's name, with the number that rosbag2 gives it.
_ENDING = re.compile(r'(_\d+)?(\.mcap|\.db3|\.bag)(\.zstd)?$', re.IGNORECASE)

ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'  # RFC 8878; CDR data begins with 00
_FREE = 1 << 30  # bytes that unpacking and copying leave free on a disk
_RATIO = 2000  # of a compressed file; drawn pictures come to some hundreds
# Bytes that are decompressed at once: 4 of them can become 128 KiB at most.
_STEP = 1 << 10

Problem = Callable[[str], None]
"""Called with a sentence for each part that cannot be read."""


class NoImages(InputError):
    """Report what is no recording, or has none of the images that are asked for."""


@dataclass(frozen=True)
class Channel:
    """
    A stream of messages in a file; a topic may have several.

    msgtype: as in 'sensor_msgs/msg/Image'
    encoding: how messages are serialized: 'cdr' or 'ros1'
    count: how many there are by what the file says; None if it does not say
    """

    topic: str
    msgtype: str
    encoding: str
    count: int | None


class Message(NamedTuple):
    """A message as it lies in a file, whatever it has for a time; `place` finds it again."""

    channel: int
    time_ns: int
    data: bytes | memoryview
    place: tuple[int, int]


class Storage(Protocol):
    """One file of a recording, open."""

    channels: dict[int, Channel]

    def messages(self, channels: Collection[int]) -> Iterator[Message]:
        """Yield the messages of these channels, each once."""

    def load(self, place: tuple[int, int]) -> bytes | memoryview:
        """Return the data of the message at a place; of several threads one at a time."""

    def close(self) -> None:
        """Close the file."""


def files(path: Path) -> list[Path]:
    """
    Return the files that hold a recording's messages, by the numbers in their names.

    :returns: none if the path is no recording, or one that has only its metadata.yaml left
    :raises OSError: for a directory that cannot be read
    """
    if not os.path.isdir(path):  # which is false, and no error, where that cannot be told
        return [path] if _is_file(path) else []
    found = [path / name for name in os.listdir(path)
             if name.lower().endswith(SUFFIXES) and name[0] != '.' and (path / name).is_file()]
    # rosbag2 numbers its files NAME_0, NAME_1, ... NAME_10 without leading zeros.
    return sorted(_unpacked_once(found), key=lambda file: (len(file.name), file.name))


def is_bag(path: str | os.PathLike[str]) -> bool:
    """
    Tell whether a path is one recording: a directory with its files, or one of them.

    Without metadata.yaml, as after a crash, a directory is one if its files are the parts of one,
    NAME_0, NAME_1 .., and there is no other recording below.
    """
    path = Path(path)
    if os.path.isfile(path / metadata.NAME):
        return True
    parts = files(path)
    names = {_ENDING.sub('', part.name) for part in parts}
    return len(names) == 1 and (not os.path.isdir(path) or len(within(path)) == len(parts))


def why_no_bag(path: Path) -> str:
    """Return what a path is that is no recording, and what to name instead."""
    if path.is_dir() and (inside := within(path)):
        return (f'a directory of {counted(len(inside), "recording")}; name one of them, as '
                f'{inside[0]}')
    if path.name == metadata.NAME:
        return 'what belongs to a recording; name the directory that it lies in'
    if path.suffix == '.active':  # as the recorder of ROS 1 calls what it has not closed
        return ('a recording that was not closed; mend it with: '
                f'rosbag reindex {shlex.quote(path.name)}')
    if path.suffix.lower() in _PACKED and path.is_file():
        return 'packed; unpack it first'
    return ('no recording; expected a directory with metadata.yaml, or a file .mcap, .db3 or .bag'
            + nearest_path(path))


def within(source: str | os.PathLike[str]) -> list[Path]:
    """
    Return the recordings that a path stands for: itself, those below a directory, a glob's.

    Without metadata.yaml, each file is taken for a recording of its own.
    """
    path = Path(source)
    if os.path.isdir(path):  # which is false, and no error, where that cannot be read
        return _once(_below(path, set()))
    if os.path.isfile(path):
        return files(path)
    pattern = os.fspath(source)
    matches = sorted(glob(pattern, recursive=True)) if has_magic(pattern) else []
    found: list[Path] = []
    for match in map(Path, matches):
        if os.path.isfile(match / metadata.NAME):
            found.append(match)
        elif os.path.isdir(match) or not os.path.isfile(match.parent / metadata.NAME):
            with suppress(OSError):  # who looks for pictures there says so
                found += files(match)
    return _once(found)


def by_name(paths: Iterable[Path]) -> list[Path]:
    """
    Return recordings by their names, each once, in whatever order and spelling they are given.

    Of several paths to one the first is kept, as below a directory.
    """
    found = _once(sorted(paths, key=lambda path: Path(os.path.abspath(path))))
    return sorted(found, key=lambda path: (own_name(path), os.path.realpath(path)))


def listing(directory: str | os.PathLike[str], seen: set[tuple[int, int]]
            ) -> list[tuple[str, bool]]:
    """
    Return what lies in a directory, by name: each path, and whether it is a directory too.

    Links count as what they lead to. Hidden ones are left out, and what is neither file nor
    directory, as a link that leads nowhere.

    :param seen: the directories that were listed before, which have nothing again; gets this one
    :raises OSError: if it cannot be read
    """
    status = os.stat(directory)
    if (status.st_dev, status.st_ino) in seen:
        return []
    seen.add((status.st_dev, status.st_ino))
    found = []
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            with suppress(OSError):  # a link that leads to itself
                if entry.name[0] != '.' and (entry.is_dir() or entry.is_file()):
                    found.append((entry.path, entry.is_dir()))
    return found


def _once(paths: list[Path]) -> list[Path]:
    """Return each recording once, through whatever link it was found."""
    found: dict[str, Path] = {}
    for path in _unpacked_once(paths):
        found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def _unpacked_once(paths: list[Path]) -> list[Path]:
    """Leave out each compressed file beside which it lies unpacked: it is the same again."""
    there = set(map(os.path.abspath, paths))
    return [path for path in paths
            if path.suffix != '.zstd' or os.path.abspath(path.with_suffix('')) not in there]


def _below(directory: Path, seen: set[tuple[int, int]]) -> list[Path]:
    """Return the recordings below a directory, through links too, but into none twice."""
    try:
        entries = listing(directory, seen)
    except OSError:
        return []  # who looks for pictures there says so
    if os.path.isfile(directory / metadata.NAME):
        return [directory]
    found = []
    for path, is_directory in entries:
        if is_directory:
            found += _below(Path(path), seen)
        elif _is_file(Path(path)):
            found.append(Path(path))
    return found


def _is_file(path: Path) -> bool:
    """Tell whether a path is one file of a recording."""
    return path.name.lower().endswith(SUFFIXES) and os.path.isfile(path)


def unpacked(file: Path, problem: Problem
             ) -> tuple[Path, TemporaryDirectory[str] | None]:
    """
    Return the file itself, or a temporary one with as much of it as can be decompressed.

    :returns: the file, and the directory that goes when nobody has it any more
    """
    if file.suffix != '.zstd':
        return file, None
    directory = temporary_directory()
    try:
        return _unpack(file, Path(directory.name), problem), directory
    except BaseException:
        directory.cleanup()
        raise


def _unpack(file: Path, directory: Path, problem: Problem) -> Path:
    """Decompress a file into a directory, within its limits; return where it is."""
    plain = directory / file.stem
    stream = zstandard().ZstdDecompressor().decompressobj()
    limit = min(shutil.disk_usage(directory).free - _FREE,
                max(_FREE, _RATIO * file.stat().st_size))
    with open(file, 'rb') as packed, open(plain, 'wb') as out:
        try:
            while (block := packed.read(_STEP)) and not stream.eof:
                out.write(stream.decompress(block))
                if out.tell() > limit:
                    problem(f'unpacks to more than {limit >> 20} MiB, the free space or '
                            f'{_RATIO} times its size; the rest is not read')
                    break
            else:
                if not stream.eof:
                    problem('cut short')
        except zstandard().ZstdError as error:
            problem(f'cannot be decompressed beyond byte {out.tell()}: {error}')
    return plain


def unzstd(data: bytes | memoryview, size: int | None = None) -> bytes:
    """
    Decompress one frame of zstd.

    :param size: of what comes out, if known
    :raises ValueError: if it is damaged, of another size, or larger than `MAX_UNPACKED`
    """
    zstd = zstandard()
    limit = MAX_UNPACKED if size is None else size
    out = bytearray()
    try:
        said = zstd.frame_content_size(data)
        if said > limit:
            raise ValueError(f'{said} bytes when decompressed, expected at most {limit}')
        if said >= 0:
            return bytes(zstd.decompress(data))
        stream = zstd.ZstdDecompressor().decompressobj()
        for at in range(0, len(data), _STEP):
            out += stream.decompress(data[at:at + _STEP])
            if len(out) > limit:
                raise ValueError(f'more than {limit} bytes when decompressed')
    except zstd.ZstdError as error:
        raise ValueError(one_line(error)) from None
    if not stream.eof:
        raise ValueError('cut short')
    return bytes(out)


@contextmanager
def copied(files_: Collection[Path]) -> Iterator[Path]:
    """
    Yield a copy of the first file, with those beside it that belong to it.

    :raises InputError: if the disk for temporary files has no room for it
    """
    with temporary_directory() as directory:
        needed = sum(file.stat().st_size for file in files_)
        free = shutil.disk_usage(directory).free - _FREE
        if needed > free:
            raise InputError(f'reading it takes a copy of {needed >> 20} MiB, but {directory} has '
                             f'room for {max(free, 0) >> 20}; set TMPDIR to another disk')
        copies = [Path(shutil.copyfile(file, Path(directory) / file.name)) for file in files_]
        yield copies[0]


def zstandard() -> Any:
    """Return `zstandard`; raises InputError with what to install where it is missing."""
    try:
        import zstandard
    except ImportError:
        raise missing_library('zstandard', 'Reading compressed recordings', 'cpu') from None
    return zstandard
