# SPDX-License-Identifier: Apache-2.0
"""Which labels the classes of a new bundle's network have: those that are given, or assumed."""

from __future__ import annotations

import os
from pathlib import Path

from trt_segmentation.bundles import form
from trt_segmentation.bundles.labels import CITYSCAPES, Label, LabelSet, parse_labels
from trt_segmentation.errors import counted, InputError, nearest
from trt_segmentation.networks.adapt import Adapted
from trt_segmentation.networks.model import Tensor
from trt_segmentation.system import files

BINARY = LabelSet((Label('background', 0, (0, 0, 0), 'background'),
                   Label('object', 1, (255, 255, 255), 'object')))
"""The labels of a network with one channel whose author names none."""


def given_labels(labels: str | os.PathLike[str] | LabelSet | None) -> LabelSet | None:
    """Return the labels that were given: 'cityscapes', a YAML file, or as they are; or None."""
    if labels is None or isinstance(labels, LabelSet):
        return labels
    if str(labels) == 'cityscapes':
        return CITYSCAPES
    if not os.path.exists(labels):
        near = nearest(str(labels), ['cityscapes']) or files.nearest_path(labels)
        raise InputError(f'{labels}: cannot be read: no such file; expected cityscapes, or a '
                         f'YAML file with a list of labels{near}')
    return parse_labels(form.read_yaml(labels), str(labels))


def fitting_labels(adapted: Adapted, target: Tensor, known: LabelSet | None, model: Path,
                   origin: str) -> LabelSet:
    """
    Return the labels of a network.

    :param target: the output in the file
    :param known: those that were given, or are a preset's
    :param origin: what those are called, for errors
    :raises InputError: if they are not as many as it has classes
    """
    output = adapted.output
    channels = output.shape[1] if not adapted.ids and len(output.shape) == 4 else None
    labels = known or _assumed_labels(channels, target, model)
    if len(labels.labels) == 1 and channels == 2 and channels not in target.shape:
        raise InputError(f'labels: found one label; of the one channel of {target.name!r} two '
                         'classes are made: expected a list of two, the background first')
    if known is not None and channels not in (None, len(known.labels)):
        raise InputError(
            f'{model}: {origin} has {counted(len(known.labels), "label")}, but output '
            f'{target.name!r} is {target}, which gives {counted(channels, "class", "classes")}: '
            "give the training's own with --labels, "
            'cityscapes or a YAML file with {name, train_id, color, category} for each of the '
            f'{channels}')
    return labels


def _assumed_labels(channels: int | None, target: Tensor, model: Path) -> LabelSet:
    """Return the labels of a network whose author names none; `channels` are its classes."""
    if channels == len(BINARY.labels) and target.shape[1:2] != (channels,):
        return BINARY
    if channels not in (None, len(CITYSCAPES.labels)):
        raise InputError(
            f'{model}: output {target.name!r} is {target}, which gives '
            f'{counted(channels, "class", "classes")}, but cityscapes has '
            f'{len(CITYSCAPES.labels)} labels; give --labels FILE, a YAML list with {{name, '
            'train_id, color, category} for each class')
    return CITYSCAPES
