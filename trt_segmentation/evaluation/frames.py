# SPDX-License-Identifier: Apache-2.0
"""From the image messages of a recording to masks: in this process, or on workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.engines.record import Record
from trt_segmentation.engines.workers import Engines, Identity, opened, Workers
from trt_segmentation.errors import InputError
from trt_segmentation.recordings.bags import Recorded
from trt_segmentation.recordings.image_messages import to_image
from trt_segmentation.recordings.limits import MalformedImage
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.segmenter import Masks, Segmenter
from trt_segmentation.system import cores
from trt_segmentation.system.spread import spread

_AHEAD = 2  # frames waiting for each segmenter


@dataclass(frozen=True)
class Segmented:
    """A frame and its masks."""

    recorded: Recorded
    masks: Masks


@dataclass(frozen=True)
class Dropped:
    """A message that gives no masks: the cause it counts under, and the reason in words."""

    recorded: Recorded
    cause: str
    reason: str


class Frames(Protocol):
    """
    Who makes masks of image messages.

    labels: the bundle's; record: what the store knows of the engine, None if it has none
    """

    labels: LabelSet
    record: Record | None

    def __call__(self, messages: Iterable[Recorded], want: Collection[str]
                 ) -> Iterator[Segmented | Dropped]:
        """
        Yield what comes of each message, in their order.

        :param want: as `Segmenter.segment` takes it
        """


class InProcess:
    """Makes masks with a segmenter of this process."""

    def __init__(self, segmenter: Segmenter, decoders: int | None = None):
        """
        Take the segmenter, which stays open.

        :param decoders: threads that decode ahead of the engine; None for as many as there are
            cores where a GPU runs it, and none beside ONNX Runtime, which has the cores itself
        """
        self.labels, self.record = segmenter.spec.labels, segmenter.record
        self._segmenters = [segmenter]
        on_cores = segmenter.engine.backend == 'onnxruntime'
        if isinstance(segmenter, CpuSegmenter) and on_cores:
            # A session may be run by several threads: while one frame is in the network, the
            # other is pre- and postprocessed, which takes one core and would leave the rest idle.
            self._segmenters.append(CpuSegmenter(segmenter.spec, segmenter.engine))
        if decoders is None:
            decoders = 0 if on_cores else cores.cores()
        self._decoders = decoders

    def __call__(self, messages: Iterable[Recorded], want: Collection[str]
                 ) -> Iterator[Segmented | Dropped]:
        """Yield what comes of each message."""
        read = partial(to_image, as_they_are=self._segmenters[0].layouts)
        free: SimpleQueue[Segmenter] = SimpleQueue()
        for segmenter in self._segmenters:
            free.put(segmenter)

        def process(recorded: Recorded, decoded: Future[tuple[np.ndarray, str]] | None) -> Masks:
            image, color = read(recorded.message) if decoded is None else decoded.result()
            segmenter = free.get()
            try:
                return segmenter.segment(image, want, color=color)
            finally:
                free.put(segmenter)

        def first() -> Segmented | Dropped:
            recorded, future = pending.popleft()
            return _outcome(recorded, _made(future.result))

        pending: deque[tuple[Recorded, Future[Masks]]] = deque()
        pool = ThreadPoolExecutor(len(self._segmenters))
        # It starts no thread before its first call.
        ahead = ThreadPoolExecutor(max(self._decoders, 1))
        try:
            for recorded in messages:
                decoded = ahead.submit(read, recorded.message) if self._decoders else None
                pending.append((recorded, pool.submit(process, recorded, decoded)))
                if len(pending) > max(_AHEAD * len(self._segmenters), 2 * self._decoders):
                    yield first()
            while pending:
                yield first()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            ahead.shutdown(wait=True, cancel_futures=True)


class OnWorkers:
    """
    Makes masks on workers, which need not be able to read the recording: they get its messages.

    A frame is an item, so that no more than a few for each worker are in memory.
    """

    def __init__(self, workers: Workers, engines: Engines, labels: LabelSet):
        """
        Ask one worker for its engine, which it builds if need be.

        :param engines: one
        :param labels: the bundle's
        """
        self.labels = labels
        self._workers, self._engines = workers, engines
        self._identity, self.record = workers.call(_introduced, engines)

    def __call__(self, messages: Iterable[Recorded], want: Collection[str]
                 ) -> Iterator[Segmented | Dropped]:
        """Yield what comes of each message; raises InputError if two workers are not alike."""
        jobs = (_Job(recorded, self._engines, tuple(want)) for recorded in messages)
        for job, (identity, made) in spread(self._workers.executor, _segment, jobs,
                                            ahead=(_AHEAD + 1) * self._workers.number,
                                            named=lambda job: job.recorded.where):
            self._identity.check(identity)
            yield _outcome(job.recorded, made)


@dataclass(frozen=True)
class _Job:
    """A message for a worker."""

    recorded: Recorded
    engines: Engines
    want: tuple[str, ...]


def _introduced(engines: Engines) -> tuple[Identity, Record | None]:
    """Tell what the engine is; in a worker."""
    with opened(engines) as found:
        (segmenter,) = found.segmenters.values()
        return found.identity, segmenter.record


def _segment(job: _Job) -> tuple[Identity, Masks | tuple[str, str]]:
    """Segment a message; in a worker."""
    with opened(job.engines) as found:
        (segmenter,) = found.segmenters.values()

        def masks() -> Masks:
            image, color = to_image(job.recorded.message, segmenter.layouts)
            return segmenter.segment(image, job.want, color=color)

        return found.identity, _made(masks)


def _made(masks: Callable[[], Masks]) -> Masks | tuple[str, str]:
    """Return the masks of a message, or cause and reason why there are none."""
    try:
        return masks()
    except MalformedImage as error:
        return error.cause, str(error)
    except InputError as error:  # an image that the preprocessing cannot take
        return 'refused', str(error)


def _outcome(recorded: Recorded, made: Masks | tuple[str, str]) -> Segmented | Dropped:
    """Return what came of a message."""
    return (Segmented(recorded, made) if isinstance(made, Masks)
            else Dropped(recorded, *made))
