# SPDX-License-Identifier: Apache-2.0
"""The store: where built plans live, each under the hash of all that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
import json
import os
from pathlib import Path
import shutil
import stat
from typing import Any

from trt_segmentation.errors import InputError
from trt_segmentation.networks.layers import Layer
from trt_segmentation.system import files

PLAN_NAME = 'plan'
RECORD_NAME = 'record.json'
SCHEMA = 2

# What must be in a plan's record, and in parts of it, with its type.
_NUMBER = (int, float)
_RECORD = {
    'schema': int, 'inputs': dict, 'bundle': str, 'built': str, 'build_seconds': _NUMBER,
    'package_version': str, 'layers': list, 'log': list, 'acceptance': dict,
}
_INPUTS = {'backend': str, 'precision': str, 'identity': dict, 'model': str}
_ACCEPTANCE = {
    'basis': str, 'frames': list, 'agreement': (*_NUMBER, type(None)), 'classes': dict,
    'int8_share': _NUMBER, 'failures': list, 'waived': list,
}
_FRAME = {'name': str, 'sha256': str}
_LAYER = {field.name: object for field in fields(Layer)}


class Store:
    """A private directory with KEY/plan and KEY/record.json for each built plan."""

    def __init__(self, path: str | os.PathLike | None = None, *, writable: bool = True):
        """
        Open a store.

        :param path: its directory; None for $TRT_SEGMENTATION_STORE, else the user's cache
            directory
        :param writable: make it if needed; else it may be read-only, or not be there
        :raises InputError: if it cannot be written but must be, or if others can write to it (a
            plan can carry code)
        """
        self.path = Path(path) if path is not None else default_path()
        try:
            if writable:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.stat()
        except FileNotFoundError:  # then it holds nothing
            return
        except OSError as error:
            raise InputError(f'store {self.path}: cannot be {"made" if writable else "read"}: '
                             f'{error.strerror}; name another with --store') from None
        if found.st_uid not in (os.geteuid(), 0):
            raise InputError(
                f'store {self.path}: belongs to another user (uid {found.st_uid}), who can write '
                f'to it, and a plan can carry code; expected uid {os.geteuid()} or root; run: '
                f'chown {os.geteuid()} {self.path}, or name another with --store'
            )
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise InputError(
                f'store {self.path}: others can write to it (mode '
                f'{stat.S_IMODE(found.st_mode):04o}), and a plan can carry code; run: '
                f'chmod 700 {self.path}'
            )
        if writable and not os.access(self.path, os.W_OK | os.X_OK):
            raise InputError(f'store {self.path}: not writable; name another with --store')

    @contextmanager
    def lock(self, report: Callable[[str], None]) -> Iterator[None]:
        """
        Hold the store for one builder; wait for another process that does so, and say that.

        What a builder has left that was killed is removed.
        """
        def waiting(seconds: float) -> None:
            report(f'waiting for another process that builds into store {self.path}: '
                   f'{seconds:.0f} s')

        with files.lock(self.path / '.lock', f'store {self.path}', waiting):
            files.remove_temporary(self.path)
            yield

    def record(self, key: str) -> dict[str, Any] | None:
        """Return the record of a plan; None if there is none of this key, or a damaged one."""
        record = self._read(key)
        return record if record is not None and _is_well_formed(record) else None

    def plan(self, key: str) -> bytes:
        """
        Return the bytes of a plan.

        :raises InputError: if they are not the ones that its record vouches for
        """
        path = self.path / key / PLAN_NAME
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f'{path}: cannot be read: {error.strerror}') from None
        record = self._read(key)
        if record is None or files.sha256_bytes(data) != record.get('plan_sha256'):
            raise InputError(
                f'{path}: its bytes are not those of its record, so it is not run; build it anew '
                'with: trt-segmentation build BUNDLE'
            )
        return data

    def publish(self, key: str, plan: bytes, record: Mapping[str, Any]) -> dict[str, Any]:
        """Put a plan and its record into the store, in one step; return the record."""
        record = {**record, 'key': key, 'plan_sha256': files.sha256_bytes(plan)}
        with files.atomic_directory(self.path / key) as directory:
            files.atomic_write(directory / PLAN_NAME, plan)
            files.atomic_write(directory / RECORD_NAME, json.dumps(record, indent=1) + '\n')
        return record

    def prune(self, kept: Sequence[Mapping[str, Any]]) -> list[str]:
        """
        Remove the plans that newer ones have replaced; return their keys.

        :param kept: records of the plans that stay. Of the same bundle, backend and precision
            one more stays: the last good one before, so that there is a way back
        """
        removed = []
        for new in kept:
            older = [record for record in self._records()
                     if _family(record) == _family(new)
                     and record['key'] not in [record['key'] for record in kept]]
            for record in sorted(older, key=lambda record: record['built'])[:-1]:
                shutil.rmtree(self.path / record['key'])
                removed.append(record['key'])
        return removed

    def _read(self, key: str) -> dict[str, Any] | None:
        """Return what stands in a record, whatever it is of; None if it cannot be read."""
        try:
            record = json.loads((self.path / key / RECORD_NAME).read_text())
            return record if record['key'] == key else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None  # damaged: as good as not there, so that a build makes it anew

    def _records(self) -> list[dict[str, Any]]:
        """Return the records of all plans (timing caches are kept beside them)."""
        found = [self.record(path.parent.name) for path in self.path.glob(f'*/{RECORD_NAME}')]
        return [record for record in found if record is not None]


def _is_well_formed(record: Mapping[str, Any]) -> bool:
    """Tell whether a record has all that its readers rely on."""
    return (_has(record, _RECORD) and record['schema'] == SCHEMA
            and _has(record['inputs'], _INPUTS) and _has(record['acceptance'], _ACCEPTANCE)
            and all(_has(frame, _FRAME) for frame in record['acceptance']['frames'])
            and all(_has(layer, _LAYER) and len(layer) == len(_LAYER)
                    for layer in record['layers']))


def _has(value: Any, form: Mapping[str, Any]) -> bool:
    """Tell whether a value is a dictionary with certain keys and types."""
    return isinstance(value, dict) and all(
        key in value and isinstance(value[key], kind) for key, kind in form.items())


def _family(record: Mapping[str, Any]) -> tuple:
    """Return what two plans share if the newer one replaces the older."""
    return record['bundle'], record['inputs']['backend'], record['inputs']['precision']


def default_path() -> Path:
    """Return $TRT_SEGMENTATION_STORE, else trt_segmentation in the user's cache directory."""
    if path := os.environ.get('TRT_SEGMENTATION_STORE'):
        return Path(path)
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(cache) / 'trt_segmentation'
