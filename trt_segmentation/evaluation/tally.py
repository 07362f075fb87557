# SPDX-License-Identifier: Apache-2.0
"""Counting engines' masks frame by frame, and what the counts say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from time import perf_counter
from types import MappingProxyType
from typing import Any

import numpy as np

from trt_segmentation.bundles.labels import LabelSet, one_class
from trt_segmentation.bundles.spec import AcceptanceSpec
from trt_segmentation.engines.acceptance import enough_to_judge, judge
from trt_segmentation.engines.record import Figures
from trt_segmentation.engines.workers import unlike
from trt_segmentation.errors import command_line, InputError
from trt_segmentation.evaluation.figures import (
    Agreement,
    EngineFigures,
    Judgement,
    Losses,
    Scores,
    Summary,
)
from trt_segmentation.evaluation.metrics import Confusion, losses, mean
from trt_segmentation.evaluation.pictures import comparison_picture
from trt_segmentation.evaluation.progress import Counts, State, Worst

_CHANCE = 0.2
"""Kappa below this is 'slight' agreement (Landis and Koch, 1977): hardly better than chance."""
_FOUND = 0.1  # of a class with a lower IoU, INT8 has next to nothing to lose
_SHOWN = 3


class Evaluation:
    """
    What was counted of each engine's masks, frame by frame, in memory that does not grow.

    Engines are compared with the first one, the reference.

    taken: what was taken from where and what was left, a line each
    notes: sentences that the figures have besides their own
    processors: the names of those that computed it
    int8_shares: by engine, the share 0..1 of the convolution work in INT8, where it is known
    look: the command that shows what the reference sees
    """

    def __init__(self, labels: LabelSet, engines: Collection[str], *, worst: int = 6,
                 bounds: Mapping[str, float] = MappingProxyType({})):
        """
        Begin with nothing counted.

        :param engines: names; the first is the reference
        :param worst: how many frames to keep as pictures, for each engine
        :param bounds: by engine, the agreement above which another one has worse frames enough
        """
        self.labels = labels
        self.engines = tuple(engines)
        self.done: dict[str, str] = {}
        self.frames = 0
        self.frames_with_truth = 0
        self.seconds = {'all': 0.0, 'engines': 0.0, 'metrics': 0.0}
        self.against_truth = {name: Confusion(labels) for name in self.engines}
        self.against_reference = {name: Confusion(labels) for name in self.engines}
        self.agreements: dict[str, list[float]] = {name: [] for name in self.engines[1:]}
        self.worst: dict[str, list[Worst]] = {name: [] for name in self.engines[1:]}
        self.taken: list[str] = []
        self.notes: list[str] = []
        self.processors: set[str] = set()
        self.int8_shares: dict[str, float] = {}
        self.look = command_line('preview', 'BUNDLE', '--images', 'DIRECTORY')
        self._keep = worst
        self._bounds = bounds

    @property
    def reference(self) -> str:
        """Return the engine that the others are compared with."""
        return self.engines[0]

    def add(self, name: str, image: np.ndarray, truth: np.ndarray | None,
            masks: Mapping[str, np.ndarray]) -> None:
        """
        Count one frame.

        :param image: uint8 (height, width, 3), BGR
        :param truth: uint8 (height, width), the true train ids, if they are known
        :param masks: the train ids that each engine gave
        """
        start = perf_counter()
        self.frames += 1
        self.frames_with_truth += truth is not None
        reference = masks[self.reference]
        if truth is not None:
            for engine in self.engines:
                self.against_truth[engine].add(truth, masks[engine])
        for engine in self.engines:
            frame = Confusion(self.labels)
            frame.add(reference, masks[engine])
            self.against_reference[engine].merge(frame)
            if engine != self.reference:
                self.agreements[engine].append(frame.agreement_of_either)
        self.seconds['metrics'] += perf_counter() - start
        for engine in self.engines[1:]:
            self._keep_if_worst(engine, name, image, reference, masks[engine])

    def summary(self) -> dict[str, Any]:
        """Return all figures as JSON values; IoU and agreement are shares 0..1, losses points."""
        return self.figures().to_json()

    def figures(self, limits: AcceptanceSpec | None = None) -> Summary:
        """
        Return all figures.

        :param limits: the bundle's, to judge the engines by; not judged if left out
        """
        counted = (self.against_truth if self.frames_with_truth
                   else self.against_reference)[self.reference]
        truth = self.against_truth[self.reference]
        blind, missed = self._blind(), self._missed()
        return Summary(
            frames=self.frames, frames_with_truth=self.frames_with_truth,
            reference=self.reference, classes=[label.name for label in self.labels.classes],
            class_share=counted.class_share, coverage=truth.coverage,
            seen=[label.name for label in self.labels.classes if label.name in truth.seen],
            engines={name: self._figures(name, limits) for name in self.engines},
            taken=self.taken, notes=[*blind, *self._not_found(missed), *self.notes,
                                      *unlike(self.processors), *self._notes(missed)],
            blind=bool(blind), not_found=missed, seconds=dict(self.seconds))

    def failures(self, *, max_class_iou_loss: float | None = None,
                 max_category_iou_loss: float | None = None,
                 max_single_class_iou_loss: float | None = None,
                 min_agreement: float | None = None) -> list[str]:
        """
        Return a sentence for each engine and limit that it does not keep.

        None is kept against a reference that is hardly better than chance by the true masks.

        :param max_class_iou_loss, max_category_iou_loss: points (0..100) that the IoU may fall
            below the reference's, in the mean over what occurs in the true masks
        :param max_single_class_iou_loss: the same of each class that occurs
        :param min_agreement: share 0..1 of pixels with the reference's class
        :raises InputError: for a limit on IoU without true masks, or any without two engines
        """
        means = {'class': max_class_iou_loss, 'category': max_category_iou_loss}
        check_limits(self.engines, self.frames_with_truth > 0,
                     iou=[*means.values(), max_single_class_iou_loss], agreement=min_agreement)
        sentences = []
        kappa = self.against_truth[self.reference].kappa
        if kappa < _CHANCE and any(limit is not None for limit in (
                *means.values(), max_single_class_iou_loss, min_agreement)):
            sentences.append(f'{self.reference} itself is hardly better than chance (kappa '
                             f'{kappa:.2f}), so no limit against it shows anything')
        for engine in self.engines[1:]:
            lost = self._losses(engine) if self.frames_with_truth else None
            for kind, limit in means.items():
                loss = getattr(lost, f'mean_{kind}_iou_loss', float('nan'))
                if limit is not None and not loss <= limit:
                    sentences.append(f'{engine} loses {loss:.2f} points of {kind} IoU against '
                                     f'{self.reference}, more than {limit}')
            if max_single_class_iou_loss is not None and lost is not None:
                sentences += [
                    f'{engine} loses {loss:.2f} points of the IoU of {name!r} against '
                    f'{self.reference}, more than {max_single_class_iou_loss}'
                    for name, loss in lost.class_iou_loss.items()
                    if not loss <= max_single_class_iou_loss]
            agreement = self.against_reference[engine].agreement_of_either
            if min_agreement is not None and not agreement >= min_agreement:
                sentences.append(f'{engine} agrees with {self.reference} on {agreement:.4f} of '
                                 f'the pixels, less than {min_agreement}')
        return sentences

    def merge(self, counted: State) -> None:
        """Add what another one counted of other frames; in any order, but for `agreements`."""
        self.frames += counted.frames
        self.frames_with_truth += counted.frames_with_truth
        self.processors |= set(counted.processors)
        for name, seconds in counted.seconds.items():
            self.seconds[name] += seconds
        for mine, others in ((self.against_truth, counted.against_truth),
                             (self.against_reference, counted.against_reference)):
            for engine, counts in others.items():
                counts.add_to(mine[engine])
        for engine, values in counted.agreements.items():
            self.agreements[engine] += values
            self._keep_worst(engine, counted.worst[engine])

    def bounds(self) -> dict[str, float]:
        """Return the agreement by engine above which a frame is not among the worst any more."""
        return {engine: kept[-1].agreement for engine, kept in self.worst.items()
                if len(kept) == self._keep}

    def state(self, key: str) -> State:
        """Return all that was counted, to go on with it later."""
        return State(
            key, self.done, self.frames, self.frames_with_truth, self.seconds,
            {engine: Counts.of(confusion) for engine, confusion in self.against_truth.items()},
            {engine: Counts.of(confusion)
             for engine, confusion in self.against_reference.items()},
            self.agreements, self.worst, sorted(self.processors))

    @classmethod
    def from_state(cls, state: State, labels: LabelSet) -> Evaluation:
        """Return an evaluation that goes on where `state` was made."""
        result = cls(labels, state.against_truth)
        result.done, result.processors = dict(state.done), set(state.processors)
        result.frames, result.frames_with_truth = state.frames, state.frames_with_truth
        result.seconds = dict(state.seconds)
        result.against_truth = {engine: counts.to_confusion(labels)
                                for engine, counts in state.against_truth.items()}
        result.against_reference = {engine: counts.to_confusion(labels)
                                    for engine, counts in state.against_reference.items()}
        result.agreements = {engine: list(values)
                             for engine, values in state.agreements.items()}
        result.worst = {engine: list(entries) for engine, entries in state.worst.items()}
        return result

    def _figures(self, engine: str, limits: AcceptanceSpec | None) -> EngineFigures:
        """Return the figures of one engine."""
        scores = lost = agreement = judgement = None
        if self.frames_with_truth:
            confusion = self.against_truth[engine]
            scores = Scores(confusion.mean_class_iou, confusion.mean_category_iou,
                            confusion.agreement, confusion.kappa, confusion.class_iou,
                            confusion.category_iou, _submatrix(confusion))
        if engine != self.reference:
            if self.frames_with_truth:
                lost = self._losses(engine)
            confusion = self.against_reference[engine]
            agreement = Agreement(
                confusion.agreement_of_either, confusion.coverage_of_either,
                confusion.class_agreement,
                confusion.mean_class_iou, _submatrix(confusion),
                [{'name': worst.name, 'agreement': worst.agreement}
                 for worst in self.worst[engine]],
                _quantiles(self.agreements[engine]))
            # The acceptance is about the float network's masks; INT8 as a reference is not that.
            if limits is not None and 'int8' not in self.reference:
                judgement = self._judge(engine, limits)
        return EngineFigures(self.int8_shares.get(engine), scores, lost, agreement, judgement)

    def _losses(self, engine: str) -> Losses:
        """Return how far an engine's scores are below the reference's."""
        before, after = self.against_truth[self.reference], self.against_truth[engine]
        classes = losses(before.class_iou, after.class_iou, before.seen)
        categories = losses(before.category_iou, after.category_iou, before.seen_categories)
        return Losses(classes, categories, mean(classes.values()), mean(categories.values()))

    def _judge(self, engine: str, limits: AcceptanceSpec) -> Judgement:
        """Judge an engine by the limits that the acceptance would put to it."""
        confusion = self.against_reference[engine]
        share, shares = self.int8_shares.get(engine), confusion.class_share
        classes = {name: value for name, value in confusion.class_agreement.items()
                   if enough_to_judge(shares[name])}
        unproven = {name: value for name, value in shares.items() if name not in classes}
        agreement = confusion.agreement_of_either
        # The share of an engine that no store has is not known here; build judges it.
        figures = Figures(agreement if confusion.coverage > 0 else None, classes, share)
        failures = judge(figures, limits, '' if share is None else 'int8', proven=True)
        if failures:
            return Judgement(False, [failure.text for failure in failures], unproven)
        reasons = [f'agreement {agreement:.4f} is at least min_agreement {limits.min_agreement}']
        if classes:
            lowest = min(classes, key=classes.__getitem__)
            reasons.append(f'agreement of the lowest class, {lowest}, {classes[lowest]:.4f} is at '
                           f'least min_class_agreement {limits.min_class_agreement}')
        reasons.append('how much of the work is in INT8 was not looked at: build does that'
                       if share is None else f'{share:.1%} of the convolution work is in INT8, at '
                       f'least min_int8_share {limits.min_int8_share}')
        return Judgement(True, reasons, unproven)

    def _blind(self) -> list[str]:
        """
        Return why the reference itself may see nothing, in a sentence; none if it sees.

        Where true masks say that it sees, one class on nearly all pixels is what there is.
        """
        truth = self.against_truth[self.reference]
        if truth.kappa < _CHANCE:
            found = (f'is hardly better than chance (kappa {truth.kappa:.2f}; 0 is chance, 1 is '
                     'perfect): mean, scale or color order in model.yaml, or the ids of the true '
                     'masks, are probably wrong;')
        elif truth.kappa >= _CHANCE or not (
                one := one_class(self.against_reference[self.reference].said_share)):
            return []
        else:
            found = f'says {one}'
        return [f'{self.reference} {found} look at the masks with: {self.look}']

    def _missed(self) -> list[str]:
        """Return the classes that are there, and that the reference, which sees, hardly finds."""
        truth = self.against_truth[self.reference]
        if not truth.kappa >= _CHANCE:
            return []
        return [name for name, iou in truth.class_iou.items()
                if iou < _FOUND and enough_to_judge(truth.class_share[name])]

    def _not_found(self, missed: Collection[str]) -> list[str]:
        """Return that the reference hardly finds these classes, in a sentence; none of none."""
        if not missed:
            return []
        truth = self.against_truth[self.reference]
        names = {label.train_id: label.name for label in self.labels.classes}
        taken = []
        for train_id, name in names.items():
            if name in missed:
                row, said = truth.matrix[train_id], truth.matrix[:, train_id].copy()
                other = int(row.argmax())
                if other == train_id:  # it is found, and so is what it is not
                    said[train_id] = 0
                    other = int(said.argmax())
                    taken.append(f'{said[other] / truth.matrix[:, train_id].sum():.0%} of what is '
                                 f'said to be {name} is {names.get(other, "none")}')
                else:
                    taken.append(f'{row[other] / row.sum():.0%} of {name} is taken for '
                                 f'{names.get(other, "none")}')
        return [f'{self.reference} itself does not find {", ".join(missed)} ('
                + ', '.join(taken[:_SHOWN]) + ', ...' * (len(taken) > _SHOWN)
                + '): nothing shows there what INT8 costs; is the color order right? are the ids '
                f'those of the labels? Look at the masks with: {self.look}']

    def _notes(self, missed: Collection[str]) -> list[str]:
        """Return what to know before believing the figures, beside `_not_found` of the missed."""
        truth = self.against_truth[self.reference]
        notes = []
        rare = [name for name, iou in truth.class_iou.items()
                if iou == 0 and name in truth.seen and name not in missed]
        if rare and truth.kappa >= _CHANCE:
            notes.append(f'{self.reference} finds nothing of {", ".join(rare)}, which the true '
                         'masks have little of: nothing shows there what INT8 costs')
        ignored = int(truth.ignored.sum())
        for label in self.labels.classes:
            there = int(truth.ignored[label.train_id])
            if label.name not in truth.seen and 2 * there > ignored:
                notes.append(f'{self.reference} says {label.name!r} on {there / ignored:.0%} of '
                             'the pixels that the true masks ignore, and no true mask has that '
                             'class: is 255 that class?')
        never: dict[tuple[str, ...], list[str]] = {}
        for engine, confusion in self.against_truth.items():
            names = tuple(name for name, iou in confusion.class_iou.items()
                          if iou == 0 and name not in truth.seen)
            if names:
                never.setdefault(names, []).append(engine)
        notes += [f'{" and ".join(engines)} say what is in no true mask: {", ".join(names)}; the '
                  'mean IoU counts that as 0, as Cityscapes does, and the loss leaves it out'
                  for names, engines in never.items()]
        return notes

    def _keep_if_worst(self, engine: str, name: str, image: np.ndarray, reference: np.ndarray,
                       mask: np.ndarray) -> None:
        """Keep a picture of the frame if it is among those that agree least."""
        agreement = self.agreements[engine][-1]
        kept = self.worst[engine]
        if not agreement < 1 or agreement > self._bounds.get(engine, 1):
            return
        if len(kept) == self._keep and (agreement, name) >= (kept[-1].agreement, kept[-1].name):
            return
        self._keep_worst(engine, [Worst(name, agreement, comparison_picture(
            image, reference, mask, self.labels, (self.reference, engine)))])

    def _keep_worst(self, engine: str, frames: Iterable[Worst]) -> None:
        """Keep the worst of those that there are and these."""
        kept = self.worst[engine]
        kept.extend(frames)
        kept.sort(key=lambda worst: (worst.agreement, worst.name))
        del kept[self._keep:]


def check_limits(engines: Collection[str], truth: bool, *, iou: Collection[float | None],
                 agreement: float | None) -> None:
    """
    Raise InputError for a limit on IoU without true masks, or for any without two engines.

    :param truth: whether there are true masks
    :param iou: the limits on losses of IoU
    """
    on_iou = any(limit is not None for limit in iou)
    if (on_iou or agreement is not None) and len(engines) < 2:
        raise InputError('a limit needs two engines to compare; name them with --engines')
    if on_iou and not truth:
        raise InputError('a limit on the loss of IoU needs true masks; give --labels, or a limit '
                         'on agreement with --min-agreement')


def _submatrix(confusion: Confusion) -> list[list[int]]:
    """Return counts by (true class, predicted class); a last column counts all other ids."""
    ids = [label.train_id for label in confusion.labels.classes]
    rows = confusion.matrix[ids]
    inside = rows[:, ids]
    rest = rows.sum(1) - inside.sum(1)
    found: list[list[int]] = np.column_stack([inside, rest]).tolist()
    return found


def _quantiles(values: list[float]) -> dict[str, float]:
    """Return minimum, 1%, 5% and 50% quantiles."""
    numbers = [value for value in values if value == value]
    if not numbers:
        return {}
    points = np.quantile(numbers, [0, 0.01, 0.05, 0.5])
    return dict(zip(('min', 'p1', 'p5', 'p50'), points.tolist()))
