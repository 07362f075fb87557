# SPDX-License-Identifier: Apache-2.0
"""
From YAML and JSON to typed records.

Whoever keeps something in a file describes it as a dataclass. Here the file is read within
limits, and its values become the dataclass by its annotations; a key that is missing, unknown or
of another type is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, Field, fields, is_dataclass, MISSING
from functools import cache
import json
import math
import os
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints, TypeVar, Union

import yaml

from trt_segmentation.errors import InputError, nearest, one_line, shown
from trt_segmentation.system import files

MAX_YAML_BYTES = 128 << 10
MAX_JSON_BYTES = 64 << 20
ADDED: Mapping[str, bool] = {'added': True}
"""The metadata of a field that came after 0.1.0; see `contract`."""

T = TypeVar('T')


def parsed(parse: Callable[[Any], Any]) -> dict[str, Any]:
    """
    Return the metadata of a field that a function reads, instead of its annotation.

    :param parse: returns the field's value; raises ValueError with what it expects
    """
    return {'parse': parse}


def record(kind: type[T], value: Any, where: str) -> T:
    """
    Return a dataclass made of plain values.

    :param kind: the dataclass; a field without a default is a key that must be there
    :param value: a mapping, or None for an empty one
    :param where: the file, or the file and the key, for messages
    :raises InputError: naming the key, what was expected and what was found
    """
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise InputError(f'{where}: expected a mapping of keys to values, found {shown(value)}')
    known = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
    hints = _hints(kind)  # type: ignore[arg-type]
    for key in value:
        if key not in known:
            raise InputError(f'{where}: unknown key {shown(key)}; expected one of '
                             f'{", ".join(known)}' + nearest(str(key), known))
    found = {}
    for name, entry in known.items():
        if name in value:
            found[name] = _field(entry, hints[name], value[name], inside(where, name))
        elif entry.default is MISSING and entry.default_factory is MISSING:
            raise InputError(f'{where}: key {name} is missing')
    return kind(**found)


def plain(value: Any) -> Any:
    """Return a record as JSON has it: mappings, lists, texts, numbers."""
    return json.loads(to_json(value))


def to_json(value: Any) -> str:
    """Return a record as it stands in its file."""
    return json.dumps(asdict(value), indent=1, allow_nan=False) + '\n'


def contract(value: Any) -> dict[str, Any]:
    """
    Return what the hash of a record is made of.

    Fields that came later (see `ADDED`) count only where they have not their default, so that a
    hash that was made before there was such a field stays what it was.
    """
    return {entry.name: getattr(value, entry.name) for entry in fields(value)
            if not (entry.metadata.get('added') and getattr(value, entry.name) == entry.default)}


def inside(where: str, key: str) -> str:
    """Return where a key stands: the file, then the keys joined by dots."""
    return f'{where}{"." if ": " in where else ": "}{key}'


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """
    Return a YAML file's plain values: mappings, lists, texts, numbers.

    :raises InputError: with the line, for what is not YAML or has a key twice; also for merge
        keys, by which a small file can grow without bound, and for more than 128 KB
    """
    data = files.read(path, MAX_YAML_BYTES)
    try:
        return _Loader(data.decode('utf-8-sig')).get_single_data()
    except RecursionError:
        raise InputError(f'{path}: nested too deeply') from None
    except yaml.MarkedYAMLError as error:
        line = f' line {error.problem_mark.line + 1}:' if error.problem_mark else ''
        raise InputError(f'{path}:{line} not valid YAML: {error.problem}') from None
    except Exception as error:  # for values such as 2026-99-99 its constructors raise many a type
        raise InputError(f'{path}: not valid YAML: {one_line(error)}') from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """
    Return a JSON file's plain values.

    :raises InputError: for what is not JSON, has a key twice, a number that JSON does not have,
        or more than 64 MB
    """
    return parse_json(files.read(path, MAX_JSON_BYTES), str(path))


def parse_json(data: bytes, where: str) -> Any:
    """Return the plain values of a JSON file's bytes; as `read_json`."""
    try:
        return json.loads(data.decode('utf-8'), object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise InputError(f'{where}: nested too deeply') from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are such
        raise InputError(f'{where}: not valid JSON: {one_line(error)}') from None


def as_number(text: str) -> str:
    """Return how to write a number that YAML took for a text (1e-3, 1,5, 1/255), or ''."""
    try:
        first, *rest = (float(part) for part in text.replace(',', '.').split('/'))
        number = float(f'{math.prod([first, *(1 / part for part in rest)]):.8g}')
    except (ValueError, ArithmeticError):
        return ''
    if not math.isfinite(number):
        return ''
    written = repr(number)
    return f"write {written if '.' in written else written.replace('e', '.0e')} for {text}"


def _field(entry: Field[Any], hint: Any, value: Any, where: str) -> Any:
    """Return the value of one field."""
    parse = entry.metadata.get('parse')
    if parse is None:
        return _value(hint, value, where)
    try:
        return parse(value)
    except ValueError as error:
        raise _unexpected(where, str(error), value) from None


def _value(hint: Any, value: Any, where: str) -> Any:
    """Return a plain value as an annotation has it."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if is_dataclass(hint) and isinstance(hint, type):
        return record(hint, value, where)
    if origin in (Union, UnionType):
        return _first(arguments, value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (
                arguments[-1] is not Ellipsis and len(value) != len(arguments)):
            raise _unexpected(where, 'a list' if arguments[-1] is Ellipsis
                              else f'{len(arguments)} values', value)
        kinds = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_value(kind, item, f'{where}[{i}]')
                     for i, (kind, item) in enumerate(zip(kinds, value)))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _unexpected(where, 'a mapping of names to values', value)
        return {key: _value(arguments[1], item, inside(where, key))
                for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        try:
            return float(value)
        except OverflowError:
            raise _unexpected(where, 'a number', value) from None
    if hint is float and isinstance(value, str):
        advice = as_number(value)
        raise _unexpected(where, 'a number', value, f'; {advice}' if advice else '')
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise _unexpected(where, _NAMES.get(hint, str(hint)), value)


def _first(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """Return a value as the first of some types that takes it."""
    if value is None and NoneType in kinds:
        return None
    rest = [kind for kind in kinds if kind is not NoneType]
    for kind in rest[:-1]:
        try:
            return _value(kind, value, where)
        except InputError:
            continue
    return _value(rest[-1], value, where)


def _unexpected(where: str, expected: str, found: Any, advice: str = '') -> InputError:
    """Return the error for a value that is not what it must be."""
    return InputError(f'{where}: expected {expected}, found {shown(found)}{advice}')


_NAMES = {str: 'a text', int: 'an integer', float: 'a number', bool: 'true or false',
          NoneType: 'null'}


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the annotations of a dataclass as types."""
    return get_type_hints(kind)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; Python would take the last of two equal keys."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'key {shown(next(k for k in keys if keys.count(k) > 1))} is there twice')
    return found


def _no_number(text: str) -> Any:
    """Refuse NaN and Infinity, which Python writes and JSON does not have."""
    raise ValueError(f'{text} is no number of JSON')


class _Loader(yaml.SafeLoader):
    """Plain values only, without merge keys, and no key twice (PyYAML would take the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; refuse what it must not have."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.tag == 'tag:yaml.org,2002:merge' or key.value in seen:
                problem = 'is there twice' if key.value in seen else 'is not taken here'
                raise yaml.MarkedYAMLError(problem=f'key {shown(key.value)} {problem}',
                                           problem_mark=key.start_mark)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping
