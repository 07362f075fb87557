# SPDX-License-Identifier: Apache-2.0
"""Accuracy of class masks: confusion matrix, class and category IoU, agreement."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import cv2
import numpy as np

from trt_segmentation.bundles.labels import IGNORE, LabelSet
from trt_segmentation.errors import InputError

# OpenCV counts in float32, which is exact up to here; it takes a third of numpy.bincount's time.
_EXACT = 1 << 24


class Confusion:
    """
    Counts of (true class, predicted class) over any number of masks.

    matrix: int64, shape (256, 256), indexed by train id; pixels whose true id is 255 are not
        counted, as Cityscapes defines it
    ignored: int64, shape (256,), by predicted train id: the pixels whose true id is 255
    """

    def __init__(self, labels: LabelSet):
        """Take the labels that say which train ids and categories there are."""
        self.labels = labels
        self.matrix = np.zeros((256, 256), np.int64)
        self.ignored = np.zeros(256, np.int64)

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
            counts = cv2.calcHist(part, [0, 1], None, [256, 256], [0, 256, 0, 256]
                                  ).astype(np.int64)
            self.ignored += counts[IGNORE]
            counts[IGNORE] = 0
            self.matrix += counts

    def merge(self, other: Confusion) -> None:
        """Add what another one counted."""
        self.matrix += other.matrix
        self.ignored += other.ignored

    @property
    def coverage(self) -> float:
        """Return the share 0..1 of all pixels that were counted; nan without any."""
        counted = self.matrix.sum()
        return _ratio(counted, counted + self.ignored.sum())

    @property
    def seen(self) -> frozenset[str]:
        """Return the names of the classes that occur in the true masks."""
        return frozenset(label.name for label in self.labels.classes
                         if self.matrix[label.train_id].any())

    @property
    def seen_categories(self) -> frozenset[str]:
        """Return the names of the categories that occur in the true masks."""
        return frozenset(name for name, ids in self.labels.categories.items()
                         if self.matrix[list(ids)].any())

    @property
    def kappa(self) -> float:
        """
        Return how far the masks are better than chance: 1 for perfect ones, 0 for chance.

        (observed - expected) / (1 - expected) agreement, the expected one that of two masks with
        these shares of classes which know nothing of each other (Cohen, "A Coefficient of
        Agreement for Nominal Scales", 1960). A network that always says one class has 0. Nan
        where only one class is seen and said, or nothing was counted.
        """
        total = float(self.matrix.sum())
        if not total:
            return float('nan')
        expected = float((self.matrix.sum(1) / total) @ (self.matrix.sum(0) / total))
        return (self.agreement - expected) / (1 - expected) if expected < 1 else float('nan')

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
        """
        Mean of the classes' IoU, over those that have one, as Cityscapes' own script takes it.

        A class that is said, but never seen, counts as 0.
        """
        return mean(self.class_iou.values())

    @property
    def mean_category_iou(self) -> float:
        """Mean of the categories' IoU, over those that have one."""
        return mean(self.category_iou.values())

    @property
    def agreement(self) -> float:
        """Return the share 0..1 of counted pixels with equal ids; nan without any."""
        total = self.matrix.sum()
        return float(np.trace(self.matrix) / total) if total else float('nan')

    @property
    def agreement_of_all(self) -> float:
        """Return the share 0..1 of all pixels with equal ids, 255 among them; nan without any."""
        return _ratio(np.trace(self.matrix) + self.ignored[IGNORE],
                      self.matrix.sum() + self.ignored.sum())

    @property
    def agreement_of_either(self) -> float:
        """
        Return the share 0..1 with equal ids of the pixels where either mask says a class.

        Of two engines: a class where the other one says none is a difference too. Nan without any.
        """
        return _ratio(np.trace(self.matrix), self._of_either)

    @property
    def coverage_of_either(self) -> float:
        """Return the share 0..1 of all pixels where either mask says a class; nan without any."""
        return _ratio(self._of_either, self.matrix.sum() + self.ignored.sum())

    @property
    def _of_either(self) -> int:
        """Return the number of pixels where either mask says a class."""
        return int(self.matrix.sum() + self.ignored.sum() - self.ignored[IGNORE])

    @property
    def class_agreement(self) -> dict[str, float]:
        """For each class, the share of its true pixels that are predicted so; nan without any."""
        return {label.name: _ratio(self.matrix[label.train_id, label.train_id],
                                   self.matrix[label.train_id].sum())
                for label in self.labels.classes}

    @property
    def said_share(self) -> dict[str, float]:
        """For each class, its share of the predicted pixels, ignored ones too; nan without any."""
        said = self.matrix.sum(0) + self.ignored
        return {label.name: _ratio(said[label.train_id], said.sum())
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


def losses(before: Mapping[str, float], after: Mapping[str, float], seen: Collection[str]
           ) -> dict[str, float]:
    """
    Return by how many points (0..100) each score fell, of the classes that truly occur.

    Such a class always has an IoU, 0 if it is never predicted. One that occurs in no true mask
    has none unless somebody predicts it, so means over all scores may be means over different
    classes, and their difference says nothing.

    :param before, after: shares 0..1 by name
    :param seen: the names that occur in the true masks
    """
    return {name: 100 * (before[name] - after[name]) for name in before if name in seen}


def mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not nan; nan if all are."""
    numbers = [value for value in values if value == value]
    return sum(numbers) / len(numbers) if numbers else float('nan')


def _ratio(part: float, whole: float) -> float:
    """Return part / whole, nan for 0 / 0."""
    return float(part / whole) if whole else float('nan')
