# SPDX-License-Identifier: Apache-2.0
"""Pictures: what must be where in them."""

import numpy as np
import pytest

from trt_segmentation.bundles.labels import CITYSCAPES, IGNORE
from trt_segmentation.evaluation import pictures as visualization


def picture(size=(40, 80), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_colorize_is_the_palette():
    classes = np.array([[0, 13, IGNORE]], np.uint8)
    np.testing.assert_array_equal(visualization.colorize(classes, CITYSCAPES),
                                  [[[128, 64, 128], [142, 0, 0], [0, 0, 0]]])


@pytest.mark.parametrize('opacity', [0, 0.25, 0.5, 1])
def test_overlay_is_the_weighted_mean(opacity):
    image, color = picture(seed=1), picture(seed=2)
    expected = image * (1 - opacity) + color * opacity
    found = visualization.overlay(image, color, opacity)
    assert np.abs(found - expected).max() <= 0.501


def test_difference_marks_what_differs_and_only_that():
    image = picture()
    first = np.zeros((40, 80), np.uint8)
    second = first.copy()
    first[:5], second[:10] = IGNORE, 3
    found = visualization.difference(image, first, second)
    red = (found == (0, 0, 255)).all(-1)
    assert red[5:10].all()
    assert not red[:5].any()
    assert not red[10:].any()
    assert (np.ptp(found[10:], axis=-1) == 0).all()  # gray


def test_contact_sheet_has_image_mask_and_overlay_in_a_row():
    pairs = [(picture((20, 40), i), picture((20, 40), i + 9)) for i in range(3)]
    sheet = visualization.contact_sheet(pairs, width=40)
    assert sheet.shape == (3 * 20 + 2 * 4, 3 * 40 + 2 * 4, 3)
    for i, (image, color) in enumerate(pairs):
        row = sheet[i * 24:i * 24 + 20]
        np.testing.assert_array_equal(row[:, :40], image)
        np.testing.assert_array_equal(row[:, 44:84], color)
        np.testing.assert_array_equal(row[:, 88:], visualization.overlay(image, color))
    assert (sheet[20:24] == 255).all()


@pytest.mark.parametrize('width', [100, 170, 500, 1448])
def test_legend_shows_every_color_once(width):
    legend = visualization.legend(CITYSCAPES, width)
    assert legend.shape[1] == width
    for label in CITYSCAPES.classes:
        found = (legend == label.color[::-1]).all(-1).sum()
        assert found >= 100, label.name


def test_pictures_of_other_sizes_fit_into_one_sheet():
    sheet = visualization.contact_sheet([(picture((33, 57)), picture((33, 57))),
                                         (picture((600, 400)), picture((600, 400)))],
                                        CITYSCAPES, width=120)
    assert sheet.shape[1] == 3 * 120 + 8
