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

from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.engines.evidence import Evidence
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.evaluation.pictures import comparison_picture
from trt_segmentation.evaluation.progress import Worst
from trt_segmentation.recordings import bags, image_messages
from trt_segmentation.recordings.bags import Recorded
from trt_segmentation.recordings.limits import MalformedImage
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.segmenter import CLASSES, COLOR, Masks, Segmenter

_NODE = '/segmentation'
_AHEAD = 2  # frames waiting for each segmenter
_WORST = 6


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
           golden: str | os.PathLike[str] | None = None,
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
    :param progress: called after each frame
    :raises InputError: for a bag without images, outputs that exist, or if no frame gave masks;
        then nothing is written
    """
    reader = bag if isinstance(bag, bags.Reader) else open_bag(bag)
    result = Result(topics=output_prefixes(reader.topics), left_out=reader.left_out,
                    promised=reader.count, read=reader.given, problems=reader.problems)
    comparison = Comparison(golden, segmenter.spec.labels) if golden is not None else None
    want = (CLASSES, COLOR) if output is not None else (CLASSES,)
    evidence = Evidence(segmenter.record, segmenter.spec.labels)
    sequences: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = [(stack.enter_context(_writer(path, kind)), masks) for path, kind, masks in (
            (output, storage, (CLASSES, COLOR)), (record_golden, '', (CLASSES,)))
            if path is not None]
        start = perf_counter()
        for frame in segment_all(_streams(segmenter), reader, want, result):
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
                want: Collection[str], result: Result) -> Iterator[Replayed]:
    """
    Yield the frames of image messages with their masks, in the messages' order.

    :param segmenters: as many frames as there are of them are segmented at once; all must give
        the same masks
    :param want: as `Segmenter.segment` takes it
    :param result: where messages that give no masks are counted and named
    """
    free: SimpleQueue[Segmenter] = SimpleQueue()
    for segmenter in segmenters:
        free.put(segmenter)

    def process(recorded: Recorded) -> Replayed:
        image, color = image_messages.to_image(recorded.message)
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
    try:
        for recorded in messages:
            pending.append((recorded, pool.submit(process, recorded)))
            if len(pending) > _AHEAD * len(segmenters):
                yield from finished()
        while pending:
            yield from finished()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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


class Comparison:
    """Class masks against golden ones, frame by frame, in memory that does not grow."""

    def __init__(self, golden: str | os.PathLike[str], labels: LabelSet):
        """
        Open the golden bag.

        :raises InputError: if it is no bag, or has no class masks
        """
        reader = bags.Reader(golden)
        topics = [topic for topic in reader.topics if topic.endswith('/class_mask')]
        if not topics:
            raise InputError(f'{golden}: no class masks in it; record golden masks with: '
                             'trt-segmentation replay --record-golden')
        reader.select(topics)
        self.path = golden
        self.confusion = Confusion(labels)
        self.agreements: list[float] = []
        self.stamps: list[int] = []  # of the frames of `agreements`, ns
        self.worst: list[Worst] = []
        self.missing = 0  # frames that have no golden mask
        self.unmet = 0  # golden masks that no frame came for
        self.problems: list[str] = []
        self._golden = reader
        self._ahead = iter(self._golden)
        self._waiting: dict[tuple[str, int, int], Recorded] = {}
        self._read: Counter[tuple[str, int]] = Counter()
        self._asked: Counter[tuple[str, int]] = Counter()

    def add(self, prefix: str, frame: Replayed) -> None:
        """Compare one frame's class mask with the golden one of its stamp."""
        key = f'{prefix}/class_mask', frame.recorded.stamp_ns
        golden = self._find(*key, self._asked[key])
        self._asked[key] += 1
        if golden is None:
            self.missing += 1
            return
        classes = frame.masks.classes
        assert classes is not None  # every replay wants them
        if golden.shape != classes.shape:
            self.problems.append(f'{key[0]} at stamp {key[1]} ns: {classes.shape[1]}x'
                                 f'{classes.shape[0]}, but the golden mask is {golden.shape[1]}x'
                                 f'{golden.shape[0]}')
            self.missing += 1
            return
        one = Confusion(self.confusion.labels)
        one.add(golden, classes)
        self.confusion.matrix += one.matrix
        # All pixels count here: what was 255 must be 255 again.
        agreement = float(np.count_nonzero(golden == classes) / classes.size)
        self.agreements.append(agreement)
        self.stamps.append(frame.recorded.stamp_ns)
        if agreement < 1 and (len(self.worst) < _WORST or agreement < self.worst[-1].agreement):
            image = frame.image if frame.color == 'bgr' else frame.image[..., ::-1]
            picture = comparison_picture(np.ascontiguousarray(image), golden, classes,
                                         self.confusion.labels)
            self.worst.append(Worst(f'{key[0]} at stamp {key[1]} ns', agreement, picture))
            self.worst.sort(key=lambda worst: worst.agreement)
            del self.worst[_WORST:]

    def finish(self) -> None:
        """Count the golden masks that no frame came for."""
        self.unmet = len(self._waiting) + sum(1 for _ in self._ahead)
        self.problems += [f'golden masks: {problem}' for problem in self._golden.problems]

    def failures(self, min_agreement: float) -> list[str]:
        """
        Return a sentence for each way in which the masks are not the golden ones.

        :param min_agreement: share 0..1 of pixels that must be equal, in each frame
        """
        below = [agreement for agreement in self.agreements if not agreement >= min_agreement]
        found = []
        if below:
            found.append(f'{len(below)} of {len(self.agreements)} frames agree with the golden '
                         f'masks on less than {min_agreement} of the pixels; the worst on '
                         f'{min(below):.4f}')
        if self.missing:
            found.append(f'{self.missing} frames have no golden mask of their stamp and size')
        if self.unmet:
            found.append(f'{self.unmet} golden masks have no frame')
        return found

    def summary(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {
            'frames': len(self.agreements),
            'missing': self.missing,
            'unmet': self.unmet,
            'problems': self.problems,
            'identical': sum(agreement == 1 for agreement in self.agreements),
            'agreement': self.confusion.agreement,
            'worst_agreement': min(self.agreements, default=float('nan')),
            'class_agreement': self.confusion.class_agreement,
            'worst_frames': [{'name': worst.name, 'agreement': worst.agreement}
                             for worst in self.worst],
        }

    def _find(self, topic: str, stamp_ns: int, number: int) -> np.ndarray | None:
        """Return the golden mask of a topic's frame, the number-th of that stamp."""
        wanted = topic, stamp_ns, number
        while wanted not in self._waiting:
            recorded = next(self._ahead, None)
            if recorded is None:
                return None
            topic_and_stamp = recorded.topic, recorded.stamp_ns
            self._waiting[(*topic_and_stamp, self._read[topic_and_stamp])] = recorded
            self._read[topic_and_stamp] += 1
        message = self._waiting.pop(wanted).message
        try:
            return np.ascontiguousarray(image_messages.to_image(message)[0][..., 0])
        except MalformedImage as error:
            self.problems.append(f'golden mask {topic} at stamp {stamp_ns} ns: {error}')
            return None


def _streams(segmenter: Segmenter) -> list[Segmenter]:
    """Return the segmenters to use at once."""
    if isinstance(segmenter, CpuSegmenter) and segmenter.engine.backend == 'onnxruntime':
        # A session may be run by several threads: while one frame is in the network, the other
        # is pre- and postprocessed, which takes one core and would leave the rest idle.
        return [segmenter, CpuSegmenter(segmenter.spec, segmenter.engine)]
    return [segmenter]


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
