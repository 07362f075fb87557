# SPDX-License-Identifier: Apache-2.0
"""Recordings through the pipeline: the masks that the node gives, without DDS and without time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
import os
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import Any

import numpy as np

from trt_segmentation.engines.evidence import Evidence
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation.comparison import Comparison
from trt_segmentation.recordings import bags, image_messages
from trt_segmentation.recordings.bags import Recorded
from trt_segmentation.recordings.limits import MalformedImage
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.segmenter import CLASSES, COLOR, Masks, Segmenter
from trt_segmentation.system import cores

_NODE = '/segmentation'
_AHEAD = 2  # frames waiting for each segmenter


@dataclass(frozen=True)
class Replayed:
    """
    One frame with its masks.

    image: uint8 (height, width, 3) in the channel order `color`, 'bgr' or 'rgb'
    """

    recorded: Recorded
    image: np.ndarray
    color: str
    masks: Masks


@dataclass
class Result:
    """
    What a replay did.

    topics: where each topic's masks went: the prefix of their topics, by input topic
    left_out: why other topics with images were not read, by name
    promised: how many messages the recording has on the topics by its own word; read: how many
        there were
    frames: how many gave masks; dropped: how many did not, by cause
    problems: a sentence for each thing that could not be read or segmented
    seconds: from the first frame to the last; stage_ms: milliseconds of each frame, by stage
    comparison: with the golden masks, if it was asked for
    """

    topics: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    promised: int = 0
    read: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stage_ms: dict[str, list[float]] = field(default_factory=dict)
    comparison: Comparison | None = None

    def summary(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {
            'schema': 1,
            'topics': self.topics,
            'left_out': self.left_out,
            'promised': self.promised,
            'read': self.read,
            'frames': self.frames,
            'dropped': dict(self.dropped),
            'problems': self.problems,
            'seconds': self.seconds,
            'frames_per_second': self.frames / self.seconds if self.seconds else float('nan'),
            'stage_ms_p50': {name: float(np.median(times))
                             for name, times in self.stage_ms.items()},
            'golden': self.comparison.summary() if self.comparison else None,
        }


def replay(segmenter: Segmenter, bag: bags.Reader | str | os.PathLike[str], *,
           output: str | os.PathLike[str] | None = None, storage: str = '',
           record_golden: str | os.PathLike[str] | None = None,
           golden: str | os.PathLike[str] | None = None, worst_below: float = 1.0,
           decoders: int | None = None,
           progress: Callable[[], None] = lambda: None) -> Result:
    """
    Run a bag's images through a segmenter and write the masks.

    Stamps, frame ids and recorded times are kept. Equal bags and engines give equal masks and
    equal output, byte for byte.

    :param bag: a bag, or its path: then all its images but masks are taken
    :param output: the bag to write class and color masks to
    :param storage: of the output, as `bags.Writer` takes it; what is in mcap is compressed
    :param record_golden: a bag to write the class masks to, to compare with later
    :param golden: such a bag, to compare the class masks with
    :param worst_below: keep no picture of a frame that agrees on more (0..1)
    :param decoders: threads that decode ahead of the engine; None for as many as there are cores
        where a GPU runs it, and none beside ONNX Runtime, which has the cores itself
    :param progress: called after each frame
    :raises InputError: for a bag without images, outputs that exist, or if no frame gave masks;
        then nothing is written
    """
    reader = bag if isinstance(bag, bags.Reader) else open_bag(bag)
    result = Result(topics=output_prefixes(reader.topics), left_out=reader.left_out,
                    promised=reader.count, read=reader.given, problems=reader.problems)
    comparison = (None if golden is None
                  else Comparison(golden, segmenter.spec.labels, worst_below))
    want = (CLASSES, COLOR) if output is not None else (CLASSES,)
    evidence = Evidence(segmenter.record, segmenter.spec.labels)
    sequences: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = [(stack.enter_context(_writer(path, kind)), masks) for path, kind, masks in (
            (output, storage, (CLASSES, COLOR)), (record_golden, '', (CLASSES,)))
            if path is not None]
        start = perf_counter()
        for frame in segment_all(_streams(segmenter), reader, want, result,
                                 _decoders(segmenter) if decoders is None else decoders):
            prefix = result.topics[frame.recorded.topic]
            for writer, masks in writers:
                _write(writer, prefix, frame, masks)
                if COLOR in masks:  # the output, and no golden masks
                    _write_status(writer, prefix, frame, evidence, sequences[prefix])
            sequences[prefix] += 1
            if comparison:
                comparison.add(prefix, frame)
            result.frames += 1
            for stage, milliseconds in frame.masks.stage_ms.items():
                result.stage_ms.setdefault(stage, []).append(milliseconds)
            progress()
        result.seconds = perf_counter() - start
        if not result.frames:
            raise InputError(_nothing(reader, result))
    if comparison:
        comparison.finish()
        result.comparison = comparison
    return result


def segment_all(segmenters: Sequence[Segmenter], messages: Iterable[Recorded],
                want: Collection[str], result: Result, decoders: int = 0) -> Iterator[Replayed]:
    """
    Yield the frames of image messages with their masks, in the messages' order.

    :param segmenters: as many frames as there are of them are segmented at once; all must give
        the same masks
    :param want: as `Segmenter.segment` takes it
    :param result: where messages that give no masks are counted and named
    :param decoders: threads that decode ahead; with 0 who segments a frame decodes it
    """
    free: SimpleQueue[Segmenter] = SimpleQueue()
    for segmenter in segmenters:
        free.put(segmenter)

    def process(recorded: Recorded, decoded: Future[tuple[np.ndarray, str]] | None) -> Replayed:
        image, color = (image_messages.to_image(recorded.message) if decoded is None
                        else decoded.result())
        segmenter = free.get()
        try:
            return Replayed(recorded, image, color, segmenter.segment(image, want, color=color))
        finally:
            free.put(segmenter)

    def finished() -> Iterator[Replayed]:
        recorded, future = pending.popleft()
        try:
            yield future.result()
        except MalformedImage as error:
            _drop(result, recorded, error.cause, error)
        except InputError as error:  # an image that the preprocessing cannot take
            _drop(result, recorded, 'refused', error)

    pending: deque[tuple[Recorded, Future[Replayed]]] = deque()
    pool = ThreadPoolExecutor(len(segmenters))
    ahead = ThreadPoolExecutor(max(decoders, 1))  # which starts no thread before its first call
    try:
        for recorded in messages:
            decoded = ahead.submit(image_messages.to_image, recorded.message) if decoders else None
            pending.append((recorded, pool.submit(process, recorded, decoded)))
            if len(pending) > max(_AHEAD * len(segmenters), 2 * decoders):
                yield from finished()
        while pending:
            yield from finished()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        ahead.shutdown(wait=True, cancel_futures=True)


def open_bag(path: str | os.PathLike[str], topics: Collection[str] = ()) -> bags.Reader:
    """
    Open a bag to replay.

    :param topics: its image topics; those of cameras if none is named
    :raises InputError: if it is no recording, or has no such topics
    """
    reader = bags.Reader(path)
    reader.choose_cameras(topics)
    return reader


def output_prefixes(topics: Iterable[str]) -> dict[str, str]:
    """
    Return what the topics of each camera's masks begin with, as the node names them.

    Of one camera: '/segmentation'. Of several: '/segmentation/CAMERA', CAMERA being the topic
    without its last part ('/front/image_raw' and '/front/image_raw/compressed' are 'front'), or
    the whole topic where two cameras would be alike.
    """
    topics = list(topics)
    if len(topics) == 1:
        return {topics[0]: _NODE}
    names = {}
    for topic in topics:
        parts = topic.removesuffix('/compressed').strip('/').split('/')
        names[topic] = '/'.join(parts[:-1] or parts)
    counts = Counter(names.values())
    return {topic: f'{_NODE}/{name if counts[name] == 1 else topic.strip("/")}'
            for topic, name in names.items()}


def _streams(segmenter: Segmenter) -> list[Segmenter]:
    """Return the segmenters to use at once."""
    if isinstance(segmenter, CpuSegmenter) and segmenter.engine.backend == 'onnxruntime':
        # A session may be run by several threads: while one frame is in the network, the other
        # is pre- and postprocessed, which takes one core and would leave the rest idle.
        return [segmenter, CpuSegmenter(segmenter.spec, segmenter.engine)]
    return [segmenter]


def _decoders(segmenter: Segmenter) -> int:
    """Return how many threads may decode ahead of a segmenter's engine."""
    return 0 if segmenter.engine.backend == 'onnxruntime' else cores.cores()


def _nothing(reader: bags.Reader, result: Result) -> str:
    """Return why no frame of a recording gave masks."""
    topics = ', '.join(reader.topics)
    dropped = ', '.join(f'{count} {cause}' for cause, count in sorted(result.dropped.items()))
    cause = (f'all {sum(result.dropped.values())} were dropped ({dropped})' if dropped
             else 'there are no messages')
    first = f'; the first: {result.problems[0]}' if result.problems else ''
    return f'{reader.path}: no frame gave masks: on {topics} {cause}{first}'


def _drop(result: Result, recorded: Recorded, cause: str, error: Exception) -> None:
    """Count and name a message that gave no masks."""
    result.dropped[cause] += 1
    result.problems.append(f'{recorded.topic} at stamp {recorded.stamp_ns} ns: {error}')


def _writer(path: str | os.PathLike[str], storage: str) -> bags.Writer:
    """Return the writer of a bag of masks; in mcap, compression makes it 100 times smaller."""
    mcap = storage != 'sqlite3' and Path(path).suffix != '.db3'
    return bags.Writer(path, storage=storage, compress=mcap)


def _write(writer: bags.Writer, prefix: str, frame: Replayed, masks: Collection[str]) -> None:
    """Write a frame's masks with its stamp, frame_id and time."""
    recorded = frame.recorded
    for kind, topic, encoding in ((CLASSES, 'class_mask', 'mono8'), (COLOR, 'color_mask', 'bgr8')):
        if kind in masks:
            writer.write_image(f'{prefix}/{topic}', getattr(frame.masks, kind), encoding,
                               recorded.stamp_ns, recorded.frame_id, recorded.time_ns)


def _write_status(writer: bags.Writer, prefix: str, frame: Replayed, evidence: Evidence,
                  sequence: int) -> None:
    """Write a frame's status, without times: the same frame gives the same bytes."""
    recorded = frame.recorded
    writer.write_text(f'{prefix}/status', evidence.status(
        recorded.topic, sequence, recorded.stamp_ns, recorded.frame_id, frame.masks.classes),
        recorded.time_ns)
