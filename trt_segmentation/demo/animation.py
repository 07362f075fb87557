# SPDX-License-Identifier: Apache-2.0
"""The demo's drive as a small animated picture: what the camera sees, and what the node says."""

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
_WIDTH = 288  # of each part, pixels
_COLORS = 40  # of the camera's images, beside the classes' own: so it stays below 1 MB
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
    palette = Image.new('P', (1, 1))
    palette.putpalette([
        *(value for label in labels.classes for value in label.color),
        *(_image(some).quantize(_COLORS, dither=Image.Dither.NONE).getpalette()
          or [])[:3 * _COLORS]])
    first, *rest = (_image(picture).quantize(palette=palette, dither=Image.Dither.NONE)
                    for picture in pictures)
    times = [stamp for stamp, _, _ in frames]
    durations = [max(20, round((after - before) * 1e-6)) for before, after in pairwise(times)]
    file = io.BytesIO()
    first.save(file, 'GIF', save_all=True, append_images=rest, loop=0,
               duration=[*durations, durations[-1] if durations else 1000])
    return file.getvalue()


def _image(bgr: np.ndarray) -> Image.Image:
    """Return a picture, uint8 (height, width, 3), as Pillow has it."""
    return Image.fromarray(np.ascontiguousarray(bgr[..., ::-1]))
