# SPDX-License-Identifier: Apache-2.0
"""Tuning finds what harms a network, on networks whose harm is known."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
from support.calibration import pictures, run, write_pictures
from support.networks import Builder, write_bundle
import yaml

from trt_segmentation import calibrate
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.calibration import lab, tune
from trt_segmentation.calibration.lab import Frame, Setting, Trial
from trt_segmentation.calibration.tune import CANDIDATES
from trt_segmentation.cli import main
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.errors import InputError
from trt_segmentation.networks.layers import Layer
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.postprocessing import Masks


def fragile(large=64):
    """
    Return a network with one layer that INT8 ruins.

    'small' carries the classes in values near 1, beside a channel with values near 1000 that
    the layer 'head' does not read: its scale leaves nothing of the others.
    """
    b = Builder(size=(32, 64))
    x = b.conv_relu('image', 'features', 3, large)
    weight = np.zeros((20, large, 1, 1), np.float32)
    weight[:19] = np.random.default_rng(1).normal(0, 0.02, (19, large, 1, 1))
    weight[19, 0] = 1000
    x = b.node('Conv', [x, b.constant('small_weight', weight)], 'small', kernel_shape=[1, 1])
    weight = np.zeros((19, 20, 1, 1), np.float32)
    weight[np.arange(19), np.arange(19)] = 1
    b.node('Conv', [x, b.constant('head_weight', weight)], 'logits', kernel_shape=[1, 1])
    model = b.model('logits', shape=['N', 19, 32, 64])
    for node, name in zip(model.graph.node, ('features', 'relu', 'small', 'head')):
        node.name = name
    return model


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / 'bundle', fragile(),
                        acceptance={'min_int8_share': 0.5})


def test_leaves_the_ruined_layer_in_float(bundle):
    result = run(bundle, pictures(16), count=10, golden=6, tuned=True, equalize='off')
    tuning = result.manifest.tuning
    assert min(tuning.sensitivity_db, key=tuning.sensitivity_db.get) == 'head'
    assert set(tuning.sensitivity_db) == {'small', 'head'}  # 'features' is half of the work
    assert tuning.limits == ()
    spec = Bundle.open(bundle).spec  # verifies what was written
    assert 'head' in spec.calibration.exclude and 'features' not in spec.calibration.exclude
    trials = {trial.name: trial for trial in tuning.trials}
    chosen = trials[tuning.chosen]
    assert chosen.agreement > tuning.trials[0].agreement + 0.1
    assert chosen.exclude == spec.calibration.exclude
    assert cache_of(Bundle.open(bundle)).scales == result.cache.scales


def test_share_of_int8_is_kept(tmp_path):
    bundle = write_bundle(tmp_path / 'bundle', fragile(), acceptance={'min_int8_share': 0.99})
    tuning = run(bundle, pictures(16), count=10, golden=6, tuned=True).manifest.tuning
    assert tuning.sensitivity_db == {}  # none of its layers may be left in float
    assert [trial.exclude for trial in tuning.trials] == [()] * len(CANDIDATES)
    assert yaml.safe_load((bundle / 'model.yaml').read_text())['calibration']['exclude'] == []


def test_what_there_is_no_time_for_is_named(bundle, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tune, '_LIMIT_S', 0)
    source = write_pictures(tmp_path / 'images', 16)
    assert main(['calibrate', str(bundle), '--images', str(source), '--count', '10', '--golden',
                 '6', '--equalize', 'off', '--tune', '--no-report']) == 0
    tuning = json.loads((bundle / 'calibration.json').read_text())['tuning']
    # Of each part the first step: the default method, the cheapest layer, and that in float.
    assert [trial['exclude'] for trial in tuning['trials']] == [[], ['head']]
    assert list(tuning['sensitivity_db']) == ['head']
    assert tuning['limits'] == ['0 minutes were over when 1 of 6 methods were tried',
                                '0 minutes were over when 1 of 2 layers were ranked']
    out = capsys.readouterr().out
    assert 'ranked     1 layer by' in out
    assert all(f'limit      {limit}: another run' in out for limit in tuning['limits'])


def searched(monkeypatch, gains, work=None):
    """
    Return what is chosen, and all that was tried, where layers and what they gain are given.

    :param gains: what sets of layers in float add to the score, one beside the other
    :param work: of each layer, the most harmful one first; a tenth of all may be in float
    """
    work = work or dict.fromkeys('abcdefghijkl', 1)
    layers = [Layer('rest', 'Conv', 1000 - sum(work.values()), 'int8'),
              *(Layer(name, 'Conv', macs, 'int8') for name, macs in work.items())]

    class Lab:
        def __init__(self, *given):
            pass

        def layers(self, setting):
            return layers

        def references(self, number):
            return []

        def alone(self, setting, layer, references):
            return 10.0 + [*work].index(layer) if layer in work else 99.0

        def trial(self, setting):
            floats = set(setting.exclude)
            score = 0.5 + sum(gain for names, gain in gains.items() if floats.issuperset(names))
            share = 1 - sum(work[name] for name in floats) / 1000
            return Trial(setting, score, score, {}, share)

    monkeypatch.setattr(tune, 'Lab', Lab)
    spec = SimpleNamespace(calibration=SimpleNamespace(exclude=()),
                           acceptance=SimpleNamespace(min_int8_share=0.9))
    calibrator = SimpleNamespace(thresholds=lambda *given, **settings: {})
    found = tune.tune(SimpleNamespace(spec=spec), SimpleNamespace(model=None, words=''),
                      calibrator, {}, [], lambda *done: None)
    names = [trial.setting.name for trial in found.trials]
    assert len({*names}) == len(names) and found.limits == []
    return ''.join(found.best.setting.exclude), found.trials[len(CANDIDATES):]


def test_layers_that_gain_together_are_found(monkeypatch):
    assert searched(monkeypatch, {'abc': 0.1})[0] == 'abc'


def test_a_layer_that_gains_behind_some_that_do_not_is_left_in_float_alone(monkeypatch):
    assert searched(monkeypatch, {'d': 0.1})[0] == 'abcd'  # those before it cost little
    assert searched(monkeypatch, {'d': 0.1}, {'a': 95, 'b': 1, 'c': 1, 'd': 8})[0] == 'd'


def test_what_gains_beside_the_best_ones_is_added(monkeypatch):
    work = {'a': 10, 'b': 5, 'c': 80, 'd': 20, 'e': 10}
    chosen, trials = searched(monkeypatch, {'ab': 0.2, 'd': 0.05}, work)
    assert chosen == 'abd'  # c, which gains nothing, had left no room for d
    assert [''.join(trial.setting.exclude) for trial in trials] == [
        'a', 'ab', 'abc', 'abd', 'abde']


def test_the_search_ends_when_nothing_gains(monkeypatch):
    chosen, trials = searched(monkeypatch, {})
    assert chosen == ''
    tried = [''.join(trial.setting.exclude) for trial in trials]
    assert tried == [*('abcdefgh'[:i + 1] for i in range(8)), *'bcdefghi']


def test_robust_network_is_left_alone(tmp_path):
    b = Builder(size=(32, 64))
    x = b.conv_relu('image', 'features', 3, 32)
    b.conv(x, 'logits', 32, 19, kernel=1)
    bundle = write_bundle(tmp_path / 'bundle', b.model('logits', shape=['N', 19, 32, 64]))
    tuning = run(bundle, pictures(12), count=8, golden=4, tuned=True).manifest.tuning
    assert [trial.exclude for trial in tuning.trials if trial.name == tuning.chosen] \
        == [()]
    assert Bundle.open(bundle).spec.calibration.exclude == ()


def test_tunes_on_given_frames_with_true_masks(bundle, tmp_path, capsys):
    # The true masks are the float network's, so the same layer must be found.
    images = write_pictures(tmp_path / 'val', 5, seed=9)
    (tmp_path / 'masks').mkdir()
    opened = Bundle.open(bundle)
    with CpuSegmenter(opened.spec, OnnxRuntimeEngine(opened.model_path)) as segmenter:
        for path in images.iterdir():
            mask = segmenter.segment(cv2.imread(str(path))).classes
            cv2.imwrite(str(tmp_path / 'masks' / path.name), mask)
    source = write_pictures(tmp_path / 'images', 12)
    assert main(['calibrate', str(bundle), '--images', str(source), '--count', '8', '--golden',
                 '4', '--tune-images', str(images), '--tune-labels', str(tmp_path / 'masks'),
                 '--no-report']) == 0
    assert '<- chosen' in capsys.readouterr().out
    assert 'head' in Bundle.open(bundle).spec.calibration.exclude
    tuning = json.loads((bundle / 'calibration.json').read_text())['tuning']
    assert len(tuning['trials'][0]['classes']) == 19


class AsPainted:
    """A segmenter that says what the first channel of an image has."""

    def __init__(self, spec, engine):
        engine.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def segment(self, image, want):
        return Masks(image[..., 0].copy(), None, None, {})


@pytest.mark.parametrize('labelled', [False, True])
def test_a_class_where_the_float_network_says_none_is_a_difference(bundle, monkeypatch, labelled):
    """As `build` counts it; what a person left out of a mask is not judged."""
    monkeypatch.setattr(lab, 'CpuSegmenter', AsPainted)
    wanted = np.zeros((40, 50), np.uint8)
    wanted[4:] = 255
    image = np.zeros((40, 50, 3), np.uint8)
    opened = Bundle.open(bundle)
    model = onnx.load(opened.model_path)
    trial = lab.Lab(opened, model, [Frame(image, wanted, labelled)]).trial(
        Setting('mse', 100.0, {}))
    assert trial.agreement == (1.0 if labelled else pytest.approx(0.1))


@pytest.mark.parametrize(('pixels', 'judged'), [(1, False), (2, True)])
def test_a_class_that_is_too_small_to_judge_by_has_no_part_in_the_choice(
        bundle, monkeypatch, pixels, judged):
    monkeypatch.setattr(lab, 'CpuSegmenter', AsPainted)
    wanted = np.zeros((40, 50), np.uint8)  # 0.1% are 2 pixels
    wanted[:10] = 13
    wanted[-1, :pixels] = 6
    said = wanted.copy()
    said[:1] = said[said == 6] = 0  # and what is said of a class that there is none of
    said[20, 0] = 11
    image = np.repeat(said[..., None], 3, axis=2)
    opened = Bundle.open(bundle)
    model = onnx.load(opened.model_path)
    trial = lab.Lab(opened, model, [Frame(image, wanted)]).trial(Setting('mse', 100.0, {}))
    ious = [(1499 - pixels) / 1550, 450 / 500, *[0.0] * judged]
    assert trial.iou == pytest.approx(np.mean(ious))
    assert trial.classes['traffic light'] == trial.classes['person'] == 0


def test_tuning_without_held_out_frames(bundle):
    with pytest.raises(InputError, match='tuning needs frames'):
        run(bundle, pictures(4), tuned=True)
    with pytest.raises(InputError, match='tuning needs frames'):
        run(bundle, pictures(4), tuned=[])


def test_images_and_labels_belong_together(bundle, tmp_path, capsys):
    assert main(['calibrate', str(bundle), '--images', str(tmp_path), '--tune-images',
                 str(tmp_path)]) == 2
    assert 'belong together' in capsys.readouterr().err


def test_own_exclusions_stay(tmp_path):
    bundle = write_bundle(tmp_path / 'bundle', fragile(), acceptance={'min_int8_share': 0.3},
                          calibration={'exclude': ['small']})
    run(bundle, pictures(16), count=10, golden=6, tuned=True)
    assert Bundle.open(bundle).spec.calibration.exclude[0] == 'small'


def test_frames_of_one_calibration_do_not_change_it(bundle):
    images = pictures(10)
    plain = run(bundle, images).cache
    frame = Frame(images[0], np.zeros((32, 64), np.uint8))
    tuned = calibrate(bundle, images, count=10, golden=0, report=False, tuned=[frame])
    assert tuned.manifest.method == 'mse' and tuned.cache == plain
