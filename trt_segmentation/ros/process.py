# SPDX-License-Identifier: Apache-2.0
"""What the node's process does beside the node: signals, and what it uses of the machine."""

from __future__ import annotations

from collections.abc import Callable
import ctypes
from functools import lru_cache
import os
from pathlib import Path
import signal
import socket
import threading


def on_stop_signal(function: Callable[[], None]) -> None:
    """
    Call a function, in a thread, at the first SIGINT or SIGTERM; later ones do nothing.

    A handler in Python would wait for the main thread, which waits in DDS for the next message;
    and a second Ctrl-C, as a terminal together with ros2 launch sends it, would break into what
    the first one began.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        with reader, writer:
            reader.recv(1)
            function()
            threading.Event().wait()  # for the sockets to stay open until the process ends

    threading.Thread(target=watch, name='signals', daemon=True).start()


def usage() -> dict[str, float | int]:
    """
    Return the process's resident memory, file descriptors and threads, and the GPU's memory.

    Less if the process has no file descriptor left to look: that must not silence diagnostics.
    """
    found = {**gpu_memory(), 'process_threads': threading.active_count()}
    try:
        pages = int(Path('/proc/self/statm').read_text().split()[1])
        return {**found, 'process_memory_mb': pages * os.sysconf('SC_PAGE_SIZE') / 1e6,
                'process_file_descriptors': len(os.listdir('/proc/self/fd'))}
    except OSError:
        return found


class _Memory(ctypes.Structure):
    """NVML's nvmlMemory_t, bytes."""

    _fields_ = (('total', ctypes.c_ulonglong), ('free', ctypes.c_ulonglong),
                ('used', ctypes.c_ulonglong))


def gpu_memory() -> dict[str, float]:
    """Return what the first GPU's memory has and what of it is used, by all; {} without a GPU."""
    nvml, memory = _nvml(), _Memory()
    device = ctypes.c_void_p()
    if (nvml is None or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device))
            or nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))):
        return {}
    return {'gpu_memory_used_mb': memory.used / 1e6, 'gpu_memory_total_mb': memory.total / 1e6}


@lru_cache(1)
def _nvml() -> ctypes.CDLL | None:
    """Return the library that knows NVIDIA GPUs, ready to be asked; None if there is none."""
    try:
        nvml = ctypes.CDLL('libnvidia-ml.so.1')
    except OSError:
        return None
    return nvml if nvml.nvmlInit_v2() == 0 else None
