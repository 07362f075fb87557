# SPDX-License-Identifier: Apache-2.0
"""Whether people can tell the colors of classes apart in pictures of masks."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.errors import counted

LEAST = 8.0
"""
A smaller distance is hardly seen in a picture. 2.3 is just seen side by side (Mahy and others,
1994); the nearest colors of Pascal VOC have 8.8, those of Cityscapes 15.
"""

_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def similar_colors(labels: LabelSet) -> str:
    """Return which two classes have colors that are hardly told apart, with what to do; or ''."""
    points = lab(np.array([label.color for label in labels.classes]).reshape(-1, 3))
    pairs = sorted((float(np.linalg.norm(points[i] - points[j])), i, j)
                   for i, j in combinations(range(len(points)), 2))
    close = [pair for pair in pairs if pair[0] < LEAST]
    if not close:
        return ''
    distance, *ids = close[0]
    first, second = (labels.classes[i].name for i in ids)
    others = len(close) - 1
    return (f'the colors of {first!r} and {second!r} are hardly told apart (CIE76 distance '
            f'{distance:.1f}, below {LEAST:g})'
            + (f', nor are those of {counted(others, "other pair")}' if others else '')
            + ': give them others in labels of model.yaml')


def lab(colors: np.ndarray) -> np.ndarray:
    """
    Return colors in CIE 1976 L*a*b* for the white D65, where distances are as people see them.

    The Euclidean distance there is delta E*ab of 1976 (ISO/CIE 11664-4), sRGB as IEC 61966-2-1
    defines it.

    :param colors: sRGB 0..255, shape (number, 3)
    :returns: float64, shape (number, 3)
    """
    values = colors / 255
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    xyz = linear @ _TO_XYZ.T / _TO_XYZ.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
