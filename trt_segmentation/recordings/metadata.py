# SPDX-License-Identifier: Apache-2.0
"""What a recording's metadata.yaml promises (rosbag2, versions 1 to 10)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
import re
from typing import Any

import yaml

from trt_segmentation.errors import one_line, printable, shown

NAME = 'metadata.yaml'
CAPTURED = re.compile(r'capture_([0-9]{6,})\.mcap')
"""What files are called in a directory of captured frames, which has no metadata.yaml."""

_MAX_BYTES = 16 << 20
_KINDS = {dict: 'a mapping', list: 'a list', str: 'text', int: 'a count'}
_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


@dataclass
class Metadata:
    """
    What the file says.

    files: names of the files with messages, in their order; empty if it does not say
    counts: messages of each topic; total: of all of them, 0 if it does not say
    problem: why it cannot be read, or ''
    """

    files: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    total: int = 0
    problem: str = ''


def read(directory: Path) -> Metadata:
    """Read a recording's metadata.yaml; what is wrong with it costs nothing but its promises."""
    path = directory / NAME
    try:
        if path.stat().st_size > _MAX_BYTES:
            return Metadata(problem=f'{path}: larger than {_MAX_BYTES >> 20} MiB; it is not read')
        return _understood(_loaded(path.read_bytes()))
    except FileNotFoundError:
        if any(CAPTURED.fullmatch(file.name) for file in directory.iterdir()):
            return Metadata()
        return Metadata(problem=f'{path} is missing, as after a crash; all files are read')
    except OSError as error:
        return Metadata(problem=f'{path}: cannot be read: {error.strerror}')
    except ValueError as error:
        return Metadata(problem=f'{path}: cannot be read: {error}')


def _loaded(data: bytes) -> Any:
    """Return the values of a YAML file; raises ValueError if it is none."""
    try:
        return yaml.load(data.decode(), _LOADER)  # noqa: S506 - safe
    except UnicodeDecodeError:
        raise ValueError('it is not UTF-8') from None
    except yaml.MarkedYAMLError as error:
        line = f' line {error.problem_mark.line + 1}:' if error.problem_mark else ''
        raise ValueError(f'not valid YAML:{line} {error.problem}') from None
    except RecursionError:
        raise ValueError('nested too deeply') from None
    except yaml.YAMLError as error:
        raise ValueError(f'not valid YAML: {one_line(error)}') from None
    except Exception:  # for values such as 2026-99-99 its constructors raise many a type
        raise ValueError('not valid YAML: a value in it cannot be read') from None


def _understood(document: Any) -> Metadata:
    """Return what the document says; raises ValueError if it is of another form."""
    information = _part(_is(dict, 'the file', document), 'rosbag2_bagfile_information', dict)
    # No str() of anything: a few lines of YAML can stand for a list of a billion.
    found = Metadata([Path(_is(str, 'a file in relative_file_paths', name)).name
                      for name in _part(information, 'relative_file_paths', list)])
    for entry in _part(information, 'topics_with_message_count', list):
        entry = _is(dict, 'a topic in topics_with_message_count', entry)
        topic = printable(_part(_part(entry, 'topic_metadata', dict), 'name', str))
        found.counts[topic] = found.counts.get(topic, 0) + _part(entry, 'message_count', int)
    if 'message_count' in information:
        found.total = _part(information, 'message_count', int)
    return found


def _part(mapping: dict[Any, Any], key: str, kind: type) -> Any:
    """Return a mapping's value of a key; raises ValueError if it is none of its kind."""
    if key not in mapping:
        raise ValueError(f'{key!r} is missing')
    return _is(kind, key, mapping[key])


def _is(kind: type, what: str, value: Any) -> Any:
    """Return a value; raises ValueError if it is none of its kind."""
    if not isinstance(value, kind) or isinstance(value, bool) or (
            isinstance(value, int) and not 0 <= value < 1 << 63):
        found = 'empty' if value is None else shown(value)
        raise ValueError(f'{what} is {found}, expected {_KINDS[kind]}')
    return value
