# SPDX-License-Identifier: Apache-2.0
"""Where the images of a calibration come from: files, directories, globs, lists and bags."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
import glob
import os
from pathlib import Path
import random

import numpy as np

from trt_segmentation.calibration import bag_images
from trt_segmentation.errors import InputError
from trt_segmentation.recordings import bags
from trt_segmentation.recordings.pictures import Candidate, decode, SUFFIXES, Unusable


def find(sources: Iterable[str | os.PathLike], *, topics: Collection[str] = (),
         spacing: float = 0.0) -> list[Candidate]:
    """
    Return the images of files, directories, globs, list files and bags.

    A directory is searched with its subdirectories; one in Cityscapes' layout
    (leftImg8bit/train/CITY/*.png) gives its training images only. A list file (.txt) has a path
    a line, relative to itself. The order depends on the names alone.

    :param topics: of bags, the image topics to take; all if none is named
    :param spacing: of bags, the seconds between two images of a topic
    :raises InputError: for a source that does not exist, cannot be read or has no image
    """
    files: dict[str, tuple[str, str]] = {}
    found = []
    for source in map(str, sources):
        if bags.is_bag(source):
            found += bag_images.find(Path(source), topics, spacing)
            continue
        paths = _expand(source)
        if not paths:
            raise InputError(f'{source}: no image found; expected files ending in '
                             f'{", ".join(SUFFIXES)}')
        for name, path in paths:
            files.setdefault(os.path.realpath(path), (name, path))
    return found + [Candidate(name, lambda path=path: _load_file(path))
                    for name, path in sorted(files.values())]


def shuffled(candidates: Iterable[Candidate], seed: int) -> list[Candidate]:
    """Return the candidates in a random order that the seed alone decides."""
    order = list(candidates)
    random.Random(seed).shuffle(order)
    return order


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
