# SPDX-License-Identifier: Apache-2.0
"""The standard streams of a command, whose readers may leave before it ends, as `head` does."""

from __future__ import annotations

from io import BufferedWriter, FileIO, TextIOWrapper
import os
import sys
from typing import Any


class _Stream(FileIO):
    """A stream that goes nowhere from when nobody reads it any more."""

    def write(self, data: Any) -> int:
        """Write to the stream."""
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def outlive_readers() -> None:
    """
    Let no reader that leaves decide about the exit code, which is that of the work.

    Standard error that was closed goes nowhere; else the next file that is opened would take its
    place, and what is said would go into that.
    """
    if sys.stderr is None:
        sys.stderr = open(os.open(os.devnull, os.O_WRONLY), 'w', closefd=False)
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is not None:
            raw = _Stream(stream.fileno(), 'wb', closefd=False)
            # Under PYTHONUNBUFFERED no buffer lies below, as Python makes its own streams: to
            # write through is to write into what lies there.
            setattr(sys, name, TextIOWrapper(
                raw if stream.write_through else BufferedWriter(raw),  # type: ignore[arg-type]
                stream.encoding, stream.errors, line_buffering=stream.line_buffering,
                write_through=stream.write_through))
