# SPDX-License-Identifier: Apache-2.0
"""Pictures of masks for people: overlays, differences, contact sheets, legends."""

from __future__ import annotations

from collections.abc import Sequence
import unicodedata

import cv2
import numpy as np

from trt_segmentation.bundles.labels import IGNORE, LabelSet

_COMPARISON_WIDTH = 400  # of each part of a comparison, pixels
_GAP = 4  # pixels between the pictures of a sheet
_LINE = 22  # height of a legend's line, pixels
_OUTLINE = (96, 96, 96)  # of a legend's colors
_HIGHEST = 2  # times its width: what a picture of a sheet is high at most
_RULE = 128  # gray between the pictures of a sheet: white ends there, and black
_DIFFERENT = (0, 0, 255)  # BGR
_LETTERS = str.maketrans({  # what has another spelling, or cannot be decomposed
    'ä': 'ae', 'ö': 'oe', 'ü': 'ue', 'Ä': 'Ae', 'Ö': 'Oe', 'Ü': 'Ue', 'ß': 'ss', 'ẞ': 'SS',
    'æ': 'ae', 'Æ': 'AE', 'ø': 'oe', 'Ø': 'Oe', 'œ': 'oe', 'Œ': 'OE', 'ł': 'l', 'Ł': 'L',
})


def colorize(classes: np.ndarray, labels: LabelSet) -> np.ndarray:
    """
    Return a class mask in the colors of the palette.

    :param classes: uint8 (height, width), train ids
    :returns: uint8 (height, width, 3), BGR
    """
    return cv2.applyColorMap(classes, labels.palette_bgr[:, None])


def overlay(image: np.ndarray, color: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """
    Return the image with its color mask laid over it.

    :param image, color: uint8 (height, width, 3), both BGR, the same size
    :param opacity: of the mask, 0..1
    """
    return cv2.addWeighted(image, 1 - opacity, color, opacity, 0)


def difference(image: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """
    Return the image in dim gray, with the pixels where two class masks differ in red.

    :param image: uint8 (height, width, 3), BGR
    :param first, second: uint8 (height, width), train ids; 255 in the first differs from nothing
    """
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) // 2 + 64
    picture = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    picture[(first != second) & (first != IGNORE)] = _DIFFERENT
    return picture


def comparison_picture(image: np.ndarray, reference: np.ndarray, mask: np.ndarray,
                       labels: LabelSet, names: tuple[str, str]) -> bytes:
    """
    Return a JPEG picture: the image, the reference's mask, where they differ, and the other.

    :param image: uint8 (height, width, 3), BGR
    :param reference, mask: uint8 (height, width), train ids
    :param names: of the two, for the titles
    """
    def titles(*texts: str) -> tuple[np.ndarray, ...]:
        return tuple(caption(text, _COMPARISON_WIDTH) for text in texts)

    picture = tile([titles('input', names[0]), (image, outlined(reference, labels)),
                    titles('difference, in red', names[1]),
                    (difference(image, reference, mask), outlined(mask, labels))],
                   _COMPARISON_WIDTH)
    return cv2.imencode('.jpg', picture, (cv2.IMWRITE_JPEG_QUALITY, 80))[1].tobytes()


def comparison_sheet(rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
                     titles: Sequence[str], labels: LabelSet, width: int = 360) -> np.ndarray:
    """
    Return one picture: titles, a row for each frame (image, two masks, difference), a legend.

    :param rows: BGR images uint8 (height, width, 3), each with the reference's train ids and the
        other's, uint8 (height, width)
    :param titles: of the four columns
    :param width: of each column, pixels
    """
    sheet = tile([tuple(caption(title, width) for title in titles)]
                 + [(image, outlined(reference, labels), outlined(mask, labels),
                     difference(image, reference, mask))
                    for image, reference, mask in rows], width)
    return stack([sheet, legend(labels, sheet.shape[1])])


def outlined(classes: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Return a mask in the palette's colors, with a dark line where the class changes."""
    color = colorize(classes, labels)
    kernel = np.ones((3, 3), np.uint8)
    color[cv2.morphologyEx(classes, cv2.MORPH_GRADIENT, kernel) > 0] //= 3
    return color


def tile(rows: Sequence[Sequence[np.ndarray]], width: int) -> np.ndarray:
    """
    Return pictures in rows and columns, each scaled to one width, with gray lines between.

    One that would be too high for that, as a line of pixels, is scaled to a height instead.

    :param rows: rows of BGR pictures, as many in each; the pictures of a row have one shape
    :param width: of each column, pixels
    """
    lines = []
    for row in rows:
        shape = row[0].shape
        factor = min(width / shape[1], _HIGHEST * width / shape[0])
        height, inner = (max(1, round(side * factor)) for side in shape[:2])
        gap = np.full((height, _GAP, 3), _RULE, np.uint8)
        cells = [cv2.copyMakeBorder(
            cv2.resize(picture, (inner, height), interpolation=cv2.INTER_AREA),
            0, 0, 0, width - inner, cv2.BORDER_CONSTANT, value=(_RULE,) * 3) for picture in row]
        lines.append(np.hstack([cells[0], *(part for cell in cells[1:] for part in (gap, cell))]))
    return stack(lines)


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Return BGR pictures of one width one below the other, with gray lines between."""
    gap = np.full((_GAP, pictures[0].shape[1], 3), _RULE, np.uint8)
    return np.vstack([pictures[0], *(part for picture in pictures[1:] for part in (gap, picture))])


def caption(text: str, width: int) -> np.ndarray:
    """Return a line of text on white, of the given width in pixels, uint8 BGR."""
    picture = np.full((_LINE, width, 3), 255, np.uint8)
    _write(picture, text, (_GAP, 16))
    return picture


def legend(labels: LabelSet, width: int) -> np.ndarray:
    """
    Return a picture of the given width with the color and name of each class.

    A class whose name has letters that the font lacks is shown by its train id.
    """
    entries = [(f'class {label.train_id}' if '?' in in_ascii(label.name.replace('?', ''))
                else label.name, label.color[::-1]) for label in labels.classes]
    columns = max(1, width // 170)
    lines = -(-len(entries) // columns)
    picture = np.full((lines * _LINE + 2 * _GAP, width, 3), 255, np.uint8)
    for i, (name, color) in enumerate(entries):
        line, column = divmod(i, columns)
        x, y = column * (width // columns) + _GAP, line * _LINE + 2 * _GAP
        cv2.rectangle(picture, (x, y), (x + 14, y + 12), color, cv2.FILLED)
        # So that white is seen too.
        cv2.rectangle(picture, (x - 1, y - 1), (x + 15, y + 13), _OUTLINE, 1)
        _write(picture, name, (x + 20, y + 11))
    return picture


def in_ascii(text: str) -> str:
    """Return a text with the nearest ASCII letters: OpenCV's font has no others."""
    composed = unicodedata.normalize('NFC', text).translate(_LETTERS)
    decomposed = unicodedata.normalize('NFKD', composed)
    base = ''.join(letter for letter in decomposed if not unicodedata.combining(letter))
    return base.encode('ascii', 'replace').decode()


def _write(picture: np.ndarray, text: str, place: tuple[int, int]) -> None:
    """Write a line of black text, whose first letter stands at a place (x, y)."""
    cv2.putText(picture, in_ascii(text), place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1,
                cv2.LINE_AA)
