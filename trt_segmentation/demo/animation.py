# SPDX-License-Identifier: Apache-2.0
"""The demo's pictures as small files: its drive, animated, and the sheet that compares masks."""

from __future__ import annotations

from collections.abc import Sequence
import io
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.evaluation.pictures import caption, outlined, tile
from trt_segmentation.system.libraries import Library

if TYPE_CHECKING:
    from PIL import Image
else:
    Image = Library('PIL.Image', 'The animated picture', 'cpu')

MAX_FRAMES = 30
_WIDTH = 220  # of each part, pixels
_COLORS = 40  # of the camera's images, beside the classes' own: so it stays below 500 KB
_TITLES = ('camera', 'INT8, by the node')


def animation(frames: Sequence[tuple[int, np.ndarray, np.ndarray]], labels: LabelSet) -> bytes:
    """
    Return an animated GIF of a drive, at the speed that it was recorded with.

    :param frames: one or more: stamp in ns, BGR image uint8 (height, width, 3), train ids uint8
        (height, width); in the order of their stamps
    """
    heads = tile([tuple(caption(title, _WIDTH) for title in _TITLES)], _WIDTH)
    pictures = [np.vstack([heads, tile([(image, outlined(classes, labels))], _WIDTH)])
                for _, image, classes in frames]
    some = np.vstack(pictures[::max(1, len(pictures) // 4)])[:, :_WIDTH]
    palette = _palette(some, _COLORS, labels)
    first, *rest = (_image(picture).quantize(palette=palette, dither=Image.Dither.NONE)
                    for picture in pictures)
    times = [stamp for stamp, _, _ in frames]
    durations = [max(20, round((after - before) * 1e-6)) for before, after in pairwise(times)]
    file = io.BytesIO()
    first.save(file, 'GIF', save_all=True, append_images=rest, loop=0,
               duration=[*durations, durations[-1] if durations else 1000])
    return file.getvalue()


def still(picture: np.ndarray, labels: LabelSet) -> bytes:
    """
    Return a picture as a PNG of 256 colors, a third as large.

    :param picture: BGR uint8 (height, width, 3)
    """
    palette = _palette(picture, 256 - len(labels.classes), labels)
    file = io.BytesIO()
    _image(picture).quantize(palette=palette, dither=Image.Dither.NONE).save(
        file, 'PNG', optimize=True)
    return file.getvalue()


def _palette(picture: np.ndarray, colors: int, labels: LabelSet) -> Image.Image:
    """Return a palette of the classes' colors, exactly, and some of a BGR picture's."""
    quantized = _image(picture).quantize(colors, dither=Image.Dither.NONE)
    palette = Image.new('P', (1, 1))
    palette.putpalette([*(value for label in labels.classes for value in label.color),
                        *(quantized.getpalette() or [])[:3 * colors]])
    return palette


def _image(bgr: np.ndarray) -> Image.Image:
    """Return a picture, uint8 (height, width, 3), as Pillow has it."""
    return Image.fromarray(np.ascontiguousarray(bgr[..., ::-1]))
