# SPDX-License-Identifier: Apache-2.0
"""Pictures: what must be where in them."""

import cv2
import numpy as np
import pytest

from trt_segmentation.bundles.labels import CITYSCAPES, IGNORE, Label, LabelSet
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


@pytest.mark.parametrize('text, shown', [
    ('Straßen Bilder/Bürgersteig', 'Strassen Bilder/Buergersteig'), ('Bu\u0308rger', 'Buerger'),
    ('Ärger, Öl, Übung', 'Aerger, Oel, Uebung'), ('façade, señal, Łódź', 'facade, senal, Lodz'),
    ('道路', '??'), ('plain_09', 'plain_09')])
def test_pictures_have_the_nearest_letters_that_their_font_has(text, shown):
    assert visualization.in_ascii(text) == shown
    np.testing.assert_array_equal(visualization.caption(text, 300),
                                  visualization.caption(shown, 300))


def test_a_class_whose_name_the_font_lacks_is_shown_by_its_number():
    def shown(*names):
        return visualization.legend(LabelSet(tuple(
            Label(name, i, (9, 9, 9), '') for i, name in enumerate(names))), 400)
    np.testing.assert_array_equal(shown('road', '車線', 'what?'),
                                  shown('road', 'class 1', 'what?'))


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


def classes_of(size, seed):
    coarse = np.random.default_rng(seed).integers(0, 19, (2, 4), np.uint8)
    return np.kron(coarse, np.ones((size[0] // 2, size[1] // 4), np.uint8))


def test_comparison_sheet_has_image_both_masks_and_difference_in_a_row():
    rows = [(picture((20, 40), i), classes_of((20, 40), i), classes_of((20, 40), i + 9))
            for i in range(3)]
    sheet = visualization.comparison_sheet(rows, ('a', 'b', 'c', 'd'), CITYSCAPES, width=40)
    assert sheet.shape[1] == 4 * 40 + 3 * 4
    top = 22 + 4  # the line of titles
    assert (sheet[:22] < 128).any()
    for i, (image, reference, mask) in enumerate(rows):
        row = sheet[top + i * 24:top + i * 24 + 20]
        np.testing.assert_array_equal(row[:, :40], image)
        for at, classes in ((44, reference), (88, mask)):
            inner = row[4:6, at + 4:at + 6]  # within the first of the blocks
            assert (inner == CITYSCAPES.palette_bgr[classes[0, 0]]).all()
        np.testing.assert_array_equal(row[:, 132:],
                                      visualization.difference(image, reference, mask))


def test_a_comparison_has_titles_and_the_legends_colors():
    image, classes = picture((40, 80)), classes_of((40, 80), 1)
    other = classes.copy()
    other[:20, :20] = (classes[0, 0] + 1) % 19
    data = visualization.comparison_picture(image, classes, other, CITYSCAPES, ('fp32', 'int8'))
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(int)
    title, gap, height, width = 22, 4, 200, 400
    assert found.shape == (2 * (title + gap + height) + gap, 2 * width + gap, 3)
    for top in (0, title + height + 2 * gap):
        for left in (0, width + gap):
            assert (found[top:top + title, left:left + width] < 100).any()  # written there
    for top, mask in ((title + gap, classes), (2 * title + height + 3 * gap, other)):
        inner = found[top + 40:top + 60, width + gap + 40:width + gap + 60]
        assert np.abs(inner - CITYSCAPES.palette_bgr[mask[5, 5]]).max() < 12  # it is a JPEG
    wrong = found[2 * title + height + 3 * gap + 40:][:20, 40:60]
    assert np.abs(wrong - [0, 0, 255]).max() < 12


def test_a_white_class_ends_where_its_picture_ends():
    white = np.full((10, 20, 3), 255, np.uint8)
    sheet = visualization.stack([visualization.tile([(white, white), (white, white)], 20), white[
        :, :1].repeat(44, axis=1)])
    assert (sheet[:, 20:24][:24] < 200).all()
    assert (sheet[10:14] < 200).all() and (sheet[24:28] < 200).all()


def test_a_line_of_pixels_does_not_make_an_endless_sheet():
    thin = np.zeros((5000, 1, 3), np.uint8)
    sheet = visualization.tile([(thin, thin)], 20)
    assert sheet.shape[0] == 40 and (sheet[:, 0] == 0).all() and (sheet[:, 1:20] > 0).all()


def test_outlines_stand_where_the_class_changes_and_nowhere_else():
    classes = np.repeat(np.array([[8, 9]], np.uint8), 10, axis=1).repeat(6, axis=0)
    found = visualization.outlined(classes, CITYSCAPES)
    plain = visualization.colorize(classes, CITYSCAPES)
    changed = (found != plain).any(-1)
    assert changed[:, 9:11].all() and not changed[:, :9].any() and not changed[:, 11:].any()


@pytest.mark.parametrize('width', [100, 170, 500, 1448])
def test_legend_shows_every_color_once(width):
    legend = visualization.legend(CITYSCAPES, width)
    assert legend.shape[1] == width
    for label in CITYSCAPES.classes:
        found = (legend == label.color[::-1]).all(-1).sum()
        assert found >= 100, label.name


def test_pictures_of_other_sizes_fit_into_one_sheet():
    rows = [(picture(size), np.zeros(size, np.uint8), np.zeros(size, np.uint8))
            for size in ((33, 57), (600, 400))]
    sheet = visualization.comparison_sheet(rows, ('a', 'b', 'c', 'd'), CITYSCAPES, width=120)
    assert sheet.shape[1] == 4 * 120 + 3 * 4
