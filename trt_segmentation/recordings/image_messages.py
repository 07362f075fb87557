# SPDX-License-Identifier: Apache-2.0
"""
Images of sensor_msgs Image and CompressedImage messages, as arrays.

A message is whatever has the fields of one: rclpy's, or what a bag reader makes of a recording.
Node and replay share this module, so that both see the same pixels.
"""

from __future__ import annotations

import re
import sys
from typing import Any, NamedTuple

import cv2
import numpy as np

MAX_SIDE = 16384
MAX_PIXELS = 1 << 26
"""Images that are larger are not looked at: a small compressed one can claim any size."""


class MalformedImage(Exception):
    """Report a message that cannot be an image; `cause` is one of `CAUSES`."""

    def __init__(self, cause: str, text: str):
        """Take the cause, by which it is counted, and a sentence for the log."""
        super().__init__(text)
        self.cause = cause


CAUSES = ('zero_size', 'absurd_size', 'odd_size', 'unknown_encoding', 'short_step', 'short_data',
          'undecodable')
"""Why a message is no image."""


class _Encoding(NamedTuple):
    """
    How the pixels of an encoding lie in memory, and how they become three channels.

    rows: rows in memory for each two rows of the image (3 where chroma planes follow)
    code: OpenCV's conversion to three channels; None where there are three already
    even: sides that must be even, because their chroma is shared: (height, width)
    """

    channels: int
    code: int | None = None
    color: str = 'bgr'
    dtype: type = np.uint8
    rows: int = 2
    even: tuple[bool, bool] = (False, False)


_UYVY = _Encoding(2, cv2.COLOR_YUV2BGR_UYVY, even=(False, True))
_YUYV = _Encoding(2, cv2.COLOR_YUV2BGR_YUY2, even=(False, True))
# OpenCV names a Bayer pattern by the second row's second and third pixel.
_BAYER = {'rggb': cv2.COLOR_BayerBG2BGR, 'bggr': cv2.COLOR_BayerRG2BGR,
          'gbrg': cv2.COLOR_BayerGR2BGR, 'grbg': cv2.COLOR_BayerGB2BGR}
_ENCODINGS = {
    'bgr8': _Encoding(3),
    'rgb8': _Encoding(3, color='rgb'),
    'bgra8': _Encoding(4, cv2.COLOR_BGRA2BGR),
    'rgba8': _Encoding(4, cv2.COLOR_RGBA2RGB, 'rgb'),
    'mono8': _Encoding(1, cv2.COLOR_GRAY2BGR),
    'bgr16': _Encoding(3, dtype=np.uint16),
    'rgb16': _Encoding(3, color='rgb', dtype=np.uint16),
    'bgra16': _Encoding(4, cv2.COLOR_BGRA2BGR, dtype=np.uint16),
    'rgba16': _Encoding(4, cv2.COLOR_RGBA2RGB, 'rgb', np.uint16),
    'mono16': _Encoding(1, cv2.COLOR_GRAY2BGR, dtype=np.uint16),
    '8UC1': _Encoding(1, cv2.COLOR_GRAY2BGR),
    '8UC3': _Encoding(3),
    '8UC4': _Encoding(4, cv2.COLOR_BGRA2BGR),
    **{f'bayer_{name}8': _Encoding(1, code) for name, code in _BAYER.items()},
    **{f'bayer_{name}16': _Encoding(1, code, dtype=np.uint16) for name, code in _BAYER.items()},
    'yuv422': _UYVY,  # the name up to Humble; what it means is UYVY
    'uyvy': _UYVY,
    'yuv422_yuy2': _YUYV,
    'yuyv': _YUYV,
    'nv12': _Encoding(1, cv2.COLOR_YUV2BGR_NV12, rows=3, even=(True, True)),
    'nv21': _Encoding(1, cv2.COLOR_YUV2BGR_NV21, rows=3, even=(True, True)),
}
ENCODINGS = tuple(_ENCODINGS)
"""The encodings of `sensor_msgs/Image` that are taken."""


def check(msg: Any) -> tuple[int, int]:
    """
    Return the (height, width) of an image message without touching its pixels.

    :raises MalformedImage: if the message contradicts itself or cannot be converted
    """
    if hasattr(msg, 'format'):
        return _compressed_size(msg)
    _pixels(msg)
    return msg.height, msg.width


def to_image(msg: Any) -> tuple[np.ndarray, str]:
    """
    Return the image of a message and its channel order, 'bgr' or 'rgb'.

    The image is uint8 (height, width, 3). It is a view of the message's data where the encoding
    is bgr8, rgb8 or 8UC3, whatever the step. 16-bit values are scaled by 255 / 65535.
    `is_bigendian` is ignored for 8-bit encodings, where it means nothing.

    :raises MalformedImage: if the message contradicts itself or cannot be converted
    """
    if hasattr(msg, 'format'):
        return _decode(msg), 'bgr'
    pixels = _pixels(msg)
    encoding = _ENCODINGS[msg.encoding]
    if encoding.dtype is np.uint16 and bool(msg.is_bigendian) != (sys.byteorder == 'big'):
        pixels = pixels.byteswap()
    elif msg.step % pixels.itemsize:
        pixels = pixels.copy()  # OpenCV takes no rows that begin within a number
    if encoding.code is not None:
        pixels = cv2.cvtColor(pixels, encoding.code)
    if encoding.dtype is np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / 65535)
    return pixels, encoding.color


def _pixels(msg: Any) -> np.ndarray:
    """Return the message's pixels as they lie in memory, a view."""
    height, width, step = msg.height, msg.width, msg.step
    encoding = _ENCODINGS.get(msg.encoding)
    if encoding is None:
        raise MalformedImage('unknown_encoding', f'encoding {msg.encoding[:32]!r} is not one of '
                             f'{", ".join(ENCODINGS)}')
    _check_size(height, width)
    if (encoding.even[0] and height % 2) or (encoding.even[1] and width % 2):
        raise MalformedImage('odd_size', f'{width}x{height} is odd, but in {msg.encoding} pixels '
                             'share their color by twos')
    item = np.dtype(encoding.dtype).itemsize
    row = width * encoding.channels * item
    if step < row:
        raise MalformedImage('short_step', f'step is {step}, but a row of {width} pixels in '
                             f'{msg.encoding} has {row} bytes')
    rows = height * encoding.rows // 2
    if len(msg.data) < step * rows:
        raise MalformedImage('short_data', f'data has {len(msg.data)} bytes, but {rows} rows of '
                             f'step {step} have {step * rows}')
    if encoding.channels == 1:
        return np.ndarray((rows, width), encoding.dtype, msg.data, 0, (step, item))
    return np.ndarray((rows, width, encoding.channels), encoding.dtype, msg.data, 0,
                      (step, encoding.channels * item, item))


def _check_size(height: int, width: int) -> None:
    """Raise MalformedImage unless there are pixels, and not too many."""
    if height == 0 or width == 0:
        raise MalformedImage('zero_size', f'the size is {width}x{height}')
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise MalformedImage('absurd_size', f'the size is {width}x{height}; at most {MAX_SIDE} to '
                             f'a side and {MAX_PIXELS} pixels are taken')


def _decode(msg: Any) -> np.ndarray:
    """Return the BGR image of a JPEG or PNG picture, checked before it is unpacked."""
    _compressed_size(msg)
    # Orientation tags are for photo albums: the mask belongs to the pixels as the sensor has them.
    try:
        image = cv2.imdecode(np.frombuffer(msg.data, np.uint8),
                             cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # some damage is reported so, most by None
        image = None
    if image is None:
        raise MalformedImage('undecodable', f'the {len(msg.data)} bytes of format '
                             f'{msg.format[:32]!r} cannot be decoded')
    return image


def _compressed_size(msg: Any) -> tuple[int, int]:
    """Return the (height, width) that the header of a JPEG or PNG picture claims."""
    data = memoryview(msg.data)
    if data[:8] == b'\x89PNG\r\n\x1a\n' and len(data) >= 24:
        size = int.from_bytes(data[20:24], 'big'), int.from_bytes(data[16:20], 'big')
    elif data[:2] == b'\xff\xd8':
        size = _jpeg_size(data)
    else:
        raise MalformedImage('undecodable', f'format {msg.format[:32]!r}: the data is neither '
                             'JPEG nor PNG')
    _check_size(*size)
    return size


# Start of frame, by ISO/IEC 10918-1 table B.1: C0..CF without DHT (C4), JPG (C8) and DAC (CC).
_MAX_SEGMENTS = 1000  # before it; real pictures have some tens
_FILL_BYTES = re.compile(rb'\xff*')
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """Return the (height, width) in a JPEG picture's start of frame."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        at = max(_FILL_BYTES.match(data, at).end() - 1, at)
        if at + 9 > len(data) or data[at] != 0xFF:
            break
        if data[at + 1] in _START_OF_FRAME:
            return int.from_bytes(data[at + 5:at + 7], 'big'), int.from_bytes(
                data[at + 7:at + 9], 'big')
        at += 2 + int.from_bytes(data[at + 2:at + 4], 'big')
    raise MalformedImage('undecodable', 'the JPEG data ends before its size')
