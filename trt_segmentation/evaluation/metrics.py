# SPDX-License-Identifier: Apache-2.0
"""Accuracy of class masks: confusion matrix, class and category IoU, agreement."""

from __future__ import annotations

import cv2
import numpy as np

from trt_segmentation.bundles.labels import IGNORE, LabelSet
from trt_segmentation.errors import InputError

# OpenCV counts in float32, which is exact up to here; it takes a third of numpy.bincount's time.
_EXACT = 1 << 24


class Confusion:
    """
    Counts of (true class, predicted class) over any number of masks.

    `matrix` is int64, shape (256, 256), indexed by train id; pixels whose true id is 255 are not
    counted, as Cityscapes defines it.
    """

    def __init__(self, labels: LabelSet):
        """Take the labels that say which train ids and categories there are."""
        self.labels = labels
        self.matrix = np.zeros((256, 256), np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """
        Count one pair of masks.

        :param truth, prediction: uint8 (height, width), train ids, the same shape
        :raises InputError: for another type, or two shapes
        """
        if truth.ndim != 2 or truth.shape != prediction.shape or {
                truth.dtype, prediction.dtype} != {np.dtype(np.uint8)}:
            raise InputError(f'masks: found {truth.dtype} {truth.shape} and {prediction.dtype} '
                             f'{prediction.shape}, expected uint8 of one shape (height, width)')
        rows = max(1, _EXACT // max(truth.shape[1], 1))
        for top in range(0, len(truth), rows):
            part = [np.ascontiguousarray(mask[top:top + rows]) for mask in (truth, prediction)]
            self.matrix += cv2.calcHist(part, [0, 1], None, [256, 256], [0, 256, 0, 256]
                                        ).astype(np.int64)
        self.matrix[IGNORE] = 0

    @property
    def class_iou(self) -> dict[str, float]:
        """Return the IoU of each class, TP / (TP + FP + FN); nan for one neither seen nor said."""
        return {label.name: self._iou((label.train_id,)) for label in self.labels.classes}

    @property
    def category_iou(self) -> dict[str, float]:
        """Return the IoU of each category: its classes taken as one."""
        return {name: self._iou(ids) for name, ids in self.labels.categories.items()}

    @property
    def mean_class_iou(self) -> float:
        """Mean of the classes' IoU, over those that have one."""
        return _mean(self.class_iou)

    @property
    def mean_category_iou(self) -> float:
        """Mean of the categories' IoU, over those that have one."""
        return _mean(self.category_iou)

    @property
    def agreement(self) -> float:
        """Return the share 0..1 of counted pixels with equal ids; nan without any."""
        total = self.matrix.sum()
        return float(np.trace(self.matrix) / total) if total else float('nan')

    @property
    def class_agreement(self) -> dict[str, float]:
        """For each class, the share of its true pixels that are predicted so; nan without any."""
        return {label.name: _ratio(self.matrix[label.train_id, label.train_id],
                                   self.matrix[label.train_id].sum())
                for label in self.labels.classes}

    @property
    def class_share(self) -> dict[str, float]:
        """For each class, its share of the counted true pixels; nan without any."""
        total = self.matrix.sum()
        return {label.name: _ratio(self.matrix[label.train_id].sum(), total)
                for label in self.labels.classes}

    def _iou(self, ids: tuple[int, ...]) -> float:
        """Return the IoU of a group of train ids taken as one class."""
        index = list(ids)
        intersection = self.matrix[np.ix_(index, index)].sum()
        union = self.matrix[index].sum() + self.matrix[:, index].sum() - intersection
        return _ratio(intersection, union)


def _ratio(part: int, whole: int) -> float:
    """Return part / whole, nan for 0 / 0."""
    return float(part / whole) if whole else float('nan')


def _mean(values: dict[str, float]) -> float:
    """Return the mean of the values that are not nan; nan if all are."""
    numbers = [value for value in values.values() if value == value]
    return sum(numbers) / len(numbers) if numbers else float('nan')
