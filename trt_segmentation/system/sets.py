# SPDX-License-Identifier: Apache-2.0
"""
A directory whose files change together: every reader sees the old ones or the new ones.

Whoever changes it puts the new files into a hidden folder in it, adds links to those that stay
and SHA256SUMS of all, and renames that folder to `.pending`: this is the switch, in one step. Then
the files are linked to their places, and the folder goes. Whoever finds a `.pending`, which is
whole, after its maker was killed does the rest for it, or reads it where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
import fcntl
import json
import os
from pathlib import Path
import shutil
from time import monotonic, sleep

from trt_segmentation.errors import InputError
from trt_segmentation.system import files

PENDING_NAME = '.pending'
_REMOVED_NAME = '.removed'
_LOCK_NAME = '.lock'
_MAX_REMOVED_BYTES = 1 << 20
_PATIENCE_SECONDS, _POLL_SECONDS = 60.0, 0.02  # while the files are exchanged


class Change:
    """
    New files of a directory, aside until `commit`.

    path: the folder to write them into, laid out as the directory is
    """

    def __init__(self, directory: Path, path: Path, vouched: dict[str, str]):
        """Take the digests of the files that were verified; use `changing` instead."""
        self.path = path
        self._directory = directory
        self._vouched = vouched
        self._removed: set[str] = set()

    def write(self, name: str, data: bytes | str) -> None:
        """Write a file, which shall replace the one of that name."""
        files.atomic_write(self.path / name, data)

    def remove(self, name: str) -> None:
        """Let a file, or all files of a folder, go; new files of the same name stay."""
        path = self._directory / name
        if path.is_dir():
            self._removed |= {f'{name}/{entry.name}' for entry in path.iterdir()}
        elif path.exists():
            self._removed.add(name)

    def commit(self) -> None:
        """
        Let the new files take their places, with SHA256SUMS.

        Of the files that stay, those that were verified keep their digest, so that damage since
        then is not vouched for.

        :raises InputError: if the disk is full or the directory cannot be written; then all is
            as it was
        """
        try:
            new = files.listed_files(self.path)
            digests = {name: files.sha256_file(self.path / name) for name in new}
            for name in files.listed_files(self._directory):
                if name in digests or name in self._removed:
                    continue
                digests[name] = self._vouched.get(name) or files.sha256_file(
                    self._directory / name)
                _link(self._directory / name, self.path / name)
            gone = sorted(self._removed - set(digests))
            files.atomic_write(self.path / _REMOVED_NAME, json.dumps(gone))
            files.atomic_write(self.path / files.SUMS_NAME, files.sums_text(digests))
            with _locked(self._directory, fcntl.LOCK_EX):
                os.replace(self.path, self._directory / PENDING_NAME)
                files.sync_directory(self._directory)
                _finish(self._directory)
        except OSError as error:
            raise InputError(f'{self._directory}: cannot be written: {error.strerror}') from None


@contextmanager
def changing(directory: Path, what: str, replaces: Callable[[str], bool] | None
             ) -> Iterator[Change]:
    """
    Hold a directory's lock and yield a change of it, which takes place when it is committed.

    What a killed process has left is finished or removed first. Then all files that the change
    does not replace are compared with SHA256SUMS, where there is one.

    :param what: the directory in words, for messages
    :param replaces: tells by its name whether the change replaces or removes a file; None
        vouches for whatever there is
    :raises InputError: if another process changes it, or a file differs from SHA256SUMS
    """
    with locked(directory, what):
        vouched = {}
        if replaces is not None and os.path.lexists(directory / files.SUMS_NAME):
            files.verify_sums(directory, replaces)
            vouched = {name: digest for name, digest in files.read_sums(directory).items()
                       if not replaces(name)}
        path = files.temporary_beside(directory / 'change')
        try:
            path.mkdir()
            yield Change(directory, path, vouched)
        except OSError as error:
            raise InputError(f'{directory}: cannot be written: {error.strerror}') from None
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def locked(directory: Path, what: str) -> Iterator[None]:
    """Let no other process change a directory; finish and remove what a killed one has left."""
    with files.lock(directory / _LOCK_NAME, what):
        with _locked(directory, fcntl.LOCK_EX):
            _finish(directory)
        files.remove_temporary(directory)
        yield


@contextmanager
def reading(directory: Path) -> Iterator[Path]:
    """
    Yield the directory to read the files in, which no process exchanges meanwhile.

    It is the given one, or the one with the new files where its maker was killed and this process
    must not finish the work.

    :raises OSError: if it is no directory that can be read
    :raises InputError: if a process does not come to the end of exchanging them
    """
    while True:
        with _locked(directory, fcntl.LOCK_SH):
            # Its maker holds the other lock as long as it is there, so it has no maker any more.
            if not (directory / PENDING_NAME).exists():
                yield directory
                return
        try:
            with _locked(directory, fcntl.LOCK_EX):
                _finish(directory)
        except OSError:
            with _locked(directory, fcntl.LOCK_SH):
                if (directory / PENDING_NAME).exists():
                    yield directory / PENDING_NAME
                    return


@contextmanager
def _locked(directory: Path, kind: int) -> Iterator[None]:
    """Hold a lock on the directory itself: for no file, a reader needs no right to write."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if kind == fcntl.LOCK_SH:
            _wait_to_read(directory, descriptor)
        else:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)


def _wait_to_read(directory: Path, descriptor: int) -> None:
    """Take the readers' lock; who exchanges files has it for a moment, unless it is stopped."""
    end = monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if monotonic() > end:
                raise InputError(f'{directory}: another process has been exchanging its files for '
                                 f'{_PATIENCE_SECONDS:g} s; wait until it ends') from None
        except OSError:  # a file system without locks
            return
        sleep(_POLL_SECONDS)


def _finish(directory: Path) -> None:
    """Bring the files of `.pending`, if there is one, to their places. May be done twice."""
    pending = directory / PENDING_NAME
    if not pending.exists():
        return
    # A directory may come from anywhere: nothing outside of it is touched, through links neither.
    present = set(files.listed_files(directory))
    try:
        removed = list(json.loads(files.read(pending / _REMOVED_NAME, _MAX_REMOVED_BYTES)))
    except (ValueError, TypeError, RecursionError):
        raise InputError(f'{pending}: damaged; remove it') from None
    for name in (*files.listed_files(pending), files.SUMS_NAME):
        _put(pending / name, directory, name)
    for name in present.intersection(filter(lambda name: isinstance(name, str), removed)):
        (directory / name).unlink(missing_ok=True)
        with suppress(OSError):
            (directory / name).parent.rmdir()  # of an empty folder
    files.sync_directory(directory)
    done = files.temporary_beside(directory / 'change')
    os.replace(pending, done)  # so that it is never there in part
    shutil.rmtree(done, ignore_errors=True)


def _put(source: Path, directory: Path, name: str) -> None:
    """Put a file to its place in one step; both names stay."""
    target = directory / name
    with suppress(OSError):
        if os.path.samefile(source, target) and not target.is_symlink():
            return  # rename() would do nothing, and leave the other link
    target.parent.mkdir(exist_ok=True)
    temporary = files.temporary_beside(directory / source.name)
    _link(source, temporary)
    os.replace(temporary, target)


def _link(source: Path, target: Path) -> None:
    """Link a file, or copy it where the file system has no links."""
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
