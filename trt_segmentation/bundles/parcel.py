# SPDX-License-Identifier: Apache-2.0
"""A bundle on its way to another machine: all its files as one piece, known by their hash."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
import zipfile

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.errors import InputError
from trt_segmentation.system import files, trust

FOLDER = 'bundles'
"""Where a store keeps the bundles that were sent to it, each under its hash."""


@dataclass(frozen=True)
class Parcel:
    """
    A packed bundle.

    sha256: of the names and hashes of all its files
    data: a ZIP file of them
    """

    sha256: str
    data: bytes


def pack(bundle: Bundle) -> Parcel:
    """Return a bundle with all its files; whoever changes it meanwhile is waited for."""
    with bundle.unchanged():
        names = [*files.listed_files(bundle.path), files.SUMS_NAME]
        contents = {name: (bundle.path / name).read_bytes() for name in names
                    if (bundle.path / name).exists()}
    out = BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return Parcel(_sha256(contents), out.getvalue())


def place_of(sha256: str, store: Path) -> Path:
    """Return where a store keeps the bundle of a hash; it may not be there."""
    return store / FOLDER / sha256


def unpack(parcel: Parcel, store: Path) -> Path:
    """
    Keep a bundle in a store, unless it is there; return its directory.

    :raises InputError: if its content has not the hash that it was sent under, or the store cannot
        be written
    """
    path = place_of(parcel.sha256, store)
    if path.is_dir() and _sha256_of(path) == parcel.sha256:
        return path
    trust.make_private(store)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with zipfile.ZipFile(BytesIO(parcel.data)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    if _sha256(contents) != parcel.sha256:
        raise InputError('a bundle that was sent here is damaged: its content has not the hash '
                         f'{parcel.sha256}')
    with files.atomic_directory(path) as directory:
        for name, data in contents.items():
            target = directory / name
            if directory not in target.resolve().parents:
                raise InputError(f'a bundle that was sent here has a file {name!r} outside of it')
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return path


def _sha256(contents: dict[str, bytes]) -> str:
    """Return the hash of files by name."""
    return files.sha256_json({name: files.sha256_bytes(data) for name, data in contents.items()})


def _sha256_of(directory: Path) -> str:
    """Return the same of a directory; '' if it is none that can be one."""
    try:
        names = [*files.listed_files(directory), files.SUMS_NAME]
        return files.sha256_json({name: files.sha256_file(directory / name) for name in names
                                  if (directory / name).exists()})
    except InputError:
        return ''
