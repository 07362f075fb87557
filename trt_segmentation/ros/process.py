# SPDX-License-Identifier: Apache-2.0
"""What the node's process does beside the node: signals, and what it uses of the machine."""

from __future__ import annotations

from collections.abc import Callable
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
    """Return the process's resident memory, file descriptors and threads."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return {
        'process_memory_mb': pages * os.sysconf('SC_PAGE_SIZE') / 1e6,
        'process_file_descriptors': len(os.listdir('/proc/self/fd')),
        'process_threads': threading.active_count(),
    }
