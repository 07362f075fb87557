# SPDX-License-Identifier: Apache-2.0
"""How good an engine's masks are: against true masks, and against another engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, perf_counter

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.workers import (
    Engines,
    identify,
    Identity,
    identity_of,
    int8_shares,
    opened,
    Workers,
)
from trt_segmentation.evaluation import progress as saved
from trt_segmentation.evaluation.datasets import Item, load_ahead, Loaded
from trt_segmentation.evaluation.tally import Evaluation
from trt_segmentation.segmenters.segmenter import CLASSES, Segmenter
from trt_segmentation.system.spread import spread

_SAVE_EVERY = 20.0  # seconds between two savings of what was counted so far
_CHUNK = 8  # items that a worker gets at once, at most


def evaluate(segmenters: Mapping[str, Segmenter], frames: Iterable[Loaded],
             evaluation: Evaluation | None = None, *,
             progress: Callable[[str], None] = lambda name: None) -> Evaluation:
    """
    Run frames through engines, one by one, and count.

    :param segmenters: by name; the first is what the others are compared with
    :param frames: (name, BGR image, true train ids or None) of each frame
    :param evaluation: what to count on in; a new one if left out
    :param progress: called with the name of each frame that was counted
    """
    if evaluation is None:
        labels = next(iter(segmenters.values())).spec.labels
        evaluation = Evaluation(labels, list(segmenters))
    evaluation.int8_shares |= int8_shares(segmenters)
    begin = perf_counter()
    for name, image, truth in frames:
        start = perf_counter()
        masks = {engine: segmenter.segment(image, (CLASSES,)).classes
                 for engine, segmenter in segmenters.items()}
        evaluation.seconds['engines'] += perf_counter() - start
        evaluation.add(name, image, truth, masks)
        evaluation.seconds['all'] += perf_counter() - begin
        begin = perf_counter()
        progress(name)
    return evaluation


def evaluate_items(segmenters: Mapping[str, Segmenter], items: Sequence[Item], bundle: Bundle,
                   directory: Path | None = None, *, decoders: int = 2,
                   progress: Callable[[str], None] = lambda name: None) -> Evaluation:
    """
    Evaluate a data set; with a directory, go on where an interrupted run of the same ended.

    :param directory: where what was counted is kept until the end
    :param decoders: threads that load the items
    """
    identity = identity_of(segmenters)
    run = _Run(tuple(segmenters), items, bundle, directory, identity, progress)
    run.evaluation.processors.add(identity.processor)
    with run.kept():
        evaluate(segmenters, load_ahead(run.todo, decoders), run.evaluation,
                 progress=lambda name: run.counted([name]))
    return run.evaluation


def evaluate_spread(engines: Engines, items: Sequence[Item], bundle: Bundle, workers: Workers,
                    directory: Path | None = None, *,
                    progress: Callable[[str], None] = lambda name: None,
                    watch: Callable[[Sequence[str]], None] = lambda names: None) -> Evaluation:
    """
    Do as `evaluate_items` on workers; the figures are the same.

    The seconds are then those of all workers together.

    :param watch: called with the names of the items on their way, the first ones first
    """
    identity = workers.call(identify, engines)
    run = _Run(engines.names, items, bundle, directory, identity, progress)
    # So small that none waits long for the last one.
    size = max(1, min(_CHUNK, len(run.todo) // (8 * workers.number)))
    chunks = (_Chunk(engines, run.todo[start:start + size], run.evaluation.bounds())
              for start in range(0, len(run.todo), size))
    with run.kept():
        for chunk, (found, state) in spread(
                workers.executor, _count, chunks, ahead=3 * workers.number,
                watch=lambda flying: watch([chunk.items[0].name for chunk in flying])):
            identity.check(found)
            run.evaluation.merge(state)
            run.counted([item.name for item in chunk.items])
    return run.evaluation


@dataclass(frozen=True)
class _Chunk:
    """
    Some items for a worker.

    bounds: by engine, the agreement above which a frame cannot be among the worst any more
    """

    engines: Engines
    items: Sequence[Item]
    bounds: Mapping[str, float]

    def __str__(self) -> str:
        """Return its items in words."""
        return f'{self.items[0].name} to {self.items[-1].name}'


def _count(chunk: _Chunk) -> tuple[Identity, saved.State]:
    """Count some items; in a worker."""
    with opened(chunk.engines) as found:
        evaluation = Evaluation(found.bundle.spec.labels, chunk.engines.names,
                                bounds=chunk.bounds)
        evaluation.processors.add(found.identity.processor)
        evaluate(found.segmenters, load_ahead(chunk.items, 1), evaluation)
        return found.identity, evaluation.state('')


class _Run:
    """An evaluation that is saved now and then, and goes on where an interrupted one ended."""

    def __init__(self, engines: tuple[str, ...], items: Sequence[Item], bundle: Bundle,
                 directory: Path | None, identity: Identity, progress: Callable[[str], None]):
        """Take up what was counted before, if it was of the same."""
        self._directory, self._progress = directory, progress
        self._signatures = {item.name: item.signature for item in items}
        self._key = identity.key(bundle.sha256)
        self._at = monotonic()
        labels = bundle.spec.labels
        state = directory and saved.read(directory, self._key, identity.processor,
                                         self._signatures)
        self.evaluation = (Evaluation.from_state(state, labels) if state
                           else Evaluation(labels, engines))
        self.evaluation.int8_shares |= identity.int8_shares
        self.todo = [item for item in items if item.name not in self.evaluation.done]
        for name in self.evaluation.done:
            progress(name)

    def counted(self, names: Sequence[str]) -> None:
        """Note that items were counted."""
        for name in names:
            self.evaluation.done[name] = self._signatures[name]
        if monotonic() - self._at > _SAVE_EVERY:
            self._save()
            self._at = monotonic()
        for name in names:
            self._progress(name)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what was counted if the block does not come to its end."""
        try:
            yield
        except BaseException:
            self._save()
            raise
        if self._directory is not None:
            saved.remove(self._directory)

    def _save(self) -> None:
        """Keep what was counted, unless it was interrupted in the middle of counting an item."""
        if self._directory is not None and self.evaluation.frames == len(self.evaluation.done):
            saved.write(self._directory, self.evaluation.state(self._key))
