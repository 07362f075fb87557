# SPDX-License-Identifier: Apache-2.0
"""
A stand-in for rosidl's buffers on a GPU and for cuda_buffer, as their READMEs describe them.

It is as strict as they are: a handle's address is there until it is closed, a buffer is written
through one handle only, and nothing is read before it was written.
"""

from __future__ import annotations

import ctypes

import numpy as np


class HostMemory:
    """Memory of a GPU that is none: the host's."""

    def __init__(self):
        self.blocks = {}

    def allocate(self, nbytes):
        block = np.full(nbytes, 0xa5, np.uint8)  # what is not written is noticed
        self.blocks[block.ctypes.data] = block
        return block.ctypes.data

    def write(self, address, data):
        ctypes.memmove(address, data, len(data))

    def read(self, address, nbytes):
        return ctypes.string_at(address, nbytes)

    def wait(self, stream):
        """Everything that was written is there."""

    def written(self, stream):
        """Everything that is written is there."""


class Buffer:
    """What rclpy has as the `data` of a message: `rosidl_buffer.Buffer`."""

    backend_type = 'cuda'

    def __init__(self, memory, nbytes):
        self._memory, self._nbytes = memory, nbytes
        self.address = memory.allocate(nbytes)
        self.handles = []  # all that were acquired
        self.written = False
        self.downloads = 0

    def __len__(self):
        return self._nbytes

    def to_bytes(self):
        assert self.written
        self.downloads += 1
        return self._memory.read(self.address, self._nbytes)


class Handle:
    """A `CudaReadHandle`, or a `CudaWriteHandle` if `write`."""

    def __init__(self, buffer, stream, memory, write):
        self.buffer, self.closed, self.stream = buffer, False, stream
        self._memory, self._write = memory, write
        buffer.handles.append(self)

    @property
    def device_ptr(self):
        if self.closed:
            raise RuntimeError('handle is closed')
        return self.buffer.address

    def close(self):
        if self._write and not self.closed:
            self._memory.written(self.stream)
            self.buffer.written = True
        self.closed = True


class CudaBuffer:
    """`cuda_buffer.CudaBuffer`, whose functions need no object there; `of` makes a filled one."""

    def __init__(self, memory=None):
        self.memory = memory or HostMemory()
        self.made = []  # all buffers that were allocated

    def of(self, data):
        """Return a buffer with bytes, as a subscriber gets it."""
        buffer = Buffer(self.memory, len(data))
        self.memory.write(buffer.address, bytes(data))
        buffer.written = True
        return buffer

    def allocate_buffer(self, size):
        self.made.append(Buffer(self.memory, size))
        return self.made[-1]

    def from_output_buffer(self, buffer, stream=None):
        if not len(buffer):
            raise RuntimeError('from_output_buffer called on empty buffer')
        if buffer.handles:
            raise RuntimeError('write already finalized')
        return Handle(buffer, stream, self.memory, True)

    def from_input_buffer(self, buffer, stream=None):
        if not len(buffer):
            raise RuntimeError('from_input_buffer called on empty buffer')
        assert buffer.written
        self.memory.wait(stream)
        return Handle(buffer, stream, self.memory, False)


class NativeImage:
    """What takes a buffer as its `data`, as sensor_msgs/Image does since ROS 2 Lyrical."""

    def __init__(self, **fields):
        vars(self).update(fields)

    @classmethod
    def of(cls, message, data):
        """Return a message with other data."""
        names = ('header', 'height', 'width', 'encoding', 'is_bigendian', 'step')
        return cls(data=data, **{name: getattr(message, name) for name in names})
