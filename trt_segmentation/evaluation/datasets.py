# SPDX-License-Identifier: Apache-2.0
"""Images with or without true masks: folders, Cityscapes' layout, the sample scenes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
import os
from pathlib import Path

import cv2
import numpy as np

from trt_segmentation.bundles.labels import CITYSCAPES_ID_TO_TRAIN_ID, IGNORE, LabelSet
from trt_segmentation.errors import InputError
from trt_segmentation.recordings.pictures import decode, SUFFIXES, Unusable

_IMAGE_ENDING = '_leftImg8bit'
# The true masks' endings by what their pixels are; of two masks of one image the last is taken.
_LABEL_ENDINGS = {
    '_gtFine_labelTrainIds': 'train', '_labelTrainIds': 'train',
    '_gtFine_labelIds': 'cityscapes', '_labelIds': 'cityscapes',
}
_AHEAD = 3  # images decoded before they are needed

Loaded = tuple[str, np.ndarray, np.ndarray | None]
"""(name, BGR uint8 (height, width, 3), true train ids uint8 (height, width) or None)."""


@dataclass(frozen=True)
class Item:
    """
    An image that can be loaded, with its true mask if there is one.

    name: the same wherever the data lies
    signature: changes when the files do
    load: returns (image, truth or None) as in `Loaded`; raises InputError
    """

    name: str
    signature: str
    load: Callable[[], tuple[np.ndarray, np.ndarray | None]]


def folder(images: str | os.PathLike, labels: LabelSet, truths: str | os.PathLike | None = None,
           *, label_ids: str = 'train') -> list[Item]:
    """
    Return the images under a directory, by name.

    A true mask is a PNG file of the image's relative name, or with Cityscapes' endings
    (X_leftImg8bit.png and X_gtFine_labelIds.png or X_gtFine_labelTrainIds.png).

    :param labels: the train ids that a mask may have
    :param truths: the directory of true masks
    :param label_ids: what pixels of masks without such an ending are: 'train' or 'cityscapes'
    :raises InputError: if there is no image, or an image has no mask
    """
    images = Path(images)
    if not images.is_dir():
        raise InputError(f'{images}: no such directory; expected a directory of images')
    paths = sorted(path for path in images.rglob('*')
                   if path.suffix.lower() in SUFFIXES and not path.name.startswith('.'))
    if not paths:
        raise InputError(f'{images}: no image found; expected files ending in '
                         f'{", ".join(SUFFIXES)}')
    masks = _masks(Path(truths), label_ids) if truths is not None else None
    items = []
    for path in paths:
        key = path.relative_to(images).with_suffix('').as_posix()
        key = key.removesuffix(_IMAGE_ENDING)
        if masks is None:
            mask = None
        elif key in masks:
            mask = masks[key]
        else:
            raise InputError(f'{path}: it has no true mask; expected {Path(truths) / key}.png or '
                             f'{Path(truths) / key}_gtFine_labelIds.png')
        items.append(_item(path.relative_to(images).as_posix(), path, mask, labels))
    return items


def cityscapes(root: str | os.PathLike, labels: LabelSet, split: str = 'val') -> list[Item]:
    """
    Return the images of a split of Cityscapes: leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY.

    :raises InputError: if one of the two directories is not there, or an image has no mask
    """
    parts = [Path(root) / name / split for name in ('leftImg8bit', 'gtFine')]
    for part in parts:
        if not part.is_dir():
            raise InputError(f'{part}: no such directory; expected the layout of Cityscapes: '
                             f'leftImg8bit/{split} and gtFine/{split}')
    return folder(parts[0], labels, parts[1])


def sample_scenes(count: int) -> list[Item]:
    """Return the first of the drawn scenes that were held out from training and calibration."""
    from trt_segmentation import __version__
    from trt_segmentation.demo import scenes
    return [Item(f'scene {seed}', __version__, partial(scenes.scene, seed))
            for seed in scenes.HELD_OUT_SEEDS[:count]]


def load_ahead(items: Iterable[Item]) -> Iterator[Loaded]:
    """Yield the items in order, decoded a few ahead by other threads."""
    pool = ThreadPoolExecutor(2)
    pending: deque = deque()
    try:
        for item in items:
            pending.append((item.name, pool.submit(item.load)))
            if len(pending) > _AHEAD:
                name, future = pending.popleft()
                yield name, *future.result()
        while pending:
            name, future = pending.popleft()
            yield name, *future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _masks(directory: Path, label_ids: str) -> dict[str, tuple[Path, str]]:
    """Return path and kind of ids of each true mask under a directory, by its image's key."""
    if not directory.is_dir():
        raise InputError(f'{directory}: no such directory; expected a directory of true masks')
    found: dict[str, tuple[Path, str]] = {}
    paths = sorted(directory.rglob('*.png'))
    for path in paths:
        found[path.relative_to(directory).with_suffix('').as_posix()] = path, label_ids
    for ending, kind in _LABEL_ENDINGS.items():
        for path in paths:
            if path.stem.endswith(ending):
                key = path.relative_to(directory).with_suffix('').as_posix()
                found[key.removesuffix(ending)] = path, kind
    return found


def _item(name: str, path: Path, mask: tuple[Path, str] | None, labels: LabelSet) -> Item:
    """Return the item of an image file and its mask file."""
    signature = [(file.stat().st_size, file.stat().st_mtime_ns)
                 for file in (path, *([mask[0]] if mask else []))]
    return Item(name, str(signature), partial(_load, path, mask, labels))


def _load(path: Path, mask: tuple[Path, str] | None, labels: LabelSet
          ) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an image and its mask."""
    try:
        image = decode(path.read_bytes())
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror}') from None
    except Unusable as error:
        raise InputError(f'{path}: {error}') from None
    if mask is None:
        return image, None
    truth = _read_mask(*mask, labels)
    if truth.shape != image.shape[:2]:
        raise InputError(f'{mask[0]}: found {truth.shape[1]}x{truth.shape[0]} pixels, expected '
                         f'{image.shape[1]}x{image.shape[0]}, the size of {path}')
    return image, truth


def _read_mask(path: Path, kind: str, labels: LabelSet) -> np.ndarray:
    """Read a true mask and return its train ids; raises InputError for an id that is none."""
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if mask is None:
        raise InputError(f'{path}: not a readable PNG picture')
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise InputError(f'{path}: found {mask.dtype} {mask.shape}, expected uint8 with one '
                         'channel: the id of each pixel')
    if kind == 'cityscapes':
        mask = cv2.LUT(mask, CITYSCAPES_ID_TO_TRAIN_ID)
    expected = {label.train_id for label in labels.classes} | {IGNORE}
    found = np.flatnonzero(cv2.calcHist([mask], [0], None, [256], [0, 256]))
    if unknown := sorted(set(found.tolist()) - expected):
        raise InputError(
            f'{path}: found id {unknown[0]}, expected the train ids of the bundle or {IGNORE}; if '
            "these are Cityscapes' label ids, say so with --label-ids cityscapes")
    return mask
