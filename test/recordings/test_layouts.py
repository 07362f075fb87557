# SPDX-License-Identifier: Apache-2.0
"""Images as cameras give them: their shapes, their channels, and a few of their pixels."""

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from trt_segmentation.errors import InputError
from trt_segmentation.recordings import layouts
from trt_segmentation.recordings.layouts import CAMERAS, CHANNELS

# What each is in the words of V4L2: the shape of an image of 4 rows and 6 columns.
SHAPES = {'bgr': (4, 6, 3), 'rgb': (4, 6, 3), 'uyvy': (4, 6, 2), 'yuyv': (4, 6, 2),
          'nv12': (6, 6), 'nv21': (6, 6), 'bayer_rggb': (4, 6), 'bayer_bggr': (4, 6),
          'bayer_gbrg': (4, 6), 'bayer_grbg': (4, 6)}


def of_one_color(layout, rgb, size):
    """Return an image of one color, by OpenCV's way to YUV or by the letters of the mosaic."""
    height, width = size
    if layout in CHANNELS:
        return np.full((*size, 3), rgb if layout == 'rgb' else rgb[::-1], np.uint8)
    if layout.startswith('bayer'):
        tile = np.array(['rgb'.index(letter) for letter in layout[-4:]]).reshape(2, 2)
        return np.array(rgb, np.uint8)[np.tile(tile, (height // 2, width // 2))]
    plane = cv2.cvtColor(np.full((2, 2, 3), rgb, np.uint8), cv2.COLOR_RGB2YUV_I420)
    y, u, v = plane[0, 0], plane[2, 0], plane[2, 1]
    if layout.startswith('nv'):
        chroma = (u, v) if layout == 'nv12' else (v, u)
        return np.vstack([np.full(size, y), np.tile(np.array(chroma), (height // 2, width // 2))])
    four = {'uyvy': (u, y, v, y), 'yuyv': (y, u, y, v)}[layout]
    return np.tile(np.array(four), (height, width // 2)).reshape(height, width, 2)


def test_each_layout_has_its_shape_and_size():
    assert set(SHAPES) == {*CHANNELS, *CAMERAS}
    for layout, shape in SHAPES.items():
        assert layouts.shape((4, 6), layout) == shape
        image = np.zeros(shape, np.uint8)
        layouts.check(image, layout)
        assert layouts.size(image, layout) == (4, 6)


@pytest.mark.parametrize(('shape', 'dtype', 'layout', 'part'), [
    ((4, 6, 3), np.uint8, 'gbr', "color: found 'gbr', expected one of bgr, rgb, uyvy"),
    ((4, 6, 3), np.uint8, 'uyvy', r'expected uint8 \(height, even width, 2\), found uint8 \(4, 6'),
    ((4, 7, 2), np.uint8, 'yuyv', 'even width'),
    ((4, 6, 2), np.uint8, 'bgr', r'expected uint8 \(height, width, 3\)'),
    ((4, 6), np.uint8, 'rgb', 'expected uint8'),
    ((5, 6), np.uint8, 'nv12', r'expected uint8 \(height \* 3 / 2, even width\)'),
    ((7, 6), np.uint8, 'nv12', 'height'), ((6, 5), np.uint8, 'nv21', 'even width'),
    ((6, 6, 1), np.uint8, 'nv12', 'height'), ((6,), np.uint8, 'nv12', 'height'),
    ((0, 6), np.uint8, 'nv12', 'height'),
    ((4, 6, 1), np.uint8, 'bayer_rggb', r'expected uint8 \(height, width\)'),
    ((4, 6), np.uint16, 'bayer_rggb', 'found uint16'),
])
def test_another_shape_or_type_is_an_error(shape, dtype, layout, part):
    with pytest.raises(InputError, match=part):
        layouts.check(np.zeros(shape, dtype), layout)


def test_what_is_no_array_is_an_error():
    with pytest.raises(InputError, match='found list'):
        layouts.check([[1, 2]], 'nv12')


@settings(deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.tuples(*[st.integers(0, 255)] * 3))
def test_an_image_of_one_color_has_it_as_channels_and_in_its_sample(layout, rgb):
    image = of_one_color(layout, rgb, (8, 12))
    layouts.check(image, layout)
    # OpenCV rounds each of Y, U and V, and BT.601 stretches them by up to 2.
    within = 3 if layout in ('uyvy', 'yuyv', 'nv12', 'nv21') else 0
    channels, order = layouts.to_channels(image, layout)
    assert (channels is image) == (layout in CHANNELS)
    for pixels, its in ((channels, order), (layouts.sample(image, layout, 3, 4), order),
                        (layouts.as_bgr(image, layout), 'bgr')):
        assert pixels.dtype == np.uint8 and pixels.shape[2:] == (3,)
        found = pixels if its == 'rgb' else pixels[..., ::-1]
        assert np.abs(found.astype(int) - rgb).max() <= within


@settings(deadline=None)
@given(layout=st.sampled_from(sorted(SHAPES)), height=st.integers(1, 70), width=st.integers(1, 70),
       steps=st.tuples(*[st.integers(1, 9)] * 2), padding=st.integers(0, 9),
       seed=st.integers(0, 99))
def test_a_sample_has_pixels_of_the_image(layout, height, width, steps, padding, seed):
    """Those of channels and YUV exactly; a mosaic's are averages of other neighbours."""
    even_height, even_width = CAMERAS[layout].even if layout in CAMERAS else (False, False)
    height, width = height + height % 2 * even_height, width + width % 2 * even_width
    shape = layouts.shape((height, width), layout)
    image = np.random.default_rng(seed).integers(
        0, 256, (shape[0], shape[1] + padding, *shape[2:]), np.uint8)[:, :width]
    layouts.check(image, layout)
    found = layouts.sample(image, layout, *steps)
    whole = layouts.to_channels(image, layout)[0]
    if layout in CHANNELS:
        assert np.array_equal(found, whole[::steps[0], ::steps[1]])
        return
    firsts = [np.arange(0, max(length // 2 * 2, 1), step + step % 2)
              for length, step in zip((height, width), steps)]
    assert found.shape == (2 * len(firsts[0]), 2 * len(firsts[1]), 3)
    if layout.startswith('bayer'):
        assert min(found.shape[:2]) < 3 or image.min() <= found.min() <= found.max() <= image.max()
    else:
        assert np.array_equal(found[::2, ::2], whole[np.ix_(*firsts)])
        assert np.array_equal(found[::2, 1::2], whole[np.ix_(firsts[0], firsts[1] + 1)])
