# SPDX-License-Identifier: Apache-2.0
"""The demo's child processes: what they start with, how they are waited for, how they end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
import os
from pathlib import Path
from queue import Empty, SimpleQueue
import shlex
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from trt_segmentation.errors import CheckFailed
from trt_segmentation.system import domains, environment
from trt_segmentation.system.processes import can_bind

# Only against what hangs: a machine under load takes a minute for what takes a second elsewhere.
PATIENCE = 300.0
_GRACE = 5.0  # seconds that a process has for freeing its shared memory when it shall end
_NEWS = 20.0  # seconds between two lines that say what is waited for


def say(text: str) -> None:
    """Print what is done next."""
    print(f'== {text}', file=sys.stderr, flush=True)


def program() -> str:
    """Return the command of this package as a shell takes it, with its path."""
    path = Path(sys.executable).parent / 'trt-segmentation'
    if not path.exists():
        return f'{shlex.quote(sys.executable)} -m trt_segmentation'
    near = path.is_relative_to(Path.cwd())
    return shlex.quote(os.path.relpath(path) if near else str(path))


def ros_environment() -> dict[str, str]:
    """
    Return the environment of the processes that talk over DDS.

    They are in a domain of their own and keep to this machine, so that no node of another user
    or test hears the demo, and it hears none.
    """
    return {**environment.alone(os.environ), **environment.variables(),
            'ROS_DOMAIN_ID': str(domains.reserve())}


class Child:
    """
    A module of this package that runs in a process of its own.

    It ends with the stack that it was started in; what it prints goes to its log.
    """

    def __init__(self, stack: ExitStack, name: str, module: str, log: Path,
                 environ: dict[str, str], *arguments: Any, listen: bool = False):
        """
        Start it.

        :param name: what messages call it
        :param log: where standard error goes, and standard output too if nobody listens
        :param listen: let `next_line` return what it prints to standard output
        """
        self.name, self.log = name, log
        # The kernel asks it to end with the demo, even one that is killed.
        bound = ['setpriv', '--pdeathsig', 'INT'] if can_bind() else []
        with log.open('w') as output:
            # In a session of its own: Ctrl-C reaches the demo alone, which then ends the others.
            self.process = subprocess.Popen(
                [*bound, sys.executable, '-m', module, *map(str, arguments)], env=environ,
                text=True, stdout=subprocess.PIPE if listen else output, stderr=output,
                start_new_session=True)
        stack.callback(end, self.process)
        self._lines: SimpleQueue[str] = SimpleQueue()
        if listen:
            threading.Thread(target=self._read, daemon=True).start()

    def next_line(self, seconds: float) -> str:
        """Return the next line that it printed, or '' if none came in time."""
        try:
            return self._lines.get(timeout=seconds)
        except Empty:
            return ''

    def check(self) -> None:
        """Raise CheckFailed if it has ended with an error."""
        if code := self.process.poll():
            raise CheckFailed(f'the {self.name} ended with code {code}: {self._last_words()}')

    def stop(self, others: Iterable[Child] = ()) -> None:
        """Ask it to end and wait until it has, with code 0."""
        self.process.send_signal(signal.SIGINT)
        self.wait(others)

    def wait(self, others: Iterable[Child] = (), at_least: float = 0.0) -> None:
        """
        Wait until it ends, with code 0, while the others must run without an error.

        :param at_least: seconds that its work takes
        """
        wait_until(lambda: self._ended(0.2), f'the end of the {self.name}', [self, *others],
                   at_least)

    def _ended(self, seconds: float) -> bool:
        """Tell whether it ends within some seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self.check()
        return True

    def _read(self) -> None:
        """Pass on what it prints; in a thread."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line)

    def _last_words(self) -> str:
        """Return the last line of its log, and where the rest is."""
        lines = self.log.read_text(errors='replace').split('\n')
        last = next((line.strip() for line in reversed(lines) if line.strip()), 'it said nothing')
        return f'{last}; all that it said: {self.log}'


def wait_until(happened: Callable[[], bool], what: str, children: Iterable[Child],
               at_least: float = 0.0) -> None:
    """
    Wait for something, and say so from time to time, while no child ends with an error.

    :param happened: tells whether it did, and takes a moment for it
    :param at_least: seconds that it takes on any machine
    :raises CheckFailed: if a child fails, or after PATIENCE seconds more
    """
    children = list(children)
    start, patience = time.monotonic(), at_least + PATIENCE
    news = start + at_least + _NEWS
    while not happened():
        for child in children:
            child.check()
        now = time.monotonic()
        if now - start > patience:
            logs = ' and '.join(str(child.log) for child in children)
            raise CheckFailed(f'waited {patience:.0f} s for {what}; what came before: {logs}')
        if now > news:
            say(f'still waiting for {what} ({now - start:.0f} s)')
            news += _NEWS


def end(process: subprocess.Popen[str]) -> None:
    """End a process: by asking, since one that is killed leaves its shared memory behind."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
