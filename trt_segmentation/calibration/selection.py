# SPDX-License-Identifier: Apache-2.0
"""Which of the given images a calibration uses, why not the others, and what they represent."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
import os
import re
from typing import Any

import cv2
import numpy as np

from trt_segmentation.bundles.manifest import Image, Represented, Skipped
from trt_segmentation.calibration import sources
from trt_segmentation.errors import InputError
from trt_segmentation.recordings import pictures as images
from trt_segmentation.recordings.pictures import alike, Candidate, Picture
from trt_segmentation.system import files

#: Called after each step of a stage with its name, how many are done, and of how many, or None.
Progress = Callable[[str, int, int | None], None]
_SMALLEST = 8  # an image may be so many times smaller than the network's input, to a side
# Of gray values 0..255. Below the first a picture is a night or tunnel scene; below the second
# it has the contrast of fog or heavy rain.
DARK, BRIGHT, FLAT = 60, 150, 35
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
            if alike(perceptual_hash, picture.perceptual_hash):
                return f'excluded: a near-duplicate of {name}'
        return ''


@dataclass(frozen=True)
class Next:
    """The next usable image, and those before it that are not; None after the last one."""

    picture: Picture | None
    skipped: tuple[Skipped, ...] = ()


class Selection:
    """
    The usable images of a source, one after the other, in an order that the seed decides.

    names: of the images of paths, in their order; () for arrays
    skipped: name and reason of each image that was not used so far
    available: how many images were given, or can be used once they were counted; None if that
        shows in the end only
    """

    def __init__(self, source: Any, *, size: tuple[int, int] = (1, 1), seed: int = 0,
                 topics: Collection[str] = (), spacing: float = 0.0,
                 exclude: Iterable[str | os.PathLike[str]] = (),
                 known: Iterable[Image] = (), golden: Iterable[np.ndarray] = (),
                 say: Callable[[str], None] = lambda line: None):
        """
        Find the images.

        :param source: a path or several (see `sources.find`), or BGR arrays, used in their order
        :param size: (height, width) of the network's input; much smaller images are not used
        :param exclude: paths of images that must not be used, nor near-duplicates of them
        :param known: images that were used before, which are not used again
        :param golden: BGR images that engines are proven with: none of the same pixels is used
        :param say: takes a line each of what was taken from where, what was left, and why
        :raises InputError: if a path does not exist or has no image
        """
        if isinstance(source, (str, os.PathLike)):
            source = [source]
        candidates: Iterable[Candidate]
        self.available: int | None = None
        self.names: tuple[str, ...] = ()
        if isinstance(source, (list, tuple)) and all(
                isinstance(item, (str, os.PathLike)) for item in source):
            notes: list[str] = []
            candidates = sources.shuffled(
                sources.find(source, topics=topics, spacing=spacing, notes=notes), seed)
            for note in notes:
                say(note)
            self.available = len(candidates)
            self.names = tuple(candidate.name for candidate in candidates)
        else:
            candidates = images.from_arrays(source)
        exclude = list(exclude)
        self._exclusion = Exclusion(
            loaded for loaded in images.load_ahead(sources.find(exclude) if exclude else [])
            if isinstance(loaded, Picture))
        self._size = size
        self.skipped: list[Skipped] = []
        self._candidates = candidates
        self._loaded = images.load_ahead(candidates)
        self._known = {image.sha256: image.name for image in known}
        self._golden: set[str] = set()
        self.leave_out(golden)
        self._seen = dict(self._known)
        self._returned: deque[Next] = deque()

    def __iter__(self) -> Iterator[Picture]:
        """Yield the next usable images; a later iteration goes on where this one ended."""
        for found in self.ahead():
            self.skipped += found.skipped
            if found.picture is not None:
                yield found.picture

    def ahead(self) -> Iterator[Next]:
        """
        Yield the next usable images for one who may not use them all.

        What is not used comes back with `give_back`; `skipped` is left to who uses them.
        """
        while self._returned:
            yield self._returned.popleft()
        skipped: list[Skipped] = []
        for loaded in self._loaded:
            if not isinstance(loaded, Picture):
                candidate, error = loaded
                skipped.append(Skipped(candidate.name, str(error)))
            elif reason := self._too_small(loaded):
                skipped.append(Skipped(loaded.name, reason))
            elif loaded.sha256 in self._seen:
                skipped.append(Skipped(loaded.name,
                                       f'the same content as {self._seen[loaded.sha256]}'))
            elif self._golden and _pixels_sha256(loaded.pixels) in self._golden:
                skipped.append(Skipped(loaded.name, 'it is a golden frame'))
            elif reason := self._exclusion.reason(loaded):
                skipped.append(Skipped(loaded.name, reason))
            else:
                self._seen[loaded.sha256] = loaded.name
                yield Next(loaded, tuple(skipped))
                skipped = []
        if skipped:
            yield Next(None, tuple(skipped))

    def leave_out(self, golden: Iterable[np.ndarray]) -> None:
        """Use no image of the same pixels as these, BGR, which engines are proven with."""
        self._golden |= {_pixels_sha256(pixels) for pixels in golden}

    def count_usable(self) -> None:
        """
        Read all images of paths once and keep none: `available` is then how many can be used.

        `skipped` has the others, until `rewind`.
        """
        self.available = sum(1 for _ in self)

    def rewind(self) -> None:
        """Begin anew with the first image of the paths."""
        self.skipped.clear()
        self._seen = dict(self._known)
        self._loaded = images.load_ahead(self._candidates)

    def _too_small(self, picture: Picture) -> str:
        """Return why an image says nothing of the network at work, or ''."""
        if all(side * _SMALLEST >= wanted
               for side, wanted in zip(picture.pixels.shape, self._size)):
            return ''
        (height, width), (expected_height, expected_width) = picture.pixels.shape[:2], self._size
        return (f"its size {width}x{height} is below 1/{_SMALLEST} of the network's "
                f'{expected_width}x{expected_height}')

    def give_back(self, pictures: Iterable[Next]) -> None:
        """Take images back, which come first again."""
        self._returned.extendleft(reversed([*pictures]))

    def skip(self, name: str, reason: str) -> None:
        """Note that an image was not used."""
        self.skipped.append(Skipped(name, reason))

    def too_few(self, found: int, expected: str,
                instead: str = 'give more, ask for fewer (--count, --golden), or take what there '
                               'is (--allow-fewer)') -> InputError:
        """Return the error for fewer usable images than were asked for, and what to do instead."""
        cause = (f'; the first of {len(self.skipped)} skipped is {self.skipped[0].name}: '
                 f'{self.skipped[0].reason}' if self.skipped else '')
        return InputError(f'images: {found} can be used, expected {expected}{cause}; '
                          + (instead if found else 'give others'))


def _pixels_sha256(pixels: np.ndarray) -> str:
    """Return the hash of an image's size and pixels, whatever file it came in."""
    return files.sha256_bytes(repr(pixels.shape).encode() + pixels.tobytes())


def listed(picture: Picture) -> Image:
    """Return how the manifest lists an image."""
    return Image(picture.name, picture.sha256)


def drive(name: str) -> str:
    """Return the folder or the recording that an image of this name is of; '' if none is known."""
    recorded = re.fullmatch(r'(.*)@\d+(?:#\d+)?', name)  # as pictures.from_bag names them
    return recorded[1] if recorded else name.rpartition('/')[0]


def describe(impressions: Sequence[Impression]) -> Represented:
    """Return what the images represent, and sentences about what they lack."""
    number = len(impressions)
    brightness = sorted(impression.brightness for impression in impressions)
    contrast = sorted(impression.contrast for impression in impressions)
    # One order for the same images: of three, the first two and the last two can be alike alone.
    hashes = sorted(impression.perceptual_hash for impression in impressions)
    shares = {
        'dark': sum(value < DARK for value in brightness) / number,
        'bright': sum(value > BRIGHT for value in brightness) / number,
        'flat': sum(value < FLAT for value in contrast) / number,
        'near_duplicates': sum(any(alike(one, before) for before in hashes[:i])
                               for i, one in enumerate(hashes)) / number,
    }
    sizes = sorted({f'{width}x{height}' for height, width in
                    (impression.size for impression in impressions)})
    warnings = []
    if not shares['dark']:
        warnings.append(f'no dark scene (mean gray value below {DARK}): night, dusk and tunnels '
                        'are not represented')
    if not shares['bright']:
        warnings.append(f'no bright scene (mean gray value above {BRIGHT}): low sun and snow '
                        'are not represented')
    if not shares['flat']:
        warnings.append(f'no scene of low contrast (deviation below {FLAT}): fog and heavy rain '
                        'are not represented')
    if shares['near_duplicates'] > 0.2:
        warnings.append(f'{shares["near_duplicates"]:.0%} of the images are near-duplicates of '
                        'others: they add time and no knowledge')
    if len(sizes) > 1:
        warnings.append(f'images of {len(sizes)} sizes ({", ".join(sizes[:4])}): are all of them '
                        "the vehicle's camera?")
    return Represented(
        brightness=_summary(brightness), contrast=_summary(contrast),
        dark=round(shares['dark'], 4), bright=round(shares['bright'], 4),
        flat=round(shares['flat'], 4), near_duplicates=round(shares['near_duplicates'], 4),
        sizes=tuple(sizes), warnings=tuple(warnings))


def _summary(values: Sequence[float]) -> tuple[float, float, float]:
    """Return minimum, median and maximum of sorted values, to a tenth."""
    return round(values[0], 1), round(values[len(values) // 2], 1), round(values[-1], 1)
