# SPDX-License-Identifier: Apache-2.0
"""Class labels: names, train ids, colors and categories; Cityscapes' are built in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trt_segmentation.errors import InputError, shown

IGNORE = 255
"""The train id of pixels that belong to no class; metrics leave them out."""

ONE_CLASS = 0.98
"""A network that says one class on so much of all pixels may see nothing."""

_ONE_OF_TWO = 0.999
"""The same where it proves nothing that there is another: lane marks alone are as rare as that."""


def one_class(said: Mapping[str, float]) -> str:
    """Return that a network says one class nearly everywhere, and what to look at; or ''."""
    name = max(said, key=said.__getitem__, default='')
    if len(said) < 2 or not said[name] >= ONE_CLASS:
        return ''
    return (f'{name!r} on {said[name]:.1%} of all pixels: the network may see nothing, unless the '
            'others are as rare as that; are mean, scale and color order in model.yaml those that '
            'it was trained with?')


def only_class(pixels: Mapping[str, int]) -> str:
    """
    Return the class of several that leaves the others a trace, so that nothing is proven; or ''.

    A network that sees nothing says such traces too, and an engine repeats them well.

    :param pixels: of each class
    """
    name = max(pixels, key=pixels.__getitem__, default='')
    limit = ONE_CLASS if len(pixels) > 2 else _ONE_OF_TWO
    total = sum(pixels.values())
    return name if len(pixels) > 1 and total and pixels[name] >= limit * total else ''


@dataclass(frozen=True)
class Label:
    """One output channel of the network; `color` is (red, green, blue), 0..255."""

    name: str
    train_id: int
    color: tuple[int, int, int]
    category: str


@dataclass(frozen=True)
class LabelSet:
    """The labels of a network's output channels, in channel order."""

    labels: tuple[Label, ...]

    @cached_property
    def train_ids(self) -> np.ndarray:
        """Return the train id of each channel: uint8, shape (channels,)."""
        return np.array([label.train_id for label in self.labels], np.uint8)

    @cached_property
    def classes(self) -> tuple[Label, ...]:
        """Return the distinct classes that metrics count, by ascending train id, without 255."""
        by_id = {label.train_id: label for label in self.labels if label.train_id != IGNORE}
        return tuple(by_id[train_id] for train_id in sorted(by_id))

    @cached_property
    def categories(self) -> dict[str, tuple[int, ...]]:
        """Return the train ids of each category, categories in order of first appearance."""
        groups: dict[str, list[int]] = {}
        for label in self.classes:
            groups.setdefault(label.category, []).append(label.train_id)
        return {name: tuple(ids) for name, ids in groups.items()}

    @cached_property
    def palette_bgr(self) -> np.ndarray:
        """Return the color of every train id: uint8, shape (256, 3), BGR; unused ids are black."""
        palette = np.zeros((256, 3), np.uint8)
        for label in self.labels:
            palette[label.train_id] = label.color[::-1]
        return palette

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the labels as plain values, one entry a channel."""
        return [
            {
                'name': label.name,
                'train_id': label.train_id,
                'color': list(label.color),
                'category': label.category,
            }
            for label in self.labels
        ]


# Cityscapes' definition (name, id in gtFine_labelIds, train id, category, color), the 19 classes
# that its benchmark evaluates; every other id is ignored.
_CITYSCAPES = (
    ('road', 7, 0, 'flat', (128, 64, 128)),
    ('sidewalk', 8, 1, 'flat', (244, 35, 232)),
    ('building', 11, 2, 'construction', (70, 70, 70)),
    ('wall', 12, 3, 'construction', (102, 102, 156)),
    ('fence', 13, 4, 'construction', (190, 153, 153)),
    ('pole', 17, 5, 'object', (153, 153, 153)),
    ('traffic light', 19, 6, 'object', (250, 170, 30)),
    ('traffic sign', 20, 7, 'object', (220, 220, 0)),
    ('vegetation', 21, 8, 'nature', (107, 142, 35)),
    ('terrain', 22, 9, 'nature', (152, 251, 152)),
    ('sky', 23, 10, 'sky', (70, 130, 180)),
    ('person', 24, 11, 'human', (220, 20, 60)),
    ('rider', 25, 12, 'human', (255, 0, 0)),
    ('car', 26, 13, 'vehicle', (0, 0, 142)),
    ('truck', 27, 14, 'vehicle', (0, 0, 70)),
    ('bus', 28, 15, 'vehicle', (0, 60, 100)),
    ('train', 31, 16, 'vehicle', (0, 80, 100)),
    ('motorcycle', 32, 17, 'vehicle', (0, 0, 230)),
    ('bicycle', 33, 18, 'vehicle', (119, 11, 32)),
)

CITYSCAPES = LabelSet(
    tuple(Label(name, train_id, color, category)
          for name, _, train_id, category, color in _CITYSCAPES)
)

CITYSCAPES_ID_TO_TRAIN_ID = np.full(256, IGNORE, np.uint8)
"""Maps a pixel of gtFine_labelIds to its train id: uint8, shape (256,)."""
for _name, _id, _train_id, _category, _color in _CITYSCAPES:
    CITYSCAPES_ID_TO_TRAIN_ID[_id] = _train_id


def parse_labels(value: Any, where: str) -> LabelSet:
    """
    Return the labels that `model.yaml` names under `labels`.

    :param value: 'cityscapes', or a list with a mapping {name, train_id, color, category} for
        each output channel; `color` is [red, green, blue], `category` defaults to the name
    :param where: the file and key, for messages
    :raises InputError: if the value is anything else
    """
    if value == 'cityscapes':
        return CITYSCAPES
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InputError(
            f"{where}: expected 'cityscapes' or a list of {{name, train_id, color, category}}, "
            f'one for each output channel; found {shown(value)}'
        )
    labels = tuple(_parse_label(entry, f'{where}[{i}]') for i, entry in enumerate(value))
    if len(labels) > 256:
        raise InputError(f'{where}: found {len(labels)} entries, expected at most 256: class '
                         'masks have 8 bits')
    seen: dict[int | str, Label] = {}
    for i, label in enumerate(labels):
        for key in ('train_id', 'name'):  # metrics are told by name
            first = seen.setdefault(getattr(label, key), label)
            if label.train_id != IGNORE and first != label:
                raise InputError(
                    f'{where}[{i}]: {key} {shown(getattr(label, key))} is also that of '
                    f'{shown(first.name)}, train_id {first.train_id}; entries of one class must '
                    'be the same in all, those of two classes must differ in both'
                )
    return LabelSet(labels)


def _parse_label(entry: Any, where: str) -> Label:
    """Return one label of the list form, checked."""
    if not isinstance(entry, Mapping):
        raise InputError(f'{where}: expected {{name, train_id, color, category}}, '
                         f'found {shown(entry)}')
    if unknown := sorted(set(entry) - {'name', 'train_id', 'color', 'category'}, key=str):
        raise InputError(
            f'{where}: unknown key {shown(unknown[0])}; expected name, train_id, color, category'
        )
    name, train_id, color = entry.get('name'), entry.get('train_id'), entry.get('color')
    category = entry.get('category', name)
    for key, text in (('name', name), ('category', category)):
        if not isinstance(text, str) or not text:
            raise InputError(f'{where}.{key}: expected a text, found {shown(text)}')
    if not _is_byte(train_id):
        raise InputError(f'{where}.train_id: expected an integer 0..255, found {shown(train_id)}')
    if not isinstance(color, Sequence) or len(color) != 3 or not all(map(_is_byte, color)):
        raise InputError(
            f'{where}.color: expected [red, green, blue], each 0..255; found {shown(color)}'
        )
    return Label(str(name), int(train_id or 0), tuple(color), category)


def _is_byte(value: Any) -> bool:
    """Tell whether `value` is an integer 0..255 (and not a bool)."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255
