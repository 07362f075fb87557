# SPDX-License-Identifier: Apache-2.0
"""Sums of arrays that nothing is lost of, whatever order their terms come in."""

from __future__ import annotations

from collections.abc import Iterable
from math import fsum

import numpy as np


class ExactSum:
    """
    A sum of arrays, kept as float64 arrays of one shape that add up to it exactly.

    It is one array as long as 53 bits hold the sum, and another one for each 53 bits more.
    """

    def __init__(self, parts: Iterable[np.ndarray]):
        """Take over the arrays, at least one, whose sum it is."""
        self._parts = list(parts)

    def add(self, other: ExactSum) -> None:
        """Add another sum of arrays of that shape."""
        for rest in other._parts:
            for i, part in enumerate(self._parts):
                # Knuth, The Art of Computer Programming 2, 4.2.2: what the sum lacks is a float.
                total = part + rest
                added = total - part
                rest = (part - (total - added)) + (rest - added)
                self._parts[i] = total
                if not rest.any():
                    break
            else:
                self._parts.append(rest)

    def rounded(self) -> np.ndarray:
        """
        Return the sum in the only way: float64 (parts, ...).

        First the sum, correctly rounded; then what that lacks, rounded; and so on until nothing is
        lacking. So it is the same for the same terms, in whatever order they came.
        """
        parts = np.stack(self._parts)
        flat = parts.reshape(len(parts), -1)
        unique = {i: _rounded(flat[:, i].tolist()) for i in np.flatnonzero(flat[1:].any(axis=0))}
        found = np.zeros((max([1, *map(len, unique.values())]), flat.shape[1]))
        found[0] = flat[0]
        for i, values in unique.items():
            found[:, i] = 0
            found[:len(values), i] = values
        return found.reshape(-1, *parts.shape[1:])


def _rounded(terms: list[float]) -> list[float]:
    """Return the sum of terms, what that lacks, and so on."""
    found = []
    while value := fsum(terms):  # correctly rounded
        found.append(value)
        terms.append(-value)
    return found
