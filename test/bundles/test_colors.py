# SPDX-License-Identifier: Apache-2.0
"""Colors of classes: their distance as people see it, and which are too near."""

import cv2
import numpy as np
import pytest

from trt_segmentation.bundles.colors import lab, similar_colors
from trt_segmentation.bundles.labels import CITYSCAPES, Label, LabelSet
from trt_segmentation.bundles.presets import VOC


def test_lab_is_that_of_opencv():
    colors = np.random.default_rng(0).integers(0, 256, (500, 3))
    colors[:20] //= 16  # dark ones have the straight parts of both curves
    expected = cv2.cvtColor((colors[None] / 255).astype(np.float32), cv2.COLOR_RGB2Lab)[0]
    assert np.abs(lab(colors) - expected).max() < 0.6  # OpenCV interpolates in a table


@pytest.mark.parametrize(('color', 'expected'), [  # as tables of sRGB's primaries have them
    ((255, 0, 0), (53.24, 80.09, 67.20)), ((0, 0, 255), (32.30, 79.19, -107.86)),
    ((255, 255, 255), (100, 0, 0)), ((0, 0, 0), (0, 0, 0))])
def test_lab_of_known_colors(color, expected):
    assert lab(np.array([color]))[0] == pytest.approx(expected, abs=0.05)


def labels(*colors):
    return LabelSet(tuple(Label(f'class {i}', i, color, 'a') for i, color in enumerate(colors)))


@pytest.mark.parametrize(('colors', 'said'), [
    ([(0, 0, 0)], ''), ([(0, 0, 0), (255, 255, 255), (255, 0, 0)], ''),
    ([(9, 9, 9), (200, 0, 0), (200, 0, 4)], "of 'class 1' and 'class 2' are hardly told apart"),
    ([(250, 250, 250), (255, 255, 255), (255, 255, 255)],
     "'class 1' and 'class 2' are hardly told apart (CIE76 distance 0.0, below 8), nor are those "
     'of 2 other pairs: give')])
def test_colors_that_are_too_near_are_named(colors, said):
    found = similar_colors(labels(*colors))
    assert (said in found) if said else found == ''


@pytest.mark.parametrize('known', [CITYSCAPES, VOC])
def test_palettes_that_people_know_are_not_complained_of(known):
    assert similar_colors(known) == ''
