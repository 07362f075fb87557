# SPDX-License-Identifier: Apache-2.0
"""The node's process: its start, its signals, and what it uses of the machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import ctypes
from functools import lru_cache
import os
from pathlib import Path
import signal
import socket
import sys
import threading
from time import monotonic
from typing import Any

from rclpy import exceptions
from rclpy.impl.implementation_singleton import rclpy_implementation

from trt_segmentation.errors import InputError, one_line
from trt_segmentation.ros import refused

_MAX_DOMAIN = 232  # beyond, there are no UDP ports for it
_LOG_SECONDS = 5.0


def check_environment(environ: Mapping[str, str]) -> None:
    """
    Refuse variables that rclpy would end on with a traceback.

    :raises InputError: for a ROS_DOMAIN_ID that is none
    """
    domain = environ.get('ROS_DOMAIN_ID', '')
    if domain and not (domain.isdecimal() and int(domain) <= _MAX_DOMAIN):
        raise InputError(f'ROS_DOMAIN_ID: found {domain!r}, expected 0 to 101 (up to '
                         f'{_MAX_DOMAIN} where no other program uses the ports)')


def arguments(argv: Sequence[str]) -> list[str]:
    """Return the arguments for rclpy: without a log file if its directory cannot be written."""
    directory = Path(os.environ.get('ROS_LOG_DIR') or Path(
        os.environ.get('ROS_HOME') or '~/.ros', 'log'))
    try:
        directory = directory.expanduser()
        directory.mkdir(parents=True, exist_ok=True)
        writable = os.access(directory, os.W_OK | os.X_OK)
    except (OSError, RuntimeError):  # the latter for a user without a home
        writable = False
    if writable:
        return list(argv)
    print(f'segmentation_node: {directory} cannot be written, so there is no log file; set '
          'ROS_LOG_DIR', file=sys.stderr)
    return [*argv, '--ros-args', '--disable-external-lib-logs']


def exit_code(error: Exception) -> int:
    """Return the exit code for an error at the start: 2 if another start would give the same."""
    wrong_use = (InputError, TypeError, ValueError, exceptions.ParameterException,
                 exceptions.InvalidParameterException, exceptions.InvalidParameterTypeException,
                 exceptions.NameValidationException, rclpy_implementation.UnknownROSArgsError)
    return 2 if isinstance(error, wrong_use) or refused.MARK in str(error) else 1


def in_words(error: Exception) -> str:
    """Return an error at the start as one line."""
    if isinstance(error, rclpy_implementation.UnknownROSArgsError):
        return f'ROS does not know these arguments: {error}'
    if refused.MARK in str(error):
        return refused.in_words(str(error))
    return one_line(error)


class CallbackErrors:
    """
    Counts and logs what callbacks raised that have nothing to do with the engine.

    count: how many there were
    """

    def __init__(self, logger: Any):
        """Start with none."""
        self.count = 0
        self._logger, self._logged = logger, -_LOG_SECONDS

    def add(self, error: Exception) -> None:
        """Add one; log it at a limited rate."""
        self.count += 1
        now = monotonic()
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            self._logger.error(f'a callback failed ({self.count} so far); going on: '
                               f'{type(error).__name__}: {one_line(error)}')


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
    """
    Return what the memory of CUDA's first GPU has and what of it is used, by all.

    Nothing without a GPU, and of one that CUDA_VISIBLE_DEVICES hides. An index in it is taken for
    one in the order of nvidia-smi: CUDA has it if all GPUs are alike or the parameter gpu is set.
    """
    nvml = _nvml()
    if nvml is None:
        return {}
    first = os.environ.get('CUDA_VISIBLE_DEVICES', '0').partition(',')[0].strip()
    memory, device = _Memory(), ctypes.c_void_p()
    unknown = (nvml.nvmlDeviceGetHandleByIndex_v2(int(first), ctypes.byref(device))
               if first.isdecimal() else
               nvml.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(device)))
    if unknown or nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)):
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
