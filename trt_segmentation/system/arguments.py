# SPDX-License-Identifier: Apache-2.0
"""The parser of all commands: what it does not know, it says itself, with what is nearest."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from math import isfinite, nan
import sys
from typing import Any, TypeVar

from trt_segmentation.errors import nearest

Number = TypeVar('Number', int, float)


class Parser(argparse.ArgumentParser):
    """A command's parser, whose refusals say what to write instead."""

    def __init__(self, *args: Any, **options: Any):
        """Take what argparse takes; integers and floats are read so that a refusal helps."""
        super().__init__(*args, **options)
        self.register('type', int, integer)
        self.register('type', float, number)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the namespace and an empty list; what is left over is an error of the command."""
        args = sys.argv[1:] if args is None else args
        options = self._option_string_actions
        for word in args:
            if word == '--':
                break
            name = word.partition('=')[0]
            # Before argparse looks: of a misspelt option it says that the right one is missing.
            if name.startswith('--') and ' ' not in name and not any(
                    option.startswith(name) for option in options):
                self.error(f'no option {name}{nearest_option(name, options)}')
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f'unrecognized arguments: {" ".join(unknown)}'
                       + nearest_option(unknown[0], options))
        return found, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is none of an argument's choices; argparse calls it for each value."""
        if action.choices is not None and value not in action.choices:
            choices = [*map(str, action.choices)]
            raise argparse.ArgumentError(action, f'found {value!r}, expected one of '
                                         f'{", ".join(choices)}{nearest(str(value), choices)}')


def nearest_option(word: str, options: Iterable[str]) -> str:
    """Return the question after the nearest option, or ''; the dashes make none near."""
    return nearest(word, options, 0.75)


def integer(text: str) -> int:
    """
    Return an integer of 32 bits; for argparse, whose own message does not say what to write.

    No count, size or seed needs more, and what takes them, as a pool of processes, may not.
    """
    try:
        count = int(text)
    except ValueError:
        pass
    else:
        if abs(count) < 1 << 31:
            return count
        raise argparse.ArgumentTypeError(f'found {text}, expected an integer of 32 bits')
    value = number(text, 'an integer, as 5')
    as_integer = f': write {value:.0f}' if value.is_integer() else ''
    raise argparse.ArgumentTypeError(f'found {text!r}, expected an integer{as_integer}')


def number(text: str, expected: str = 'a number, as 0.5') -> float:
    """Return a finite number; for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not isfinite(value):
        raise argparse.ArgumentTypeError(f'found {text!r}, expected {expected}')
    return value


def at_least(least: Number, kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """Return what reads a number that must not be less; for argparse."""
    def read(text: str) -> Number:
        value = kind(text)
        if value < least:
            raise argparse.ArgumentTypeError(f'found {text}, expected {least:g} or more')
        return value
    return read
