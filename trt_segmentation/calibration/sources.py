# SPDX-License-Identifier: Apache-2.0
"""Where the images of a calibration come from: files, directories, globs, lists and bags."""

from __future__ import annotations

from collections.abc import Collection, Iterable
import os
from pathlib import Path
import random

import numpy as np

from trt_segmentation.calibration import bag_images
from trt_segmentation.recordings import bags, finder
from trt_segmentation.recordings.pictures import Candidate, decode, Unusable


def find(sources: Iterable[str | os.PathLike], *, topics: Collection[str] = (),
         spacing: float = 0.0, notes: list[str] | None = None) -> list[Candidate]:
    """
    Return the images of files, directories, globs, list files (see `finder.find`) and bags.

    The order depends on the names alone.

    :param topics: of bags, the image topics to take; all if none is named
    :param spacing: of bags, the seconds between two images of a topic
    :param notes: takes a line each of what was taken from where, what was left, and why
    :raises InputError: for a source that does not exist, cannot be read or has no image
    """
    paths, found = [], []
    for source in map(os.fspath, sources):
        if bags.is_bag(source):
            found += bag_images.find(Path(source), topics, spacing)
        else:
            paths.append(source)
    pictures = finder.find(paths)
    if notes is not None:
        notes += pictures.sentences()
    return found + [Candidate(file.name, lambda path=file.path: _load_file(path))
                    for file in pictures.files]


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
