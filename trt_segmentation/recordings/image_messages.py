# SPDX-License-Identifier: Apache-2.0
"""
Images of sensor_msgs Image and CompressedImage messages, as arrays.

A message is whatever has the fields of one: rclpy's, or what a bag reader makes of a recording.
Node and replay share this module, so that both see the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
import re
import sys
from typing import Any

import cv2
import numpy as np

from trt_segmentation.errors import one_line
from trt_segmentation.recordings import decoder, jpeg, png
from trt_segmentation.recordings.layouts import CAMERAS, CHANNELS, Layout
from trt_segmentation.recordings.limits import check_size, MalformedImage
from trt_segmentation.recordings.storage import ZSTD_MAGIC

# The layouts that cameras give, by what they are called in messages.
_CAMERAS = {
    'yuv422': 'uyvy',  # the name up to Humble; what it means is UYVY
    'uyvy': 'uyvy',
    'yuv422_yuy2': 'yuyv',
    'yuyv': 'yuyv',
    'nv12': 'nv12',
    'nv21': 'nv21',
    **{f'{name}8': name for name in CAMERAS if name.startswith('bayer_')},
}
_ENCODINGS = {
    'bgr8': Layout(3),
    'rgb8': Layout(3, color='rgb'),
    'bgra8': Layout(4, cv2.COLOR_BGRA2BGR),
    'rgba8': Layout(4, cv2.COLOR_RGBA2RGB, 'rgb'),
    'mono8': Layout(1, cv2.COLOR_GRAY2BGR),
    'bgr16': Layout(3, dtype=np.uint16),
    'rgb16': Layout(3, color='rgb', dtype=np.uint16),
    'bgra16': Layout(4, cv2.COLOR_BGRA2BGR, dtype=np.uint16),
    'rgba16': Layout(4, cv2.COLOR_RGBA2RGB, 'rgb', np.uint16),
    'mono16': Layout(1, cv2.COLOR_GRAY2BGR, dtype=np.uint16),
    '8UC1': Layout(1, cv2.COLOR_GRAY2BGR),
    '8UC3': Layout(3),
    '8UC4': Layout(4, cv2.COLOR_BGRA2BGR),
    **{name: CAMERAS[layout] for name, layout in _CAMERAS.items()},
    **{f'{name}16': CAMERAS[name]._replace(dtype=np.uint16) for name in CAMERAS
       if name.startswith('bayer_')},
}
ENCODINGS = tuple(_ENCODINGS)
"""The encodings of `sensor_msgs/Image` that this package converts by itself."""

_LEAST_MOSAIC = 3  # OpenCV leaves a smaller one black

DEPTH = ('16UC1', '32FC1')
"""The encodings of depth images (REP 118), which are no camera pictures."""

# What else sensor_msgs/image_encodings lists; cv_bridge decides which of it is a picture.
_CV_BRIDGE = re.compile(r'8UC2|(8S|16U|16S|32S|32F|64F)C[1-4]|nv24')
# As image_transport's compressed plugin writes it: 'rgb8; jpeg compressed bgr8'.
_FORMAT = re.compile(r'(?P<encoding>[^;]*);\s*(?P<codec>\w+) compressed\s*(?P<target>\w*)')
MASK_FORMAT = 'mono8; png compressed '
"""The format of a compressed class mask."""
_CODECS = {'jpg': 'jpeg', **{name: name for name in (
    'jpeg', 'png', 'tiff', 'tif', 'webp', 'bmp', 'gif', 'qoi', 'jp2', 'jpeg2000', 'jxl', 'avif',
    'heic', 'h264', 'h265', 'hevc', 'av1', 'vp8', 'vp9', 'theora', 'ffmpeg', 'zstd', 'lz4')}}
_SIGNATURES = {jpeg.SIGNATURE: 'jpeg', png.SIGNATURE: 'png'}
_TRANSPORTS = {ZSTD_MAGIC: 'zstd', b'\0\0\0\1': 'H.264 or H.265',
               b'\0\0\1': 'H.264 or H.265'}


def check(msg: Any) -> tuple[int, int]:
    """
    Return the (height, width) of an image message without touching its pixels.

    :raises MalformedImage: if the message contradicts itself or cannot be converted
    """
    if hasattr(msg, 'format'):
        _codec(msg)
        return decoder.size(msg.data)
    if msg.encoding in _ENCODINGS:
        _array(msg)
    else:
        _check_foreign(msg)
    return msg.height, msg.width


def layout(msg: Any) -> str:
    """Return the layout that an Image's pixels have as they lie, '' if it is none of `layouts`."""
    known = _CAMERAS | {'bgr8': 'bgr', '8UC3': 'bgr', 'rgb8': 'rgb'}
    return known.get(msg.encoding, '')


def to_image(msg: Any, as_they_are: Collection[str] = (),
             decode_jpeg: Callable[[np.ndarray, str], Any] | None = None
             ) -> tuple[np.ndarray, str]:
    """
    Return the image of a message and its layout, as a rule its channel order, 'bgr' or 'rgb'.

    The image is uint8 (height, width, 3), but for `as_they_are`. It is a view of the message's
    data where the encoding is bgr8, rgb8, 8UC3 or one of those, whatever the step. 16-bit values
    are scaled by 255 / 65535. `is_bigendian` is ignored for 8-bit encodings, where it means
    nothing. Encodings beyond `ENCODINGS` are converted by cv_bridge where it is installed.

    :param as_they_are: the layouts, of `layouts.CAMERAS`, that are not to be converted
    :param decode_jpeg: another decoder of JPEG pictures that are whole by their markers: returns
        the image of uint8 (bytes,) and a channel order, or None to leave it to ours
    :raises MalformedImage: if the message contradicts itself or cannot be converted
    """
    if hasattr(msg, 'format'):
        return _decode(msg, decode_jpeg)
    encoding = _ENCODINGS.get(msg.encoding)
    if encoding is None:
        return _by_cv_bridge(msg), 'bgr'
    shape, strides = _array(msg)
    pixels = np.ndarray(shape, encoding.dtype, msg.data, 0, strides)
    if _CAMERAS.get(msg.encoding) in as_they_are:
        return pixels, _CAMERAS[msg.encoding]
    if encoding.dtype is np.uint16 and bool(msg.is_bigendian) != (sys.byteorder == 'big'):
        pixels = pixels.byteswap()
    elif msg.step % pixels.itemsize:
        pixels = pixels.copy()  # OpenCV takes no rows that begin within a number
    if encoding.code is not None:
        pixels = cv2.cvtColor(pixels, encoding.code)
    return decoder.to_8_bits(pixels), encoding.color


def mask_png(mask: np.ndarray) -> bytes:
    """Return a class mask, uint8 (height, width), as PNG: the data of a message of MASK_FORMAT."""
    # Masks have few, large regions: the fastest level compresses them nearly as well as the best.
    return bytes(cv2.imencode('.png', mask, (cv2.IMWRITE_PNG_COMPRESSION, 1))[1])


def _array(msg: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return shape and strides of a message's pixels as they lie in its data, which has them."""
    height, width, step = msg.height, msg.width, msg.step
    encoding = _ENCODINGS[msg.encoding]
    check_size(height, width)
    if (encoding.even[0] and height % 2) or (encoding.even[1] and width % 2):
        raise MalformedImage('odd_size', f'{width}x{height} is odd, but in {msg.encoding} pixels '
                             'share their color by twos')
    if msg.encoding.startswith('bayer_') and min(height, width) < _LEAST_MOSAIC:
        raise MalformedImage('odd_size', f'{width}x{height} is too small for {msg.encoding}: the '
                             f'colors lie around each pixel, {_LEAST_MOSAIC} a side at least')
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
        return (rows, width), (step, item)
    return (rows, width, encoding.channels), (step, encoding.channels * item, item)


def _check_foreign(msg: Any) -> None:
    """Raise MalformedImage unless cv_bridge may know the encoding and the data is all there."""
    if msg.encoding in DEPTH:
        raise MalformedImage('unknown_encoding', f'encoding {msg.encoding} is of depth images; '
                             'name the topic of the color image')
    if not _CV_BRIDGE.fullmatch(msg.encoding) or _cv_bridge() is None:
        raise MalformedImage('unknown_encoding', f'encoding {msg.encoding[:32]!r} is not one of '
                             f'{", ".join(ENCODINGS)}')
    check_size(msg.height, msg.width)
    if len(msg.data) < msg.step * msg.height:
        raise MalformedImage('short_data', f'data has {len(msg.data)} bytes, but {msg.height} '
                             f'rows of step {msg.step} have {msg.step * msg.height}')


def _by_cv_bridge(msg: Any) -> np.ndarray:
    """Return the BGR image of an encoding that this package leaves to cv_bridge."""
    _check_foreign(msg)
    try:
        image = np.asarray(_cv_bridge().imgmsg_to_cv2(msg, 'bgr8'))
    except Exception as error:  # its own, and those of the libraries below it
        raise MalformedImage('unknown_encoding', f'encoding {msg.encoding}: cv_bridge: '
                             f'{one_line(error)}') from None
    if image.shape != (msg.height, msg.width, 3) or image.dtype != np.uint8:
        raise MalformedImage('unknown_encoding', f'encoding {msg.encoding}: cv_bridge gives '
                             f'{image.dtype} {image.shape}')
    return image


@cache
def _cv_bridge() -> Any:
    """Return a CvBridge, or None where cv_bridge is not installed or does not fit to NumPy."""
    try:
        from cv_bridge import CvBridge
        return CvBridge()
    except Exception:  # of many types, where its compiled part is of another NumPy
        return None


def _decode(msg: Any, decode_jpeg: Callable[[np.ndarray, str], Any] | None
            ) -> tuple[np.ndarray, str]:
    """Return the image of a compressed message and its channel order."""
    found, data = _codec(msg), memoryview(msg.data).cast('B')
    if decode_jpeg is not None and data[:2] == jpeg.SIGNATURE:
        jpeg.check(data)
        if (sampling := jpeg.plain(data)) and (
                order := _order(msg, found, sampling == jpeg.GRAY)) in CHANNELS:
            image = decode_jpeg(np.frombuffer(data, np.uint8), order)
            if image is not None:
                return image, order
    pixels = decoder.decode_unchanged(data)
    order = _order(msg, found, pixels.ndim == 2)
    if order in CHANNELS:
        return decoder.to_bgr(pixels), order
    return decoder.to_8_bits(cv2.cvtColor(pixels, _ENCODINGS[order].code)), 'bgr'


def _order(msg: Any, found: re.Match[str] | None, gray: bool) -> str:
    """
    Return the channel order of a compressed message's picture, or the encoding of a mosaic.

    Its `format` is read as image_transport's subscriber reads it: 'ENCODING; CODEC compressed
    TARGET' has ENCODING before it was compressed, and channels in BGR order only if TARGET
    begins with bgr. A format that names the codec alone is BGR, as OpenCV decodes it.

    :param found: what `_codec` returned
    :raises MalformedImage: if the format contradicts the picture
    """
    if found is None:
        return 'bgr'
    encoding, target = found['encoding'].strip(), found['target']
    known = _ENCODINGS.get(encoding)
    mosaic = encoding.startswith('bayer_')
    if known and mosaic and gray:
        return encoding
    colored = known is not None and known.channels > 2
    if (colored or mosaic) if gray else (
            encoding in ('mono8', 'mono16', '8UC1') or (mosaic and not target)):
        raise MalformedImage('wrong_format', f'format {_shown(msg)} contradicts the picture, '
                             f'which is {"gray" if gray else "in color"}')
    reversed_ = target.startswith('rgb') or (colored and not target.startswith('bgr'))
    return 'rgb' if reversed_ else 'bgr'


def _codec(msg: Any) -> re.Match[str] | None:
    """
    Return what `format` says beyond the codec, or None if nothing.

    :raises MalformedImage: if the data is neither JPEG nor PNG, or not what `format` says
    """
    text, start = msg.format.strip(), bytes(memoryview(msg.data)[:12])
    found = _FORMAT.fullmatch(text)
    if 'compresseddepth' in text.lower() or (found and found['encoding'].strip() in DEPTH):
        raise MalformedImage('unknown_encoding', f'format {_shown(msg)} is of depth images; name '
                             'the topic of the color image')
    codec = next((name for magic, name in _SIGNATURES.items() if start.startswith(magic)), '')
    if not codec:
        transport = next((name for magic, name in _TRANSPORTS.items() if start.startswith(magic)),
                         '')
        raise MalformedImage('undecodable', f'format {_shown(msg)}: the data is ' + (
            f'{transport}, not JPEG or PNG; decode it with: ros2 run image_transport republish'
            if transport else 'neither JPEG nor PNG'))
    said = (found['codec'] if found else text).lower()
    if _CODECS.get(said, codec) != codec:
        raise MalformedImage('wrong_format', f'format {_shown(msg)}, but the data is {codec}')
    return found


def _shown(msg: Any) -> str:
    """Return a message's format for a sentence."""
    return repr(msg.format[:48])
