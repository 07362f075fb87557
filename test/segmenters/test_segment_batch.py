# SPDX-License-Identifier: Apache-2.0
"""Several images at once on the CPU: the masks of each are those that it has alone."""

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from support.networks import Builder, fcn, write_bundle

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.errors import InputError
from trt_segmentation.recordings import layouts
from trt_segmentation.recordings.layouts import CAMERAS
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.segmenter import CLASSES, COLOR, CONFIDENCE, largest

ALL = (CLASSES, COLOR, CONFIDENCE)
# By the names in OpenCV's documentation; its Bayer patterns begin at the second row and column.
CODES = {'uyvy': cv2.COLOR_YUV2BGR_UYVY, 'yuyv': cv2.COLOR_YUV2BGR_YUYV,
         'nv12': cv2.COLOR_YUV2BGR_NV12, 'nv21': cv2.COLOR_YUV2BGR_NV21,
         'bayer_rggb': cv2.COLOR_BayerBG2BGR, 'bayer_bggr': cv2.COLOR_BayerRG2BGR,
         'bayer_gbrg': cv2.COLOR_BayerGR2BGR, 'bayer_grbg': cv2.COLOR_BayerGB2BGR}
SIZES = st.tuples(st.integers(1, 80), st.integers(1, 80))
PICTURES = st.lists(st.tuples(SIZES, st.sampled_from(['bgr', 'rgb']),
                              st.sets(st.sampled_from(ALL))), max_size=7)


class Counting:
    """An engine that notes the batches it was given."""

    def __init__(self, engine):
        self.backend, self.precision = engine.backend, engine.precision
        self.batches, self._engine, self.close = [], engine, engine.close

    def infer(self, tensor):
        self.batches.append(len(tensor))
        return self._engine.infer(tensor)


@pytest.fixture(scope='module')
def segmenter(tmp_path_factory):
    bundle = Bundle.open(write_bundle(tmp_path_factory.mktemp('fcn'), fcn()))
    engine = Counting(OnnxRuntimeEngine(bundle.model_path))
    with CpuSegmenter(bundle.spec, engine, batch_sizes=(1, 2, 4)) as result:
        yield result


@settings(max_examples=50, deadline=None)
@given(pictures=PICTURES, seed=st.integers(0, 99))
def test_masks_are_those_of_each_image_alone_bit_for_bit(segmenter, pictures, seed):
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size, _, _ in pictures]
    colors, wants = [color for _, color, _ in pictures], [want for _, _, want in pictures]
    segmenter.engine.batches.clear()
    together = segmenter.segment_batch(images, wants, color=colors)
    left = len(images) % 4
    assert segmenter.engine.batches == (
        [4] * (len(images) // 4) + [2] * (left > 1) + [1] * (left % 2))
    assert len(together) == len(images)
    for masks, image, want, color in zip(together, images, wants, colors):
        alone = segmenter.segment(image, want, color=color)
        for name in ALL:
            found, expected = getattr(masks, name), getattr(alone, name)
            assert (found is None) == (expected is None) == (name not in {*want, CLASSES})
            assert found is None or np.array_equal(found, expected)


@settings(deadline=None)
@given(st.sampled_from(sorted(CAMERAS)), st.integers(1, 40), st.integers(1, 40),
       st.integers(0, 99))
def test_as_a_camera_gives_it_an_image_has_the_masks_of_its_bgr(segmenter, layout, rows, columns,
                                                               seed):
    code, size = CODES[layout], (2 * rows, 2 * columns)
    image = np.random.default_rng(seed).integers(0, 256, layouts.shape(size, layout), np.uint8)
    found = segmenter.segment(image, ALL, color=layout)
    expected = segmenter.segment(cv2.cvtColor(image, code), ALL)
    for name in ALL:
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    assert found.classes.shape == size


def test_one_want_and_one_color_are_for_all(segmenter):
    images = [np.full((20, 30, 3), value, np.uint8) for value in (0, 100, 200)]
    for masks, image in zip(segmenter.segment_batch(images, (CONFIDENCE,), color='rgb'), images):
        alone = segmenter.segment(image, (CONFIDENCE,), color='rgb')
        assert masks.color is None and np.array_equal(masks.confidence, alone.confidence)
        assert np.array_equal(masks.classes, alone.classes)
    assert segmenter.segment_batch([]) == []


@pytest.mark.parametrize(('images', 'want', 'color', 'part'), [
    ([(9, 9, 3)] * 2, [(CLASSES,)], 'bgr', 'want: found 1 for 2 images'),
    ([(9, 9, 3)] * 2, ALL, ['bgr'] * 3, 'color: found 3 for 2 images'),
    ([(9, 9, 3)] * 2, ALL, ['bgr', 'gbr'], "color: found 'gbr'"),
    ([(9, 9, 3)] * 2, [ALL, ('depth',)], 'bgr', "want: found 'depth'"),
    ([(9, 9, 3), (9, 9)], ALL, 'bgr', 'expected uint8'),
    ([(9, 8, 2), (9, 9, 2)], ALL, 'uyvy', 'even width'),
    ([(9, 9, 3), (0, 9, 3)], ALL, 'bgr', 'expected uint8'),
])
def test_wrong_use_is_an_error_before_any_work(segmenter, images, want, color, part):
    segmenter.engine.batches.clear()
    with pytest.raises(InputError, match=part):
        segmenter.segment_batch([np.zeros(shape, np.uint8) for shape in images], want, color=color)
    assert segmenter.engine.batches == []


def test_an_engine_that_gives_another_number_of_outputs_is_an_error(tmp_path):
    builder = Builder()
    builder.node('ReduceMax', ['image'], 'least', axes=[0], keepdims=1)  # over the batch
    builder.conv('least', 'logits', 3, 19, kernel=1)
    bundle = Bundle.open(write_bundle(tmp_path, builder.model('logits')))
    with (CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path), batch_sizes=(1, 2))
          as segmenter, pytest.raises(InputError, match='for a batch of 2')):
        segmenter.segment_batch([np.zeros((9, 9, 3), np.uint8)] * 2)


@given(st.sets(st.integers(2, 16)), st.integers(1, 40))
def test_the_largest_batch_that_is_filled_is_taken(sizes, waiting):
    offered = (1, *sorted(sizes))
    size = largest(offered, waiting)
    assert size in offered and size <= waiting
    assert not any(size < other <= waiting for other in offered)
