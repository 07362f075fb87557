# SPDX-License-Identifier: Apache-2.0
"""
Measure what it costs to check a compressed picture before it is decoded.

    python benchmarks/pictures.py PICTURE

The picture is brought to 1920x1080 and encoded as JPEG and PNG. Times are the smallest of 100, of
decoding of 10, in ms; `sum` is zlib's CRC-32 over all bytes, which is the least that a PNG takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from zlib import crc32

import cv2

from trt_segmentation.recordings import decoder, jpeg, png
from trt_segmentation.system import scripts

SIZE = 1920, 1080


def smallest_ms(function: Callable[[memoryview], object], data: memoryview, count: int) -> float:
    """Return the smallest time of some calls."""
    times = []
    for _ in range(count):
        start = perf_counter()
        function(data)
        times.append(perf_counter() - start)
    return min(times) * 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('picture', type=Path, help='a picture of a camera')
    pixels = cv2.resize(decoder.decode(parser.parse_args().picture.read_bytes()), SIZE,
                        interpolation=cv2.INTER_AREA)
    print(f'{"":<16} {"bytes":>9} {"check":>7} {"sum":>7} {"decode":>8}')
    for name, suffix, options, check in (
            ('JPEG, quality 80', '.jpg', (cv2.IMWRITE_JPEG_QUALITY, 80), jpeg.check),
            ('JPEG, quality 95', '.jpg', (cv2.IMWRITE_JPEG_QUALITY, 95), jpeg.check),
            ('PNG, level 1', '.png', (cv2.IMWRITE_PNG_COMPRESSION, 1), png.checked),
            ('PNG, level 6', '.png', (cv2.IMWRITE_PNG_COMPRESSION, 6), png.checked)):
        data = memoryview(bytes(cv2.imencode(suffix, pixels, options)[1]))
        took = [smallest_ms(check, data, 100), smallest_ms(crc32, data, 100),
                smallest_ms(decoder.decode, data, 10)]
        print(f'{name:<16} {len(data):>9} {took[0]:>7.3f} {took[1]:>7.3f} {took[2]:>8.1f}')


if __name__ == '__main__':
    scripts.end_in_a_line()
    main()
