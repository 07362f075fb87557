# SPDX-License-Identifier: Apache-2.0
"""What must not change a figure of an evaluation does not, for any masks."""

import argparse
import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from trt_segmentation.bundles.labels import CITYSCAPES, IGNORE, Label, LabelSet
from trt_segmentation.evaluation.evaluate import evaluate
from trt_segmentation.evaluation.progress import State
from trt_segmentation.evaluation.tally import Evaluation
from trt_segmentation.segmenters.postprocessing import Masks

LABELS = LabelSet(CITYSCAPES.labels[:6])


class Answers:
    """A segmenter that gives the mask of an image by the number in its first pixel."""

    def __init__(self, masks, labels):
        self.masks = masks
        self.spec = argparse.Namespace(labels=labels)

    def segment(self, image, want, color='bgr'):
        return Masks(self.masks[int(image[0, 0, 0])], None, None, {})


def run(truths, first, second, order=None, labels=LABELS, evaluation=None):
    """Evaluate two engines with the masks that they are told."""
    segmenters = {'a': Answers(first, labels), 'b': Answers(second, labels)}
    frames = []
    for i in order if order is not None else range(len(truths)):
        image = np.zeros((*truths[i].shape, 3), np.uint8)
        image[0, 0] = i
        frames.append((f'frame {i:02d}', image, truths[i]))
    return evaluate(segmenters, frames, evaluation or Evaluation(labels, ['a', 'b'], worst=3))


def figures(evaluation):
    """All figures; nan, which equals nothing, as text."""
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        return 'nan' if isinstance(value, float) and math.isnan(value) else value
    document = plain(evaluation.summary())
    del document['seconds']
    return document


def scores(evaluation):
    """The figures that compare with the true masks."""
    document = figures(evaluation)
    return [{key: value for key, value in engine.items()
             if ('iou' in key and 'reference' not in key) or key in (
                 'pixel_accuracy', 'kappa', 'confusion')}
            for engine in document['engines'].values()] + [document['class_share']]


@st.composite
def data_sets(draw):
    """Return truths and two engines' masks, similar to them, (frames, height, width) each."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 5))
    ids = [*draw(st.sets(st.integers(0, 5), min_size=1)), IGNORE]
    truths = rng.choice(ids, (count, 6, 9)).astype(np.uint8)
    engines = []
    for wrong in (0.2, 0.4):
        masks = truths.copy()
        flipped = (rng.random(masks.shape) < wrong) | (masks == IGNORE)
        masks[flipped] = rng.choice([0, 1, 2, 3, 4, 5, IGNORE], np.count_nonzero(flipped))
        engines.append(masks)
    return truths, *engines, rng


@settings(max_examples=40, deadline=None)
@given(data_sets())
def test_the_order_of_the_frames_changes_nothing(data):
    truths, first, second, rng = data
    order = rng.permutation(len(truths))
    assert figures(run(truths, first, second, order)) == figures(run(truths, first, second))


@settings(max_examples=40, deadline=None)
@given(data_sets())
def test_a_run_in_two_parts_is_the_run(data):
    truths, first, second, rng = data
    order = list(range(len(truths)))
    cut = int(rng.integers(0, len(truths) + 1))
    part = run(truths, first, second, order[:cut])
    text = part.state('key').to_json()
    again = Evaluation.from_state(State.from_json(text), LABELS)
    again._keep = 3
    whole = run(truths, first, second, order[cut:], evaluation=again)
    assert figures(whole) == figures(run(truths, first, second))
    assert json.loads(text)['schema']


@pytest.mark.parametrize('cell', [[0, 0, -1], [0, 256, 1], [-1, 0, 1], [0, 1], [0, 0, 1.5],
                                  ['0', 0, 1], [0, 0, 1, 1]])
def test_a_state_that_counts_nothing_real_is_refused(cell):
    document = json.loads(run(*[np.zeros((1, 4, 4), np.uint8)] * 3).state('key').to_json())
    document['against_truth']['a']['cells'] = [cell]
    with pytest.raises((ValueError, TypeError)):
        State.from_json(json.dumps(document))


@settings(max_examples=40, deadline=None)
@given(data_sets())
def test_other_names_change_names_only(data):
    truths, first, second, _ = data
    renamed = LabelSet(tuple(Label(f'new {label.name}', label.train_id, label.color,
                                   f'new {label.category}') for label in LABELS.labels))
    text = json.dumps(scores(run(truths, first, second, labels=renamed)))
    assert json.loads(text.replace('new ', '')) == scores(run(truths, first, second))


@settings(max_examples=40, deadline=None)
@given(data_sets())
def test_other_numbers_change_nothing(data):
    truths, first, second, rng = data
    numbers = np.full(256, IGNORE, np.uint8)
    numbers[:6] = 40 + rng.permutation(6)
    renumbered = LabelSet(tuple(
        Label(label.name, int(numbers[label.train_id]), label.color, label.category)
        for label in LABELS.labels))
    before = run(truths, first, second).summary()
    after = run(numbers[truths], numbers[first], numbers[second], labels=renumbered).summary()
    for engine in ('a', 'b'):
        for key in ('mean_class_iou', 'mean_category_iou', 'pixel_accuracy', 'kappa'):
            assert after['engines'][engine][key] == pytest.approx(
                before['engines'][engine][key], nan_ok=True)
        assert after['engines'][engine]['class_iou'] == pytest.approx(
            before['engines'][engine]['class_iou'], nan_ok=True)
    assert after['engines']['b']['mean_class_iou_loss'] == pytest.approx(
        before['engines']['b']['mean_class_iou_loss'], nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(data_sets())
def test_ignored_pixels_change_no_score_but_the_coverage(data):
    truths, first, second, rng = data
    more = np.full((len(truths), 6, 4), IGNORE, np.uint8)
    said = [rng.choice([0, 1, 5, IGNORE], more.shape).astype(np.uint8) for _ in range(2)]
    before = run(truths, first, second)
    after = run(np.concatenate([truths, more], 2), np.concatenate([first, said[0]], 2),
                np.concatenate([second, said[1]], 2))
    assert scores(after) == scores(before)
    assert after.summary()['coverage'] == pytest.approx(before.summary()['coverage'] * 9 / 13)


@settings(max_examples=40, deadline=None)
@given(data_sets())
def test_mirroring_image_and_mask_changes_nothing(data):
    truths, first, second, _ = data
    mirrored = run(truths[..., ::-1], first[..., ::-1], second[..., ::-1])
    assert figures(mirrored) == figures(run(truths, first, second))


@settings(max_examples=40, deadline=None)
@given(data_sets())
def test_the_figures_are_those_of_a_plain_loop(data):
    truths, first, second, _ = data
    result = run(truths, first, second).summary()
    pixels = [(int(t), int(a), int(b)) for t, a, b in zip(
        truths.ravel(), first.ravel(), second.ravel()) if t != IGNORE]
    assert result['coverage'] == pytest.approx(len(pixels) / truths.size)
    either = [(a, b) for a, b in zip(first.ravel().tolist(), second.ravel().tolist())
              if a != IGNORE or b != IGNORE]
    compared = result['engines']['b']
    assert compared['agreement_coverage'] == len(either) / first.size
    assert compared['agreement'] == pytest.approx(
        sum(a == b for a, b in either) / len(either) if either else math.nan, nan_ok=True)
    losses = []
    for label in LABELS.classes:
        ious = []
        for engine in (1, 2):
            both = sum(p[0] == p[engine] == label.train_id for p in pixels)
            either = sum(label.train_id in (p[0], p[engine]) for p in pixels)
            ious.append(both / either if either else math.nan)
            found = result['engines']['ab'[engine - 1]]['class_iou'][label.name]
            assert found == pytest.approx(ious[-1], nan_ok=True)
        if any(p[0] == label.train_id for p in pixels):
            losses.append(100 * (ious[0] - ious[1]))
            assert result['engines']['b']['class_iou_loss'][label.name] == pytest.approx(
                losses[-1])
        else:
            assert label.name not in result['engines']['b']['class_iou_loss']
    assert result['engines']['b']['mean_class_iou_loss'] == pytest.approx(
        np.mean(losses) if losses else math.nan, nan_ok=True)
    if pixels:
        observed = sum(t == a for t, a, _ in pixels) / len(pixels)
        expected = sum(
            sum(p[0] == i for p in pixels) * sum(p[1] == i for p in pixels) for i in range(256)
        ) / len(pixels) ** 2
        kappa = (observed - expected) / (1 - expected) if expected < 1 else math.nan
        assert result['engines']['a']['kappa'] == pytest.approx(kappa, nan_ok=True)
