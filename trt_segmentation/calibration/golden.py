# SPDX-License-Identifier: Apache-2.0
"""
Golden frames: images that are held out, with the masks that the float network gives them.

An engine is judged by these frames alone, so of the images at hand those are chosen that show
most: first all classes, then drives, then scenes that are unlike each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from trt_segmentation.bundles.bundle import Bundle, SPEC_NAME
from trt_segmentation.bundles.labels import IGNORE
from trt_segmentation.bundles.manifest import Image
from trt_segmentation.calibration.calibrator import check_finite, NotFinite
from trt_segmentation.calibration.lab import Frame
from trt_segmentation.calibration.observer import Observer
from trt_segmentation.calibration.selection import drive, listed, Next, Progress, Selection
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.errors import InputError
from trt_segmentation.recordings.pictures import distance, Picture
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.segmenters.segmenter import CLASSES
from trt_segmentation.system import files

# For each golden frame so many images are looked at, as long as they fit into this memory.
_CHOICE = 4
_MOST_BYTES = 256 << 20
# A class that covers less of a frame than this is not shown by it.
_SHOWN = 0.001


@dataclass(frozen=True, eq=False)
class Candidate:
    """An image with the float network's mask, and the train ids that it shows."""

    picture: Picture
    mask: np.ndarray
    ids: frozenset[int]


class _Masks:
    """The float network as the maker of masks."""

    def __init__(self, bundle: Bundle):
        """Load the bundle's network."""
        self._bundle = bundle
        self._preprocess = Preprocessor(bundle.spec.input)
        self._segmenter = CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path))

    def __enter__(self) -> _Masks:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Free the engine."""
        self._segmenter.close()

    def __call__(self, picture: Picture) -> np.ndarray:
        """
        Return the mask of an image: uint8 train ids, at its size.

        :raises NotFinite: if its logits are not
        :raises InputError: if it has class ids without a label
        """
        try:
            mask: np.ndarray = self._segmenter.segment(picture.pixels, (CLASSES,)).classes
        except InputError as error:
            raise NotFinite(str(error)) from None
        if self._bundle.spec.output.kind == 'class_ids':
            self._check_ids(picture)
        return mask

    def _check_ids(self, picture: Picture) -> None:
        """Raise InputError for class ids that have no label: they would be ignored."""
        spec = self._bundle.spec
        output = self._segmenter.engine.infer(self._preprocess(picture.pixels))
        ids = np.unique(output[spec.output.tensor])
        unknown = ids[((ids < 0) | (ids >= len(spec.labels.labels))) & (ids != IGNORE)]
        if len(unknown):
            raise InputError(
                f'output {spec.output.tensor!r}: the network gives class {unknown[0]}, but '
                f'{self._bundle.path / SPEC_NAME} has labels for '
                f'0..{len(spec.labels.labels) - 1} only; give labels for all classes')


class _Judge:
    """The float network as the judge of images, by the rule of the calibration."""

    def __init__(self, bundle: Bundle):
        """Load the bundle's network."""
        spec = bundle.spec
        self._preprocess = Preprocessor(spec.input)
        self._observer: Observer | None = None
        # In segments, as it is calibrated, it takes a fraction of the memory that it takes whole.
        for values in (True, False):
            with suppress(InputError):  # what cannot be run so is judged by its output alone
                self._observer = Observer(bundle.model_path, spec.input.tensor, spec.input.size,
                                          spec.calibration.exclude, values=values)
                break

    def __call__(self, picture: Picture) -> None:
        """Raise NotFinite if a tensor is not finite."""
        if self._observer is not None:
            for part in self._observer(self._preprocess(picture.pixels)):
                shown = {name: (float(values.min()), float(values.max()))
                         for name, values in part.values.items()}
                check_finite({**part.ranges, **shown}, self._observer.activations)


def choose(bundle: Bundle, selection: Selection, pictures: Iterable[Picture], number: int,
           progress: Progress, shown: Collection[int] = ()) -> list[Candidate]:
    """
    Return the images that show most, of the first ones of a selection; the others go back to it.

    :param pictures: those of the selection that may be taken
    :param number: how many to take; fewer if there are no more
    :param shown: train ids that other golden frames show already
    """
    with _Masks(bundle) as masks:
        left = list(_look(masks, selection, pictures, number))
    judge = _Judge(bundle)
    chosen: list[Candidate] = []
    covered = set(shown)
    while left and len(chosen) < number:
        best = max(left, key=lambda candidate: _worth(candidate, chosen, covered))
        left.remove(best)
        try:
            judge(best.picture)
        except NotFinite as error:
            selection.skip(best.picture.name, str(error))
            continue
        chosen.append(best)
        covered |= best.ids
        progress('golden frames', len(chosen), number)
    selection.give_back(Next(candidate.picture) for candidate in left)
    return chosen


def _look(masks: _Masks, selection: Selection, pictures: Iterable[Picture], number: int
          ) -> Iterator[Candidate]:
    """Yield images with their masks, as many as there are to choose from."""
    size, found = 0, 0
    for picture in pictures:
        try:
            mask = masks(picture)
        except NotFinite as error:
            selection.skip(picture.name, str(error))
            continue
        yield Candidate(picture, mask, ids_of(mask))
        found += 1
        size += picture.pixels.nbytes + mask.nbytes
        if found >= _CHOICE * number or (found >= number and size >= _MOST_BYTES):
            return


def ids_of(mask: np.ndarray) -> frozenset[int]:
    """Return the train ids that a mask shows enough of."""
    counts = np.bincount(mask.ravel(), minlength=256)
    shown = np.flatnonzero(counts >= max(1, _SHOWN * mask.size))
    return frozenset(int(i) for i in shown) - {IGNORE}


def _worth(candidate: Candidate, chosen: Sequence[Candidate], covered: set[int]
           ) -> tuple[int, bool, int]:
    """Return what an image adds to those that were chosen: classes, a drive, another scene."""
    drives = {drive(other.picture.name) for other in chosen}
    likeness = min((distance(candidate.picture.perceptual_hash, other.picture.perceptual_hash)
                    for other in chosen), default=0)
    return len(candidate.ids - covered), drive(candidate.picture.name) not in drives, likeness


def write_golden(frames: Sequence[Candidate], directory: Path, first: int = 0) -> list[Image]:
    """
    Write golden frames, NNN.png and NNN.mask.png; return name and sha256 of each image.

    :param first: the number of the first one
    """
    directory.mkdir(exist_ok=True)
    for i, frame in enumerate(frames, first):
        path = directory / f'{i:03d}.png'
        files.atomic_write(path, _png(frame.picture.pixels))
        files.atomic_write(path.with_suffix('.mask.png'), _png(frame.mask))
    return [listed(frame.picture) for frame in frames]


def trial_frames(bundle: Bundle, selection: Selection, number: int) -> list[Frame]:
    """Return the next images of a selection with the float network's masks."""
    judge = _Judge(bundle)
    pictures = []
    for picture in islice(selection, number):
        try:
            judge(picture)
            pictures.append(picture)
        except NotFinite as error:
            selection.skip(picture.name, str(error))
    del judge
    frames = []
    with _Masks(bundle) as masks:
        for picture in pictures:
            try:
                frames.append(Frame(picture.pixels, masks(picture)))
            except NotFinite as error:
                selection.skip(picture.name, str(error))
    return frames


def _png(pixels: np.ndarray) -> bytes:
    """Return an array as the bytes of a PNG file."""
    return bytes(cv2.imencode('.png', pixels)[1])
