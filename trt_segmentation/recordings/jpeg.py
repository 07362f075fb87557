# SPDX-License-Identifier: Apache-2.0
"""
What a JPEG picture says of itself, and whether all of it is there (ISO/IEC 10918-1).

Decoders fill what is missing with gray or with the rows above, in silence, each version of OpenCV
in another way. So markers are checked here, before anything is decoded, and the decoder's own
warnings are refusals.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
import re

import numpy as np

from trt_segmentation.recordings import tiff
from trt_segmentation.recordings.limits import check_size, damaged, MalformedImage, MAX_PIXELS

SIGNATURE = b'\xff\xd8'
_MAX_SEGMENTS = 1000  # before the first scan; real pictures have some tens
_MAX_SCANS = 200
# A progressive picture is gone through once a scan. The standard's script for color has 10.
_MAX_SCANNED = 12 * MAX_PIXELS
_FILL_BYTES = re.compile(rb'\xff*')
# By table B.1: C0..CF without DHT (C4), JPG (C8) and DAC (CC).
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE, _PROGRESSIVE = 0xC0, 0xC2
_TAKEN = (_BASELINE, 0xC1, _PROGRESSIVE)  # what every libjpeg decodes
_SOS, _EOI, _DRI, _APP1, _APP14 = 0xDA, 0xD9, 0xDD, 0xE1, 0xEE
GRAY = 'gray'
PLAIN = {GRAY: (1, 1), '4:4:4': (1, 1), '4:2:2': (2, 1), '4:2:0': (2, 2)}
"""What `plain` returns, and how many (columns, rows) of luma a sample of chroma has there."""


@dataclass
class Frame:
    """
    A start of frame, and what is found between it and the picture's end.

    sampling: (horizontal, vertical) factors of each component, by its id
    lowest: of each component's 64 coefficients, the lowest bit that a scan has brought; -1 where
        none has
    """

    height: int
    width: int
    progressive: bool
    sampling: dict[int, tuple[int, int]]
    lowest: dict[int, np.ndarray] = field(default_factory=dict)

    def units(self, components: list[int]) -> int:
        """Return how many minimum coded units a scan has (section A.2)."""
        widest = max(h for h, _ in self.sampling.values())
        highest = max(v for _, v in self.sampling.values())
        if len(components) > 1:
            return ceil(self.width / (8 * widest)) * ceil(self.height / (8 * highest))
        h, v = self.sampling[components[0]]
        return (ceil(ceil(self.width * h / widest) / 8)
                * ceil(ceil(self.height * v / highest) / 8))


def size(data: memoryview) -> tuple[int, int]:
    """Return the (height, width) in a JPEG picture's start of frame; raises MalformedImage."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        code, start, end = _segment(data, at)
        if code in _START_OF_FRAME:
            frame = _start_of_frame(code, data[start:end])
            return frame.height, frame.width
        at = end
    raise damaged('the JPEG data has no size')


def orientation(data: memoryview) -> int:
    """Return the orientation tag (Exif 2.3, 4.6.4 A) of a JPEG picture, 1 where it has none."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        code, start, end = _segment(data, at)
        if code in (_SOS, _EOI):
            break
        if code == _APP1 and bytes(data[start:start + 6]) == b'Exif\0\0':
            return tiff.orientation(data[start + 6:end])
        at = end
    return 1


def plain(data: memoryview) -> str:
    """
    Return the sampling of a picture as cameras give them, one of `PLAIN`; '' for any other.

    That is a baseline one in one scan, of gray or of Y, Cb and Cr, and of more than 4 columns:
    libjpeg does not interpolate the chroma of fewer.

    :raises MalformedImage: if its markers are not in order up to the first scan
    """
    frame, at = None, 2
    for _ in range(_MAX_SEGMENTS):
        code, start, end = _segment(data, at)
        if code == _BASELINE:
            frame = _start_of_frame(code, data[start:end])
        elif code == _SOS and frame is not None and _scan(frame, data[start:end]) == list(
                frame.sampling):
            return _plain_sampling(frame)
        # Adobe's marker may tell that the colors are others.
        elif code in (_SOS, _EOI, _APP14) or code in _START_OF_FRAME:
            break
        at = end
    return ''


def plane_sizes(size: tuple[int, int], sampling: str) -> list[tuple[int, int]]:
    """Return the (height, width) of each plane of a picture of that size and of `PLAIN`."""
    columns, rows = PLAIN[sampling]
    chroma = ceil(size[0] / rows), ceil(size[1] / columns)
    return [size] if sampling == GRAY else [size, chroma, chroma]


def check(data: memoryview) -> None:
    """
    Go through a JPEG picture's markers to its end.

    Every scan must have its restart markers, in order and in number, and end at a marker that may
    follow; the scans must bring every coefficient of every component; and there must be data
    enough for the claimed size. Bytes changed within a scan show in the decoder's warnings only.

    :raises MalformedImage: if that is not so, or if decoding would take too long
    """
    values = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(values[:-1] == 0xFF)
    codes = values[marks + 1]
    real = (codes != 0) & (codes != 0xFF)
    marks, codes = marks[real], codes[real]
    no_restart = np.flatnonzero((codes & 0xF8) != 0xD0)
    frame: Frame | None = None
    at, interval, scans, coded = 2, 0, 0, 0
    for _ in range(_MAX_SEGMENTS + _MAX_SCANS):
        code, start, end = _segment(data, at)
        at = end
        if code in _START_OF_FRAME:
            if frame is not None:
                raise damaged('the JPEG data has two starts of frame: it is mixed from two')
            frame = _start_of_frame(code, data[start:end])
            check_size(frame.height, frame.width)
        elif code == _DRI:
            interval = int.from_bytes(data[start:end], 'big')
        elif code == _EOI:
            break
        elif code == _SOS:
            if frame is None:
                raise damaged('the JPEG data has a scan before its size')
            scans += 1
            if scans > _MAX_SCANS or scans * frame.height * frame.width > _MAX_SCANNED:
                raise MalformedImage('absurd_size', f'the JPEG data has {scans} scans or more of '
                                     f'{frame.width}x{frame.height} pixels; decoding it would '
                                     'take too long')
            components = _scan(frame, data[start:end])
            first = int(np.searchsorted(marks, end))
            at_last = int(np.searchsorted(no_restart, first))
            if at_last == len(no_restart):
                raise damaged('the JPEG data is cut short: it has no end')
            last = int(no_restart[at_last])
            _check_restarts(codes[first:last], frame.units(components), interval)
            at = int(marks[last])
            coded += at - end
    else:
        raise damaged('the JPEG data has too many segments')
    if frame is None or not scans:
        raise damaged('the JPEG data ends before its pixels')
    _check_complete(frame, coded)


def _segment(data: memoryview, at: int) -> tuple[int, int, int]:
    """Return code, first byte and end of the marker segment at a place."""
    fill = _FILL_BYTES.match(data, at)
    at = max(fill.end() - 1 if fill else at, at)
    if at + 2 > len(data):
        raise damaged('the JPEG data is cut short: it has no end')
    if data[at] != 0xFF:
        raise damaged(f'the JPEG data has no marker at byte {at}')
    code = data[at + 1]
    if code == _EOI:
        return code, at + 2, at + 2
    if 0xD0 <= code <= 0xD8 or code in (0x00, 0x01):
        raise damaged(f'the JPEG data has marker {code:02X} where a segment belongs')
    length = int.from_bytes(data[at + 2:at + 4], 'big')
    end = at + 2 + length
    if end > len(data) or length < 2:
        raise damaged('the JPEG data is cut short: it ends before its pixels')
    return code, at + 4, end


def _start_of_frame(code: int, segment: memoryview) -> Frame:
    """Return what a start of frame says (B.2.2)."""
    if len(segment) < 6 or len(segment) != 6 + 3 * segment[5]:
        raise damaged('the JPEG data has a start of frame of a wrong length')
    if code not in _TAKEN or segment[0] != 8:
        raise MalformedImage('undecodable', f'JPEG of process {code:02X} with {segment[0]} bits; '
                             'expected baseline or progressive with 8 bits')
    sampling = {}
    for i in range(6, len(segment), 3):
        sampling[segment[i]] = segment[i + 1] >> 4, segment[i + 1] & 15
    if not sampling or len(sampling) != segment[5] or not all(
            1 <= factor <= 4 for factors in sampling.values() for factor in factors):
        raise damaged('the JPEG data has a start of frame that contradicts itself')
    frame = Frame(int.from_bytes(segment[1:3], 'big'), int.from_bytes(segment[3:5], 'big'),
                  code == _PROGRESSIVE, sampling)
    frame.lowest = {component: np.full(64, -1) for component in sampling}
    return frame


def _plain_sampling(frame: Frame) -> str:
    """Return the sampling of a frame if it is one of `PLAIN`, else ''."""
    if len(frame.sampling) == 1:
        return GRAY
    # By these identifiers every decoder knows Y, Cb and Cr.
    luma, *chroma = frame.sampling.values()
    if list(frame.sampling) != [1, 2, 3] or chroma != [(1, 1), (1, 1)] or frame.width <= 4:
        return ''
    return next((name for name, factors in PLAIN.items()
                 if name != GRAY and factors == luma), '')


def _scan(frame: Frame, segment: memoryview) -> list[int]:
    """Return the components of a scan (B.2.3), and note which coefficients it brings."""
    count = segment[0] if len(segment) else 0
    if not 1 <= count <= 4 or len(segment) != 4 + 2 * count:
        raise damaged('the JPEG data has a start of scan of a wrong length')
    components = list(segment[1:1 + 2 * count:2])
    if len(set(components)) != count or not set(components) <= set(frame.sampling):
        raise damaged('the JPEG data has a scan of components that there are not')
    first, last, low = segment[-3], segment[-2], segment[-1] & 15
    if not frame.progressive:
        first, last, low = 0, 63, 0
    elif not first <= last < 64:
        raise damaged('the JPEG data has a scan of coefficients that there are not')
    for component in components:
        frame.lowest[component][first:last + 1] = low
    return components


def _check_restarts(codes: np.ndarray, units: int, interval: int) -> None:
    """Raise MalformedImage unless a scan's restart markers are in order and all there (B.2.1)."""
    expected = ceil(units / interval) - 1 if interval else 0
    if len(codes) != expected or np.any((codes & 7) != np.arange(len(codes)) % 8):
        raise damaged(f'the JPEG data has {len(codes)} restart markers in a scan, expected '
                      f'{expected} in order: parts are lost or mixed')


def _check_complete(frame: Frame, coded: int) -> None:
    """Raise MalformedImage if coefficients are missing, or bytes for so many blocks."""
    if any(np.any(lowest) for lowest in frame.lowest.values()):
        raise damaged('the JPEG data is cut short: scans are missing')
    blocks = sum(frame.units([component]) for component in frame.sampling)
    # A Huffman code has a bit or more; a sequential block has two codes at least, the first scan
    # of a progressive one a code.
    if 8 * coded < blocks * (1 if frame.progressive else 2):
        raise damaged(f'the JPEG data has {coded} bytes of pixels, too few for '
                      f'{frame.width}x{frame.height}')
