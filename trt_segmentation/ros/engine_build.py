# SPDX-License-Identifier: Apache-2.0
"""Building an engine in a child process, which may take minutes and may die."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
import os
from pathlib import Path
import shutil
import subprocess
import sys
import threading
from time import monotonic

import trt_segmentation
from trt_segmentation.engines import Dla
from trt_segmentation.errors import EngineMissing
from trt_segmentation.ros.supervisor import Kind
from trt_segmentation.system.processes import can_bind

_NICE = 10
_READ_SECONDS = 30.0  # after the end, that what it said gets to be read
_WARNING = 'warning: '  # how `trt-segmentation build` begins one
_ERROR = 'trt-segmentation build: '  # and what ends it, which the node says when it acts on it

Order = tuple[str, str, str, str, int, Dla | None]
"""What is built: bundle, backend, precision, store, largest batch and accelerator."""


class OtherVersion(EngineMissing):
    """Report that a build ended well, and left no engine that this process can run."""

    def __init__(self, missing: EngineMissing):
        """Tell which versions differ; if it is not the package's, what is missing says more."""
        there = version_on_disk()
        cause = (str(missing) if there == trt_segmentation.__version__ else
                 f'the package on disk is trt_segmentation {there}, and '
                 f'{trt_segmentation.__version__} runs here')
        super().__init__('an engine was built, and none that this process can run: it runs what '
                         f'was on disk when it began, so start it anew; {cause}')


class EngineBuild:
    """
    `trt-segmentation build` in a process of its own, at a low priority.

    order: what is built
    """

    def __init__(self, bundle: str, backend: str, precision: str, store: str, max_batch: int,
                 dla: Dla | None, log: Callable[[str], object], warn: Callable[[str], object]):
        """
        Start the build.

        :param store: '' for the default store
        :param max_batch: how many images the engine shall take at once
        :param dla: the accelerator to build for; None for the GPU
        :param log, warn: take each line of progress and each warning, in a thread of its own
        """
        self.order = bundle, backend, precision, store, max_batch, dla
        # The kernel ends it with the node, even one that is killed; one that was killed before the
        # kernel knew is told from its child's other parent.
        command = [*(['setpriv', '--pdeathsig', 'KILL', 'sh', '-c',
                      '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid())] if can_bind() else []),
                   *(['nice', '-n', str(_NICE)] if shutil.which('nice') else []),
                   sys.executable, '-m', 'trt_segmentation', 'build',
                   os.path.abspath(bundle), '--backend', backend, '--precision', precision,
                   *(['--store', os.path.abspath(store)] if store else []),
                   *(['--max-batch', str(max_batch)] if max_batch > 1 else []),
                   *(['--dla-core', str(dla.core)] if dla else []),
                   *['--gpu-fallback'] * (dla is not None and dla.gpu_fallback)]
        self._started, self._ended = monotonic(), 0.0
        self._log, self._warn = log, warn
        self._lines: deque[str] = deque(maxlen=20)
        # In a session of its own, so that Ctrl-C in a terminal reaches the node only, which ends
        # the build itself.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors='replace', start_new_session=True, cwd='/',
            env=_safe_environment(os.environ))
        self._yield_to_the_session()
        self._reader = threading.Thread(target=self._read_progress, daemon=True)
        self._reader.start()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return monotonic() - self._started

    @property
    def progress(self) -> str:
        """Return the last line of progress."""
        return self._lines[-1] if self._lines else ''

    @property
    def pid(self) -> int:
        """Return the process id of the build."""
        return self._process.pid

    def ended(self) -> bool:
        """Tell whether it has ended, and what it said was read."""
        if self._process.poll() is None:
            return False
        self._ended = self._ended or monotonic()
        # What it has started may outlive it and keep the pipe open.
        return not self._reader.is_alive() or monotonic() - self._ended > _READ_SECONDS

    def outcome(self) -> tuple[Kind | None, str]:
        """Return what its failure asks for, and why it failed; (None, '') if it ended well."""
        code = self._process.returncode
        if code < 0 or code > 128:  # the latter if it could still clean up
            return Kind.ENGINE, ('the engine build was ended by signal '
                                 f'{-code if code < 0 else code - 128}')
        if code:
            # 1: the engine is not good enough. 2: a file, the disk: it may be mended.
            return (Kind.LATER if code == 2 else Kind.FOR_GOOD,
                    self.progress or f'the engine build ended with code {code}')
        return None, ''

    def stop(self) -> None:
        """End the build; the store never holds half an engine."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _yield_to_the_session(self) -> None:
        """
        Lower the priority of the build's session.

        Where the kernel groups processes by session (autogroup), `nice` counts within one only.
        """
        try:
            Path(f'/proc/{self._process.pid}/autogroup').write_text(str(_NICE))
        except OSError:
            pass  # it does not group them, or the build has ended

    def _read_progress(self) -> None:
        """Keep the last lines that it says, and log them, but for the error that ends it."""
        for line in self._process.stderr or ():
            if line := line.strip():
                self._lines.append(line)
                # Two calls: a logger of rclpy takes one severity from each.
                if line.startswith(_WARNING):
                    self._warn(line.removeprefix(_WARNING))
                elif not line.startswith(_ERROR):
                    self._log(line)


def version_on_disk() -> str:
    """Return the version of the package that a child imports, which may not be the one here."""
    return subprocess.run(
        [sys.executable, '-c', 'import trt_segmentation; print(trt_segmentation.__version__)'],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors='replace', cwd='/',
        env=_safe_environment(os.environ)).stdout.strip() or 'of an unknown version'


def _safe_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """
    Return the environment in which a child imports what this process has imported, and no more.

    A node is started in any directory, and Python would look there for modules first: in another
    process as this user, whoever can write there could run code. So the child starts in `/`, has
    no empty or relative entry in PYTHONPATH, and finds this package where this process has it.
    """
    own = str(Path(trt_segmentation.__file__).resolve().parents[1])
    entries = [entry for entry in environ.get('PYTHONPATH', '').split(os.pathsep)
               if os.path.isabs(entry)]
    return {**environ, 'PYTHONSAFEPATH': '1',
            'PYTHONPATH': os.pathsep.join(dict.fromkeys([*entries, own]))}
