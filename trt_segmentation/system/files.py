# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, their hashes, and locks between processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
import fcntl
import hashlib
import json
from math import inf
import os
from pathlib import Path
import re
import secrets
import shutil
import stat
from time import monotonic, sleep
from typing import Any

from trt_segmentation.errors import InputError

SUMS_NAME = 'SHA256SUMS'
_POLL_SECONDS, _REPORT_SECONDS = 0.1, 5.0  # while a lock is waited for


def sha256_bytes(data: bytes) -> str:
    """Return the hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def read(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """
    Return what is in a file that will be parsed.

    :raises InputError: if it cannot be read, is no regular file (which may have no end), or is
        larger than anything that is meant to be there
    """
    try:
        with open(path, 'rb') as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f'{path}: not a regular file')
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror}') from None
    if len(data) > max_bytes:
        raise InputError(f'{path}: more than {max_bytes} bytes, the most that is read here')
    return data


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the hex sha256 of a file, read in blocks; raises InputError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, 'rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror}') from None
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """Return `value` as JSON with sorted keys and no white space: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(',', ':'), allow_nan=False)


def sha256_json(value: Any) -> str:
    """Return the hex sha256 of the canonical JSON of `value`."""
    return sha256_bytes(canonical_json(value).encode())


def atomic_write(path: str | os.PathLike[str], data: bytes | str) -> None:
    """
    Write a file so that a reader, or a power cut, sees the old content or the new, never a part.

    :raises InputError: when the folder cannot be written or the disk is full
    """
    atomic_write_all({Path(path): data})


def atomic_write_all(contents: Mapping[Path, bytes | str]) -> None:
    """
    Write several files, each as `atomic_write` does, and none before there is room for all.

    :raises InputError: when a folder cannot be written or the disk is full; then all files are as
        they were
    """
    temporary = {path: _temporary_beside(path) for path in contents}
    path = None
    try:
        for path, data in contents.items():
            # Made here and not by tempfile, so that the process's umask decides who may read it.
            with open(temporary[path], 'xb') as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
        for directory in {path.parent for path in contents}:
            _sync_directory(directory)
    except OSError as error:
        raise InputError(f'{path}: cannot be written: {error.strerror}') from None
    finally:
        for left in temporary.values():
            with suppress(OSError):  # a read-only disk has none
                left.unlink()


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Yield an empty directory that takes the place of `path` when the block ends without error.

    What was at `path` before is removed then; on an error nothing changes.
    """
    path = Path(path)
    temporary, old = _temporary_beside(path), _temporary_beside(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            os.replace(path, old)  # rename() replaces no directory that has content
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise InputError(f'{path}: cannot be written: {error.strerror}') from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextmanager
def lock(path: str | os.PathLike[str], what: str,
         waiting: Callable[[float], None] | None = None) -> Iterator[None]:
    """
    Hold an exclusive lock on the file `path` between processes; it ends with the process.

    :param what: what is locked, for the message
    :param waiting: wait as long as another process holds it; this is called with the seconds that
        it has taken, at the beginning and then every five
    :raises InputError: if another process holds it and it is not waited for, or if the file
        cannot be made
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InputError(f'{path}: cannot be written: {error.strerror}') from None
    try:
        start, reported = monotonic(), -inf
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waiting is None:
                    raise InputError(f'{what} is in use by another process (lock {path}): wait '
                                     'until it ends') from None
            seconds = monotonic() - start
            if seconds - reported >= _REPORT_SECONDS:
                reported = seconds
                waiting(seconds)
            sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def write_sums(directory: str | os.PathLike[str]) -> None:
    """Write SHA256SUMS of all files under `directory`, in the format of `sha256sum -c`."""
    directory = Path(directory)
    lines = [f'{sha256_file(directory / name)}  {name}\n' for name in _listed_files(directory)]
    atomic_write(directory / SUMS_NAME, ''.join(lines))


def verify_sums(directory: str | os.PathLike[str]) -> None:
    """
    Compare the files under `directory` with its SHA256SUMS.

    :raises InputError: if a listed file is missing or differs, a file is not listed or is no
        plain file, or a line of SHA256SUMS is not one of `sha256sum`'s
    """
    directory = Path(directory)
    sums = directory / SUMS_NAME
    present = set(_listed_files(directory))
    listed = {}
    try:
        lines = sums.read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{sums}: cannot be read: {error}') from None
    for number, line in enumerate(lines, 1):
        digest, separator, name = line.partition('  ')
        if not separator or len(digest) != 64 or not name:
            raise InputError(f'{sums}: line {number}: expected "<sha256>  <name>", found {line!r}')
        listed[name] = digest
    if missing := sorted(set(listed) - present):
        raise InputError(f'{directory / missing[0]}: listed in {SUMS_NAME}, but missing')
    if extra := sorted(present - set(listed)):
        raise InputError(
            f'{directory / extra[0]}: not listed in {SUMS_NAME}; '
            f'if the change is yours, run: trt-segmentation seal {directory}'
        )
    for name, digest in sorted(listed.items()):
        if (found := sha256_file(directory / name)) != digest:
            raise InputError(
                f'{directory / name}: sha256 is {found[:12]}.., {SUMS_NAME} says {digest[:12]}..; '
                f'if the change is yours, run: trt-segmentation seal {directory}'
            )


def _listed_files(directory: Path) -> list[str]:
    """
    Return the relative names of all files that SHA256SUMS covers, sorted.

    :raises InputError: for a link, a device or a pipe, which no hash can vouch for, and for a name
        that `sha256sum` would write in another way
    """
    names = []
    for path in directory.rglob('*'):
        name = path.relative_to(directory)
        # Dot files are temporary files and locks, or an editor's.
        if any(part.startswith('.') for part in name.parts):
            continue
        try:
            mode = path.lstat().st_mode
        except OSError as error:
            raise InputError(f'{path}: cannot be read: {error.strerror}') from None
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            raise InputError(f'{path}: a link, a device or a pipe; expected plain files only, '
                             'which hashes can vouch for')
        if not str(name).isprintable() or '\\' in str(name):
            raise InputError(f'{directory}: file name {str(name)!r} cannot stand in {SUMS_NAME}; '
                             'rename it')
        if path != directory / SUMS_NAME:
            names.append(str(name))
    return sorted(names)


def _sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary(directory: Path) -> None:
    """Remove what processes have left that were killed while they wrote into a directory."""
    for path in directory.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


_TEMPORARY = re.compile(r'\..+\.[0-9a-f]{12}')


def _temporary_beside(path: Path) -> Path:
    """Return an unused hidden name in the same folder, so that a rename stays on one disk."""
    return path.with_name(f'.{path.name}.{secrets.token_hex(6)}')
