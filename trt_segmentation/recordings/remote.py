# SPDX-License-Identifier: Apache-2.0
"""Pictures and recordings that lie elsewhere: by URL, fetched with fsspec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
import os
from pathlib import Path
import re
from typing import Any

from trt_segmentation.errors import InputError, missing_library, one_line
from trt_segmentation.recordings import metadata, pictures, storage
from trt_segmentation.system import files

_URL = re.compile(r'[a-z][a-z0-9+.-]+://')
_FILES = (*pictures.SUFFIXES, *storage.SUFFIXES)


def is_url(path: str) -> bool:
    """Tell whether this is a URL (s3://, gs://, sftp://, https://, ..) and no path."""
    return _URL.match(path) is not None


def recordings(url: str) -> list[str]:
    """
    Return the URLs of the recordings that one stands for, as `storage.within` does of a path.

    :param url: of a file, of a directory, or with a pattern (*) of these
    :raises InputError: if there are none, or they cannot be listed
    """
    with _errors(url, 'listed'):
        system, inner = _fsspec().core.url_to_fs(url)
        names = _matching(system, inner) if '*' in url else [inner.rstrip('/')]
        found = [part for name in names for part in _recordings_of(system, name)]
        if not found:
            raise FileNotFoundError
        return [url] if found == names and '*' not in url else [
            system.unstrip_protocol(name) for name in found]


@contextmanager
def local(path: str) -> Iterator[Path]:
    """
    Yield where something can be read: its path, or a copy that goes with the block.

    :param path: a path; or the URL of a file, of a directory, or with a pattern (*) of these
    :raises InputError: if it cannot be fetched, or the library for its kind is not installed
    """
    if not is_url(path):
        yield Path(path)
        return
    with files.temporary_directory() as directory:
        yield _fetched(path, Path(directory))


def here(path: str | os.PathLike[str]) -> str:
    """
    Return where something can be read: its path, or a copy that goes with this process.

    What is at a URL is fetched once.

    :param path: as `local` takes it
    :raises InputError: as `local`
    """
    path = os.fspath(path)
    return str(_copy(path)[0]) if is_url(path) else path


@cache
def _copy(url: str) -> tuple[Path, Any]:
    """Return a copy of what is at a URL, and the directory that is there as long as this is."""
    # Copies of one name are taken in the order of their paths, which must not be by chance.
    directory = files.temporary_directory(files.sha256_bytes(url.encode())[:16])
    try:
        return _fetched(url, Path(directory.name)), directory
    except BaseException:
        directory.cleanup()
        raise


def _fetched(url: str, directory: Path) -> Path:
    """Fetch what is at a URL into a directory; return where it is there, under its own name."""
    with _errors(url, 'fetched'):
        system, inner = _fsspec().core.url_to_fs(url)
        names = _matching(system, inner) if '*' in inner else []
        if names:
            inner = inner.partition('*')[0].rpartition('/')[0]
        inner = inner.rstrip('/')
        target = Path(directory, inner.rpartition('/')[2].partition('?')[0])
        wanted = {}
        for name in names or [inner]:
            for file in _files_of(system, name):
                relative = file[len(inner) + 1:]
                if '..' in relative.split('/'):  # whoever lists it could write anywhere here
                    raise InputError(f'{url}: lists {relative!r}, which leads out of it')
                wanted[file] = target / relative if relative else target
        for path in wanted.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        system.get([*wanted], [str(path) for path in wanted.values()])
    return target


def _files_of(system: Any, name: str) -> list[str]:
    """Return a file itself, or the files of a directory and all below it."""
    # Some stores read a file to its end to tell whether it is a directory.
    if name.lower().partition('?')[0].endswith(_FILES) or not system.isdir(name):
        return [name]
    found: list[str] = system.find(name)
    return found


def _recordings_of(system: Any, name: str) -> list[str]:
    """Return what is a recording itself, or the recordings below a directory, by their names."""
    files = _files_of(system, name)
    whole = {file.rpartition('/')[0] for file in files
             if file.rpartition('/')[2] == metadata.NAME}
    if files == [name] or name in whole:
        return [name]
    found = whole | {file for file in files if file.lower().endswith(storage.SUFFIXES)
                     and not any(file.startswith(f'{bag}/') for bag in whole)}
    return sorted(found)


def _matching(system: Any, pattern: str) -> list[str]:
    """Return what matches a pattern, in order; raises FileNotFoundError if nothing does."""
    found: list[str] = sorted(system.glob(pattern))
    if not found:
        raise FileNotFoundError
    return found


@contextmanager
def _errors(url: str, what: str) -> Iterator[None]:
    """Say in one line why something cannot be fetched or listed."""
    try:
        yield
    except InputError:
        raise
    except ImportError as error:  # s3fs, gcsfs, paramiko, ..
        raise InputError(f'{url}: {one_line(error)}') from None
    except FileNotFoundError:
        raise InputError(f'{url}: cannot be {what}: no such file or directory') from None
    except Exception as error:  # each kind of storage has errors of its own
        raise InputError(f'{url}: cannot be {what}: {one_line(error)}') from None


def _fsspec() -> Any:
    """Return `fsspec`; raises InputError with what to install where it is missing."""
    try:
        import fsspec
    except ImportError:
        raise missing_library('fsspec', 'Reading a URL', 'remote') from None
    return fsspec
