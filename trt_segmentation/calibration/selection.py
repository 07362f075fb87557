# SPDX-License-Identifier: Apache-2.0
"""Which of the given images a calibration uses, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from trt_segmentation.bundles.bundle import Bundle, SPEC_NAME
from trt_segmentation.bundles.labels import IGNORE
from trt_segmentation.calibration import sources
from trt_segmentation.calibration.diversity import Exclusion
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.errors import InputError
from trt_segmentation.recordings import pictures as images
from trt_segmentation.recordings.pictures import Candidate, Picture
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.segmenters.segmenter import CLASSES, CpuSegmenter
from trt_segmentation.system import files

#: Called after each image with the stage's name and the number of images done in it.
Progress = Callable[[str, int], None]
_SMALLEST = 8  # an image may be so many times smaller than the network's input, to a side


class Selection:
    """
    The usable images of a source, one after the other, in an order that the seed decides.

    skipped: name and reason of each image that was not used so far
    available: how many images were given; None if that shows in the end only
    """

    def __init__(self, source: Any, *, size: tuple[int, int] = (1, 1), seed: int = 0,
                 topics: Collection[str] = (), spacing: float = 0.0,
                 exclude: Iterable[str | os.PathLike] = ()):
        """
        Find the images.

        :param source: a path or several (see `sources.find`), or BGR arrays, used in their order
        :param size: (height, width) of the network's input; much smaller images are not used
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
        self._size = size
        self.skipped: list[dict[str, str]] = []
        self._loaded = images.load_ahead(candidates)
        self._seen: dict[str, str] = {}

    def __iter__(self) -> Iterator[Picture]:
        """Yield the next usable images; a later iteration goes on where this one ended."""
        for loaded in self._loaded:
            if not isinstance(loaded, Picture):
                candidate, error = loaded
                self.skip(candidate.name, str(error))
            elif reason := self._too_small(loaded):
                self.skip(loaded.name, reason)
            elif loaded.sha256 in self._seen:
                self.skip(loaded.name, f'the same content as {self._seen[loaded.sha256]}')
            elif reason := self._exclusion.reason(loaded):
                self.skip(loaded.name, reason)
            else:
                self._seen[loaded.sha256] = loaded.name
                yield loaded

    def _too_small(self, picture: Picture) -> str:
        """Return why an image says nothing of the network at work, or ''."""
        if all(side * _SMALLEST >= wanted
               for side, wanted in zip(picture.pixels.shape, self._size)):
            return ''
        (height, width), (expected_height, expected_width) = picture.pixels.shape[:2], self._size
        return (f"its size {width}x{height} is below 1/{_SMALLEST} of the network's "
                f'{expected_width}x{expected_height}')

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
    preprocess = Preprocessor(bundle.spec.input)
    with CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path)) as segmenter:
        for picture in pictures:
            try:
                mask = segmenter.segment(picture.pixels, (CLASSES,)).classes
            except InputError as error:
                raise InputError(f'image {picture.name}: {error}') from None
            if bundle.spec.output.kind == 'class_ids':
                _check_ids(bundle, segmenter.engine.infer(preprocess(picture.pixels)))
            path = directory / f'{len(frames):03d}.png'
            files.atomic_write(path, _png(picture.pixels))
            files.atomic_write(path.with_suffix('.mask.png'), _png(mask))
            frames.append(listed(picture))
            progress('golden frames', len(frames))
    return frames


def _check_ids(bundle: Bundle, outputs: Mapping[str, np.ndarray]) -> None:
    """Raise InputError if a network gives class ids that have no label: they would be ignored."""
    spec = bundle.spec
    ids = np.unique(outputs[spec.output.tensor])
    unknown = ids[((ids < 0) | (ids >= len(spec.labels.labels))) & (ids != IGNORE)]
    if len(unknown):
        raise InputError(
            f'output {spec.output.tensor!r}: the network gives class {unknown[0]}, but '
            f'{bundle.path / SPEC_NAME} has labels for 0..{len(spec.labels.labels) - 1} only; '
            'give labels for all classes')


def _png(pixels: np.ndarray) -> bytes:
    """Return an array as the bytes of a PNG file."""
    return cv2.imencode('.png', pixels)[1].tobytes()
