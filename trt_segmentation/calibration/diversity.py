# SPDX-License-Identifier: Apache-2.0
"""What a set of images represents, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2

from trt_segmentation.recordings.pictures import distance, Picture

#: Pictures whose perceptual hashes differ in no more bits are near-duplicates: the same picture
#: compressed again, resized or slightly cropped, or a frame from a standing car.
NEAR = 4
# Of gray values 0..255. Below the first a picture is a night or tunnel scene; below the second
# it has the contrast of fog or heavy rain.
_DARK, _BRIGHT, _FLAT = 60, 150, 35
_THUMBNAIL = 160  # pixels wide


@dataclass(frozen=True)
class Impression:
    """What is kept of a picture that was used; `thumbnail` is a small JPEG file."""

    name: str
    size: tuple[int, int]
    brightness: float
    contrast: float
    perceptual_hash: int
    thumbnail: bytes

    @classmethod
    def of(cls, picture: Picture) -> Impression:
        """Return the impression of a picture."""
        height, width = picture.pixels.shape[:2]
        small = cv2.resize(picture.pixels, (_THUMBNAIL, max(1, _THUMBNAIL * height // width)),
                           interpolation=cv2.INTER_AREA)
        jpeg = cv2.imencode('.jpg', small, [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()
        return cls(picture.name, (height, width), picture.brightness, picture.contrast,
                   picture.perceptual_hash, jpeg)


class Exclusion:
    """Pictures that must not be calibrated with: those of training, validation and test sets."""

    def __init__(self, pictures: Iterable[Picture] = ()):
        """Take the pictures; only their hashes are kept."""
        self._contents: dict[str, str] = {}
        self._hashes: list[tuple[int, str]] = []
        for picture in pictures:
            self._contents[picture.sha256] = picture.name
            self._hashes.append((picture.perceptual_hash, picture.name))

    def reason(self, picture: Picture) -> str:
        """Return why a picture is excluded, or ''."""
        if picture.sha256 in self._contents:
            return f'excluded: the same content as {self._contents[picture.sha256]}'
        for perceptual_hash, name in self._hashes:
            if distance(perceptual_hash, picture.perceptual_hash) <= NEAR:
                return f'excluded: a near-duplicate of {name}'
        return ''


def describe(impressions: Sequence[Impression]) -> dict[str, Any]:
    """
    Return what the images represent, and sentences about what they lack.

    Keys: `brightness` and `contrast` (minimum, median, maximum), `dark`, `bright` and `flat`
    (shares 0..1), `near_duplicates` (share of images that resemble an earlier one), `sizes`,
    and `warnings`.
    """
    number = len(impressions)
    brightness = sorted(impression.brightness for impression in impressions)
    contrast = sorted(impression.contrast for impression in impressions)
    shares = {
        'dark': sum(value < _DARK for value in brightness) / number,
        'bright': sum(value > _BRIGHT for value in brightness) / number,
        'flat': sum(value < _FLAT for value in contrast) / number,
        'near_duplicates': sum(
            any(distance(impression.perceptual_hash, earlier.perceptual_hash) <= NEAR
                for earlier in impressions[:i])
            for i, impression in enumerate(impressions)) / number,
    }
    sizes = sorted({f'{width}x{height}' for height, width in
                    (impression.size for impression in impressions)})
    warnings = []
    if not shares['dark']:
        warnings.append(f'no dark scene (mean gray value below {_DARK}): night, dusk and tunnels '
                        'are not represented')
    if not shares['bright']:
        warnings.append(f'no bright scene (mean gray value above {_BRIGHT}): low sun and snow '
                        'are not represented')
    if not shares['flat']:
        warnings.append(f'no scene of low contrast (deviation below {_FLAT}): fog and heavy rain '
                        'are not represented')
    if shares['near_duplicates'] > 0.2:
        warnings.append(f'{shares["near_duplicates"]:.0%} of the images are near-duplicates of '
                        'others: they add time and no knowledge')
    if len(sizes) > 1:
        warnings.append(f'images of {len(sizes)} sizes ({", ".join(sizes[:4])}): are all of them '
                        "the vehicle's camera?")
    return {
        'brightness': [round(value, 1) for value in _summary(brightness)],
        'contrast': [round(value, 1) for value in _summary(contrast)],
        **{name: round(share, 4) for name, share in shares.items()},
        'sizes': sizes,
        'warnings': warnings,
    }


def _summary(values: Sequence[float]) -> tuple[float, float, float]:
    """Return minimum, median and maximum of sorted values."""
    return values[0], values[len(values) // 2], values[-1]
