# SPDX-License-Identifier: Apache-2.0
"""The one progress bar of all commands: on a terminal only, with no decoder's noise in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, ExitStack
import io
import os
import re
import sys
from typing import Any

from trt_segmentation.errors import missing_library

# What libraries that decode pictures write to standard error of what the caller is told anyway.
_NOISE = re.compile(
    rb'libpng|Corrupt JPEG|Premature end of JPEG|extraneous bytes|JPEG datastream|TIFF|'
    rb'\[ *WARN:|\[ *ERROR:.*(imread|imdecode|grfmt|loadsave)|Invalid SOS|Unsupported marker')


class ProgressBar:
    """
    One bar for each stage of a command, on standard error, if that is a terminal.

    While it is open, nothing that a C library writes to standard error gets between the bars: a
    decoder's noise is dropped, all else comes after them.

    totals: how many steps each stage has, by its name; None if that is not known (yet)
    """

    def __init__(self, totals: Mapping[str, int | None], unit: str = 'frame'):
        """
        Take what is known before the work.

        :param totals: as the attribute; a stage that is not named has no total
        :param unit: of the steps
        """
        self.totals = dict(totals)
        self._expected: dict[str, int] = {}  # of stages that have no unit of their own, too
        self._unit = unit
        self._stage: str | None = None
        self._bar: Any = None
        self._quiet = ExitStack()

    def __enter__(self) -> ProgressBar:
        """Keep decoders quiet from here on."""
        self._quiet.enter_context(quiet_decoders())
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the last bar as it is."""
        self._close()
        self._quiet.close()

    def expect(self, stage: str, steps: int) -> None:
        """Take how many steps a stage has that has not begun."""
        self._expected[stage] = steps

    def show(self, stage: str, done: int) -> None:
        """Move the bar of a stage on to so many steps; another stage gets a bar of its own."""
        if stage != self._stage:
            self._close()
            self._bar = _tqdm()(total=self.totals.get(stage) or self._expected.get(stage),
                                desc=stage or None,
                                unit=self._unit if stage in self.totals else 'step',
                                disable=None, **_size())
            self._stage = stage
        self._bar.update(done - self._bar.n)

    def advance(self) -> None:
        """Move the only stage, the one named first, on by one."""
        stage = next(iter(self.totals))
        self.show(stage, (self._bar.n if self._stage == stage else 0) + 1)

    def doing(self, names: Sequence[str]) -> None:
        """Show beside the bar of the only stage what is worked on."""
        if self._bar is None:
            self.show(next(iter(self.totals)), 0)
        if not self._bar.disable:
            self._bar.set_postfix_str(', '.join(names))

    def say(self, line: str) -> None:
        """Print a line of what is going on, where there is a bar."""
        if sys.stderr.isatty():
            self._close()
            self._stage = None
            print(line, file=sys.stderr)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep what C libraries write to standard error for the end, and drop decoders' noise."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    # Not a temporary file: a full disk has no room for one.
    with open(os.memfd_create('stderr'), 'w+b') as written, open(kept, 'wb') as real:
        python = sys.stderr
        sys.stderr.flush()
        if _descriptor(python) == 2:
            sys.stderr = io.TextIOWrapper(
                open(os.dup(kept), 'wb', 0), encoding=python.encoding, errors=python.errors,
                line_buffering=True, write_through=True)
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            python.flush()
            os.dup2(kept, 2)
            if sys.stderr is not python:
                sys.stderr.close()
                sys.stderr = python
            written.seek(0)
            for line in written:
                if not _NOISE.search(line):
                    real.write(line)


def _descriptor(stream: Any) -> int:
    """Return the descriptor that a stream writes to; -1 if it has none."""
    try:
        return int(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return -1


def _size() -> dict[str, int]:
    """Return a size for a terminal that knows none, which has no room for a bar then."""
    try:
        known = os.get_terminal_size(_descriptor(sys.stderr))
    except OSError:
        return {}
    return {} if all(known) else {'ncols': known.columns or 80, 'nrows': known.lines or 24}


def _tqdm() -> Any:
    """Return the class of the bars."""
    try:
        from tqdm import tqdm
    except ImportError:
        raise missing_library('tqdm', 'Showing progress', 'cpu') from None
    return tqdm
