# SPDX-License-Identifier: Apache-2.0
"""The input tensor against OpenCV and against literal formulas, for every way there is to fit."""

from fractions import Fraction
import itertools

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from trt_segmentation.bundles.spec import InputSpec
from trt_segmentation.errors import InputError
from trt_segmentation.segmenters.preprocessing import Geometry, Preprocessor

FITS = ('stretch', 'letterbox', 'crop')
INTERPOLATIONS = ('nearest', 'linear', 'area')
MEAN, SCALE = (71.6, 82.1, 72.31), (0.017, -1.0, 1 / 58.395)
NETWORK = (24, 48)
# Network size, odd sizes, the same aspect, upright, a line, a pixel, one larger in one direction.
SIZES = ((24, 48), (31, 57), (48, 96), (97, 41), (3, 40), (1, 1), (24, 60), (101, 300))


def picture(size, seed=0):
    """A smooth picture with some noise: resizing has something to get wrong everywhere."""
    height, width = size
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(size)
    waves = [127 + 80 * np.sin(7 * y + i) * np.cos(5 * x - i) for i in range(3)]
    return np.clip(np.stack(waves, -1) + rng.normal(0, 20, (height, width, 3)), 0, 255
                   ).astype(np.uint8)


def spec(fit='stretch', interpolation='linear', color='bgr', size=NETWORK, mean=MEAN,
         scale=SCALE):
    return InputSpec('data', size, color, mean, scale, fit, interpolation)


def expected_geometry(image, network, fit):
    """(resized height, width, top, left) in exact arithmetic; top, left are where it begins."""
    if fit == 'stretch':
        return (*network, 0, 0)
    ratios = [Fraction(n, i) for n, i in zip(network, image)]
    ratio = min(ratios) if fit == 'letterbox' else max(ratios)
    sides = [max(1, int(side * ratio + Fraction(1, 2))) for side in image]
    return (*sides, *[(n - s) // 2 for n, s in zip(network, sides)])


def resize_axis(image, length, interpolation, axis):
    """Resize one axis by the formula of the interpolation, in float64."""
    image = np.moveaxis(image.astype(np.float64), axis, 0)
    n, ratio = len(image), len(image) / length
    result = []
    for i in range(length):
        if interpolation == 'nearest':
            result.append(image[(2 * i + 1) * n // (2 * length)])  # floor((i + 1/2) * ratio)
        elif interpolation == 'area' and ratio > 1:  # mean over what the pixel covers
            low, high = i * ratio, (i + 1) * ratio
            cover = [max(0, min(high, j + 1) - max(low, j)) for j in range(n)]
            result.append(np.tensordot(np.array(cover) / ratio, image, 1))
        else:  # half-pixel centers
            at = min(max((i + .5) * ratio - .5, 0), n - 1)
            j = min(int(at), n - 1)
            result.append(image[j] * (1 - at + j) + image[min(j + 1, n - 1)] * (at - j))
    return np.moveaxis(np.array(result), 0, axis)


def ties(n, length):
    """Where two source pixels are equally near: either one is right."""
    return [i for i in range(length) if (2 * i + 1) * n % (2 * length) == 0]


def literal_tensor(image, s, color):
    """The whole preprocessing in float64: what the spec says, word for word."""
    rows, columns, top, left = expected_geometry(image.shape[:2], s.size, s.fit)
    resized = resize_axis(resize_axis(image, rows, s.interpolation, 0),
                          columns, s.interpolation, 1)
    if color != s.color:
        resized = resized[..., ::-1]
    tensor = np.zeros((1, 3, *s.size))
    for y, x in itertools.product(range(s.size[0]), range(s.size[1])):
        if 0 <= y - top < rows and 0 <= x - left < columns:
            tensor[0, :, y, x] = (resized[y - top, x - left] - s.mean) * np.array(s.scale)
    return tensor


# Enlarging by area is OpenCV's own invention: the next test holds it to OpenCV.
CASES = [(size, fit, interpolation)
         for size, fit, interpolation in itertools.product(SIZES, FITS, INTERPOLATIONS)
         if interpolation != 'area' or all(
             new <= old for new, old in zip(expected_geometry(size, NETWORK, fit), size))]


@pytest.mark.parametrize(('size', 'fit', 'interpolation'), CASES)
def test_tensor_is_the_literal_formula(size, fit, interpolation):
    s = spec(fit, interpolation)
    image = picture(size)
    tensor = Preprocessor(s)(image)
    assert tensor.dtype == np.float32
    assert tensor.shape == (1, 3, *NETWORK)
    steps = np.abs(tensor - literal_tensor(image, s, 'bgr')) / np.abs(SCALE).reshape(1, 3, 1, 1)
    if interpolation == 'nearest':
        rows, columns, top, left = expected_geometry(size, NETWORK, fit)
        steps[:, :, [y + top for y in ties(size[0], rows) if 0 <= y + top < NETWORK[0]]] = 0
        steps[..., [x + left for x in ties(size[1], columns) if 0 <= x + left < NETWORK[1]]] = 0
    # OpenCV resizes 8-bit images in fixed point and rounds once: one step of 255.
    assert steps.max() <= (0.001 if interpolation == 'nearest' else 1.0)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize(('interpolation', 'flag'), [
    ('nearest', cv2.INTER_NEAREST_EXACT), ('linear', cv2.INTER_LINEAR), ('area', cv2.INTER_AREA)])
@pytest.mark.parametrize('color', ['bgr', 'rgb'])
def test_tensor_is_what_opencv_and_numpy_give(size, fit, interpolation, flag, color):
    s = spec(fit, interpolation, color)
    image = picture(size)
    rows, columns, top, left = expected_geometry(size, NETWORK, fit)
    if size == (1, 1):  # which OpenCV 4.5 does not take
        resized = np.tile(image, (rows, columns, 1))
    else:
        resized = cv2.resize(image, (columns, rows), interpolation=flag)
    whole = np.zeros((*NETWORK, 3))
    normalized = (resized[..., ::1 if color == 'bgr' else -1] - np.array(MEAN)) * SCALE
    y, x = max(top, 0), max(left, 0)
    part = normalized[max(-top, 0):, max(-left, 0):][:NETWORK[0], :NETWORK[1]]
    whole[y:y + part.shape[0], x:x + part.shape[1]] = part
    found = Preprocessor(s)(image)
    np.testing.assert_allclose(found[0].transpose(1, 2, 0), whole, rtol=1e-5, atol=1e-4)


def test_an_image_of_the_networks_size_is_not_resampled():
    image = picture(NETWORK)
    for fit, interpolation in itertools.product(FITS, INTERPOLATIONS):
        tensor = Preprocessor(spec(fit, interpolation))(image)
        exact = ((image - np.array(MEAN)) * SCALE).transpose(2, 0, 1)[None]
        np.testing.assert_allclose(tensor, exact, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize('network_color', ['bgr', 'rgb'])
def test_the_images_color_order_changes_nothing_but_the_order(network_color):
    image = picture((31, 57))
    preprocess = Preprocessor(spec(color=network_color))
    bgr = preprocess(image, 'bgr')
    np.testing.assert_array_equal(preprocess(image[..., ::-1], 'rgb'), bgr)
    assert not np.array_equal(preprocess(image, 'rgb'), bgr)


def test_mean_and_scale_are_in_the_tensors_color_order():
    blue = np.full((*NETWORK, 3), (200, 0, 0), np.uint8)
    tensor = Preprocessor(spec(color='rgb', mean=(1, 2, 3), scale=(10, 100, 1000)))(blue)
    np.testing.assert_allclose(tensor[0, :, 0, 0], [-10, -200, 197000])


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 130), st.integers(1, 130)),
       st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from(FITS))
def test_geometry_is_the_exact_one(image, network, fit):
    try:
        geometry = Geometry.of(image, network, fit)
    except InputError:
        ratio = Fraction(image[0] * network[1], image[1] * network[0])
        assert fit == 'crop'
        assert max(ratio, 1 / ratio) > 16
        return
    rows, columns, _, _ = expected_geometry(image, network, fit)
    # A side of exactly n + 1/2 pixels may be rounded either way, and moves by half of that.
    assert abs(geometry.resized[0] - rows) <= 1
    assert abs(geometry.resized[1] - columns) <= 1
    for begin, side, of in zip((geometry.top, geometry.left), geometry.resized, network):
        assert abs(begin + side / 2 - of / 2) <= 0.5  # centered
    on_network, on_resized = geometry.on_network, geometry.on_resized
    for axis in range(2):
        covered = on_network[axis]
        assert 0 <= covered.start < covered.stop <= network[axis]
        assert on_resized[axis].stop - on_resized[axis].start == covered.stop - covered.start
        if fit == 'letterbox':
            assert covered.stop - covered.start == geometry.resized[axis]
        else:
            assert covered == slice(0, network[axis])
    if fit != 'stretch':
        ratio = (min if fit == 'letterbox' else max)(n / i for n, i in zip(network, image))
        for side, of in zip(geometry.resized, image):
            assert abs(side - of * ratio) <= 0.5 or side == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(FITS),
       st.sampled_from(INTERPOLATIONS), st.sampled_from(['bgr', 'rgb']),
       st.sampled_from(['whole', 'step', 'reversed', 'part']))
def test_any_size_and_any_strides(height, width, fit, interpolation, color, layout):
    if fit == 'crop':
        width = min(max(width, height // 8), height * 32)
        height = min(height, width * 8)
    backing = np.random.default_rng(height * 100 + width).integers(
        0, 256, (height + 4, (width + 4) * 2, 3), dtype=np.uint8)
    image = {
        'whole': np.ascontiguousarray(backing[:height, :width]),
        'step': backing[:height, 2:width + 2],
        'reversed': backing[:height, :width][::-1, ::-1, ::-1],
        'part': backing[2:height + 2, 1:2 * width + 1:2],
    }[layout]
    preprocess = Preprocessor(spec(fit, interpolation, size=(16, 32)))
    out = np.full((1, 3, 16, 32), np.nan, np.float32)
    found = preprocess(image, color, out)
    assert found is out
    assert np.isfinite(out).all()  # every pixel was written
    np.testing.assert_array_equal(out, preprocess(image.copy(), color))


def test_letterbox_pads_with_zero_even_where_the_buffer_was_used_before():
    preprocess = Preprocessor(spec('letterbox'))
    out = preprocess(picture(NETWORK))
    preprocess(picture((48, 48)), 'bgr', out)
    np.testing.assert_array_equal(out[..., :12], 0)
    np.testing.assert_array_equal(out[..., 36:], 0)
    assert np.abs(out[..., 12:36]).min() > 0


def test_a_line_would_need_absurd_memory_under_crop():
    with pytest.raises(InputError, match=r'1x5000'):
        Preprocessor(spec('crop'))(np.zeros((5000, 1, 3), np.uint8))


@pytest.mark.parametrize('image', [
    np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32),
    np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0, 3), np.uint8), [[[1, 2, 3]]], None])
def test_anything_else_than_an_image_is_refused(image):
    with pytest.raises(InputError, match=r'expected uint8 \(height, width, 3\), found'):
        Preprocessor(spec())(image)


def test_an_unknown_color_order_is_refused():
    with pytest.raises(InputError, match=r"'gray'.*one of bgr, rgb"):
        Preprocessor(spec())(picture(NETWORK), 'gray')
