# SPDX-License-Identifier: Apache-2.0
"""A replay's masks against golden ones."""

from __future__ import annotations

from collections import Counter
import os
from typing import Any, TYPE_CHECKING

import numpy as np

from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.errors import counted, InputError
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.evaluation.pictures import comparison_picture
from trt_segmentation.evaluation.progress import Worst
from trt_segmentation.recordings import bags, image_messages
from trt_segmentation.recordings.bags import Recorded
from trt_segmentation.recordings.layouts import as_bgr
from trt_segmentation.recordings.limits import MalformedImage

if TYPE_CHECKING:
    from trt_segmentation.evaluation.frames import Segmented

_WORST = 6


class Comparison:
    """Class masks against golden ones, frame by frame, in memory that does not grow."""

    def __init__(self, golden: str | os.PathLike[str], labels: LabelSet,
                 worst_below: float = 1.0):
        """
        Open the golden bag.

        :param worst_below: keep no picture of a frame that agrees on more (0..1)
        :raises InputError: if it is no bag, or has no class masks
        """
        reader = bags.Reader(golden)
        topics = [topic for topic in reader.topics if topic.endswith('/class_mask')]
        if not topics:
            raise InputError(f'{golden}: no class masks in it; record golden masks with: '
                             'trt-segmentation replay BUNDLE --bag BAG --record-golden GOLDEN')
        reader.select(topics)
        self.path = golden
        self.confusion = Confusion(labels)
        self.agreements: list[float] = []
        self.stamps: list[int] = []  # of the frames of `agreements`, ns
        self.topics: list[str] = []  # of their images
        self.worst: list[Worst] = []
        self._worst_below = worst_below
        self.missing = 0  # frames that have no golden mask
        self.unmet = 0  # golden masks that no frame came for
        self.problems: list[str] = []
        self._golden = reader
        self._ahead = iter(self._golden)
        self._waiting: dict[tuple[str, int, int], Recorded] = {}
        self._read: Counter[tuple[str, int]] = Counter()
        self._asked: Counter[tuple[str, int]] = Counter()

    def add(self, prefix: str, frame: Segmented) -> None:
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
        self.confusion.add(golden, classes)
        # All pixels count here: what was 255 must be 255 again.
        agreement = float(np.count_nonzero(golden == classes) / classes.size)
        self.agreements.append(agreement)
        self.stamps.append(frame.recorded.stamp_ns)
        self.topics.append(frame.recorded.topic)
        if agreement < 1 and agreement <= self._worst_below and (
                len(self.worst) < _WORST or agreement < self.worst[-1].agreement):
            image = as_bgr(*image_messages.to_image(frame.recorded.message))
            picture = comparison_picture(image, golden, classes, self.confusion.labels,
                                         ('golden mask', 'mask of this replay'))
            self.worst.append(Worst(f'{key[0]} at stamp {key[1]} ns', agreement, picture))
            self.worst.sort(key=lambda worst: worst.agreement)
            del self.worst[_WORST:]

    def finish(self) -> None:
        """Count the golden masks that no frame came for."""
        self.unmet = len(self._waiting) + sum(1 for _ in self._ahead)
        self.problems += [f'golden masks: {problem}' for problem in self._golden.problems]

    @property
    def unpaired(self) -> list[str]:
        """Return a sentence each for frames without a golden mask, and masks without a frame."""
        found = []
        if self.missing:
            found.append(counted(self.missing, 'frame has', 'frames have')
                         + ' no golden mask of the same stamp and size')
        if self.unmet:
            found.append(counted(self.unmet, 'golden mask has', 'golden masks have') + ' no frame')
        return found

    def failures(self, min_agreement: float) -> list[str]:
        """
        Return a sentence for each way in which the masks are not the golden ones.

        :param min_agreement: share 0..1 of pixels that must be equal, in each frame
        """
        below = [agreement for agreement in self.agreements if not agreement >= min_agreement]
        found = []
        if below:
            found.append(f'{len(below)} of {counted(len(self.agreements), "frame")} agree with '
                         f'the golden masks on less than {min_agreement} of the pixels; the worst '
                         f'on {min(below):.4f}')
        return found + self.unpaired

    def summary(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {
            'frames': len(self.agreements),
            'missing': self.missing,
            'unmet': self.unmet,
            'problems': self.problems,
            'identical': sum(agreement == 1 for agreement in self.agreements),
            'agreement': self.confusion.agreement_of_all,
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
