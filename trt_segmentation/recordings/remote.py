# SPDX-License-Identifier: Apache-2.0
"""Recordings that lie elsewhere: by URL, read with fsspec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import re

from trt_segmentation.errors import InputError, missing_library, one_line
from trt_segmentation.system import files

_URL = re.compile(r'[a-z][a-z0-9+.-]+://')


def is_url(path: str) -> bool:
    """Tell whether this is a URL (s3://, gs://, sftp://, https://, ..) and no path."""
    return _URL.match(path) is not None


@contextmanager
def local(path: str) -> Iterator[Path]:
    """
    Yield where a recording can be read: its path, or a copy that goes with the block.

    :param path: a path; or the URL of a file, or of a directory with a recording's files
    :raises InputError: if it cannot be fetched, or the library for its kind is not installed
    """
    if not is_url(path):
        yield Path(path)
        return
    try:
        import fsspec
    except ImportError:
        raise missing_library('fsspec', 'Reading a URL', 'remote') from None
    with files.temporary_directory() as directory:
        try:
            system, inner = fsspec.core.url_to_fs(path)
            target = Path(directory, inner.rstrip('/').rpartition('/')[2])
            if system.isdir(inner):
                system.get(inner.rstrip('/') + '/', f'{target}/', recursive=True)
            else:
                system.get_file(inner, str(target))
        except ImportError as error:  # s3fs, gcsfs, paramiko, ..
            raise InputError(f'{path}: {one_line(error)}') from None
        except Exception as error:  # each kind of storage has errors of its own
            raise InputError(f'{path}: cannot be fetched: {one_line(error)}') from None
        yield target
