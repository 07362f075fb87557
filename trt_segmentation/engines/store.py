# SPDX-License-Identifier: Apache-2.0
"""The store: where built plans live, each under the hash of all that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
import json
import os
from pathlib import Path
import re
import shutil
from typing import Any

from trt_segmentation.engines.record import Record
from trt_segmentation.errors import InputError
from trt_segmentation.system import files, trust

PLAN_NAME = 'plan'
RECORD_NAME = 'record.json'
_KEY = re.compile(r'[0-9a-f]{64}')
_LIMITS = {PLAN_NAME: None, RECORD_NAME: 64 << 20}  # bytes


class Store:
    """A private directory with KEY/plan and KEY/record.json for each built plan."""

    def __init__(self, path: str | os.PathLike[str] | None = None, *, writable: bool = True):
        """
        Open a store.

        :param path: its directory; None for $TRT_SEGMENTATION_STORE, else the user's cache
            directory
        :param writable: make it if needed; else it may be read-only, or not be there
        :raises InputError: if it cannot be written but must be, or if others than this user and
            root can change what is in it, or put another in its place (a plan can carry code)
        """
        self.path = Path(path) if path is not None else default_path()
        try:
            if writable:
                trust.make_private(self.path)
            elif not os.path.lexists(self.path):  # then it holds nothing
                return
            trust.check_directory(self.path, f'store {self.path}')
        except OSError as error:
            raise InputError(f'store {self.path}: cannot be {"made" if writable else "read"}: '
                             f'{error.strerror}; name another with --store') from None
        if writable and not os.access(self.path, os.W_OK | os.X_OK):
            raise InputError(f'store {self.path}: not writable; name another with --store')

    @contextmanager
    def lock(self, report: Callable[[str], None]) -> Iterator[None]:
        """
        Hold the store for one builder; wait for another process that does so, and say that.

        What a builder that was killed had put aside is put back; what else it left is removed.
        """
        def waiting(seconds: float) -> None:
            report(f'waiting for another process that builds into store {self.path}: '
                   f'{seconds:.0f} s')

        with files.lock(self.path / '.lock', f'store {self.path}', waiting):
            files.remove_temporary(self.path)
            yield

    def record(self, key: str) -> Record | None:
        """Return the record of a plan; None if there is none, or one that cannot be believed."""
        try:
            values = _values(self._files(key, RECORD_NAME)[RECORD_NAME], key)
            return Record.from_json(values, str(self.path / key / RECORD_NAME))
        except InputError:
            return None

    def plan(self, key: str) -> bytes:
        """
        Return the bytes of a plan.

        :raises InputError: if they are not the ones that its record vouches for, or if others can
            change them
        """
        return self._both(key)[1]

    def engine(self, key: str) -> tuple[Record, bytes]:
        """Return record and plan, which belong together; raises InputError as `plan` does."""
        values, data = self._both(key)
        if values.keys() == {'key', 'plan_sha256'}:  # of `keep`
            raise InputError(f'{self.path / key}: no engine, but what an earlier build keeps to '
                             'save time: a timing cache, or which precision was the fastest')
        return Record.from_json(values, str(self.path / key / RECORD_NAME)), data

    def publish(self, record: Record, plan: bytes) -> Record:
        """Put a plan and its record into the store, in one step; return the record with both."""
        record = replace(record, plan_sha256=files.sha256_bytes(plan), vouched=True)
        self._publish(record.key, plan, record.to_json())
        return record

    def keep(self, key: str, data: bytes) -> None:
        """Put bytes into the store that only save time, such as a timing cache."""
        self._publish(key, data, {'key': key, 'plan_sha256': files.sha256_bytes(data)})

    def kept(self, key: str) -> bytes:
        """Return what `keep` put there; b'' if there is nothing, or if it was changed."""
        try:
            return self.plan(key)
        except InputError:
            return b''

    def prune(self, kept: Sequence[Record]) -> list[str]:
        """
        Remove the plans that newer ones have replaced; return their keys.

        :param kept: of the plans that stay. Of the same bundle, backend and precision one more
            stays: the last good one before, so that there is a way back
        """
        removed = []
        keys = [record.key for record in kept]
        for new in kept:
            older = [record for record in self._records()
                     if _family(record) == _family(new) and record.key not in keys]
            for record in sorted(older, key=lambda record: (record.built, record.key))[:-1]:
                try:
                    shutil.rmtree(self.path / record.key)
                except OSError as error:
                    raise InputError(f'{self.path / record.key}: cannot be removed: '
                                     f'{error.strerror}') from None
                removed.append(record.key)
        return removed

    def _publish(self, key: str, plan: bytes, record: Mapping[str, Any]) -> None:
        """Put both files there, for this user alone whatever the umask is."""
        with files.atomic_directory(self.path / key) as directory:
            directory.chmod(0o700)
            for name, data in ((PLAN_NAME, plan),
                               (RECORD_NAME, (json.dumps(record, indent=1) + '\n').encode())):
                files.atomic_write(directory / name, data)
                (directory / name).chmod(0o600)

    def _both(self, key: str) -> tuple[dict[str, Any], bytes]:
        """Return what stands in a record, whatever it is of, and the plan that it vouches for."""
        path = self.path / key
        found = self._files(key, RECORD_NAME, PLAN_NAME)
        record = _values(found[RECORD_NAME], key)
        if record is None:
            raise InputError(f'{path / RECORD_NAME}: damaged, or of another engine than its '
                             'directory names; build it anew with: trt-segmentation build BUNDLE')
        if files.sha256_bytes(found[PLAN_NAME]) != record.get('plan_sha256'):
            raise InputError(
                f'{path / PLAN_NAME}: its bytes are not those of its record, so it is not run; '
                'build it anew with: trt-segmentation build BUNDLE')
        return record, found[PLAN_NAME]

    def _files(self, key: str, *names: str) -> dict[str, bytes]:
        """Return files of a plan, which only this user or root can have written."""
        if not _KEY.fullmatch(key):
            raise InputError(f'{self.path / key}: not the directory of an engine, which is named '
                             'by its key: 64 hexadecimal digits')
        return trust.read(self.path / key, {name: _LIMITS[name] for name in names})

    def _records(self) -> list[Record]:
        """Return the records of all plans (timing caches are kept beside them)."""
        found = [self.record(path.parent.name) for path in self.path.glob(f'*/{RECORD_NAME}')]
        return [record for record in found if record is not None]


def _values(data: bytes, key: str) -> dict[str, Any] | None:
    """Return what stands in the record of a key; None if it is damaged, or that of another."""
    try:
        record = json.loads(data)
        return record if record['key'] == key else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _family(record: Record) -> tuple[str, str, str]:
    """Return what two plans share if the newer one replaces the older."""
    return record.bundle, record.inputs.backend, record.inputs.precision


def default_path() -> Path:
    """
    Return $TRT_SEGMENTATION_STORE, else trt_segmentation in the user's cache directory.

    :raises InputError: for a user without a home directory, as in some containers
    """
    if path := os.environ.get('TRT_SEGMENTATION_STORE'):
        return Path(path)
    try:
        cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    except RuntimeError:
        raise InputError('store: this user has no home directory; name one with --store, or in '
                         '$TRT_SEGMENTATION_STORE') from None
    return Path(cache) / 'trt_segmentation'
