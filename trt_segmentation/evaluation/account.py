# SPDX-License-Identifier: Apache-2.0
"""What came of a fleet's recordings: a row for each, one account of all, and how it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
import json
from pathlib import Path
from typing import Any, BinaryIO

from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.errors import counted, InputError
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.evaluation.progress import Counts, Worst, worst_from_json, worst_to_json

SCHEMA = 1
STATE_NAME = '.replay.partial.jsonl'
_WORST = 12  # frames that are kept as pictures


@dataclass(frozen=True)
class Row:
    """
    What came of a recording.

    error: why nothing did, or ''
    frames: how many gave masks; dropped: how many did not, by cause
    damage: in words how much could not be read, or ''
    problems: how many things could not be read or segmented; shown: the first of them
    compared: frames with a golden mask; identical: those that are equal in all pixels; below:
        those that agree on less than is wanted; missing: frames without a golden mask; unmet:
        golden masks without a frame
    agreement: share 0..1 of all pixels with the golden class; worst_agreement: of the worst frame
    class_agreement: the same by the golden class, of those that occur
    """

    name: str
    error: str = ''
    frames: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    damage: str = ''
    problems: int = 0
    shown: tuple[str, ...] = ()
    compared: int = 0
    identical: int = 0
    below: int = 0
    missing: int = 0
    unmet: int = 0
    agreement: float | None = None
    worst_agreement: float | None = None
    class_agreement: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Tell whether its masks are not the golden ones."""
        return bool(self.below or self.missing or self.unmet)

    @property
    def damaged(self) -> bool:
        """Tell whether something of it could not be read or segmented."""
        return bool(self.error or self.problems)


@dataclass(frozen=True)
class Replayed:
    """A recording's row, its pixels by golden and found class, and its worst frames."""

    row: Row
    counts: Counts
    worst: list[Worst]


class Fleet:
    """What came of all recordings, in any order, in memory that grows by a row for each."""

    def __init__(self, labels: LabelSet, backend: str = ''):
        """Begin with none; `backend` is what runs the engine, where it is known."""
        self.backend = backend
        self.confusion = Confusion(labels)
        self.worst: list[Worst] = []
        self._rows: dict[str, Row] = {}

    @property
    def rows(self) -> list[Row]:
        """Return the rows by name."""
        return [self._rows[name] for name in sorted(self._rows)]

    @property
    def bound(self) -> float:
        """Return the agreement above which a frame is not among the worst."""
        return self.worst[-1].agreement if len(self.worst) == _WORST else 1.0

    def add(self, found: Replayed) -> None:
        """Count a recording, once."""
        if found.row.name in self._rows:
            return
        self._rows[found.row.name] = found.row
        found.counts.add_to(self.confusion)
        self.worst = sorted([*self.worst, *found.worst],
                            key=lambda worst: (worst.agreement, worst.name))[:_WORST]

    def failures(self, min_agreement: float) -> list[str]:
        """Return a sentence for each way in which masks are not the golden ones."""
        found = []
        for number, what in (
                (sum(row.below for row in self._rows.values()),
                 f'frames agree with the golden masks on less than {min_agreement} of the pixels'),
                (sum(row.missing for row in self._rows.values()),
                 'frames have no golden mask of their stamp and size'),
                (sum(row.unmet for row in self._rows.values()), 'golden masks have no frame')):
            if number:
                found.append(f'{number} {what}')
        if found:
            failed = [row.name for row in self.rows if row.failed]
            found.append(f'in {len(failed)} of {counted(len(self._rows), "recording")}: '
                         + ', '.join(failed[:6]) + (' ...' if len(failed) > 6 else ''))
        return found

    def summary(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        rows = self.rows
        compared = sum(row.compared for row in rows)
        return {
            'schema': SCHEMA,
            'recordings': len(rows),
            'failed': sum(row.failed for row in rows),
            'damaged': sum(row.damaged for row in rows),
            'frames': sum(row.frames for row in rows),
            'dropped': sum(sum(row.dropped.values()) for row in rows),
            'compared': compared,
            'identical': sum(row.identical for row in rows),
            'agreement': self.confusion.agreement_of_all if compared else None,
            'class_agreement': self.confusion.class_agreement if compared else {},
            'worst_frames': [{'name': worst.name, 'agreement': worst.agreement}
                             for worst in self.worst],
            'by_recording': [asdict(row) for row in rows],
        }


class Log:
    """The file that has a line for each recording that is done; it goes when all are."""

    def __init__(self, path: Path | None, key: str, signatures: Mapping[str, str]):
        """
        Open nothing yet.

        :param path: None to keep nothing
        :param key: hash of all that the rows depend on, besides the recordings
        :param signatures: of the recordings, by name
        """
        self._path, self._key, self._signatures = path, key, signatures
        self._whole = 0  # bytes of an interrupted run's file that can be gone on behind
        self._file: BinaryIO | None = None

    def resume(self, fleet: Fleet) -> bool:
        """Count what an interrupted run of the same has left; tell whether there was one."""
        if self._path is None:
            return False
        try:
            with open(self._path, 'rb') as file:
                head = json.loads(file.readline())
                if (head['schema'], head['key']) != (SCHEMA, self._key):
                    return False
                self._whole = file.tell()
                for line in file:
                    values = json.loads(line)
                    row = Row(**{**values['row'], 'shown': tuple(values['row']['shown'])})
                    found = Replayed(row, Counts(**values['counts']),
                                     [*map(worst_from_json, values['worst'])])
                    if self._signatures.get(row.name) == values['signature']:
                        fleet.add(found)
                    self._whole += len(line)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # what is behind a line that was cut is done again
        return self._whole > 0

    def __enter__(self) -> Log:
        """Begin the file, or go on in it."""
        if self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._path, 'r+b' if self._whole else 'wb')
                self._file.truncate(self._whole)
                self._file.seek(self._whole)
            except OSError as error:
                raise InputError(
                    f'{self._path}: cannot be written: {error.strerror}') from None
            if not self._whole:
                self._line({'schema': SCHEMA, 'key': self._key})
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Keep the file for the next run, if this one does not come to its end."""
        if self._file is not None and self._path is not None:
            self._file.close()
            if kind is None:
                self._path.unlink()

    def write(self, result: Replayed) -> None:
        """Note a recording that is done."""
        self._line({'signature': self._signatures[result.row.name], 'row': asdict(result.row),
                    'counts': {'cells': result.counts.cells, 'ignored': result.counts.ignored},
                    'worst': [worst_to_json(worst) for worst in result.worst]})

    def _line(self, value: dict[str, Any]) -> None:
        """Write a line, in one piece: a run that is killed leaves the others whole."""
        if self._file is not None:
            try:
                self._file.write(json.dumps(value).encode() + b'\n')
                self._file.flush()
            except OSError as error:
                raise InputError(
                    f'{self._path}: cannot be written: {error.strerror}') from None
