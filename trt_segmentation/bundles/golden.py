# SPDX-License-Identifier: Apache-2.0
"""Golden frames: images of the bundle with the masks that the float network gives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from trt_segmentation.errors import command_line, InputError
from trt_segmentation.recordings import decoder
from trt_segmentation.recordings.limits import MalformedImage


def read(directory: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """
    Yield (name, image, mask) of each golden frame, by name.

    The image is BGR uint8 (height, width, 3), the mask uint8 (height, width) train ids.

    :raises InputError: if a picture cannot be decoded, or image and mask differ in size
    """
    for path in paths(directory):
        mask_path = path.with_suffix('.mask.png')
        image = _picture(path, decoder.decode)
        mask = _picture(mask_path, decoder.decode_unchanged)
        if mask.dtype != np.uint8 or mask.shape != image.shape[:2]:
            raise InputError(f'{mask_path}: found {mask.dtype} {mask.shape}, expected uint8 '
                             f'{image.shape[:2]}, the size of {path.name}')
        yield path.stem, image, mask


def contents(directory: Path) -> dict[str, bytes]:
    """Return the PNG data of each golden image, by name: what the files hold now."""
    try:
        return {path.stem: path.read_bytes() for path in paths(directory)}
    except OSError as error:
        raise InputError(f'{directory}: cannot be read: {error.strerror}') from None


def decode(data: bytes) -> np.ndarray:
    """Return the BGR uint8 image of what `contents` returned."""
    return decoder.decode(data)


def paths(directory: Path) -> list[Path]:
    """Return the golden images' paths, by name; none if the directory does not exist."""
    # No dot files: SHA256SUMS does not vouch for them.
    return sorted(path for path in directory.glob('[!.]*.png')
                  if not path.name.endswith('.mask.png'))


def _picture(path: Path, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
    """Return a picture's pixels; raises InputError if it cannot be read."""
    try:
        return decode(path.read_bytes())
    except OSError as error:
        reason = str(error.strerror)
    except MalformedImage as error:
        reason = str(error)
    raise InputError(f'{path}: not a readable PNG picture: {reason}; record the golden frames '
                     'again with: '
                     + command_line('golden', path.parent.parent, '--images', 'DIRECTORY'))
