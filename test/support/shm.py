# SPDX-License-Identifier: Apache-2.0
"""The tests leave /dev/shm as they found it."""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path

import pytest

from trt_segmentation.system import middleware, shared_memory

needs_shared_memory = pytest.mark.skipif(
    shared_memory.space()[0] < middleware.MIN_SHARED_MEMORY,
    reason='Fast DDS makes no segments here: needs 256 MB of /dev/shm (--shm-size=256m)')

_MARK = 'TRT_SEGMENTATION_TEST_SESSION'  # every process that a test starts inherits it


@pytest.fixture(scope='session', autouse=True)
def shared_memory_as_found() -> Iterator[None]:
    """
    Take away what killed nodes left, and fail if a process of the tests still holds a segment.

    Tests of other sessions may run beside this one, so segments are told apart by their owners.
    """
    mark = str(os.getpid())
    os.environ[_MARK] = mark
    yield
    del os.environ[_MARK]
    holders = [f'{process.name} ({_command(process)})' for process in Path('/proc').glob('[0-9]*')
               if _is_marked(process, mark) and segment_locks(process.name)]
    assert not holders, f'still hold shared memory of DDS: {"; ".join(holders)}'
    shared_memory.remove_abandoned_segments()


def segment_locks(pid: int | str) -> list[Path]:
    """Return the locks of segments that a process has open; none of a process that is gone."""
    opened = {os.path.realpath(link) for link in Path(f'/proc/{pid}/fd').glob('*')}
    return [segment.lock for segment in shared_memory.segments() if str(segment.lock) in opened]


def _is_marked(process: Path, mark: str) -> bool:
    """Tell whether a process is this one, or one that its tests started."""
    if process.name == mark:
        return True
    try:
        return f'{_MARK}={mark}'.encode() in (process / 'environ').read_bytes().split(b'\0')
    except OSError:
        return False  # gone, or another user's


def _command(process: Path) -> str:
    """Return the command line of a process."""
    try:
        return (process / 'cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace')
    except OSError:
        return '?'
