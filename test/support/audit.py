# SPDX-License-Identifier: Apache-2.0
"""What the audits share: commands in processes that can be killed, and a row of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import os
import signal
import sys

from trt_segmentation.cli import main

HEAD = '| promise | trials | failures |\n|---|---:|---:|'


@contextmanager
def in_process(work: list[str] | Callable[[], int]) -> Iterator[int]:
    """Run a command, or a function, in a process of its own, without a word; yield its id."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        status = 1
        try:
            status = work() if callable(work) else main(work)
        finally:
            os._exit(status)
    try:
        yield child
    finally:
        try:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def wait(child: int) -> int:
    """Return the exit status of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def report(promise: str, trials: int, found: Callable[[], Iterator[str]]) -> int:
    """Print a row of the table and what went wrong; return the number of failures."""
    failures = list(found())
    print(f'| {promise} | {trials} | {len(failures)} |', flush=True)
    for failure in failures[:10]:
        print(failure, file=sys.stderr)
    return len(failures)
