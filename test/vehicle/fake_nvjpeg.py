# SPDX-License-Identifier: Apache-2.0
"""An nvJPEG that is none: functions that take what ctypes makes of arguments, on the CPU."""

import ctypes
from functools import partial
import traceback

import numpy as np
from support.jpegs import decode_planes

from trt_segmentation.cuda import nvjpeg

BAD_JPEG, INTERNAL_ERROR = 3, 8
_TYPES = {'P': ctypes.c_void_p, 'i': ctypes.c_int, 'u': ctypes.c_uint, 'n': ctypes.c_size_t}


class FakeNvjpeg:
    """
    The library; it decodes by `decode`, in floating point.

    live: handles of objects that were made and not destroyed
    statuses: by name, what functions return instead of doing anything
    calls: the names of all functions that were called
    """

    def __init__(self, decode=decode_planes):
        self.live, self.statuses, self.calls, self.broken = set(), {}, [], ''
        self._decode, self._made = decode, 0
        for name, signature in nvjpeg.SIGNATURES.items():
            kind = ctypes.CFUNCTYPE(ctypes.c_int, *(_TYPES[letter] for letter in signature))
            setattr(self, name, kind(partial(self._call, name)))

    def _call(self, name, *arguments):
        self.calls.append(name)
        try:
            return self.statuses.get(name) or self._do(name, *arguments) or 0
        except Exception:  # ctypes would go on with what it returned last
            self.broken += traceback.format_exc()
            return INTERNAL_ERROR

    def _do(self, name, *arguments):
        if name.endswith(('Create', 'CreateEx')):
            assert all(argument is None or argument in self.live
                       for argument in arguments[:1] if 'Ex' not in name)
            self._made += 1
            ctypes.c_void_p.from_address(arguments[-1]).value = self._made
            self.live.add(self._made)
        elif name.endswith('Destroy'):
            self.live.remove(arguments[0])
        elif name == 'nvjpegGetProperty':
            ctypes.c_int.from_address(arguments[1]).value = (13, 3, 2)[arguments[0]]
        elif name == 'nvjpegJpegStreamParse':
            self._data = ctypes.string_at(arguments[1], arguments[2])
        elif name == 'nvjpegDecoderJpegSupported':
            ctypes.c_int.from_address(arguments[3]).value = 0
        elif name == 'nvjpegDecodeJpegHost':
            try:
                self._planes = self._decode(self._data)
            except (ValueError, LookupError):
                return BAD_JPEG
        elif name == 'nvjpegDecodeJpegDevice':
            image = nvjpeg.Image.from_address(arguments[3])
            for i, plane in enumerate(self._planes):
                for y, row in enumerate(np.ascontiguousarray(plane)):
                    ctypes.memmove(image.channel[i] + y * image.pitch[i], row.ctypes.data,
                                   len(row))
        return None
