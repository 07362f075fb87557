# SPDX-License-Identifier: Apache-2.0
"""
The types of what `--ros-args` gives to the node's parameters.

ROS merges all that is given under one name of a node, and where two sources differ in type it
keeps the first silently: a limit mistyped after `-p` would leave the file's in force.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
import re
from typing import Any

import yaml

from trt_segmentation.errors import InputError

_HERE = ('/**', '/segmentation')
_WORDS = {bool: 'true or false', int: 'an integer', float: 'a number with a decimal point',
          str: 'a text', list: 'a list of texts'}


class _Loader(yaml.SafeLoader):
    """Reads scalars as rcl_yaml_param_parser does: no dates, no 1_000, but y, n and 1e-1."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # as the base class has it


for _tag, _text in (
        ('bool', '[yYnN]|yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|'
                 'on|On|ON|off|Off|OFF'),
        ('int', r'[-+]?(0x[0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)'),
        ('float', r'[-+]?((\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)'),
        ('null', '|~|null|Null|NULL')):
    _Loader.add_implicit_resolver(f'tag:yaml.org,2002:{_tag}', re.compile(f'^({_text})$'), None)
_Loader.add_constructor('tag:yaml.org,2002:bool', lambda _, node: node.value.lower() in (
    'y', 'yes', 'true', 'on'))


def check(argv: Sequence[str], types: Mapping[str, type]) -> None:
    """
    Refuse values of a wrong type, wherever they are given.

    Sections of a node that was renamed are left to ROS.

    :param argv: the arguments of the process
    :param types: of the parameters, by name
    :raises InputError: for the first one
    """
    for source, name, value in _given(argv):
        kind = types.get(name)
        if kind is not None and not _fits(value, kind):
            raise InputError(f'parameter {name}: found {value!r} in {source}, expected '
                             f'{_WORDS[kind]}')


def _given(argv: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield where it is given, name and value of all that is readable and for this node."""
    inside = False
    for word, following in pairwise(argv):
        inside = word == '--ros-args' or (inside and word != '--')
        if not inside:
            continue
        if word in ('-p', '--param'):
            left, rule, text = following.partition(':=')
            node, _, name = left.rpartition(':')
            if rule and _is_here(node or '/**'):
                yield f'-p {following}', name, _loaded(text)
        elif word == '--params-file':
            try:
                document = _loaded(Path(following).read_text())
            except (OSError, ValueError):
                continue  # ROS says why
            for name, value in _of_file(document, ''):
                yield following, name, value


def _of_file(section: Any, node: str) -> Iterator[tuple[str, Any]]:
    """Yield names and values of a section of a parameter file."""
    for key, inner in section.items() if isinstance(section, dict) else ():
        if key == 'ros__parameters' and isinstance(inner, dict):
            if _is_here(node):
                yield from inner.items()
        else:
            yield from _of_file(inner, f'{node}/{str(key).strip("/")}')


def _is_here(node: str) -> bool:
    """Tell whether a node's name in a rule is this node's."""
    return f'/{node.lstrip("/")}' in _HERE


def _loaded(text: str) -> Any:
    """Return what YAML text says; None, which nothing is said about, if it is none."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, ValueError):
        return None


def _fits(value: Any, kind: type) -> bool:
    """Tell whether ROS reads a value as a type, or says itself why not."""
    if value is None or value == []:
        return True
    if kind is list:
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    return type(value) is kind
