# SPDX-License-Identifier: Apache-2.0
"""Failures at every step of a piece of work, and what is left in the process after them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
import ctypes
import errno
import gc
import os
from pathlib import Path
import random
import threading
import weakref

import onnxruntime
import pytest

from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.errors import InputError
from trt_segmentation.networks.session import import_onnxruntime
from trt_segmentation.recordings import decoder
from trt_segmentation.segmenters import cpu
from trt_segmentation.system import files

_TAKEN_MB = 48  # what the later half of the failures may seem to take; pages come and go
_ERRORS = (lambda: InputError('injected'), lambda: RuntimeError('injected'), MemoryError,
           lambda: OSError(errno.EIO, 'injected'), KeyboardInterrupt)


class Failures:
    """
    Lets the n-th step of a piece of work fail, and knows what was not freed.

    A step is: a session made or run, a picture decoded, a segmenter made, a file written.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int = 0):
        """Count the steps of this process from now on."""
        self._random, self._steps, self._fail_at = random.Random(seed), 0, 0
        self._sessions: weakref.WeakSet[onnxruntime.InferenceSession] = weakref.WeakSet()
        self._engines: set[int] = set()
        failures = self

        class Session(onnxruntime.InferenceSession):
            def __init__(self, *arguments, **options):
                failures.step()
                super().__init__(*arguments, **options)
                failures._sessions.add(self)

            def run(self, *arguments, **options):
                failures.step()
                return super().run(*arguments, **options)

        def make(self, *arguments, **options):
            made(self, *arguments, **options)
            failures._engines.add(id(self))

        def close(self):
            failures._engines.discard(id(self))
            closed(self)

        made, closed = OnnxRuntimeEngine.__init__, OnnxRuntimeEngine.close
        monkeypatch.setattr(import_onnxruntime(), 'InferenceSession', Session)
        monkeypatch.setattr(OnnxRuntimeEngine, '__init__', make)
        monkeypatch.setattr(OnnxRuntimeEngine, 'close', close)
        for module, name in ((decoder, 'decode_unchanged'), (cpu, 'Preprocessor'),
                             (cpu, 'Postprocessor'), (files, 'atomic_write')):
            monkeypatch.setattr(module, name, self._failing(getattr(module, name)))

    def step(self) -> None:
        """Count a step, and fail if it is the one; in any thread."""
        self._steps += 1
        if self._steps == self._fail_at:
            raise self._random.choice(_ERRORS)()

    def inject(self, work: Callable[[], object], times: int,
               after: Callable[[], object] = lambda: None) -> None:
        """
        Do a piece of work so many times, and let it fail somewhere each time.

        :param after: checks what it left, after each failure
        :raises AssertionError: if an engine was not closed, a session, thread or descriptor
            stayed, or memory grew
        """
        self._fail_at, self._steps = 0, 0
        work()
        count = self._steps
        assert count > 1
        self._check_freed()
        gc.freeze()  # of a whole suite's objects, which each collection would go through
        try:
            self._inject(work, times, after, count)
        finally:
            gc.unfreeze()

    def _inject(self, work: Callable[[], object], times: int, after: Callable[[], object],
                count: int) -> None:
        """Do what inject() says, once the number of steps is known."""
        threads, descriptors = set(threading.enumerate()), _descriptors()
        memory, failed = 0.0, 0
        for trial in range(times):
            self._steps, self._fail_at = 0, self._random.randint(1, count)
            with suppress(InputError, RuntimeError, MemoryError, OSError, KeyboardInterrupt):
                work()
                failed -= 1  # who goes on without it
            failed += 1
            self._fail_at = 0
            self._check_freed()
            for thread in set(threading.enumerate()) - threads:
                thread.join(60)
                assert not thread.is_alive()
            left = set(_descriptors().items()) - set(descriptors.items())
            assert not left, left
            after()
            if trial == times // 2:
                memory = _memory_mb()
        assert failed > times / 4  # a picture that cannot be read is left out by some
        assert _memory_mb() < memory + _TAKEN_MB

    def _check_freed(self) -> None:
        """Raise AssertionError if an engine is open, or a session there."""
        assert not self._engines  # closed by who opened it, not by chance
        gc.collect()
        assert not list(self._sessions)

    def _failing(self, function: Callable) -> Callable:
        """Return a function whose call is a step."""
        def call(*arguments, **options):
            self.step()
            return function(*arguments, **options)
        return call


def _descriptors() -> dict[str, str]:
    """Return this process's descriptors, and what they lead to."""
    found = {}
    for name in os.listdir('/proc/self/fd'):
        with suppress(OSError):  # the one of this directory
            found[name] = os.readlink(f'/proc/self/fd/{name}')
    return found


def _memory_mb() -> float:
    """Return this process's resident memory, without what the C library keeps for later."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20
