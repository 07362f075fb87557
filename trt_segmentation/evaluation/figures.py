# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found, as records; `to_json` gives what stands in evaluation.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Scores:
    """
    An engine's masks against the true ones; shares are 0..1, nan where there is none.

    mean_class_iou, mean_category_iou: as Cityscapes' own script takes them
    kappa: how far better than chance, see `Confusion.kappa`
    confusion: pixels by (true class, said class); a last column for those said to be none
    """

    mean_class_iou: float
    mean_category_iou: float
    pixel_accuracy: float
    kappa: float
    class_iou: dict[str, float]
    category_iou: dict[str, float]
    confusion: list[list[int]]


@dataclass(frozen=True)
class Losses:
    """
    By how many points (0..100) the scores are below the reference's.

    Of the classes and categories that occur in the true masks, which have a score in any case;
    the means are over those.
    """

    class_iou_loss: dict[str, float]
    category_iou_loss: dict[str, float]
    mean_class_iou_loss: float
    mean_category_iou_loss: float


@dataclass(frozen=True)
class Agreement:
    """
    An engine's masks against the reference's.

    agreement: the share 0..1 of pixels with the same class, of those that either gives one
    class_agreement: the same by the reference's class; nan where it never says one
    agreement_coverage: the share of all pixels where either says a class
    worst_frames: name and agreement
    frame_agreement: quantiles over the frames: min, p1, p5, p50
    """

    agreement: float
    agreement_coverage: float
    class_agreement: dict[str, float]
    mean_iou_with_reference: float
    confusion_with_reference: list[list[int]]
    worst_frames: list[dict[str, Any]]
    frame_agreement: dict[str, float]


@dataclass(frozen=True)
class Judgement:
    """
    Whether the bundle's own limits, measured on these frames, would accept an engine.

    unproven_classes: those that were left out, as the acceptance leaves them out, for they cover
        too little of the frames (`acceptance.enough_to_judge`) or nothing: their shares 0..1
    """

    accepted: bool
    reasons: list[str]
    unproven_classes: dict[str, float]


@dataclass(frozen=True)
class EngineFigures:
    """
    What was found of one engine; what could not be measured is None.

    int8_share: of the convolution work, 0..1
    """

    int8_share: float | None
    scores: Scores | None
    losses: Losses | None
    agreement: Agreement | None
    judgement: Judgement | None

    def to_json(self) -> dict[str, Any]:
        """Return all figures on one level, without those that were not measured."""
        found: dict[str, Any] = {}
        if self.int8_share is not None:
            found['int8_share'] = self.int8_share
        for part in (self.scores, self.losses, self.agreement):
            if part is not None:
                found |= asdict(part)
        if self.judgement is not None:
            found['judgement'] = asdict(self.judgement)
        return found


@dataclass(frozen=True)
class Summary:
    """
    All figures of an evaluation.

    reference: the engine that the others are compared with
    classes: their names, by train id
    class_share: each class's share 0..1 of the counted pixels, in the true masks, else in the
        reference's
    coverage: the share of all pixels that the scores count; nan without true masks
    seen: the classes that occur in the true masks
    taken: what was taken from where and what was left, a line each
    notes: what to know before believing the figures, a sentence each
    blind: whether the first note is that the reference itself may see nothing
    not_found: classes that occur in the true masks, and that the reference hardly finds
    seconds: 'all', and of that 'engines' and 'metrics'
    """

    frames: int
    frames_with_truth: int
    reference: str
    classes: list[str]
    class_share: dict[str, float]
    coverage: float
    seen: list[str]
    engines: Mapping[str, EngineFigures]
    taken: list[str]
    notes: list[str]
    blind: bool
    not_found: list[str]
    seconds: dict[str, float]

    @property
    def doubted(self) -> bool:
        """Tell whether the reference is too bad to compare all that occurs with it."""
        return self.blind or bool(self.not_found)

    def to_json(self) -> dict[str, Any]:
        """Return all figures as JSON values, but for nan."""
        return {
            'schema': 1,
            **{name: getattr(self, name) for name in (
                'frames', 'frames_with_truth', 'reference', 'classes', 'class_share', 'coverage',
                'seen', 'taken', 'notes', 'blind', 'not_found', 'seconds')},
            'engines': {name: figures.to_json() for name, figures in self.engines.items()},
        }
