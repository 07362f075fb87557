# SPDX-License-Identifier: Apache-2.0
"""What an interrupted evaluation needs to go on: all that was counted, and of what."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
import json
from pathlib import Path
from typing import Any

import numpy as np

from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.system import files

SCHEMA = 3
FILE_NAME = '.evaluation.partial.json'
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Worst:
    """One of the frames that an engine changed most; `picture` is a JPEG file's bytes."""

    name: str
    agreement: float
    picture: bytes


def worst_to_json(worst: Worst) -> dict[str, Any]:
    """Return a frame as JSON values."""
    return {**asdict(worst), 'picture': base64.b64encode(worst.picture).decode()}


def worst_from_json(entry: dict[str, Any]) -> Worst:
    """Return what `worst_to_json` wrote; raises ValueError, KeyError or TypeError for others."""
    return Worst(entry['name'], entry['agreement'], base64.b64decode(entry['picture']))


@dataclass(frozen=True)
class Counts:
    """A confusion matrix as (row, column, count), and the ignored pixels as (column, count)."""

    cells: list[list[int]]
    ignored: list[list[int]]

    def __post_init__(self) -> None:
        """Raise ValueError for what is no count of two train ids."""
        for entries, length in ((self.cells, 3), (self.ignored, 2)):
            for *ids, count in entries:
                if len(ids) != length - 1 or not all(0 <= i <= 255 for i in ids) or (
                        type(count) is not int or count < 0):
                    raise ValueError(f'no count: {(*ids, count)}')

    @classmethod
    def of(cls, confusion: Confusion) -> Counts:
        """Take the cells that are not zero."""
        rows, columns = np.nonzero(confusion.matrix)
        (said,) = np.nonzero(confusion.ignored)
        return cls(
            np.stack([rows, columns, confusion.matrix[rows, columns]], 1).tolist(),
            np.stack([said, confusion.ignored[said]], 1).tolist())

    def to_confusion(self, labels: LabelSet) -> Confusion:
        """Return the matrix."""
        confusion = Confusion(labels)
        self.add_to(confusion)
        return confusion

    def add_to(self, confusion: Confusion) -> None:
        """Add what was counted to a matrix."""
        for row, column, count in self.cells:
            confusion.matrix[row, column] += count
        for column, count in self.ignored:
            confusion.ignored[column] += count


@dataclass(frozen=True)
class State:
    """
    What was counted so far.

    key: hash of all that the figures depend on, besides the files
    done: the signature of each item that was counted, by name
    agreements: of each frame, by engine
    processors: the names of those that computed it
    """

    key: str
    done: dict[str, str]
    frames: int
    frames_with_truth: int
    seconds: dict[str, float]
    against_truth: dict[str, Counts]
    against_reference: dict[str, Counts]
    agreements: dict[str, list[float]]
    worst: dict[str, list[Worst]]
    processors: list[str]

    def to_json(self) -> str:
        """Return the state as text."""
        document = {'schema': SCHEMA, **asdict(self)}
        document['worst'] = {engine: [*map(worst_to_json, entries)]
                             for engine, entries in self.worst.items()}
        return json.dumps(document)

    @classmethod
    def from_json(cls, text: str) -> State:
        """Return what `to_json` wrote; raises ValueError, KeyError or TypeError for other text."""
        document: dict[str, Any] = json.loads(text)
        if document.pop('schema') != SCHEMA:
            raise ValueError('the state is of another version')
        for key in ('against_truth', 'against_reference'):
            document[key] = {engine: Counts(**counts)
                             for engine, counts in document[key].items()}
        document['worst'] = {
            engine: [*map(worst_from_json, entries)]
            for engine, entries in document['worst'].items()}
        return cls(**document)


def read(directory: Path, key: str, processor: str, signatures: Mapping[str, str]
         ) -> State | None:
    """
    Return what an interrupted run left, if it asked the same of the same files.

    :param key: as `State.key`
    :param processor: that must have taken part
    :param signatures: of the items of this run, by name
    """
    try:
        state = State.from_json(files.read(directory / FILE_NAME, _MAX_BYTES).decode())
    except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    same = state.key == key and processor in state.processors and all(
        signatures.get(name) == signature for name, signature in state.done.items())
    return state if same else None


def write(directory: Path, state: State) -> None:
    """Keep a state; raises InputError if the directory cannot be written."""
    directory.mkdir(parents=True, exist_ok=True)
    files.atomic_write(directory / FILE_NAME, state.to_json())


def remove(directory: Path) -> None:
    """Remove the state of a run that came to its end."""
    (directory / FILE_NAME).unlink(missing_ok=True)
