# SPDX-License-Identifier: Apache-2.0
"""Class and category IoU are those of Cityscapes' own script, pixel count for pixel count."""

import argparse
import math
import sys
from unittest import mock

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from trt_segmentation.bundles.labels import (
    CITYSCAPES,
    CITYSCAPES_ID_TO_TRAIN_ID,
    IGNORE,
    Label,
    LabelSet,
)
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation import metrics
from trt_segmentation.evaluation.metrics import Confusion

with mock.patch.object(sys, 'argv', ['evaluate']):
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
    from cityscapesscripts.helpers.labels import category2labels, id2label, labels

ALL_IDS = [label.id for label in labels if label.id >= 0]  # the ignored ones too
PREDICTED_IDS = [label.id for label in labels if label.id >= 0 and not label.ignoreInEval]


def regions(rng, ids, size=(60, 120)):
    """A mask of random rectangles, as label ids."""
    mask = np.full(size, rng.choice(ids), np.uint8)
    for _ in range(40):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        mask[y:y + rng.integers(2, 30), x:x + rng.integers(2, 50)] = rng.choice(ids)
    return mask


def official_scores(pairs, tmp_path):
    """Run Cityscapes' script over files with label ids; return its matrix and scores."""
    truths, predictions = [], []
    for i, (truth, prediction) in enumerate(pairs):
        truths.append(str(tmp_path / f'{i}_gtFine_labelIds.png'))
        predictions.append(str(tmp_path / f'{i}.png'))
        cv2.imwrite(truths[-1], truth)
        cv2.imwrite(predictions[-1], prediction)
    arguments = argparse.Namespace(**vars(official.args))
    arguments.quiet = True
    arguments.evalInstLevelScore = False
    arguments.JSONOutput = False
    result = official.evaluateImgLists(predictions, truths, arguments)
    return np.array(result['confMatrix']), result


def own_confusion(pairs):
    confusion = Confusion(CITYSCAPES)
    for truth, prediction in pairs:
        confusion.add(CITYSCAPES_ID_TO_TRAIN_ID[truth], CITYSCAPES_ID_TO_TRAIN_ID[prediction])
    return confusion


@pytest.mark.parametrize(('seed', 'truth_ids', 'predicted_ids'), [
    (0, ALL_IDS, PREDICTED_IDS),
    (1, ALL_IDS, ALL_IDS),  # a network that says what is not evaluated
    (2, PREDICTED_IDS[:5], PREDICTED_IDS[3:8]),  # classes that are only seen, or only said
    (3, [7], PREDICTED_IDS),
    (4, [7, 4], [8, 26]),
])
def test_scores_are_cityscapes_own(tmp_path, seed, truth_ids, predicted_ids):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(4):
        truth = regions(rng, truth_ids)
        prediction = regions(rng, predicted_ids)
        half = rng.random(truth.shape) < 0.5
        prediction[half & np.isin(truth, predicted_ids)] = truth[half & np.isin(
            truth, predicted_ids)]
        pairs.append((truth, prediction))
    matrix, expected = official_scores(pairs, tmp_path)
    found = own_confusion(pairs)

    train_ids = CITYSCAPES_ID_TO_TRAIN_ID[:matrix.shape[0]]
    for truth_id in PREDICTED_IDS:
        for label in CITYSCAPES.classes:
            column = [i for i in range(matrix.shape[1]) if train_ids[i] == label.train_id]
            assert (found.matrix[train_ids[truth_id], label.train_id]
                    == matrix[truth_id, column].sum())
    for label in CITYSCAPES.classes:
        assert found.class_iou[label.name] == pytest.approx(
            expected['classScores'][label.name], nan_ok=True, abs=0, rel=1e-12)
    for category in CITYSCAPES.categories:
        assert found.category_iou[category] == pytest.approx(
            expected['categoryScores'][category], nan_ok=True, abs=0, rel=1e-12)
    assert found.mean_class_iou == pytest.approx(expected['averageScoreClasses'], rel=1e-12)
    assert found.mean_category_iou == pytest.approx(expected['averageScoreCategories'],
                                                    rel=1e-12)


def test_the_categories_are_the_seven_of_cityscapes():
    evaluated = {category for category, members in category2labels.items()
                 if any(not label.ignoreInEval for label in members)}
    assert set(CITYSCAPES.categories) == evaluated
    assert len(evaluated) == 7
    for category, ids in CITYSCAPES.categories.items():
        assert {id2label[i].trainId for i in PREDICTED_IDS
                if id2label[i].category == category} == set(ids)


masks = st.integers(0, 2**32).map(
    lambda seed: np.random.default_rng(seed).choice(
        [0, 1, 2, 3, 18, IGNORE], (2, 7, 11)).astype(np.uint8))


@settings(max_examples=40, deadline=None)
@given(masks)
def test_counts_and_ious_are_those_of_sets_of_pixels(pair):
    truth, prediction = pair
    confusion = Confusion(CITYSCAPES)
    confusion.add(truth, prediction)
    counted = truth != IGNORE
    for label in CITYSCAPES.classes:
        true = set(np.flatnonzero(counted & (truth == label.train_id)))
        said = set(np.flatnonzero(counted & (prediction == label.train_id)))
        expected = len(true & said) / len(true | said) if true | said else math.nan
        assert confusion.class_iou[label.name] == pytest.approx(expected, nan_ok=True)
        expected = len(true & said) / len(true) if true else math.nan
        assert confusion.class_agreement[label.name] == pytest.approx(expected, nan_ok=True)
    equal = np.count_nonzero(counted & (truth == prediction))
    total = np.count_nonzero(counted)
    assert confusion.agreement == pytest.approx(equal / total if total else math.nan, nan_ok=True)
    assert confusion.agreement_of_all == pytest.approx(np.mean(truth == prediction))


@settings(max_examples=20, deadline=None)
@given(st.lists(masks, min_size=1, max_size=4))
def test_counting_in_parts_is_counting_at_once(pairs):
    parts, whole = Confusion(CITYSCAPES), Confusion(CITYSCAPES)
    for truth, prediction in pairs:
        parts.add(truth, prediction)
    whole.add(np.vstack([pair[0] for pair in pairs]), np.vstack([pair[1] for pair in pairs]))
    np.testing.assert_array_equal(parts.matrix, whole.matrix)


def test_large_masks_are_counted_exactly(monkeypatch):
    """OpenCV counts in float32; beyond its exact range a mask is counted in parts."""
    monkeypatch.setattr(metrics, '_EXACT', 1000)
    truth = np.random.default_rng(0).integers(0, 19, (97, 123), dtype=np.uint8)
    prediction = np.random.default_rng(1).integers(0, 19, (97, 123), dtype=np.uint8)
    confusion = Confusion(CITYSCAPES)
    confusion.add(truth, prediction)
    expected = np.zeros((256, 256), np.int64)
    np.add.at(expected, (truth, prediction), 1)
    np.testing.assert_array_equal(confusion.matrix, expected)


def test_a_count_beyond_float32_is_exact():
    mask = np.zeros((4097, 4097), np.uint8)  # 2**24 + 8193 pixels in one cell
    confusion = Confusion(CITYSCAPES)
    confusion.add(mask, mask)
    confusion.add(mask[:1, :1], mask[:1, :1])
    assert confusion.matrix[0, 0] == 4097**2 + 1


def test_strided_masks_are_counted():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 19, (2, 40, 60), dtype=np.uint8)
    strided, plain = Confusion(CITYSCAPES), Confusion(CITYSCAPES)
    strided.add(truth[::2, ::-3], prediction[::2, ::-3])
    plain.add(truth[::2, ::-3].copy(), prediction[::2, ::-3].copy())
    np.testing.assert_array_equal(strided.matrix, plain.matrix)


@pytest.mark.parametrize(('truth', 'prediction'), [
    (np.zeros((4, 4), np.uint8), np.zeros((4, 1), np.uint8)),
    (np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.int64)),
    (np.zeros((4, 4), np.int32), np.zeros((4, 4), np.uint8)),
    (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)),
    (np.zeros(4, np.uint8), np.zeros(4, np.uint8)),
])
def test_masks_that_do_not_match_are_refused(truth, prediction):
    with pytest.raises(InputError, match='expected uint8 of one shape'):
        Confusion(CITYSCAPES).add(truth, prediction)


def test_channels_with_one_train_id_are_one_class():
    label_set = LabelSet((Label('road', 0, (1, 2, 3), 'flat'), Label('road', 0, (1, 2, 3), 'flat'),
                          Label('void', IGNORE, (0, 0, 0), 'void')))
    confusion = Confusion(label_set)
    confusion.add(np.array([[0, 0, IGNORE]], np.uint8), np.array([[0, IGNORE, 0]], np.uint8))
    assert confusion.class_iou == {'road': 0.5}
    assert confusion.class_share == {'road': 1.0}


def test_nothing_counted_gives_nan_and_no_error():
    confusion = Confusion(CITYSCAPES)
    assert math.isnan(confusion.agreement)
    assert math.isnan(confusion.mean_class_iou)
    assert math.isnan(confusion.mean_category_iou)
