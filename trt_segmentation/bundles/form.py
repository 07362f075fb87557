# SPDX-License-Identifier: Apache-2.0
"""Reading YAML that a person wrote, or that came with a bundle from somewhere else."""

from __future__ import annotations

import os
from pathlib import Path
import stat
from typing import Any

import yaml

from trt_segmentation.errors import InputError, one_line, shown

_MAX_BYTES = 1 << 20


def read(path: str | os.PathLike) -> Any:
    """
    Return a YAML file's plain values: mappings, lists, texts, numbers.

    :raises InputError: with the line, for what is not YAML or has a key twice; also for merge
        keys, by which a small file can grow without bound, and for more than 1 MB
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f'{path}: not a regular file; expected a YAML file')
        if status.st_size > _MAX_BYTES:
            raise InputError(f'{path}: {status.st_size} bytes; expected a YAML file of at most '
                             f'{_MAX_BYTES}')
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror}') from None
    try:
        return _Loader(data.decode('utf-8-sig')).get_single_data()
    except RecursionError:
        raise InputError(f'{path}: nested too deeply') from None
    except yaml.MarkedYAMLError as error:
        line = f' line {error.problem_mark.line + 1}:' if error.problem_mark else ''
        raise InputError(f'{path}:{line} not valid YAML: {error.problem}') from None
    except Exception as error:  # for values such as 2026-99-99 its constructors raise many a type
        raise InputError(f'{path}: not valid YAML: {one_line(error)}') from None


class _Loader(yaml.SafeLoader):
    """Plain values only, without merge keys, and no key twice (PyYAML would take the last)."""

    def construct_mapping(self, node, deep=False):
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
        return super().construct_mapping(node, deep)
