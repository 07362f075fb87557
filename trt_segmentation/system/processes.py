# SPDX-License-Identifier: Apache-2.0
"""Processes of this machine as workers; others take the place of those that are killed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
import os
from pathlib import Path
import pickle
import secrets
import signal
import subprocess
import threading
from time import sleep
from typing import Any, ParamSpec, TypeVar

from trt_segmentation.errors import InputError
from trt_segmentation.system import cores, environment, files, machine

_ENDING = {signal.SIGINT, signal.SIGTERM}  # what a command ends by
_POLL_SECONDS = 0.01  # while workers end
_WORKER_BYTES = 1 << 30  # what a process with a few engines needs, in a rough way

Given = ParamSpec('Given')
Result = TypeVar('Result')


class Processes(Executor):
    """
    A pool of processes that is made anew when one of them is killed.

    The calls that were on their way then end in BrokenExecutor, and may be made again. What goes
    to a worker and what comes back lies in files: through a pipe a worker that is killed in the
    middle of a message would leave this process waiting for the rest of it.
    """

    def __init__(self, workers: int, threads: int):
        """
        Start processes as they are needed.

        :param workers: how many
        :param threads: how many cores each of them may use
        """
        self.workers = workers
        self._threads = threads
        self._turn = threading.Lock()
        self._directory = files.temporary_directory()
        self._mail = Path(self._directory.name)
        self._pool = self._new()

    def submit(self, function: Callable[Given, Result], /, *args: Given.args,
               **kwargs: Given.kwargs) -> Future[Result]:
        """Call a function in a worker."""
        letter = self._mail / secrets.token_hex(8)
        try:
            letter.write_bytes(pickle.dumps(partial(function, *args, **kwargs), -1))
        except OSError as error:
            raise InputError(f'{self._mail}: cannot be written: {error.strerror}; name another '
                             'directory with the variable TMPDIR') from None
        with self._turn, _uninterrupted():
            inner = self._submit(letter)
        outer: Future[Result] = Future()
        outer.add_done_callback(lambda future: future.cancelled() and inner.cancel())
        inner.add_done_callback(partial(_deliver, letter, outer))
        return outer

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers when they have done what they were given."""
        self._end(wait, cancel_futures)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """End the workers; after an error, an interruption too, in the middle of their work."""
        self._end(True, kind is not None, at_once=kind is not None)

    def _end(self, wait: bool, cancel_futures: bool, at_once: bool = False) -> None:
        """
        End the workers, and with them the thread that waits for what they send.

        :param at_once: in the middle of their work
        """
        processes = self._processes()
        thread: Any = self._pool._executor_manager_thread
        self._pool.shutdown(False, cancel_futures=cancel_futures)
        if at_once:  # now that the thread knows of what was cancelled: it would fail at that
            _kill(processes)
        while wait and any(process.is_alive() for process in processes):
            # One that was killed may have held the lock for which the others would wait for ever.
            if any(process.exitcode for process in processes):
                _kill(processes)
            sleep(_POLL_SECONDS)
        if wait and thread is not None:
            thread.join()
        self._directory.cleanup()

    def _submit(self, letter: Path) -> Future[None]:
        """Give a letter to the pool; to a new one if it is broken, or breaks at this moment."""
        # While it breaks, it closes what a new process is to be given.
        with suppress(BrokenExecutor, OSError, ValueError):
            inner = self._pool.submit(_answer, letter)
            if not self._pool._broken:  # else it may have been too late to be told so
                return inner
        _kill(self._processes())
        self._pool.shutdown()
        self._pool = self._new()
        return self._pool.submit(_answer, letter)

    def _processes(self) -> list[BaseProcess]:
        """Return the pool's processes."""
        return list((self._pool._processes or {}).values())

    def _new(self) -> ProcessPoolExecutor:
        """Return a pool; its processes are not forked: threads and engines cannot be."""
        return ProcessPoolExecutor(self.workers, get_context('spawn'), _begin, (self._threads,))


def _kill(processes: Iterable[BaseProcess]) -> None:
    """End the processes of a pool; Executor.kill_workers() does, from Python 3.14 on."""
    for process in processes:
        process.kill()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let processes that are started in the block inherit that Ctrl-C does not reach them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def workers_for(asked: int | None, items: int, enough: int) -> int:
    """
    Return how many processes to work with.

    :param asked: what the user asks for; None for what the machine has
    :param items: how many there are
    :param enough: items that are worth a process, with the seconds that it takes to start
    :raises InputError: if less than one is asked for
    """
    if asked is not None:
        if asked < 1:
            raise InputError(f'--jobs: found {asked}, expected 1 or more')
        return min(asked, max(items, 1))
    fits = (machine.available_bytes() or _WORKER_BYTES * cores.cores()) // _WORKER_BYTES
    return max(1, min(cores.cores(), fits, items // enough))


@cache
def can_bind() -> bool:
    """Tell whether `setpriv` can bind a child to its parent, with which the kernel ends it."""
    try:  # util-linux before 2.33 has a setpriv that does not know it
        return subprocess.run(['setpriv', '--pdeathsig', 'clear', 'true'], check=False,
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def begin_worker() -> None:
    """
    Prepare a process of a pool: only its parent ends it, and it ends with its parent.

    One that is stopped while it sends a result would leave its parent waiting for the rest.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked one has its parent's handler
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """
    End when the parent has ended, however early it was killed; in a thread.

    The kernel's signal for it (PR_SET_PDEATHSIG) never comes to whom asks for it after that.
    """
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _begin(threads: int) -> None:
    """Prepare a process that shares the machine with others."""
    begin_worker()
    environment.keep_memory()
    cores.take(threads)


def _answer(letter: Path) -> None:
    """Make the call of a letter, and put what it returns in its place; in a worker."""
    call = pickle.loads(letter.read_bytes())  # noqa: S301  (this machine's own, in a 0700 folder)
    answer = letter.with_suffix('.answer')
    answer.write_bytes(pickle.dumps(call(), -1))


def _deliver(letter: Path, outer: Future[Any], inner: Future[None]) -> None:
    """Hand over what came of a call."""
    answer = letter.with_suffix('.answer')
    try:
        if outer.set_running_or_notify_cancel():
            inner.result()
            outer.set_result(pickle.loads(answer.read_bytes()))  # noqa: S301
    except BaseException as error:
        outer.set_exception(error)
    finally:
        letter.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)
