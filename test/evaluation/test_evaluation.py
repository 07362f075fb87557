# SPDX-License-Identifier: Apache-2.0
"""Evaluation: Cityscapes' own figures, any engines side by side, every exit status."""

import argparse
from dataclasses import replace
import json
import math
import os
import re
import sys
from unittest import mock

import cv2
import numpy as np
import onnx
from PIL import Image
import pytest
from support.bundles import (
    foreign_bundle,
    FOREIGN_LABELS,
    foreign_network,
    sample_bundle,
    save,
    scene,
)

from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.create import create
from trt_segmentation.bundles.labels import (
    CITYSCAPES,
    CITYSCAPES_ID_TO_TRAIN_ID,
    IGNORE,
    Label,
    LabelSet,
)
from trt_segmentation.bundles.spec import AcceptanceSpec
from trt_segmentation.cli import main
from trt_segmentation.engines import opening
from trt_segmentation.engines.acceptance import Tally
from trt_segmentation.engines.opening import open_named
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation import datasets
from trt_segmentation.evaluation import evaluate as evaluation
from trt_segmentation.evaluation.evaluate import evaluate, evaluate_items, Evaluation
from trt_segmentation.recordings import bags
from trt_segmentation.reports import provenance
from trt_segmentation.reports.evaluation import html, markdown, Report, text, verdicts
from trt_segmentation.segmenters.postprocessing import Masks

TRAIN_ID_TO_ID = {int(train_id): i for i, train_id in enumerate(CITYSCAPES_ID_TO_TRAIN_ID)
                  if train_id != IGNORE}


@pytest.fixture(scope='module')
def sample(tmp_path_factory):
    return sample_bundle(tmp_path_factory.mktemp('sample'))


@pytest.fixture(scope='module')
def foreign(tmp_path_factory):
    return foreign_bundle(tmp_path_factory.mktemp('foreign'))


def cityscapes_root(root, size=(128, 256), count=3):
    """Write scenes in Cityscapes' layout, with label ids; at the bottom is the ego vehicle."""
    for i in range(count):
        image, truth = scene(20 + i, size)
        ids = np.zeros_like(truth)
        for train_id, label_id in TRAIN_ID_TO_ID.items():
            ids[truth == train_id] = label_id
        ids[-9:] = 1  # ego vehicle: ignored
        city = ('aachen', 'bochum')[i % 2]
        stem = f'{city}_{i:06d}_000019'
        save(root / 'leftImg8bit' / 'val' / city / f'{stem}_leftImg8bit.png', image)
        save(root / 'gtFine' / 'val' / city / f'{stem}_gtFine_labelIds.png', ids)
        save(root / 'gtFine' / 'val' / city / f'{stem}_gtFine_color.png', image)
    return root


def run(*words):
    return main(['evaluate', *map(str, words)])


# ---- the figures


class Fixed:
    """A segmenter that gives, for an image, the mask that it was told."""

    def __init__(self, masks):
        self.masks = masks
        self.spec = argparse.Namespace(labels=CITYSCAPES)

    def segment(self, image, want, color='bgr'):
        return Masks(self.masks[int(image[0, 0, 0])], None, None, {})


def random_masks(seed, count=8, size=(30, 50)):
    rng = np.random.default_rng(seed)
    return rng.choice([0, 1, 2, 13, IGNORE], (count, *size)).astype(np.uint8)


def changed(masks, share, seed=9):
    rng = np.random.default_rng(seed)
    result = masks.copy()
    for i, mask in enumerate(result):
        flipped = rng.random(mask.shape) < share * (i + 1) / len(result)
        mask[flipped] = (mask[flipped] + 1) % 19
    return result


def frames(truths, count=8, size=(30, 50)):
    for i in range(count):
        image = np.full((*size, 3), i, np.uint8)
        yield f'frame {i}', image, None if truths is None else truths[i]


def test_figures_are_those_of_all_pixels_together():
    truths, first = random_masks(0), random_masks(1)
    first[:, :15] = truths[:, :15]
    second = changed(first, 0.2)
    result = evaluate({'a': Fixed(first), 'b': Fixed(second)}, frames(truths)).summary()
    counted = truths != IGNORE
    for name, masks in (('a', first), ('b', second)):
        figures = result['engines'][name]
        ious = {}
        for label in CITYSCAPES.classes:
            true, said = (counted & (m == label.train_id) for m in (truths, masks))
            union = np.count_nonzero(true | said)
            ious[label.name] = np.count_nonzero(true & said) / union if union else math.nan
        assert figures['class_iou'] == pytest.approx(ious, nan_ok=True)
        assert figures['mean_class_iou'] == pytest.approx(np.nanmean(list(ious.values())))
        assert figures['pixel_accuracy'] == pytest.approx(
            np.count_nonzero(counted & (truths == masks)) / np.count_nonzero(counted))
        matrix = np.array(figures['confusion'])
        assert matrix.shape == (19, 20)
        assert matrix.sum() == np.count_nonzero(counted)
        assert matrix[0, 1] == np.count_nonzero((truths == 0) & (masks == 1))
        assert matrix[0, 19] == np.count_nonzero((truths == 0) & (masks == IGNORE))
    a, b = result['engines']['a'], result['engines']['b']
    true = [label.name for label in CITYSCAPES.classes if (truths == label.train_id).any()]
    assert list(b['class_iou_loss']) == result['seen'] == true
    assert b['mean_class_iou_loss'] == pytest.approx(100 * np.mean(
        [a['class_iou'][name] - b['class_iou'][name] for name in true]))
    assert result['coverage'] == pytest.approx(counted.mean())
    assert result['class_share']['road'] == pytest.approx(
        np.count_nonzero(truths == 0) / np.count_nonzero(counted))
    assert b['class_iou_loss']['road'] == pytest.approx(
        100 * (a['class_iou']['road'] - b['class_iou']['road']))
    seen = (first != IGNORE) | (second != IGNORE)
    assert b['agreement'] == pytest.approx(
        np.count_nonzero(seen & (first == second)) / np.count_nonzero(seen))
    assert 'agreement' not in a


def test_the_worst_frames_are_the_ones_that_agree_least():
    masks = random_masks(1, count=20)
    other = changed(masks, 0.5)
    result = evaluate({'a': Fixed(masks), 'b': Fixed(other)}, frames(None, 20),
                      Evaluation(CITYSCAPES, ['a', 'b'], worst=4))
    agreement = [np.mean((m == o)[(m != IGNORE) | (o != IGNORE)]) for m, o in zip(masks, other)]
    order = sorted(range(20), key=lambda i: agreement[i])
    assert [worst.name for worst in result.worst['b']] == [f'frame {i}' for i in order[:4]]
    for worst, i in zip(result.worst['b'], order):
        assert worst.agreement == pytest.approx(agreement[i])
        picture = cv2.imdecode(np.frombuffer(worst.picture, np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[1] > 800
    assert result.summary()['engines']['b']['frame_agreement']['min'] == pytest.approx(
        min(agreement))


def test_frames_are_taken_one_by_one():
    pulled = []

    def source():
        for frame in frames(None):
            pulled.append(frame[0])
            yield frame

    counted = []
    evaluate({'a': Fixed(random_masks(0))}, source(),
             progress=lambda name: counted.append((name, len(pulled))))
    assert counted == [(f'frame {i}', i + 1) for i in range(8)]


def test_without_true_masks_there_is_agreement_alone():
    masks = random_masks(0)
    summary = evaluate({'a': Fixed(masks), 'b': Fixed(masks)}, frames(None)).summary()
    assert summary['frames_with_truth'] == 0
    assert summary['engines']['a'] == {}
    assert summary['engines']['b']['agreement'] == 1
    assert summary['engines']['b']['worst_frames'] == []


@pytest.mark.parametrize(('limits', 'count'), [
    ({'min_agreement': 0.5}, 0), ({'min_agreement': 0.999}, 1),
    ({'max_class_iou_loss': 99}, 0), ({'max_class_iou_loss': 0}, 1),
    ({'max_category_iou_loss': 99}, 0), ({'max_category_iou_loss': 0}, 1),
    ({'max_single_class_iou_loss': 99}, 0), ({'max_single_class_iou_loss': 0}, 4),
    ({'max_class_iou_loss': 0, 'min_agreement': 1}, 2), ({}, 0)])
def test_limits(limits, count):
    truths = random_masks(0)
    result = evaluate({'a': Fixed(truths), 'b': Fixed(changed(truths, 0.1))}, frames(truths))
    failures = result.failures(**limits)
    assert len(failures) == count
    for failure in failures:
        assert failure.startswith('b ')


def test_a_figure_that_does_not_exist_keeps_no_limit():
    masks = np.full((8, 30, 50), IGNORE, np.uint8)
    result = evaluate({'a': Fixed(masks), 'b': Fixed(masks)}, frames(masks))
    assert len(result.failures(max_class_iou_loss=1, min_agreement=0.5)) == 2


def test_a_class_that_one_engine_alone_imagines_is_no_difference_of_means():
    """The means are over different classes; the loss is over those that occur."""
    truths = np.zeros((8, 30, 50), np.uint8)
    truths[:, 15:] = 13
    first, second = truths.copy(), truths.copy()
    first[0, 0, 0] = 1  # the reference imagines a sidewalk: its mean is over three classes
    second[0, 0, :2] = 13
    result = evaluate({'a': Fixed(first), 'b': Fixed(second)}, frames(truths))
    road, car = 8 * 15 * 50, 8 * 15 * 50
    expected = 100 * np.mean([(road - 1) / road - (road - 2) / road, 1 - car / (car + 2)])
    figures = result.summary()['engines']
    assert figures['a']['mean_class_iou'] == pytest.approx(((road - 1) / road + 1 + 0) / 3)
    assert 100 * (figures['a']['mean_class_iou'] - figures['b']['mean_class_iou']) < -33
    assert figures['b']['mean_class_iou_loss'] == pytest.approx(expected)
    assert set(figures['b']['class_iou_loss']) == {'road', 'car'}
    assert result.failures(max_class_iou_loss=expected + 1e-9) == []
    assert result.failures(max_class_iou_loss=expected - 1e-9)
    (note,) = [note for note in result.figures().notes if 'in no true mask' in note]
    assert note.startswith('a say') and 'sidewalk' in note


def test_a_class_that_is_not_predicted_any_more_loses_all_it_had():
    truths = np.zeros((8, 30, 50), np.uint8)
    truths[:, :3] = 11
    blind = np.zeros_like(truths)
    result = evaluate({'a': Fixed(truths), 'b': Fixed(blind)}, frames(truths))
    losses = result.summary()['engines']['b']['class_iou_loss']
    assert losses == {'road': pytest.approx(10), 'person': pytest.approx(100)}
    assert any("'person'" in failure
               for failure in result.failures(max_single_class_iou_loss=99.9))


@pytest.mark.parametrize(('said', 'warned'), [('right', False), ('constant', True),
                                              ('shuffled', True)])
def test_a_reference_near_chance_is_said(said, warned):
    rng = np.random.default_rng(0)
    truths = rng.choice([0, 1, 13], (8, 30, 50)).astype(np.uint8)
    masks = {'right': truths, 'constant': np.zeros_like(truths),
             'shuffled': rng.permuted(truths, axis=2)}[said]
    notes = evaluate({'fp32': Fixed(masks)}, frames(truths)).figures().notes
    assert any('better than chance' in note for note in notes) is warned


def test_classes_of_which_the_reference_finds_nothing_are_said():
    truths = np.random.default_rng(0).choice([0, 1, 13], (8, 30, 50)).astype(np.uint8)
    masks = np.where(truths == 13, 1, truths).astype(np.uint8)
    for said, warned in ((masks, True), (truths, False)):
        notes = evaluate({'fp32': Fixed(said)}, frames(truths)).figures().notes
        assert any(note.startswith('fp32 itself does not find car (100% of car is taken for '
                                   'sidewalk)') for note in notes) is warned


def test_a_class_that_is_found_where_it_is_not_is_said_so():
    truths = np.random.default_rng(0).choice([0, 1], (8, 30, 50)).astype(np.uint8)
    truths[:, 0] = 13
    said = np.where(truths == 1, 13, truths).astype(np.uint8)  # all of it, and all of sidewalk
    notes = evaluate({'fp32': Fixed(said)}, frames(truths)).figures().notes
    said_to_be, sidewalk = (said == 13).sum(), (truths == 1).sum()
    assert notes[0].startswith(
        'fp32 itself does not find sidewalk, car (100% of sidewalk is taken for car, '
        f'{sidewalk / said_to_be:.0%} of what is said to be car is sidewalk)')


def test_classes_that_the_reference_hardly_finds_come_first_and_nothing_is_green():
    truths = np.random.default_rng(0).choice([0, 1, 13], (8, 30, 50)).astype(np.uint8)
    swapped = truths.copy()
    swapped[truths == 13] = 1
    swapped[:, 0][truths[:, 0] == 13] = 13  # a thirtieth of them is found
    result = evaluate({'fp32': Fixed(swapped), 'int8': Fixed(swapped)}, frames(truths))
    found = result.figures(AcceptanceSpec())
    assert found.not_found == result.summary()['not_found'] == ['car'] and not found.blind
    failures = result.failures(max_class_iou_loss=0.1, min_agreement=0.9)
    assert failures == []  # it is not near chance
    report = Report('x', found, {}, failures, CITYSCAPES, {})
    assert text(report).splitlines()[0] == 'Before you believe the figures'
    lost = np.mean(swapped[truths == 13] == 1)
    assert f'({lost:.0%} of car is taken for sidewalk)' in text(report).splitlines()[1]
    assert [verdict.kind for verdict in verdicts(report)] == ['warn', 'warn', 'warn']
    assert 'kept, as far as fp32 finds' in text(report)


@pytest.mark.parametrize('truth', [True, False])
def test_no_limit_is_kept_against_a_reference_that_sees_nothing(truth):
    truths = np.random.default_rng(0).choice([0, 1, 13], (8, 30, 50)).astype(np.uint8)
    blind = np.zeros_like(truths)
    result = evaluate({'fp32': Fixed(blind), 'int8': Fixed(blind)},
                      frames(truths if truth else None))
    assert result.failures() == []
    failures = result.failures(min_agreement=0.9, **({'max_class_iou_loss': 0.1} if truth else {}))
    said = text(Report('x', result.figures(AcceptanceSpec()), {}, failures, CITYSCAPES, {}))
    if truth:
        assert failures == ['fp32 itself is hardly better than chance (kappa 0.00), so no limit '
                            'against it shows anything']
        assert 'are not kept' in said
    else:
        assert failures == [] and 'are kept, which proves nothing' in said
    assert ': yes' not in said and 'on these frames: that is not known' in said


def test_what_lost_nothing_is_not_said_to_have_lost_most():
    truths = random_masks(0)
    result = evaluate({'fp32': Fixed(truths), 'int8': Fixed(truths)}, frames(truths))
    said = text(Report('x', result.figures(), {}, None, CITYSCAPES, {}))
    assert 'int8 lost nothing of any class' in said and 'lost most' not in said


def test_a_reference_that_says_one_class_everywhere_is_said_without_true_masks():
    masks = np.full((8, 30, 50), 13, np.uint8)
    notes = evaluate({'fp32': Fixed(masks)}, frames(None)).figures().notes
    assert any("'car' on 100.0%" in note for note in notes)


@pytest.mark.parametrize(('truth', 'blind'), [(True, False), (False, True)])
def test_a_reference_that_finds_the_rare_classes_there_are_is_not_blind(truth, blind):
    """As of lane marks, beside which nearly all is road."""
    truths = np.zeros((8, 30, 50), np.uint8)
    truths[:, :3, :5], truths[:, -1, :5] = 1, 13
    found = evaluate({'fp32': Fixed(truths)}, frames(truths if truth else None)).figures()
    assert found.blind is blind
    assert any('the network may see nothing' in note for note in found.notes) is blind


@pytest.mark.parametrize('blind', [False, True])
def test_that_the_reference_sees_nothing_comes_before_all(blind):
    truths = np.random.default_rng(0).choice([0, 1, 13], (8, 30, 50)).astype(np.uint8)
    result = evaluate({name: Fixed(np.zeros_like(truths) if blind else truths)
                       for name in ('fp32', 'int8')}, frames(truths))
    result.notes, result.look = ['another note'], 'the command to look with'
    found = result.figures(AcceptanceSpec())
    lines = text(Report('x', found, {}, None, CITYSCAPES, {})).splitlines()
    assert found.blind is blind and result.summary()['blind'] is blind
    first = next(i for i, line in enumerate(lines) if line == 'Before you believe the figures')
    kinds = [verdict.kind for verdict in verdicts(Report('x', found, {}, None, CITYSCAPES, {}))]
    assert kinds == (['warn', 'warn'] if blind else ['good', 'warn'])
    if blind:
        assert first == 0
        assert lines[1].startswith('  fp32 is hardly better') and lines[1].endswith('to look with')
        assert lines[2] == '  another note'
    else:
        assert first > 0 and lines[first + 1] == '  another note'


def test_the_command_to_look_with_can_be_typed_but_is_not_handed_on(tmp_path, capsys):
    onnx.save(foreign_network(), tmp_path / 'foreign.onnx')
    create(tmp_path / 'foreign.onnx', tmp_path / 'my wrong', labels=FOREIGN_LABELS, color='rgb',
           mean=(0, 0, 0), scale=(1000, 1000, 1000))
    root = tmp_path / 'some images'
    for i in range(3):
        save(root / f'{i}.png', scene(i, (60, 110))[0])
    assert run(tmp_path / 'my wrong', '--images', root, '--engines', 'fp32', '--output',
               tmp_path / 'out') == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'Before you believe the figures'
    assert lines[1].endswith(
        f"trt-segmentation preview '{tmp_path / 'my wrong'}' --images '{root}'")
    note, *_ = json.loads((tmp_path / 'out' / 'evaluation.json').read_text())['notes']
    assert note.endswith("trt-segmentation preview '.../my wrong' --images '.../some images'")
    assert str(tmp_path) not in (tmp_path / 'out' / 'evaluation.html').read_text(encoding='utf-8')


def test_engines_are_judged_by_the_bundles_limits():
    masks = random_masks(0)
    other = changed(masks, 0.1)
    result = evaluate({'a': Fixed(masks), 'b': Fixed(other)}, frames(None))
    agreement = np.mean((masks == other)[(masks != IGNORE) | (other != IGNORE)])
    lowest = min(np.mean((other == i)[masks == i]) for i in (0, 1, 2, 13))

    def judged(**limits):
        judgement = result.figures(AcceptanceSpec(
            **{'min_agreement': 0, 'min_class_agreement': 0, **limits})).engines['b'].judgement
        return judgement.accepted, ' '.join(judgement.reasons)

    assert judged()[0]
    assert judged(min_agreement=agreement - 1e-6, min_class_agreement=lowest - 1e-6)[0]
    accepted, reasons = judged(min_agreement=agreement + 1e-6)
    assert not accepted and f'{agreement:.4f} is below' in reasons
    accepted, reasons = judged(min_class_agreement=lowest + 1e-6)
    assert not accepted and f'{lowest:.4f} is below' in reasons
    result.int8_shares['b'] = 0.5
    accepted, reasons = judged(min_int8_share=0.6)
    assert not accepted and '50.0% of the convolution work' in reasons
    assert result.figures().engines['b'].judgement is None
    other = evaluate({'int8': Fixed(masks), 'fp32': Fixed(masks)}, frames(None))
    assert other.figures(AcceptanceSpec()).engines['fp32'].judgement is None


@pytest.mark.parametrize(('pixels', 'judged'), [(9, False), (10, True)])
def test_a_class_of_too_few_pixels_to_judge_is_named(pixels, judged):
    """Below a thousandth of 10000 pixels, where the acceptance does not judge a class either."""
    masks = np.zeros((1, 100, 100), np.uint8)
    masks[0, 0, :pixels] = 1
    other = np.zeros_like(masks)
    result = evaluate({'fp32': Fixed(masks), 'int8': Fixed(other)}, frames(None, 1, (100, 100)))
    summary = result.figures(AcceptanceSpec(min_agreement=0, min_class_agreement=0.9))
    judgement = summary.engines['int8'].judgement
    assert judgement.accepted is not judged
    names = [label.name for label in CITYSCAPES.classes]
    none = dict.fromkeys(names[2:], 0.0)
    assert summary.to_json()['engines']['int8']['judgement']['unproven_classes'] == (
        none if judged else {'sidewalk': 0.0009, **none})
    page = Report('net', summary, provenance(), None, CITYSCAPES, {})
    for shown in (text(page), markdown(page), html(page)):
        assert ('too few pixels to judge: sidewalk (0.090% of the pixels)' in shown) is not judged
        assert f'nothing was judged of what no frame shows: {", ".join(names[2:])}' in shown
    tally = Tally(CITYSCAPES)
    tally.add('frame', masks[0], other[0])
    assert ('sidewalk' in tally.figures(None).classes) is judged


# ---- Cityscapes


def test_cityscapes_scores_are_those_of_its_own_script(sample, tmp_path, capsys):
    root = cityscapes_root(tmp_path / 'cityscapes')
    assert run(sample, '--cityscapes', root, '--engines', 'fp32', 'int8', '--format', 'json',
               '--output', tmp_path / 'out') == 0
    found = json.loads(capsys.readouterr().out)
    assert found['frames'] == found['frames_with_truth'] == 3
    with mock.patch.object(sys, 'argv', ['evaluate']):
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
    bundle = Bundle.open(sample)
    for engine in ('fp32', 'int8'):
        predictions, truths = [], sorted((root / 'gtFine').rglob('*_labelIds.png'))
        with open_named(bundle, engine) as segmenter:
            for path in sorted((root / 'leftImg8bit').rglob('*.png')):
                classes = segmenter.segment(cv2.imread(str(path)), ('classes',)).classes
                ids = np.zeros_like(classes)
                for train_id, label_id in TRAIN_ID_TO_ID.items():
                    ids[classes == train_id] = label_id
                predictions.append(str(tmp_path / engine / path.name))
                save(tmp_path / engine / path.name, ids)
        arguments = argparse.Namespace(**vars(official.args))
        arguments.quiet, arguments.evalInstLevelScore, arguments.JSONOutput = True, False, False
        expected = official.evaluateImgLists(predictions, list(map(str, truths)), arguments)
        capsys.readouterr()
        figures = found['engines'][engine]
        assert figures['mean_class_iou'] == pytest.approx(expected['averageScoreClasses'])
        assert figures['mean_category_iou'] == pytest.approx(expected['averageScoreCategories'])
        for label in CITYSCAPES.classes:
            score = expected['classScores'][label.name]
            assert figures['class_iou'][label.name] == (
                None if math.isnan(score) else pytest.approx(score))
    assert json.loads((tmp_path / 'out' / 'evaluation.json').read_text()) == found


def test_train_id_files_are_read_as_such(tmp_path):
    image, truth = scene(0, (64, 128))
    root = tmp_path / 'city'
    save(root / 'leftImg8bit' / 'test' / 'x' / 'a_leftImg8bit.png', image)
    save(root / 'gtFine' / 'test' / 'x' / 'a_gtFine_labelTrainIds.png', truth)
    (item,) = datasets.cityscapes(root, CITYSCAPES, 'test').items
    np.testing.assert_array_equal(item.load()[1], truth)
    assert item.name == 'x/a_leftImg8bit.png'


# ---- folders, scenes, the foreign network


def folder(root, count=3, size=(60, 110), labelled=True, labels=CITYSCAPES):
    for i in range(count):
        image, truth = scene(20 + i, size)
        save(root / 'images' / f'day{i % 2}' / f'{i}.jpg', image)
        if labelled:
            known = np.isin(truth, [label.train_id for label in labels.labels])
            save(root / 'truth' / f'day{i % 2}' / f'{i}.png', np.where(known, truth, IGNORE))
    return root


def test_unlabelled_pictures_through_the_foreign_network(foreign, tmp_path, capsys):
    root = folder(tmp_path, labelled=False)
    assert run(foreign, '--images', root / 'images', '--min-agreement', 0.5) == 0
    text = capsys.readouterr().out
    assert 'without true masks' in text
    assert 'int8-vehicle' in text
    assert 'asphalt' in text


def test_labelled_pictures_through_the_foreign_network(foreign, tmp_path, capsys):
    root = folder(tmp_path, labels=FOREIGN_LABELS)
    assert run(foreign, '--images', root / 'images', '--labels', root / 'truth',
               '--format', 'json') == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found['engines']) == ['fp32', 'int8', 'int8-vehicle']
    assert found['classes'] == ['asphalt', 'paint', 'grass', 'sky', 'brick', 'night']
    assert found['frames_with_truth'] == 3
    assert 0 <= found['engines']['int8']['mean_class_iou'] <= 1


def test_cityscapes_data_through_the_foreign_network(tmp_path, capsys):
    bundle = foreign_bundle(tmp_path, CITYSCAPES)
    root = cityscapes_root(tmp_path / 'data', size=(96, 256))  # letterboxed: 60 of 96 rows
    assert run(bundle, '--cityscapes', root, '--format', 'json') == 0
    found = json.loads(capsys.readouterr().out)
    assert found['frames_with_truth'] == 3
    assert list(found['engines']) == ['fp32', 'int8', 'int8-vehicle']
    assert 0 < found['engines']['fp32']['mean_class_iou'] < 1


def test_cityscapes_data_is_read_by_name_where_the_bundle_numbers_otherwise(tmp_path, capsys):
    """The same network with its channels numbered otherwise has the same scores."""
    renumbered = LabelSet(tuple(
        Label(label.name.upper().replace(' ', '_'), (label.train_id * 7 + 3) % 19, label.color,
              label.category) for label in CITYSCAPES.labels))
    root, found = cityscapes_root(tmp_path / 'data', count=2), []
    for name, labels in (('own', CITYSCAPES), ('other', renumbered)):
        (tmp_path / name).mkdir()
        bundle = foreign_bundle(tmp_path / name, labels)
        assert run(bundle, '--cityscapes', root, '--format', 'json', '--engines', 'fp32') == 0
        found.append(json.loads(capsys.readouterr().out)['engines']['fp32'])
    own, other = found
    assert own['mean_class_iou'] > 0
    assert other['mean_class_iou'] == pytest.approx(own['mean_class_iou'])
    for label in CITYSCAPES.classes:
        assert other['class_iou'][label.name.upper().replace(' ', '_')] == (
            own['class_iou'][label.name])


def test_cityscapes_data_needs_a_network_with_its_labels(foreign, tmp_path, capsys):
    root = cityscapes_root(tmp_path)
    assert run(foreign, '--cityscapes', root) == 2
    error = capsys.readouterr().err
    assert '_gtFine_labelIds.png: ' in error
    assert 'no class named road, sidewalk, building' in error
    assert error.count('\n') == 1


def test_scenes_and_unlabelled_pictures_through_the_sample_network(sample, tmp_path, capsys):
    assert run(sample, '--scenes', 2, '--engines', 'fp32', 'int8', 'onnxruntime:fp32',
               '--max-class-iou-loss', 50) == 0
    assert 'onnxruntime:fp32' in capsys.readouterr().out
    assert run(sample, '--images', folder(tmp_path, 1, labelled=False), '--engines', 'int8',
               'fp32', '--format', 'json') == 0
    found = json.loads(capsys.readouterr().out)
    assert found['reference'] == 'int8'
    assert found['engines']['fp32']['agreement'] > 0.9


def test_scenes_are_counted_by_the_names_of_classes(foreign, capsys):
    assert run(foreign, '--scenes', 1) == 2
    error = capsys.readouterr().err
    assert '--scenes: ' in error and 'no class named road, sidewalk' in error
    turned = LabelSet(tuple(replace(label, train_id=18 - label.train_id)
                            for label in CITYSCAPES.classes))
    own, = datasets.sample_scenes(1, CITYSCAPES).items
    other, = datasets.sample_scenes(1, turned).items
    (image, truth), (same, mask) = own.load(), other.load()
    assert np.array_equal(image, same) and own.signature != other.signature
    assert np.array_equal(mask, np.where(truth == IGNORE, IGNORE, 18 - truth))


def test_the_engine_in_the_store_is_the_one_that_is_evaluated(sample, tmp_path):
    from trt_segmentation.engines.build import build
    bundle = Bundle.open(sample)
    built = build(bundle, store=tmp_path, allow_unproven=True)
    with open_named(bundle, 'int8', store=tmp_path) as segmenter:
        assert segmenter.record.plan_sha256 == built.record.plan_sha256


# ---- exit status and bad input


def test_limits_decide_the_exit_status(sample, tmp_path, capsys):
    root = folder(tmp_path, 2)
    words = [sample, '--images', root / 'images', '--labels', root / 'truth', '--engines',
             'fp32', 'int8']
    assert run(*words, '--max-class-iou-loss', 100, '--max-category-iou-loss', 100,
               '--min-agreement', 0.5) == 0
    for option in ('--max-class-iou-loss', '--max-category-iou-loss'):  # what one loses, the
        assert sorted([run(*words, option, 0),                          # other gains
                       run(*words[:-2], 'int8', 'fp32', option, 0)]) == [0, 1]
    capsys.readouterr()
    assert run(*words, '--min-agreement', 1) == 1
    assert re.search(r'int8 agrees with fp32 on 0\.\d+ of the pixels, less than 1\b',
                     capsys.readouterr().err)


@pytest.mark.parametrize('points', ['nan', 'inf', '-5', '100.1', 'x'])
@pytest.mark.parametrize('of', ['class', 'category', 'single-class'])
def test_points_that_nothing_can_lose_are_wrong_use(of, points, capsys):
    with pytest.raises(SystemExit) as caught:
        run('bundle', '--images', '.', f'--max-{of}-iou-loss={points}')
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f'found {points!r}, expected points of IoU, 0..100\n')


def test_a_share_in_percent_is_wrong_use(sample, capsys):
    with pytest.raises(SystemExit) as caught:
        run(sample, '--images', '.', '--min-agreement', 98)
    assert caught.value.code == 2 and 'expected a share 0..1' in capsys.readouterr().err


@pytest.mark.parametrize(('change', 'said'), [
    (lambda root: ['--min-agreement', '0.5', '--engines', 'fp32'], 'needs two engines'),
    (lambda root: ['--max-class-iou-loss', '1'], 'needs true masks'),
    (lambda root: ['--engines', 'fp32', 'int4'], "'int4'"),
    (lambda root: ['--engines', 'onnxruntime:fp16'], 'fp16'),
    (lambda root: ['--engines', 'cuda:fp32'], "'cuda'"),
    (lambda root: (root / 'images' / 'day0' / '0.jpg').write_bytes(b''), '0.jpg: '),
    (lambda root: (root / 'images' / 'day0' / '0.jpg').write_bytes(b'no jpeg'), '0.jpg: '),
    (lambda root: (root / 'images' / 'day0' / '0.jpg').write_bytes(
        (root / 'images' / 'day1' / '1.jpg').read_bytes()[:-700]), 'cut short'),
])
def test_wrong_use_and_corrupt_images_end_with_code_2(foreign, tmp_path, capsys, change, said):
    root = folder(tmp_path, labelled=False)
    words = change(root)
    assert run(foreign, '--images', root / 'images',
               *(words if isinstance(words, list) else [])) == 2
    *before, error = capsys.readouterr().err.splitlines()
    assert said in error
    assert all(' images, network ' in line for line in before)


@pytest.mark.parametrize(('change', 'said'), [
    (lambda path: path.unlink(), 'has no true mask; expected'),
    (lambda path: path.write_bytes(b'no png'), 'not a readable PNG'),
    (lambda path: save(path, scene(0, (60, 110))[0]), 'one channel'),
    (lambda path: save(path, np.zeros((60, 110), np.uint16)), 'uint16'),
    (lambda path: save(path, np.zeros((60, 111), np.uint8)), 'expected 110x60'),
    (lambda path: save(path, np.full((60, 110), 26, np.uint8)), '--label-ids cityscapes'),
])
def test_corrupt_masks_end_with_code_2_before_the_work(sample, tmp_path, capsys, monkeypatch,
                                                       change, said):
    monkeypatch.setattr(opening, 'open_named', None)
    root = folder(tmp_path)
    change(root / 'truth' / 'day0' / '2.png')
    assert run(sample, '--images', root / 'images', '--labels', root / 'truth') == 2
    error = capsys.readouterr().err
    assert said in error
    assert '2.png' in error
    assert error.count('\n') == 1


def test_images_are_no_true_masks_of_themselves(sample, tmp_path, capsys):
    image = tmp_path / 'images' / '0.png'
    image.parent.mkdir()
    save(image, scene(0, (60, 110))[0])
    assert run(sample, '--images', image.parent, '--labels', image.parent) == 2
    assert f'{image}: it has no true mask: {image} is that image itself; expected' in (
        capsys.readouterr().err)


def test_label_ids_without_an_ending_are_read_as_said(sample, tmp_path, capsys):
    root = folder(tmp_path, 1)
    path = root / 'truth' / 'day0' / '0.png'
    save(path, np.full((60, 110), 26, np.uint8))  # car
    assert run(sample, '--images', root / 'images', '--labels', root / 'truth', '--label-ids',
               'cityscapes', '--engines', 'fp32', '--format', 'json') == 0
    found = json.loads(capsys.readouterr().out)
    confusion = np.array(found['engines']['fp32']['confusion'])
    assert confusion[13].sum() == confusion.sum() == 60 * 110


@pytest.mark.parametrize(('values', 'said'), [
    ([0, 255], 'would be perfect'), ([255], 'nothing to measure'), ([0, 128], 'found id 128')])
def test_masks_with_which_nothing_is_measured_are_refused(sample, tmp_path, capsys, values, said):
    root = folder(tmp_path, 2)
    for path in (root / 'truth').rglob('*.png'):
        mask = np.full((60, 110), values[0], np.uint8)
        mask[:, 30:] = values[-1]
        save(path, mask)
    assert run(sample, '--images', root / 'images', '--labels', root / 'truth') == 2
    assert said in capsys.readouterr().err


def test_tuning_on_masks_that_measure_nothing_is_refused(sample, tmp_path, capsys):
    root = folder(tmp_path, 2)
    for path in (root / 'truth').rglob('*.png'):
        mask = np.zeros((60, 110), np.uint8)
        mask[:, 30:] = 255
        save(path, mask)
    assert main(['calibrate', str(sample), '--images', str(root / 'images'), '--tune-images',
                 str(root / 'images'), '--tune-labels', str(root / 'truth')]) == 2
    assert 'would be perfect' in capsys.readouterr().err


def test_binary_masks_are_read_where_that_is_said(tmp_path, capsys):
    labels = LabelSet((Label('background', 0, (70, 70, 70), 'a'),
                       Label('object', 1, (250, 170, 30), 'b')))
    bundle = foreign_bundle(tmp_path, labels)
    root = folder(tmp_path, 2, labels=labels)
    for path in (root / 'truth').rglob('*.png'):
        mask = np.zeros((60, 110), np.uint8)
        mask[:, 30:] = 255
        save(path, mask)
    words = [bundle, '--images', root / 'images', '--labels', root / 'truth', '--format', 'json',
             '--engines', 'fp32']
    assert run(*words) == 2
    assert '--label-ids binary' in capsys.readouterr().err
    assert run(*words, '--label-ids', 'binary') == 0
    found = json.loads(capsys.readouterr().out)
    assert found['coverage'] == 1
    confusion = np.array(found['engines']['fp32']['confusion'])
    assert confusion.sum(1).tolist() == [2 * 60 * 30, 2 * 60 * 80]


def test_images_and_masks_in_one_folder_are_pairs(sample, tmp_path, capsys):
    root, apart = tmp_path / 'together', folder(tmp_path / 'apart', 2)
    for kind, ending in (('images', ''), ('truth', '_mask')):
        for path in (apart / kind).rglob('*.*'):
            if path.is_file():
                save(root / f'{path.stem}{ending}.png', cv2.imread(str(path), -1))
    words = ['--engines', 'fp32', '--format', 'json']
    assert run(sample, '--images', root, '--labels', root, *words) == 0
    together = json.loads(capsys.readouterr().out)
    assert run(sample, '--images', apart / 'images', '--labels', apart / 'truth', *words) == 0
    expected = json.loads(capsys.readouterr().out)
    assert together['frames'] == 2
    assert together['engines'] == expected['engines']
    assert any('without _mask' in line for line in together['taken'])


def test_masks_that_no_image_takes_are_named(tmp_path):
    root = folder(tmp_path)
    for name in ('day0/2_mask', 'night/7', 'day0/2_gtFine_color'):
        save(root / 'truth' / f'{name}.png', np.zeros((60, 110), np.uint8))
    data = datasets.folder(root / 'images', CITYSCAPES, root / 'truth')
    assert data.notes[-1] == (f'2 PNG files of {root / "truth"} left, not taken as the mask of '
                              'any image: day0/2_mask.png, night/7.png')
    assert [item.truth().max() for item in data.items][:1] != [0]  # the one named alike


def test_an_orientation_turns_neither_picture_nor_mask(sample, tmp_path, capsys):
    """The mask belongs to the pixels as they are stored."""
    root, found = folder(tmp_path, 1), []
    for turned in (False, True):
        path = root / 'images' / 'day0' / '0.jpg'
        if turned:
            exif = Image.Exif()
            exif[0x0112] = 6  # a quarter to the right
            segment, data = exif.tobytes(), path.read_bytes()
            path.write_bytes(data[:2] + b'\xff\xe1' + (len(segment) + 2).to_bytes(2, 'big')
                             + segment + data[2:])
            with Image.open(path) as picture:
                assert picture.getexif()[0x0112] == 6
        assert run(sample, '--images', root / 'images', '--labels', root / 'truth', '--engines',
                   'fp32', '--format', 'json') == 0
        found.append(json.loads(capsys.readouterr().out)['engines'])
    assert found[0] == found[1]


def test_images_that_were_calibrated_with_are_said(tmp_path, capsys):
    root = folder(tmp_path, 8, labelled=False)
    onnx.save(foreign_network(), tmp_path / 'foreign.onnx')
    create(tmp_path / 'foreign.onnx', tmp_path / 'foreign', labels=FOREIGN_LABELS)
    for path in list((root / 'images').rglob('*.jpg')):  # names that are not UTF-8, too
        os.rename(path, os.fsencode(path.with_suffix('')) + b'\xdf.jpg')
    assert main(['calibrate', str(tmp_path / 'foreign'), '--images', str(root / 'images'),
                 '--count', '5', '--golden', '2', '--no-report']) == 0
    capsys.readouterr()
    picture, _ = scene(70, (60, 110))
    save(root / 'images' / 'fresh.png', picture)
    assert run(tmp_path / 'foreign', '--images', root / 'images', '--engines', 'fp32') == 0
    assert '5 of 9 images were calibrated with' in capsys.readouterr().out


def test_an_image_that_is_gone_is_named(foreign, tmp_path):
    data = datasets.folder(folder(tmp_path, 2, labelled=False) / 'images', CITYSCAPES)
    for path in list((tmp_path).rglob('*.jpg')):
        path.unlink()
    with pytest.raises(InputError, match='jpg: cannot be read: No such file'):
        datasets.calibrated_with(data.items, Bundle.open(foreign))


def test_recorded_images_that_were_calibrated_with_are_said(tmp_path, capsys):
    onnx.save(foreign_network(), tmp_path / 'foreign.onnx')
    bundle = tmp_path / 'foreign'
    create(tmp_path / 'foreign.onnx', bundle, labels=FOREIGN_LABELS)
    with bags.Writer(tmp_path / 'drive') as writer:
        for i in range(8):
            writer.write_image('/c/image', scene(80 + i, (60, 110))[0], 'bgr8', i + 1, 'c')
    assert main(['calibrate', str(bundle), '--images', str(tmp_path / 'drive'), '--count', '5',
                 '--golden', '2', '--no-report']) == 0
    (tmp_path / 'drive').rename(tmp_path / 'renamed')
    capsys.readouterr()
    assert run(bundle, '--images', tmp_path / 'renamed', '--engines', 'fp32') == 0
    assert '5 of 8 images were calibrated with' in capsys.readouterr().out
    with bags.Writer(tmp_path / 'short') as writer:
        message = bags.image_message(scene(80, (60, 110))[0], 'bgr8', 7, 'c')
        message.data = message.data[:-1]
        writer.write('/c/image', message, 7)
    assert run(bundle, '--images', tmp_path / 'short', '--engines', 'fp32') == 2
    assert f'{tmp_path}/short: /c/image at stamp 7 ns: data has ' in capsys.readouterr().err


def test_recorded_images_have_the_same_names_however_their_recordings_are_given(
        tmp_path, monkeypatch):
    for name in ('drive', 'other'):
        with bags.Writer(tmp_path / name) as writer:
            writer.write_image('/c/image', scene(80, (60, 110))[0], 'bgr8', 5, 'c')
    (tmp_path / 'renamed').symlink_to('drive')
    monkeypatch.chdir(tmp_path / 'drive')
    for given in (['.', '../other'], ['../other', str(tmp_path / 'drive')],
                  ['../renamed', '../*'], [str(tmp_path), '../renamed/../drive']):
        assert [item.name for item in datasets.recordings(given).items] == [
            'drive/c/image@5', 'other/c/image@5']


def test_a_recording_that_was_written_over_is_another_one(tmp_path):
    """In its directory nothing is new then."""
    with bags.Writer(tmp_path / 'drive') as writer:
        writer.write_image('/c/image', scene(80, (60, 110))[0], 'bgr8', 5, 'c')
    directory = (tmp_path / 'drive').stat()
    (before,) = datasets.recordings([str(tmp_path / 'drive')]).items
    (file,) = (path for path in (tmp_path / 'drive').iterdir() if path.suffix != '.yaml')
    with file.open('r+b') as opened:
        data = opened.read()
        opened.seek(0)
        opened.write(data)
    (after,) = datasets.recordings([str(tmp_path / 'drive')]).items
    assert (tmp_path / 'drive').stat() == directory and after.name == before.name
    assert after.signature != before.signature


def test_names_that_are_not_utf8_are_escaped_everywhere(sample, tmp_path, capsys):
    root = folder(tmp_path, 1)
    for kind, suffix in (('images', '.jpg'), ('truth', '.png')):
        os.rename(root / kind / 'day0' / f'0{suffix}',
                  os.fsencode(root / kind / 'day0') + b'/stra\xdfe' + suffix.encode())
    output = tmp_path / 'out'
    assert run(sample, '--images', root / 'images', '--labels', root / 'truth', '--output',
               output) == 0
    assert 'stra\\xdfe.jpg' in (output / 'evaluation.html').read_text(encoding='utf-8')
    assert 'stra\\xdfe.jpg' in capsys.readouterr().out


@pytest.mark.parametrize('words', [
    ['--images', 'nowhere'], ['--cityscapes', 'nowhere'], ['--scenes', '0'], ['--images', '.'],
    ['--scenes', '1', '--labels', '.'], ['--cityscapes', '.']])
def test_missing_data_ends_with_code_2(sample, tmp_path, capsys, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert run(sample, *words) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_an_output_that_cannot_be_written_is_said_before_the_work(sample, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert run(sample, '--scenes', 10**5, '--output', tmp_path / 'file' / 'out') == 2
    assert 'cannot be made' in capsys.readouterr().err


# ---- going on after an interruption


class Counting:
    """A data set that counts how often each frame is loaded."""

    def __init__(self, count=8):
        self.loads = []
        self.signatures = ['1'] * count

    @property
    def items(self):
        def load(i):
            self.loads.append(i)
            return scene(i, (64, 128))
        return [datasets.Item(f'frame {i}', signature, lambda i=i: load(i))
                for i, signature in enumerate(self.signatures)]


def interrupted(bundle, data, engines, directory, after):
    def stop(name):
        stop.calls += 1
        if stop.calls == after:
            raise KeyboardInterrupt
    stop.calls = 0
    with pytest.raises(KeyboardInterrupt):
        evaluate_items(engines, data.items, bundle, directory, progress=stop)


def comparable(result):
    summary = result.summary()
    del summary['seconds']
    return summary


def test_an_interrupted_run_goes_on_and_ends_the_same(sample, tmp_path):
    bundle = Bundle.open(sample)
    with open_named(bundle, 'fp32') as fp32, open_named(bundle, 'int8') as int8:
        engines = {'fp32': fp32, 'int8': int8}
        expected = evaluate_items(engines, Counting().items, bundle)
        data = Counting()
        interrupted(bundle, data, engines, tmp_path, after=5)
        data.loads.clear()
        counted = []
        found = evaluate_items(engines, data.items, bundle, tmp_path, progress=counted.append)
    assert sorted(data.loads) == [5, 6, 7]
    assert counted == [f'frame {i}' for i in range(8)]
    assert comparable(found) == comparable(expected)
    assert [worst.picture for worst in found.worst['int8']] == [
        worst.picture for worst in expected.worst['int8']]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('change', ['file', 'engines', 'garbage', 'bundle', 'plan', 'backend',
                                    'versions', 'other state', 'deep state'])
def test_what_was_counted_of_something_else_is_not_used(sample, foreign, tmp_path, monkeypatch,
                                                        change):
    bundle = Bundle.open(sample)
    with open_named(bundle, 'fp32') as fp32:
        data = Counting()
        interrupted(bundle, data, {'fp32': fp32}, tmp_path, after=5)
        data.loads.clear()
        engines = {'fp32': fp32}
        (state,) = tmp_path.iterdir()
        if change == 'file':
            data.signatures[2] = '2'
        elif change == 'engines':
            engines = {'onnxruntime:fp32': fp32}
        elif change == 'garbage':
            state.write_text(state.read_text()[:-50])
        elif change == 'other state':
            state.write_text('[1, 2]')
        elif change == 'deep state':
            state.write_text('{"a":' * 200_000)
        elif change == 'plan':
            monkeypatch.setattr(fp32, 'record', argparse.Namespace(
                plan_sha256='another', precision='fp32'))
        elif change == 'backend':
            monkeypatch.setattr(fp32.engine, 'backend', 'tensorrt')
        elif change == 'versions':
            monkeypatch.setattr(manifest, 'versions', lambda: {'numpy': '0'})
        else:
            bundle = Bundle.open(foreign)
            engines = {'fp32': open_named(bundle, 'fp32')}
        evaluate_items(engines, data.items, bundle, tmp_path)
    assert sorted(data.loads) == list(range(8))


def test_another_reading_of_the_masks_is_another_item(tmp_path):
    root = folder(tmp_path, 1)
    path = root / 'truth' / 'day0' / '0.png'
    save(path, np.full((60, 110), 7, np.uint8))
    signatures = {
        datasets.folder(root / 'images', CITYSCAPES, root / 'truth', label_ids=ids
                        ).items[0].signature for ids in ('train', 'cityscapes', None)}
    assert len(signatures) == 2  # without a word the ids are train ids
    save(path, np.full((60, 110), 8, np.uint8))
    assert datasets.folder(root / 'images', CITYSCAPES, root / 'truth'
                           ).items[0].signature not in signatures


def test_state_is_saved_now_and_then(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, '_SAVE_EVERY', 0.0)
    bundle, seen = Bundle.open(sample), []
    with open_named(bundle, 'fp32') as fp32:
        evaluate_items({'fp32': fp32}, Counting(3).items, bundle, tmp_path,
                       progress=lambda name: seen.extend(tmp_path.iterdir()))
    assert len(seen) == 3
    assert list(tmp_path.iterdir()) == []


def test_another_shape_of_masks_is_refused():
    with pytest.raises(InputError, match='one shape'):
        evaluate({'a': Fixed(random_masks(0))},
                 [('x', np.zeros((30, 50, 3), np.uint8), np.zeros((30, 51), np.uint8))])


# ---- recordings


def test_recordings_are_evaluated_by_their_cameras_pictures(foreign, tmp_path, capsys):
    """As captured frames are: the masks beside the pictures are taken for no pictures."""
    images = [scene(i, (60, 110))[0] for i in range(4)]
    for number in range(2):
        with bags.Writer(tmp_path / f'capture_{number}.mcap') as writer:
            for i, image in enumerate(images[2 * number:2 * number + 2]):
                writer.write_image('/front/image', image[..., ::-1], 'rgb8', i * 10**9, 'camera')
                writer.write_image('/segmentation/class_mask', image[..., 0].copy(), 'mono8',
                                   i * 10**9, 'camera')
            writer.write_text('/segmentation/capture', '{}', 10**9)
    options = ('--engines', 'fp32', 'int8-vehicle', '--format', 'json')
    found = []
    for order in ((0, 1), (1, 0)):
        paths = [tmp_path / f'capture_{number}.mcap' for number in order]
        assert run(foreign, '--images', *paths, *options) == 0
        found.append(json.loads(capsys.readouterr().out))
    with open_named(Bundle.open(foreign), 'fp32') as network, \
            open_named(Bundle.open(foreign), 'int8-vehicle') as engine:
        masks = [[each.segment(image, ('classes',)).classes for image in images]
                 for each in (network, engine)]
    same = np.mean([one == two for one, two in zip(*masks)])
    for figures in found:
        assert figures['frames'] == 4
        assert figures['engines']['int8-vehicle']['agreement'] == pytest.approx(same)
    assert run(foreign, '--images', tmp_path, *options) == 0  # the directory of them
    assert json.loads(capsys.readouterr().out)['frames'] == 4
    save(tmp_path / 'pictures/a.png', images[0])
    for words, reason in (((tmp_path / 'capture_0.mcap', tmp_path / 'pictures'), 'no recording'),
                          ((tmp_path / 'capture_0.mcap', '--labels', tmp_path), '--labels')):
        assert run(foreign, '--images', *words, *options) == 2
        assert reason in capsys.readouterr().err
