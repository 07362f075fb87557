# SPDX-License-Identifier: Apache-2.0
"""Messages of mcap files (mcap.dev/spec), with index, without, and with parts damaged."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator
import heapq
from io import BytesIO
from pathlib import Path
import struct
import threading
from typing import Any, NamedTuple
from zlib import crc32

from trt_segmentation.errors import missing_library, one_line
from trt_segmentation.recordings.storage import Channel, MAX_UNPACKED, Message, Problem, unzstd

MAGIC = b'\x89MCAP0\r\n'
"""What a file begins and ends with."""
PREFIX = struct.Struct('<BQ')
"""Opcode and length, which every record begins with."""
FOOTER, DATA_END = 2, 15
"""Opcodes of the records that end a file, and the messages in it."""

_SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _CHUNK_INDEX, _STATISTICS = 3, 4, 5, 6, 8, 11
_MESSAGE_HEAD = struct.Struct('<HIQQ')  # channel, sequence, log time, publish time
_CHUNK_HEAD = struct.Struct('<QQQII')  # start, end, size, checksum, length of compression's name
_MAX_RECORDS = 1 << 20  # of a chunk; a few bytes of zstd can be many more
_KEPT = 8  # unpacked chunks: as many as overlap in time in usual recordings


class _Record(NamedTuple):
    """Where the content of a record lies."""

    opcode: int
    start: int
    end: int


class McapFile:
    """An mcap file, open."""

    def __init__(self, path: Path, problem: Problem):
        """
        Look into a file.

        :raises ValueError: if it is no mcap file
        """
        self._records_of = _mcap_records()
        self._problem = problem
        self._file = open(path, 'rb')
        self._size = self._file.seek(0, 2)
        self._turn = threading.RLock()
        self._chunks: OrderedDict[int, memoryview] = OrderedDict()
        self._schemas: dict[int, Any] = {}
        self._found: dict[int, Any] = {}
        if self._read(0, len(MAGIC)) != MAGIC:
            self._file.close()
            raise ValueError('no mcap file: it does not begin as one')
        self._index = self._summary()
        counts: dict[int, int | None] = dict(self._counts) if self._index else {}
        if not self._index:
            # What topics there are shows only in what comes.
            counts.update(Counter(message.channel for message in self._stream(None, False)))
        self.channels = {
            number: Channel(channel.topic, *_type(self._schemas.get(channel.schema_id), channel),
                            counts.get(number, None if self._index else 0))
            for number, channel in self._found.items()}

    def messages(self, channels: Collection[int]) -> Iterator[Message]:
        """Yield messages: by their time where there is an index, else as they lie in the file."""
        wanted = set(channels)
        if not self._index:
            yield from self._stream(wanted, True)
            return
        # Chunks may overlap in time; one is opened before anything later than its start is given.
        waiting: list[tuple[int, int, int, int]] = []
        for index in sorted(self._index, key=lambda chunk: (chunk.message_start_time,
                                                            chunk.chunk_start_offset)):
            if index.message_index_offsets and not wanted & set(index.message_index_offsets):
                continue
            while waiting and waiting[0][0] < index.message_start_time:
                yield from self._given(heapq.heappop(waiting))
            at = index.chunk_start_offset
            for channel, time_ns, start in self._in_chunk(at, wanted):
                heapq.heappush(waiting, (time_ns, at, start, channel))
        while waiting:
            yield from self._given(heapq.heappop(waiting))

    def load(self, place: tuple[int, int]) -> bytes | memoryview:
        """Return a message's data; raises ValueError if it cannot be read."""
        at, start = place
        with self._turn:
            if at >= 0:
                data = self._chunk(at)
                _, length = PREFIX.unpack_from(data, start - PREFIX.size)
                return data[start + _MESSAGE_HEAD.size:start + length]
            _, length = PREFIX.unpack(self._read(start - PREFIX.size, PREFIX.size))
            return self._read(start + _MESSAGE_HEAD.size, length - _MESSAGE_HEAD.size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _given(self, entry: tuple[int, int, int, int]) -> Iterator[Message]:
        """Yield the message of an entry of the queue."""
        time_ns, at, start, channel = entry
        try:
            yield Message(channel, time_ns, self.load((at, start)), (at, start))
        except ValueError as error:
            self._problem(f'chunk at byte {at}: {one_line(error)}')

    def _in_chunk(self, at: int, wanted: set[int] | None) -> list[tuple[int, int, int]]:
        """Return (channel, time, place) of a chunk's messages, and learn its channels."""
        found: list[tuple[int, int, int]] = []
        try:
            with self._turn:
                data = self._chunk(at)
            for number, record in enumerate(_records(data, 0, len(data))):
                if number > _MAX_RECORDS:
                    raise ValueError(f'more than {_MAX_RECORDS} records')
                if record.opcode == _MESSAGE and record.end - record.start >= _MESSAGE_HEAD.size:
                    channel, _, time_ns, _ = _MESSAGE_HEAD.unpack_from(data, record.start)
                    if wanted is None or channel in wanted:
                        found.append((channel, time_ns, record.start))
                else:
                    self._learn(record.opcode, bytes(data[record.start:record.end]))
        except (ValueError, struct.error, OSError) as error:
            self._problem(f'chunk at byte {at}: {one_line(error)}')
        return found

    def _stream(self, wanted: set[int] | None, data_too: bool) -> Iterator[Message]:
        """Yield the messages from the file's start to where it breaks off."""
        at = len(MAGIC)
        try:
            while at + PREFIX.size <= self._size:
                opcode, length = PREFIX.unpack(self._read(at, PREFIX.size))
                start, end = at + PREFIX.size, at + PREFIX.size + length
                if opcode in (FOOTER, DATA_END):
                    return
                if end > self._size:
                    raise ValueError('the file ends within a record')
                if opcode == _CHUNK:
                    for channel, time_ns, inner in self._in_chunk(at, wanted):
                        place = at, inner
                        data = self.load(place) if data_too else b''
                        yield Message(channel, time_ns, data, place)
                elif opcode == _MESSAGE and length >= _MESSAGE_HEAD.size:
                    channel, _, time_ns, _ = _MESSAGE_HEAD.unpack(
                        self._read(start, _MESSAGE_HEAD.size))
                    if wanted is None or channel in wanted:
                        data = self.load((-1, start)) if data_too else b''
                        yield Message(channel, time_ns, data, (-1, start))
                elif opcode in (_SCHEMA, _CHANNEL):
                    self._learn(opcode, self._read(start, length))
                at = end
            raise ValueError('the file ends without an end')
        except (ValueError, struct.error, OSError) as error:
            self._problem(f'breaks off at byte {at}: {one_line(error)}')

    def _summary(self) -> list[Any]:
        """Return the index of the chunks, if the file's end has a whole one."""
        self._counts: dict[int, int] = {}
        try:
            footer = self._size - len(MAGIC) - 20 - PREFIX.size
            end = self._read(footer, PREFIX.size + 20 + len(MAGIC))
            if not end.endswith(MAGIC) or PREFIX.unpack_from(end) != (FOOTER, 20):
                return []
            start, _, checksum = struct.unpack_from('<QQI', end, PREFIX.size)
            if not 0 < start < footer:
                return []
            data = self._read(start, footer - start)
            if checksum and crc32(data + end[:PREFIX.size + 16]) != checksum:
                self._problem('its index is damaged; the file is read from its start')
                return []
            chunks = []
            for record in _records(data, 0, len(data)):
                content = data[record.start:record.end]
                if record.opcode == _CHUNK_INDEX:
                    chunks.append(self._parse('ChunkIndex', content))
                elif record.opcode == _STATISTICS:
                    self._counts = self._parse('Statistics', content).channel_message_counts
                else:
                    self._learn(record.opcode, content)
            known = {0, *self._schemas}
            if self._found and all(found.schema_id in known for found in self._found.values()):
                return chunks
            # What the index does not repeat is between the messages.
        except (ValueError, struct.error, OSError) as error:
            self._problem(f'its index cannot be read: {one_line(error)}')
        self._schemas.clear()
        self._found.clear()
        return []

    def _learn(self, opcode: int, content: bytes) -> None:
        """Note a schema or a channel; what was known of it stays."""
        if opcode == _SCHEMA:
            schema = self._parse('Schema', content)
            self._schemas.setdefault(schema.id, schema)
        elif opcode == _CHANNEL:
            channel = self._parse('Channel', content)
            self._found.setdefault(channel.id, channel)

    def _parse(self, name: str, content: bytes) -> Any:
        """Return a record as `mcap.records` reads it; raises ValueError if it cannot."""
        from mcap.data_stream import ReadDataStream
        try:
            return getattr(self._records_of, name).read(ReadDataStream(BytesIO(content)))
        except Exception as error:  # of many types, by what the bytes happen to say
            raise ValueError(f'a damaged {name}: {one_line(error)}') from None

    def _chunk(self, at: int) -> memoryview:
        """Return the records of the chunk at a byte, decompressed and checked."""
        if at in self._chunks:
            self._chunks.move_to_end(at)
            return self._chunks[at]
        opcode, length = PREFIX.unpack(self._read(at, PREFIX.size))
        start = at + PREFIX.size
        if opcode != _CHUNK or length < _CHUNK_HEAD.size + 8 or start + length > self._size:
            raise ValueError('no chunk')
        _, _, size, checksum, name_length = _CHUNK_HEAD.unpack(
            self._read(start, _CHUNK_HEAD.size))
        if size > MAX_UNPACKED:
            raise ValueError(f'{size} bytes when decompressed, expected at most {MAX_UNPACKED}')
        rest = memoryview(self._read(start + _CHUNK_HEAD.size, length - _CHUNK_HEAD.size))
        compression = bytes(rest[:name_length]).decode()
        (packed_size,) = struct.unpack_from('<Q', rest, name_length)
        packed = rest[name_length + 8:name_length + 8 + packed_size]
        data = _decompressed(compression, packed, size)
        if len(data) != size or (checksum and crc32(data) != checksum):
            raise ValueError('its checksum or its size is wrong')
        self._chunks[at] = data
        while len(self._chunks) > 1 and (
                len(self._chunks) > _KEPT
                or sum(map(len, self._chunks.values())) > MAX_UNPACKED // 2):
            self._chunks.popitem(last=False)
        return data

    def _read(self, at: int, length: int) -> bytes:
        """Return bytes of the file; raises ValueError if it has not so many."""
        if at < 0 or length < 0 or at + length > self._size:
            raise ValueError('the file ends before its records do')
        if length > MAX_UNPACKED:
            raise ValueError(f'a record of {length} bytes, expected at most {MAX_UNPACKED}')
        try:
            with self._turn:
                self._file.seek(at)
                data = self._file.read(length)
        except OSError as error:  # a bad block
            raise ValueError(one_line(error)) from None
        if len(data) < length:
            raise ValueError('the file ends before its records do')
        return data


def _records(data: bytes | memoryview, at: int, end: int) -> Iterator[_Record]:
    """Yield the records that lie one after the other; raises ValueError where one is cut."""
    while at < end:
        if at + PREFIX.size > end:
            raise ValueError('cut short')
        opcode, length = PREFIX.unpack_from(data, at)
        start = at + PREFIX.size
        at = start + length
        if at > end:
            raise ValueError('a record is longer than what it lies in')
        yield _Record(opcode, start, at)


def _decompressed(compression: str, packed: memoryview, size: int) -> memoryview:
    """Return a chunk's records; raises ValueError if they cannot be had."""
    if compression == '':
        return packed
    if compression == 'zstd':
        return memoryview(unzstd(packed, size))
    if compression == 'lz4':
        try:
            from lz4.frame import LZ4FrameDecompressor
            return memoryview(LZ4FrameDecompressor().decompress(packed, max_length=size + 1))
        except ImportError:
            raise missing_library('lz4', 'Reading recordings compressed so', 'cpu') from None
        except RuntimeError as error:
            raise ValueError(one_line(error)) from None
    raise ValueError(f'compression {compression[:32]!r} is not known; expected zstd or lz4')


def _type(schema: Any, channel: Any) -> tuple[str, str]:
    """Return a channel's message type, as ROS 2 names it, and how its messages are serialized."""
    name = schema.name if schema else ''
    if channel.message_encoding == 'ros1' and name.count('/') == 1:
        name = name.replace('/', '/msg/')
    return name, channel.message_encoding


def _mcap_records() -> Any:
    """Return `mcap.records`; raises InputError with what to install where it is missing."""
    try:
        import mcap.records
    except ImportError:
        raise missing_library('mcap', 'Reading mcap recordings', 'cpu') from None
    return mcap.records
