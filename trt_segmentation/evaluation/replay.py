# SPDX-License-Identifier: Apache-2.0
"""Recordings through the pipeline: the masks that the node gives, without DDS and without time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
import os
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from trt_segmentation.engines.evidence import Evidence
from trt_segmentation.errors import counted, InputError
from trt_segmentation.evaluation.comparison import Comparison
from trt_segmentation.evaluation.frames import Dropped, Frames, Segmented
from trt_segmentation.recordings import bags
from trt_segmentation.segmenters.segmenter import CLASSES, COLOR

_NODE = '/segmentation'


@dataclass
class Result:
    """
    What a replay did.

    topics: where each topic's masks went: the prefix of their topics, by input topic
    left_out: why other topics with images were not read, by name
    promised: how many messages the recording has on the topics by its own word; read: how many
        there were
    frames: how many gave masks; dropped: how many did not, by cause
    unread, unsegmented: a sentence for each thing that could not be read, or not segmented
    seconds: from the first frame to the last; stage_ms: milliseconds of each frame, by stage
    comparison: with the golden masks, if it was asked for
    backend: what ran the engine; '' for one that no store has
    """

    topics: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    promised: int = 0
    read: dict[str, int] = field(default_factory=dict)
    frames: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)
    unsegmented: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stage_ms: dict[str, list[float]] = field(default_factory=dict)
    comparison: Comparison | None = None
    backend: str = ''

    @property
    def problems(self) -> list[str]:
        """Return a sentence for each thing that could not be read or segmented."""
        return [*self.unread, *self.unsegmented]

    @property
    def damage(self) -> str:
        """Return in words how much could not be read; '' if the recording was read whole."""
        lost = self.promised - sum(self.read.values())
        if lost > 0:
            return f'{lost} of {counted(self.promised, "message")} could not be read'
        return (f'{counted(len(self.unread), "thing")} in it could not be read' if self.unread
                else '')

    def summary(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {
            'schema': 1,
            'backend': self.backend,
            'topics': self.topics,
            'left_out': self.left_out,
            'promised': self.promised,
            'read': self.read,
            'frames': self.frames,
            'dropped': dict(self.dropped),
            'damage': self.damage,
            'problems': self.problems,
            'seconds': self.seconds,
            'frames_per_second': self.frames / self.seconds if self.seconds else float('nan'),
            'stage_ms_p50': {name: float(np.median(times))
                             for name, times in self.stage_ms.items()},
            'golden': self.comparison.summary() if self.comparison else None,
        }


def replay(frames: Frames, bag: bags.Reader | str | os.PathLike[str], *,
           output: str | os.PathLike[str] | None = None, storage: str = '',
           record_golden: str | os.PathLike[str] | None = None,
           golden: str | os.PathLike[str] | None = None, worst_below: float = 1.0,
           progress: Callable[[], None] = lambda: None) -> Result:
    """
    Run a bag's images through an engine and write the masks.

    Stamps, frame ids and recorded times are kept. Equal bags and engines give equal masks and
    equal output, byte for byte.

    :param frames: who segments; the masks do not depend on it
    :param bag: a bag, or its path: then all its images but masks are taken
    :param output: the bag to write class and color masks to
    :param storage: of the output, as `bags.Writer` takes it; what is in mcap is compressed
    :param record_golden: a bag to write the class masks to, to compare with later
    :param golden: such a bag, to compare the class masks with
    :param worst_below: keep no picture of a frame that agrees on more (0..1)
    :param progress: called after each frame
    :raises InputError: for a bag without images, outputs that exist, or if no frame gave masks;
        then nothing is written
    """
    reader = bag if isinstance(bag, bags.Reader) else open_bag(bag)
    result = Result(topics=output_prefixes(reader.topics), left_out=reader.left_out,
                    promised=reader.count, read=reader.given, unread=reader.problems,
                    backend=frames.record.inputs.backend if frames.record else '')
    comparison = (None if golden is None
                  else Comparison(golden, frames.labels, worst_below))
    want = (CLASSES, COLOR) if output is not None else (CLASSES,)
    evidence = Evidence(frames.record, frames.labels)
    sequences: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = [(stack.enter_context(_writer(path, kind)), masks) for path, kind, masks in (
            (output, storage, (CLASSES, COLOR)), (record_golden, '', (CLASSES,)))
            if path is not None]
        start = perf_counter()
        for frame in frames(reader, want):
            if isinstance(frame, Dropped):
                result.dropped[frame.cause] += 1
                result.unsegmented.append(f'{frame.recorded.where}: {frame.reason}')
                continue
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


def _nothing(reader: bags.Reader, result: Result) -> str:
    """Return why no frame of a recording gave masks."""
    topics = ', '.join(reader.topics)
    dropped = ', '.join(f'{count} {cause}' for cause, count in sorted(result.dropped.items()))
    cause = (f'all {sum(result.dropped.values())} were dropped ({dropped})' if dropped
             else 'there are no messages')
    first = f'; the first: {result.problems[0]}' if result.problems else ''
    return f'{reader.path}: no frame gave masks: on {topics} {cause}{first}'


def _writer(path: str | os.PathLike[str], storage: str) -> bags.Writer:
    """Return the writer of a bag of masks; in mcap, compression makes it 100 times smaller."""
    mcap = storage != 'sqlite3' and Path(path).suffix != '.db3'
    return bags.Writer(path, storage=storage, compress=mcap)


def _write(writer: bags.Writer, prefix: str, frame: Segmented, masks: Collection[str]) -> None:
    """Write a frame's masks with its stamp, frame_id and time."""
    recorded = frame.recorded
    for kind, topic, encoding in ((CLASSES, 'class_mask', 'mono8'), (COLOR, 'color_mask', 'bgr8')):
        if kind in masks:
            writer.write_image(f'{prefix}/{topic}', getattr(frame.masks, kind), encoding,
                               recorded.stamp_ns, recorded.frame_id, recorded.time_ns)


def _write_status(writer: bags.Writer, prefix: str, frame: Segmented, evidence: Evidence,
                  sequence: int) -> None:
    """Write a frame's status, without times: the same frame gives the same bytes."""
    recorded = frame.recorded
    writer.write_text(f'{prefix}/status', evidence.status(
        recorded.topic, sequence, recorded.stamp_ns, recorded.frame_id, frame.masks.classes),
        recorded.time_ns)
