# SPDX-License-Identifier: Apache-2.0
"""The commands inspect, adopt and golden."""

import json

import cv2
import numpy as np
import onnx
import pytest
from support.calibration import pictures, run, values_of, write_pictures
from support.networks import fcn, write_bundle

from trt_segmentation.bundles import golden, manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import Cache
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.cli import main
from trt_segmentation.engines.build import build
from trt_segmentation.errors import InputError


@pytest.fixture
def bundle(tmp_path):
    """Return a calibrated bundle."""
    path = write_bundle(tmp_path / 'bundle', fcn())
    run(path, pictures(4))
    return path


def inspect(capsys, *arguments):
    """Return exit code and parsed JSON of `inspect`."""
    code = main(['inspect', *map(str, arguments), '--format', 'json'])
    return code, json.loads(capsys.readouterr().out)


def test_cache(bundle, capsys):
    code, figures = inspect(capsys, bundle / 'calibration.cache')
    cache = Cache.read(bundle / 'calibration.cache')
    assert code == 0
    assert {name: tensor['scale'] for name, tensor in figures['tensors'].items()} == cache.scales
    assert figures['tensors']['relu1']['amax'] == cache.amax('relu1')
    assert figures['header'] == {'version': '8601', 'algorithm': 'EntropyCalibration2'}


def test_text_shows_each_tensor_once(bundle, capsys):
    assert main(['inspect', str(bundle / 'calibration.cache')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith('relu1 ') for line in lines) == 1


def test_unusable_scales_are_listed_apart(tmp_path, capsys):
    path = tmp_path / 'x.cache'
    path.write_text('TRT-8601-EntropyCalibration2\na: 3f800000\nb: 7f800000\nc: 0\n')
    _, figures = inspect(capsys, path)
    assert list(figures['tensors']) == ['a']
    assert figures['unusable'] == {'b': 'inf', 'c': '0.0'}
    assert main(['inspect', str(path)]) == 0
    assert 'unusable   b: inf' in capsys.readouterr().out


def test_against(bundle, tmp_path, capsys):
    cache = Cache.read(bundle / 'calibration.cache')
    other = Cache(cache.version, cache.algorithm, {
        **{name: scale for name, scale in cache.scales.items() if name != 'relu2'},
        'relu1': 1.0, 'extra': 1.0})
    other.write(tmp_path / 'other.cache')
    code, figures = inspect(capsys, bundle / 'calibration.cache', '--against',
                            tmp_path / 'other.cache')
    assert code == 1 and not figures['against']['identical']
    assert figures['against']['only_here'] == ['relu2']
    assert figures['against']['only_there'] == ['extra']
    assert [name for name, *_ in figures['against']['changed']] == ['relu1']
    code, figures = inspect(capsys, bundle / 'calibration.cache', '--against',
                            bundle / 'calibration.cache')
    assert code == 0 and figures['against']['identical']
    for against, verdict in ((tmp_path / 'other.cache', 'different  in 3 scales'),
                             (bundle / 'calibration.cache', 'identical')):
        main(['inspect', str(bundle / 'calibration.cache'), '--against', str(against)])
        assert capsys.readouterr().out.splitlines()[0] == verdict
    cache.with_header('9.9.9', cache.algorithm).write(tmp_path / 'header.cache')
    main(['inspect', str(bundle / 'calibration.cache'), '--against',
          str(tmp_path / 'header.cache')])
    assert capsys.readouterr().out.splitlines()[0] == 'different  in the header'


def test_what_goes_with_a_cache_is_not_passed_over_for_a_bundle(bundle, capsys):
    assert main(['inspect', str(bundle), '--against', 'nowhere']) == 2
    assert f'go with a cache, as {bundle}/calibration.cache' in capsys.readouterr().err


def test_coverage_of_its_own_network(bundle, capsys):
    code, figures = inspect(capsys, bundle / 'calibration.cache', '--model',
                            bundle / 'model.onnx')
    assert code == 0
    assert figures['coverage']['missing'] == {} and figures['coverage']['stale'] == []


def test_coverage_names_the_layers_that_fall_back(bundle, tmp_path, capsys):
    cache = Cache.read(bundle / 'calibration.cache')
    scales = {name: scale for name, scale in cache.scales.items() if name != 'relu2'}
    Cache(cache.version, cache.algorithm, {**scales, 'old': 1.0}).write(tmp_path / 'x.cache')
    code, figures = inspect(capsys, tmp_path / 'x.cache', '--model', bundle / 'model.onnx')
    assert code == 1
    assert figures['coverage']['missing'] == {
        'relu2': ['relu2_node', 'relu3_conv_node', 'score2_node']}
    assert figures['coverage']['stale'] == ['old']
    assert figures['coverage']['float_layers'] == ['relu2_node', 'relu3_conv_node', 'score2_node']
    assert main(['inspect', str(tmp_path / 'x.cache'), '--model',
                 str(bundle / 'model.onnx')]) == 1
    assert 'missing    relu2: used by' in capsys.readouterr().out


def test_rewriting_the_header(bundle, tmp_path, capsys):
    before = (bundle / 'calibration.cache').read_bytes()
    code, figures = inspect(capsys, bundle / 'calibration.cache', '--rewrite',
                            tmp_path / 'new.cache', '--tensorrt', '10.3.0')
    assert code == 0 and figures['rewritten']['version'] == '100300'
    assert (tmp_path / 'new.cache').read_bytes() == before.replace(b'TRT-8601-', b'TRT-100300-')


@pytest.mark.parametrize('version, warns', [('10.13.0', False), ('11.0.0', True), ('11.1', True)])
def test_rewriting_for_a_tensorrt_that_reads_no_caches(bundle, tmp_path, version, warns, capsys):
    assert main(['inspect', str(bundle / 'calibration.cache'), '--rewrite',
                 str(tmp_path / 'new.cache'), '--tensorrt', version]) == 0
    output, error = capsys.readouterr()
    assert output.startswith(f'written    {tmp_path / "new.cache"}: version 1')
    assert (f'TensorRT {version} reads no calibration caches' in error) == warns == bool(error)


def test_rewriting_without_a_version_or_tensorrt(bundle, tmp_path, capsys):
    assert main(['inspect', str(bundle / 'calibration.cache'), '--rewrite',
                 str(tmp_path / 'new.cache')]) == 2
    assert '--tensorrt' in capsys.readouterr().err


def test_bundle(bundle, capsys):
    code, figures = inspect(capsys, bundle)
    assert code == 0
    assert figures['calibration']['images'] == 4 and figures['calibration']['missing'] == {}
    assert main(['inspect', str(bundle)]) == 0
    assert '4 images' in capsys.readouterr().out


def test_bundle_without_calibration(tmp_path, capsys):
    path = write_bundle(tmp_path / 'bundle', fcn())
    assert inspect(capsys, path)[1]['calibration'] is None
    assert main(['inspect', str(path)]) == 0


def test_bundle_that_was_changed(bundle, capsys):
    write_bundle(bundle, fcn(seed=1))
    assert main(['inspect', str(bundle)]) == 2
    assert 'model.onnx' in capsys.readouterr().err


def test_engine(bundle, tmp_path, capsys):
    built = build(Bundle.open(bundle), backend='onnxruntime', store=tmp_path / 'store',
                  allow_unproven=True, allow_float=True)
    directory = tmp_path / 'store' / built.key
    code, record = inspect(capsys, directory)
    assert code == 0 and record['key'] == built.key
    assert main(['inspect', str(directory)]) == 0
    assert 'relu3_conv_node' in capsys.readouterr().out
    with open(directory / 'plan', 'ab') as plan:
        plan.write(b'x')
    assert main(['inspect', str(directory)]) == 2


@pytest.mark.parametrize('content', [None, b'\x00\x01\xff', b'hello\n'])
def test_what_is_no_cache(tmp_path, capsys, content):
    path = tmp_path / 'x'
    if content is not None:
        path.write_bytes(content)
    assert main(['inspect', str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def foreign(tmp_path, names, **extra):
    """Write a cache as TensorRT would: a quarter more than what our calibration found."""
    path = tmp_path / 'calib.table'
    scales = {name: scale if name == 'image' else scale * 1.25 for name, scale in names.items()}
    Cache('8502', 'MinMaxCalibration', {**scales, **extra}).write(path)
    return path


@pytest.fixture
def names(bundle):
    return dict(Cache.read(bundle / 'calibration.cache').scales)


def test_adopt(bundle, tmp_path, names, capsys):
    path = foreign(tmp_path, names, Reshape__12=1.0, broken=float('inf'))
    assert main(['adopt', str(bundle), str(path)]) == 0
    opened = Bundle.open(bundle)
    assert opened.cache_path.read_bytes() == path.read_bytes()
    assert cache_of(opened).scales['relu1'] == pytest.approx(1.25 * names['relu1'])
    document = manifest.read(opened.manifest_path)
    assert document.adopted.header == 'TRT-8502-MinMaxCalibration'
    assert document.adopted.stale == ('Reshape__12', 'broken')
    assert main(['inspect', str(bundle)]) == 0
    assert 'calibrated by another tool: calib.table' in capsys.readouterr().out
    build(opened, backend='onnxruntime', store=tmp_path / 'store', allow_unproven=True,
          allow_float=True)


def test_adopted_cache_is_bound_to_the_network(bundle, tmp_path, names):
    main(['adopt', str(bundle), str(foreign(tmp_path, names))])
    write_bundle(bundle, fcn(seed=1))
    with pytest.raises(InputError, match='made for a network'):
        cache_of(Bundle.open(bundle, verify=False))


def test_adopt_with_a_scale_missing(bundle, tmp_path, names, capsys):
    before = (bundle / 'calibration.cache').read_bytes()
    del names['relu2']
    path = foreign(tmp_path, names)
    assert main(['adopt', str(bundle), str(path)]) == 1
    assert "the first is 'relu2'" in capsys.readouterr().err
    assert (bundle / 'calibration.cache').read_bytes() == before
    Bundle.open(bundle)
    assert main(['adopt', str(bundle), str(path), '--allow-missing']) == 0


def test_adopt_garbage(bundle, tmp_path, capsys):
    (tmp_path / 'x').write_text('TRT-8601-EntropyCalibration2\na: x\n')
    assert main(['adopt', str(bundle), str(tmp_path / 'x')]) == 2
    assert 'x:2:' in capsys.readouterr().err


@pytest.mark.parametrize('only', [False, True])
def test_classes_that_no_golden_frame_shows_are_named(tmp_path, capsys, only):
    path = write_bundle(tmp_path / 'bundle', fcn())
    run(path, pictures(6), count=4, golden=2)
    counts = np.zeros(256, np.int64)
    for mask_path in (path / 'golden').glob('*.mask.png'):
        mask = np.zeros(cv2.imread(str(mask_path), -1).shape, np.uint8)
        if not only:
            mask[0] = 13
            mask[1, 0] = 3 if not counts.any() else 0  # too little to judge by
        counts += np.bincount(mask.ravel(), minlength=256)
        cv2.imwrite(str(mask_path), mask)
    assert main(['seal', str(path)]) == 0
    capsys.readouterr()
    code, figures = inspect(capsys, path)
    labels = Bundle.open(path).spec.labels.classes
    assert code == 0
    assert figures['golden_pixels'] == {
        label.name: counts[label.train_id] for label in labels}
    assert figures['unproven_classes'] == [
        label.name for label in labels if counts[label.train_id] < counts.sum() / 1000
        or not counts[label.train_id]]
    assert main(['inspect', str(path)]) == 0
    text = capsys.readouterr().out
    assert 'unproven   no golden frame shows enough' in text
    assert ('show next to nothing but road' in text) is only


def test_golden(bundle, tmp_path):
    source = write_pictures(tmp_path / 'images', 6, seed=7)
    assert main(['golden', str(bundle), '--images', str(source), '--count', '5']) == 0
    opened = Bundle.open(bundle)
    frames = list(golden.read(opened.golden_path))
    assert len(frames) == 5
    for _, image, mask in frames:
        logits = values_of(fcn(), bundle, [image])['logits'][0, 0]
        # At the centers of the stride, which upsampling leaves closest to what they were.
        large = np.stack([cv2.resize(plane, image.shape[1::-1]) for plane in logits])
        assert (mask == large.argmax(0)).mean() > 0.999


def test_golden_leaves_out_what_was_calibrated_with(tmp_path, capsys):
    source = write_pictures(tmp_path / 'images', 6)
    path = write_bundle(tmp_path / 'bundle', fcn())
    assert main(['calibrate', str(path), '--images', str(source), '--count', '4', '--golden',
                 '1']) == 0
    assert main(['golden', str(path), '--images', str(source), '--count', '3']) == 2
    assert 'images: 2 can be used, expected 3' in capsys.readouterr().err
    assert len(golden.paths(path / 'golden')) == 1
    Bundle.open(path)


def test_golden_of_a_network_that_computes_nan(tmp_path, capsys):
    model = fcn()
    weight = next(tensor for tensor in model.graph.initializer
                  if tensor.name == 'score2_bias')
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full(19, np.nan, np.float32), weight.name))
    path = write_bundle(tmp_path / 'bundle', model)
    source = write_pictures(tmp_path / 'images', 3)
    assert main(['golden', str(path), '--images', str(source), '--count', '2']) == 2
    assert not (path / 'golden').exists()


@pytest.mark.parametrize('name, step', [
    ('my network.onnx', "trt-segmentation init 'my network.onnx' BUNDLE"),
    ('Bilder Straße', "trt-segmentation preview BUNDLE --images 'Bilder Straße'"),
    ('empty', 'trt-segmentation init MODEL.onnx BUNDLE')])
def test_what_it_does_not_take_gets_what_it_takes_and_a_next_step(tmp_path, monkeypatch, capsys,
                                                                 name, step):
    monkeypatch.chdir(tmp_path)
    onnx.save(fcn(), 'my network.onnx')
    write_pictures(tmp_path / 'Bilder Straße', 1)
    (tmp_path / 'empty').mkdir()
    assert main(['inspect', name]) == 2
    error = capsys.readouterr().err
    assert f': {name}: ' in error and error.count('\n') == 1
    assert 'inspect takes a calibration cache, a bundle directory, or the directory' in error
    assert error.endswith(f'{step}\n')
