# SPDX-License-Identifier: Apache-2.0
"""JPEG pictures that become BGR on the GPU: nvJPEG gives their planes, a kernel the rest."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
import math
from pathlib import Path
from typing import Any

import numpy as np

from trt_segmentation.cuda import kernels, nvjpeg
from trt_segmentation.cuda.device import Device
from trt_segmentation.recordings import decoder, jpeg

# Samples that are rounded to the other side make a difference of 3, and chroma's of two of them.
LARGEST_DIFFERENCE = 4
"""By how much of 255 a channel may be another than the CPU's decoder makes it."""
_TRIALS = Path(__file__).with_name('jpeg')
_INSTALL = 'pip install nvidia-nvjpeg, or nvidia-nvjpeg-cu12 for a driver of CUDA 12'


class JpegDecoder:
    """
    Decodes what `jpeg.plain` knows, in order on a device's stream.

    samplings: those of `jpeg.PLAIN` of which it makes the pixels that the CPU's decoder makes, but
        for rounding
    """

    def __init__(self, device: Device, module: Any, planes: nvjpeg.Decoder,
                 buffer: Callable[[tuple[str, int], int], int]):
        """
        Try each sampling; call it inside `with device:`.

        :param module: what `kernels.load` returned
        :param planes: closed by `close`
        :param buffer: returns for a use the address of memory on the GPU of at least so many bytes
        :raises DeviceError: if the GPU fails
        """
        self._device, self._module, self._planes, self._buffer = device, module, planes, buffer
        self._told = False
        self.samplings = frozenset(jpeg.PLAIN)
        self.samplings = frozenset(filter(self._decodes, jpeg.PLAIN))

    @classmethod
    def found(cls, device: Device, module: Any,
              buffer: Callable[[tuple[str, int], int], int]) -> JpegDecoder | None:
        """Return one of the first library that works here; None, and say so, if there is none."""
        problems = []
        for path in nvjpeg.find():
            try:
                planes = nvjpeg.Decoder(device, nvjpeg.load(path))
            except OSError:  # it is not there
                continue
            except (AttributeError, nvjpeg.NvjpegError) as error:
                problems.append(f'{path}: {error}')
                continue
            getLogger(__name__).info('JPEG pictures are decoded by nvJPEG %s: %s',
                                     planes.version, path)
            try:
                return cls(device, module, planes, buffer)
            except BaseException:
                planes.close()
                raise
        getLogger(__name__).warning('the CPU decodes JPEG pictures, there is no nvJPEG: %s',
                                    '; '.join(problems) or _INSTALL)
        return None

    def to_bgr(self, data: np.ndarray, use: tuple[str, int]) -> int:
        """
        Put the decoding of a picture on the stream; call it inside `with device:`.

        :param data: uint8 (bytes,), which `jpeg.check` has passed; stays until it is decoded
        :param use: what `buffer` is asked for the memory with
        :returns: where the BGR will be, without gaps between its rows; 0 for a picture that is for
            the CPU's decoder, whose verdict counts where nvJPEG refuses one
        """
        view = memoryview(data)
        sampling = jpeg.plain(view)
        if sampling not in self.samplings:
            return 0
        size = jpeg.size(view)
        sizes = jpeg.plane_sizes(size, sampling)
        raw = self._buffer(('planes', 0), sum(map(math.prod, sizes)))
        planes, address = [], raw
        for height, width in sizes:
            planes.append((address, width))
            address += height * width
        try:
            self._planes.decode(data, planes)
        except nvjpeg.NvjpegError as error:
            if not self._told:
                getLogger(__name__).info('nvJPEG leaves a picture to the CPU: %s', error)
            self._told = True
            return 0
        bgr = self._buffer(use, 3 * math.prod(size))
        kernels.convert(self._module, self._device.stream, sampling, size, raw, bgr)
        return bgr

    def close(self) -> None:
        """Free all but the buffers; call it inside `with device:`."""
        self._planes.close()

    def _decodes(self, sampling: str) -> bool:
        """Tell whether a picture of a sampling becomes what the CPU's decoder makes of it."""
        name = sampling.replace(':', '')
        data = np.fromfile(_TRIALS / f'{name}.jpg', np.uint8)
        expected = decoder.decode(data)
        address, found = self.to_bgr(data, ('jpeg', 0)), np.empty_like(expected)
        self._device.synchronize()
        if address:
            self._device.cuda.memcpy_dtoh(found, address)
            difference = int(np.abs(found.astype(int) - expected).max())
            if difference <= LARGEST_DIFFERENCE:
                return True
        getLogger(__name__).warning(
            'JPEG %s: nvJPEG %s %s, so the CPU will', sampling, self._planes.version,
            f'differs by {difference} from the CPU, at most {LARGEST_DIFFERENCE} is taken'
            if address else 'does not decode it')
        return False
