# SPDX-License-Identifier: Apache-2.0
"""Decoding the images of a calibration, ahead of their use, and what there is to say of each."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from logging import getLogger
import os

import cv2
import numpy as np

from trt_segmentation.errors import counted
from trt_segmentation.recordings import bags, decoder
from trt_segmentation.recordings.image_messages import to_image
from trt_segmentation.recordings.layouts import as_bgr
from trt_segmentation.recordings.limits import MalformedImage
from trt_segmentation.system import cores, files

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
_HASH_SIDE = 32  # of the small gray picture that the perceptual hash is made of
_NEAR = 4  # bits in which perceptual hashes of near-duplicates differ at most


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


def from_arrays(arrays: Iterable[np.ndarray]) -> Iterator[Candidate]:
    """Return candidates for BGR uint8 arrays, in their order."""
    def load(array: np.ndarray) -> tuple[bytes, np.ndarray]:
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise Unusable(f'found {array.dtype} {array.shape}, expected uint8 '
                           '(height, width, 3)')
        return np.array(array.shape, np.int64).tobytes() + array.tobytes(), array

    for number, array in enumerate(map(np.asarray, arrays)):
        yield Candidate(f'{number:06d}', partial(load, array))


def from_bag(path: str | os.PathLike[str], topics: Collection[str] = (), spacing: float = 0.0,
             notes: list[str] | None = None) -> list[Candidate]:
    """
    Return the images of a recording, each message once.

    :param topics: the image topics to take; those of cameras if none is named
    :param spacing: seconds between two images of a topic, by the time of recording
    :param notes: takes a line each of what was taken, what was left out, what could not be read
    :raises InputError: if it is no recording, or has no such topic
    """
    reader = bags.Reader(path)
    reader.choose_cameras(topics)
    found: list[Candidate] = []
    names: Counter[str] = Counter()
    last: dict[str, int] = {}
    for recorded in reader:
        topic, time_ns = recorded.topic, recorded.time_ns
        # Also where time goes back: a loop, a clock that was set.
        if topic in last and abs(time_ns - last[topic]) < spacing * 1e9:
            continue
        last[topic] = time_ns
        name = f'{files.own_name(path)}{topic}@{time_ns}'
        names[name] += 1
        if names[name] > 1:
            name += f'#{names[name]}'
        found.append(Candidate(name, partial(_load_message, reader, recorded.place)))
    if notes is not None:
        notes += [f'{counted(count, "message")} on {topic} of {path}'
                  for topic, count in sorted(reader.given.items())]
        notes += [f'{topic} of {path} left out: {reason}'
                  for topic, reason in reader.left_out.items()]
        notes += reader.problems
    return found


def _load_message(reader: bags.Reader, place: bags.Place) -> tuple[bytes, np.ndarray]:
    """Return the bytes and the BGR pixels of a message."""
    try:
        message = reader.load(place)
        pixels, color = to_image(message)
    except (ValueError, MalformedImage) as error:
        raise Unusable(str(error)) from None
    # A header's stamp and sequence are no content: the same picture twice is a duplicate.
    content = bytes(message.data)
    return content, as_bgr(pixels, color)


def load_ahead(candidates: Iterable[Candidate], workers: int | None = None
               ) -> Iterator[Picture | tuple[Candidate, Unusable]]:
    """
    Decode images in parallel, a few ahead of the one in use, and yield them in order.

    :returns: for each candidate a picture, or the candidate and why it is unusable
    """
    workers = workers or cores.cores()

    def load(candidate: Candidate) -> Picture | tuple[Candidate, Unusable]:
        try:
            return _examine(candidate)
        except Unusable as error:
            return candidate, error

    pool = ThreadPoolExecutor(workers)
    try:
        pending: deque[Future[Picture | tuple[Candidate, Unusable]]] = deque()
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


def alike(first: int, second: int) -> bool:
    """
    Tell by their perceptual hashes whether two pictures are near-duplicates.

    That is the same picture compressed again, resized or slightly cropped, or a frame from a
    standing car.
    """
    return distance(first, second) <= _NEAR


def decode(data: bytes) -> np.ndarray:
    """
    Decode a picture file: gray and palette become BGR, 16 bits become 8, alpha is dropped.

    An orientation tag is ignored, which is said once.

    :returns: BGR uint8, shape (height, width, 3)
    :raises Unusable: if it is empty, cut short, damaged or no picture
    """
    if not data:
        raise Unusable('the file is empty')
    try:
        pixels = decoder.decode(data)
    except MalformedImage as error:
        raise Unusable(str(error)) from None
    if decoder.orientation(data) != 1:
        _say_orientation()
    return pixels


@cache
def _say_orientation() -> None:
    """Say once that orientation tags are ignored."""
    getLogger(__name__).warning(
        'a picture has an Exif orientation tag, which is ignored here and in all others: the '
        'mask belongs to the pixels as the sensor has them')


def _examine(candidate: Candidate) -> Picture:
    """Load a candidate and measure it."""
    data, pixels = candidate.load()
    gray = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    mean, deviation = cv2.meanStdDev(gray)
    return Picture(candidate.name, files.sha256_bytes(data), pixels,
                   float(mean[0, 0]), float(deviation[0, 0]), _perceptual_hash(gray))


def perceptual_hash(pixels: np.ndarray) -> int:
    """Return 64 bits that near-duplicates share nearly all of: of BGR uint8 pixels."""
    return _perceptual_hash(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))


def _perceptual_hash(gray: np.ndarray) -> int:
    """
    Return the DCT hash of a gray picture, at 32x32.

    Its 8x8 lowest frequencies, each against their median (Zauner, "Implementation and
    Benchmarking of Perceptual Image Hash Functions", 2010).
    """
    small = cv2.resize(gray, (_HASH_SIDE, _HASH_SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small.astype(np.float32))[:8, :8].ravel()
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), 'big')
