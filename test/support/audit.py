# SPDX-License-Identifier: Apache-2.0
"""What the audits share: command line and table, and commands in processes that can be killed."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import random
import signal
import sys
from tempfile import TemporaryDirectory
import time

from trt_segmentation.cli import main


def audit(doc: str, promises: Callable[[Path, int], Iterable[tuple[str, int, Iterator[str]]]]
          ) -> int:
    """
    Try what is promised as often as the command line says; print a table, return the exit code.

    :param doc: what is tried, for the help
    :param promises: of a directory and a number of trials: each promise, how often it is tried,
        and what goes wrong, while it is tried
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument('--trials', type=int, default=200)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    good = True
    with TemporaryDirectory() as directory:
        print('| promise | trials | failures |\n|---|---:|---:|', flush=True)
        for promise, trials, found in promises(Path(directory), args.trials):
            failures = list(found)
            print(f'| {promise} | {trials} | {len(failures)} |', flush=True)
            for failure in failures[:10]:
                print(failure, file=sys.stderr)
            good = good and not failures
    return 0 if good else 1


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


def seconds(command: list[str]) -> float:
    """Run a command; return how long that took."""
    start = time.monotonic()
    with in_process(command) as child:
        assert wait(child) == 0, command
    return time.monotonic() - start


def kill(command: list[str], within: float) -> None:
    """Kill a command at a random moment of its run."""
    with in_process(command):
        # Later moments more often: that is where the files change places.
        time.sleep(within * random.random() ** 0.3)
