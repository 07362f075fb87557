# SPDX-License-Identifier: Apache-2.0
"""Whether all of a PNG picture is there and undamaged, by its lengths and checksums (RFC 2083)."""

from __future__ import annotations

from struct import Struct
from zlib import crc32

from trt_segmentation.recordings.limits import check_size, damaged, MalformedImage

SIGNATURE = b'\x89PNG\r\n\x1a\n'
_NEEDED = (b'IHDR', b'PLTE', b'IDAT', b'IEND')
_HEAD, _SUM = Struct('>I4s'), Struct('>I')  # of a chunk: length and name; checksum
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_MAX_CHUNKS = 100_000
MAX_BYTES = 128 << 20
"""What the pixels of a PNG may be, unpacked: a core decodes as much in a second or so."""
_DEFLATE = 1032  # bytes that a byte of deflated data can become at most


def size(data: memoryview) -> tuple[int, int]:
    """Return the (height, width) in a PNG picture's header; raises MalformedImage."""
    if len(data) < 33 or bytes(data[12:16]) != b'IHDR' or int.from_bytes(data[8:12], 'big') != 13:
        raise damaged('the PNG data is cut short: it has no size')
    return int.from_bytes(data[20:24], 'big'), int.from_bytes(data[16:20], 'big')


def checked(data: memoryview) -> memoryview | bytes:
    """
    Check every chunk of a PNG picture; return the picture without what is not pixels.

    Decoders read other things out of the other chunks (animation, orientation, color profiles),
    each version its own, and believe their lengths.

    :raises MalformedImage: if a part is missing, cut short or damaged, or too small for its size
    """
    height, width = size(data)
    check_size(height, width)
    depth, kind = data[24], data[25]
    if depth not in _DEPTHS.get(kind, ()):
        raise damaged(f'the PNG data claims {depth} bits of color type {kind}')
    row = (width * depth * _CHANNELS[kind] + 7) // 8
    if height * row > MAX_BYTES:
        raise MalformedImage('absurd_size', f'{width}x{height} pixels of {depth} bits and '
                             f'{_CHANNELS[kind]} channels are {height * row >> 20} MiB; at most '
                             f'{MAX_BYTES >> 20} are taken of a PNG')
    kept: list[memoryview] = []
    begin, at, total, pixels = 0, 8, len(data), 0
    for _ in range(_MAX_CHUNKS):
        if at + 12 > total:
            raise damaged('the PNG data is cut short')
        length, name = _HEAD.unpack_from(data, at)
        end = at + 12 + length
        if end > total:
            raise damaged('the PNG data is cut short')
        # Not left to the decoder: an OpenCV that is built with libspng does not look at them.
        if crc32(data[at + 4:end - 4]) != _SUM.unpack_from(data, end - 4)[0]:
            raise damaged(f'the PNG data has a wrong checksum at byte {at}')
        if name == b'IDAT':
            pixels += length
        elif name not in _NEEDED:
            if name[:1].isupper():
                raise MalformedImage('undecodable', f'the PNG data needs a part {name!r} that no '
                                     'standard has')
            kept.append(data[begin:at])
            begin = end
        at = end
        if name == b'IEND':
            break
    else:
        raise damaged('the PNG data has too many parts')
    if height * row > _DEFLATE * pixels:
        raise damaged(f'the PNG data has {pixels} bytes of pixels, too few for {width}x{height}')
    return b''.join([*kept, data[begin:at]]) if kept else data
