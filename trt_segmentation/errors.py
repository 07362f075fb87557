# SPDX-License-Identifier: Apache-2.0
"""The errors a user meets; each message is one line: what, where, found, expected, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
import re
from reprlib import Repr
import shlex
from typing import Any

_CONTROL = re.compile('[\0-\x1f\x7f-\x9f\u2028\u2029]')
_BEGINS = 4  # letters of a word that is meant by them


class SegmentationError(Exception):
    """Base of every error this package raises on purpose; a command ends with `exit_code`."""

    exit_code = 1


class CheckFailed(SegmentationError):
    """Report that a check that was asked for did not hold (accuracy, coverage, share of INT8)."""


class InputError(SegmentationError):
    """Report wrong use or bad input: a file, a key, a flag or a missing library."""

    exit_code = 2


class DeviceError(SegmentationError):
    """Report that the GPU failed (lost, out of memory); what used it can be opened again."""


class DeviceLost(DeviceError):
    """Report that this process cannot use the GPU any more; only another process can."""


class EngineMissing(InputError):
    """Report that the store has no proven engine of a bundle for this machine."""


def missing_library(name: str, purpose: str, extra: str, package: str | None = None) -> InputError:
    """
    Return the error for an optional library that is not installed.

    :param name: what cannot be imported, as in `import name`
    :param purpose: what it is needed for
    :param extra: the pip extra of this package that brings it
    :param package: the Debian or Ubuntu package that brings it, if there is one
    """
    apt = f', or apt install {package}' if package else ''
    return InputError(
        f'{purpose} needs the Python module {name!r}, which is not installed: '
        f'{install(extra)}{apt}'
    )


def install(extra: str) -> str:
    """Return how an extra of this package is installed; it is on no index of packages."""
    return f"pip install '.[{extra}]' in this package's source tree"


def command_line(verb: str, *words: object) -> str:
    """Return a command of this package as a shell takes it, whatever its paths have in them."""
    return shlex.join(['trt-segmentation', verb, *map(str, words)])


def nearest(word: str, words: Iterable[str], near_enough: float = 0.6) -> str:
    """
    Return the question after the nearest of some words, or the one that it begins; '' if none is.

    :param near_enough: 0..1, as difflib measures it
    """
    names = {each.lower(): each for each in words}
    near = get_close_matches(word.lower(), names, 1, near_enough)
    begun = [name for name in names if len(word) >= _BEGINS and name.startswith(word.lower())]
    if not near and len(begun) == 1:
        near = begun
    return f'; did you mean {names[near[0]]}?' if near else ''


def counted(number: int, noun: str, plural: str = '') -> str:
    """Return a number with its noun, as '1 frame' and '2 frames'."""
    return f'{number} {noun if number == 1 else plural or f"{noun}s"}'


def one_line(error: Exception) -> str:
    """Return the first line of another library's error, or its type where it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: str) -> str:
    """Return text whose control characters are escaped, so that it stays one line."""
    return _CONTROL.sub(lambda found: found[0].encode('unicode_escape').decode(), text)


def shown(value: Any) -> str:
    """Return a value's repr for a message, cut where it is long or deep."""
    try:
        return _REPR.repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return f'a value of type {type(value).__name__}'


_REPR = Repr()
_REPR.maxlevel = 3
_REPR.maxlist = _REPR.maxdict = 6
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 80
