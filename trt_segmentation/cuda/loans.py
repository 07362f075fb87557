# SPDX-License-Identifier: Apache-2.0
"""Page-locked arrays that are lent out, and come back when nothing refers to them any more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
import math
from typing import NamedTuple

import numpy as np


class Block(NamedTuple):
    """Page-locked memory: as NumPy sees it, and where kernels find it."""

    memory: np.ndarray
    address: int


class Loan:
    """
    A block on loan: `array` is valid as long as somebody refers to it, or to a view of it.

    array: uint8
    address: where kernels write it
    lasting: False if the block is used for every loan now, so that its content must be copied
    """

    def __init__(self, block: Block, shape: tuple[int, ...], free: deque[Block] | None):
        """Lend a block; with its last reference it returns into `free`."""
        self.address = block.address
        self.lasting = free is not None
        owner = _Owner(block, shape, free)
        # The array's base is the owner, and the base of any view is the array or the owner, so
        # the owner goes last.
        self.array = np.asarray(owner)


class _Owner:
    """What the arrays of one loan refer to."""

    def __init__(self, block: Block, shape: tuple[int, ...], free: deque[Block] | None):
        self._block, self._free = block, free
        self.__array_interface__ = {
            'version': 3, 'shape': shape, 'typestr': '|u1',
            'data': (block.memory.ctypes.data, False),
        }

    def __del__(self):
        if self._free is not None:
            self._free.append(self._block)


class Lender:
    """
    Lends arrays of any shape, from blocks of 2^n bytes.

    Of each block size at most `limit` are out at a time; after that the loans of one use share a
    block and have to be copied, so that a caller who keeps every mask does not lock all memory.
    """

    def __init__(self, allocate: Callable[[int], tuple[np.ndarray, int]], limit: int):
        """Take what makes page-locked memory of so many bytes (`Device.pinned`)."""
        self._allocate, self._limit = allocate, limit
        self._sizes: dict[int, _Blocks] = {}

    def lend(self, shape: tuple[int, ...], use: Hashable = None) -> Loan:
        """
        Return a loan of uint8 of this shape; its content is undefined.

        :param use: loans of different uses never share a block
        """
        nbytes = 1 << (math.prod(shape) - 1).bit_length()
        blocks = self._sizes.setdefault(nbytes, _Blocks())
        try:
            return Loan(blocks.free.popleft(), shape, blocks.free)
        except IndexError:
            pass
        if blocks.made < self._limit:
            block = Block(*self._allocate(nbytes))
            blocks.made += 1
            return Loan(block, shape, blocks.free)
        if use not in blocks.shared:
            blocks.shared[use] = Block(*self._allocate(nbytes))
        return Loan(blocks.shared[use], shape, None)


class _Blocks:
    """The blocks of one size."""

    def __init__(self) -> None:
        self.free: deque[Block] = deque()  # its methods stand a __del__ that comes in between
        self.made = 0
        self.shared: dict[Hashable, Block] = {}
