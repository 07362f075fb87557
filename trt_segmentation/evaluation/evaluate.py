# SPDX-License-Identifier: Apache-2.0
"""How good an engine's masks are: against true masks, and against another engine's."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
import json
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import cv2
import numpy as np

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation.datasets import Item, load_ahead, Loaded
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.evaluation.pictures import colorize, difference, overlay, tile
from trt_segmentation.segmenters.segmenter import CLASSES, Segmenter
from trt_segmentation.system import files

_SAVE_EVERY = 20.0  # seconds between two savings of what was counted so far
_PICTURE_WIDTH = 400  # of each part of a frame's picture, pixels


@dataclass(frozen=True)
class Worst:
    """One of the frames that an engine changed most; `picture` is a JPEG file's bytes."""

    name: str
    agreement: float
    picture: bytes


class Evaluation:
    """
    What was counted of each engine's masks, frame by frame, in memory that does not grow.

    Engines are compared with the first one, the reference.
    """

    def __init__(self, labels: LabelSet, engines: Collection[str], *, worst: int = 6):
        """
        Begin with nothing counted.

        :param engines: names; the first is the reference
        :param worst: how many frames to keep as pictures, for each engine
        """
        self.labels = labels
        self.engines = tuple(engines)
        self.done: dict[str, str] = {}
        self.frames = 0
        self.frames_with_truth = 0
        self.seconds = {'all': 0.0, 'engines': 0.0, 'metrics': 0.0}
        self.against_truth = {name: Confusion(labels) for name in self.engines}
        self.against_reference = {name: Confusion(labels) for name in self.engines[1:]}
        self.agreements: dict[str, list[float]] = {name: [] for name in self.engines[1:]}
        self.worst: dict[str, list[Worst]] = {name: [] for name in self.engines[1:]}
        self._keep = worst

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
        for engine in self.engines:
            if truth is not None:
                self.against_truth[engine].add(truth, masks[engine])
        for engine in self.engines[1:]:
            frame = Confusion(self.labels)
            frame.add(reference, masks[engine])
            self.against_reference[engine].matrix += frame.matrix
            self.agreements[engine].append(frame.agreement)
        self.seconds['metrics'] += perf_counter() - start
        for engine in self.engines[1:]:
            self._keep_if_worst(engine, name, image, reference, masks[engine])

    def summary(self) -> dict[str, Any]:
        """Return all figures as JSON values; IoU and agreement are shares 0..1, losses points."""
        return {
            'schema': 1,
            'frames': self.frames,
            'frames_with_truth': self.frames_with_truth,
            'reference': self.reference,
            'classes': [label.name for label in self.labels.classes],
            'engines': {name: self._figures(name) for name in self.engines},
            'seconds': dict(self.seconds),
        }

    def failures(self, *, max_class_iou_loss: float | None = None,
                 max_category_iou_loss: float | None = None,
                 min_agreement: float | None = None) -> list[str]:
        """
        Return a sentence for each engine and limit that it does not keep.

        :param max_class_iou_loss, max_category_iou_loss: points (0..100) that a mean IoU may lie
            below the reference's
        :param min_agreement: share 0..1 of pixels with the reference's class
        :raises InputError: for a limit on IoU without true masks, or any without two engines
        """
        limits = (max_class_iou_loss, max_category_iou_loss, min_agreement)
        if limits != (None, None, None) and len(self.engines) < 2:
            raise InputError('a limit needs two engines to compare; name them with --engines')
        if (max_class_iou_loss, max_category_iou_loss) != (None, None) and (
                not self.frames_with_truth):
            raise InputError('a limit on the loss of IoU needs true masks; give --labels, or a '
                             'limit on agreement with --min-agreement')
        sentences = []
        for engine in self.engines[1:]:
            figures = self._figures(engine)
            for kind, limit in (('class', max_class_iou_loss),
                                ('category', max_category_iou_loss)):
                loss = figures[f'mean_{kind}_iou_loss'] if self.frames_with_truth else None
                if limit is not None and not loss <= limit:
                    sentences.append(f'{engine} loses {loss:.2f} points of {kind} IoU against '
                                     f'{self.reference}, more than {limit}')
            if min_agreement is not None and not figures['agreement'] >= min_agreement:
                sentences.append(f'{engine} agrees with {self.reference} on '
                                 f'{figures["agreement"]:.4f} of the pixels, less than '
                                 f'{min_agreement}')
        return sentences

    def to_json(self) -> str:
        """Return all that was counted, to go on with it later."""
        return json.dumps({
            'engines': self.engines, 'done': self.done, 'frames': self.frames,
            'frames_with_truth': self.frames_with_truth, 'seconds': self.seconds,
            'against_truth': {k: _cells(v) for k, v in self.against_truth.items()},
            'against_reference': {k: _cells(v) for k, v in self.against_reference.items()},
            'agreements': self.agreements,
            'worst': {engine: [(w.name, w.agreement, base64.b64encode(w.picture).decode())
                               for w in entries] for engine, entries in self.worst.items()},
        })

    @classmethod
    def from_json(cls, text: str, labels: LabelSet) -> Evaluation:
        """Return what `to_json` wrote; raises ValueError, KeyError or TypeError for other text."""
        state = json.loads(text)
        result = cls(labels, state['engines'])
        for key in ('done', 'frames', 'frames_with_truth', 'seconds', 'agreements'):
            setattr(result, key, state[key])
        for key in ('against_truth', 'against_reference'):
            for engine, confusion in getattr(result, key).items():
                for row, column, count in state[key][engine]:
                    confusion.matrix[row, column] = count
        result.worst = {engine: [Worst(name, agreement, base64.b64decode(picture))
                                 for name, agreement, picture in entries]
                        for engine, entries in state['worst'].items()}
        return result

    def _figures(self, engine: str) -> dict[str, Any]:
        """Return the figures of one engine."""
        figures: dict[str, Any] = {}
        if self.frames_with_truth:
            confusion = self.against_truth[engine]
            figures |= {
                'mean_class_iou': confusion.mean_class_iou,
                'mean_category_iou': confusion.mean_category_iou,
                'pixel_accuracy': confusion.agreement,
                'class_iou': confusion.class_iou,
                'category_iou': confusion.category_iou,
                'confusion': _submatrix(confusion),
            }
        if engine == self.reference:
            return figures
        if self.frames_with_truth:
            before = self.against_truth[self.reference]
            for kind in ('class', 'category'):
                scores = getattr(before, f'{kind}_iou')
                figures[f'{kind}_iou_loss'] = {
                    name: 100 * (scores[name] - value)
                    for name, value in figures[f'{kind}_iou'].items()}
                figures[f'mean_{kind}_iou_loss'] = 100 * (
                    getattr(before, f'mean_{kind}_iou') - figures[f'mean_{kind}_iou'])
        confusion = self.against_reference[engine]
        return figures | {
            'agreement': confusion.agreement,
            'class_agreement': confusion.class_agreement,
            'mean_iou_with_reference': confusion.mean_class_iou,
            'worst_frames': [{'name': worst.name, 'agreement': worst.agreement}
                             for worst in self.worst[engine]],
            'frame_agreement': _quantiles(self.agreements[engine]),
        }

    def _keep_if_worst(self, engine: str, name: str, image: np.ndarray, reference: np.ndarray,
                       mask: np.ndarray) -> None:
        """Keep a picture of the frame if it is among those that agree least."""
        agreement = self.agreements[engine][-1]
        kept = self.worst[engine]
        if (len(kept) == self._keep and not agreement < kept[-1].agreement) or agreement == 1:
            return
        picture = comparison_picture(image, reference, mask, self.labels)
        kept.append(Worst(name, agreement, picture))
        kept.sort(key=lambda worst: worst.agreement)
        del kept[self._keep:]


def evaluate(segmenters: Mapping[str, Segmenter], frames: Iterable[Loaded],
             evaluation: Evaluation | None = None, *,
             progress: Callable[[str], None] = lambda name: None) -> Evaluation:
    """
    Run frames through engines, one by one, and count.

    :param segmenters: by name; the first is what the others are compared with
    :param frames: (name, BGR image, true train ids or None) of each frame
    :param evaluation: what to count on in; a new one if left out
    :param progress: called with the name of each frame that was counted
    """
    if evaluation is None:
        labels = next(iter(segmenters.values())).spec.labels
        evaluation = Evaluation(labels, list(segmenters))
    begin = perf_counter()
    for name, image, truth in frames:
        start = perf_counter()
        masks = {engine: segmenter.segment(image, (CLASSES,)).classes
                 for engine, segmenter in segmenters.items()}
        evaluation.seconds['engines'] += perf_counter() - start
        evaluation.add(name, image, truth, masks)
        evaluation.seconds['all'] += perf_counter() - begin
        begin = perf_counter()
        progress(name)
    return evaluation


def evaluate_items(segmenters: Mapping[str, Segmenter], items: list[Item], bundle: Bundle,
                   directory: Path | None = None, *,
                   progress: Callable[[str], None] = lambda name: None) -> Evaluation:
    """
    Evaluate a data set; with a directory, go on where an interrupted run of the same ended.

    :param directory: where what was counted is kept until the end
    """
    labels = bundle.spec.labels
    evaluation = Evaluation(labels, list(segmenters))
    if directory is None:
        return evaluate(segmenters, load_ahead(items), evaluation, progress=progress)
    path = directory / '.evaluation.partial.json'
    key = files.sha256_json({'bundle': bundle.sha256, 'engines': list(segmenters)})
    evaluation = _resume(path, key, items, labels) or evaluation
    todo = [item for item in items if item.name not in evaluation.done]
    for item in items:
        if item.name in evaluation.done:
            progress(item.name)
    signatures = {item.name: item.signature for item in todo}
    saved = monotonic()

    def counted(name: str) -> None:
        nonlocal saved
        evaluation.done[name] = signatures[name]
        if monotonic() - saved > _SAVE_EVERY:
            _save(path, key, evaluation)
            saved = monotonic()
        progress(name)

    try:
        evaluate(segmenters, load_ahead(todo), evaluation, progress=counted)
    except BaseException:
        _save(path, key, evaluation)
        raise
    path.unlink(missing_ok=True)
    return evaluation


def comparison_picture(image: np.ndarray, reference: np.ndarray, mask: np.ndarray,
                       labels: LabelSet) -> bytes:
    """
    Return a JPEG picture: the image, the reference's mask, the other, and where they differ.

    :param image: uint8 (height, width, 3), BGR
    :param reference, mask: uint8 (height, width), train ids
    """
    picture = tile([(image, overlay(image, colorize(reference, labels))),
                    (difference(image, reference, mask),
                     overlay(image, colorize(mask, labels)))], _PICTURE_WIDTH)
    return cv2.imencode('.jpg', picture, (cv2.IMWRITE_JPEG_QUALITY, 80))[1].tobytes()


def _resume(path: Path, key: str, items: list[Item], labels: LabelSet) -> Evaluation | None:
    """Return what an interrupted run counted, if it asked the same of the same files."""
    try:
        saved_key, _, text = path.read_text().partition('\n')
        if saved_key != key:
            return None
        evaluation = Evaluation.from_json(text, labels)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    current = {item.name: item.signature for item in items}
    same = all(current.get(name) == signature for name, signature in evaluation.done.items())
    return evaluation if same else None


def _save(path: Path, key: str, evaluation: Evaluation) -> None:
    """Keep what was counted so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write(path, f'{key}\n{evaluation.to_json()}')


def _cells(confusion: Confusion) -> list[list[int]]:
    """Return (row, column, count) of the cells that are not zero."""
    rows, columns = np.nonzero(confusion.matrix)
    return np.stack([rows, columns, confusion.matrix[rows, columns]], 1).tolist()


def _submatrix(confusion: Confusion) -> list[list[int]]:
    """Return counts by (true class, predicted class); a last column counts all other ids."""
    ids = [label.train_id for label in confusion.labels.classes]
    rows = confusion.matrix[ids]
    inside = rows[:, ids]
    rest = rows.sum(1) - inside.sum(1)
    return np.column_stack([inside, rest]).tolist()


def _quantiles(values: list[float]) -> dict[str, float]:
    """Return minimum, 1%, 5% and 50% quantiles."""
    numbers = [value for value in values if value == value]
    if not numbers:
        return {}
    points = np.quantile(numbers, [0, 0.01, 0.05, 0.5])
    return dict(zip(('min', 'p1', 'p5', 'p50'), points.tolist()))
