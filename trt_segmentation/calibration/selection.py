# SPDX-License-Identifier: Apache-2.0
"""Which of the given images a calibration uses, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from trt_segmentation import files
from trt_segmentation.bundle import Bundle
from trt_segmentation.calibration import images, sources
from trt_segmentation.calibration.diversity import Exclusion
from trt_segmentation.calibration.images import Candidate, Picture
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.errors import InputError
from trt_segmentation.segmenter import CLASSES, CpuSegmenter

#: Called after each image with the stage's name and the number of images done in it.
Progress = Callable[[str, int], None]


class Selection:
    """
    The usable images of a source, one after the other, in an order that the seed decides.

    skipped: name and reason of each image that was not used so far
    available: how many images were given; None if that shows in the end only
    """

    def __init__(self, source: Any, *, seed: int = 0, topics: Collection[str] = (),
                 spacing: float = 0.0, exclude: Iterable[str | os.PathLike] = ()):
        """
        Find the images.

        :param source: a path or several (see `sources.find`), or BGR arrays, used in their order
        :param exclude: paths of images that must not be used, nor near-duplicates of them
        :raises InputError: if a path does not exist or has no image
        """
        if isinstance(source, (str, os.PathLike)):
            source = [source]
        candidates: Iterable[Candidate]
        self.available: int | None = None
        if isinstance(source, (list, tuple)) and all(
                isinstance(item, (str, os.PathLike)) for item in source):
            candidates = sources.shuffled(
                sources.find(source, topics=topics, spacing=spacing), seed)
            self.available = len(candidates)
        else:
            candidates = images.from_arrays(source)
        exclude = list(exclude)
        self._exclusion = Exclusion(
            loaded for loaded in images.load_ahead(sources.find(exclude) if exclude else [])
            if isinstance(loaded, Picture))
        self.skipped: list[dict[str, str]] = []
        self._loaded = images.load_ahead(candidates)
        self._seen: dict[str, str] = {}

    def __iter__(self) -> Iterator[Picture]:
        """Yield the next usable images; a later iteration goes on where this one ended."""
        for loaded in self._loaded:
            if not isinstance(loaded, Picture):
                candidate, error = loaded
                self.skip(candidate.name, str(error))
            elif loaded.sha256 in self._seen:
                self.skip(loaded.name, f'the same content as {self._seen[loaded.sha256]}')
            elif reason := self._exclusion.reason(loaded):
                self.skip(loaded.name, reason)
            else:
                self._seen[loaded.sha256] = loaded.name
                yield loaded

    def skip(self, name: str, reason: str) -> None:
        """Note that an image was not used."""
        self.skipped.append({'name': name, 'reason': reason})

    def too_few(self, found: int, expected: str) -> InputError:
        """Return the error for fewer usable images than were asked for."""
        cause = (f'; the first of {len(self.skipped)} skipped is {self.skipped[0]["name"]}: '
                 f'{self.skipped[0]["reason"]}' if self.skipped else '')
        return InputError(f'images: {found} can be used, expected {expected}{cause}; give more, '
                          'or ask for fewer')


def listed(picture: Picture) -> dict[str, str]:
    """Return how the manifest lists an image."""
    return {'name': picture.name, 'sha256': picture.sha256}


def record_golden(bundle: Bundle, pictures: Iterable[Picture], directory: Path,
                  progress: Progress) -> list[dict[str, str]]:
    """
    Write golden frames: images, and the float network's masks of them.

    :param directory: where NNN.png and NNN.mask.png go
    :returns: name and sha256 of each image
    """
    frames = []
    with CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path)) as segmenter:
        for picture in pictures:
            mask = segmenter.segment(picture.pixels, (CLASSES,)).classes
            path = directory / f'{len(frames):03d}.png'
            files.atomic_write(path, _png(picture.pixels))
            files.atomic_write(path.with_suffix('.mask.png'), _png(mask))
            frames.append(listed(picture))
            progress('golden frames', len(frames))
    return frames


def _png(pixels: np.ndarray) -> bytes:
    """Return an array as the bytes of a PNG file."""
    return cv2.imencode('.png', pixels)[1].tobytes()
