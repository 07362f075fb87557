# SPDX-License-Identifier: Apache-2.0
"""
How a script that is run by hand ends where it lacks a library or refuses what it was given.

The commands have their own ends; here are those of benchmarks, training, and what the demo and the
launch files start. Imports the standard library alone, so that nothing is missed before.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
import platform
import sys
from types import TracebackType

from trt_segmentation.errors import SegmentationError

_DOCTOR = 'what each part needs, and what to do: trt-segmentation doctor'


def end_in_a_line(advice: str = _DOCTOR) -> None:
    """
    Let this process say in one line what ends it.

    The exit code is 2 for a missing library or a file that cannot be read or written, else the
    error's. Called before the imports that may fail; any other error keeps its traceback. Who asks
    for help where a library is missing gets the script's docstring before that line.

    :param advice: what to do about a library that cannot be imported
    """
    sys.excepthook = partial(_end, advice)


def unimportable(error: ImportError, advice: str) -> str:
    """Return which module cannot be imported by which Python, and what to do."""
    where = f'by {sys.executable} (Python {platform.python_version()})'
    if isinstance(error, ModuleNotFoundError):
        return f'no module {error.name!r} is found {where}: {advice}'
    first = (str(error).splitlines() or ['?'])[0]
    return f'{error.name or "a module"} cannot be imported {where}: {first}; {advice}'


def _end(advice: str, kind: type[BaseException], error: BaseException,
         trace: TracebackType | None) -> None:
    """Print what ends the process; Python takes the exit code from a hook's SystemExit."""
    if isinstance(error, SegmentationError):
        text, code = str(error), error.exit_code
    elif isinstance(error, ImportError) and not (error.name or '').startswith('trt_segmentation'):
        text, code = unimportable(error, advice), 2
        if {'-h', '--help'} & {*sys.argv}:
            print((sys.modules['__main__'].__doc__ or '').strip())
    elif isinstance(error, OSError) and error.filename is not None:
        text, code = f'{error.filename}: {error.strerror}', 2
    else:
        sys.__excepthook__(kind, error, trace)
        return
    print(f'{Path(sys.argv[0]).stem}: {text}', file=sys.stderr)
    sys.exit(code)
