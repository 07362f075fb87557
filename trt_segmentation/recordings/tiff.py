# SPDX-License-Identifier: Apache-2.0
"""
Whether all of a TIFF picture is there and undamaged, by its lengths and checksums (TIFF 6.0).

Decoders go on with what they could read of it. What cannot be checked is refused: JPEG parts, and
colors that decoders convert each in its own way.
"""

from __future__ import annotations

import struct
from typing import NamedTuple
import zlib

import numpy as np

from trt_segmentation.recordings.limits import check_size, damaged, MalformedImage

SIGNATURES = (b'II*\0', b'MM\0*')

# Tags, of sections 8, 14, 15, 18 and 19.
_WIDTH, _LENGTH, _BITS, _COMPRESSION, _COLORS, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS, _COUNTS, _PLANES = 273, 274, 277, 278, 279, 284
_PREDICTOR, _PALETTE, _TILE_WIDTH, _EXTRA, _FORMAT = 317, 320, 322, 338, 339
_READ = {_WIDTH, _LENGTH, _BITS, _COMPRESSION, _COLORS, _FILL_ORDER, _OFFSETS, _ORIENTATION,
         _SAMPLES, _ROWS, _COUNTS, _PLANES, _PREDICTOR, _PALETTE, _TILE_WIDTH, _EXTRA,
         _FORMAT}
_KINDS = {3: ('H', 2), 4: ('I', 4)}  # SHORT and LONG
_PLAIN, _PALETTE_COLORS = 1, 3
# Samples and bits of each: gray where 0 is white, and black, RGB, palette, CMYK; with alpha.
_TAKEN = {0: {(1, 1), (1, 8)}, 1: {(1, 1), (1, 8), (2, 8), (1, 16)},
          2: {(3, 8), (4, 8), (3, 16), (4, 16)}, _PALETTE_COLORS: {(1, 8)}, 5: {(4, 8)}}
_MAX_BYTES = 64 << 20  # of pixels that are compressed: checking LZW takes a core some seconds
_MAX_VALUES = 1 << 16  # of an entry; there are no more rows
_STEP = 1 << 20  # bytes that are unpacked at once
_CLEAR, _END, _FIRST = 256, 257, 258  # codes of LZW (section 13)
_CLEARED = 512  # bytes from one clearing of its table to the next, at the least, on average


class _Entry(NamedTuple):
    """An entry of the directory: its numbers, how `struct` reads one, and where the first lies."""

    values: tuple[int, ...]
    form: str
    place: int


def size(data: memoryview) -> tuple[int, int]:
    """Return the (height, width) in a TIFF file; raises struct.error if it is cut before."""
    entries = _directory(data)
    return _one(entries, _LENGTH, 0), _one(entries, _WIDTH, 0)


def orientation(data: memoryview) -> int:
    """Return a TIFF file's orientation, as Exif parts have it too; 1 is upright, or not said."""
    return _one(_directory(data), _ORIENTATION, 1)


def checked(data: memoryview) -> bytes:
    """
    Check every part of a TIFF picture; return one of which decoders give the pixels as they are.

    They would turn it by its orientation, and multiply its colors with its alpha.

    :raises MalformedImage: if a part is missing, cut short or damaged, or of no kind that is taken
    """
    try:
        entries = _directory(data)
        check_size(*size(data))
        _check_strips(data, entries)
    except (struct.error, IndexError):
        raise damaged('the TIFF data is cut short') from None
    out = bytearray(data)
    for tag in (_ORIENTATION, _EXTRA):  # upright; an alpha that is in the colors already
        if tag in entries:
            struct.pack_into(entries[tag].form, out, entries[tag].place, 1)
    return bytes(out)


def _directory(data: memoryview) -> dict[int, _Entry]:
    """Return the first directory's entries that are read here, by their tags."""
    order = '<' if data[0] == ord('I') else '>'
    found: dict[int, _Entry] = {}
    (at,) = struct.unpack_from(order + 'I', data, 4)
    (count,) = struct.unpack_from(order + 'H', data, at)
    for place in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + 'HHI', data, place)
        if tag not in _READ:
            continue
        if kind not in _KINDS or not 0 < number <= _MAX_VALUES or tag in found:
            raise damaged(f'the TIFF data has no usable entry {tag}, or more than one')
        letter, length = _KINDS[kind]
        start = place + 8
        if number * length > 4:
            (start,) = struct.unpack_from(order + 'I', data, start)
        values = struct.unpack_from(f'{order}{number}{letter}', data, start)
        found[tag] = _Entry(values, order + letter, start)
    return found


def _one(entries: dict[int, _Entry], tag: int, default: int) -> int:
    """Return the first value of a tag."""
    return entries[tag].values[0] if tag in entries else default


def _bits(entries: dict[int, _Entry]) -> int:
    """Return the bits of a pixel; raises MalformedImage for a kind that is not taken."""
    for what, tag, taken in (
            ('compression', _COMPRESSION, (_PLAIN, *_UNPACKED)), ('fill order', _FILL_ORDER, (1,)),
            ('planes', _PLANES, (1,)), ('predictor', _PREDICTOR, (1, 2)),
            ('sample format', _FORMAT, (1,))):
        if (value := _one(entries, tag, 1)) not in taken:
            raise _refused(f'{what} {value}')
    if _TILE_WIDTH in entries:
        raise _refused('tiles')
    samples, colors = _one(entries, _SAMPLES, 1), _one(entries, _COLORS, -1)
    bits = set(entries[_BITS].values) if _BITS in entries else {1}
    each = max(bits)
    if len(bits) > 1 or (samples, each) not in _TAKEN.get(colors, ()) or (
            each == 1 and _one(entries, _PREDICTOR, 1) != 1):
        raise _refused(f'{samples} samples of {each} bits and colors of kind {colors}')
    if colors == _PALETTE_COLORS and (
            _PALETTE not in entries or len(entries[_PALETTE].values) != 3 << each):
        raise damaged('the TIFF data has no whole palette')
    return samples * each


def _refused(what: str) -> MalformedImage:
    """Return the error for a TIFF of a kind that is not taken."""
    return MalformedImage('undecodable', f'a TIFF with {what} is not taken; save it as PNG')


def _check_strips(data: memoryview, entries: dict[int, _Entry]) -> None:
    """Raise MalformedImage unless each strip is whole and has its rows."""
    height, width = size(data)
    row = (width * _bits(entries) + 7) // 8
    unpack = _UNPACKED.get(_one(entries, _COMPRESSION, _PLAIN))
    if unpack and height * row > _MAX_BYTES:
        raise MalformedImage('absurd_size', f'{width}x{height} pixels are {height * row >> 20} '
                             f'MiB; at most {_MAX_BYTES >> 20} are taken of a compressed TIFF')
    rows = min(_one(entries, _ROWS, height), height)
    offsets, counts = (entries[tag].values if tag in entries else ()
                       for tag in (_OFFSETS, _COUNTS))
    if not rows or not len(offsets) == len(counts) == -(-height // rows):
        raise damaged(f'the TIFF data has {len(offsets)} strips and {len(counts)} lengths for '
                      f'{height} rows, {rows} to a strip')
    if sum(counts) > len(data):
        raise damaged('the TIFF data is cut short, or its strips overlap')
    for number, (offset, count) in enumerate(zip(offsets, counts)):
        if offset + count > len(data):
            raise damaged('the TIFF data is cut short')
        strip, whole = data[offset:offset + count], rows * row
        found = unpack(strip, whole) if unpack else count
        expected = min(rows, height - number * rows) * row
        if found not in (expected, whole):  # some fill up the last one
            raise damaged(f'the TIFF data has a strip of {found} bytes, expected {expected}')


def _inflated(strip: memoryview, most: int) -> int:
    """Return how many bytes a strip of zlib's form has; raises MalformedImage for damage."""
    stream, found = zlib.decompressobj(), 0
    packed: memoryview | bytes = strip
    try:
        while not stream.eof and found <= most:
            unpacked = len(stream.decompress(packed, _STEP))
            packed = stream.unconsumed_tail
            if not unpacked and not packed and not stream.eof:
                raise damaged('the TIFF data has a strip that is cut short')
            found += unpacked
    except zlib.error as error:
        raise damaged(f'the TIFF data has a damaged strip: {error}') from None
    return found


def _runs(strip: memoryview, most: int) -> int:
    """Return how many bytes a strip of PackBits has (section 9); raises MalformedImage."""
    at = found = 0
    while at < len(strip) and found <= most:
        code = strip[at]
        if code < 128:
            at, found = at + 2 + code, found + 1 + code
        elif code > 128:
            at, found = at + 2, found + 257 - code
        else:
            at += 1
    if at > len(strip):
        raise damaged('the TIFF data has a strip that is cut short')
    return found


def _lzw(strip: memoryview, most: int) -> int:
    """Return how many bytes a strip of LZW codes has; raises MalformedImage for damage."""
    data = np.frombuffer(strip, np.uint8)
    at = found = 0
    for _ in range(16 + len(data) // _CLEARED):
        # From one clearing of the table to the next, where a code lies is known beforehand.
        places = at + _PLACES
        number = int(np.searchsorted(places[1:], 8 * len(data), 'right'))
        first, bits = places[:number] >> 3, _WIDTHS[:number]
        three = [data[np.minimum(first + i, len(data) - 1)].astype(int) for i in range(3)]
        window = three[0] << 16 | three[1] << 8 | three[2]
        codes = window >> (24 - (places[:number] & 7) - bits) & (1 << bits) - 1
        marks = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        if not len(marks):
            raise damaged('the TIFF data has a strip without an end')
        lengths: list[int] = []
        for code in codes[:marks[0]].tolist():
            if code >= _FIRST + len(lengths):
                raise damaged('the TIFF data has a strip with a code that stands for nothing')
            # An entry is what an earlier code stands for, and the byte behind it.
            lengths.append(1 if code < _CLEAR else lengths[code - _FIRST] + 1)
        found += sum(lengths)
        if codes[marks[0]] == _END or found > most:
            return found
        at = int(places[marks[0] + 1])
    raise damaged('the TIFF data has a strip that begins anew at every turn')


# How many bits the codes after a clearing have, by the entries that there are when one is read,
# and where they lie. Of 4094 entries the next code clears the table.
_WIDTHS = 9 + np.searchsorted([510, 1022, 2046], np.arange(_CLEAR, 4096), 'right')
_PLACES = np.concatenate([[0], np.cumsum(_WIDTHS)])
_UNPACKED = {5: _lzw, 8: _inflated, 32946: _inflated, 32773: _runs}
