# SPDX-License-Identifier: Apache-2.0
"""
The one decoder of pictures: of files, of messages, of golden frames and of true masks.

The verdict does not depend on the version of OpenCV. An orientation tag is for photo albums and
ignored everywhere: the mask belongs to the pixels as the sensor has them.
"""

from __future__ import annotations

from functools import cache
import struct
from typing import Any

import cv2
import numpy as np

from trt_segmentation.recordings import headers, jpeg, png, tiff
from trt_segmentation.recordings.limits import check_size, damaged, MalformedImage

Data = bytes | bytearray | memoryview | np.ndarray


def size(data: Data) -> tuple[int, int]:
    """
    Return the (height, width) that a picture's header claims, in some microseconds.

    :raises MalformedImage: if it is no picture, or its size is zero or absurd
    """
    view = _view(data)
    if view[:2] == jpeg.SIGNATURE:
        found = jpeg.size(view)
    elif view[:8] == png.SIGNATURE:
        found = png.size(view)
    else:
        found = headers.size(view)
    check_size(*found)
    return found


def orientation(data: Data) -> int:
    """
    Return the orientation of a JPEG picture or a TIFF, which is ignored.

    1 is upright, or not said. Of other formats it is not looked for: no decoder follows it.
    """
    view = _view(data)
    try:
        if view[:2] == jpeg.SIGNATURE:
            return jpeg.orientation(view)
        return tiff.orientation(view) if bytes(view[:4]) in tiff.SIGNATURES else 1
    except (MalformedImage, struct.error, IndexError):  # as where an Exif part is cut
        return 1


def decode(data: Data) -> np.ndarray:
    """
    Return a picture as BGR uint8, shape (height, width, 3): gray is repeated, alpha is dropped.

    :raises MalformedImage: as `decode_unchanged`
    """
    return to_bgr(decode_unchanged(data))


def decode_unchanged(data: Data) -> np.ndarray:
    """
    Return a picture's own channels: uint8 or uint16, (height, width) where it is gray.

    Memory stays below four times what the claimed pixels have in BGR; the largest that is taken
    costs a core about a second.

    :raises MalformedImage: if it is no picture, or cut short, or damaged in a way that its
        lengths, markers, checksums or decoder tell
    """
    view = _view(data)
    if view[:2] == jpeg.SIGNATURE:
        jpeg.check(view)
        return _jpeg(view)
    if view[:8] == png.SIGNATURE:
        return _opencv(png.checked(view))
    check_size(*headers.size(view))
    return _opencv(tiff.checked(view) if bytes(view[:4]) in tiff.SIGNATURES else view)


def to_bgr(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 with three channels of what has one, three or four of uint8 or uint16."""
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    elif pixels.shape[2] == 4:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2BGR)
    return to_8_bits(pixels)


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Return uint8; 16-bit values are scaled by 255 / 65535."""
    return pixels if pixels.dtype == np.uint8 else cv2.convertScaleAbs(pixels, alpha=255 / 65535)


def _view(data: Data) -> memoryview:
    """Return the bytes, without a copy."""
    return memoryview(data).cast('B')


def _jpeg(view: memoryview) -> np.ndarray:
    """Decode a JPEG picture whose markers are in order."""
    library = _simplejpeg()
    if library is None:
        return _opencv(view)
    try:
        gray = library.decode_jpeg_header(view)[2].lower() == 'gray'
        pixels: np.ndarray = library.decode_jpeg(view, 'GRAY' if gray else 'BGR')
    except ValueError as error:
        raise damaged(f'the JPEG data is damaged: {error}') from None
    return pixels[..., 0] if gray else pixels


def _opencv(data: memoryview | bytes) -> np.ndarray:
    """Decode with OpenCV, which says why not to standard error only."""
    try:
        pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8),
                                                 cv2.IMREAD_UNCHANGED)
    except cv2.error:  # some damage is reported so, most by None
        pixels = None
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16) or (
            pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise MalformedImage('undecodable', f'the {len(data)} bytes cannot be decoded')
    return pixels


@cache
def _simplejpeg() -> Any:
    """Return the module, or None: OpenCV is silent of what its JPEG decoder has to say."""
    try:
        import simplejpeg
    except (ImportError, ValueError):  # the second if it was built for another NumPy
        return None
    return simplejpeg
