# SPDX-License-Identifier: Apache-2.0
"""Which of the frames that were checked are kept, to calibrate with at home."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic, time_ns
from types import SimpleNamespace

import numpy as np
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image

from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.engines.acceptance import enough_to_judge
from trt_segmentation.errors import InputError
from trt_segmentation.recordings.captures import Capture, Captures
from trt_segmentation.recordings.layouts import as_bgr
from trt_segmentation.recordings.pictures import perceptual_hash
from trt_segmentation.recordings.topics import COMPRESSED_IMAGE, IMAGE
from trt_segmentation.ros import parameters
from trt_segmentation.ros.live_agreement import WINDOW_S
from trt_segmentation.ros.shadow import Checked

AGREEMENT, CONFIDENCE, UNPROVEN = 'agreement', 'confidence', 'unproven_classes'
_KNOWN = 20  # checks before the lowest confidence of them means anything
_MB = 1_000_000


class Lowest:
    """The lowest confidence of the last hour."""

    def __init__(self) -> None:
        """Start without a frame."""
        self._seen: deque[tuple[float, float]] = deque()

    def is_lowest(self, now: float, confidence: float | None) -> bool:
        """
        Tell whether a frame's confidence is below that of all frames of the last hour; note it.

        :param now: steady clock, seconds
        :param confidence: 0..1; None for a network that has none
        """
        if confidence is None:
            return False
        while self._seen and self._seen[0][0] < now - WINDOW_S:
            self._seen.popleft()
        lowest = (len(self._seen) >= _KNOWN
                  and confidence < min(value for _, value in self._seen))
        self._seen.append((now, confidence))
        return lowest


def shown(masks: tuple[np.ndarray, ...], ids: Mapping[int, str]) -> list[str]:
    """Return the classes of some ids that cover enough of one of the masks to judge by."""
    counts = [np.bincount(mask.ravel(), minlength=256) for mask in masks]
    return [name for i, name in ids.items()
            if any(enough_to_judge(count[i] / mask.size) for count, mask in zip(counts, masks))]


class CaptureRing:
    """
    Keeps frames in `capture_directory`; in the thread of the shadow check.

    trouble: why nothing is kept though it should be; '' if nothing is wrong
    """

    def __init__(self, settings: SimpleNamespace, labels: LabelSet, unproven: tuple[str, ...],
                 node_topic: str, log: Callable[[str], object]):
        """
        Prepare; the directory is looked at with the first frame.

        :param settings: the node's parameters
        :param unproven: the classes that no golden frame shows enough of
        :param node_topic: the node's absolute name
        :param log: takes a warning
        """
        self._settings, self._node_topic, self._log = settings, node_topic, log
        self._unproven = {label.train_id: label.name for label in labels.classes
                          if label.name in unproven}
        self._lowest = Lowest()
        self._ring: Captures | None = None
        self.trouble = ''

    @property
    def figures(self) -> dict[str, int]:
        """Return how many frames were kept, and left out for one alike; nothing while off."""
        if not self._settings.capture_directory:
            return {}
        ring = self._ring
        return {'captured_frames': ring.written if ring else 0,
                'captured_duplicates': ring.duplicates if ring else 0}

    def consider(self, checked: Checked) -> list[str]:
        """Keep a frame if there is a reason to; return the reasons, none if it was not kept."""
        if not self._settings.capture_directory:
            return []
        figures = checked.figures
        unproven = shown((checked.classes, checked.reference), self._unproven)
        reasons = [reason for reason, holds in (
            (AGREEMENT, checked.comparison.agreement < self._settings.capture_agreement),
            (CONFIDENCE, self._lowest.is_lowest(monotonic(), figures['confidence'])),
            (UNPROVEN, bool(unproven))) if holds]
        if not reasons:
            return []
        try:
            if self._ring is None:
                self._ring = self._opened()
            kept = self._ring.add(self._capture(checked, reasons, unproven))
            self.trouble = ''
        except InputError as error:
            if str(error) != self.trouble:
                self._log(f'capture: {error}')
            self.trouble = str(error)
            return []
        return reasons if kept else []

    def close(self) -> None:
        """Close the file that is being written."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring.close()

    def _opened(self) -> Captures:
        """Open the ring."""
        settings = self._settings
        return Captures(Path(parameters.path('capture_directory', settings.capture_directory)),
                        settings.capture_max_mb * _MB, settings.capture_min_free_mb * _MB)

    def _capture(self, checked: Checked, reasons: list[str], unproven: list[str]) -> Capture:
        """Return what is written of a frame."""
        served, message = checked.served, checked.served.message
        stamp = message.header.stamp
        return Capture(
            topic=served.camera,
            msgtype=IMAGE if isinstance(message, Image) else COMPRESSED_IMAGE,
            data=serialize_message(message), mask_topic=served.mask_topic,
            node_topic=self._node_topic,
            classes=checked.classes, reference=checked.reference,
            stamp_ns=stamp.sec * 1_000_000_000 + stamp.nanosec,
            frame_id=message.header.frame_id, time_ns=time_ns(),
            figures={**checked.figures, 'reasons': reasons, 'unproven_classes': unproven},
            perceptual_hash=perceptual_hash(as_bgr(served.image, served.color)))
