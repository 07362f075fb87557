# SPDX-License-Identifier: Apache-2.0
"""
nvJPEG: JPEG pictures decoded by the GPU, to planes in its memory.

The library is called as it is, through ctypes: from the wheel nvidia-nvjpeg, or from a CUDA
toolkit. Its numbers are those of nvjpeg.h.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import ctypes
from importlib.util import find_spec
import os
from pathlib import Path
from typing import Any

import numpy as np

from trt_segmentation.cuda.device import Device

HYBRID, GPU_HYBRID = 1, 2
"""Backends: Huffman codes are decoded by the CPU, or by the GPU too."""

# P: pointer or handle, i: int or enumeration, u: unsigned int, n: size_t. All return a status.
SIGNATURES = {
    'nvjpegGetProperty': 'iP',
    'nvjpegCreateEx': 'iPPuP',
    'nvjpegDestroy': 'P',
    'nvjpegDecoderCreate': 'PiP',
    'nvjpegDecoderDestroy': 'P',
    'nvjpegDecoderStateCreate': 'PPP',
    'nvjpegJpegStateDestroy': 'P',
    'nvjpegBufferPinnedCreate': 'PPP',
    'nvjpegBufferPinnedDestroy': 'P',
    'nvjpegBufferDeviceCreate': 'PPP',
    'nvjpegBufferDeviceDestroy': 'P',
    'nvjpegJpegStreamCreate': 'PP',
    'nvjpegJpegStreamDestroy': 'P',
    'nvjpegDecodeParamsCreate': 'PP',
    'nvjpegDecodeParamsDestroy': 'P',
    'nvjpegDecodeParamsSetOutputFormat': 'Pi',
    'nvjpegStateAttachPinnedBuffer': 'PP',
    'nvjpegStateAttachDeviceBuffer': 'PP',
    'nvjpegJpegStreamParse': 'PPniiP',
    'nvjpegDecoderJpegSupported': 'PPPP',
    'nvjpegDecodeJpegHost': 'PPPPP',
    'nvjpegDecodeJpegTransferToDevice': 'PPPPP',
    'nvjpegDecodeJpegDevice': 'PPPPP',
}
_TYPES = {'P': ctypes.c_void_p, 'i': ctypes.c_int, 'u': ctypes.c_uint, 'n': ctypes.c_size_t}
BACKEND_DEFAULT, OUTPUT_UNCHANGED, FLAGS_BITSTREAM_STRICT = 0, 0, 1 << 2
STATUSES = {
    1: 'not initialized', 2: 'invalid parameter', 3: 'bad JPEG', 4: 'JPEG not supported',
    5: 'allocator failure', 6: 'execution failed', 7: 'architecture mismatch',
    8: 'internal error', 9: 'implementation not supported', 10: 'incomplete bitstream',
}
_MAX_COMPONENTS = 4


class Image(ctypes.Structure):
    """`nvjpegImage_t`: where planes go, and how many bytes their rows lie apart."""

    _fields_ = (('channel', ctypes.c_void_p * _MAX_COMPONENTS),
                ('pitch', ctypes.c_size_t * _MAX_COMPONENTS))


class NvjpegError(Exception):
    """Report that a function of nvJPEG returned another status than success."""


def find() -> Iterator[str]:
    """Yield the libraries that there may be: the wheels', then those of the system."""
    spec = find_spec('nvidia')
    for folder in spec.submodule_search_locations or () if spec else ():
        yield from map(str, sorted(Path(folder).glob('*/lib/libnvjpeg.so.*'), reverse=True))
    yield from (f'libnvjpeg.so.{major}' for major in (13, 12, 11))
    for root in filter(None, (os.environ.get('CUDA_HOME'), '/usr/local/cuda')):
        for folder in ('lib64', 'targets/*/lib'):
            yield from map(str, sorted(Path(root).glob(f'{folder}/libnvjpeg.so.*')))


def load(path: str) -> Any:
    """Return a library; raises OSError or AttributeError if it is none that serves."""
    library = ctypes.CDLL(path)
    for name, signature in SIGNATURES.items():
        getattr(library, name).argtypes = [_TYPES[letter] for letter in signature]
    return library


class Decoder:
    """
    Decodes pictures one after the other on a device's stream.

    version: of the library, such as '13.3.2'
    """

    def __init__(self, device: Device, library: Any, backend: int = GPU_HYBRID):
        """
        Make what the library needs; call it inside `with device:`.

        :param library: what `load` returned
        :raises NvjpegError: if the library does not work on this device
        """
        self._device, self._library = device, library
        self._made: list[tuple[str, ctypes.c_void_p]] = []
        self._data = np.empty(0, np.uint8)
        try:
            number, numbers = ctypes.c_int(), []
            for part in range(3):
                self._call('GetProperty', part, ctypes.byref(number))
                numbers.append(number.value)
            self.version = '.'.join(map(str, numbers))
            handle = self._make('Create', BACKEND_DEFAULT, None, None, FLAGS_BITSTREAM_STRICT,
                                name='CreateEx', end='Destroy')
            self._decoder = self._make('Decoder', handle, backend)
            self._state = self._make('DecoderState', handle, self._decoder,
                                     end='JpegStateDestroy')
            pinned = self._make('BufferPinned', handle, None)
            buffer = self._make('BufferDevice', handle, None)
            self._picture = self._make('JpegStream', handle)
            self._parameters = self._make('DecodeParams', handle)
            self._handle = handle
            self._call('DecodeParamsSetOutputFormat', self._parameters, OUTPUT_UNCHANGED)
            self._call('StateAttachPinnedBuffer', self._state, pinned)
            self._call('StateAttachDeviceBuffer', self._state, buffer)
        except BaseException:
            self.close()
            raise

    def decode(self, data: np.ndarray, planes: Sequence[tuple[int, int]]) -> None:
        """
        Put the decoding of a picture on the stream; call it inside `with device:`.

        :param data: uint8 (bytes,)
        :param planes: for each component, the address that its samples go to, and how many bytes
            its rows lie apart
        :raises NvjpegError: if the library does not decode it; what it put on the stream does
            no harm
        """
        stream = ctypes.c_void_p(self._device.stream.handle)
        image = Image()
        for i, (address, pitch) in enumerate(planes):
            image.channel[i], image.pitch[i] = address, pitch
        # The picture before, and the memory that is kept for any, may still be on their way.
        self._device.synchronize()
        self._data = data
        self._call('JpegStreamParse', self._handle, data.ctypes.data, data.nbytes, 0, 0,
                   self._picture)
        refused = ctypes.c_int()
        self._call('DecoderJpegSupported', self._decoder, self._picture, self._parameters,
                   ctypes.byref(refused))
        if refused.value:
            raise NvjpegError('nvjpegDecoderJpegSupported: no')
        self._call('DecodeJpegHost', self._handle, self._decoder, self._state, self._parameters,
                   self._picture)
        self._call('DecodeJpegTransferToDevice', self._handle, self._decoder, self._state,
                   self._picture, stream)
        self._call('DecodeJpegDevice', self._handle, self._decoder, self._state,
                   ctypes.byref(image), stream)

    def close(self) -> None:
        """Free all; call it inside `with device:`."""
        while self._made:
            end, made = self._made.pop()
            getattr(self._library, f'nvjpeg{end}')(made)

    def _make(self, what: str, *arguments: Any, name: str = '', end: str = ''
              ) -> ctypes.c_void_p:
        """Return a new object, which `close` frees."""
        made = ctypes.c_void_p()
        self._call(name or f'{what}Create', *arguments, ctypes.byref(made))
        self._made.append((end or f'{what}Destroy', made))
        return made

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a function; raises NvjpegError if it fails."""
        if status := getattr(self._library, f'nvjpeg{name}')(*arguments):
            raise NvjpegError(f'nvjpeg{name}: {STATUSES.get(status, status)}')
