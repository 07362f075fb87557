# SPDX-License-Identifier: Apache-2.0
"""Replay of many recordings: each a bag of masks of its own, and one account of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import os
from pathlib import Path
import shutil
from typing import Any

from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.engines.workers import Engines, Identity, opened, Workers
from trt_segmentation.errors import command_line, InputError
from trt_segmentation.evaluation.account import Fleet, Log, Replayed, Row
from trt_segmentation.evaluation.frames import InProcess
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.evaluation.progress import Counts, Worst
from trt_segmentation.evaluation.replay import open_bag, replay, Result
from trt_segmentation.recordings import remote, storage
from trt_segmentation.segmenters.segmenter import Segmenter
from trt_segmentation.system import files
from trt_segmentation.system.spread import spread

_SHOWN = 5  # problems of a recording that are kept as sentences


@dataclass(frozen=True)
class Recording:
    """
    A recording of a fleet.

    name: the same wherever the data lies, and that of its bag of masks
    path: as the workers read it; or a URL
    signature: changes when its files do; of a URL it is the URL
    """

    name: str
    path: str
    signature: str


@dataclass(frozen=True)
class Wanted:
    """
    What to do with each recording.

    output, record_golden: the directories that its bags go into; golden: that of its golden masks
    min_agreement: the share 0..1 of a frame's pixels that must be the golden ones
    """

    engines: Engines
    topics: tuple[str, ...] = ()
    output: str | None = None
    storage: str = ''
    record_golden: str | None = None
    golden: str | None = None
    min_agreement: float = 0.995


def is_fleet(sources: Sequence[str]) -> bool:
    """Tell whether these are not one recording on this machine, but recordings."""
    (first, *others) = sources
    return bool(others) or remote.is_url(first) or (
        not storage.is_bag(first) and bool(storage.within(first)))


def find(sources: Sequence[str]) -> list[Recording]:
    """
    Return the recordings of paths, directories, globs and URLs, by name.

    :raises InputError: for a source without one
    """
    urls: set[str] = set()
    here: list[Path] = []
    for source in sources:
        if remote.is_url(source):
            urls.update(remote.recordings(source))
            continue
        within = storage.within(source)
        if not within:
            raise InputError(f'{source}: no recording; expected a directory with metadata.yaml, a '
                             'file .mcap, .db3 or .bag, or a directory or glob of these'
                             + files.nearest_path(source))
        here += within
    paths = [*map(os.path.abspath, storage.by_name(here)), *sorted(urls)]
    return sorted((Recording(name, path, _signature(path))
                   for name, path in zip(_names(paths), paths)),
                  key=lambda recording: recording.name)


def replay_all(recordings: Sequence[Recording], wanted: Wanted, workers: Workers,
               identity: Identity, labels: LabelSet, state: Path | None, *,
               progress: Callable[[], None] = lambda: None,
               watch: Callable[[Sequence[str]], None] = lambda names: None) -> Fleet:
    """
    Replay recordings on workers; go on where an interrupted run of the same ended.

    :param identity: of the engines, as one worker said
    :param state: the file where what was done is kept until the end; None to keep nothing
    :param watch: called with the names of the recordings on their way, the first ones first
    :raises InputError: for an output that exists and is not of an interrupted run of the same
    """
    fleet = Fleet(labels, next(backend for backend, *_ in identity.engines.values()))
    key = identity.key(
        wanted.engines.place.sha256, processor=identity.processor, topics=wanted.topics,
        storage=wanted.storage, golden=wanted.golden, min_agreement=wanted.min_agreement)
    log = Log(state, key, {recording.name: _signature_with_golden(recording, wanted.golden)
                           for recording in recordings})
    if not log.resume(fleet):
        for directory in filter(None, (wanted.output, wanted.record_golden)):
            if os.path.isdir(directory) and any(
                    not name.startswith('.') for name in os.listdir(directory)):
                raise InputError(f'{directory}: exists already, and is not what an interrupted '
                                 'run of this command left; remove it, or name another output')
    done = {row.name for row in fleet.rows}
    for _ in done:
        progress()
    todo = [recording for recording in recordings if recording.name not in done]
    for recording in todo:
        for path in filter(None, _written(wanted, recording.name)):
            # Written, but not noted as done; or of a recording that has changed.
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
    tasks = (_Task(wanted, recording, fleet.bound) for recording in todo)
    with log:
        for _, (found, result) in spread(
                workers.executor, _replay, tasks, ahead=2 * workers.number - 1, ordered=False,
                watch=lambda flying: watch([task.recording.name for task in flying])):
            identity.check(found)
            log.write(result)
            fleet.add(result)
            progress()
    return fleet


@dataclass(frozen=True)
class _Task:
    """
    A recording for a worker.

    bound: the agreement above which a frame is not among the worst of the fleet any more
    """

    wanted: Wanted
    recording: Recording
    bound: float

    def __str__(self) -> str:
        """Return the recording's path."""
        return self.recording.path


def _replay(task: _Task) -> tuple[Identity, Replayed]:
    """Replay a recording; in a worker."""
    wanted, name = task.wanted, task.recording.name
    with opened(wanted.engines) as found:
        (segmenter,) = found.segmenters.values()
        nothing = Counts.of(Confusion(found.bundle.spec.labels))
        try:
            with remote.local(task.recording.path) as path:
                result = _once(segmenter, path, task)
        except InputError as error:
            return found.identity, Replayed(Row(name, str(error)), nothing, [])
    comparison = result.comparison
    problems = [*result.problems, *(comparison.problems if comparison else [])]
    row: dict[str, Any] = {}
    if comparison:
        row = {
            'compared': len(comparison.agreements),
            'identical': sum(agreement == 1 for agreement in comparison.agreements),
            'below': sum(not agreement >= wanted.min_agreement
                         for agreement in comparison.agreements),
            'missing': comparison.missing, 'unmet': comparison.unmet}
        if comparison.agreements:
            row |= {'agreement': comparison.confusion.agreement_of_all,
                    'worst_agreement': min(comparison.agreements),
                    'class_agreement': {
                        label: value for label, value in
                        comparison.confusion.class_agreement.items() if value == value}}
    return found.identity, Replayed(
        Row(name, frames=result.frames, dropped=dict(result.dropped), damage=result.damage,
            problems=len(problems), shown=tuple(problems[:_SHOWN]), seconds=result.seconds, **row),
        Counts.of(comparison.confusion) if comparison else nothing,
        [Worst(f'{name}: {worst.name}', worst.agreement, worst.picture)
         for worst in comparison.worst] if comparison else [])


def _once(segmenter: Segmenter, path: Path, task: _Task) -> Result:
    """
    Replay a recording into bags that are not there yet.

    A worker that was lost may have written them before, or even write them now, where a cluster
    has lost sight of it only: bags appear whole, and are the same bytes whoever writes them.
    """
    wanted, name = task.wanted, task.recording.name
    bags = _written(wanted, name)
    while True:
        output, record_golden = (None if bag and bag.exists() else bag for bag in bags)
        try:
            return replay(InProcess(segmenter), open_bag(path, wanted.topics), output=output,
                          storage=wanted.storage, record_golden=record_golden,
                          golden=_golden(wanted.golden, name), worst_below=task.bound)
        except InputError:
            if not any(bag and bag.exists() for bag in (output, record_golden)):
                raise


def _written(wanted: Wanted, name: str) -> tuple[Path | None, Path | None]:
    """Return the bags of masks and of golden masks that a recording is to have."""
    return (Path(wanted.output, name) if wanted.output else None,
            Path(wanted.record_golden, f'{name}.mcap') if wanted.record_golden else None)


def golden_bag(directory: str, name: str) -> Path | None:
    """Return a recording's golden masks; None if there are none."""
    return next((path for path in (Path(directory, f'{name}.mcap'), Path(directory, name))
                 if path.exists()), None)


def _golden(directory: str | None, name: str) -> Path | None:
    """Return a recording's golden masks; raises InputError if there are none."""
    if directory is None:
        return None
    if (path := golden_bag(directory, name)) is not None:
        return path
    raise InputError(f'{Path(directory, name)}.mcap: no golden masks of this recording; record '
                     'them with: '
                     + command_line('replay', 'BUNDLE', '--bag', 'BAG', '--record-golden',
                                    directory))


def _names(paths: Sequence[str]) -> list[str]:
    """
    Return a name for each absolute path or URL: its last parts, as many as make all names differ.

    Suffixes are left out; where they alone tell recordings apart, drive.db3 becomes drive_db3,
    since a name that ends in .db3 would make its bag of masks a single file.
    """
    stems = [_stem(path) for path in paths]
    alike = Counter(stems)
    told = [stem + path[len(stem):].replace('.', '_') if alike[stem] > 1 else stem
            for path, stem in zip(paths, stems)]
    parts = [[part for part in text.split('/') if part not in ('', '.', '..')] for text in told]
    most = len(set(map(tuple, parts)))
    depth = 1
    while len({tuple(part[-depth:]) for part in parts}) < most:
        depth += 1
    names: dict[str, None] = {}
    for part in parts:
        name = base = '/'.join(part[-depth:])
        number = 2
        while name in names:
            name, number = f'{base}_{number}', number + 1
        names[name] = None
    return [*names]


def _stem(path: str) -> str:
    """Return a path without the suffix of a recording."""
    for suffix in sorted(storage.SUFFIXES, key=len, reverse=True):
        path = path.removesuffix(suffix)
    return path


def _signature_with_golden(recording: Recording, golden: str | None) -> str:
    """Return text that changes with a recording's files, and with those of its golden masks."""
    bag = None if golden is None else golden_bag(golden, recording.name)
    return recording.signature + (f' {_signature(str(bag))}' if bag else '')


def _signature(path: str) -> str:
    """Return text that changes with a recording's files."""
    if remote.is_url(path):
        return path
    try:
        found = [(file.name, *_status(file)) for file in storage.files(Path(path))]
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror}') from None
    return files.sha256_json(found)


def _status(path: Path) -> tuple[int, int]:
    """Return size and time of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
