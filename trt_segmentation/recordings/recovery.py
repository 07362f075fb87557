# SPDX-License-Identifier: Apache-2.0
"""
Messages out of damaged rosbag2 recordings: what a crash, a full disk or a bad block left.

Slower than the plain way and in the order of the file. It needs neither metadata.yaml nor any
index: mcap files are read record by record and chunk by chunk, databases row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
import tempfile
from typing import Any, BinaryIO
from urllib.parse import quote

from trt_segmentation.errors import missing_library

_SUFFIXES = ('.mcap', '.db3', '.mcap.zstd', '.db3.zstd')
# Rows in a row that cannot be read before the rest of a database is given up.
_GIVE_UP = 2000
_ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'  # RFC 8878; CDR data begins with 00

_VFS_NAME = 'trt_segmentation_whole_pages'

Problem = Callable[[str], None]


def storage_files(path: Path) -> list[Path]:
    """Return the files that hold a bag's messages, by the numbers in their names."""
    if path.is_file():
        return [path]
    # rosbag2 numbers its files NAME_0, NAME_1, ... NAME_10 without leading zeros.
    return sorted((file for file in path.iterdir() if file.name.endswith(_SUFFIXES)),
                  key=lambda file: (len(file.name), file.name))


def topics(path: Path) -> dict[str, str]:
    """Return the message type of each topic that can be found in a bag, by name."""
    found: dict[str, str] = {}
    for file in storage_files(path):
        # Of many types, by what the bytes happen to say; `messages` says what is wrong.
        with suppress(Exception), _unpacked(file, lambda sentence: None) as plain:
            found.update(_connections(plain))
    return found


def messages(path: Path, problem: Problem) -> Iterator[tuple[str, int, bytes]]:
    """
    Yield (topic, time in nanoseconds, data) of every message that can be read.

    :param problem: called with a sentence for each part that cannot be read
    """
    for file in storage_files(path):
        def report(sentence: str, file: Path = file) -> None:
            problem(f'{file}: {sentence}')

        with _unpacked(file, report) as plain:
            read = _mcap_messages if plain.suffix == '.mcap' else _sqlite_messages
            for topic, time_ns, data in read(plain, report):
                if data[:4] == _ZSTD_MAGIC:  # compressed message by message
                    try:
                        data = _zstandard().decompress(data)
                    except _zstandard().ZstdError as error:
                        report(f'{topic} at {time_ns} ns: {error}')
                        continue
                yield topic, time_ns, data


def cut_in_page(path: Path) -> str:
    """Return a sentence if a database of the bag ends within a page, which SQLite ignores."""
    for file in storage_files(path):
        if file.suffix == '.db3' and file.stat().st_size % page_size(file):
            return f'{file}: cut short'
    return ''


def page_size(path: Path) -> int:
    """Return the page size in the header of a database (sqlite.org, fileformat2, 1.3.2)."""
    with open(path, 'rb') as file:
        size = int.from_bytes(file.read(18)[16:18], 'big')
    return 65536 if size == 1 else max(size, 512)


@contextmanager
def _unpacked(file: Path, problem: Problem) -> Iterator[Path]:
    """Yield the file itself, or a temporary one with as much of it as can be decompressed."""
    if file.suffix != '.zstd':
        yield file
        return
    with tempfile.TemporaryDirectory() as directory:
        plain = Path(directory) / file.stem
        stream = _zstandard().ZstdDecompressor().decompressobj()
        with open(file, 'rb') as packed, open(plain, 'wb') as out:
            try:
                while (block := packed.read(1 << 16)) and not stream.eof:
                    out.write(stream.decompress(block))
                if not stream.eof:
                    problem('cut short')
            except _zstandard().ZstdError as error:
                problem(f'cannot be decompressed beyond byte {out.tell()}: {error}')
        yield plain


def _connections(plain: Path) -> Iterator[tuple[str, str]]:
    """Yield (topic, message type) of a storage file."""
    if plain.suffix != '.mcap':
        with _database(plain) as database:
            yield from database.execute('SELECT name, type FROM topics')
        return
    types = {}
    records = _mcap().records
    with open(plain, 'rb') as stream:
        for record in _mcap_records(stream, lambda sentence: None):
            if isinstance(record, records.Schema):
                types[record.id] = record.name
            elif isinstance(record, records.Channel):
                yield record.topic, types.get(record.schema_id, '')


def _mcap_messages(plain: Path, problem: Problem) -> Iterator[tuple[str, int, bytes]]:
    """Yield the messages of an mcap file."""
    names = {}
    records = _mcap().records
    with open(plain, 'rb') as stream:
        for record in _mcap_records(stream, problem):
            if isinstance(record, records.Channel):
                names[record.id] = record.topic
            elif isinstance(record, records.Message):
                yield names.get(record.channel_id, ''), record.log_time, record.data


def _mcap_records(stream: BinaryIO, problem: Problem) -> Iterator[Any]:
    """Yield the records of an mcap file, those of its chunks among them."""
    mcap = _mcap()
    try:
        summary = mcap.reader.SeekingReader(stream).get_summary()
    except Exception:  # of many types; without its end a file is read from its start
        summary = None
    if summary is None or not summary.chunk_indexes:
        yield from _streamed_records(stream, problem)
        return
    # With the index, damage to one record does not hide what follows it.
    yield from summary.schemas.values()
    yield from summary.channels.values()
    for index in sorted(summary.chunk_indexes, key=lambda index: index.chunk_start_offset):
        stream.seek(index.chunk_start_offset + 9)  # after the record's opcode and length
        try:
            chunk = mcap.records.Chunk.read(mcap.data_stream.ReadDataStream(stream))
        except Exception as error:  # of many types, by what the bytes happen to say
            problem(f'chunk at byte {index.chunk_start_offset}: {_one_line(error)}')
            continue
        yield from _chunk_records(chunk, index.chunk_start_offset, problem)


def _streamed_records(stream: BinaryIO, problem: Problem) -> Iterator[Any]:
    """Yield the records of an mcap file from its start to where it breaks off."""
    mcap = _mcap()
    stream.seek(0)
    at = 0
    try:
        for record in mcap.stream_reader.StreamReader(stream, emit_chunks=True).records:
            if isinstance(record, mcap.records.Chunk):
                yield from _chunk_records(record, at, problem)
            else:
                yield record
            at = stream.tell()
    except Exception as error:  # of many types, by what the bytes happen to say
        problem(f'breaks off at byte {at}: {_one_line(error)}')


def _chunk_records(chunk: Any, at: int, problem: Problem) -> Iterator[Any]:
    """Yield the records of a chunk that begins at byte `at`, if it is undamaged."""
    try:
        records = _mcap().stream_reader.breakup_chunk(chunk, validate_crc=True)
    except Exception as error:  # of many types, by what the bytes happen to say
        problem(f'chunk at byte {at}: {_one_line(error)}')
        return
    yield from records


def _sqlite_messages(plain: Path, problem: Problem) -> Iterator[tuple[str, int, bytes]]:
    """Yield the messages of a database row by row: each row finds its own way to its pages."""
    error = _apsw().Error
    with _database(plain) as database:
        try:
            names = dict(database.execute('SELECT id, name FROM topics'))
        except error as reason:
            problem(f'its list of topics: {reason}')
            return
        try:
            last = database.execute('SELECT max(id) FROM messages').fetchone()[0] or 0
        except error:
            last = 1 << 62
        row, misses, lost = 1, 0, 0
        while row <= last and misses < _GIVE_UP:
            try:
                found = database.execute('SELECT topic_id, timestamp, data FROM messages '
                                         'WHERE id = ?', (row,)).fetchone()
            except error:
                found = None
                lost += 1
            misses = 0 if found else misses + 1
            if found:
                yield names.get(found[0], ''), found[1], found[2]
            row += 1
        if misses >= _GIVE_UP:
            problem(f'unreadable from message {row - misses} on')
        elif lost:
            problem(f'{lost} unreadable messages')


@contextmanager
def _database(path: Path) -> Iterator[Any]:
    """Open a database as it is: without its journal, and though it may be cut short."""
    apsw = _apsw()
    page = page_size(path)

    class WholePages(apsw.VFS):
        """Files without what is left of their last page: SQLite would fill it with zeros."""

        class File(apsw.VFSFile):
            def xFileSize(self) -> int:
                size = super().xFileSize()
                return size - size % page

        def xOpen(self, name, flags):
            return self.File('', name, flags)

    vfs = WholePages(_VFS_NAME, '')
    connection = apsw.Connection(
        f'file:{quote(str(path.absolute()))}?immutable=1', vfs=_VFS_NAME,
        flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        connection.execute('PRAGMA writable_schema = ON')  # else a wrong size is the end
        yield connection
    finally:
        connection.close()
        vfs.unregister()


def _mcap():
    """Return the package `mcap`; raises InputError with what to install where it is missing."""
    try:
        import mcap.data_stream
        import mcap.reader
        import mcap.records
        import mcap.stream_reader
    except ImportError:
        raise missing_library('mcap', 'Recovering a damaged bag', 'cpu') from None
    return mcap


def _apsw():
    """Return `apsw`; raises InputError with what to install where it is missing."""
    try:
        import apsw
    except ImportError:
        raise missing_library('apsw', 'Recovering a damaged bag', 'cpu') from None
    return apsw


def _zstandard():
    """Return `zstandard`; raises InputError with what to install where it is missing."""
    try:
        import zstandard
    except ImportError:
        raise missing_library('zstandard', 'Recovering a damaged bag', 'cpu') from None
    return zstandard


def _one_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
