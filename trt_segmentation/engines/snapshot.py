# SPDX-License-Identifier: Apache-2.0
"""A bundle as it is at one moment: what is built and proven from is what was checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import shutil

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.errors import InputError, SegmentationError
from trt_segmentation.system import files, trust


@contextmanager
def snapshot(bundle: Bundle, store: Path) -> Iterator[Bundle]:
    """
    Yield a private copy of a bundle, verified as it was copied, which goes with the block.

    A build takes minutes and reads network, cache and golden frames one after the other; meanwhile
    somebody may calibrate the bundle anew. While it is copied, nobody can.

    :param store: a private directory on whose disk the copy fits
    :raises InputError: if the copy's files are not those that SHA256SUMS vouches for
    """
    directory = files.temporary_beside(store / 'bundle')
    copy = directory / bundle.path.resolve().name
    try:
        try:
            trust.make_private(directory)
            with bundle.unchanged():
                _copy(bundle.path, copy)
        except OSError as error:
            raise InputError(f'bundle {bundle.path}: cannot be copied into store {store}, where '
                             f'a build needs room for it: {error.strerror}') from None
        yield Bundle.open(copy)
    except SegmentationError as error:  # the copy is nobody's business
        error.args = (str(error).replace(str(copy), str(bundle.path)),)
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    """Copy the files that SHA256SUMS vouches for, and itself, as this user's own."""
    names = files.listed_files(source)
    if (source / files.SUMS_NAME).exists():
        names.append(files.SUMS_NAME)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name, follow_symlinks=False)
