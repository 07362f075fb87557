# SPDX-License-Identifier: Apache-2.0
"""What a class mask carries with it: which engine made it, proven by what, and when."""

from __future__ import annotations

from collections.abc import Mapping
import json
from typing import Any
from zlib import crc32

import numpy as np

from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.engines.record import Record

SCHEMA = 1


class Evidence:
    """Writes the status of one frame after the other, all of one engine."""

    def __init__(self, record: Record | None, labels: LabelSet, fallback: str = ''):
        """
        Look at what the store knows of the engine.

        :param record: None for an engine that is not from a store, which proves nothing
        :param fallback: why another engine than the wanted one runs; '' if it is the wanted one
        """
        acceptance = record.acceptance if record else None
        self._engine = {'key': record.key, 'precision': record.precision} if record else None
        self._proven = (acceptance is not None and bool(acceptance.frames)
                        and not acceptance.only_class)
        unproven = {label.name for label in labels.classes} if acceptance is None else set(
            acceptance.unproven_classes)
        self._unproven = {label.train_id: label.name for label in labels.classes
                          if label.name in unproven}
        self._fallback = fallback

    def status(self, camera: str, sequence: int, stamp_ns: int, frame_id: str,
               classes: np.ndarray | None, *, late: bool = False, foreign_stamp: bool = False,
               low_margin: tuple[float, float] | None = None,
               stage_ms: Mapping[str, float] | None = None) -> str:
        """
        Return the status of a frame, as JSON text (docs/node.md describes its keys).

        :param camera: the topic of the image
        :param sequence: the number of the frame, of all of this camera that have a status
        :param stamp_ns, frame_id: of the image's header; nanoseconds
        :param classes: the class mask as it is published, uint8 (height, width) train ids; None
            for a frame of which none is published
        :param late: whether a mask would have been older than is allowed
        :param foreign_stamp: whether the stamp is from another clock
        :param low_margin: the share 0..1 of pixels whose best class hardly leads in the mask that
            was looked at last, and the seconds since then
        :param stage_ms: milliseconds by stage; none where the same frame shall give the same text
        """
        return json.dumps({
            'schema': SCHEMA,
            'camera': camera,
            'stamp': dict(zip(('sec', 'nanosec'), divmod(stamp_ns, 1_000_000_000))),
            'frame_id': frame_id,
            'sequence': sequence,
            'crc32': None if classes is None else crc32(np.ascontiguousarray(classes)),
            'engine': self._engine,
            'validity': {
                'proven': self._proven,
                'unproven_classes': {} if classes is None else self._shares(classes),
                'low_margin': None if low_margin is None else {
                    'share': round(low_margin[0], 4), 'age_s': round(low_margin[1], 3)},
                'late': late,
                'foreign_stamp': foreign_stamp,
            },
            'fallback': self._fallback or None,
            'stage_ms': {stage: round(value, 3) for stage, value in (stage_ms or {}).items()},
        })

    def _shares(self, classes: np.ndarray) -> dict[str, float]:
        """Return the share of each class in a mask that no golden frame proves, if it is there."""
        if not self._unproven:
            return {}
        counts: Any = np.bincount(classes.ravel(), minlength=256)
        return {name: round(float(counts[i] / classes.size), 6)
                for i, name in self._unproven.items() if counts[i]}
