# SPDX-License-Identifier: Apache-2.0
"""
Caffe's files: networks in the text form of protocol buffers, weights in their wire form.

Of the wire form only what holds weights is read, by the field numbers of `caffe.proto`
(BVLC/caffe): NetParameter.layer 100 and .layers 2, LayerParameter.name 1 and .blobs 7,
V1LayerParameter.name 4 and .blobs 6, BlobProto.data 5, .double_data 8, .shape 7 and the older
.num, .channels, .height, .width 1 to 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import re

import numpy as np

from trt_segmentation.errors import InputError
from trt_segmentation.system import files

_MAX_TEXT, _MAX_WEIGHTS = 16 << 20, 2 << 30
_MAX_DEPTH = 50
_TOKEN = re.compile(
    r'\s+|#[^\n]*|(?P<text>"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\')'
    r'|(?P<word>[A-Za-z_][\w.]*)|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?f?)'
    r'|(?P<sign>[{}<>:;,\[\]])')


class Message:
    """One message of the text form: its fields by name, each as often as it is there."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.fields: dict[str, list[str | float | bool | Message]] = {}

    def messages(self, name: str) -> list[Message]:
        """Return the messages of a field."""
        return [value for value in self.fields.get(name, ()) if isinstance(value, Message)]

    def message(self, name: str) -> Message:
        """Return the message of a field; an empty one where there is none."""
        return (self.messages(name) or [Message()])[-1]

    def texts(self, name: str) -> list[str]:
        """Return the texts of a field, or the names of its enumeration."""
        return [value for value in self.fields.get(name, ()) if isinstance(value, str)]

    def text(self, name: str, default: str = '') -> str:
        """Return the text of a field."""
        return (self.texts(name) or [default])[-1]

    def numbers(self, name: str) -> list[float]:
        """Return the numbers of a field."""
        return [value for value in self.fields.get(name, ())
                if isinstance(value, float) and not isinstance(value, bool)]

    def number(self, name: str, default: float) -> float:
        """Return the number of a field."""
        return float((self.numbers(name) or [default])[-1])

    def integer(self, name: str, default: int) -> int:
        """Return the whole number of a field."""
        return int(self.number(name, default))

    def flag(self, name: str, default: bool) -> bool:
        """Return the truth of a field."""
        found = [value for value in self.fields.get(name, ()) if isinstance(value, bool)]
        return (found or [default])[-1]


def read_network(path: Path) -> Message:
    """
    Return the network of a prototxt.

    :raises InputError: with the line, for what is no text form of a protocol buffer
    """
    try:
        text = files.read(path, _MAX_TEXT).decode('utf-8')
    except UnicodeDecodeError:
        raise InputError(f'{path}: not a prototxt: it is no text') from None
    tokens = list(_tokens(text, path))
    message, end = _message(tokens, 0, path, 0)
    if end != len(tokens):
        raise InputError(f'{path}: line {tokens[end][2]}: found {tokens[end][1]!r} without its '
                         'beginning; expected a prototxt')
    return message


def _tokens(text: str, path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield (kind, token, line)."""
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise InputError(f'{path}: line {line}: found {text[position]!r}; expected a '
                             'prototxt')
        if match.lastgroup:
            yield match.lastgroup, match.group(), line
        line += match.group().count('\n')
        position = match.end()


def _message(tokens: list[tuple[str, str, int]], at: int, path: Path, depth: int
             ) -> tuple[Message, int]:
    """Return the message whose fields begin at a token, and where they end."""
    result = Message()
    if depth > _MAX_DEPTH:
        raise InputError(f'{path}: nested too deeply')
    while at < len(tokens) and tokens[at][1] not in ('}', '>'):
        kind, name, line = tokens[at]
        if name in (',', ';'):
            at += 1
            continue
        at += 1
        if at < len(tokens) and tokens[at][1] == ':':
            at += 1
        if kind != 'word' or at >= len(tokens):
            raise InputError(f'{path}: line {line}: found {name!r}; expected a field and its '
                             'value')
        values = result.fields.setdefault(name, [])
        many = tokens[at][1] == '['
        at += many
        while True:
            kind, token, line = tokens[at] if at < len(tokens) else ('', 'the end', 0)
            if token in ('{', '<') and kind == 'sign':
                inner, at = _message(tokens, at + 1, path, depth + 1)
                if at >= len(tokens):
                    raise InputError(f'{path}: line {line}: a message without its end')
                values.append(inner)
            elif kind in ('text', 'word', 'number'):
                values.append(_value(kind, token))
            elif not (many and token == ','):
                if many and token == ']':
                    at += 1
                    break
                raise InputError(f'{path}: line {line}: found {token!r}; expected the value of '
                                 f'{name}')
            at += 1
            if not many:
                break
    return result, at


def _value(kind: str, token: str) -> str | float | bool:
    """Return the value that a token stands for."""
    if kind == 'text':
        return token[1:-1].replace('\\"', '"').replace("\\'", "'").replace('\\\\', '\\')
    if kind == 'number':
        return float(token.rstrip('f'))
    return {'true': True, 'false': False}.get(token, token)


def read_weights(path: Path) -> dict[str, list[np.ndarray]]:
    """
    Return the blobs of each layer of a caffemodel, float32.

    :raises InputError: for a file that is none
    """
    data = memoryview(files.read(path, _MAX_WEIGHTS))
    result: dict[str, list[np.ndarray]] = {}
    try:
        for field, value in _fields(data):
            if field in (2, 100) and isinstance(value, memoryview):
                name, blobs = '', []
                for inner, content in _fields(value):
                    if isinstance(content, memoryview):
                        if inner == (1 if field == 100 else 4):
                            name = bytes(content).decode()
                        elif inner == (7 if field == 100 else 6):
                            blobs.append(_blob(content))
                if blobs:
                    result[name] = blobs
    except (ValueError, IndexError) as error:
        raise InputError(f'{path}: not a caffemodel, or a damaged one: {error}') from None
    if not result:
        raise InputError(f'{path}: it has no weights; expected a caffemodel')
    return result


def read_mean(path: Path) -> np.ndarray:
    """
    Return the mean of a binaryproto for each channel: its picture's own mean.

    :raises InputError: for a file that is none
    """
    try:
        blob = _blob(memoryview(files.read(path, _MAX_WEIGHTS)))
    except (ValueError, IndexError) as error:
        raise InputError(f'{path}: not a mean file of Caffe: {error}') from None
    picture = blob.reshape(blob.shape[-3:]) if blob.ndim > 2 else blob.reshape(-1, 1, 1)
    if len(picture) != 3:
        raise InputError(f'{path}: it has {len(picture)} channels; expected 3')
    mean: np.ndarray = picture.mean((1, 2), dtype=np.float64)
    return mean


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and content of each field of a message in wire form."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            size, at = _varint(data, at)
        if size is None or at + size > len(data):
            raise ValueError(f'byte {at} begins no field that ends within the message')
        yield key >> 3, data[at:at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number of variable length, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError('a number has too many digits')


def _blob(data: memoryview) -> np.ndarray:
    """Return a BlobProto's values in its shape."""
    old: dict[int, int] = {}
    shape: list[int] | None = None
    parts: list[np.ndarray] = []
    for field, value in _fields(data):
        if field in (1, 2, 3, 4) and isinstance(value, int):
            old[field] = value
        elif field in (5, 8) and isinstance(value, memoryview):
            parts.append(np.frombuffer(value, '<f4' if field == 5 else '<f8').astype(np.float32))
        elif field == 7 and isinstance(value, memoryview):
            shape = []
            for _, dim in _fields(value):
                if isinstance(dim, int):
                    shape.append(dim)
                else:
                    at = 0
                    while at < len(dim):
                        size, at = _varint(dim, at)
                        shape.append(size)
    values = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if shape is None:
        shape = [old.get(i, 1) for i in (1, 2, 3, 4)] if old else [-1]
    return values.reshape(shape)
