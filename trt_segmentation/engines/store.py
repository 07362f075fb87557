# SPDX-License-Identifier: Apache-2.0
"""The store: where built plans live, each under the hash of all that it depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import os
from pathlib import Path
import shutil
import stat
from typing import Any

from trt_segmentation import files
from trt_segmentation.errors import InputError

PLAN_NAME = 'plan'
RECORD_NAME = 'record.json'


class Store:
    """A private directory with KEY/plan and KEY/record.json for each built plan."""

    def __init__(self, path: str | os.PathLike | None = None):
        """
        Open, and make if needed, a store.

        :param path: its directory; None for $TRT_SEGMENTATION_STORE, else the user's cache
            directory
        :raises InputError: if it cannot be written, or if others can write to it (a plan can
            carry code)
        """
        self.path = Path(path) if path is not None else default_path()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = self.path.stat().st_mode
        except OSError as error:
            raise InputError(
                f'store {self.path}: cannot be made: {error.strerror}; name another with --store'
            ) from None
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise InputError(
                f'store {self.path}: others can write to it (mode {stat.S_IMODE(mode):04o}), and '
                f'a plan can carry code; run: chmod 700 {self.path}'
            )
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise InputError(f'store {self.path}: not writable; name another with --store')

    def lock(self):
        """Return a context manager: no other process builds into this store meanwhile."""
        return files.lock(self.path / '.lock', f'store {self.path}')

    def record(self, key: str) -> dict[str, Any] | None:
        """Return the record of a plan, or None if there is none of this key."""
        path = self.path / key / RECORD_NAME
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text())
            return record if record['key'] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None  # damaged: as good as not there, so that a build makes it anew

    def plan(self, key: str) -> bytes:
        """
        Return the bytes of a plan.

        :raises InputError: if they are not the ones that its record vouches for
        """
        record = self.record(key)
        path = self.path / key / PLAN_NAME
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f'{path}: cannot be read: {error.strerror}') from None
        if record is None or files.sha256_bytes(data) != record.get('plan_sha256'):
            raise InputError(
                f'{path}: its bytes are not those of its record, so it is not run; build it anew '
                'with: trt-segmentation build BUNDLE --force'
            )
        return data

    def publish(self, key: str, plan: bytes, record: Mapping[str, Any]) -> dict[str, Any]:
        """Put a plan and its record into the store, in one step; return the record."""
        record = {'key': key, 'plan_sha256': files.sha256_bytes(plan), **record}
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

    def _records(self) -> list[dict[str, Any]]:
        """Return the records of all plans (what else is in the store has no inputs)."""
        found = [self.record(path.parent.name) for path in self.path.glob(f'*/{RECORD_NAME}')]
        return [record for record in found if record is not None and 'inputs' in record]


def _family(record: Mapping[str, Any]) -> tuple:
    """Return what two plans share if the newer one replaces the older."""
    return record.get('bundle'), record['inputs']['backend'], record['inputs']['precision']


def default_path() -> Path:
    """Return $TRT_SEGMENTATION_STORE, else trt_segmentation in the user's cache directory."""
    if path := os.environ.get('TRT_SEGMENTATION_STORE'):
        return Path(path)
    cache = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(cache) / 'trt_segmentation'
