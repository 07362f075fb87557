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
from typing import Any
import zipfile

import numpy as np

from trt_segmentation.calibration.calibrator import Calibrator, Statistics
from trt_segmentation.calibration.channels import Channels
from trt_segmentation.calibration.histogram import Histogram
from trt_segmentation.calibration.moments import packed, unpacked
from trt_segmentation.errors import InputError
from trt_segmentation.recordings.pictures import Picture
from trt_segmentation.system import files

SCHEMA = 2
FILE_NAME = '.calibration.partial.npz'
_SAVE_EVERY = 20.0  # seconds between two savings


@dataclass(frozen=True)
class State:
    """
    What was done so far.

    key: hash of all that the statistics depend on, besides the images
    images: sha256 of each image in their order, and why it was not used, or ''
    pixels: int64 (256,), what the float network says of them, by train id
    """

    key: str
    images: Sequence[tuple[str, str]]
    pixels: np.ndarray


def read(directory: Path, key: str, calibrator: Calibrator) -> State | None:
    """Give a new calibrator what an interrupted run of the same has counted, if there is one."""
    try:
        with np.load(directory / FILE_NAME, allow_pickle=False) as arrays:
            document = json.loads(arrays['document'].tobytes())
            if document['schema'] != SCHEMA or document['key'] != key:
                return None
            statistics = {name: _statistics(name, values, arrays)
                          for name, values in document['statistics'].items()}
            channels = {name: Channels(images, np.array([int(text, 16) for text in sums], object),
                                       arrays[f'{name}:amax'], arrays[f'{name}:counts'])
                        for name, (images, sums) in document['channels'].items()}
            moments = unpacked(document['moments'], arrays)
            state = State(key, [(sha256, reason) for sha256, reason in document['images']],
                          arrays['pixels'])
            calibrator.images = int(document['counted'])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    calibrator.statistics, calibrator.channels = statistics, channels
    calibrator.moments = moments
    return state


def write(directory: Path, state: State, calibrator: Calibrator) -> None:
    """Keep a state; raises InputError if the directory cannot be written."""
    arrays: dict[str, np.ndarray] = {'pixels': state.pixels}
    statistics = {}
    for name, known in calibrator.statistics.items():
        statistics[name] = {
            'range': [known.minimum, known.maximum], 'growth': known.growth,
            'histograms': {label: [histogram.exponent, histogram.amax]
                           for label, histogram in _histograms(known)}}
        arrays.update((f'{name}:{label}', histogram.counts)
                      for label, histogram in _histograms(known))
    for name, channels in calibrator.channels.items():
        arrays |= {f'{name}:amax': channels.amax, f'{name}:counts': channels.counts}
    moments, moment_arrays = packed(calibrator.moments)
    arrays |= moment_arrays
    document = json.dumps({
        'moments': moments,
        'schema': SCHEMA, 'key': state.key, 'images': list(state.images),
        'counted': calibrator.images, 'statistics': statistics,
        'channels': {name: (known.images, [f'{value:x}' for value in known.summed])
                     for name, known in calibrator.channels.items()}})
    out = io.BytesIO()
    np.savez_compressed(out, document=np.frombuffer(document.encode(), np.uint8),
                        **arrays)  # type: ignore[arg-type]
    files.atomic_write(directory / FILE_NAME, out.getvalue())


class Run:
    """
    A calibration that is saved now and then, and goes on where an interrupted one ended.

    before: of each image that the interrupted one had, why it was not used, or ''
    """

    def __init__(self, directory: Path | None, key: str, calibrator: Calibrator,
                 pixels: np.ndarray):
        """
        Give calibrator and pixels, both new, what an interrupted run of the same counted.

        :param directory: where that is kept; None to keep nothing
        """
        self._directory, self._key = directory, key
        self._calibrator, self._pixels = calibrator, pixels
        state = read(directory, key, calibrator) if directory else None
        self._expected = deque(state.images if state else ())
        self.before = [reason for _, reason in self._expected]
        self._done: list[tuple[str, str]] = []
        self._start = self._saved = monotonic()
        if state:
            pixels += state.pixels

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
            write(self._directory, State(self._key, self._done, self._pixels), self._calibrator)


def remove(directory: Path) -> None:
    """Remove the state of a run that came to its end."""
    (directory / FILE_NAME).unlink(missing_ok=True)


_NOW = 'now'


def _histograms(statistics: Statistics) -> Iterator[tuple[str, Histogram]]:
    """Yield the histograms of a tensor: as it is, and as it was after some images."""
    if statistics.histogram is not None:
        yield _NOW, statistics.histogram
    for images, histogram in statistics.earlier.items():
        yield str(images), histogram


def _statistics(name: str, values: dict[str, Any], arrays: Any) -> Statistics:
    """Return what `write` has written of a tensor."""
    found = {label: Histogram.restored(int(exponent), float(amax), arrays[f'{name}:{label}'])
             for label, (exponent, amax) in values['histograms'].items()}
    minimum, maximum = map(float, values['range'])
    return Statistics(minimum, maximum, found.pop(_NOW, None),
                      [(int(images), float(amax)) for images, amax in values['growth']],
                      {int(images): histogram for images, histogram in found.items()})
