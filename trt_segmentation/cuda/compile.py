# SPDX-License-Identifier: Apache-2.0
"""
Compile kernels.cu to kernels.ptx; for developers: `python3 -m trt_segmentation.cuda.compile`.

Needs no GPU: the compiler is NVRTC 11.8 (`pip install nvidia-cuda-nvrtc-cu11==11.8.89`). The
driver compiles PTX for its GPU when it is loaded, and refuses PTX newer than itself, so it is old
on purpose: compute_72 (Xavier) and PTX 7.0, which drivers from CUDA 11.0 on take.
"""

from __future__ import annotations

import ctypes
from importlib.util import find_spec
from pathlib import Path
import re
import sys

from trt_segmentation.errors import InputError
from trt_segmentation.system.files import atomic_write

SOURCE = Path(__file__).with_name('kernels.cu')
PTX = Path(__file__).with_name('kernels.ptx')

_OPTIONS = (b'--gpu-architecture=compute_72', b'--std=c++14')
# NVRTC 11.8 says 7.8, which it always does; nothing in the kernels is newer than 7.0.
_PTX_VERSION = '7.0'


def compile_ptx() -> str:
    """
    Return the PTX of kernels.cu.

    :raises InputError: if NVRTC 11.8 is missing, or with its log if the source does not compile
    """
    nvrtc = _load()
    program = ctypes.c_void_p()
    _check(nvrtc, nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), SOURCE.read_bytes(), b'kernels.cu', 0, None, None))
    options = (ctypes.c_char_p * len(_OPTIONS))(*_OPTIONS)
    failed = nvrtc.nvrtcCompileProgram(program, len(_OPTIONS), options)
    if failed:
        raise InputError(f'{SOURCE}: {_read(nvrtc, program, "ProgramLog").strip()}')
    ptx = _read(nvrtc, program, 'PTX')
    return re.sub(r'(?m)^\.version .*$', f'.version {_PTX_VERSION}', ptx)


def _load() -> ctypes.CDLL:
    """Return NVRTC's library from its wheel."""
    spec = find_spec('nvidia.cuda_nvrtc')
    folders = spec.submodule_search_locations or () if spec else ()
    for path in (Path(folder, 'lib', 'libnvrtc.so.11.2') for folder in folders):
        if path.exists():
            return ctypes.CDLL(str(path))
    raise InputError('NVRTC 11.8 is missing: pip install nvidia-cuda-nvrtc-cu11==11.8.89')


def _read(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    """Return a text that NVRTC has of a program: 'PTX' or 'ProgramLog'."""
    size = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, f'nvrtcGet{what}Size')(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f'nvrtcGet{what}')(program, buffer))
    return buffer.value.decode()


def _check(nvrtc: ctypes.CDLL, code: int) -> None:
    """Raise InputError for an error code."""
    if code:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise InputError(f'NVRTC: {nvrtc.nvrtcGetErrorString(code).decode()}')


def main() -> int:
    """Write kernels.ptx."""
    try:
        atomic_write(PTX, compile_ptx())
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == '__main__':
    sys.exit(main())
