# SPDX-License-Identifier: Apache-2.0
"""How the pixels of an image lie in memory: as three channels, or as cameras give them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import cv2
import numpy as np

from trt_segmentation.errors import InputError


class Layout(NamedTuple):
    """
    How the pixels of an image lie in memory, and how they become three channels.

    channels: numbers of type `dtype` that a pixel has in its row
    code: OpenCV's conversion to three channels; None where there are three already
    color: the order of these
    rows: rows in memory for each two rows of the image (3 where chroma planes follow)
    even: sides that must be even, because their chroma is shared: (height, width)
    """

    channels: int
    code: int | None = None
    color: str = 'bgr'
    dtype: type = np.uint8
    rows: int = 2
    even: tuple[bool, bool] = (False, False)


class Shaped(Protocol):
    """An image, wherever it lies."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of its array."""


CHANNELS = {'bgr': Layout(3), 'rgb': Layout(3, color='rgb')}
"""The layouts that have all colors of each pixel."""

CAMERAS = {
    'uyvy': Layout(2, cv2.COLOR_YUV2BGR_UYVY, even=(False, True)),
    'yuyv': Layout(2, cv2.COLOR_YUV2BGR_YUY2, even=(False, True)),
    'nv12': Layout(1, cv2.COLOR_YUV2BGR_NV12, rows=3, even=(True, True)),
    'nv21': Layout(1, cv2.COLOR_YUV2BGR_NV21, rows=3, even=(True, True)),
    # OpenCV names a Bayer pattern by the second row's second and third pixel.
    'bayer_rggb': Layout(1, cv2.COLOR_BayerBG2BGR),
    'bayer_bggr': Layout(1, cv2.COLOR_BayerRG2BGR),
    'bayer_gbrg': Layout(1, cv2.COLOR_BayerGR2BGR),
    'bayer_grbg': Layout(1, cv2.COLOR_BayerGB2BGR),
}
"""Those whose pixels share colors with their neighbours, as cameras give them; all are uint8."""

_LAYOUTS = CHANNELS | CAMERAS


def check(image: np.ndarray, layout: str) -> None:
    """Raise InputError unless `image` is uint8, has that layout's shape, and has pixels."""
    if layout not in _LAYOUTS:
        raise InputError(f'color: found {layout!r}, expected one of {", ".join(_LAYOUTS)}')
    channels, _, _, _, rows, (_, even_width) = _LAYOUTS[layout]
    expected = ['height' if rows == 2 else 'height * 3 / 2',
                'even width' if even_width else 'width', *[str(channels)] * (channels > 1)]
    if (not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.size == 0
            or image.ndim != len(expected) or image.shape != shape(size(image, layout), layout)
            or (even_width and image.shape[1] % 2)):
        found = (f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray)
                 else type(image).__name__)
        raise InputError(f'image: expected uint8 ({", ".join(expected)}), found {found}')


def shape(image_size: tuple[int, int], layout: str) -> tuple[int, ...]:
    """Return the shape of the array that an image of this (height, width) is."""
    channels, _, _, _, rows, _ = _LAYOUTS[layout]
    height, width = image_size
    return (height * rows // 2, width, *[channels] * (channels > 1))


def size(image: Shaped, layout: str) -> tuple[int, int]:
    """Return the (height, width) of an image of that layout."""
    return 2 * image.shape[0] // _LAYOUTS[layout].rows, image.shape[1]


def to_channels(image: np.ndarray, layout: str) -> tuple[np.ndarray, str]:
    """
    Return an image as uint8 (height, width, 3), and 'bgr' or 'rgb', the order of its channels.

    One that is so already is returned itself.
    """
    code, color = _LAYOUTS[layout].code, _LAYOUTS[layout].color
    return (image if code is None else np.asarray(cv2.cvtColor(image, code))), color


def as_bgr(image: np.ndarray, layout: str) -> np.ndarray:
    """Return an image as uint8 BGR (height, width, 3); itself if it is so already."""
    image, color = to_channels(image, layout)
    return image if color == 'bgr' else np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def sample(image: np.ndarray, layout: str, row_step: int, column_step: int) -> np.ndarray:
    """
    Return the pixels of rows and columns about so far apart, uint8 (rows, columns, 3).

    Of a camera's layout these are groups of 2 by 2 pixels, which have all colors.
    """
    if layout in CHANNELS:
        return image[::row_step, ::column_step]
    height, width = size(image, layout)
    rows, columns = _pairs(height, row_step), _pairs(width, column_step)
    if _LAYOUTS[layout].rows == 3:
        rows = np.append(rows, height + rows[::2] // 2)
    return as_bgr(image[np.ix_(rows, columns)], layout)


def _pairs(length: int, step: int) -> np.ndarray:
    """Return the indices of pairs that begin at even ones, about `step` apart."""
    first = np.arange(0, max(length - 1, 1), step + step % 2)
    return np.minimum(np.add.outer(first, (0, 1)).ravel(), length - 1)
