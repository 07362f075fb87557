# SPDX-License-Identifier: Apache-2.0
"""True masks: PNG files of every kind that people have, and what their numbers mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
import struct
import zlib

import cv2
import numpy as np

from trt_segmentation.bundles.labels import (
    CITYSCAPES,
    CITYSCAPES_ID_TO_TRAIN_ID,
    IGNORE,
    LabelSet,
)
from trt_segmentation.errors import counted, InputError
from trt_segmentation.recordings import decoder, png
from trt_segmentation.recordings.limits import MalformedImage
from trt_segmentation.system.files import readable

ID_SPACES = ('train', 'cityscapes', 'cityscapes-train', 'binary')
"""
What the pixels of a mask can be.

train: the bundle's train ids; cityscapes: Cityscapes' label ids (gtFine_labelIds);
cityscapes-train: Cityscapes' own train ids; binary: 0 is the first of two classes, all else (255,
as most tools write it) the second
"""

_GRAY, _PALETTE = 0, 3  # color types of PNG


@dataclass(frozen=True)
class Reading:
    """
    How a mask's pixels become the bundle's train ids.

    ids: one of ID_SPACES
    table: uint8 (256,), the train id of each pixel value; IGNORE where it is not counted
    known: bool (256,), the values that a mask may have
    """

    ids: str
    table: np.ndarray
    known: np.ndarray


def reading_of(ids: str, labels: LabelSet) -> Reading:
    """
    Return how masks of an id space are read for a bundle's labels.

    Cityscapes' classes are found among the bundle's by name, so its numbers need not be the
    bundle's.

    :param ids: one of ID_SPACES
    :raises InputError: if the labels have not all classes of Cityscapes, or not two for a binary
        mask
    """
    train_ids = [label.train_id for label in labels.classes]
    table = np.full(256, IGNORE, np.uint8)
    known = np.ones(256, bool)
    if ids == 'train':
        table[train_ids] = train_ids
        known = table != IGNORE
        known[IGNORE] = True
    elif ids == 'binary':
        if len(train_ids) != 2:
            raise InputError('--label-ids binary: the bundle has '
                             f'{counted(len(train_ids), "class", "classes")}, expected two, of '
                             'which the second is where a mask is not 0')
        table[:] = train_ids[1]
        table[0] = train_ids[0]
    else:
        by_name = _cityscapes_by_name(labels)
        table[list(by_name)] = list(by_name.values())
        if ids == 'cityscapes':
            table = table[CITYSCAPES_ID_TO_TRAIN_ID]
        else:
            known = table != IGNORE
            known[IGNORE] = True
    return Reading(ids, table, known)


def read(path: Path, reading: Reading) -> np.ndarray:
    """
    Read a true mask.

    Its pixels are numbers: of gray pictures of 1 to 8 bits the values 0, 1, 2 .., of pictures
    with a palette the indices into it; a picture in color must be gray all over.

    :returns: uint8 (height, width), train ids of the bundle, 255 where nothing is counted
    :raises InputError: if it cannot be read, is in color or of 16 bits, or has an id that is none
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f'{readable(path)}: cannot be read: {error.strerror}') from None
    try:
        mask = _decode(data)
    except MalformedImage as error:
        raise InputError(f'{readable(path)}: not a readable PNG picture: {error}') from None
    if mask.ndim == 3 and mask.dtype == np.uint8 and (
            np.array_equal(mask[..., 0], mask[..., 1])
            and np.array_equal(mask[..., 0], mask[..., 2])):
        mask = np.ascontiguousarray(mask[..., 0])
    if mask.dtype != np.uint8 or mask.ndim != 2:
        kind = 'a picture in color' if mask.ndim == 3 else f'{mask.dtype} {mask.shape}'
        raise InputError(f'{readable(path)}: found {kind}, expected one channel of 8 bits: the '
                         'id of each pixel')
    found = np.bincount(mask.ravel(), minlength=256) > 0
    if (unknown := np.flatnonzero(found & ~reading.known)).size:
        raise InputError(_unknown(path, int(unknown[0]), np.flatnonzero(found), reading))
    return cv2.LUT(mask, reading.table)


def problems(counts: Mapping[int, int], labels: LabelSet) -> tuple[str, list[str]]:
    """
    Judge the true masks of a whole data set.

    :param counts: pixels by train id, 255 among them
    :returns: why nothing can be measured with them ('' if it can), and what to tell of them
    """
    total = sum(counts.values())
    ignored = counts.get(IGNORE, 0)
    seen = [label for label in labels.classes if counts.get(label.train_id)]
    missing = [label.name for label in labels.classes if not counts.get(label.train_id)]
    if total and not seen:
        return ('the true masks are 255 (ignored) everywhere, so there is nothing to measure; '
                'expected train ids of the bundle'), []
    if ignored and len(seen) == 1 and missing:
        other = (': if 255 is the second class, say so with --label-ids binary'
                 if len(labels.classes) == 2 else ': write the classes as the train ids of the '
                 'bundle')
        return (f'the true masks have {seen[0].name!r} and 255 (ignored) only, so whoever says '
                f'{seen[0].name!r} everywhere would be perfect. 255 is probably a class in these '
                f'masks{other}; expected {missing[0]!r} to occur somewhere'), []
    notes = []
    if missing and total:
        notes.append(f'never in the true masks: {", ".join(missing)}; nothing is measured of '
                     'them, and they count in no loss')
    if ignored:
        notes.append(f'{ignored / total:.1%} of the pixels are 255 in the true masks: no figure '
                     'counts them')
    return '', notes


def _unknown(path: Path, first: int, found: np.ndarray, reading: Reading) -> str:
    """Return the message for an id that is none."""
    ids = 'the train ids of the bundle' if reading.ids == 'train' else "Cityscapes' train ids"
    if found.tolist() in ([0, 128], [0, 127], [0, 1, 255], [0, 254]):
        hint = '; if all but 0 is the second of two classes, say so with --label-ids binary'
    else:
        hint = ("; if these are Cityscapes' label ids, say so with --label-ids cityscapes"
                if first < 34 else '')
    return (f'{readable(path)}: found id {first}, expected {ids} or {IGNORE}{hint}')


def _cityscapes_by_name(labels: LabelSet) -> dict[int, int]:
    """Return the bundle's train id of each of Cityscapes' train ids."""
    own = {_plain(label.name): label.train_id for label in labels.classes}
    missing = [label.name for label in CITYSCAPES.classes if _plain(label.name) not in own]
    if missing:
        raise InputError(
            f"true masks with Cityscapes' ids: the bundle has no class named "
            f'{", ".join(missing)}, so they cannot be counted for it, neither as hits nor as '
            "misses; name the classes in model.yaml as Cityscapes does, or give masks of the "
            "bundle's own train ids with --images, --labels and --label-ids train")
    return {label.train_id: own[_plain(label.name)] for label in CITYSCAPES.classes}


def _plain(name: str) -> str:
    """Return a class's name without what people write in different ways."""
    return ''.join(character for character in name.lower() if character.isalnum())


def _decode(data: bytes) -> np.ndarray:
    """
    Return a PNG's pixels, palette indices and values of few bits as they are.

    :raises MalformedImage: if it is no PNG, cut short or damaged
    """
    if data[:8] != png.SIGNATURE:
        raise MalformedImage('undecodable', 'another kind of file')
    checked = bytes(png.checked(memoryview(data)))
    depth, kind = checked[24], checked[25]
    pixels = decoder.decode_unchanged(_as_gray(checked) if kind == _PALETTE else checked)
    if kind not in (_GRAY, _PALETTE) or depth >= 8:
        return pixels
    return pixels // (255 // ((1 << depth) - 1))  # a decoder spreads few bits over 0..255


def _as_gray(data: bytes) -> bytes:
    """Return a PNG with a palette as the gray one of its indices (PNG specification, 11.2)."""
    header = data[12:25] + bytes([_GRAY]) + data[26:29]
    parts = [data[:12], header, struct.pack('>I', zlib.crc32(header))]
    at = 33
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at:at + 4], 'big')
        if data[at + 4:at + 8] not in (b'PLTE', b'tRNS', b'bKGD', b'hIST', b'sPLT'):
            parts.append(data[at:end])
        at = end
    return b''.join(parts)
