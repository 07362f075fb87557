# SPDX-License-Identifier: Apache-2.0
"""Arrays as image messages."""

from __future__ import annotations

from array import array

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header


def to_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """
    Return an image message.

    :param pixels: uint8 (height, width) or (height, width, channels)
    :param encoding: an 8-bit encoding with as many channels
    :param header: the stamp and frame_id of the frame that the pixels belong to
    """
    height, width = pixels.shape[:2]
    # An array('B') is taken as it is; bytes or an ndarray would be checked value by value.
    data = array('B')
    data.frombytes(memoryview(np.ascontiguousarray(pixels)))
    return Image(header=header, height=height, width=width, encoding=encoding, is_bigendian=0,
                 step=pixels.nbytes // height, data=data)


def to_png_message(pixels: np.ndarray, header: Header) -> CompressedImage:
    """
    Return a CompressedImage with a PNG of the pixels, which loses nothing.

    :param pixels: uint8 (height, width)
    """
    # Masks have few, large regions: the fastest level compresses them nearly as well as the best.
    _, png = cv2.imencode('.png', pixels, (cv2.IMWRITE_PNG_COMPRESSION, 1))
    data = array('B')
    data.frombytes(memoryview(png))
    # The format string is the one of compressed_image_transport.
    return CompressedImage(header=header, format='mono8; png compressed ', data=data)
