# SPDX-License-Identifier: Apache-2.0
"""Images that lie on the GPU already."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import numpy as np

from trt_segmentation.cuda.device import Device
from trt_segmentation.recordings import layouts


class DeviceImage:
    """
    An image on the GPU, for what comes next on the device's stream.

    NumPy takes it too, as the array that it would be: only then is all of it copied to the host.

    layout: its channel order or a camera's layout, of `layouts`
    shape: of that array, which is uint8
    address, step: where its first row begins, and how many bytes lie from a row to the next
    """

    def __init__(self, device: Device, layout: str, size: tuple[int, int], address: int,
                 step: int, on_host: Callable[[], np.ndarray]):
        """
        Take an image of somebody else's, who keeps it as long as it is used.

        :param size: (height, width)
        :param on_host: returns a copy of it as an array
        """
        self.layout, self.shape = layout, layouts.shape(size, layout)
        self.address, self.step = address, step
        self._device, self._size, self._on_host = device, size, on_host

    @property
    def row_bytes(self) -> int:
        """Return how many bytes of a row are pixels."""
        return math.prod(self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return a copy of it on the host."""
        return np.asarray(self._on_host(), dtype)

    def pack(self, address: int) -> None:
        """Put a copy without gaps between the rows on the stream; inside `with device:`."""
        self._device.copy_rows(self.address, self.step, address, self.row_bytes, self.row_bytes,
                               self.shape[0])

    def coarse(self, step: int) -> np.ndarray:
        """
        Return the rows that `layouts.sample` takes, as an image of its width and layout.

        Only they are copied to the host.
        """
        if step < 2:
            return np.asarray(self)
        height, width = self._size
        together = 1 if self.layout in layouts.CHANNELS else 2  # of a camera's layout, pairs
        step += step % together
        groups, row = len(range(0, height + 1 - together, step)), self.row_bytes
        found = np.empty(layouts.shape((together * groups, width), self.layout), np.uint8)
        memory, apart = found.reshape(-1), step * self.step
        with self._device as device:
            for i in range(together):
                device.copy_rows(self.address + i * self.step, apart, memory[i * row:],
                                 together * row, row, groups)
            if len(found) > together * groups:  # a row of chroma for each pair
                device.copy_rows(self.address + height * self.step, apart // 2,
                                 memory[together * groups * row:], row, row, groups)
            device.synchronize()
        return found
