# SPDX-License-Identifier: Apache-2.0
"""Equal channels where they are better in the vehicle's arithmetic, and nowhere else."""

import json

import numpy as np
import onnx
from onnx import numpy_helper
import pytest
from support.calibration import pictures, run, values_of
from support.networks import Builder, fcn, infer_all, write_bundle

from trt_segmentation import calibrate, reports
from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.calibration.adoption import adopt, coverage
from trt_segmentation.calibration.channels import Channels
from trt_segmentation.calibration.histogram import Histogram
from trt_segmentation.cli import main
from trt_segmentation.engines.onnxruntime import quantized_network, vehicle_emulation
from trt_segmentation.errors import InputError
from trt_segmentation.segmenters.cpu import CpuSegmenter


def unequal(spread=3.0, seed=0):
    """Return a network with depthwise layers whose input channels differ by decades."""
    b = Builder(seed=seed)
    x = b.conv_relu('image', 'stem', 3, 16)
    x = b.conv_relu(x, 'depthwise', 16, 16, group=16)
    model = b.model(b.conv(x, 'logits', 16, 8, kernel=1), shape=['N', 8, 32, 64])
    factors = 10 ** np.linspace(-spread, 0, 16)
    np.random.default_rng(seed).shuffle(factors)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.name.startswith('stem'):
            value = value * factors.reshape(-1, *[1] * (value.ndim - 1))
        elif tensor.name == 'depthwise_conv_weight':
            value = value / factors[:, None, None, None]
        tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float32), tensor.name))
    return model


LABELS = [{'name': f'c{i}', 'train_id': i, 'color': [i, i, i]} for i in range(8)]


def bundle_of(tmp_path, model, **sections):
    return write_bundle(tmp_path / 'bundle', model, labels=LABELS, **sections)


def agreement(bundle, images):
    """Return how much of the float network's masks the vehicle's arithmetic gives."""
    engine, quantized = vehicle_emulation(bundle)
    shares = []
    with CpuSegmenter(bundle.spec, engine) as segmenter:
        for image in images:
            logits = values_of(onnx.load(bundle.model_path), bundle.path, [image])['logits'][0, 0]
            shares.append((segmenter.segment(image).classes == logits.argmax(0)).mean())
    return np.mean(shares), quantized


def test_unequal_channels_are_equalized_and_that_helps(tmp_path):
    path, others = bundle_of(tmp_path, unequal()), pictures(6, seed=9)
    run(path, pictures(10), count=6, equalize='off')
    before, _ = agreement(Bundle.open(path), others)
    result = run(path, pictures(10), count=6)
    equalization = result.manifest.equalization
    assert equalization.tensors and equalization.network.file == 'equalized.onnx'
    after, quantized = agreement(Bundle.open(path), others)
    assert before < 0.9 and after > before + 0.05, (before, after)
    assert quantized.int8_share == 1
    image = np.random.default_rng(1).normal(0, 60, (1, 3, 32, 64)).astype(np.float32)
    found = infer_all(onnx.load(path / 'equalized.onnx'), image)['logits']
    logits = infer_all(unequal(), image)['logits']
    # But for its rounded weights it is the same network.
    assert np.abs(found - logits).max() < .03 * np.abs(logits).max()
    assert not coverage(Bundle.open(path), result.cache).missing
    assert not coverage(Bundle.open(path), result.cache).stale


def test_the_scale_is_that_of_the_values_that_the_derived_network_has(tmp_path):
    path, images = bundle_of(tmp_path, unequal()), pictures(6)
    result = run(path, images, count=6, method='minmax', golden=0, tuned=False)
    if result.manifest.equalization is None:  # no image was left to try it on
        result = run(path, [*images, *pictures(2, seed=8)], count=6, method='minmax')
    derived = onnx.load(path / 'equalized.onnx')
    values = values_of(derived, path, images)
    for node in derived.graph.node:
        if node.op_type == 'Relu':  # of what it reads, what it lets through
            values[node.input[0]] = values[node.input[0]].clip(0)
    for name in result.cache.scales:
        if name.endswith('_equalized'):
            assert result.cache.amax(name) == pytest.approx(np.abs(values[name]).max(), rel=.01)
        if name.endswith('_centered'):
            assert result.cache.amax(name) == pytest.approx(np.abs(values[name]).max(), rel=.01)
    assert any(name.endswith('_equalized') for name in result.cache.scales)


def test_equal_channels_are_left_alone(tmp_path):
    path = bundle_of(tmp_path, unequal(spread=0))
    result = run(path, pictures(10), count=6)
    assert 'unequal' not in result.manifest.equalization.chosen


def test_the_report_draws_how_ranges_grew_where_that_is_known(tmp_path, monkeypatch):
    """Neither of derived tensors, nor of images of before, of which only the last is known."""
    path, images = bundle_of(tmp_path, unequal()), pictures(12)
    figures, figure_uri = [], reports.figure_uri
    monkeypatch.setattr(reports, 'figure_uri',
                        lambda figure: figures.append(figure) or figure_uri(figure))

    def measured(found):
        return {name: tensor.amax for name, tensor in found.manifest.tensors.items()
                if tensor.sqnr_db is not None}

    def drawn(images, **options):
        figures.clear()
        found = run(path, images, report=True, **options)
        (axes,) = (axes for figure in figures for axes in figure.axes
                   if axes.get_ylabel().startswith('range'))
        *each, median = (line.get_xydata() for line in axes.lines)
        return measured(found), each, median, (path / 'calibration.html').read_text()

    original, each, median, page = drawn(images[:6], equalize='off')
    assert 'Not drawn' not in page and 'with before' not in page
    grown = [measured(run(path, images[:number], equalize='off')) for number in range(1, 7)]
    np.testing.assert_allclose(sorted(line[:, 1].tolist() for line in each), sorted(
        [before[name] / amax for before in grown] for name, amax in original.items()))

    derived, _, same, page = drawn(images[:10], count=6)
    unknown = set(derived) - set(original)
    assert unknown and f'Not drawn: {len(unknown)} tensors of the derived network' in page
    np.testing.assert_array_equal(same, median)

    after, each, median, page = drawn(images[10:], extend=True)
    assert 'Of the first 6 images, which were calibrated with before' in page
    for line in (*each, median):
        assert line[:, 0].tolist() == [6, 7, 8]
    np.testing.assert_allclose(sorted(line[0, 1] for line in each),
                               sorted(original[name] / after[name] for name in original))


def test_a_bundles_cache_is_compared_with_both_of_its_networks(tmp_path, capsys):
    """With the scales of either missing it does not cover it; of any other network it is one."""
    path = bundle_of(tmp_path, unequal())
    result = run(path, pictures(10), count=6)
    names = {name: {*onnx_names(onnx.load(path / name))} for name in ('model.onnx',
                                                                      'equalized.onnx')}
    assert any(name.endswith('_equalized') for name in names['equalized.onnx'])

    def coverage_of(cache, model):
        main(['inspect', str(cache), '--model', str(model), '--format', 'json'])
        return json.loads(capsys.readouterr().out)['coverage']

    for name, other in (('model.onnx', 'equalized.onnx'), ('equalized.onnx', 'model.onnx')):
        found = coverage_of(path / 'calibration.cache', path / name)
        assert not found['stale'] and not found['missing'] and found['with'] == other
        main(['inspect', str(path / 'calibration.cache'), '--model', str(path / name)])
        assert f'0 stale (with the tensors of {other})' in capsys.readouterr().out
        # A cache somewhere else is no bundle's.
        copy = tmp_path / 'calibration.cache'
        copy.write_bytes((path / 'calibration.cache').read_bytes())
        assert set(coverage_of(copy, path / name)['stale']) == (
            set(result.cache.scales) - names[name])
    onnx.save(unequal(seed=5), tmp_path / 'foreign.onnx')
    assert coverage_of(path / 'calibration.cache', tmp_path / 'foreign.onnx')['stale']
    (path / 'equalized.onnx').write_bytes(b'damaged')
    assert coverage_of(path / 'calibration.cache', path / 'model.onnx')['stale']


def onnx_names(model):
    return [*(each.name for each in model.graph.input),
            *(name for node in model.graph.node for name in node.output)]


def test_the_cpus_flavor_takes_the_original(tmp_path):
    path = bundle_of(tmp_path, unequal())
    run(path, pictures(10), count=6)
    quantized = quantized_network(Bundle.open(path), 'onnxruntime')
    assert not any('equalize' in name for node in quantized.model.graph.node
                   for name in (node.name, *node.output))
    # With all of its scales: in float is what makes the logits, and nothing for want of one.
    reasons = {layer.name: layer.reason for layer in quantized.layers}
    assert not any('no scale' in reason for reason in reasons.values()), reasons


def test_the_same_images_give_the_same_files_again(tmp_path):
    path, images = bundle_of(tmp_path, unequal()), pictures(10)
    files = []
    for order in (images, images, [*images[5::-1], *images[6:]]):
        run(path, order, count=6)
        files.append([(path / name).read_bytes()
                      for name in ('calibration.cache', 'equalized.onnx', 'model.onnx')])
    assert files[0] == files[1] == files[2]


def test_a_foreign_network_in_its_place_is_refused(tmp_path):
    path = bundle_of(tmp_path, unequal())
    run(path, pictures(10), count=6)
    onnx.save(unequal(seed=1), path / 'equalized.onnx')
    with pytest.raises(InputError, match='equalized.onnx: sha256 is not the one'):
        Bundle.open(path)
    with pytest.raises(InputError, match='equalized.onnx: not the network that'):
        manifest.cache_of(Bundle.open(path, verify=False))


def test_an_adopted_cache_is_one_of_the_original(tmp_path):
    path = bundle_of(tmp_path, unequal())
    run(path, pictures(4), equalize='off')
    (tmp_path / 'foreign.cache').write_bytes((path / 'calibration.cache').read_bytes())
    run(path, pictures(10), count=6)
    assert (path / 'equalized.onnx').exists()
    adopt(path, tmp_path / 'foreign.cache')
    assert not (path / 'equalized.onnx').exists()
    assert manifest.int8_network(Bundle.open(path)).file == 'model.onnx'


def test_given_ranges_are_left_alone(tmp_path):
    path = bundle_of(tmp_path, unequal(), calibration={'ranges': {'stem': 'minmax'}})
    equalization = run(path, pictures(10), count=6).manifest.equalization
    assert 'stem' not in equalization.tensors


def test_a_given_range_on_the_way_is_one_of_the_value_that_it_was_given_for(tmp_path):
    path = bundle_of(tmp_path, unequal(), calibration={'ranges': {'stem_conv': 'minmax'}})
    assert 'stem' in run(path, pictures(10), count=6).manifest.equalization.tensors
    made = {name: node.op_type for node in onnx.load(path / 'equalized.onnx').graph.node
            for name in node.output}
    assert made['stem_conv'] == 'Conv' and made['stem_equalized'] == 'Mul'


def test_wrong_choice(tmp_path):
    with pytest.raises(InputError, match="equalize: found 'yes', expected one of auto, off"):
        calibrate(write_bundle(tmp_path / 'b', fcn()), pictures(2), equalize='yes')


def test_channels_are_those_of_the_values():
    random = np.random.default_rng(0)
    scales = 10 ** random.uniform(-3, 2, 12)
    images = [(random.laplace(0, 1, (1, 12, 31, 47)) * scales[:, None, None]).astype(np.float32)
              for _ in range(5)]
    channels = Channels.of(images[0])
    for image in images[1:]:
        channels.merge(Channels.of(image))
    amax = np.abs(np.stack(images))[:, 0].max(axis=(2, 3))
    np.testing.assert_allclose(channels.amax, amax.max(0))
    factors = channels.factors()
    np.testing.assert_allclose(factors, (amax.mean(0) / amax.mean(0).max()).clip(2**-10))
    # The histogram of the quotients, against the quotients.
    values = np.concatenate([np.abs(image / factors[:, None, None]).ravel() for image in images])
    found = channels.histogram(factors)
    assert found.amax == pytest.approx(values.max(), rel=1e-6)
    exact = Histogram()
    exact.add(values.astype(np.float32), float(values.max()))
    for share in (0.5, 0.9, 0.99):
        position = [np.searchsorted(np.cumsum(h.counts), share * h.total) * h.width
                    for h in (found, exact)]
        assert position[0] == pytest.approx(position[1], rel=0.06)


def test_order_of_images_does_not_matter():
    random = np.random.default_rng(1)
    images = [random.normal(0, 3, (1, 5, 9, 11)).astype(np.float32) for _ in range(20)]

    def factors(order):
        channels = Channels.of(images[order[0]])
        for i in order[1:]:
            channels.merge(Channels.of(images[i]))
        return channels.factors()
    expected = factors(range(20))
    for _ in range(5):
        np.testing.assert_array_equal(factors(random.permutation(20)), expected)


def test_channels_of_zeros_are_left_alone():
    values = np.zeros((1, 4, 8, 8), np.float32)
    np.testing.assert_array_equal(Channels.of(values).factors(), np.ones(4))
    values[0, 1] = 5
    np.testing.assert_array_equal(Channels.of(values).factors(), np.ones(4))


def test_inspect_names_the_network_that_is_built(tmp_path, capsys):
    path = bundle_of(tmp_path, unequal())
    result = run(path, pictures(10), count=6)
    assert main(['inspect', str(path)]) == 0
    found = result.manifest.equalization
    out = capsys.readouterr().out
    assert f'derived    equalized.onnx: {found.chosen} ({len(found.tensors)} tensors)' in out
    assert ' 0 missing, 0 stale' in out
