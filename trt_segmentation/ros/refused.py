# SPDX-License-Identifier: Apache-2.0
"""What ROS cannot read of the node's arguments, in one line: what was found, what is expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import re

from rclpy import logging
import yaml

MARK = "Couldn't parse"
"""What rcl's parsers begin with; only the text tells their errors from others."""

# As rcl writes it, in C: the option and its word, a reason, and places in rcl's source.
_SENTENCE = re.compile(rf"{MARK} (?:.*?: '(?P<given>.*)'\.|trailing (?P<flag>\S+) flag\.)"
                       r'(?: Error:)?\s*(?P<reason>.*?)\.?\s*(?:, at /.*)?', re.DOTALL)
_LEXER = re.compile('lexeme|error not set|Expecting token')  # nothing that helps a person
_PARAMETER = '-p NAME:=VALUE, with a value as in YAML'
_REMAPPING = '-r FROM:=TO, with two names'
_ENCLAVE = '--enclave and a name'
_EXPECTED = {
    '-p': _PARAMETER, '--param': _PARAMETER, '-r': _REMAPPING, '--remap': _REMAPPING,
    '--params-file': 'a YAML file with NODE: {ros__parameters: {NAME: VALUE}}',
    '--log-level': '--log-level debug, info, warn, error or fatal, or LOGGER:=LEVEL',
    '-e': _ENCLAVE, '--enclave': _ENCLAVE,
}


def in_words(text: str) -> str:
    """
    Return what rcl says of arguments in one line.

    :param text: its error's; with MARK in it
    """
    found = _SENTENCE.fullmatch(text[text.index(MARK):])
    if found is None:
        return text.splitlines()[0]
    given = found['given'] or found['flag']
    option, _, word = given.partition(' ')
    reason = found['reason']
    if not word:
        reason = 'nothing follows it'
    elif option == '--params-file':
        reason = _trouble(Path(word)) or reason
    elif ':=' not in word and option in ('-p', '--param', '-r', '--remap'):
        reason = "found no ':='"
    elif _LEXER.search(reason):
        reason = ''
    expected = _EXPECTED.get(option)
    return f'{given}: ' + '; '.join(filter(None, (reason, expected and f'expected {expected}')))


def _trouble(file: Path) -> str:
    """Return why a file cannot be read, or what makes it no YAML; '' if neither."""
    try:
        yaml.safe_load(file.read_bytes())
    except OSError as error:
        return f'it cannot be read ({error.strerror})'
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else '?'
        return f'line {line}: {error.problem}'
    except (yaml.YAMLError, ValueError) as error:
        return str(error).splitlines()[0]
    return ''


@contextmanager
def said_once() -> Iterator[None]:
    """Keep rcl from logging what it raises anyway."""
    logging.set_logger_level('rcl', logging.LoggingSeverity.FATAL)
    try:
        yield
    finally:
        if logging.get_logger_effective_level('rcl') == logging.LoggingSeverity.FATAL:
            logging.set_logger_level('rcl', logging.LoggingSeverity.UNSET)
