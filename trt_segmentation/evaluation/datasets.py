# SPDX-License-Identifier: Apache-2.0
"""Images with or without true masks: folders, Cityscapes' layout, the sample scenes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
import os
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.errors import counted, InputError
from trt_segmentation.evaluation import masks
from trt_segmentation.recordings import bags, decoder, finder, storage
from trt_segmentation.recordings.image_messages import to_image
from trt_segmentation.recordings.layouts import as_bgr
from trt_segmentation.recordings.limits import MalformedImage
from trt_segmentation.recordings.pictures import decode, Unusable
from trt_segmentation.sample import scenes
from trt_segmentation.system import files

_IMAGE_ENDING = '_leftImg8bit'
# Cityscapes' endings, and what the pixels are; of two masks of one image the later one is taken.
_CITYSCAPES_ENDINGS = {
    '_gtFine_labelTrainIds': 'cityscapes-train', '_labelTrainIds': 'cityscapes-train',
    '_gtFine_labelIds': 'cityscapes', '_labelIds': 'cityscapes',
}
_OTHER_MASKS = ('.bmp', '.gif', '.jpeg', '.jpg', '.tif', '.tiff', '.webp')
_Seen = TypeVar('_Seen')

Loaded = tuple[str, np.ndarray, np.ndarray | None]
"""(name, BGR uint8 (height, width, 3), true train ids uint8 (height, width) or None)."""


@dataclass(frozen=True)
class Item:
    """
    An image that can be loaded, with its true mask if there is one.

    name: the same wherever the data lies
    signature: changes when the files do, or the way in which they are read
    load: returns (image, truth or None) as in `Loaded`; raises InputError
    truth: returns the true mask alone; None if there is none, or it is drawn with the image
    digest: returns the sha256 by which a calibration knows it; None if it is drawn
    """

    name: str
    signature: str
    load: Callable[[], tuple[np.ndarray, np.ndarray | None]]
    truth: Callable[[], np.ndarray] | None = None
    digest: Callable[[], str] | None = None


@dataclass(frozen=True)
class DataSet:
    """The images of an evaluation by name; `notes` are lines of what was taken and what left."""

    items: Sequence[Item]
    notes: list[str] = field(default_factory=list)


def folder(images: str | os.PathLike, labels: LabelSet, truths: str | os.PathLike | None = None,
           *, label_ids: str | None = None) -> DataSet:
    """
    Return the images under a directory, by name.

    A true mask is a PNG file of the image's relative name, alone or with an ending (`_mask`,
    `_label`, .., or Cityscapes': X_leftImg8bit.png and X_gtFine_labelIds.png).

    :param labels: the train ids that a mask may have
    :param truths: the directory of true masks, which may be that of the images
    :param label_ids: what the masks' pixels are, one of `masks.ID_SPACES`; if left out, what
        Cityscapes' endings say, else the bundle's train ids
    :raises InputError: if there is no image, an image has no mask, or the ids cannot be read for
        these labels
    """
    found = finder.directory(images)
    if truths is None:
        return DataSet([_item(file, None, None) for file in found.files], found.sentences())
    pngs = _pngs(Path(truths))
    used = {os.path.realpath(file.path) for file in found.files}
    pairs = _masks(Path(truths), [path for path, real in pngs.items() if real not in used])
    readings: dict[str, masks.Reading] = {}
    items = []
    for file in found.files:
        key = os.path.splitext(file.name)[0].removesuffix(_IMAGE_ENDING)
        if key not in pairs:
            raise InputError(_no_mask(file.path, Path(truths), key))
        path, said = pairs[key]
        ids = label_ids or said
        if ids not in readings:
            try:
                readings[ids] = masks.reading_of(ids, labels)
            except InputError as error:
                raise InputError(f'{files.readable(path)}: {error}') from None
        used.add(pngs[path])
        items.append(_item(file, path, readings[ids]))
    return DataSet(items, found.sentences() + _unused(
        Path(truths), [path for path, real in pngs.items() if real not in used]))


def recordings(sources: Sequence[str]) -> DataSet:
    """
    Return the camera's pictures of recordings: files, directories with recordings below, globs.

    :raises InputError: for one that is no recording, or has no topic with pictures of a camera
    """
    paths: list[Path] = []
    for source in sources:
        within = storage.within(source)
        if not within:
            raise InputError(f'{files.readable(source)}: no recording; name recordings only, or '
                             'one directory of pictures')
        paths += within
    items, notes = [], []
    for path in storage.by_name(paths):
        name = files.own_name(path)
        reader = bags.Reader(path)
        reader.choose_cameras()
        # A directory's own numbers stay where a file in it is written over.
        signature = str([_status(file) for file in storage.files(path)])
        # Only where each picture lies is kept; another process can load it too.
        items += [Item(f'{name}{recorded.topic}@{recorded.time_ns}', signature,
                       partial(_load_recorded, str(path), recorded.place, recorded.where),
                       digest=partial(_recorded_digest, str(path), recorded.place))
                  for recorded in reader]
        notes += [f'{counted(count, "message")} on {topic} of {files.readable(path)}'
                  for topic, count in sorted(reader.given.items())]
        notes += reader.problems
        reader.close()
    names = Counter(item.name for item in items)
    if again := [name for name, count in names.items() if count > 1]:
        raise InputError(f'{again[0]}: there are two pictures of that name: the recordings have '
                         'the same file name and times')
    return DataSet(items, notes)


def cityscapes(root: str | os.PathLike, labels: LabelSet, split: str = 'val') -> DataSet:
    """
    Return the images of a split of Cityscapes: leftImg8bit/SPLIT/CITY and gtFine/SPLIT/CITY.

    Its classes are found among the bundle's by name.

    :raises InputError: if one of the two directories is not there, an image has no mask, or the
        bundle does not have all classes
    """
    parts = [Path(root) / name / split for name in ('leftImg8bit', 'gtFine')]
    for part in parts:
        if not part.is_dir():
            raise InputError(f'{files.readable(part)}: no such directory; expected the layout '
                             f'of Cityscapes: leftImg8bit/{split} and gtFine/{split}')
    return folder(parts[0], labels, parts[1])


def sample_scenes(count: int, labels: LabelSet) -> DataSet:
    """
    Return the first of the drawn scenes that were held out from training and calibration.

    Their classes, those of Cityscapes, are found among the bundle's by name.

    :raises InputError: if the bundle does not have all of them
    """
    from trt_segmentation import __version__
    try:
        table = masks.reading_of('cityscapes-train', labels).table
    except InputError as error:
        raise InputError(f'--scenes: they show the classes of Cityscapes: {error}') from None
    signature = f'{__version__} {files.sha256_bytes(table.tobytes())}'
    return DataSet([Item(f'scene {seed}', signature, partial(_scene, seed, table))
                    for seed in scenes.HELD_OUT_SEEDS[:count]])


def check_masks(items: Iterable[Item], labels: LabelSet) -> list[str]:
    """
    Read all true masks, which takes little beside a network, and judge them as a whole.

    :returns: what to tell of them, a line each
    :raises InputError: if one cannot be read or is not of its image's size, or if nothing can be
        measured with them
    """
    counts: Counter[int] = Counter()
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(_count, [item for item in items if item.truth]):
            counts.update(found)
    problem, notes = masks.problems(counts, labels)
    if problem:
        raise InputError(problem)
    return notes


def load_ahead(items: Iterable[Item], threads: int = 2) -> Iterator[Loaded]:
    """Yield the items in order, decoded a few ahead by other threads."""
    pool = ThreadPoolExecutor(threads)
    pending: deque[tuple[str, Future[tuple[np.ndarray, np.ndarray | None]]]] = deque()
    try:
        for item in items:
            pending.append((item.name, pool.submit(item.load)))
            if len(pending) > threads + 1:
                name, future = pending.popleft()
                yield name, *future.result()
        while pending:
            name, future = pending.popleft()
            yield name, *future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def calibrated_with(items: Iterable[Item], bundle: Bundle) -> list[str]:
    """
    Return a note if images are among those that the bundle was calibrated with.

    INT8 fits those better than the images of the next drive.
    """
    if not bundle.manifest_path.exists():
        return []
    seen = {image.sha256 for image in manifest.read(bundle.manifest_path).images}
    digests = [item.digest for item in items if item.digest is not None] if seen else []
    with ThreadPoolExecutor(2) as pool:
        number = sum(pool.map(lambda digest: digest() in seen, digests))
    return [f'{number} of {counted(len(digests), "image was", "images were")} calibrated with: '
            'figures of what a calibration has seen say little of the next drive'
            ] if number else []


def _scene(seed: int, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene and its mask, whose ids the table makes those of the bundle."""
    image, truth = scenes.scene(seed)
    return image, cv2.LUT(truth, table)


def _count(item: Item) -> dict[int, int]:
    """Return the pixels of an item's mask by train id."""
    assert item.truth is not None
    counts = np.bincount(item.truth().ravel(), minlength=256)
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}


def _pngs(directory: Path) -> dict[Path, str]:
    """Return the PNG files under a directory of true masks, each with its real path."""
    if not directory.is_dir():
        raise InputError(f'{files.readable(directory)}: no such directory; expected a directory '
                         'of true masks' + files.readable(files.nearest_path(directory)))
    return {path: os.path.realpath(path) for path in map(Path, finder.walk(directory))
            if path.suffix.lower() == '.png'}


def _masks(directory: Path, paths: Sequence[Path]) -> dict[str, tuple[Path, str]]:
    """Return path and kind of ids of each true mask in a directory, by its image's key."""
    found: dict[str, tuple[Path, str]] = {}
    keys = {path: files.readable(os.path.splitext(os.path.relpath(path, directory))[0])
            for path in paths}
    for path, key in keys.items():
        for ending in finder.PAIR_ENDINGS:
            if key.lower().endswith(ending):
                found[key[:-len(ending)]] = path, 'train'
    for path, key in keys.items():
        found[key] = path, 'train'
    for ending, ids in _CITYSCAPES_ENDINGS.items():
        for path, key in keys.items():
            if key.endswith(ending):
                found[key.removesuffix(ending)] = path, ids
    return found


def _unused(directory: Path, left: Sequence[Path]) -> list[str]:
    """Return a line of the PNG files in a directory that are no image's mask, if there are."""
    names = [files.readable(os.path.relpath(path, directory)) for path in left
             if not path.stem.lower().endswith(finder.MASK_ENDINGS)]
    if not names:
        return []
    shown = ', '.join(names[:3]) + (' ...' if len(names) > 3 else '')
    return [f'{counted(len(names), "PNG file")} of {files.readable(directory)} '
            f'left, not taken as the mask of any image: {shown}']


def _no_mask(image: str, truths: Path, key: str) -> str:
    """Return the message for an image without a mask."""
    mask = files.readable(truths / key)
    if (found := truths / f'{key}.png').is_file():
        return (f'{files.readable(image)}: it has no true mask: {files.readable(found)} is '
                f'{"that image" if os.path.samefile(found, image) else "an image"} itself; '
                f'expected the class id of each pixel in {mask}_mask.png or '
                f'{mask}_gtFine_labelIds.png, or --labels with another directory')
    text = (f'{files.readable(image)}: it has no true mask; expected {mask}.png or '
            f'{mask}_gtFine_labelIds.png')
    for suffix in _OTHER_MASKS:
        if (truths / (key + suffix)).is_file() and not os.path.samefile(truths / (key + suffix),
                                                                        image):
            return f'{text}, found {suffix}: masks must be PNG, which changes no pixel'
    return text


def _item(file: finder.PictureFile, mask: Path | None, reading: masks.Reading | None) -> Item:
    """Return the item of an image file and its mask file."""
    path = Path(file.path)
    signature: list[list[int] | list[str]] = [_status(path)]
    truth = None
    if mask is not None and reading is not None:
        signature += [_status(mask), [reading.ids, files.sha256_bytes(reading.table.tobytes())]]
        truth = partial(_truth, path, mask, reading)
    return Item(file.name, str(signature), partial(_load, path, truth), truth,
                partial(files.sha256_file, path))


@lru_cache(maxsize=4)
def _recording(path: str) -> bags.Reader:
    """Return a recording, open."""
    return bags.Reader(path)


def _load_recorded(path: str, place: bags.Place, where: str) -> tuple[np.ndarray, None]:
    """Return the picture at a place of a recording; `where` is the place in words."""
    try:
        return as_bgr(*to_image(_recording(path).load(place))), None
    except (ValueError, MalformedImage) as error:
        raise InputError(f'{files.readable(path)}: {where}: {error}') from None


def _recorded_digest(path: str, place: bags.Place) -> str:
    """Return the sha256 of a message's picture; '' of one that cannot be read."""
    try:
        return files.sha256_bytes(bytes(_recording(path).load(place).data))
    except ValueError:
        return ''


def _status(path: Path) -> list[int]:
    """Return numbers that change with a file's content."""
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(
            f'{files.readable(path)}: cannot be read: {error.strerror}') from None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _load(path: Path, truth: Callable[[], np.ndarray] | None
          ) -> tuple[np.ndarray, np.ndarray | None]:
    """Read an image and its mask."""
    return _of_image(path, decode), None if truth is None else truth()


def _truth(path: Path, mask: Path, reading: masks.Reading) -> np.ndarray:
    """Read a true mask, which must have the size that its image's header says."""
    ids = masks.read(mask, reading)
    height, width = _of_image(path, decoder.size)
    if ids.shape != (height, width):
        raise InputError(f'{files.readable(mask)}: found {ids.shape[1]}x{ids.shape[0]} pixels, '
                         f'expected {width}x{height}, the size of {files.readable(path)}')
    return ids


def _of_image(path: Path, look: Callable[[bytes], _Seen]) -> _Seen:
    """Return what a function finds in an image file's bytes; raises InputError."""
    try:
        return look(path.read_bytes())
    except OSError as error:
        raise InputError(
            f'{files.readable(path)}: cannot be read: {error.strerror}') from None
    except (MalformedImage, Unusable) as error:
        raise InputError(f'{files.readable(path)}: {error}') from None
