# SPDX-License-Identifier: Apache-2.0
"""
What `--ros-args` gives to the node's parameters, and what of it ROS would pass over in silence.

ROS merges all that is given under one name of a node, and where two sources differ in type it
keeps the first silently: a limit mistyped after `-p` would leave the file's in force. A section of
a parameter file that is for no node of this name does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from math import isfinite, nan
from pathlib import Path
import re
from typing import Any

import yaml

from trt_segmentation.errors import InputError

_NAME = 'segmentation'  # unless a rule says otherwise
_ANY = {'**': '(?:/[^/]+)*', '*': '/[^/]+'}
_NAMED = 3  # sections, in a sentence
_NEAR = 0.8  # of two names, as difflib measures it, for one to be meant by the other
_WORDS = {bool: 'true or false', int: 'an integer', float: 'a number with a decimal point',
          str: 'a text, in quotes', list: 'a list of texts, as [front, rear]'}


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
    Refuse values of a wrong type, wherever they are given to this node.

    :param argv: the arguments of the process
    :param types: of the parameters, by name
    :raises InputError: for the first one
    """
    here = _node_name(argv)
    for option, text in _options(argv):
        given: list[tuple[str, str, Any]] = []
        if option in ('-p', '--param'):
            left, rule, value = text.partition(':=')
            node, _, name = left.rpartition(':')
            if rule and is_for(node or '/**', here):
                given = [(f'-p {text}', name, _loaded(value))]
        elif option == '--params-file':
            given = [(text, name, value) for node, values in sections(_document(text))
                     if is_for(node, here) for name, value in values.items()]
        for source, name, value in given:
            kind = types.get(name)
            if kind is not None and not _fits(value, kind):
                raise InputError(f'parameter {name}: found {value!r} in {source}, expected '
                                 f'{_WORDS[kind]}{_written(value, kind)}')


def passed_over(argv: Sequence[str]) -> list[str]:
    """
    Return a sentence for each parameter file whose sections are not for this node.

    One that has a section for it may have others, for other nodes; unless that section is for all
    nodes, and another one is for a node of nearly this name.
    """
    here, sentences = _node_name(argv), []
    for file in [text for option, text in _options(argv) if option == '--params-file']:
        names = [node for node, _ in sections(_document(file))]
        found = [node for node in names if is_for(node, here)]
        others = sorted(set(names) - set(found))
        near = get_close_matches(here, others, 1, _NEAR)
        if others and not found:
            shown = ', '.join(near or others[:_NAMED])
            sentences.append(f'{file}: no section of it is for this node, {here}, so nothing is '
                             f'taken from it; it has {shown}')
        elif near and all('*' in node for node in found):
            sentences.append(f'{file}: section {near[0]} is not for this node, {here}, so it does '
                             'nothing here')
    return sentences


def missed(argv: Sequence[str], names: Iterable[str]) -> list[str]:
    """
    Return a sentence for each remapping of what the node nearly has.

    Others are left alone: a launch file may give its rules to all nodes.

    :param names: of the node's topics and services, as rules apply to them: image, ~/class_mask
    """
    here = _node_name(argv)
    namespace = here[:here.rindex('/') + 1]
    known = {_absolute(name, here).removeprefix(namespace): name for name in names}
    sentences = []
    for option, text in _options(argv):
        left, rule, _ = text.partition(':=')
        node, _, name = left.rpartition(':')
        if (option not in ('-r', '--remap') or not rule or name.startswith('__')
                or node not in ('', here.rpartition('/')[2])):
            continue
        found = _absolute(name, here).removeprefix(namespace)
        if found not in known and (near := get_close_matches(found, known, 1, _NEAR)):
            sentences.append(f'{option} {text}: this node has no topic {name}, so it does nothing '
                             f'here; did you mean {known[near[0]]}?')
    return sentences


def sections(document: Any, node: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (node's name, which may have * and **; its parameters) of a parameter file."""
    for key, inner in document.items() if isinstance(document, dict) else ():
        if key == 'ros__parameters' and isinstance(inner, dict):
            yield node, inner
        else:
            yield from sections(inner, f'{node}/{str(key).strip("/")}')


def is_for(section: str, node: str) -> bool:
    """
    Tell whether a section, or the prefix of a rule, is for a node.

    :param section: a name in which * stands for one part, ** for any number
    :param node: the node's absolute name
    """
    pattern = ''.join(_ANY.get(part, f'/{re.escape(part)}')
                      for part in section.strip('/').split('/'))
    return re.fullmatch(pattern, node) is not None


def _node_name(argv: Sequence[str]) -> str:
    """Return the node's absolute name, by the rules for it; of two the first counts."""
    found: dict[str, str] = {}
    for option, text in _options(argv):
        left, rule, value = text.partition(':=')
        prefix, _, name = left.rpartition(':')
        if option in ('-r', '--remap') and rule and name in ('__node', '__name', '__ns') and (
                prefix in ('', found.get('node', _NAME))):
            found.setdefault('namespace' if name == '__ns' else 'node', value)
    namespace, node = found.get('namespace', '').strip('/'), found.get('node', _NAME)
    return f'/{namespace}/{node}' if namespace else f'/{node}'


def _absolute(name: str, node: str) -> str:
    """Return a name as ROS completes it in a node."""
    if name.startswith('~/'):
        return node + name[1:]
    return name if name.startswith('/') else f'{node[:node.rindex("/")]}/{name}'


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what stands within `--ros-args`: each word with the one behind it."""
    inside = False
    for word, following in pairwise(argv):
        inside = word == '--ros-args' or (inside and word != '--')
        if inside:
            yield word, following


def _document(file: str) -> Any:
    """Return what is in a parameter file; None if it cannot be read, as ROS says itself."""
    try:
        return _loaded(Path(file).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None


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


def _written(value: Any, kind: type) -> str:
    """Return how to write a number that is one of another type, or ''."""
    try:
        number = float(value) if kind in (int, float) and not isinstance(value, bool) else nan
    except (TypeError, ValueError, OverflowError):
        return ''
    return f': write {kind(number)}' if isfinite(number) and kind(number) == number else ''
