# SPDX-License-Identifier: Apache-2.0
"""The demo's animated picture: all frames, in their time, in the colors of their classes."""

import io

import cv2
import numpy as np
from PIL import Image, ImageSequence
import pytest

from trt_segmentation.bundles.labels import CITYSCAPES
from trt_segmentation.demo import run
from trt_segmentation.demo.animation import animation, MAX_FRAMES, still
from trt_segmentation.demo.passage import CLASS_TOPIC, IMAGE_TOPIC
from trt_segmentation.recordings import bags
from trt_segmentation.sample import scenes

MS = 1_000_000


def frames_of(data):
    """Return the frames of a GIF, RGB, and how long each is shown, in ms."""
    picture = Image.open(io.BytesIO(data))
    return [(np.asarray(frame.convert('RGB')), frame.info['duration'])
            for frame in ImageSequence.Iterator(picture)]


def test_frames_have_their_order_their_time_and_the_colors_of_their_classes():
    drive = scenes.Drive(scenes.DEMO_SEEDS[0])
    stamps = (0, 200 * MS, 350 * MS)
    frames = [(stamp, *drive.frame(i)) for i, stamp in enumerate(stamps)]
    data = animation(frames, CITYSCAPES)
    found = frames_of(data)
    assert [duration for _, duration in found] == [200, 150, 150]
    assert len(data) < 500_000 / MAX_FRAMES * len(frames)
    colors = np.array([label.color for label in CITYSCAPES.classes])
    for (picture, _), (_, image, classes) in zip(found, frames):
        left, right = picture[-110:, :220].astype(int), picture[-110:, -220:].astype(int)
        small = cv2.resize(image, (220, 110), interpolation=cv2.INTER_AREA)[..., ::-1]
        assert np.abs(left - small).mean() < 12
        inner = cv2.erode((classes[1:] == classes[:-1]).astype(np.uint8), np.ones((9, 9)))
        inner = cv2.resize(inner, (220, 110), interpolation=cv2.INTER_NEAREST) > 0
        mask = cv2.resize(classes, (220, 110), interpolation=cv2.INTER_NEAREST)
        seen = inner & (mask != 255)
        exact = (right[seen] == colors[mask[seen]]).all(1)
        assert exact.mean() > 0.95


def test_one_frame_is_a_picture():
    (picture, _), = frames_of(animation([(5, *scenes.scene(4_000_000))], CITYSCAPES))
    assert picture.shape[1] == 444


def test_a_still_is_the_picture_in_few_colors_but_those_of_classes():
    image, _ = scenes.scene(4_000_000)
    colors = np.array([[label.color[::-1] for label in CITYSCAPES.classes]], np.uint8)
    legend = cv2.resize(colors, (image.shape[1], 8), interpolation=cv2.INTER_NEAREST)
    sheet = np.vstack([image, legend])
    data = still(sheet, CITYSCAPES)
    assert len(data) < len(cv2.imencode('.png', sheet)[1]) / 2
    seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(seen[:-8].astype(int) - image).mean() < 6
    assert (seen[-8:] == legend).all()


@pytest.mark.parametrize('number', [1, 40, 61])
def test_the_frames_that_came_through_are_shown_evenly(tmp_path, number):
    image = np.zeros((8, 16, 3), np.uint8)
    with bags.Writer(tmp_path / 'drive') as drive, bags.Writer(tmp_path / 'masks') as masks:
        for i in range(62):
            drive.write_image(IMAGE_TOPIC, image + np.uint8(i), 'bgr8', i + 1, 'c')
            if i < number:
                masks.write_image(CLASS_TOPIC, image[..., 0] + np.uint8(i), 'mono8', i + 1, 'c')
        masks.write_image('/other', image, 'bgr8', 1, 'c')
    shown = run._shown(tmp_path / 'drive', tmp_path / 'masks')
    step = {1: 1, 40: 2, 61: 3}[number]
    assert [stamp - 1 for stamp, _, _ in shown] == list(range(0, number, step))
    assert all((picture[0, 0, 0], mask[0, 0]) == (stamp - 1, stamp - 1)
               for stamp, picture, mask in shown)
