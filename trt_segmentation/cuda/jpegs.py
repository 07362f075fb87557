# SPDX-License-Identifier: Apache-2.0
"""JPEG pictures that become BGR on the GPU: nvJPEG gives their planes, a kernel the rest."""

from __future__ import annotations

from logging import getLogger
import math
from pathlib import Path

import numpy as np

from trt_segmentation.cuda import kernels, nvjpeg
from trt_segmentation.cuda.device import Device
from trt_segmentation.cuda.images import DeviceImage
from trt_segmentation.errors import DeviceError
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

    def __init__(self, device: Device, planes: nvjpeg.Decoder):
        """
        Try each sampling; call it inside `with device:`.

        :param planes: which it closes, also if it cannot be made
        :raises DeviceError: if the GPU fails
        """
        self._device, self._planes = device, planes
        self._module = None
        self._buffers: dict[str, tuple[int, int]] = {}
        self._told = False
        self.samplings = frozenset(jpeg.PLAIN)
        try:
            self._module = kernels.load(device.cuda)
            self.samplings = frozenset(filter(self._decodes, jpeg.PLAIN))
        except BaseException:
            self.close()
            raise

    @classmethod
    def found(cls, device: Device) -> JpegDecoder | None:
        """
        Return one of the first library that works here; None, and say so, if there is none.

        :raises DeviceError: if the GPU fails
        """
        problems = []
        with device:
            for path in nvjpeg.find():
                try:
                    planes = nvjpeg.Decoder(device, nvjpeg.load(path))
                except OSError:  # it is not there
                    continue
                except (AttributeError, nvjpeg.NvjpegError) as error:
                    problems.append(f'{path}: {error}')
                    continue
                return cls(device, planes)
        getLogger(__name__).warning('the CPU decodes JPEG pictures, there is no nvJPEG: %s',
                                    '; '.join(problems) or _INSTALL)
        return None

    def decode(self, data: np.ndarray, layout: str = 'bgr', slot: str = '') -> DeviceImage | None:
        """
        Put the decoding of a picture on the stream.

        :param data: uint8 (bytes,), which `jpeg.check` has passed
        :param layout: what the image's channel order is to be called, 'bgr' or 'rgb'
        :param slot: an image is there until the next of its slot
        :returns: the image; None for a picture that is for the CPU's decoder, whose verdict counts
            where nvJPEG refuses one
        :raises DeviceError: if the GPU fails
        """
        view = memoryview(data)
        sampling = jpeg.plain(view)
        if sampling not in self.samplings:
            return None
        size = jpeg.size(view)
        sizes = jpeg.plane_sizes(size, sampling)
        with self._device as device:
            raw = self._buffer('planes', sum(map(math.prod, sizes)))
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
                return None
            bgr = self._buffer(f'of {slot}', 3 * math.prod(size))
            kernels.convert(self._module, device.stream, sampling, size, raw, bgr)

        def on_host() -> np.ndarray:
            image = np.empty((*size, 3), np.uint8)
            with self._device as device:
                device.synchronize()
                device.cuda.memcpy_dtoh(image, bgr)
            return image

        return DeviceImage(self._device, layout, size, bgr, 3 * size[1], on_host)

    def close(self) -> None:
        """Free all."""
        try:
            with self._device as device:
                self._planes.close()
                for _, address in self._buffers.values():
                    device.free(address)
                self._module = None
        except DeviceError:
            pass  # the GPU is lost, and what was on it with it
        self._buffers.clear()

    def _buffer(self, use: str, nbytes: int) -> int:
        """Return the address of memory on the GPU that holds at least so many bytes."""
        capacity, address = self._buffers.get(use, (0, 0))
        if nbytes > capacity:
            if capacity:
                del self._buffers[use]
                self._device.free(address)
            address = self._device.allocate(nbytes)
            self._buffers[use] = nbytes, address
        return address

    def _decodes(self, sampling: str) -> bool:
        """Tell whether a picture of a sampling becomes what the CPU's decoder makes of it."""
        data = np.fromfile(_TRIALS / f'{sampling.replace(":", "")}.jpg', np.uint8)
        if (image := self.decode(data)) is None:
            said = 'does not decode it'
        else:
            difference = np.abs(np.asarray(image).astype(int) - decoder.decode(data)).max()
            if difference <= LARGEST_DIFFERENCE:
                return True
            said = (f'differs by {difference} from the CPU, at most {LARGEST_DIFFERENCE} is '
                    'taken')
        getLogger(__name__).warning('JPEG %s: nvJPEG %s %s, so the CPU will', sampling,
                                    self._planes.version, said)
        return False
