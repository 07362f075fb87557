# SPDX-License-Identifier: Apache-2.0
"""Finding, choosing and decoding the images of a calibration."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import glob
import os
from pathlib import Path
import random

import cv2
import numpy as np

from trt_segmentation import files
from trt_segmentation.errors import InputError

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
_BAG_SUFFIXES = ('.db3', '.mcap')
# Side of the small gray picture that the perceptual hash and the statistics are made of.
_HASH_SIDE = 32


class Unusable(Exception):
    """An image that cannot be used; the message says why."""


@dataclass(frozen=True)
class Candidate:
    """
    An image that may be used.

    name: how the manifest lists it; the same wherever the data lies
    load: returns (bytes to hash, BGR uint8 (height, width, 3)), or raises Unusable
    """

    name: str
    load: Callable[[], tuple[bytes, np.ndarray]]


@dataclass(frozen=True)
class Picture:
    """
    A decoded image and what there is to say about it.

    sha256: of the file or message; pixels: BGR uint8 (height, width, 3)
    brightness, contrast: mean and standard deviation of the gray values, 0..255
    perceptual_hash: 64 bits that near-duplicates share nearly all of
    """

    name: str
    sha256: str
    pixels: np.ndarray
    brightness: float
    contrast: float
    perceptual_hash: int


def find(sources: Iterable[str | os.PathLike]) -> list[Candidate]:
    """
    Return the images of files, directories, globs and list files, by name.

    A directory is searched with its subdirectories; one in Cityscapes' layout
    (leftImg8bit/train/CITY/*.png) gives its training images only. A list file (.txt) has a path
    a line, relative to itself.

    :raises InputError: for a source that does not exist, cannot be read or has no image
    """
    found: dict[str, Path] = {}
    for source in sources:
        paths = _expand(str(source))
        if not paths:
            raise InputError(f'{source}: no image found; expected files ending in '
                             f'{", ".join(SUFFIXES)}')
        for name, path in paths:
            found.setdefault(os.path.realpath(path), (name, path))
    return [Candidate(name, lambda path=path: _load_file(path))
            for name, path in sorted(found.values())]


def from_arrays(arrays: Iterable[np.ndarray]) -> Iterator[Candidate]:
    """Return candidates for BGR uint8 arrays, in their order."""
    def load(array: np.ndarray) -> tuple[bytes, np.ndarray]:
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise Unusable(f'found {array.dtype} {array.shape}, expected uint8 '
                           '(height, width, 3)')
        return np.int64(array.shape).tobytes() + array.tobytes(), array

    for number, array in enumerate(map(np.asarray, arrays)):
        yield Candidate(f'{number:06d}', lambda array=array: load(array))


def shuffled(candidates: Iterable[Candidate], seed: int) -> list[Candidate]:
    """Return the candidates in a random order that the seed alone decides."""
    order = list(candidates)
    random.Random(seed).shuffle(order)
    return order


def load_ahead(candidates: Iterable[Candidate], workers: int | None = None
               ) -> Iterator[Picture | tuple[Candidate, Unusable]]:
    """
    Decode images in parallel, a few ahead of the one in use, and yield them in order.

    :returns: for each candidate a picture, or the candidate and why it is unusable
    """
    workers = workers or len(os.sched_getaffinity(0))

    def load(candidate: Candidate) -> Picture | tuple[Candidate, Unusable]:
        try:
            return _examine(candidate)
        except Unusable as error:
            return candidate, error

    pool = ThreadPoolExecutor(workers)
    try:
        pending: deque = deque()
        for candidate in candidates:
            pending.append(pool.submit(load, candidate))
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def distance(first: int, second: int) -> int:
    """Return how many of 64 bits two perceptual hashes differ in."""
    return (first ^ second).bit_count()


def decode(data: bytes) -> np.ndarray:
    """
    Decode a picture file: gray and palette become BGR, 16 bits become 8, alpha is dropped.

    :returns: BGR uint8, shape (height, width, 3)
    :raises Unusable: if it is empty, cut short or no picture
    """
    if not data:
        raise Unusable('the file is empty')
    if _is_cut_short(data):
        raise Unusable('the file is cut short')
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise Unusable(f'cannot be decoded: {error.err or error}') from None
    if pixels is None:
        raise Unusable('not a picture that can be decoded')
    return pixels


def _is_cut_short(data: bytes) -> bool:
    """Tell whether the end of a JPEG or PNG is missing; OpenCV fills it with gray in silence."""
    if data.startswith(b'\xff\xd8'):
        # End of image after the last start of scan (a thumbnail has an end of its own). Neither
        # marker can occur within the compressed data.
        return data.find(b'\xff\xd9', data.rfind(b'\xff\xda')) < 0
    if data.startswith(b'\x89PNG\r\n\x1a\n'):
        return b'IEND\xaeB`\x82' not in data
    return False


def _examine(candidate: Candidate) -> Picture:
    """Load a candidate and measure it."""
    data, pixels = candidate.load()
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    mean, deviation = cv2.meanStdDev(gray)
    small = cv2.resize(gray, (_HASH_SIDE, _HASH_SIDE), interpolation=cv2.INTER_AREA)
    return Picture(candidate.name, files.sha256_bytes(data), pixels,
                   float(mean[0, 0]), float(deviation[0, 0]), _perceptual_hash(small))


def _perceptual_hash(small: np.ndarray) -> int:
    """
    Return the DCT hash of a 32x32 gray picture.

    Its 8x8 lowest frequencies, each against their median (Zauner, "Implementation and
    Benchmarking of Perceptual Image Hash Functions", 2010).
    """
    low = cv2.dct(small.astype(np.float32))[:8, :8].ravel()
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), 'big')


def _load_file(path: str) -> tuple[bytes, np.ndarray]:
    """Read and decode a file."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise Unusable(f'cannot be read: {error.strerror}') from None
    return data, decode(data)


def _expand(source: str) -> list[tuple[str, str]]:
    """Return (name, path) of each image that a source stands for."""
    path = Path(source)
    if path.is_dir():
        return _directory(path)
    if path.is_file():
        return _list_file(path) if path.suffix == '.txt' else [(path.name, source)]
    matches = sorted(glob.glob(source, recursive=True)) if glob.has_magic(source) else []
    if not matches:
        raise InputError(f'{source}: no such file, directory or glob')
    return [(match, match) for match in matches
            if match.lower().endswith(SUFFIXES) and os.path.isfile(match)]


def _directory(path: Path) -> list[tuple[str, str]]:
    """Return the images under a directory; of Cityscapes the training images only."""
    top = path / 'leftImg8bit' if (path / 'leftImg8bit').is_dir() else path
    start = top / 'train' if top.name == 'leftImg8bit' and (top / 'train').is_dir() else path
    found = []
    for file in _walk(start, set()):
        if file.lower().endswith(SUFFIXES):
            found.append((os.path.join(path.absolute().name, os.path.relpath(file, path)), file))
    return found


def _walk(directory: str | os.PathLike, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yield the files under a directory, through symlinks too, but into none twice."""
    try:
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(directory) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f'{directory}: cannot be read: {error.strerror}') from None
    for entry in entries:
        if entry.name.startswith('.'):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, seen)
        else:
            yield entry.path


def _list_file(path: Path) -> list[tuple[str, str]]:
    """Return the images that a list file names."""
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: cannot be read: {error}') from None
    found = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith('#'):
            continue
        image = path.parent / line
        if not image.is_file():
            raise InputError(f'{path}:{number}: no such file: {image}')
        found.append((line, str(image)))
    return found
