# SPDX-License-Identifier: Apache-2.0
"""The built-in labels are Cityscapes' own; the list form is checked entry by entry."""

from cityscapesscripts.helpers.labels import labels as cityscapes
import numpy as np
import pytest

from trt_segmentation.bundles.labels import (
    CITYSCAPES,
    CITYSCAPES_ID_TO_TRAIN_ID,
    IGNORE,
    one_class,
    only_class,
    parse_labels,
)
from trt_segmentation.errors import InputError

EVALUATED = [label for label in cityscapes if label.trainId not in (-1, 255)]
GOOD = {'name': 'road', 'train_id': 0, 'color': [1, 2, 3], 'category': 'flat'}


def test_labels_are_those_of_cityscapesscripts():
    assert len(EVALUATED) == len(CITYSCAPES.labels) == 19
    for label in EVALUATED:
        own = CITYSCAPES.labels[label.trainId]
        assert (own.name, own.train_id, own.color, own.category) == (
            label.name, label.trainId, label.color, label.category)
        assert tuple(CITYSCAPES.palette_bgr[label.trainId]) == label.color[::-1]


def test_every_id_maps_to_its_train_id():
    for label in cityscapes:
        if label.id >= 0:
            expected = label.trainId if label in EVALUATED else IGNORE
            assert CITYSCAPES_ID_TO_TRAIN_ID[label.id] == expected
    assert (CITYSCAPES_ID_TO_TRAIN_ID[34:] == IGNORE).all()


def test_categories_are_those_of_cityscapesscripts():
    expected = {}
    for label in EVALUATED:
        expected.setdefault(label.category, []).append(label.trainId)
    assert {name: list(ids) for name, ids in CITYSCAPES.categories.items()} == expected
    assert len(expected) == 7


def test_list_form_may_ignore_channels_and_give_two_to_one_class():
    labels = parse_labels([GOOD, GOOD, {'name': 'void', 'train_id': 255, 'color': [0, 0, 0]}], 'f')
    assert labels.train_ids.tolist() == [0, 0, 255]
    assert [label.name for label in labels.classes] == ['road']
    assert labels.palette_bgr[0].tolist() == [3, 2, 1] and labels.palette_bgr.dtype == np.uint8
    assert parse_labels(labels.to_dict(), 'f') == labels


@pytest.mark.parametrize(('pixels', 'only'), [
    ({}, ''), ({'a': 9}, ''), ({'a': 0, 'b': 0}, ''), ({'a': 0, 'b': 1}, 'b'),
    ({'a': 992, 'lane': 8}, ''), ({'a': 9991, 'lane': 9}, 'a'),  # of two, one may be rare
    ({'a': 10, 'b': 981, 'c': 9}, 'b'), ({'a': 10, 'b': 979, 'c': 11}, ''),
])
def test_a_trace_beside_one_class_is_none(pixels, only):
    assert only_class(pixels) == only


@pytest.mark.parametrize(('share', 'warned'), [(0.979, False), (0.986, True), (1.0, True)])
def test_a_network_that_says_nearly_one_class_is_warned_of(share, warned):
    assert (f"'b' on {share:.1%} of all pixels" in one_class({'a': 1 - share, 'b': share})) \
        is warned
    assert one_class({'b': share}) == one_class({}) == ''


@pytest.mark.parametrize('value, message', [
    ('cityscape', "f: expected 'cityscapes' or a list .* found 'cityscape'"),
    ([], 'f: expected'),
    ([3], r'f\[0\]: expected .* found 3'),
    ([{**GOOD, 'id': 3}], r"f\[0\]: unknown key 'id'"),
    ([{**GOOD, 'train_id': True}], r'f\[0\].train_id: expected an integer 0..255, found True'),
    ([{**GOOD, 'train_id': 256}], r'f\[0\].train_id'),
    ([{**GOOD, 'color': [0, 0]}], r'f\[0\].color: expected \[red, green, blue\]'),
    ([{**GOOD, 'name': ''}], r'f\[0\].name: expected a text'),
    ([GOOD, {**GOOD, 'name': 'other'}], r"f\[1\]: train_id 0 is also that of 'road'"),
])
def test_bad_labels_are_one_clear_line(value, message):
    with pytest.raises(InputError, match=message) as error:
        parse_labels(value, 'f')
    assert '\n' not in str(error.value)
