# SPDX-License-Identifier: Apache-2.0
"""
A GPU through PyCUDA: its primary context, memory, a stream and CUDA graphs.

TensorRT lives in the primary context, so everything here does too. A context is current in a
thread only between `with device:` and the end of that block, so any thread may use a device, one
at a time. `pycuda.autoinit` is not used: its context is another one, and is bound to the thread
that imports it.
"""

from __future__ import annotations

from collections.abc import Callable
import ctypes
from dataclasses import dataclass
from functools import cache
import mmap
import os
import re
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from trt_segmentation.errors import DeviceError, DeviceLost, InputError, missing_library

_THREAD_LOCAL_CAPTURE = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_DEVICE_MAP = 2  # CU_MEMHOSTREGISTER_DEVICEMAP
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL


_VISIBLE, _ORDER = 'CUDA_VISIBLE_DEVICES', 'CUDA_DEVICE_ORDER'
_UUID = re.compile(r'(GPU|MIG)-[0-9a-fA-F-]+')


@dataclass
class _Choice:
    """Which GPU this process uses."""

    given: str | None = None  # what CUDA_VISIBLE_DEVICES was before
    taken: str | None = None  # what it is now; None if nobody has chosen
    started: bool = False  # the driver has read it, and reads it no more


_choice = _Choice()


def select(gpu: str) -> None:
    """
    Let CUDA show one GPU only, to this process and to its children.

    :param gpu: its UUID ('GPU-...'), or its index: as nvidia-smi counts, or in the list of
        CUDA_VISIBLE_DEVICES where that is set; '' leaves the choice as it is
    :raises InputError: for anything else, or if this process uses another GPU already
    """
    if not gpu:
        return
    if _choice.taken is None:
        _choice.given = os.environ.get(_VISIBLE)
    entry = gpu
    if not _UUID.fullmatch(gpu):
        listed = None if _choice.given is None else _choice.given.split(',')
        if not re.fullmatch('[0-9]{1,4}', gpu) or (listed and int(gpu) >= len(listed)):
            among = f' of {_VISIBLE}={_choice.given}' if listed else ''
            raise InputError(f'gpu: found {gpu!r}, expected an index{among}, as nvidia-smi --list-'
                             'gpus shows them, or a UUID such as GPU-1a2b3c4d-...')
        entry = listed[int(gpu)].strip() if listed else gpu
    if _choice.started and entry != _choice.taken:
        raise InputError(f'gpu: {gpu} is asked for, but this process uses '
                         f'{_choice.taken or "the first"} already; start it anew')
    os.environ.setdefault(_ORDER, 'PCI_BUS_ID')  # nvidia-smi's order
    os.environ[_VISIBLE] = _choice.taken = entry


def import_driver() -> ModuleType:
    """
    Return `pycuda.driver`, initialized.

    :raises InputError: if PyCUDA is missing or cannot be loaded, or the driver has no device
    """
    try:
        import pycuda.driver as cuda
    except ModuleNotFoundError:
        raise missing_library('pycuda', 'Running on a GPU', 'gpu') from None
    except ImportError as error:  # libcuda.so.1: the driver is not there
        raise InputError(f'PyCUDA cannot be loaded: {error}; is the NVIDIA driver installed?'
                         ) from None
    try:
        _choice.started = True
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as error:
        raise InputError(f'the CUDA driver does not start: {error}') from None
    if not count:
        shown = os.environ.get(_VISIBLE)
        raise InputError('the CUDA driver finds no GPU'
                         + ('' if shown is None else f'; is {_VISIBLE}={shown} right?'))
    return cuda


def unavailable() -> str:
    """Return why no GPU can be used, or ''."""
    try:
        import_driver()
    except InputError as error:
        return str(error)
    return ''


def identity() -> dict[str, str]:
    """Return name and compute capability of the GPU, on which a plan depends."""
    gpu = import_driver().Device(0)
    return {'gpu': gpu.name(),
            'compute_capability': '.'.join(map(str, gpu.compute_capability()))}


@cache
def _primary_context() -> Any:
    """
    Return the GPU's primary context.

    It is kept as long as the process, as TensorRT keeps it; what is in it is freed.

    :raises DeviceLost: if it was lost before, which a process cannot repair
    """
    cuda = import_driver()
    try:
        return cuda.Device(0).retain_primary_context()
    except cuda.Error as error:
        raise _lost(error) from None


# What is locked stays referred to: were it freed before its locking ends, new memory at the same
# address could not be locked.
_LOCKED: dict[int, np.ndarray] = {}


class Device:
    """
    The first GPU that CUDA shows (`select` chooses), with one stream.

    integrated: it shares its memory with the CPU, as on Jetson and DRIVE
    stream: the stream that all work of this object is in order on
    """

    def __init__(self) -> None:
        """Take the primary context; raises InputError if there is no GPU."""
        self.cuda = import_driver()
        gpu = self.cuda.Device(0)
        self.name = gpu.name()
        self.integrated = bool(gpu.get_attribute(self.cuda.device_attribute.INTEGRATED))
        self._context = _primary_context()
        self._allocations: list[Any] = []
        self._locked: list[int] = []
        with self:
            self.stream = self.cuda.Stream()

    def __enter__(self) -> Device:
        """Make the context current in this thread."""
        try:
            self._context.push()
        except self.cuda.Error as error:
            raise _lost(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        """Leave the context; an error of CUDA becomes a DeviceError, or a DeviceLost."""
        failed = isinstance(error, (self.cuda.Error, DeviceError))
        # After an error that spoils the context, each call reports one; out of memory is none.
        lost = failed and _driver().cuCtxSynchronize() != 0
        self._context.pop()
        if lost:
            raise _lost(error) from None
        if isinstance(error, self.cuda.Error):
            raise _failed(error) from None

    # All below needs the context: call it inside `with device:`.

    def allocate(self, nbytes: int) -> int:
        """Return the address of new device memory, freed by `close`."""
        allocation = self.cuda.mem_alloc(max(nbytes, 1))
        self._allocations.append(allocation)
        return int(allocation)

    def free(self, address: int) -> None:
        """Free what `allocate` returned."""
        for allocation in self._allocations:
            if int(allocation) == address:
                self._allocations.remove(allocation)
                allocation.free()
                return

    def owns(self, address: int) -> bool:
        """Tell whether an address is one of this GPU's memory, whoever has allocated it."""
        ordinal = ctypes.c_int(-1)
        _driver().cuPointerGetAttribute(ctypes.byref(ordinal), _DEVICE_ORDINAL,
                                        ctypes.c_uint64(address))
        return ordinal.value == 0

    def copy_rows(self, source: int, step: int, target: int | np.ndarray, pitch: int,
                  nbytes: int, rows: int) -> None:
        """
        Put a copy of so many bytes of each of some rows on the stream.

        :param source, step: address of the first row on the GPU, and bytes from one to the next
        :param target, pitch: the same of where they go; or the host's memory from there on, one
            dimension, contiguous
        """
        copy = self.cuda.Memcpy2D()
        copy.set_src_device(source)
        (copy.set_dst_device if isinstance(target, int) else copy.set_dst_host)(target)
        copy.src_pitch, copy.dst_pitch = step, pitch
        copy.width_in_bytes, copy.height = nbytes, rows
        copy(self.stream)

    def upload(self, values: np.ndarray) -> int:
        """Return the address of a copy of `values` in new device memory."""
        address = self.allocate(values.nbytes)
        self.cuda.memcpy_htod(address, np.ascontiguousarray(values))
        return address

    def pinned(self, nbytes: int) -> tuple[np.ndarray, int]:
        """
        Return page-locked host memory and the address by which kernels reach it.

        It is ordinary memory that is locked here: `close` ends the locking, and arrays that
        somebody still has stay valid. (PyCUDA's own registration fails with NumPy 2.)
        """
        memory = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)  # whole pages
        host, address = ctypes.c_void_p(memory.ctypes.data), ctypes.c_uint64()
        _call('cuMemHostRegister_v2', host, ctypes.c_size_t(nbytes), _DEVICE_MAP)
        self._locked.append(memory.ctypes.data)
        _LOCKED[memory.ctypes.data] = memory
        _call('cuMemHostGetDevicePointer_v2', ctypes.byref(address), host, 0)
        return memory, address.value

    def synchronize(self) -> None:
        """Wait until the stream has done all its work."""
        self.stream.synchronize()

    def capture(self, enqueue: Callable[[], None]) -> Graph | None:
        """
        Return a CUDA graph of what `enqueue` puts on the stream, or None if it cannot be captured.

        `enqueue` must have run once before, so that nothing is set up during the capture.
        """
        return Graph.captured(self.stream.handle, enqueue)

    def close(self) -> None:
        """Free memory and stream; the other methods cannot be called any more."""
        if self._context is None:
            return
        try:
            with self:
                for host in self._locked:
                    _call('cuMemHostUnregister', ctypes.c_void_p(host))
                    del _LOCKED[host]
                for allocation in self._allocations:
                    allocation.free()
                self.stream = None
        except DeviceError:
            pass  # the context is lost, and what was in it with it
        self._locked, self._allocations = [], []
        self._context = None


class Graph:
    """A captured CUDA graph; PyCUDA has none, so this calls the driver itself."""

    def __init__(self, stream: int, executable: ctypes.c_void_p):
        """Take an instantiated graph; use `captured` instead."""
        self._stream, self._executable = ctypes.c_void_p(stream), executable

    @classmethod
    def captured(cls, stream: int, enqueue: Callable[[], None]) -> Graph | None:
        """Return the graph of what `enqueue` puts on the stream, or None."""
        handle, graph = ctypes.c_void_p(stream), ctypes.c_void_p()
        try:
            # Thread-local: what other threads do with CUDA meanwhile does not break the capture.
            _call('cuStreamBeginCapture_v2', handle, _THREAD_LOCAL_CAPTURE)
            try:
                enqueue()
            finally:
                _call('cuStreamEndCapture', handle, ctypes.byref(graph))
            executable = ctypes.c_void_p()
            _call('cuGraphInstantiateWithFlags', ctypes.byref(executable), graph,
                  ctypes.c_uint64(0))
        except DeviceError:
            return None
        finally:
            if graph:
                _call('cuGraphDestroy', graph)
        return cls(stream, executable)

    def launch(self) -> None:
        """Put the graph on its stream; raises DeviceError if that fails."""
        _call('cuGraphLaunch', self._executable, self._stream)

    def close(self) -> None:
        """Free the graph."""
        _call('cuGraphExecDestroy', self._executable)


@cache
def _driver() -> ctypes.CDLL:
    """Return the CUDA driver's library."""
    return ctypes.CDLL('libcuda.so.1')


def _call(name: str, *arguments: Any) -> None:
    """Call a function of the CUDA driver; raises DeviceError if it reports one."""
    driver = _driver()
    if code := getattr(driver, name)(*arguments):
        text = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(text))
        raise _failed(f'{name}: {(text.value or b"unknown error").decode()}')


def _failed(error: Exception | str) -> DeviceError:
    """Return the error about a call that failed."""
    return DeviceError(f'the GPU failed: {error}; open the engine again')


def _lost(error: BaseException | None) -> DeviceLost:
    """Return the error about a context that is spoiled."""
    return DeviceLost(f'the GPU is lost to this process: {error}; start it anew')
