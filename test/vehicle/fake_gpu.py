# SPDX-License-Identifier: Apache-2.0
"""
A GPU that is none: device memory is host memory, and kernels are kernels.cu built for the CPU.

It has what CudaSegmenter uses of PyCUDA and of TensorRtEngine, so that all of it but PyCUDA's own
calls runs without a GPU: the choice of kernels, their arguments, the tables and the buffers.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
import subprocess
from types import SimpleNamespace

import numpy as np

from trt_segmentation.cuda import kernels
from trt_segmentation.cuda.device import Device
from trt_segmentation.engines.tensorrt.engine import DeviceTensor

SOURCE = Path(__file__).with_name('kernels_on_cpu.cpp')


def compile_kernels(folder: Path) -> ctypes.CDLL:
    """Return kernels.cu as a library of functions run_NAME(blocks x, y, threads, arguments)."""
    library = folder / 'kernels.so'
    subprocess.run(
        ['g++', '-O2', '-Wall', '-Wextra', '-Werror', '-Wno-unknown-pragmas',
         '-Wno-unused-parameter', '-fno-strict-aliasing', '-shared', '-fPIC',
         '-o', library, SOURCE], check=True)
    return ctypes.CDLL(str(library))


_TYPES = {'P': ctypes.c_void_p, 'i': ctypes.c_int, 'f': ctypes.c_float}


class Function:
    """A kernel as PyCUDA has it."""

    def __init__(self, library, name):
        self._function = getattr(library, f'run_{name}')

    def prepare(self, signature):
        self._function.argtypes = [ctypes.c_int] * 3 + [_TYPES[c] for c in signature]
        return self

    def prepared_async_call(self, grid, block, stream, *arguments):
        assert (grid[2], block[1:]) == (1, (1, 1))
        self._function(grid[0], grid[1], block[0], *arguments)


class Event:
    """A moment that costs nothing."""

    def record(self, stream):
        """There is no stream."""

    def time_since(self, other):
        return 0.0


class Memcpy2D:
    """A copy of rows, as PyCUDA has it."""

    def __init__(self, device):
        self._device = device

    def set_src_device(self, address):
        self._source = address

    def set_dst_device(self, address):
        self._target, self._to_host = address, False

    def set_dst_host(self, memory):
        assert memory.ndim == 1 and memory.flags.c_contiguous
        self._target, self._to_host = memory.ctypes.data, True
        self._end = self._target + memory.nbytes

    def __call__(self, stream):
        for row in range(self.height):
            target = self._target + row * self.dst_pitch
            assert not self._to_host or target + self.width_in_bytes <= self._end
            ctypes.memmove(target, self._source + row * self.src_pitch, self.width_in_bytes)
        if self._to_host:
            self._device.copied_bytes['from'] += self.height * self.width_in_bytes


class FakeDevice:
    """What `Device` is; counts what is allocated and what is copied, tables too."""

    name = 'fake'
    stream = SimpleNamespace(handle=1)
    copy_rows = Device.copy_rows

    def __init__(self, library, integrated=False):
        self.integrated = integrated
        self.memory: dict[int, np.ndarray] = {}
        self.locked: list[np.ndarray] = []
        self.copied_bytes = {'to': 0, 'from': 0}
        self.depth = 0
        self.foreign = set()  # addresses of another GPU
        self.cuda = SimpleNamespace(
            module_from_buffer=lambda ptx: SimpleNamespace(
                get_function=lambda name: Function(library, name)),
            memcpy_htod_async=self._copy_to, memcpy_dtoh_async=self._copy_from,
            memcpy_dtoh=lambda target, address: self._copy_from(target, address, None),
            memset_d8=self._fill, Event=Event, Memcpy2D=lambda: Memcpy2D(self))

    def __enter__(self):
        self.depth += 1
        return self

    def __exit__(self, *exception):
        self.depth -= 1

    def allocate(self, nbytes):
        assert self.depth > 0
        memory = np.full(nbytes, 0xa5, np.uint8)  # what is not written is noticed
        self.memory[memory.ctypes.data] = memory
        return memory.ctypes.data

    def free(self, address):
        del self.memory[address]

    def owns(self, address):
        """Tell what a GPU tells of the memory that it shows to others."""
        return address not in self.foreign

    def upload(self, values):
        address = self.allocate(values.nbytes)
        self._copy_to(address, np.ascontiguousarray(values), None)
        return address

    def pinned(self, nbytes):
        assert self.depth > 0
        memory = np.full(nbytes, 0xa5, np.uint8)
        self.locked.append(memory)
        return memory, memory.ctypes.data

    def synchronize(self):
        """Everything is done at once."""

    def capture(self, enqueue):
        """Return what a GPU returns that cannot capture."""

    def close(self):
        self.memory.clear()

    def _fill(self, address, value, nbytes):
        ctypes.memset(address, value, nbytes)

    def _copy_to(self, address, source, stream):
        assert source.flags.c_contiguous and self.depth > 0
        ctypes.memmove(address, source.ctypes.data, source.nbytes)
        self.copied_bytes['to'] += source.nbytes

    def _copy_from(self, target, address, stream):
        assert target.flags.c_contiguous and self.depth > 0
        ctypes.memmove(target.ctypes.data, address, target.nbytes)
        self.copied_bytes['from'] += target.nbytes


class FakeEngine:
    """What `TensorRtEngine` is: runs `network` on arrays over the fake device's memory."""

    backend, precision = 'tensorrt', 'fp32'

    def __init__(self, device, network, input_tensor, outputs, dtype=np.float32, max_batch=1):
        """`network` maps one image's array to {name: array}; `outputs` has (shape, dtype)."""
        self.device, self._network, self._max_batch = device, network, max_batch
        self.batches = []  # that were run
        with device:
            self.input = self._tensor(*input_tensor, dtype)
            self.outputs = {name: self._tensor(name, *value) for name, value in outputs.items()}

    def _tensor(self, name, shape, dtype):
        dtype = np.dtype(dtype)
        address = self.device.allocate(self._max_batch * int(np.prod(shape)) * dtype.itemsize)
        return DeviceTensor(name, address, tuple(shape), dtype)

    def array(self, tensor, index=0):
        """Return the memory of one image's part of a tensor."""
        memory = self.device.memory[tensor.address].view(tensor.dtype)
        return memory.reshape(-1, *tensor.shape)[index]

    def enqueue(self, count=1):
        self.batches.append(count)
        for i in range(count):
            for name, value in self._network(self.array(self.input, i)).items():
                self.array(self.outputs[name], i)[:] = value

    def close(self):
        if self.device is not None:
            self.device.close()
        self.device = None


def run_input(library, launch, image, tensor):
    """Run an input kernel on arrays."""
    function = Function(library, launch.kernel).prepare(kernels.INPUT_SIGNATURE)
    function.prepared_async_call(
        (*launch.grid, 1), (kernels.THREADS, 1, 1), None,
        *(array.ctypes.data for array in (image, tensor, launch.rows, launch.columns)),
        *launch.arguments)
