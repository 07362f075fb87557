# SPDX-License-Identifier: Apache-2.0
"""The fused kernels, compiled for the CPU, and the segmenter around them, against the CPU path."""

import gc

import cv2
from fake_gpu import compile_kernels, FakeDevice, FakeEngine, run_input
from hypothesis import assume, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from support.jpegs import with_planes

from trt_segmentation.bundles.labels import CITYSCAPES, Label, LabelSet
from trt_segmentation.bundles.spec import InputSpec, OutputSpec, Spec
from trt_segmentation.cuda import kernels
from trt_segmentation.errors import InputError
from trt_segmentation.recordings import jpeg, layouts
from trt_segmentation.recordings.layouts import CAMERAS, CHANNELS
from trt_segmentation.segmenters.gpu import CudaSegmenter
from trt_segmentation.segmenters.postprocessing import CLASSES, COLOR, CONFIDENCE, Postprocessor
from trt_segmentation.segmenters.preprocessing import Geometry, Preprocessor

ALL = (CLASSES, COLOR, CONFIDENCE)
SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))
FITS = st.sampled_from(['stretch', 'letterbox', 'crop'])


@pytest.fixture(scope='session')
def library(tmp_path_factory):
    return compile_kernels(tmp_path_factory.mktemp('kernels'))


def assume_fits(image_size, size, fit):
    try:
        Geometry.of(image_size, size, fit)
    except InputError:  # a crop of next to nothing
        assume(False)


def make_spec(size, kind='logits', upsample='half_pixel', labels=CITYSCAPES, **options):
    return Spec('model.onnx', InputSpec('data', size, **options),
                OutputSpec('logits', kind, upsample), labels)


def random_image(size, seed):
    """Return noise that is smooth in part, as images are."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (*size, 3))
    ramp = np.linspace(0, 255, size[1])[None, :, None] + np.zeros((*size, 3))
    return np.where(rng.random((*size, 1)) < .5, noise, ramp).astype(np.uint8)


def segmenter(library, spec, output, integrated=False, dtype=np.float32):
    """Return a CudaSegmenter around a network that always gives `output`."""
    device = FakeDevice(library, integrated)
    engine = FakeEngine(device, lambda tensor: {'logits': output},
                        (spec.input.tensor, (1, 3, *spec.input.size)),
                        {'logits': (output.shape, output.dtype)}, dtype)
    return CudaSegmenter(spec, engine)


@settings(max_examples=300, deadline=None)
@given(image_size=SIZES, size=SIZES, fit=FITS, seed=st.integers(0, 9),
       interpolation=st.sampled_from(['nearest', 'linear', 'area']),
       color=st.sampled_from(['bgr', 'rgb']), dtype=st.sampled_from([np.float32, np.float16]))
def test_the_input_tensor_is_the_cpu_s_within_one_step_of_uint8(
        library, image_size, size, fit, seed, interpolation, color, dtype):
    assume_fits(image_size, size, fit)
    spec = make_spec(size, fit=fit, interpolation=interpolation, color=color,
                     scale=(1, .5, 2))
    image = random_image(image_size, seed)
    tensor = np.full((1, 3, *size), np.nan, dtype)
    launch = kernels.input_launch(spec, image_size, 'bgr', tensor.dtype)
    run_input(library, launch, image, tensor)
    expected = Preprocessor(spec.input)(image, 'bgr')
    step = np.array(spec.input.scale).reshape(1, 3, 1, 1)
    rounding = 0 if dtype == np.float32 else .25  # float16 at 510
    difference = np.abs(tensor.astype(np.float64) - expected)
    assert (difference <= step + rounding + 1e-3).all()
    if interpolation == 'nearest' and dtype == np.float32:
        assert difference.max() < 1e-3
    # More than a few pixels off by one would be another formula.
    if min(size[0] * size[1], image_size[0] * image_size[1]) > 500:
        assert (difference > step / 2 + rounding).mean() < .1


@pytest.mark.parametrize('factors', [(2, 2), (4, 4), (2, 4), (4, 2), (8, 8), (3, 3), (2, 1),
                                     (1, 4)])
@pytest.mark.parametrize('color', ['bgr', 'rgb'])
def test_averages_are_rounded_as_opencv_rounds_them(library, factors, color):
    """Where no weight is rounded itself, or none of the averages is a half."""
    size = (24, 40)
    spec = make_spec(size, fit='stretch', interpolation='area', color=color, mean=(0, 0, 0),
                     scale=(1, 1, 1))
    image = np.random.default_rng(0).integers(
        0, 256, (factors[0] * size[0], factors[1] * size[1], 3), np.uint8)
    tensor = np.full((1, 3, *size), np.nan, np.float32)
    run_input(library, kernels.input_launch(spec, image.shape[:2], 'bgr', tensor.dtype), image,
              tensor)
    averages = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    assert np.array_equal(tensor[0].transpose(1, 2, 0),
                          averages if color == 'bgr' else averages[..., ::-1])


@settings(max_examples=300, deadline=None)
@given(image_size=SIZES, size=SIZES, stride_size=SIZES, fit=FITS, seed=st.integers(0, 9),
       upsample=st.sampled_from(['half_pixel', 'align_corners', 'nearest']),
       dtype=st.sampled_from([np.float32, np.float16]), classes=st.integers(1, 19))
def test_masks_of_logits_are_the_cpu_s(library, image_size, size, stride_size, fit, seed,
                                       upsample, dtype, classes):
    assume_fits(image_size, size, fit)
    labels = LabelSet(CITYSCAPES.labels[:classes])
    spec = make_spec(size, upsample=upsample, labels=labels, fit=fit)
    logits = np.random.default_rng(seed).normal(0, 3, (1, classes, *stride_size)).astype(dtype)
    cuda = segmenter(library, spec, logits, dtype=dtype)
    masks = cuda.segment(random_image(image_size, seed), ALL)
    expected = Postprocessor(spec)(logits.astype(np.float32), image_size, ALL)
    doubtful = _nearly_equal(spec, logits.astype(np.float32), image_size)
    assert (masks.classes == expected[0])[~doubtful].all()
    assert (masks.color == expected[1])[~doubtful].all()
    apart = np.abs(masks.confidence.astype(int) - expected[2])
    assert apart[~doubtful].max(initial=0) <= 1
    if apart.size > 500:
        assert (apart > 0).mean() < .05


def _nearly_equal(spec, logits, image_size):
    """Tell where the two best logits differ by less than 1e-4."""
    # 255 * tanh(100 * 1e-4 / 2) = 1.3; what the network did not see (255) is never in doubt.
    classes, _, amplified = Postprocessor(spec)(logits * 100, image_size, ALL)
    return (amplified <= 1) & (classes != 255)


@pytest.mark.parametrize('fit', ['stretch', 'letterbox', 'crop'])
@pytest.mark.parametrize('image_size', [(1080, 1920), (1024, 2048), (512, 1024), (1208, 1920)])
def test_sizes_of_real_cameras(library, image_size, fit):
    size = (512, 1024)
    seen = []
    logits = np.random.default_rng(0).normal(0, 3, (1, 19, 64, 128)).astype(np.float32)
    engine = FakeEngine(
        FakeDevice(library), lambda tensor: seen.append(tensor.copy()) or {'logits': logits},
        ('data', (1, 3, *size)), {'logits': (logits.shape, logits.dtype)})
    spec = make_spec(size, fit=fit)
    image = random_image(image_size, 0)
    masks = CudaSegmenter(spec, engine).segment(image, ALL)
    assert np.abs(seen[-1] - Preprocessor(spec.input)(image)).max() <= 1.001
    expected = Postprocessor(spec)(logits, image_size, ALL)
    doubtful = _nearly_equal(spec, logits, image_size)
    assert doubtful.mean() < .001
    assert (masks.classes == expected[0])[~doubtful].all()
    assert np.abs(masks.confidence.astype(int) - expected[2])[~doubtful].max() <= 1


@pytest.mark.parametrize('dtype', [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize('fit', ['stretch', 'letterbox', 'crop'])
@pytest.mark.parametrize('image_size', [(30, 50), (64, 20), (40, 80)])
def test_masks_of_class_ids_are_the_cpu_s(library, dtype, fit, image_size):
    labels = LabelSet((Label('a', 7, (1, 2, 3), 'x'), Label('b', 255, (9, 9, 9), 'x'),
                       Label('c', 200, (4, 5, 6), 'y')))
    spec = make_spec((40, 60), kind='class_ids', labels=labels, fit=fit)
    ids = np.random.default_rng(0).integers(0, 5, (1, 20, 30)).astype(dtype)
    if dtype != np.uint8:
        ids[0, 0, :3] = -1, 300, 2**31 - 1
    masks = segmenter(library, spec, ids).segment(random_image(image_size, 0),
                                                         (CLASSES, COLOR))
    expected = Postprocessor(spec)(ids, image_size, (CLASSES, COLOR))
    assert np.array_equal(masks.classes, expected[0])
    assert np.array_equal(masks.color, expected[1])
    assert masks.confidence is None


@pytest.mark.parametrize('integrated', [False, True])
@pytest.mark.parametrize('want', [(), (CLASSES,), (COLOR,), (CONFIDENCE,), ALL])
def test_only_what_is_wanted_comes_back(library, integrated, want):
    spec = make_spec((32, 64))
    logits = np.random.default_rng(0).normal(0, 3, (1, 19, 8, 16)).astype(np.float32)
    cuda = segmenter(library, spec, logits, integrated)
    device = cuda.engine.device
    image = random_image((40, 80), 0)
    cuda.segment(image)  # the tables of its size are there now
    device.copied_bytes.update({'to': 0, 'from': 0})
    masks = cuda.segment(image, want)
    nbytes = {CLASSES: 40 * 80, COLOR: 3 * 40 * 80, CONFIDENCE: 40 * 80}
    for name, size in nbytes.items():
        mask = getattr(masks, name)
        assert (mask is None) == (name not in (*want, CLASSES))
        assert mask is None or mask.nbytes == size
    moved = sum(nbytes[name] for name in {*want, CLASSES})
    # Where CPU and GPU share memory, nothing is copied at all.
    assert device.copied_bytes == (
        {'to': 0, 'from': 0} if integrated else {'to': 3 * 40 * 80, 'from': moved})


@pytest.mark.parametrize('integrated', [False, True])
def test_masks_last_while_somebody_has_them_and_their_memory_is_used_again(library, integrated):
    spec = make_spec((16, 32))
    logits = np.zeros((1, 19, 16, 32), np.float32)
    cuda = segmenter(library, spec, logits, integrated)
    image = random_image((16, 32), 0)
    kept = []
    for channel in range(40):  # more than are lent at a time
        logits[:] = 0
        logits[0, channel % 19] = 1
        masks = cuda.segment(image)
        kept.append((channel % 19, masks.classes[3:5], masks.color))
    for channel, view, color in kept:
        assert (view == channel).all()
        assert (color == CITYSCAPES.palette_bgr[channel]).all()
    before = len(cuda.engine.device.locked)
    kept.clear()
    del masks, view, color
    gc.collect()
    addresses = {cuda.segment(image).classes.ctypes.data for _ in range(50)}
    assert len(addresses) <= 16
    assert len(cuda.engine.device.locked) == before  # nothing new was locked


@settings(max_examples=40, deadline=None)
@given(pictures=st.lists(st.tuples(SIZES, st.sampled_from(['bgr', 'rgb']),
                                   st.sets(st.sampled_from(ALL))), min_size=1, max_size=9),
       integrated=st.booleans(), seed=st.integers(0, 9))
def test_a_batch_gives_the_masks_of_single_images(library, pictures, integrated, seed):
    """Of any sizes, channel orders and wants; the network's output depends on the image."""
    spec, rng = make_spec((16, 32)), np.random.default_rng(seed)
    weight = rng.normal(0, 1, (19, 3))
    engine = FakeEngine(
        FakeDevice(library, integrated),
        lambda tensor: {'logits': np.einsum('kc,nchw->nkhw', weight, tensor[..., ::4, ::4])},
        (spec.input.tensor, (1, 3, 16, 32)), {'logits': ((1, 19, 4, 8), np.float32)}, max_batch=4)
    cuda = CudaSegmenter(spec, engine, batch_sizes=(1, 2, 4))
    images = [random_image(size, seed + i) for i, (size, _, _) in enumerate(pictures)]
    colors, wants = [color for _, color, _ in pictures], [want for _, _, want in pictures]
    engine.batches.clear()
    together = cuda.segment_batch(images, wants, color=colors)
    assert engine.batches == [4] * (len(images) // 4) + [
        count for count in (2, 1) if len(images) % 4 & count]
    for masks, image, want, color in zip(together, images, wants, colors):
        alone = cuda.segment(image, want, color=color)
        for name in ALL:
            found, expected = getattr(masks, name), getattr(alone, name)
            assert (found is None) == (expected is None) == (name not in {*want, CLASSES})
            assert found is None or np.array_equal(found, expected)


def test_masks_that_are_kept_do_not_get_into_those_of_a_batch(library):
    """More than are lent at a time, classes and confidence of one size among them."""
    spec = make_spec((16, 32))
    engine = FakeEngine(
        FakeDevice(library), lambda tensor: {'logits': np.eye(19, dtype=np.float32)[
            round(float(tensor[0, 0, 0, 0])) % 19][None, :, None, None] * 3},
        (spec.input.tensor, (1, 3, 16, 32)), {'logits': ((1, 19, 4, 8), np.float32)}, max_batch=4)
    cuda = CudaSegmenter(spec, engine, batch_sizes=(1, 4))
    images = [np.full((16, 32, 3), value + round(spec.input.mean[0]), np.uint8)
              for value in range(4)]
    kept = [cuda.segment_batch(images, ALL) for _ in range(10)]
    for masks in kept:
        assert [np.unique(each.classes).tolist() for each in masks] == [[0], [1], [2], [3]]
        assert all(each.confidence.min() == each.confidence.max() == 231 for each in masks)


def run_conversion(library, layout, size, raw):
    """Return what the kernel makes of an image that lies between other bytes."""
    device, before = FakeDevice(library), np.arange(50, dtype=np.uint8)
    memory = np.concatenate([before, raw.ravel(), before])
    target = np.full(3 * size[0] * size[1] + 100, 0xa5, np.uint8)
    kernels.convert(device.cuda.module_from_buffer(b''), None, layout, size,
                    memory.ctypes.data + 50, target.ctypes.data + 50)
    assert (target[:50] == 0xa5).all() and (target[-50:] == 0xa5).all()
    return target[50:-50].reshape(*size, 3)


@settings(max_examples=500, deadline=None)
@given(layout=st.sampled_from(sorted(CAMERAS)), height=st.integers(1, 70),
       width=st.integers(1, 300), seed=st.integers(0, 99), extreme=st.booleans())
def test_what_a_camera_gives_becomes_opencv_s_bgr_bit_for_bit(library, layout, height, width,
                                                              seed, extreme):
    """Of all sizes, odd ones of mosaics too; noise, or nothing but the least and the most."""
    even_height, even_width = CAMERAS[layout].even
    size = height + height % 2 * even_height, width + width % 2 * even_width
    raw = np.random.default_rng(seed).integers(0, 256, layouts.shape(size, layout), np.uint8)
    if extreme:
        raw = np.where(raw < 128, 0, 255).astype(np.uint8)
    expected = cv2.cvtColor(raw, CAMERAS[layout].code)
    assert np.array_equal(run_conversion(library, layout, size, raw), expected)


@pytest.mark.parametrize('layout', ['uyvy', 'nv12'])
def test_every_luma_with_every_chroma_becomes_opencv_s_bgr(library, layout):
    u, v, y = np.indices((256, 256, 256), np.uint8).reshape(3, -1, 4)
    if layout == 'uyvy':
        pairs = np.stack([u[:, ::2], y[:, ::2], v[:, ::2], y[:, 1::2]], -1)
        size, raw = (4096, 4096), pairs.reshape(4096, 4096, 2)
    else:
        # Two rows of luma with two of its values each, for one chroma.
        size = 4096, 4096
        luma = y.reshape(2048, 2048, 2, 2).swapaxes(1, 2).reshape(size)
        chroma = np.stack([u[:, 0], v[:, 0]], -1).reshape(2048, 4096)
        raw = np.concatenate([luma, chroma])
    expected = cv2.cvtColor(raw, CAMERAS[layout].code)
    assert np.array_equal(run_conversion(library, layout, size, raw), expected)


@settings(max_examples=150, deadline=None)
@given(sampling=st.sampled_from(sorted(jpeg.PLAIN)), height=st.integers(1, 70),
       width=st.integers(5, 200), seed=st.integers(0, 9), extreme=st.booleans())
def test_the_planes_of_a_jpeg_become_libjpeg_s_bgr_bit_for_bit(library, sampling, height, width,
                                                               seed, extreme):
    """Of pictures that are put together of planes that libjpeg decodes one by one."""
    rng, size = np.random.default_rng(seed), (height, width)
    planes = [rng.integers(0, 256, each, np.uint8) for each in jpeg.plane_sizes(size, sampling)]
    if extreme:
        planes = [np.where(plane < 128, 0, 255).astype(np.uint8) for plane in planes]
    if sampling == jpeg.GRAY:
        expected = np.dstack(planes * 3)
    else:
        data, planes = with_planes(planes, sampling)
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    raw = np.concatenate([plane.ravel() for plane in planes])
    assert np.array_equal(run_conversion(library, sampling, size, raw), expected)


@settings(max_examples=60, deadline=None)
@given(pictures=st.lists(st.tuples(st.sampled_from(['bgr', 'rgb', *sorted(CAMERAS)]), SIZES,
                                   st.integers(0, 9)), min_size=1, max_size=6),
       integrated=st.booleans(), seed=st.integers(0, 9))
def test_cameras_images_have_the_tensor_and_masks_of_their_bgr(library, pictures, integrated,
                                                               seed):
    """In batches of all layouts, with rows of any step; only their own bytes are copied."""
    spec, rng, seen = make_spec((16, 32)), np.random.default_rng(seed), []
    device = FakeDevice(library, integrated)
    weight = rng.normal(0, 1, (19, 3))

    def network(tensor):
        seen.append(tensor.copy())
        return {'logits': np.einsum('kc,nchw->nkhw', weight, tensor[..., ::4, ::4])}

    engine = FakeEngine(device, network, (spec.input.tensor, (1, 3, 16, 32)),
                        {'logits': ((1, 19, 4, 8), np.float32)}, max_batch=8)
    cuda = CudaSegmenter(spec, engine, batch_sizes=(1, 2, 4, 8))  # keeps tables of eight sizes
    assert cuda.layouts == set(CAMERAS)
    images, colors = [], [color for color, _, _ in pictures]
    for color, (height, width), padding in pictures:
        shape = layouts.shape((2 * height, 2 * width), color)
        images.append(rng.integers(0, 256, (shape[0], shape[1] + padding, *shape[2:]),
                                   np.uint8)[:, :shape[1]])
    channels = [image if color in CHANNELS else cv2.cvtColor(image, CAMERAS[color].code)
                for image, color in zip(images, colors)]
    cuda.segment_batch(images, ALL, color=colors)  # buffers and tables are there now
    seen.clear()
    device.copied_bytes['to'] = 0
    together = cuda.segment_batch(images, ALL, color=colors)
    tensors = seen.copy()
    assert device.copied_bytes['to'] == (0 if integrated else sum(each.size for each in images))
    for masks, tensor, image, color in zip(together, tensors, channels, colors):
        seen.clear()
        expected = cuda.segment(image, ALL, color=color if color in CHANNELS else 'bgr')
        assert np.array_equal(seen[0], tensor)
        for name in ALL:
            assert np.array_equal(getattr(masks, name), getattr(expected, name))


def test_a_layout_that_the_gpu_converts_otherwise_is_left_to_opencv(library, monkeypatch, caplog):
    """The masks stay those of the CPU path, and it is said."""
    convert = kernels.convert

    def swapped(module, stream, layout, *arguments):
        convert(module, stream, {'nv12': 'nv21'}.get(layout, layout), *arguments)

    monkeypatch.setattr(kernels, 'convert', swapped)
    spec, seen = make_spec((16, 32)), []
    engine = FakeEngine(
        FakeDevice(library), lambda tensor: seen.append(tensor.copy()) or {
            'logits': np.zeros((1, 19, 4, 8), np.float32)},
        ('data', (1, 3, 16, 32)), {'logits': ((1, 19, 4, 8), np.float32)})
    cuda = CudaSegmenter(spec, engine)
    assert cuda.layouts == set(CAMERAS) - {'nv12'}
    said, = caplog.messages
    assert said.startswith('nv12: the GPU does not convert it as OpenCV')
    raw = np.random.default_rng(0).integers(0, 256, (24, 32), np.uint8)
    cuda.segment(raw, color='nv12')
    cuda.segment(cv2.cvtColor(raw, cv2.COLOR_YUV2BGR_NV12))
    assert np.array_equal(seen[-2], seen[-1])


def test_masks_outlive_the_segmenter(library):
    spec = make_spec((16, 32))
    cuda = segmenter(library, spec, np.ones((1, 19, 16, 32), np.float32))
    masks = cuda.segment(random_image((16, 32), 0))
    cuda.close()
    cuda.close()
    del cuda
    gc.collect()
    assert (masks.classes == 0).all()


def test_changing_sizes_do_not_pile_up_device_memory(library):
    spec = make_spec((16, 32))
    cuda = segmenter(library, spec, np.ones((1, 19, 4, 8), np.float32))
    counts = []
    for i in range(30):
        cuda.segment(random_image((20 + i % 7, 40 + i), 0))
        counts.append(len(cuda.engine.device.memory))
    assert max(counts[10:]) == min(counts[10:])


def test_rows_of_any_stride_are_read(library):
    spec = make_spec((16, 32))
    seen = []
    device = FakeDevice(library)
    engine = FakeEngine(
        device, lambda tensor: seen.append(tensor.copy()) or {
            'logits': np.zeros((1, 19, 4, 8), np.float32)},
        ('data', (1, 3, 16, 32)), {'logits': ((1, 19, 4, 8), np.float32)})
    cuda = CudaSegmenter(spec, engine)
    image = random_image((300, 500), 0)
    padded = np.zeros((300, 520, 3), np.uint8)
    padded[:, :500] = image
    for view in (image, padded[:, :500], image[::-1][::-1], np.asfortranarray(image)):
        cuda.segment(view)
        expected = Preprocessor(spec.input)(np.ascontiguousarray(view))
        assert np.abs(seen[-1] - expected).max() <= 1.001


def test_wrong_use_is_an_error(library):
    cuda = segmenter(library, make_spec((16, 32)), np.ones((1, 19, 4, 8), np.float32))
    image = random_image((16, 32), 0)
    for arguments, options, part in (
            ((image,), {'color': 'gbr'}, "color: found 'gbr'"), ((image, ('depth',)), {}, 'want'),
            ((image[..., 0],), {}, 'expected uint8'), ((image,), {'color': 'nv12'}, 'even width'),
            ((image.astype(float),), {}, 'uint8')):
        with pytest.raises(InputError, match=part):
            cuda.segment(*arguments, **options)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('stride', [1, 4])
@pytest.mark.parametrize('dtype', [np.float32, np.float16])
def test_logits_that_are_not_finite_make_no_mask(library, value, stride, dtype):
    spec = make_spec((16, 32))
    logits = np.ones((1, 19, 16 // stride, 32 // stride), dtype)
    cuda = segmenter(library, spec, logits)
    logits[0, 11, 1, 5] = value
    for _ in range(2):
        with pytest.raises(InputError, match='not finite'):
            cuda.segment(random_image((16, 32), 0))
    logits[0, 11, 1, 5] = 2
    assert 11 in cuda.segment(random_image((16, 32), 0)).classes


@pytest.mark.parametrize('shape, dtype, part', [
    ((1, 20, 4, 8), np.float32, r'expected logits \(1, 19, h, w\)'),
    ((19, 4, 8), np.float32, r'expected logits'),
    ((1, 19, 4, 8), np.int8, 'gives int8'),
])
def test_an_engine_that_does_not_fit_the_spec_is_refused(library, shape, dtype, part):
    with pytest.raises(InputError, match=part):
        segmenter(library, make_spec((16, 32)), np.zeros(shape, dtype))
