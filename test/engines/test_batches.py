# SPDX-License-Identifier: Apache-2.0
"""Engines for several images at once: their key, what is measured of them, what is offered."""

from dataclasses import replace
import json
from pathlib import Path
import shutil

import numpy as np
import onnx
import pytest
from support.networks import Builder, write_bundle

from trt_segmentation import calibrate
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cli import main
from trt_segmentation.engines import batch_sizes, BuildOptions
from trt_segmentation.engines import build as build_module
from trt_segmentation.engines.batches import difference
from trt_segmentation.engines.build import build
from trt_segmentation.engines.opening import open_segmenter
from trt_segmentation.engines.record import Batch, Record
from trt_segmentation.errors import EngineMissing, InputError
from trt_segmentation.segmenters.segmenter import Masks

ACCEPT = {'min_agreement': 0.5, 'min_class_agreement': 0.0, 'min_int8_share': 0.5}
SIZE = (32, 64)


def resized(b):
    """Fixed at a batch of 1 by its Resize, as exporters write it."""
    x = b.conv_relu('image', 'relu', 3, 8, strides=[2, 2])
    x = b.conv(x, 'score', 8, 19, kernel=1)
    return b.node('Resize', [x, '', '', b.constant('sizes', np.array([1, 19, *SIZE]))], 'logits',
                  mode='linear')


def across_images(b):
    x = b.conv_relu('image', 'relu', 3, 8)
    x = b.node('Sub', [x, b.node('ReduceMean', [x], 'mean', axes=[0], keepdims=1)], 'centered')
    return b.conv(x, 'logits', 8, 19, kernel=1)


def fixed_bundle(path, network):
    """Return a calibrated bundle of a network whose batch size is fixed at 1."""
    builder = Builder(SIZE)
    builder.input.type.tensor_type.shape.dim[0].dim_value = 1
    model = builder.model(network(builder), shape=(1, 19, *SIZE))
    write_bundle(path, model, acceptance=ACCEPT)
    rng = np.random.default_rng(0)
    calibrate(path, [rng.integers(0, 256, (*SIZE, 3), np.uint8) for _ in range(6)], count=4,
              golden=2, report=False)
    return path


@pytest.fixture(scope='module')
def calibrated(tmp_path_factory):
    return fixed_bundle(tmp_path_factory.mktemp('resized') / 'bundle', resized)


@pytest.fixture
def bundle(calibrated, tmp_path):
    return Path(shutil.copytree(calibrated, tmp_path / 'bundle'))


def times(*frame_ms):
    """Return what stands in for the clock: the time of each batch size, for each frame in it."""
    return lambda calls: [ms * call.args[0].__len__() for ms, call in zip(frame_ms, calls)]


def built(bundle, store, **options):
    return build(Bundle.open(bundle), backend='onnxruntime', store=store, **options)


@pytest.mark.parametrize('precision', ['int8', 'fp32'])
def test_a_network_of_one_image_is_built_for_several(bundle, tmp_path, precision, monkeypatch):
    """Its masks are bit for bit those of each image alone, also of the engine in the store."""
    monkeypatch.setattr('trt_segmentation.engines.batches.by_turns', times(4., 3., 3.99, 1.))
    store = tmp_path / 'store'
    alone = built(bundle, store, precision=precision)
    several = built(bundle, store, precision=precision, max_batch=5)
    assert alone.key != several.key and alone.record.batches == ()
    assert several.record.inputs.max_batch == 5 and alone.record.inputs.max_batch is None
    assert several.record.batches == (Batch(1, 4.), Batch(2, 3.), Batch(4, 3.99), Batch(5, 1.))
    assert several.record.batch_sizes == (1, 2, 5)  # what is as fast in turn is not offered
    stored = json.loads((store / several.key / 'record.json').read_text())
    assert stored['batches'][1] == {'size': 2, 'frame_ms': 3., 'differs': ''}
    plan = onnx.load(store / several.key / 'plan')
    assert plan.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    options = {'backend': 'onnxruntime', 'precision': precision, 'store': store,
               'build_missing': False}
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((9, 9), SIZE, (40, 70))] * 4
    with open_segmenter(bundle, max_batch=5, **options) as segmenter, \
            open_segmenter(bundle, **options) as one_by_one:
        assert segmenter.batch_sizes == (1, 2, 5) and one_by_one.batch_sizes == (1,)
        for found, image in zip(segmenter.segment_batch(images, segmenter.offers), images):
            expected = one_by_one.segment(image, one_by_one.offers)
            assert np.array_equal(found.classes, expected.classes)
            assert np.array_equal(found.confidence, expected.confidence)
    with pytest.raises(EngineMissing, match='--max-batch 3'):
        open_segmenter(bundle, max_batch=3, **options)


def test_which_precision_is_the_fastest_is_kept_for_each_max_batch(bundle, tmp_path):
    store = tmp_path / 'store'
    chosen = built(bundle, store, precision='auto', max_batch=2)
    with pytest.raises(EngineMissing):
        open_segmenter(bundle, backend='onnxruntime', precision='auto', store=store,
                       build_missing=False)
    with open_segmenter(bundle, backend='onnxruntime', precision='auto', store=store, max_batch=2,
                        build_missing=False) as segmenter:
        assert segmenter.record.key == chosen.key


def test_a_network_that_takes_no_batches_is_built_for_single_images(tmp_path, capsys):
    bundle, store = fixed_bundle(tmp_path / 'bundle', across_images), tmp_path / 'store'
    command = ['build', str(bundle), '--backend', 'onnxruntime', '--store', str(store),
               '--max-batch', '4', '--verbose']
    assert main(command) == 0
    said = capsys.readouterr()
    reason = ("warning: built for one image at a time, because of the network: output 'logits' is "
              'another one when two images are run together')
    assert reason in said.err and reason in said.out
    with open_segmenter(bundle, backend='onnxruntime', store=store, max_batch=4,
                        build_missing=False) as segmenter:
        assert segmenter.batch_sizes == (1,) and segmenter.record.batches == ()


def test_the_command_shows_what_was_measured(bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('trt_segmentation.engines.batches.by_turns', times(4., 3., 5.))
    store = tmp_path / 'store'
    command = ['build', str(bundle), '--backend', 'onnxruntime', '--store', str(store)]
    assert main([*command, '--max-batch', '4']) == 0
    line = 'batches    milliseconds a frame 1: 4.00, 2: 3.00, 4: 5.00; taken: 1, 2'
    assert line in capsys.readouterr().out
    key, = {path.name for path in store.iterdir() if (path / 'record.json').exists()}
    assert main(['inspect', str(store / key)]) == 0
    assert line in capsys.readouterr().out


def test_masks_that_differ_are_not_offered_whatever_their_speed(bundle, tmp_path, monkeypatch):
    """An engine that gives the second image of a batch the first one's logits."""
    monkeypatch.setattr('trt_segmentation.engines.batches.by_turns', times(4., 1.))
    load = build_module.choose_backend('onnxruntime').load

    def load_mixing(self, plan, precision):
        engine = load(plan, precision)
        infer = engine.infer
        engine.infer = lambda tensor: {name: np.repeat(value[:1], len(value), 0)
                                       for name, value in infer(tensor).items()}
        return engine

    monkeypatch.setattr('trt_segmentation.engines.onnxruntime.OnnxRuntime.load', load_mixing)
    record = built(bundle, tmp_path / 'store', max_batch=2).record
    assert 'pixels have another class than alone' in record.batches[1].differs
    assert record.batch_sizes == (1,)


@pytest.mark.parametrize('wrong', [0, -1, 17])
def test_a_batch_size_that_cannot_be_is_refused(bundle, tmp_path, wrong):
    with pytest.raises(InputError, match=f'max batch: found {wrong}, expected 1 to 16'):
        built(bundle, tmp_path / 'store', max_batch=wrong)
    with pytest.raises(InputError, match='max batch'):
        BuildOptions(max_batch=wrong)


@pytest.mark.parametrize(('most', 'sizes'), [
    (1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 4)), (6, (1, 2, 4, 6)),
    (16, (1, 2, 4, 8, 16))])
def test_sizes_double_up_to_the_most(most, sizes):
    assert batch_sizes(most) == sizes


def test_a_few_near_ties_may_differ_where_kernels_of_batches_round_differently():
    classes, confidence = np.zeros((2, 100), np.uint8), np.full((2, 100), 99, np.uint8)
    confidence[0, :5] = [0, 13, 14, 2, 1]
    alone = Masks(classes, None, confidence, {})
    for at, exact, differs in (([0], False, False), ([0, 1], False, False), ([2], False, True),
                               ([0], True, True), ([0, 1, 3], False, True)):
        other = classes.copy()
        other[0, at] = 1
        found = difference(Masks(other, None, None, {}), alone, exact=exact)
        assert bool(found) == differs
        assert not found or f'{len(at)} of 200 pixels' in found
    ids = Masks(classes, None, None, {})  # a network of class ids has no confidence
    assert difference(Masks(classes + 1, None, None, {}), ids, exact=False)


def test_a_record_without_batches_reads_as_one_of_single_images(bundle, tmp_path):
    record = built(bundle, tmp_path / 'store').record
    values = record.to_json()
    del values['batches'], values['sha256']
    from trt_segmentation.system import files
    again = Record.from_json({**values, 'sha256': files.sha256_json(values)}, 'record')
    assert again.batch_sizes == (1,) and again == replace(record, batches=())
