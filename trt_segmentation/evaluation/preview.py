# SPDX-License-Identifier: Apache-2.0
"""What a network sees: a contact sheet to look at before anything is calibrated or measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from trt_segmentation.bundles.colors import similar_colors
from trt_segmentation.bundles.labels import LabelSet, ONE_CLASS, one_class
from trt_segmentation.evaluation.pictures import (
    caption,
    colorize,
    legend,
    outlined,
    overlay,
    stack,
    tile,
)
from trt_segmentation.segmenters.segmenter import CLASSES, CONFIDENCE, Segmenter

_WIDTH = 400  # of a column, pixels


@dataclass(frozen=True)
class Preview:
    """
    A contact sheet, and what the masks in it say.

    sheet: BGR uint8
    similar: which of its colors are hardly told apart, or ''
    said: each class's share 0..1 of all pixels, the largest first
    ignored: the share 0..1 of all pixels that get no class
    confidence: the mean over all pixels, 0..1; None for a network that gives class ids only
    """

    sheet: np.ndarray
    similar: str
    said: dict[str, float]
    ignored: float
    confidence: float | None

    @property
    def warning(self) -> str:
        """Return what is strange about the masks, or ''."""
        if self.ignored >= ONE_CLASS:
            return (f'no class on {self.ignored:.1%} of all pixels: do the train ids of labels in '
                    'model.yaml belong to this network?')
        return one_class(self.said)


def preview(segmenter: Segmenter, images: Iterable[tuple[str, np.ndarray]]) -> Preview:
    """
    Segment images and put them side by side: input, mask, overlay, confidence.

    :param segmenter: usually the float network's
    :param images: (name, BGR uint8 (height, width, 3)) of one picture or more
    """
    labels = segmenter.spec.labels
    confident = CONFIDENCE in segmenter.offers
    want = (CLASSES, CONFIDENCE) if confident else (CLASSES,)
    counts = np.zeros(256, np.int64)
    total, rows = 0.0, []
    for name, image in images:
        masks = segmenter.segment(image, want)
        classes = masks.classes
        assert classes is not None
        counts += np.bincount(classes.ravel(), minlength=256)
        parts = [image, outlined(classes, labels), overlay(image, colorize(classes, labels))]
        if masks.confidence is not None:
            total += float(masks.confidence.sum()) / 255
            parts.append(cv2.cvtColor(masks.confidence, cv2.COLOR_GRAY2BGR))
        rows.append(tile([tuple(parts)], _WIDTH))
        rows.append(caption(name, rows[-1].shape[1]))
    titles = ('input', 'mask', 'input and mask, half of each', 'confidence: white is sure')
    heads = tile([tuple(caption(title, _WIDTH) for title in titles[:4 if confident else 3])],
                 _WIDTH)
    sheet = stack([heads, *rows, legend(labels, heads.shape[1])])
    pixels = max(int(counts.sum()), 1)
    known = sum(int(counts[label.train_id]) for label in labels.classes)
    return Preview(sheet, similar_colors(labels), _shares(counts, labels), 1 - known / pixels,
                   total / pixels if confident else None)


def _shares(counts: np.ndarray, labels: LabelSet) -> dict[str, float]:
    """Return each class's share, the largest first."""
    shares = {label.name: float(counts[label.train_id] / max(int(counts.sum()), 1))
              for label in labels.classes}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))
