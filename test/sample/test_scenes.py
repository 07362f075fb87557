# SPDX-License-Identifier: Apache-2.0
"""The drawn scenes: what a seed fixes, what the labels say, and what the sample network knows."""

from itertools import combinations

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import yaml

from trt_segmentation.bundles.labels import CITYSCAPES
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.sample import BUNDLE, scenes
from trt_segmentation.sample.canvas import EYE, View
from trt_segmentation.sample.scenes import Drive, scene

SMALL = (128, 256)
ROAD, SKY = 0, 10


def difference(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(int) - second.astype(int)).mean())


@pytest.mark.parametrize('seed', [5, scenes.DEMO_SEEDS[0]])
def test_a_seed_fixes_every_frame(seed):
    for t in (0.0, 1.7):
        for first, second in zip(Drive(seed).frame(t), Drive(seed).frame(t)):
            np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(scene(seed)[0], Drive(seed).frame(0.0)[0])


def test_frames_do_not_depend_on_those_drawn_before():
    times = [0.0, 0.5, 3.0, 12.0]
    forward, backward = Drive(11), Drive(11)
    expected = {t: forward.frame(t, size=SMALL) for t in times}
    backward.frame(1.0)
    for t in reversed(times):
        for first, second in zip(backward.frame(t, size=SMALL), expected[t]):
            np.testing.assert_array_equal(first, second)


def test_global_random_state_is_neither_read_nor_changed():
    np.random.seed(1)
    before = scene(3, SMALL)[0]
    state = np.random.get_state()[1].copy()
    np.random.seed(2)
    np.testing.assert_array_equal(scene(3, SMALL)[0], before)
    np.random.seed(1)
    scene(4, SMALL)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize('size', [(512, 1024), (256, 512), (101, 333)])
def test_sizes_and_types(size):
    picture, labels = scene(8, size)
    assert picture.shape == (*size, 3) and picture.dtype == np.uint8
    assert labels.shape == size and labels.dtype == np.uint8


def test_a_size_shows_the_same_world():
    _, large = scene(21)
    _, small = scene(21, (256, 512))
    shrunk = cv2.resize(large, (512, 256), interpolation=cv2.INTER_NEAREST)
    assert (shrunk == small).mean() > 0.95


def test_every_class_appears_and_nothing_else():
    seen = np.zeros(256, int)
    for seed in scenes.TRAIN_SEEDS[:60]:
        _, labels = scene(seed, (256, 512))
        seen += np.bincount(labels.ravel(), minlength=256) > 0
    assert set(np.flatnonzero(seen)) == {*range(19), 255}
    assert (seen[:19] >= 5).all(), seen[:19]


def test_the_road_is_below_and_the_sky_above():
    for seed in range(20):
        _, labels = scene(seed, SMALL)
        assert not (labels[:SMALL[0] // 4] == ROAD).any()
        assert not (labels[SMALL[0] * 3 // 4:] == SKY).any()


def test_seed_ranges_are_disjoint():
    ranges = [scenes.TRAIN_SEEDS, scenes.CALIBRATION_SEEDS, scenes.HELD_OUT_SEEDS,
              scenes.DEMO_SEEDS]
    for first, second in combinations(ranges, 2):
        assert first.stop <= second.start or second.stop <= first.start


def test_all_days_are_drawn():
    names = {Drive(seed).day.name for seed in range(60)}
    assert names == {'clear', 'overcast', 'rain', 'dusk', 'night'}


@pytest.mark.parametrize('seed', scenes.DEMO_SEEDS[:3])
def test_a_drive_moves_like_a_video(seed):
    drive, other = Drive(seed), Drive(seed + 1000)
    frames = [drive.frame(t, size=SMALL) for t in (2.0, 2.05, 4.0)]
    stranger = other.frame(2.0, size=SMALL)
    step = difference(frames[0][0], frames[1][0])
    assert 0 < step < 0.5 * difference(frames[0][0], stranger[0])
    agreement = [(frames[0][1] == labels).mean() for labels in
                 (frames[1][1], frames[2][1], stranger[1])]
    assert agreement[0] > 0.8
    assert agreement[0] > max(agreement[1:])


def test_the_camera_is_a_pinhole_above_the_road():
    """Check literal numbers: 10 m ahead, 2 m to the right, on the ground; then 5 m nearer."""
    day = scenes.DAYS[0][1]
    pixels = [View((512, 1024), day, 0.0, x=1.0, s=s, horizon=0.5, bend=lambda s, z: 0 * z,
                   half=4.0).project(np.array([3.0, 0.0, 20.0])) for s in (10.0, 15.0)]
    assert EYE == 1.4
    np.testing.assert_allclose(pixels, [[512 + 768 * 2 / 10, 256 + 768 * 1.4 / 10],
                                        [512 + 768 * 2 / 5, 256 + 768 * 1.4 / 5]])


def test_the_sample_network_knows_held_out_scenes():
    """Run the bundle's network by the formula in its model.yaml, with ONNX Runtime alone."""
    spec = yaml.safe_load((BUNDLE / 'model.yaml').read_text())
    session = onnxruntime.InferenceSession(BUNDLE / spec['model'],
                                           providers=['CPUExecutionProvider'])
    confusion = Confusion(CITYSCAPES)
    for seed in scenes.HELD_OUT_SEEDS[:12]:
        picture, truth = scene(seed)
        tensor = (picture - np.array(spec['input']['mean'])) * np.array(spec['input']['scale'])
        tensor = tensor.transpose(2, 0, 1)[None].astype(np.float32)
        logits = session.run(['logits'], {'image': tensor})[0][0]
        planes = [cv2.resize(plane, (1024, 512), interpolation=cv2.INTER_LINEAR)
                  for plane in logits]
        confusion.add(truth, np.argmax(planes, axis=0).astype(np.uint8))
    assert 0.75 < confusion.mean_class_iou < 0.95
    assert confusion.mean_category_iou > 0.8


def test_the_sample_network_is_what_its_page_says():
    model = onnx.load(BUNDLE / 'model.onnx')
    assert (BUNDLE / 'model.onnx').stat().st_size < 5e6
    assert [(o.domain, o.version) for o in model.opset_import] == [('', 17)]
    assert {node.op_type for node in model.graph.node} == {
        'Conv', 'Relu', 'MaxPool', 'ConvTranspose', 'Add'}
    assert all(node.name for node in model.graph.node)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == 'N'
