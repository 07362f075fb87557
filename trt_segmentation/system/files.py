# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, their hashes, and locks between processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
import ctypes
from difflib import get_close_matches
import errno
import fcntl
import glob
import hashlib
import json
from math import inf
import os
from pathlib import Path
import re
import secrets
import shutil
import stat
from tempfile import TemporaryDirectory
from time import monotonic, sleep, time
from typing import Any
import weakref

from trt_segmentation.errors import command_line, InputError, shown

SUMS_NAME = 'SHA256SUMS'
_MAX_SUMS_BYTES = 1 << 20
_SUM = re.compile(r'([0-9a-fA-F]{64}) [ *](.+)')
_NEAR = 0.8  # of two names, as difflib measures it, for one to be meant by the other
_MANY = 5000  # names, among which a look for the nearest takes longer than an error may
_PREFIX = 'trt_segmentation.temporary.'  # what nobody else calls a directory of his own
_YOUNG_SECONDS = 60.0  # in which whoever makes one comes to hold it
_POLL_SECONDS, _REPORT_SECONDS = 0.1, 5.0  # while a lock is waited for


def sha256_bytes(data: bytes) -> str:
    """Return the hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def readable(text: str | os.PathLike[str]) -> str:
    """
    Return a text with paths in it so that it can be printed and written.

    Python keeps bytes of a path that are no text as lone surrogates (PEP 383): what is UTF-8 among
    them is read as that, the rest is escaped.
    """
    text = os.fspath(text)
    try:
        return text.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')
    except UnicodeEncodeError:  # a surrogate that is of no path
        return text.encode('utf-8', 'backslashreplace').decode()


def own_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a file or directory, however the path to it is spelled ('.', '..')."""
    return os.path.basename(os.path.abspath(path))


def nearest_path(path: str | os.PathLike[str]) -> str:
    """Return the question after a path that is like one that is not there, or ''."""
    near = _nearest(Path(path))
    return f'; did you mean {near}?' if near else ''


def _nearest(path: Path) -> Path | None:
    """Return the path that is there and like one that is not, in its directories too; or None."""
    if path.parent != path and not os.path.isdir(path.parent):
        parent = _nearest(path.parent)
        if parent is None:
            return None
        path = parent / path.name
        if os.path.exists(path):
            return path
    try:
        names = os.listdir(path.parent)
    except OSError:
        return None
    if path.name in names or len(names) > _MANY:  # there, and cannot be read for another reason
        return None
    near = (get_close_matches(path.name, names, 1, _NEAR)
            # One letter of a short name is much of it.
            or get_close_matches(path.name, [name for name in names if _one_off(path.name, name)]))
    return path.parent / near[0] if near else None


def _one_off(name: str, other: str) -> bool:
    """Tell whether a letter too many, too few, another or two exchanged make a name the other."""
    same = len(os.path.commonprefix([name, other]))  # noqa: RUF071  # letter by letter
    rest, others = name[same:], other[same:]
    return (rest[1:] in (others, others[1:]) or rest == others[1:]
            or (rest[:2] == others[:2][::-1] and rest[2:] == others[2:]))


def read(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """
    Return what is in a file that will be parsed.

    :raises InputError: if it cannot be read, is no regular file (which may have no end), or is
        larger than anything that is meant to be there
    """
    try:
        # Not to wait for the other end of a pipe.
        with open(path, 'rb', opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
                  ) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f'{path}: not a regular file')
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise InputError(
            f'{path}: cannot be read: {error.strerror}{nearest_path(path)}') from None
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

    :raises InputError: when a folder cannot be written or the disk is full, or for a device or a
        pipe, whose place a file would take; then all files are as they were
    """
    for path in contents:
        _check_kind(path)
    temporary = {path: temporary_beside(path) for path in contents}
    try:
        for path, data in contents.items():
            # Made here and not by tempfile, so that the process's umask decides who may read it.
            with open(temporary[path], 'xb') as file:
                file.write(readable(data).encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
        for directory in {path.parent for path in contents}:
            sync_directory(directory)
    except OSError as error:
        raise InputError(f'{path}: cannot be written: {error.strerror}') from None
    finally:
        for left in temporary.values():
            with suppress(OSError):  # a read-only disk has none
                left.unlink()


def check_writable(path: str | os.PathLike[str], *, parents: bool = False, folder: bool = False
                   ) -> None:
    """
    Look, before any work is done for it, whether a file can be written.

    :param parents: whether folders that are missing above it are made
    :param folder: whether it may be a folder
    :raises InputError: if not, as `atomic_write` and `atomic_directory` would after the work
    """
    there = Path(os.path.abspath(path))
    _check_kind(path)
    if there.is_dir() and not folder:
        raise InputError(f'{path}: cannot be written: it is a directory')
    while parents and not os.path.lexists(there.parent):
        there = there.parent
    temporary = temporary_beside(there / 'file' if there.is_dir() else there)
    try:
        with open(temporary, 'xb'):
            temporary.unlink()
    except OSError as error:
        raise InputError(f'{path}: cannot be written: {error.strerror}') from None


def _check_kind(path: str | os.PathLike[str]) -> None:
    """Raise InputError for a device, a pipe or a socket: a file must not take its place."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise InputError(f'{path}: cannot be written: neither a file nor a directory')


@contextmanager
def atomic_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Yield an empty directory that takes the place of `path` when the block ends without error.

    What was at `path` before is removed then; on an error nothing changes. What a killed process
    has left of the same `path` is removed first.
    """
    path = Path(path)
    try:
        with hidden_directory(path) as (temporary, _):
            new = temporary / path.name  # not the one that is held: whoever reads it may lock it
            new.mkdir()
            yield new
            _put_in_place(new, path)
            sync_directory(path.parent)
    except OSError as error:
        raise InputError(f'{path}: cannot be written: {error.strerror}') from None


@contextmanager
def hidden_directory(path: Path) -> Iterator[tuple[Path, int]]:
    """
    Yield an empty directory beside `path`, and a descriptor of it; it goes away after the block.

    This process holds it. What a killed process has left of the same `path` is removed first.
    """
    directory, descriptor = temporary_beside(path), -1
    try:
        if path.parent.is_dir():
            remove_temporary(path.parent, path.name)
        directory.mkdir(parents=True)
        while (descriptor := _hold(directory)) < 0:
            directory = temporary_beside(path)
            directory.mkdir()
        yield directory, descriptor
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        if descriptor >= 0:
            os.close(descriptor)


def _put_in_place(new: Path, path: Path) -> None:
    """Let a directory take another's place, if there is one, and remove that."""
    if not path.exists():
        try:
            os.replace(new, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else another process was quicker
    if _exchange(new, path):
        shutil.rmtree(new, ignore_errors=True)
        return
    # Here is a moment without either; `remove_temporary` puts the old one back after it.
    old = path.with_name(f'.{path.name}{_PREVIOUS}')
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)  # rename() replaces no directory that has content
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places in one step, where kernel and file system can."""
    call = getattr(ctypes.CDLL(None, use_errno=True), 'renameat2', None)
    if call is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(call(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)


def _hold(directory: Path) -> int:
    """
    Lock a directory as this process's own until it ends; return a descriptor.

    -1 if it is held, as by who has taken it for one that was left and removes it, or is gone. A
    file system without locks lets anybody hold it.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = False
    except OSError as error:  # any other is of a file system without locks
        held = isinstance(error, BlockingIOError)
    if not held and directory.exists():
        return descriptor
    os.close(descriptor)
    return -1


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
        # Others may read it, since they may copy what it lies in.
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
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
    atomic_write(directory / SUMS_NAME, sums_text({
        name: sha256_file(directory / name) for name in listed_files(directory)}))


def sums_text(digests: Mapping[str, str]) -> str:
    """Return the text of SHA256SUMS for the digests of files by name."""
    return ''.join(f'{digest}  {name}\n' for name, digest in sorted(digests.items()))


def read_sums(directory: Path) -> dict[str, str]:
    """
    Return the digests that a directory's SHA256SUMS lists, by name.

    :raises InputError: if it cannot be read, is longer than 1 MB, has a name twice, or a line is
        not one of `sha256sum`'s
    """
    path = directory / SUMS_NAME
    try:
        text = read(path, _MAX_SUMS_BYTES).decode()
    except UnicodeDecodeError:
        raise InputError(f'{path}: cannot be read: not UTF-8') from None
    listed: dict[str, str] = {}
    for number, line in enumerate(text.split('\n'), 1):
        line = line.removesuffix('\r')
        if not line:
            continue
        match = _SUM.fullmatch(line)
        if match is None:
            raise InputError(f'{path}: line {number}: expected "<sha256>  <name>", '
                             f'found {shown(line)}')
        if match[2] in listed:
            raise InputError(f'{path}: line {number}: {shown(match[2])} is listed a second time')
        listed[match[2]] = match[1].lower()
    return listed


def differences(directory: Path, ignored: Callable[[str], bool] = lambda name: False
                ) -> Iterator[tuple[str, str]]:
    """
    Yield name and kind of each difference between a directory and its SHA256SUMS.

    :param ignored: tells by its name whether a file does not matter
    :returns: the kinds are 'missing', 'not listed' and 'changed'
    :raises InputError: as `read_sums`, and for a file that is no plain file
    """
    present = set(listed_files(directory))
    listed = read_sums(directory)
    for name in sorted(present | set(listed)):
        if ignored(name):
            continue
        if name not in present:
            yield name, 'missing'
        elif name not in listed:
            yield name, 'not listed'
        elif sha256_file(directory / name) != listed[name]:
            yield name, 'changed'


def verify_sums(directory: str | os.PathLike[str],
                ignored: Callable[[str], bool] = lambda name: False) -> None:
    """
    Compare the files under `directory` with its SHA256SUMS.

    :param ignored: tells by its name whether a file does not matter
    :raises InputError: if a listed file is missing or differs, a file is not listed or is no
        plain file, or a line of SHA256SUMS is not one of `sha256sum`'s
    """
    directory = Path(directory)
    for name, kind in differences(directory, ignored):
        what = {'missing': f'listed in {SUMS_NAME}, but missing',
                'not listed': f'not listed in {SUMS_NAME}',
                'changed': f'sha256 is not the one in {SUMS_NAME}'}[kind]
        raise InputError(f'{directory / name}: {what}; copy the directory again from where it is '
                         'whole, or if the change is yours, run: '
                         + command_line('seal', directory))


def listed_files(directory: Path) -> list[str]:
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


def sync_directory(directory: Path) -> None:
    """Make a rename in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporary(directory: Path, name: str = '') -> None:
    """
    Clean up after processes that were killed while they wrote into a directory.

    What they had put aside goes back where nothing has taken its place; the rest is removed. What
    a living process holds stays.

    :param name: only what was to become this; '' for all
    """
    for path in directory.glob(f'.{glob.escape(name)}*'):
        left, put_aside = path.name.endswith(_PREVIOUS), _TEMPORARY.fullmatch(path.name)
        of = path.name[1:-len(_PREVIOUS)] if left else put_aside and put_aside[1]
        if not of or (name and of != name):
            continue
        target = path.with_name(of)
        if left and not target.exists():
            os.replace(path, target)
        elif path.is_dir() and not path.is_symlink():
            _remove_free(path)
        else:
            path.unlink(missing_ok=True)


def _remove_free(directory: Path) -> None:
    """Remove a directory unless a living process holds it; meanwhile nobody else can hold it."""
    with suppress(OSError):
        if (descriptor := _hold(directory)) >= 0:
            try:
                shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(descriptor)


_TEMPORARY = re.compile(r'\.(.+)\.[0-9a-f]{12}')
_PREVIOUS = '.previous'


def temporary_beside(path: Path) -> Path:
    """Return an unused hidden name in the same folder, so that a rename stays on one disk."""
    return path.with_name(f'.{path.name}.{secrets.token_hex(6)}')


def temporary_directory(begin: str = '') -> TemporaryDirectory[str]:
    """
    Return a directory of one's own, which goes away with what it holds.

    Those of processes that were killed are removed.

    :param begin: what orders its name among others
    :raises InputError: if none can be made, as where all disks for temporary files are full
    """
    try:
        directory = TemporaryDirectory(prefix=_PREFIX + begin, ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(f'a temporary directory cannot be written: {error.strerror}; make room, '
                         'or name another place with the variable TMPDIR') from None
    own = Path(directory.name)
    weakref.finalize(directory, os.close, _hold(own))
    if (again := _hold(own)) < 0:
        _remove_abandoned(own.parent)
    else:  # there are no locks here, by which to tell who lives
        os.close(again)
    return directory


def _remove_abandoned(place: Path) -> None:
    """Remove the temporary directories of this user that no living process holds."""
    for path in place.glob(f'{_PREFIX}*'):
        with suppress(OSError):  # its owner has just removed it
            found = path.lstat()
            if (found.st_uid == os.getuid() and stat.S_ISDIR(found.st_mode)
                    and time() - found.st_mtime > _YOUNG_SECONDS):
                _remove_free(path)
