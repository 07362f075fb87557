# SPDX-License-Identifier: Apache-2.0
"""Masks from logits: against a literal formula, against ONNX Runtime, and in their place."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import onnx
from onnx import helper, TensorProto
import onnxruntime
import pytest

from trt_segmentation.bundles.labels import CITYSCAPES, IGNORE, Label, LabelSet
from trt_segmentation.bundles.spec import InputSpec, OutputSpec, Spec
from trt_segmentation.errors import InputError
from trt_segmentation.segmenters.postprocessing import CLASSES, COLOR, CONFIDENCE, Postprocessor
from trt_segmentation.segmenters.preprocessing import Geometry, Preprocessor

UPSAMPLES = ('half_pixel', 'align_corners', 'nearest')
ALL = (CLASSES, COLOR, CONFIDENCE)


def spec(size=(32, 64), upsample='half_pixel', kind='logits', labels=CITYSCAPES, fit='stretch'):
    return Spec('model.onnx', InputSpec('data', size, fit=fit),
                OutputSpec('logits', kind, upsample), labels)


def some_logits(shape, seed=0, classes=19):
    return np.random.default_rng(seed).normal(0, 3, (1, classes, *shape)).astype(np.float32)


def upsampled(logits, size, upsample):
    """Upsample (C, h, w) in float64 by the formula of ONNX's operator Resize."""
    result = logits.astype(np.float64)
    for axis, length in ((1, size[0]), (2, size[1])):
        n = result.shape[axis]
        i = np.arange(length)
        if upsample == 'nearest':
            result = result.take((2 * i + 1) * n // (2 * length), axis)
            continue
        if upsample == 'half_pixel':
            at = (i + 0.5) * n / length - 0.5
        else:
            at = i * (n - 1) / max(length - 1, 1)
        at = at.clip(0, n - 1)
        low = np.floor(at).astype(int)
        weight = (at - low).reshape([-1 if a == axis else 1 for a in range(3)])
        high = np.minimum(low + 1, n - 1)
        result = result.take(low, axis) * (1 - weight) + result.take(high, axis) * weight
    return result


def lead(planes):
    """The best channel of (C, H, W), and how far it leads the second."""
    order = np.sort(planes, 0)
    return planes.argmax(0), order[-1] - order[-2]


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)),
       st.tuples(st.integers(1, 50), st.integers(1, 50)),
       st.sampled_from(UPSAMPLES), st.integers(0, 99))
def test_classes_are_those_of_the_literal_formula(shape, size, upsample, seed):
    # Logits larger than the network's size come from no real network, but must not go wrong.
    logits = some_logits(shape, seed)
    expected, margin = lead(upsampled(logits[0], size, upsample))
    if upsample == 'nearest':  # where two logits are equally near, either is right
        margin[[i for i in range(size[0]) if (2 * i + 1) * shape[0] % (2 * size[0]) == 0]] = 0
        margin[:, [i for i in range(size[1]) if (2 * i + 1) * shape[1] % (2 * size[1]) == 0]] = 0
    classes, _, _ = Postprocessor(spec(size, upsample))(logits, size, (CLASSES,))
    assert classes.dtype == np.uint8
    assert classes.shape == size
    np.testing.assert_array_equal(classes[margin > 1e-4], expected[margin > 1e-4])


@pytest.mark.parametrize(('upsample', 'attributes'), [
    ('half_pixel', {'mode': 'linear', 'coordinate_transformation_mode': 'half_pixel'}),
    ('align_corners', {'mode': 'linear', 'coordinate_transformation_mode': 'align_corners'}),
    ('nearest', {'mode': 'nearest', 'coordinate_transformation_mode': 'half_pixel'}),
])
@pytest.mark.parametrize('factor', [2, 4, 8])
def test_classes_are_those_of_onnx_runtimes_resize(upsample, attributes, factor):
    shape, size = (16, 33), (16 * factor, 33 * factor)
    node = helper.make_node('Resize', ['logits', '', '', 'sizes'], ['large'], **attributes)
    graph = helper.make_graph(
        [node], 'resize',
        [helper.make_tensor_value_info('logits', TensorProto.FLOAT, [1, 19, *shape])],
        [helper.make_tensor_value_info('large', TensorProto.FLOAT, [1, 19, *size])],
        [helper.make_tensor('sizes', TensorProto.INT64, [4], [1, 19, *size])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    onnx.checker.check_model(model)
    logits = some_logits(shape)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected, margin = lead(session.run(None, {'logits': logits})[0][0])
    classes, _, _ = Postprocessor(spec(size, upsample))(logits, size, (CLASSES,))
    assert np.mean(margin > 1e-4) > 0.99
    np.testing.assert_array_equal(classes[margin > 1e-4], expected[margin > 1e-4])


def regions(shape, seed, classes=19, share=0.1):
    """Logits with regions, so that most cells have one largest channel, and some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 5, (classes, 1 + shape[0] // 8, 1 + shape[1] // 8))
    logits = coarse.repeat(8, 1).repeat(8, 2)[:, :shape[0], :shape[1]]
    logits = logits + rng.normal(0, 0.3, logits.shape)
    noisy = rng.random(shape) < share / 4
    logits[:, noisy] = rng.normal(0, 5, (classes, noisy.sum()))
    return logits.astype(np.float32)[None]


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.sampled_from([2, 4, 6, 8, 16]),
       st.integers(0, 10**6), st.sampled_from([0, 0.02, 0.1, 0.3]))
def test_masks_with_regions_are_those_of_the_literal_formula(shape, factor, seed, share):
    """Most of such a mask is not interpolated at all; the result must not show it."""
    logits = regions(shape, seed, share=share)
    size = shape[0] * factor, shape[1] * factor
    expected, margin = lead(upsampled(logits[0], size, 'half_pixel'))
    classes, _, _ = Postprocessor(spec(size))(logits, size, (CLASSES,))
    np.testing.assert_array_equal(classes[margin > 1e-4], expected[margin > 1e-4])
    # The margin needs every pixel interpolated: another way to the same classes.
    also, _, _ = Postprocessor(spec(size))(logits, size, (CLASSES, CONFIDENCE))
    np.testing.assert_array_equal(classes[margin > 1e-4], also[margin > 1e-4])


@pytest.mark.parametrize('factor', [1, 2, 3, 4, 5])
def test_between_equal_logits_the_first_channel_wins(factor):
    logits = np.zeros((1, 19, 9, 11), np.float32)
    logits[0, [4, 9], :, :5] = 3
    logits[0, [2, 4, 9], :, 5:] = 3
    size = 9 * factor, 11 * factor
    classes, _, _ = Postprocessor(spec(size))(logits, size, (CLASSES,))
    assert set(np.unique(classes)) == {2, 4}
    assert (classes[:, -factor:] == 2).all()
    assert (classes[:, :factor] == 4).all()


def test_a_class_that_is_nowhere_the_largest_logit_can_win_between_them():
    logits = np.full((1, 19, 2, 2), -9, np.float32)
    logits[0, 0] = [[10, 0], [10, 0]]
    logits[0, 1] = 9
    logits[0, 2] = [[0, 10], [0, 10]]
    classes, _, _ = Postprocessor(spec((8, 8)))(logits, (8, 8), (CLASSES,))
    assert list(classes[0]) == [0, 0, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize('upsample', UPSAMPLES)
@pytest.mark.parametrize('factor', [1, 2, 4, 8])
def test_classes_are_the_same_whatever_else_is_wanted(upsample, factor):
    """Three planes of one slope tie along lines, where the last bit of a sum decides."""
    rng = np.random.default_rng(factor)
    height, width = 24, 32
    y, x = np.mgrid[:height, :width]
    for _ in range(20):
        slope, shift = rng.normal(0, 1, 2)
        planes = np.stack([slope * x + shift, slope * y + shift, slope * (31 - x) + shift])
        logits = np.full((1, 19, height, width), -1e3, np.float32)
        logits[0, rng.permutation(19)[:3]] = planes
        size = (height * factor, width * factor)
        post = Postprocessor(spec(size, upsample))
        alone, *_ = post(logits, size, (CLASSES,))
        for want in ((CLASSES, COLOR), (CLASSES, CONFIDENCE), ALL):
            np.testing.assert_array_equal(post(logits, size, want)[0], alone)


def test_equal_logits_give_the_first_channel_as_argmax_does():
    logits = np.zeros((1, 19, 4, 8), np.float32)
    logits[0, [5, 7, 11]] = 1
    classes, _, confidence = Postprocessor(spec((4, 8)))(logits, (4, 8), ALL)
    np.testing.assert_array_equal(classes, 5)
    np.testing.assert_array_equal(confidence, 0)


@pytest.mark.parametrize('scale', [0.01, 1, 30, 1e30])
def test_confidence_is_the_lead_of_the_softmax(scale):
    logits = some_logits((8, 16)) * np.float32(scale)
    _, _, confidence = Postprocessor(spec((8, 16)))(logits, (8, 16), (CONFIDENCE,))
    exponents = logits[0].astype(np.float64) - logits[0].max(0)
    shares = np.sort(np.exp(exponents) / np.exp(exponents).sum(0), 0)
    expected = 255 * (shares[-1] - shares[-2]) / (shares[-1] + shares[-2])
    assert confidence.dtype == np.uint8
    assert np.abs(confidence - expected).max() <= 0.501


def test_color_is_the_palette_of_the_classes():
    logits = some_logits((16, 32))
    classes, color, _ = Postprocessor(spec())(logits, (31, 63), ALL)
    by_id = {label.train_id: label.color[::-1] for label in CITYSCAPES.labels}
    assert color.shape == (31, 63, 3)
    for train_id in np.unique(classes):
        np.testing.assert_array_equal(np.unique(color[classes == train_id], axis=0),
                                      [by_id[train_id]])


def test_channels_map_to_their_train_ids_whatever_the_order():
    labels = LabelSet((Label('background', IGNORE, (0, 0, 0), 'void'),
                       Label('car', 13, (0, 0, 142), 'vehicle'),
                       Label('road', 0, (128, 64, 128), 'flat'),
                       Label('lane', 0, (128, 64, 128), 'flat')))
    logits = np.full((1, 4, 1, 4), -1, np.float32)
    logits[0, [0, 1, 2, 3], 0, [0, 1, 2, 3]] = 1
    classes, color, _ = Postprocessor(spec((1, 4), labels=labels))(logits, (1, 4), ALL)
    np.testing.assert_array_equal(classes, [[IGNORE, 13, 0, 0]])
    np.testing.assert_array_equal(
        color, [[[0, 0, 0], [142, 0, 0], [128, 64, 128], [128, 64, 128]]])


@pytest.mark.parametrize('dtype', [np.int32, np.int64, np.uint8])
@pytest.mark.parametrize('rank', [3, 4])
def test_class_ids_are_taken_as_they_are(dtype, rank):
    ids = np.random.default_rng(0).integers(0, 19, (8, 16)).astype(dtype)
    output = ids.reshape((1,) * (rank - 2) + ids.shape)
    process = Postprocessor(spec((16, 32), kind='class_ids'))
    classes, _, _ = process(output, (16, 32), (CLASSES, COLOR))
    np.testing.assert_array_equal(classes, ids.repeat(2, 0).repeat(2, 1))


def test_class_ids_say_nothing_of_how_sure_the_network_is():
    process = Postprocessor(spec((16, 32), kind='class_ids'))
    with pytest.raises(InputError, match="confidence, but output 'logits' is class ids"):
        process(np.zeros((1, 8, 16), np.uint8), (16, 32), ALL)


def test_class_ids_that_are_no_channel_are_ignored():
    ids = np.array([[[0, 18, 19, 254, 255, 256, 300, -1, -255, 2**40]]])
    process = Postprocessor(spec((1, 10), kind='class_ids'))
    classes, _, _ = process(ids, (1, 10), (CLASSES,))
    np.testing.assert_array_equal(classes, [[0, 18] + [IGNORE] * 8])


# A network that sees where the image is bright, and nothing else: its mask must lie exactly on
# what was bright in the image, whatever was done to the image on its way in.
BRIGHT = LabelSet((Label('dark', 3, (0, 0, 0), 'a'), Label('bright', 8, (255, 255, 255), 'b')))
IMAGE_SIZES = ((64, 128), (63, 127), (51, 201), (201, 51), (65, 131), (7, 13), (480, 640),
               (128, 256), (33, 33))


def bright_network(tensor, stride):
    brightness = tensor.mean(1, keepdims=True)
    n, _, height, width = brightness.shape
    brightness = brightness.reshape(n, 1, height // stride, stride, width // stride, stride)
    brightness = brightness.mean((3, 5))
    return np.concatenate([-brightness, brightness], 1).astype(np.float32)


@pytest.mark.parametrize('fit', ['stretch', 'letterbox', 'crop'])
@pytest.mark.parametrize('size', IMAGE_SIZES)
@pytest.mark.parametrize('stride', [1, 8])
def test_masks_lie_on_what_they_mask(fit, size, stride):
    height, width = size
    network = (64, 128)
    top, bottom, left, right = height // 4, height * 2 // 3, width // 3, width * 3 // 4
    image = np.zeros((*size, 3), np.uint8)
    image[top:bottom, left:right] = 255
    s = Spec('model.onnx', InputSpec('data', network, mean=(127.5,) * 3, fit=fit),
             OutputSpec('logits'), BRIGHT)
    output = bright_network(Preprocessor(s.input)(image), stride)
    classes, color, confidence = Postprocessor(s)(output, size, ALL)
    assert classes.shape == size
    assert confidence.shape == size
    assert color.shape == (*size, 3)

    # Where the network looked, from the definition of the fits.
    ratios = [n / i for n, i in zip(network, size)]
    ratio = {'stretch': ratios, 'letterbox': [min(ratios)] * 2, 'crop': [max(ratios)] * 2}[fit]
    seen = [min(i, n / r) for n, i, r in zip(network, size, ratio)]
    ys, xs = np.mgrid[:height, :width] + 0.5
    outside = (np.abs(ys - height / 2) > seen[0] / 2 + 1) | (
        np.abs(xs - width / 2) > seen[1] / 2 + 1)
    inside = (np.abs(ys - height / 2) < seen[0] / 2 - 1) & (
        np.abs(xs - width / 2) < seen[1] / 2 - 1)
    assert (classes[outside] == IGNORE).all()
    assert (confidence[outside] == 0).all()
    assert (classes[inside] != IGNORE).all()
    # A border may move by the rounding of the geometry and by half of what one logit covers.
    reach = [1.5 + (stride / 2 + 0.5) / r for r in ratio]
    edge = (np.minimum(abs(ys - top), abs(ys - bottom)) < reach[0]) | (
        np.minimum(abs(xs - left), abs(xs - right)) < reach[1])
    bright = (ys > top) & (ys < bottom) & (xs > left) & (xs < right)
    judged = inside & ~edge
    np.testing.assert_array_equal(classes[judged], np.where(bright, 8, 3)[judged])
    # And it may not move to one side: the mask's center of mass is the rectangle's.
    found = classes == 8
    if fit != 'crop' and min(size) > 30 and stride == 1:
        assert abs(ys[found].mean() - (top + bottom) / 2) <= 0.5 + 0.5 / ratio[0]
        assert abs(xs[found].mean() - (left + right) / 2) <= 0.5 + 0.5 / ratio[1]


def test_without_resizing_masks_are_exact():
    size = (64, 128)
    image = np.random.default_rng(0).integers(0, 2, (*size, 1), np.uint8).repeat(3, 2) * 255
    s = Spec('model.onnx', InputSpec('data', size, mean=(127.5,) * 3), OutputSpec('logits'),
             BRIGHT)
    output = bright_network(Preprocessor(s.input)(image), 1)
    classes, _, _ = Postprocessor(s)(output, size, (CLASSES,))
    np.testing.assert_array_equal(classes, np.where(image[..., 0], 8, 3))


def test_what_is_not_wanted_is_not_made():
    process = Postprocessor(spec())
    assert process(some_logits((8, 16)), (32, 64), (CLASSES,))[1:] == (None, None)
    assert process(some_logits((8, 16)), (32, 64), (COLOR,))[2] is None


@pytest.mark.parametrize(('kind', 'output'), [
    ('logits', np.zeros((1, 18, 8, 16), np.float32)),
    ('logits', np.zeros((2, 19, 8, 16), np.float32)),
    ('logits', np.zeros((19, 8, 16), np.float32)),
    ('class_ids', np.zeros((1, 2, 8, 16), np.int64)),
    ('class_ids', np.zeros((2, 8, 16), np.int64)),
    ('class_ids', np.zeros((16,), np.int64)),
])
def test_another_shape_is_refused(kind, output):
    with pytest.raises(InputError, match=r"output 'logits': expected .* found shape \("):
        Postprocessor(spec(kind=kind))(output, (32, 64), (CLASSES,))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_refused(value):
    """Nan compares with nothing, so a mask of it would be all road."""
    logits = some_logits((8, 16))
    logits[0, 3, 4, 5] = value
    with pytest.raises(InputError, match=r"output 'logits'.*not finite"):
        Postprocessor(spec())(logits, (32, 64), (CLASSES,))


def test_geometry_and_masks_agree_on_what_was_seen():
    geometry = Geometry.of((480, 640), (64, 128), 'crop')
    assert geometry.resized == (96, 128)
    output = some_logits((64, 128))
    classes, _, _ = Postprocessor(spec((64, 128), fit='crop'))(output, (480, 640), (CLASSES,))
    unseen = (classes == IGNORE).all(1)
    assert unseen[:80].all()
    assert unseen[400:].all()
    assert not unseen[80:400].any()
