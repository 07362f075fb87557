# SPDX-License-Identifier: Apache-2.0
"""Where the images of a calibration come from: files, directories, globs, lists and bags."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
import os
from pathlib import Path
import random

import numpy as np

from trt_segmentation.errors import InputError
from trt_segmentation.recordings import finder, remote
from trt_segmentation.recordings.pictures import Candidate, decode, from_bag, Unusable
from trt_segmentation.recordings.storage import NoImages

_NAMED = 3  # recordings without images, in an error


def find(sources: Iterable[str | os.PathLike], *, topics: Collection[str] = (),
         spacing: float = 0.0, notes: list[str] | None = None) -> list[Candidate]:
    """
    Return the images of files, directories, globs, list files, recordings and URLs of these.

    `finder.find` looks for them. What is at a URL is fetched; its copy goes with this process.

    The order depends on the names alone, not on that of the sources. A recording that is named
    itself must have images; one that is found below a directory or by a glob and has none is left.

    :param topics: of recordings, the image topics to take; those of cameras if none is named
    :param spacing: of recordings, the seconds between two images of a topic
    :param notes: takes a line each of what was taken from where, what was left, and why
    :raises InputError: for a source that does not exist, cannot be read or has no image
    """
    sources = [remote.here(source) for source in sources]
    named = {os.path.realpath(source) for source in sources}
    taken = finder.find(sources, recordings=True)
    said = taken.sentences()
    found, left = [], []
    for recording in taken.recordings:
        try:
            found += from_bag(recording, topics, spacing, said)
        except NoImages as error:
            if os.path.realpath(recording) in named:
                raise
            left.append(str(error))
    if left and not found and not taken.files:
        raise InputError('; '.join(left[:_NAMED]))
    said += [f'left: {reason}' for reason in left]
    if notes is not None:
        notes += said
    return found + [Candidate(file.name, partial(_load_file, file.path))
                    for file in taken.files]


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
