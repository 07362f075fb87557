# SPDX-License-Identifier: Apache-2.0
"""Messages of rosbag2's SQLite files: plain, left by a killed recorder, or with pages damaged."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, ExitStack, suppress
import os
from pathlib import Path
import sqlite3
import threading
from typing import Any
from urllib.parse import quote

from trt_segmentation.errors import counted, missing_library, one_line, shown
from trt_segmentation.recordings.storage import (
    Channel,
    copied,
    MAX_UNPACKED,
    Message,
    Problem,
)

_MAGIC = b'SQLite format 3\0'  # sqlite.org/fileformat2, 1.3.1
_SIDES = ('-wal', '-journal')  # sqlite.org/tempfiles.html
_GIVE_UP = 2000  # rows in a row that cannot be read before the rest of a database is given up
_COLUMNS = {'topics': ('id', 'name', 'type'),
            'messages': ('id', 'topic_id', 'timestamp', 'data')}
_VFS_NAME = 'trt_segmentation_whole_pages'


class SqliteFile:
    """
    A .db3 file, open.

    What a killed recorder has left beside it (a write-ahead log, a journal) belongs to it and is
    read, from a copy: SQLite would change the recording.
    """

    def __init__(self, path: Path, problem: Problem):
        """
        Look into a file.

        :raises ValueError: if it is no database of messages
        """
        self._path, self._problem = path, problem
        self._turn = threading.Lock()
        self._closing = ExitStack()
        self._damaged = False
        try:
            self._open()
        except BaseException:
            self._closing.close()
            raise

    def messages(self, channels: Collection[int]) -> Iterator[Message]:
        """Yield messages by their time, and what cannot be found so by their numbers."""
        given: set[int] = set()
        wanted = ', '.join(str(int(channel)) for channel in channels)
        if not self._damaged:
            try:
                for row, channel, time_ns in self._database.execute(
                        'SELECT id, topic_id, timestamp FROM messages WHERE topic_id IN '
                        f'({wanted}) ORDER BY timestamp, id'):
                    if row not in given:  # a damaged index may name one twice
                        given.add(row)
                        yield from self._given(row, channel, time_ns)
                return
            except Exception as error:  # of two libraries
                self._problem(one_line(error))
        yield from self._by_number(set(channels), given)

    def load(self, place: tuple[int, int]) -> bytes:
        """Return a message's data; raises ValueError if it cannot be read."""
        try:
            with self._turn:
                found = self._database.execute(
                    'SELECT CASE WHEN length(data) <= ? THEN data END FROM messages WHERE id = ?',
                    (MAX_UNPACKED, place[0])).fetchone()
        except Exception as error:  # of two libraries
            raise ValueError(one_line(error)) from None
        data = found[0] if found else None
        if not isinstance(data, bytes):
            raise ValueError(f'no data, or more than {MAX_UNPACKED} bytes')
        return data

    def close(self) -> None:
        """Close the file, and remove its copy."""
        self._closing.close()

    def _open(self) -> None:
        """Open the database, and find its topics."""
        sides = [side for suffix in _SIDES
                 if (side := self._path.with_name(self._path.name + suffix)).is_file()
                 and side.stat().st_size]
        with open(self._path, 'rb') as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError('no database: it does not begin as one')
        path, options = self._path, 'immutable=1'
        if sides:
            path = self._closing.enter_context(copied([self._path, *sides]))
            options = 'mode=rw'
        elif cut := _cut_in_page(path):
            self._problem(cut)
            self._damaged = True
        topics: list[tuple[Any, ...]] = []
        counts: dict[int, int] = {}
        if not self._damaged:
            try:
                self._database = sqlite3.connect(
                    f'file:{quote(os.fsencode(path.absolute()))}?{options}', uri=True,
                    check_same_thread=False)
                self._closing.callback(self._database.close)
                topics = self._topics()
                counts = dict(self._database.execute(
                    'SELECT topic_id, count(*) FROM messages GROUP BY topic_id'))
            except sqlite3.Error as error:
                self._problem(one_line(error))
                self._damaged = True
        if self._damaged:
            self._database = self._closing.enter_context(_whole_pages(path))
            topics = self._topics()
        self.channels = {
            number: Channel(str(name), str(kind), str(form or 'cdr'),
                            None if self._damaged else counts.get(number, 0))
            for number, name, kind, form in topics}

    def _topics(self) -> list[tuple[Any, ...]]:
        """
        Return (number, name, type, serialization) of each topic.

        :raises ValueError: if the tables are not those of a recording: a view or a computed
            column can make messages without end out of nothing
        """
        try:
            for table, columns in _COLUMNS.items():
                # A virtual table has no root page.
                kinds = self._database.execute(
                    'SELECT type, rootpage > 0 FROM sqlite_master WHERE name = ?',
                    (table,)).fetchall()
                stored = {name: hidden for _, name, _, _, _, _, hidden in self._database.execute(
                    f'PRAGMA table_xinfo({table})')}
                if kinds != [('table', 1)] or any(stored.get(name, 1) for name in columns):
                    raise ValueError(f'no recording: it has no plain table {table!r} with '
                                     f'{", ".join(columns)}')
            form = 'serialization_format' if any(
                row[1] == 'serialization_format'
                for row in self._database.execute('PRAGMA table_xinfo(topics)')) else "'cdr'"
            found: list[tuple[Any, ...]] = self._database.execute(
                f'SELECT id, name, type, {form} FROM topics').fetchall()
            return found
        except sqlite3.Error:
            raise
        except Exception as error:  # of the other library
            raise ValueError(f'its list of topics: {one_line(error)}') from None

    def _given(self, row: int, channel: int, time_ns: Any) -> Iterator[Message]:
        """Yield the message of a row, if it can be read."""
        try:
            yield Message(channel, time_ns, self.load((row, 0)), (row, 0))
        except ValueError as error:
            self._problem(f'{self.channels[channel].topic} at {shown(time_ns)} ns: '
                          f'{one_line(error)}')

    def _by_number(self, channels: set[int], given: set[int]) -> Iterator[Message]:
        """Yield messages row by row: each row finds its own way to its pages."""
        last = 1 << 62
        with suppress(Exception):  # of two libraries; then the rows say where they end
            last = self._database.execute('SELECT max(id) FROM messages').fetchone()[0] or 0
        row, misses, lost = 1, 0, 0
        while row <= last and misses < _GIVE_UP:
            found = None
            if row not in given:
                try:
                    found = self._database.execute(
                        'SELECT topic_id, timestamp FROM messages WHERE id = ?',
                        (row,)).fetchone()
                except Exception:  # of two libraries, by what is damaged
                    lost += 1
            misses = 0 if found or row in given else misses + 1
            if found and found[0] in channels:
                yield from self._given(row, *found)
            row += 1
        if misses >= _GIVE_UP:
            self._problem(f'unreadable from message {row - misses} on')
        elif lost:
            self._problem(counted(lost, 'unreadable message'))


def _cut_in_page(path: Path) -> str:
    """Return a sentence if a database ends within a page, which SQLite ignores."""
    return 'cut short' if path.stat().st_size % _page_size(path) else ''


def _page_size(path: Path) -> int:
    """Return the page size in the header of a database (sqlite.org, fileformat2, 1.3.2)."""
    with open(path, 'rb') as file:
        size = int.from_bytes(file.read(18)[16:18], 'big')
    return 65536 if size == 1 else max(size, 512)


@contextmanager
def _whole_pages(path: Path) -> Iterator[Any]:
    """
    Open a damaged database: without its journal, and though it may be cut short.

    :raises ValueError: if its name is not UTF-8, which apsw asks for
    """
    try:
        os.fsencode(path.absolute()).decode()
    except UnicodeDecodeError:
        raise ValueError('damaged, and its name is not UTF-8: rename it to read what is left'
                         ) from None
    try:
        import apsw
    except ImportError:
        raise missing_library('apsw', 'Reading a damaged recording', 'cpu') from None
    page = _page_size(path)

    class WholePages(apsw.VFS):  # type: ignore[misc]
        """Files without what is left of their last page: SQLite would fill it with zeros."""

        class File(apsw.VFSFile):  # type: ignore[misc]
            def xFileSize(self) -> int:
                size: int = super().xFileSize()
                return size - size % page

        def xOpen(self, name: Any, flags: list[int]) -> Any:
            return self.File('', name, flags)

    vfs = WholePages(_VFS_NAME, '')
    try:
        connection = apsw.Connection(
            f'file:{quote(os.fsencode(path.absolute()))}?immutable=1', vfs=_VFS_NAME,
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        try:
            connection.execute('PRAGMA writable_schema = ON')  # else a wrong size is the end
            yield connection
        finally:
            connection.close()
    finally:
        vfs.unregister()
