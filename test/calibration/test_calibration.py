# SPDX-License-Identifier: Apache-2.0
"""Calibrating a bundle, against the values that the network really computes."""

import json
from pathlib import Path
import shlex
import signal
import subprocess
import sys

import cv2
import numpy as np
import onnx
from onnx import numpy_helper, TensorProto
import pytest
from support.calibration import pictures, run, values_of, write_pictures
from support.entropy import literal_divergences
from support.networks import Builder, fcn, write_bundle

from trt_segmentation import calibrate
from trt_segmentation.bundles import form
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import Cache
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.calibration import methods
from trt_segmentation.calibration.histogram import Histogram
from trt_segmentation.cli import main
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine, quantized_network
from trt_segmentation.errors import InputError
from trt_segmentation.segmenters.cpu import CpuSegmenter


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / 'bundle', fcn())


@pytest.mark.parametrize('opset', [12, 13, 17, 18, 21])
def test_min_max_is_the_largest_magnitude_of_each_tensor(tmp_path, opset):
    model = fcn()
    model.opset_import[0].version = opset
    bundle = write_bundle(tmp_path / 'bundle', model)
    images = pictures(7)
    result = run(bundle, images, method='minmax')
    values = values_of(model, bundle, images)
    assert set(result.cache.scales) == set(values)
    for name, value in values.items():
        if name != 'image':
            assert result.cache.amax(name) == pytest.approx(np.abs(value).max(), rel=1e-5), name


def test_weights_that_are_inputs_too_change_nothing(bundle, tmp_path):
    model = onnx.load(bundle / 'model.onnx')
    for tensor in model.graph.initializer:
        model.graph.input.insert(0, onnx.helper.make_tensor_value_info(
            tensor.name, tensor.data_type, tensor.dims))
    other = write_bundle(tmp_path / 'other', model)
    images = pictures(6)
    results = [run(path, images, count=4, golden=2, equalize='auto') for path in (bundle, other)]
    assert results[0].cache == results[1].cache
    for path in (bundle, other):
        assert main(['build', str(path), '--store', str(tmp_path / 'store'), '--allow-float']) == 0


def test_names_are_in_the_order_of_the_graph(bundle):
    names = list(run(bundle, pictures(2)).cache.scales)
    produced = [name for node in fcn().graph.node for name in node.output]
    assert names == ['image', *produced]


def test_image_input_has_its_known_range(tmp_path):
    bundle = write_bundle(tmp_path / 'bundle', fcn(),
                          input={'mean': [10, 20, 200], 'scale': [1, 2, 0.5]})
    result = run(bundle, pictures(2))
    assert result.cache.amax('image') == pytest.approx((255 - 20) * 2)
    assert result.manifest.tensors['image'].method == 'fixed'


def test_entropy_is_the_literal_algorithm_on_the_values(bundle):
    images = pictures(5)
    result = run(bundle, images, method='entropy')
    values = values_of(fcn(), bundle, images)
    for name in ('relu1', 'score3'):
        magnitudes = np.abs(values[name]).astype(np.float64)
        width = 2.0 ** np.floor(np.log2(magnitudes.max() / 2047.5))
        if magnitudes.max() // width >= 4095:
            width *= 2
        counts = np.bincount((magnitudes.ravel() / width).astype(int))
        assert 2048 <= len(counts) <= 4095
        literal = literal_divergences(methods.without_zero_spike(counts)[:700].tolist())
        assert np.isfinite(literal).any()
        kept = methods.entropy_bins(counts)
        expected = min((kept + 0.5) * width, magnitudes.max())
        assert result.cache.amax(name) == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize('percentile', [90, 99, 99.9, 100])
def test_percentile_is_that_of_the_values(bundle, percentile):
    images = pictures(5)
    result = run(bundle, images, method='percentile', percentile=percentile)
    values = values_of(fcn(), bundle, images)
    for name in ('relu2', 'score2'):
        magnitudes = np.abs(values[name])
        expected = np.percentile(magnitudes, percentile, method='inverted_cdf')
        assert result.cache.amax(name) == pytest.approx(
            expected, abs=float(magnitudes.max()) / 1024)


@pytest.mark.parametrize('method', ['mse', 'entropy', 'percentile', 'minmax'])
def test_neither_order_nor_batch_size_matters(bundle, method):
    images = pictures(11)
    first = run(bundle, images, method=method, batch_size=5).cache.to_bytes()
    assert run(bundle, images, method=method, batch_size=1).cache.to_bytes() == first
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(images))
        assert run(bundle, [images[i] for i in order], method=method).cache.to_bytes() == first


def test_fixed_batch_of_one_gives_the_same(tmp_path):
    fixed = fcn()
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    images = pictures(4)
    caches = [run(write_bundle(tmp_path / str(i), model), images).cache.to_bytes()
              for i, model in enumerate((fcn(), fixed))]
    assert caches[0] == caches[1]


def test_same_seed_same_files(bundle, tmp_path):
    source = write_pictures(tmp_path / 'images', 30)
    caches, lists = [], []
    for seed in (1, 1, 2):
        result = calibrate(bundle, source, count=10, golden=2, seed=seed, report=False)
        caches.append((bundle / 'calibration.cache').read_bytes())
        lists.append([image.name for image in result.manifest.images])
    assert caches[0] == caches[1] != caches[2]
    assert lists[0] == lists[1] != lists[2]


def test_golden_frames_are_held_out_and_have_the_float_masks(bundle, tmp_path):
    source = write_pictures(tmp_path / 'images', 14, size=(50, 80))
    result = calibrate(bundle, source, count=6, report=False)
    used = {image.sha256 for image in result.manifest.images}
    held_out = {image.sha256 for image in result.manifest.golden}
    assert len(used) == 6 and len(held_out) == 8 and not used & held_out
    opened = Bundle.open(bundle)  # verifies SHA256SUMS
    engine = OnnxRuntimeEngine(opened.model_path)
    originals = {cv2.imread(str(path)).tobytes() for path in source.iterdir()}
    with CpuSegmenter(opened.spec, engine) as segmenter:
        for i in range(8):
            image = cv2.imread(str(bundle / f'golden/{i:03d}.png'))
            assert image.tobytes() in originals
            mask = cv2.imread(str(bundle / f'golden/{i:03d}.mask.png'), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(mask, segmenter.segment(image).classes)


def test_manifest_tells_what_was_done(bundle, tmp_path):
    source = write_pictures(tmp_path / 'images', 8)
    (source / 'broken.png').write_bytes(b'')
    result = calibrate(bundle, source, count=6, golden=2, method='percentile', percentile=99.5,
                       seed=3, batch_size=4, report=False)
    document = json.loads((bundle / 'calibration.json').read_text())
    assert document == form.plain(result.manifest)
    assert document['counts'] == {'asked': 6, 'used': 6, 'golden': 2,
                                  'skipped': len(document['skipped'])}
    assert document['method'] == 'percentile' and document['parameters'] == {'percentile': 99.5}
    assert (document['seed'], document['batch_size']) == (3, 4)
    cache = cache_of(Bundle.open(bundle))
    for name, tensor in document['tensors'].items():
        assert tensor['scale'] == cache.scales[name]
        assert tensor['threshold'] == pytest.approx(cache.amax(name))
        assert tensor['amax'] >= tensor['threshold'] * 0.999 or tensor['method'] == 'fixed'


def test_clipped_share_is_that_of_the_values(bundle):
    images = pictures(5)
    result = run(bundle, images, method='percentile', percentile=99)
    value = np.abs(values_of(fcn(), bundle, images)['relu1'])
    tensor = result.manifest.tensors['relu1']
    assert tensor.clipped == pytest.approx((value > tensor.threshold).mean(), abs=1e-3)


@pytest.mark.parametrize('largest', [1.0, 0.7, 3.0])
def test_a_threshold_at_the_largest_value_clips_nothing(largest):
    values = np.linspace(0, largest, 1000, dtype=np.float32)
    histogram = Histogram()
    histogram.add(values, largest)
    for threshold in (methods.find('minmax', histogram, percentile=100),
                      methods.fixed(largest, histogram)):
        assert threshold.value == largest and threshold.clipped == 0
    assert methods.fixed(largest / 2, histogram).clipped == pytest.approx(0.5, abs=0.01)


def test_given_range_of_a_tensor(tmp_path):
    bundle = write_bundle(tmp_path / 'bundle', fcn(),
                          calibration={'ranges': {'relu2': 3.5, 'logits': 20}})
    cache = run(bundle, pictures(3)).cache
    assert cache.amax('relu2') == pytest.approx(3.5) and cache.amax('logits') == pytest.approx(20)


def test_whole_range_of_one_tensor(tmp_path):
    images = pictures(3)
    bundle = write_bundle(tmp_path / 'bundle', fcn(),
                          calibration={'ranges': {'relu2': 'minmax', 'image': 'minmax'}})
    cache = run(bundle, images, method='percentile', percentile=50).cache
    values = values_of(fcn(), bundle, images)
    for name in ('relu2', 'image'):
        assert cache.amax(name) == pytest.approx(np.abs(values[name]).max(), rel=1e-5)
    assert cache.amax('relu3') < 0.9 * np.abs(values['relu3']).max()


def test_tensor_without_a_scale(tmp_path):
    bundle = write_bundle(tmp_path / 'bundle', fcn(),
                          calibration={'ranges': {'relu3': 'float'}})
    result = run(bundle, pictures(3))
    assert 'relu3' not in result.cache.scales and 'relu2' in result.cache.scales
    layers = quantized_network(Bundle.open(bundle), 'tensorrt').layers
    assert {layer.name: layer.reason for layer in layers}['score3_node'] == (
        "no scale for tensor 'relu3'")


def test_given_range_of_no_tensor(tmp_path):
    bundle = write_bundle(tmp_path / 'bundle', fcn(), calibration={'ranges': {'relu9': 3.5}})
    with pytest.raises(InputError, match="calibration.ranges: the network has no.*'relu9'"):
        run(bundle, pictures(3))


def test_excluded_layer_is_still_covered(tmp_path):
    bundle = write_bundle(tmp_path / 'bundle', fcn(), calibration={'exclude': ['score3_node']})
    result = run(bundle, pictures(3))
    assert 'score3' in result.cache.scales
    assert cache_of(Bundle.open(bundle))


def test_tensor_of_zeros_gets_a_usable_scale(tmp_path):
    model = fcn()
    for tensor in model.graph.initializer:
        if tensor.name in ('relu3_conv_weight', 'relu3_conv_bias'):
            tensor.CopyFrom(numpy_helper.from_array(
                np.zeros(tensor.dims, np.float32), tensor.name))
    result = run(write_bundle(tmp_path / 'bundle', model), pictures(3))
    assert not result.cache.unusable()
    assert result.manifest.tensors['relu3'].method == 'constant'


def logarithmic():
    """Return a network whose input must be positive: zero gives -inf, less gives nan."""
    b = Builder()
    x = b.node('Log', ['image'], 'log')
    x = b.conv(x, 'logits', 3, 19)
    return b.model(x, shape=['N', 19, 32, 64])


@pytest.mark.parametrize('pixel, kind', [(9, 'nan'), (10, 'infinity')])
def test_image_that_the_network_fails_on_is_skipped(tmp_path, pixel, kind):
    bundle = write_bundle(tmp_path / 'bundle', logarithmic(), input={'mean': [10, 10, 10]})
    good = [np.maximum(image, 20) for image in pictures(4)]
    bad = good[0].copy()
    bad[3, 5] = pixel
    expected = run(bundle, good).cache.to_bytes()
    result = run(bundle, [good[0], bad, *good[1:]], count=4)
    assert result.cache.to_bytes() == expected
    (skipped,) = result.manifest.skipped
    assert skipped.name == '000001' and kind in skipped.reason
    assert "'log'" in skipped.reason


def test_network_that_fails_on_every_image(tmp_path):
    bundle = write_bundle(tmp_path / 'bundle', logarithmic(), input={'mean': [300, 300, 300]})
    with pytest.raises(InputError, match="images: 0 can be used.*computes nan in tensor 'log'"):
        run(bundle, pictures(3))


def assert_untouched(bundle):
    """Assert that a bundle holds its network and nothing else that shows."""
    assert sorted(path.name for path in bundle.iterdir()
                  if path.name != '.lock') == ['model.onnx', 'model.yaml']


@pytest.mark.parametrize('options, message', [
    ({'count': 0}, 'count: found 0'), ({'batch_size': 0}, 'batch size: found 0'),
    ({'golden': -1}, 'golden: found -1'), ({'percentile': 0}, 'percentile: found 0'),
    ({'method': 'best'}, "method: found 'best'"),
])
def test_wrong_options(bundle, options, message):
    with pytest.raises(InputError, match=message):
        run(bundle, pictures(3), **options)
    assert_untouched(bundle)


def test_fewer_images_than_asked_for(bundle):
    with pytest.raises(InputError, match='images: 5 can be used, expected 6 to calibrate with'):
        run(bundle, pictures(5), count=6)
    assert_untouched(bundle)
    assert run(bundle, pictures(5), count=6, allow_fewer=True).manifest.counts.used == 5


def test_fewer_images_than_asked_for_leave_some_to_calibrate_with(bundle, tmp_path):
    source = write_pictures(tmp_path / 'images', 10)
    counts = calibrate(bundle, source, allow_fewer=True, report=False).manifest.counts
    assert (counts.golden, counts.used) == (2, 8)


@pytest.mark.parametrize('array', [
    np.zeros((32, 64), np.uint8), np.zeros((32, 64, 3), np.float32),
    np.zeros((0, 64, 3), np.uint8), np.zeros((32, 64, 4), np.uint8), 'text',
])
def test_arrays_that_are_no_images_are_skipped(bundle, array):
    result = run(bundle, [*pictures(3), array], allow_fewer=True)
    assert [skipped.name for skipped in result.manifest.skipped] == ['000003']


def test_half_precision_network(tmp_path):
    b = Builder()
    b.input = onnx.helper.make_tensor_value_info('image', TensorProto.FLOAT, ['N', 3, 32, 64])
    x = b.node('Cast', ['image'], 'half', to=TensorProto.FLOAT16)
    x = b.node('Cast', [x], 'float', to=TensorProto.FLOAT)
    x = b.conv(x, 'logits', 3, 19)
    bundle = write_bundle(tmp_path / 'bundle', b.model(x, shape=['N', 19, 32, 64]))
    with pytest.raises(InputError, match="tensor 'half' is FLOAT16; expected a float32 network"):
        run(bundle, pictures(2))


def test_float16_weights_behind_a_cast(tmp_path):
    # Weights stored in half precision are widened once; their layer stays in float.
    b = Builder()
    x = b.conv_relu('image', 'relu1', 3, 8)
    weight = b.constant('half_weight', np.ones((19, 8, 1, 1), np.float16))
    wide = b.node('Cast', [weight], 'weight', to=TensorProto.FLOAT)
    b.node('Conv', [x, wide], 'logits', kernel_shape=[1, 1])
    bundle = write_bundle(tmp_path / 'bundle', b.model('logits', shape=['N', 19, 32, 64]))
    result = run(bundle, pictures(2))
    assert set(result.cache.scales) == {'image', 'relu1_conv', 'relu1', 'logits'}


def test_network_with_two_inputs(tmp_path):
    model = fcn()
    model.graph.input.append(onnx.helper.make_tensor_value_info('speed', TensorProto.FLOAT, [1]))
    bundle = write_bundle(tmp_path / 'bundle', model, input={'tensor': 'image'})
    with pytest.raises(InputError, match="inputs 'image' and 'speed'"):
        run(bundle, pictures(2))


def test_network_with_a_fixed_batch_of_five(tmp_path):
    model = fcn()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 5
    bundle = write_bundle(tmp_path / 'bundle', model)
    with pytest.raises(InputError, match='fixed batch size of 5'):
        run(bundle, pictures(2))


def test_network_of_dynamic_size(tmp_path):
    model = fcn()
    for value, names in zip((*model.graph.input, *model.graph.output), ('hw', 'yx')):
        for dimension, name in zip(value.type.tensor_type.shape.dim[2:], names):
            dimension.dim_param = name
    images = pictures(4)
    dynamic = run(write_bundle(tmp_path / 'dynamic', model, input={'size': [32, 64]}), images)
    static = run(write_bundle(tmp_path / 'static', fcn()), images)
    assert dynamic.cache == static.cache


def test_network_with_nothing_to_quantize(tmp_path):
    b = Builder(channels=3)
    b.transposed('image', 'logits', 3, 19)
    bundle = write_bundle(tmp_path / 'bundle', b.model('logits', shape=['N', 19, 64, 128]))
    with pytest.raises(InputError, match='no layer can be quantized'):
        run(bundle, pictures(2))
    assert_untouched(bundle)


def test_network_with_external_weights(tmp_path):
    # A bundle's network is one file, so that one hash vouches for it; init makes it so.
    bundle = write_bundle(tmp_path / 'bundle', fcn())
    onnx.save(fcn(), bundle / 'model.onnx', save_as_external_data=True, location='weights.bin',
              size_threshold=0)
    assert (bundle / 'weights.bin').stat().st_size > 0
    with pytest.raises(InputError, match='trt-segmentation init'):
        run(bundle, pictures(2))
    images = pictures(4)
    made = tmp_path / 'made'
    assert main(['init', str(bundle / 'model.onnx'), str(made), '--labels', 'cityscapes']) == 0
    assert run(made, images).cache == run(write_bundle(tmp_path / 'inside', fcn()), images).cache


def class_id_network():
    """Return a network that gives class ids."""
    model = fcn()
    graph = model.graph
    graph.node.append(onnx.helper.make_node('ArgMax', ['logits'], ['ids'], name='ids', axis=1,
                                            keepdims=0))
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info('ids', TensorProto.INT64,
                                                           ['N', 8, 16]))
    return model


def test_class_id_output_needs_no_scale(tmp_path):
    bundle = write_bundle(tmp_path / 'bundle', class_id_network(), output={'kind': 'class_ids'})
    cache = run(bundle, pictures(3)).cache
    assert 'ids' not in cache.scales and 'logits' in cache.scales


def test_class_ids_without_a_label_are_refused(tmp_path):
    labels = [{'name': f'c{i}', 'train_id': i, 'color': [i, i, i]} for i in range(2)]
    bundle = write_bundle(tmp_path / 'bundle', class_id_network(), output={'kind': 'class_ids'},
                          labels=labels)
    with pytest.raises(InputError, match=r'gives class \d+, but .*model.yaml has labels for 0..1'):
        calibrate(bundle, pictures(4), count=3, golden=1)
    assert not (bundle / 'golden').exists()


def test_what_a_killed_calibration_left_goes_with_the_next(bundle):
    left = Path(bundle) / '.golden.0123456789ab'
    left.mkdir()
    (left / '000.png').touch()
    run(bundle, pictures(2))
    assert not left.exists()


def test_two_calibrations_at_once(bundle):
    with Bundle.changing(bundle, ()), pytest.raises(InputError, match='in use by another process'):
        run(bundle, pictures(2))
    assert_untouched(bundle)


@pytest.mark.parametrize('library', ['onnx', 'onnxruntime', 'matplotlib', 'jinja2', 'tqdm'])
def test_missing_library_is_named_with_what_brings_it(tmp_path, library):
    bundle = write_bundle(tmp_path / 'bundle', fcn(), input={'tensor': 'image', 'size': [32, 64]},
                          output={'tensor': 'logits'})
    source = write_pictures(tmp_path / 'images', 4)
    code = ('import sys; sys.modules[sys.argv.pop(1)] = None\n'
            'from trt_segmentation.cli import main; sys.exit(main())')
    done = subprocess.run([sys.executable, '-c', code, library, 'calibrate', bundle, '--images',
                           source, '--count', '2', '--golden', '1'], capture_output=True,
                          text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2, done.stderr
    assert f"Python module '{library}'" in done.stderr.splitlines()[-1]
    assert "pip install '.[cpu]'" in done.stderr
    assert_untouched(bundle)


def test_what_there_is_decides_how_much_there_is_to_do(bundle, tmp_path):
    said, steps, expected = [], [], {}
    calibrate(bundle, write_pictures(tmp_path / 'images', 10), golden=8, report=False,
              say=said.append, progress=lambda *step: steps.append(step),
              expect=expected.__setitem__)
    assert '8 golden frames are too many of 10 images: a fifth of them, 2, is held out' in said
    assert {**expected, 'equalizing': 0} == {'golden frames': 2, 'calibrating': 8, 'equalizing': 0}
    for stage, number in expected.items():
        assert [step for step in steps if step[0] == stage] == [
            (stage, i) for i in range(1, number + 1)]


COMMAND = [sys.executable, '-m', 'trt_segmentation', 'calibrate']


def test_command(bundle, tmp_path):
    source = write_pictures(tmp_path / 'images', 12)
    done = subprocess.run([*COMMAND, bundle, '--images', source, '--count', '10', '--golden', '2',
                           '--format', 'json'], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == json.loads((bundle / 'calibration.json').read_text())
    assert '12 pictures from' in done.stderr and '%|' not in done.stderr
    assert Cache.read(bundle / 'calibration.cache').usable()
    page = (bundle / 'calibration.html').read_text()
    assert page.startswith('<!DOCTYPE html>') and 'src="http' not in page


@pytest.mark.parametrize('largest', ['calibration.cache', 'calibration.html'])
def test_full_disk_leaves_the_old_calibration(bundle, tmp_path, largest):
    source = write_pictures(tmp_path / 'images', 12)
    arguments = [bundle, '--images', source, '--count', '10', '--golden', '2']
    subprocess.run([*COMMAND, *arguments], check=True, capture_output=True)
    before = {path: path.read_bytes() for path in Path(bundle).rglob('*') if path.is_file()}
    # No file may reach the size of this one: writing fails as on a full disk, with another errno.
    limit = (Path(bundle) / largest).stat().st_size // 1024
    limited = f'ulimit -f {limit}; exec {shlex.join(map(str, [*COMMAND, *arguments]))} --seed 5'
    done = subprocess.run(['bash', '-c', limited], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert 'cannot be written' in done.stderr.splitlines()[-1]
    after = {path: path.read_bytes() for path in Path(bundle).rglob('*') if path.is_file()}
    assert after == before
    Bundle.open(bundle)


# Its images do not end before it is interrupted, however fast the machine is.
INTERRUPTED = """
import signal
import sys
import numpy as np
from trt_segmentation import calibrate

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

def images():
    random = np.random.default_rng(0)
    for _ in range(20):
        yield random.integers(0, 256, (32, 64, 3), np.uint8)
    print('in the middle', flush=True)
    sys.stdin.read()

calibrate(sys.argv[1], images(), count=30, golden=2)
"""


def test_interruption_leaves_the_old_calibration(bundle):
    with subprocess.Popen([sys.executable, '-c', INTERRUPTED, bundle], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b'in the middle\n'
        process.send_signal(signal.SIGINT)
        assert b'KeyboardInterrupt' in process.stderr.read()
    assert_untouched(bundle)


def test_it_says_what_it_replaces(tmp_path, capsys):
    bundle = write_bundle(tmp_path / 'bundle', fcn())
    images = [write_pictures(tmp_path / f'pictures{seed}', 9, seed=seed) for seed in range(2)]

    def said(*words, of=0):
        assert main(['calibrate', str(bundle), '--images', str(images[of]), '--no-report', *words]
                    ) == 0
        return [line for line in capsys.readouterr().err.splitlines() if ' replaces ' in line]

    assert said('--count', '6', '--golden', '3') == []
    assert said('--count', '2', '--extend', '--golden', '0', of=1) == []
    date = json.loads((bundle / 'calibration.json').read_text())['date']
    assert said('--count', '4', '--golden', '0') == [
        f'trt-segmentation calibrate: replaces the calibration of {date} with 8 images; --extend '
        'adds to it instead']
    (line,) = said('--count', '4', '--golden', '2')
    assert 'with 4 images and 3 golden frames; --extend' in line
    assert main(['golden', str(bundle), '--images', str(images[1]), '--count', '1']) == 0
    assert 'golden: replaces 2 golden frames\n' in capsys.readouterr().err
    (bundle / 'calibration.json').write_text('{}')
    (bundle / 'calibration.npz').unlink()
    (line,) = said('--count', '4', '--golden', '2')
    assert line.endswith('replaces a calibration whose manifest cannot be read and 1 golden frame')
