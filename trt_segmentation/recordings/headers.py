# SPDX-License-Identifier: Apache-2.0
"""The sizes that BMP, PNM, TIFF and WebP files claim, before anything is decoded."""

from __future__ import annotations

import re
import struct

from trt_segmentation.recordings import tiff
from trt_segmentation.recordings.limits import damaged, MalformedImage

# Magic number, white space and comments between width and height (netpbm's ppm(5)).
_PNM = re.compile(rb'P([1-6])(?:\s+|#[^\n]*\n)+(\d{1,9})(?:\s+|#[^\n]*\n)+(\d{1,9})\s')
_PNM_WHITES = 255, 65535
_PNM_MAXVAL = re.compile(rb'(?:\s|#[^\n]*\n)*(\d{1,5})\s')


def size(data: memoryview) -> tuple[int, int]:
    """
    Return the (height, width) that a picture claims which is neither JPEG nor PNG.

    :raises MalformedImage: if it is of no known format, or obviously cut short
    """
    start = bytes(data[:40])
    try:
        if start[:2] == b'BM':
            return _bmp(start, len(data))
        if found := _PNM.match(data):
            return _pnm(found, data)
        if start[:4] in tiff.SIGNATURES:
            return tiff.size(data)
        if start[:4] == b'RIFF' and start[8:12] == b'WEBP':
            return _webp(start, len(data))
    except (struct.error, IndexError):
        raise damaged('the picture is cut short') from None
    raise MalformedImage('undecodable', 'not a picture of a format that is taken (JPEG, PNG, BMP, '
                         'PNM, TIFF, WebP)')


def _bmp(start: bytes, length: int) -> tuple[int, int]:
    """Read a bitmap's header."""
    pixels, kind = struct.unpack_from('<II', start, 10)
    if kind == 12:
        width, height, _, bits = struct.unpack_from('<HHHH', start, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from('<iiHHI', start, 18)
    if compression in (0, 3) and pixels + (width * bits + 31) // 32 * 4 * abs(height) > length:
        raise damaged('the BMP data is cut short')
    return abs(height), width


def _pnm(found: re.Match[bytes], data: memoryview) -> tuple[int, int]:
    """Read a portable anymap's header."""
    kind, width, height = (int(group) for group in found.groups())
    at, white = found.end(), 1
    if kind not in (1, 4):
        maxval = _PNM_MAXVAL.match(data, at - 1)
        if not maxval:
            raise damaged('the PNM data has no largest value')
        at, white = maxval.end(), int(maxval[1])
        if white not in _PNM_WHITES:  # OpenCV takes the values as they stand
            raise MalformedImage('undecodable', f"the PNM data's largest value is {white}; "
                                 'expected 255 or 65535: scale it to one of them')
    if kind >= 4:
        row = ((width + 7) // 8 if kind == 4 else
               width * (3 if kind == 6 else 1) * (2 if white > 255 else 1))
        if at + row * height > len(data):
            raise damaged('the PNM data is cut short')
    return height, width


def _webp(start: bytes, length: int) -> tuple[int, int]:
    """Read a WebP container's first chunk (RFC 9649)."""
    if struct.unpack_from('<I', start, 4)[0] + 8 > length:
        raise damaged('the WebP data is cut short')
    if start[12:16] == b'VP8 ':
        width, height = struct.unpack_from('<HH', start, 26)
        return height & 0x3FFF, width & 0x3FFF
    if start[12:16] == b'VP8L':
        (bits,) = struct.unpack_from('<I', start, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    return (int.from_bytes(start[27:30], 'little') + 1, int.from_bytes(start[24:27], 'little') + 1)
