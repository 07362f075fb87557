# SPDX-License-Identifier: Apache-2.0
"""
Where each pixel comes from: the tables by which the kernels resample.

Resampling is separable, so one table for rows and one for columns say all of it: fit, crop,
letterbox, interpolation, and the way back. They are made here, once for each image size, in the
arithmetic of OpenCV's resize (imgproc/src/resize.cpp), and the kernels only look them up. What
lies outside has the index -1.
"""

from __future__ import annotations

import cv2
import numpy as np

from trt_segmentation.bundles.geometry import Geometry

TAP = np.dtype([('first', np.int32), ('second', np.int32), ('weight', np.float32)])
"""value = source[first] * (1 - weight) + source[second] * weight"""

FIXED_TAP = np.dtype([('first', np.int32), ('second', np.int32), ('weight', np.int32)])
"""The same with the weight in 2048ths, as OpenCV resizes uint8."""

CELL = np.dtype([('start', np.int32), ('count', np.int32), ('first', np.float32),
                 ('middle', np.float32), ('last', np.float32)])
"""value = weighted sum of `count` sources from `start`; the outermost have weights of their own"""

_ONE = 2048  # INTER_RESIZE_COEF_SCALE


def input_tables(geometry: Geometry, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the tables for the network's rows and columns, reading an image.

    :returns: both FIXED_TAP, or both CELL where pixels are averaged (interpolation 'area', and
        'linear' for exactly half the size, which OpenCV averages too)
    """
    scales = [source / target for source, target in zip(geometry.image, geometry.resized)]
    averages = (all(scale >= 1 for scale in scales) if interpolation == 'area'
                else interpolation == 'linear' and scales == [2, 2])
    if geometry.image == geometry.resized:
        make = _identity
    elif averages:
        make = _cells
    else:
        make = {'nearest': _nearest_fixed, 'linear': _linear_fixed,
                'area': _area_enlarged}[interpolation]
    rows, columns = (make(source, target)
                     for source, target in zip(geometry.image, geometry.resized))
    return (_placed(rows, geometry.top, geometry.network[0]),
            _placed(columns, geometry.left, geometry.network[1]))


def output_tables(geometry: Geometry, output_size: tuple[int, int], upsample: str
                  ) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the tables (TAP) for the image's rows and columns, reading the network's output.

    They join two steps: each pixel of the image takes the nearest one of the network's plane, and
    that one is interpolated from the output, which has a stride.

    :param output_size: (height, width) of the output tensor
    :param upsample: 'half_pixel', 'align_corners' or 'nearest'
    """
    make = {'half_pixel': _half_pixel, 'align_corners': _align_corners,
            'nearest': _nearest_taps}[upsample]
    tables = []
    for image, network, resized, offset, size in zip(
            geometry.image, geometry.network, geometry.resized,
            (geometry.top, geometry.left), output_size):
        table = np.append(make(size, network), np.array([(-1, -1, 0)], TAP))
        source = nearest(resized, image) + offset
        tables.append(table[np.where((source >= 0) & (source < network), source, -1)])
    return tables[0], tables[1]


def nearest(source: int, target: int) -> np.ndarray:
    """Return the source index of each target index as OpenCV's INTER_NEAREST_EXACT takes it."""
    # OpenCV resizes the indices themselves: its formula is not the same in all versions.
    indices = np.arange(source, dtype=np.float32)[None]
    resized = cv2.resize(indices, (target, 1), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized[0].astype(np.int64)


def _placed(table: np.ndarray, offset: int, length: int) -> np.ndarray:
    """Return the part of a resized axis' table that falls on the network's, from `offset` on."""
    placed = np.zeros(length, table.dtype)
    placed[_names(table.dtype)[0]] = -1
    start, stop = max(offset, 0), min(offset + len(table), length)
    placed[start:stop] = table[start - offset:stop - offset]
    return placed


def _table(dtype: np.dtype, *columns: np.ndarray | float) -> np.ndarray:
    """Return a table of the given columns, each an array or one value for all."""
    table = np.empty(len(np.asarray(columns[0])), dtype)
    for name, column in zip(_names(dtype), columns):
        table[name] = column
    return table


def _names(dtype: np.dtype) -> tuple[str, ...]:
    """Return the columns of a table's type."""
    return dtype.names or ()


def _identity(source: int, target: int) -> np.ndarray:
    """Return the table of an axis that keeps its length."""
    index = np.arange(target)
    return _table(FIXED_TAP, index, index, 0)


def _nearest_fixed(source: int, target: int) -> np.ndarray:
    """Return the table of the nearest pixel."""
    index = nearest(source, target)
    return _table(FIXED_TAP, index, index, 0)


def _nearest_taps(source: int, target: int) -> np.ndarray:
    """Return the same for float data."""
    index = nearest(source, target)
    return _table(TAP, index, index, 0)


def _half_pixel(source: int, target: int) -> np.ndarray:
    """Return the table of linear interpolation between pixel centers at i + 0.5."""
    # OpenCV's steps: the ratio in double, the position in float.
    position = ((np.arange(target) + 0.5) * (1 / (target / source)) - 0.5).astype(np.float32)
    first = np.floor(position)
    return _clamped(first.astype(int), position - first, source)


def _align_corners(source: int, target: int) -> np.ndarray:
    """Return the table of linear interpolation with the outer centers on each other."""
    position = np.linspace(0, source - 1, target)
    first = np.minimum(position.astype(int), max(source - 2, 0))
    return _table(TAP, first, np.minimum(first + 1, source - 1), position - first)


def _clamped(first: np.ndarray, weight: np.ndarray, source: int) -> np.ndarray:
    """Return taps that repeat the outermost pixels beyond the borders."""
    inside = (first >= 0) & (first < source - 1)
    first = np.clip(first, 0, source - 1)
    return _table(TAP, first, np.minimum(first + 1, source - 1), np.where(inside, weight, 0))


def _linear_fixed(source: int, target: int) -> np.ndarray:
    """Return the table of OpenCV's linear resize of uint8."""
    return _fixed(_half_pixel(source, target))


def _area_enlarged(source: int, target: int) -> np.ndarray:
    """Return the table of OpenCV's INTER_AREA where an axis grows: linear, with steep edges."""
    index = np.arange(target)
    first = np.floor(index * (1 / (target / source)))
    weight = ((index + 1) - (first + 1) * (target / source)).astype(np.float32)
    weight = np.where(weight <= 0, 0, weight - np.floor(weight))
    return _fixed(_clamped(first.astype(int), weight, source))


def _fixed(taps: np.ndarray) -> np.ndarray:
    """Return taps with their weights in 2048ths."""
    return _table(FIXED_TAP, taps['first'], taps['second'],
                  np.rint(taps['weight'] * np.float32(_ONE)))


def _cells(source: int, target: int) -> np.ndarray:
    """Return the table of the average over the part of the axis that each target covers."""
    scale = 1 / (target / source)
    begin = np.arange(target) * scale
    end = begin + scale
    width = np.minimum(scale, source - begin)
    # Whole pixels from `start` to `stop`, and parts of one before and one after them.
    stop = np.minimum(np.floor(end).astype(int), source - 1)
    start = np.minimum(np.ceil(begin).astype(int), stop)
    before = np.where(start - begin > 1e-3, start - begin, 0) / width
    after = np.where(end - stop > 1e-3, np.minimum(np.minimum(end - stop, 1), width), 0) / width
    has_before, has_after = before > 0, after > 0
    count = stop - start + has_before + has_after
    middle = 1 / width
    first = np.where(has_before, before, np.where(stop > start, middle, after))
    last = np.where(has_after, after, np.where(stop > start, middle, before))
    return _table(CELL, start - has_before, count, first, middle, last)
