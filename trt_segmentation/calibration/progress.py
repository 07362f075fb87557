# SPDX-License-Identifier: Apache-2.0
"""What an interrupted calibration needs to go on: the statistics, and of which images."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
import io
import json
from pathlib import Path
from time import monotonic
import zipfile

import numpy as np

from trt_segmentation.calibration.calibrator import Calibrator
from trt_segmentation.calibration.packing import (
    packed,
    packed_histograms,
    unpacked,
    unpacked_histograms,
)
from trt_segmentation.errors import InputError
from trt_segmentation.recordings.pictures import Picture
from trt_segmentation.system import files

SCHEMA = 4
FILE_NAME = '.calibration.partial.npz'
_EARLIER = 'earlier_'
_SAVE_EVERY = 20.0  # seconds between two savings


@dataclass(frozen=True)
class State:
    """
    What was done so far.

    key: hash of all that the statistics depend on, besides the images
    images: sha256 of each image in their order, and why it was not used, or ''
    pixels: int64 (256,), what the float network says of them, by train id
    processors: that computed it
    """

    key: str
    images: Sequence[tuple[str, str]]
    pixels: np.ndarray
    processors: frozenset[str]


def read(directory: Path, key: str, processor: str, calibrator: Calibrator) -> State | None:
    """
    Give a new calibrator what an interrupted run of the same has counted, if there is one.

    :param processor: that must have taken part
    """
    try:
        with np.load(directory / FILE_NAME, allow_pickle=False) as arrays:
            document = json.loads(arrays['document'].tobytes())
            if document['schema'] != SCHEMA or document['key'] != key or (
                    processor not in document['processors']):
                return None
            known = unpacked(document['known'], arrays)
            for name, growth in document['growth'].items():
                known.statistics[name].growth[:] = [tuple(step) for step in growth]
            for (name, images), histogram in zip(
                    document['earlier'], unpacked_histograms(arrays, _EARLIER), strict=True):
                known.statistics[name].earlier[images] = histogram
            state = State(key, [(sha256, reason) for sha256, reason in document['images']],
                          arrays['pixels'], frozenset(document['processors']))
            # In the calibrator's order, which is the cache's.
            statistics = {name: known.statistics[name] for name in calibrator.statistics}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    calibrator.images, calibrator.statistics = known.images, statistics
    calibrator.channels, calibrator.moments = known.channels, known.moments
    return state


def write(directory: Path, state: State, calibrator: Calibrator) -> None:
    """Keep a state; raises InputError if the directory cannot be written."""
    known, arrays = packed(calibrator)
    earlier = [(name, images, histogram) for name, statistics in calibrator.statistics.items()
               for images, histogram in statistics.earlier.items()]
    arrays |= {'pixels': state.pixels,
               **packed_histograms((histogram for *_, histogram in earlier), _EARLIER)}
    document = json.dumps({
        'schema': SCHEMA, 'key': state.key, 'images': list(state.images), 'known': known,
        'processors': sorted(state.processors),
        'growth': {name: each.growth for name, each in calibrator.statistics.items()},
        'earlier': [(name, images) for name, images, _ in earlier]})
    out = io.BytesIO()
    np.savez_compressed(out, document=np.frombuffer(document.encode(), np.uint8),
                        **arrays)  # type: ignore[arg-type]
    files.atomic_write(directory / FILE_NAME, out.getvalue())


class Run:
    """
    A calibration that is saved now and then, and goes on where an interrupted one ended.

    before: of each image that the interrupted one had, why it was not used, or ''
    """

    def __init__(self, directory: Path | None, key: str, processor: str, calibrator: Calibrator,
                 pixels: np.ndarray, processors: set[str]):
        """
        Give calibrator, pixels and processors, all new, what an interrupted run counted.

        :param directory: where that is kept; None to keep nothing
        :param key: as `State.key`
        :param processor: of this run; what others alone have counted is not used
        """
        self._directory, self._key = directory, key
        self._calibrator, self._pixels, self._processors = calibrator, pixels, processors
        state = read(directory, key, processor, calibrator) if directory else None
        self._expected = deque(state.images if state else ())
        self.before = [reason for _, reason in self._expected]
        self._done: list[tuple[str, str]] = []
        self._start = self._saved = monotonic()
        if state:
            pixels += state.pixels
            processors |= state.processors

    def check(self, picture: Picture | None) -> None:
        """Raise InputError if an image is not the next one of those that were counted before."""
        known = self._expected.popleft()
        if picture is None or picture.sha256 != known[0]:
            self._done.clear()
            if self._directory is not None:
                remove(self._directory)
            raise InputError('images: they are no longer those that an interrupted run of this '
                             'command has counted, which is forgotten now; start again')
        self._done.append(known)

    def done(self, picture: Picture, reason: str) -> None:
        """Note that an image was counted; `reason` says why it was not, or ''."""
        self._done.append((picture.sha256, reason))
        if monotonic() - self._saved > _SAVE_EVERY:
            self._save()
            self._saved = monotonic()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what was counted if the block is interrupted, or what comes after it may be."""
        try:
            yield
        except BaseException:
            self._save()
            raise
        if monotonic() - self._start > _SAVE_EVERY:
            self._save()

    def _save(self) -> None:
        """Keep what was counted, unless it was interrupted in the middle of counting an image."""
        used = sum(not reason for _, reason in self._done)
        if self._directory is not None and self._done and self._calibrator.images == used:
            write(self._directory, State(self._key, self._done, self._pixels,
                                         frozenset(self._processors)), self._calibrator)


def remove(directory: Path) -> None:
    """Remove the state of a run that came to its end."""
    (directory / FILE_NAME).unlink(missing_ok=True)
