# SPDX-License-Identifier: Apache-2.0
"""The files of one recording, opened when they are needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
import threading
import weakref

from trt_segmentation.errors import counted, InputError, one_line, printable
from trt_segmentation.recordings import metadata, storage
from trt_segmentation.recordings.mcap_file import McapFile
from trt_segmentation.recordings.ros1_file import Ros1File
from trt_segmentation.recordings.sqlite_file import SqliteFile
from trt_segmentation.recordings.storage import Channel, NoImages, Problem, Storage

_READERS: dict[str, Callable[[Path, Problem], Storage]] = {
    '.mcap': McapFile, '.db3': SqliteFile, '.bag': Ros1File}
_OPEN = 16  # files that are open at once, of a recording that may be split into thousands


class BagFiles:
    """
    The files of a recording, by their numbers.

    channels: of each file that can be read
    promised: how many messages metadata.yaml says there are on each topic
    """

    def __init__(self, path: Path, problem: Problem):
        """
        Look into all files; what is wrong with one costs no other.

        :raises NoImages: if it is no recording
        :raises OSError: for a directory that cannot be read
        """
        self._problem = problem
        self._turn = threading.Lock()
        self._open: OrderedDict[int, Storage] = OrderedDict()
        self._paths = storage.files(path)
        if not self._paths and not (path / metadata.NAME).is_file():
            raise NoImages(f'{path}: {storage.why_no_bag(path)}')
        self.promised: dict[str, int] = {}
        total = 0
        if path.is_dir():
            total = self._read_metadata(path)
        self.channels: dict[int, dict[int, Channel]] = {}
        for number in range(len(self._paths)):
            if opened := self.open(number):
                self.channels[number] = {
                    key: replace(channel, topic=printable(channel.topic),
                                 msgtype=printable(channel.msgtype),
                                 encoding=printable(channel.encoding))
                    for key, channel in opened.channels.items()}
        # What it promises of each topic is compared by whoever reads the topic.
        if total > sum(self.promised.values()):
            self._compare(path, total)

    def open(self, number: int) -> Storage | None:
        """Return a file, opened; None if it cannot be, which is noted as a problem."""
        with self._turn:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
            path = self._paths[number]

            def report(sentence: str) -> None:
                self._problem(f'{path}: {sentence}')

            with ExitStack() as stack:
                try:
                    if not path.stat().st_size:
                        raise ValueError('the file is empty')
                    plain, directory = storage.unpacked(path, report)
                    if directory is not None:
                        stack.enter_context(directory)
                    opened = _READERS[plain.suffix.lower()](plain, report)
                except (ValueError, OSError) as error:
                    report(error.strerror or one_line(error) if isinstance(error, OSError)
                           else one_line(error))
                    return None
                except InputError as error:
                    raise InputError(f'{path}: {error}') from None
                # What was unpacked for it goes when nobody reads it any more: another thread may.
                # The stack must not know the reader, or the file would stay open for ever.
                weakref.finalize(opened, stack.pop_all().close)
            self._open[number] = opened
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
            return opened

    def close(self) -> None:
        """Close all files."""
        with self._turn:
            while self._open:
                self._open.popitem()[1].close()

    def _compare(self, path: Path, promised: int) -> None:
        """Say how many messages there are if they are fewer than there are to be."""
        counts = [channel.count for channels in self.channels.values()
                  for channel in channels.values()]
        there = sum(count for count in counts if count is not None)
        if None not in counts and there < promised:
            self._problem(f'{path / metadata.NAME}: '
                          f'{counted(promised, "message is", "messages are")} promised in all, '
                          f'{there} are there')

    def _read_metadata(self, directory: Path) -> int:
        """Take over the order of the files; return how many messages there are to be in all."""
        found = metadata.read(directory)
        if found.problem:
            self._problem(found.problem)
        self.promised = found.counts
        if not found.files:
            return found.total
        there = {path.name: path for path in self._paths}
        self._paths = []
        for name in dict.fromkeys(found.files):
            # Compressed later, or unpacked.
            alike = (name, f'{name}.zstd', name.removesuffix('.zstd'))
            path = next((there[other] for other in alike if other in there), None)
            if path is None:
                self._problem(f'{directory / name}: missing, though {metadata.NAME} lists it')
            else:
                self._paths.append(path)
                there.pop(path.name)
        for name in sorted(there):
            self._problem(f'{directory / name}: not read: {metadata.NAME} does not list it')
        return found.total
