# SPDX-License-Identifier: Apache-2.0
"""
The one finder of picture files: what a command takes from where, what it leaves, and why.

Directories are searched with all below them, through links too (into none twice), but for hidden
ones. A picture that is the mask of another one is never taken for a camera's: known by its name
(`X_gtFine_labelIds.png`, `golden/000.mask.png`), by a name or a folder that speaks of masks
beside a picture of the same name (`X_mask.png` beside `X.jpg`, `masks/X.png` beside
`images/X.jpg`), or by being of few colors where another one of the same name is not (`X.png`
beside `X.jpg`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
import glob
from itertools import takewhile
import os
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from trt_segmentation.errors import counted, InputError
from trt_segmentation.recordings import storage
from trt_segmentation.recordings.pictures import decode, Unusable
from trt_segmentation.recordings.pictures import SUFFIXES as _DECODED
from trt_segmentation.system import files
from trt_segmentation.system.files import own_name, readable

SUFFIXES = tuple(sorted({*_DECODED, '.jfif'}))
"""What a picture's name may end in, in small letters."""

# Pictures that people have, which are not read; named, so that nobody wonders where they are.
_OTHER_PICTURES = ('.arw', '.avif', '.cr2', '.cr3', '.dng', '.exr', '.gif', '.hdr', '.heic',
                   '.heif', '.j2k', '.jp2', '.jxl', '.nef', '.raw', '.svg', '.tga')
_VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.webm')
_RECORDING = '{} is a recording, name it itself'
_REPLAYED = '{} is a recording, which trt-segmentation replay reads'  # where none is taken
MASK_ENDINGS = ('_labelids', '_labeltrainids', '_instanceids', '_instancetrainids',
                '_gtfine_color', '_gtcoarse_color', '_disparity', '.mask')
"""Endings, in small letters, that are masks wherever they are: Cityscapes', golden frames'."""

PAIR_ENDINGS = ('_mask', '_masks', '_label', '_labels', '_gt', '_seg', '_segmentation',
                '_annotation', '_color', '_train_id', '_train_color', '_trainids', '_l',
                '-mask', '-label', '-gt', '-seg')
"""Endings, in small letters, of the masks beside the picture of the rest of the name."""

# Folders that hold masks, where a picture of the same name lies in another one.
_MASK_FOLDERS = frozenset((
    'annot', 'annotation', 'annotations', 'color_labels', 'ground_truth', 'groundtruth', 'gt',
    'gtcoarse', 'gtfine', 'instance', 'label', 'labelids', 'labels', 'lbl', 'mask', 'masks', 'seg',
    'segmentation', 'segmentationclass', 'segmentationobject', 'semantic', 'semantic_rgb',
    'truth'))
_IMAGE_ENDING = '_leftimg8bit'
FEW_COLORS = 32
"""A camera's picture has more colors than this; a mask has one a class."""

_LOSSY = ('.jpg', '.jpeg', '.jfif')
_QUESTIONED = 8  # pictures of each source that are looked at
_LOOKED_AT = 3  # pictures of a folder that may be one of masks
_NAMED = 3  # of what is left, in a sentence


@dataclass(frozen=True)
class PictureFile:
    """A picture file; `name` is relative to what it was found in, and can always be printed."""

    name: str
    path: str


@dataclass
class Found:
    """
    What was found.

    files: by name, each file once
    recordings: by name, each once
    taken: how many files each source gave
    left: names of what was not taken, by the reason
    questions: a sentence for each source whose pictures look like masks
    """

    files: list[PictureFile] = field(default_factory=list)
    recordings: list[Path] = field(default_factory=list)
    taken: dict[str, int] = field(default_factory=dict)
    left: dict[str, list[str]] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """Return what was taken from where, what was left and why, one line each."""
        places = Counter[str]()
        for source, count in self.taken.items():
            # What a shell makes of a glob is named one by one: what they are all in says more.
            alone = count == 1 and len(self.taken) > _NAMED
            places[os.path.dirname(source) or '.' if alone else source] += count
        lines = [f'{counted(count, "picture")} from {place}' for place, count in places.items()]
        for reason, names in self.left.items():
            shown = ', '.join(names[:_NAMED]) + (' ...' if len(names) > _NAMED else '')
            lines.append(f'{counted(len(names), "file")} left, {reason}: {shown}')
        return lines + self.questions


def find(sources: Iterable[str | os.PathLike[str]], *, recordings: bool = False) -> Found:
    """
    Return the pictures of files, directories, globs and list files.

    A directory in Cityscapes' layout (leftImg8bit/train/CITY/*.png) gives its training images
    only. A list file (.txt) has a path a line, relative to itself. What is named itself, as a
    file or in a list, is taken whatever its name says. Names are relative to the source, with a
    directory's own name before them; of a glob, that of the directory above its first wildcard.
    The order of the sources changes nothing.

    :param recordings: find recordings too, also below directories and by globs
    :raises InputError: for a source that does not exist, cannot be read or has no picture
    """
    found = Found()
    files: dict[str, PictureFile] = {}
    for source in (os.fspath(source) for source in sources):
        within = storage.within(source) if recordings else []
        found.recordings += within
        if within == [Path(source)]:
            continue
        taken = _expand(source, found)
        if within:
            for suffix in storage.PLAIN_SUFFIXES:
                found.left.pop(_RECORDING.format(suffix), None)
        if not taken and within:
            continue
        if not taken:
            raise InputError(nothing_in(source, found))
        fresh = []
        for file in taken:
            path = os.path.realpath(file.path)
            if path not in files:
                fresh.append(file)
            files[path] = max(files.get(path, file), file, key=_by_parts)
        found.taken[readable(source)] = len(fresh)
        if question := _question(readable(source), fresh):
            found.questions.append(question)
    found.recordings = storage.by_name(found.recordings)
    found.files = [file for _, file in sorted(
        files.items(), key=lambda item: (item[1].name, item[0]))]
    return found


def directory(path: str | os.PathLike[str]) -> Found:
    """
    Return the pictures under a directory, by their names relative to it.

    :raises InputError: if it is no directory, cannot be read or has no picture
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f'{readable(path)}: {_no_directory(path)}; expected a directory of '
                         'images')
    found = Found()
    found.files = sorted(_choose(_relative(path, walk(path)), found, _REPLAYED),
                         key=lambda file: file.name)
    if not found.files:
        raise InputError(nothing_in(os.fspath(path), found))
    found.taken[readable(path)] = len(found.files)
    if question := _question(readable(path), found.files):
        found.questions.append(question)
    return found


def walk(directory: str | os.PathLike[str]) -> Iterator[str]:
    """
    Yield the files under a directory by name, through links too, but into none twice.

    :raises InputError: if one of the directories cannot be read
    """
    yield from _walk(directory, set())


def few_colors(pixels: np.ndarray) -> bool:
    """
    Tell whether a picture has so few colors that it is hardly a camera's.

    :param pixels: uint8 (height, width, 3) or (height, width)
    """
    if pixels.ndim == 3:
        colors = pixels.astype(np.uint32) @ np.array([1, 1 << 8, 1 << 16], np.uint32)
    else:
        colors = pixels
    if len(np.unique(colors[::16, ::16])) > FEW_COLORS:  # as nearly every camera's
        return False
    return len(np.unique(colors)) <= FEW_COLORS


def nothing_in(source: str, found: Found) -> str:
    """Return the message for a source without a picture, with what it has instead."""
    text = (f'{readable(source)}: no image found; expected files ending in '
            f'{", ".join(SUFFIXES)}')
    if found.left:
        text += '; ' + '; '.join(Found(left=found.left).sentences())
    return text


def _no_directory(path: Path) -> str:
    """Return what a path is that is no directory."""
    if not path.exists():
        return 'no such directory'
    suffix = path.suffix.lower()
    return _REPLAYED.format(suffix) if suffix in storage.PLAIN_SUFFIXES else 'a file, no directory'


def _expand(source: str, found: Found) -> list[PictureFile]:
    """Return the pictures that a source stands for."""
    path = Path(source)
    if os.path.isdir(path):  # which is false, and no error, where that cannot be read
        top = path / 'leftImg8bit' if os.path.isdir(path / 'leftImg8bit') else path
        training = top.name == 'leftImg8bit' and os.path.isdir(top / 'train')
        return _below(path, walk(top / 'train' if training else top), found)
    if os.path.isfile(path):
        if path.suffix == '.txt':
            return _list_file(path)
        if reason := _no_picture(path.suffix.lower()):
            raise InputError(f'{readable(path)}: {reason}')
        return [PictureFile(readable(path.name), source)]
    matches = sorted(glob.glob(source, recursive=True)) if glob.has_magic(source) else []
    if not matches:
        raise InputError(f'{readable(source)}: no such file, directory or glob'
                         + readable(files.nearest_path(source)))
    above = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
    return _below(above, filter(os.path.isfile, matches), found)


def _below(root: Path, paths: Iterable[str], found: Found) -> list[PictureFile]:
    """Return the pictures among files below a directory, named with its own name before theirs."""
    name = readable(own_name(root))
    return [PictureFile(str(PurePosixPath(name, file.name)), file.path)
            for file in _choose(_relative(root, paths), found)]


def _relative(root: Path, paths: Iterable[str]) -> list[PictureFile]:
    """Return files with their names relative to a directory."""
    return [PictureFile(readable(os.path.relpath(path, root)), path) for path in paths]


def _by_parts(file: PictureFile) -> tuple[list[str], str]:
    """Return what orders the names of one file: of links in a directory the last one is kept."""
    return file.name.split('/'), file.path


def _choose(files: Sequence[PictureFile], found: Found, recording: str = _RECORDING
            ) -> list[PictureFile]:
    """Return the pictures among files; note the others in `found.left`, recordings as told."""
    judge = _MaskJudge([file for file in files if file.path.lower().endswith(SUFFIXES)])
    taken = []
    for file in files:
        suffix = os.path.splitext(file.path)[1].lower()
        if suffix in SUFFIXES:
            reason = judge.reason(file)
        elif suffix in storage.PLAIN_SUFFIXES:
            reason = recording.format(suffix)
        elif not (reason := _no_picture(suffix)):
            continue
        if reason:
            found.left.setdefault(reason, []).append(file.name)
        else:
            taken.append(file)
    return taken


def _no_picture(suffix: str) -> str:
    """Return what is to be done with files of a kind that is not taken; '' for any other."""
    if suffix in _OTHER_PICTURES:
        return f'{suffix} is not read, convert them to PNG or JPEG'
    if suffix in _VIDEOS:
        return f'{suffix} is a video, take pictures or a rosbag out of it'
    return ''


class _MaskJudge:
    """Tells which pictures of one source are masks of others."""

    def __init__(self, pictures: Sequence[PictureFile]):
        self._stems: dict[str, list[PictureFile]] = {}
        self._folders: dict[str, list[PictureFile]] = {}
        for file in pictures:
            self._stems.setdefault(_stem(file), []).append(file)
            self._folders.setdefault(_folder(file), []).append(file)
        self._of_masks: dict[str, bool] = {}
        self._elsewhere = any(not _in_mask_folder(file) for file in pictures)

    def reason(self, file: PictureFile) -> str:
        """Return why a picture is a mask, or ''."""
        stem = _stem(file)
        if stem.endswith(MASK_ENDINGS):
            return 'their names are those of masks or depths'
        for ending in PAIR_ENDINGS:
            if stem.endswith(ending) and stem.removesuffix(ending) in self._stems:
                return f'masks of pictures of the name without {ending}'
        partners = [other for other in self._stems[stem] if other is not file]
        if _in_mask_folder(file):
            if any(not _in_mask_folder(other) for other in partners):
                return 'masks of pictures of the same name in another folder'
            if self._elsewhere and self._folder_of_masks(_folder(file)):
                return 'of few colors, in a folder for masks'
        for other in partners:
            if _folder(other) == _folder(file):
                if _has_few_colors(file) and not _has_few_colors(other):
                    return 'of few colors beside a picture of the same name'
            elif (self._folder_of_masks(_folder(file))
                  and not self._folder_of_masks(_folder(other))):
                return 'of few colors, and another folder has pictures of the same names'
        return ''

    def _folder_of_masks(self, folder: str) -> bool:
        """Tell whether the pictures of a folder, as far as looked at, have few colors."""
        if folder not in self._of_masks:
            sample = self._folders[folder][:_LOOKED_AT]
            self._of_masks[folder] = all(map(_has_few_colors, sample))
        return self._of_masks[folder]


def _stem(file: PictureFile) -> str:
    """Return the last part of a picture's name in small letters, without what masks lack."""
    name = PurePosixPath(file.name).name
    return os.path.splitext(name)[0].lower().removesuffix(_IMAGE_ENDING)


def _folder(file: PictureFile) -> str:
    """Return the folder part of a picture's name."""
    return str(PurePosixPath(file.name).parent)


def _in_mask_folder(file: PictureFile) -> bool:
    """Tell whether one of the folders of a picture's name is one for masks."""
    return any(part.lower() in _MASK_FOLDERS for part in PurePosixPath(file.name).parts[:-1])


def _has_few_colors(file: PictureFile) -> bool:
    """Tell whether a picture file can be read and has few colors."""
    if file.path.lower().endswith(_LOSSY):
        return False  # at the edges of a mask it has many
    try:
        return few_colors(decode(Path(file.path).read_bytes()))
    except (OSError, Unusable, cv2.error):
        return False


def _question(source: str, files: Sequence[PictureFile]) -> str:
    """Return a sentence if pictures of a source look like masks, or ''."""
    lossless = [file for file in files if not file.path.lower().endswith(_LOSSY)]
    sample = lossless[::max(1, len(lossless) // _QUESTIONED)][:_QUESTIONED]
    strange = [file.name for file in sample if _has_few_colors(file)]
    if not strange:
        return ''
    were = 'was looked at has' if len(sample) == 1 else 'were looked at have'
    return (f'{len(strange)} of {counted(len(sample), "picture")} of {source} that {were} '
            f'{FEW_COLORS} colors or fewer, as {strange[0]}: are they masks?')


def _walk(directory: str | os.PathLike[str], seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yield the files under a directory that is not in `seen`."""
    try:
        entries = storage.listing(directory, seen)
    except OSError as error:
        raise InputError(
            f'{readable(directory)}: cannot be read: {error.strerror}') from None
    for path, is_directory in entries:
        if is_directory:
            yield from _walk(path, seen)
        else:
            yield path


def _list_file(path: Path) -> list[PictureFile]:
    """Return the pictures that a list file names."""
    try:
        lines = path.read_text(encoding='utf-8-sig', errors='surrogateescape').splitlines()
    except OSError as error:
        raise InputError(f'{readable(path)}: cannot be read: {error.strerror}') from None
    found = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line or line.startswith('#'):
            continue
        image = path.parent / line
        if not image.is_file():
            raise InputError(readable(f'{path}:{number}: no such file: {image}'))
        found.append(PictureFile(readable(line), str(image)))
    return found
