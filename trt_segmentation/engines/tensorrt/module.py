# SPDX-License-Identifier: Apache-2.0
"""The modules `tensorrt` and `tensorrt_rtx`: importing them, and keeping what they log."""

from __future__ import annotations

from collections import deque
from importlib import import_module
from types import ModuleType
from typing import Any

from trt_segmentation.engines.tensorrt.refusals import explained
from trt_segmentation.errors import InputError

# Where each library's Python module is, best first: the package, then the bindings alone (which
# is all that a wheel-only installation has).
_MODULES = {
    'tensorrt': ('tensorrt', 'tensorrt_bindings'),
    'tensorrt_rtx': ('tensorrt_rtx', 'tensorrt_rtx_bindings'),
}
_HINTS = {
    'tensorrt': 'on Jetson and DRIVE: apt install python3-libnvinfer; on a PC: '
                'pip install tensorrt',
    'tensorrt_rtx': 'pip install tensorrt-rtx',
}
_KEPT = 200


def import_tensorrt(name: str) -> ModuleType:
    """
    Return the module of a library, 'tensorrt' or 'tensorrt_rtx'.

    :raises InputError: saying whether it is not installed or cannot be loaded, and what to do
    """
    for module in _MODULES[name]:
        try:
            found = import_module(module)
            if hasattr(found, 'Builder'):  # else it is a folder of that name on Python's path
                return found
        except ModuleNotFoundError as error:
            if error.name != module:
                raise InputError(f'the Python module {module!r} cannot be loaded: it needs '
                                 f'{error.name!r}') from None
        except (ImportError, OSError) as error:  # a shared library is missing or another version
            raise InputError(f'the Python module {module!r} cannot be loaded: {error}') from None
    raise InputError(f'the Python module {name!r} is not installed ({_HINTS[name]})')


class Log:
    """
    What a library logged: the newest errors and warnings, and what some rare messages say.

    evidence: lines about the calibration cache
    dump: the last message that lists the engine's layers, or ''
    """

    def __init__(self) -> None:
        """Start empty."""
        self.errors: deque[str] = deque(maxlen=_KEPT)
        self.warnings: deque[str] = deque(maxlen=_KEPT)
        self.evidence: deque[str] = deque(maxlen=_KEPT)
        self.dump = ''

    def add(self, severity: str, message: str) -> None:
        """Take one message; `severity` is TensorRT's name of it, such as 'ERROR'."""
        if message.startswith('Layers:'):
            self.dump = message
        elif severity in ('ERROR', 'INTERNAL_ERROR'):
            self.errors.append(message)
        elif severity == 'WARNING' and message not in self.warnings:
            self.warnings.append(message)
        if severity != 'VERBOSE' and 'alibration' in message:
            self.evidence.append(message)

    def reason(self) -> str:
        """Return what the errors mean, else the last of them in one line."""
        for error in self.errors:
            if (meaning := explained(error)) != ' '.join(error.split()):
                return meaning
        return ' | '.join(list(self.errors)[-3:]) or 'the library logged no error'


def make_logger(trt: ModuleType, log: Log) -> Any:
    """Return an ILogger that adds to `log`; keep it as long as anything that was made with it."""
    base: Any = trt.ILogger

    class Logger(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(severity.name, message)

    return Logger()


def flags(trt: ModuleType, kind: str, *names: str) -> int:
    """Return the bit mask of those members of an enum that this version has."""
    members = getattr(trt, kind).__members__
    return sum(1 << int(members[name]) for name in names if name in members)


def has(trt: ModuleType, kind: str, name: str) -> bool:
    """Tell whether this version has a class or an enum's member."""
    return hasattr(getattr(trt, kind, None), name)
