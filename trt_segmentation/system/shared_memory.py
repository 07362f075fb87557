# SPDX-License-Identifier: Apache-2.0
"""
Fast DDS's shared-memory segments: which lie there, whose they are, and which nobody owns.

Each process that speaks over Fast DDS's shared memory has a segment, as large as its profile says
and wholly in memory. One that is killed leaves it behind, and nothing takes it away. Its owner
holds a lock (flock) on SEGMENT_el for as long as it lives: takes it before it makes the segment,
and gives it back after the segment is gone. So a segment whose lock nobody holds has no owner, and
Fast DDS's own watchdogs and `fastdds shm clean` go by the same rule.
"""

from __future__ import annotations

from collections.abc import Iterator
import fcntl
import os
from pathlib import Path
import re
import stat
import time
from typing import NamedTuple

DIRECTORY = Path('/dev/shm')

# As Fast DDS 3 (Kilted and later) and Fast DDS 2 (Humble, Jazzy) name them. Ports
# (fastdds_port7411, 50 KB) are left alone: their names come again, and Fast DDS resets a dead one.
_SEGMENT = re.compile(r'(fast(?:dds|rtps)_[0-9a-f]{16})(?:_el)?')

# Fast DDS 2 does not notice that its lock file was taken away between open() and flock(), where a
# process may wait for a processor.
_TOO_YOUNG_SECONDS = 10.0


class Segment(NamedTuple):
    """
    A segment, or what is left of one.

    path: of the segment; the lock is beside it
    size: bytes of memory that it holds
    mine: whether it belongs to this process's user
    owned: whether a living process holds its lock, or that cannot be told
    """

    path: Path
    size: int
    mine: bool
    owned: bool

    @property
    def lock(self) -> Path:
        """Return the file whose lock tells that the owner lives."""
        return _lock_of(self.path)


def segments(directory: Path = DIRECTORY) -> list[Segment]:
    """Return the segments of all users, by name; none if the directory cannot be read."""
    try:
        names = {found.group(1) for entry in os.listdir(directory)
                 if (found := _SEGMENT.fullmatch(entry))}
    except OSError:
        return []
    return [segment for name in sorted(names) for segment in _look(directory / name)]


def space(directory: Path = DIRECTORY) -> tuple[int, int]:
    """Return size and free space of the file system in bytes; zeros if there is none."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return 0, 0
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def remove_abandoned_segments(directory: Path = DIRECTORY) -> int:
    """
    Remove this user's segments whose owner is gone; return how many bytes that freed.

    Never one whose lock somebody holds, never another user's, never through a link.
    """
    return sum(_remove(segment) for segment in segments(directory)
               if segment.mine and not segment.owned)


def remove_own_segments(directory: Path = DIRECTORY) -> int:
    """
    Remove the segments that this process itself owns; return how many bytes that freed.

    For a process that ends by `os._exit`, which runs no destructor. Who reads from them goes on:
    the memory lives until the last process has let go of it.
    """
    held = set()
    for descriptor in os.listdir('/proc/self/fd'):
        try:
            held.add(os.readlink(f'/proc/self/fd/{descriptor}'))
        except OSError:
            continue  # the one that listed the directory
    return sum(_remove(segment) for segment in segments(directory)
               if segment.mine and str(segment.lock) in held)


def _look(path: Path) -> Iterator[Segment]:
    """Yield the segment of a path, unless it is gone by now or no plain file."""
    found = [status for name in (path, _lock_of(path)) if (status := _status(name))]
    if not found or not all(stat.S_ISREG(status.st_mode) for status in found):
        return
    age = time.time() - max(status.st_mtime for status in found)
    yield Segment(path, sum(status.st_blocks * 512 for status in found),
                  all(status.st_uid == os.geteuid() for status in found),
                  age < _TOO_YOUNG_SECONDS or _is_locked(_lock_of(path)))


def _lock_of(path: Path) -> Path:
    """Return the lock file of a segment."""
    return path.with_name(f'{path.name}_el')


def _status(path: Path) -> os.stat_result | None:
    """Return what a file is, of a link the link itself; None if it is gone."""
    try:
        return path.lstat()
    except OSError:
        return None


def _is_locked(path: Path) -> bool:
    """Tell whether a process holds a lock on a file; yes if that cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)


def _remove(segment: Segment) -> int:
    """Remove a segment and then its lock; return the bytes, 0 if another was quicker."""
    freed = 0
    for path in (segment.path, segment.lock):  # in this order: a lock alone holds no memory
        try:
            path.unlink()
            freed = segment.size
        except OSError:
            continue
    return freed
