# SPDX-License-Identifier: Apache-2.0
"""The bundle: a directory with a network, its contract, its calibration and its golden frames."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
import os
from pathlib import Path
import shlex
import stat

from trt_segmentation.bundles.spec import load_spec, Spec
from trt_segmentation.errors import command_line, InputError
from trt_segmentation.system import files, sets

SPEC_NAME = 'model.yaml'
CACHE_NAME = 'calibration.cache'
MANIFEST_NAME = 'calibration.json'
GOLDEN_NAME = 'golden'
EQUALIZED_NAME = 'equalized.onnx'
REPORT_NAME = 'calibration.html'
MEMORY_NAME = 'calibration.npz'


class Bundle:
    """A bundle on disk, checked: open it with `Bundle.open`."""

    def __init__(self, path: Path, spec: Spec):
        """Take a checked spec; use `Bundle.open` instead."""
        self.path = path
        self.spec = spec

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True, private: bool = False
             ) -> Bundle:
        """
        Read and check a bundle.

        :param path: the bundle's directory
        :param verify: compare all files with SHA256SUMS; only the commands that change a bundle
            leave this out, because `Bundle.changing` does it
        :param private: refuse a bundle that other users can write to, and so seal anew
        :raises InputError: for a missing file, a key or value that `model.yaml` must not have, a
            contradiction between `model.yaml` and the ONNX graph, or a file that SHA256SUMS does
            not vouch for
        """
        path = Path(path)
        _check_directory(path)
        if private and (reason := exposed(path)):
            raise InputError(f'{reason}; run: chmod -R go-w {shlex.quote(str(path))}')
        with sets.reading(path) as current:
            if verify:
                _verify(current)
            return cls(current, load_spec(current / SPEC_NAME))

    @classmethod
    @contextmanager
    def changing(cls, path: str | os.PathLike[str], replaces: Collection[str] | None
                 ) -> Iterator[tuple[Bundle, sets.Change]]:
        """
        Open a bundle for changing it; yield it, and the change to be committed.

        No other process can change it meanwhile. All that is not replaced is verified first.

        :param replaces: names of the files and folders that the change replaces or removes; None
            vouches for whatever there is
        :raises InputError: as `open`, or if another process changes it
        """
        path = Path(path)
        _check_directory(path)

        replaced = None
        if replaces is not None:
            def replaced(name: str) -> bool:
                return name.split('/')[0] in replaces

        with sets.changing(path, f'bundle {path}', replaced) as change:
            if replaces is not None and not os.path.lexists(path / files.SUMS_NAME):
                _check_unsealed(path, {CACHE_NAME, GOLDEN_NAME} - set(replaces))
            yield cls(path, load_spec(path / SPEC_NAME)), change

    @property
    def model_path(self) -> Path:
        """Return the ONNX file."""
        return self.path / self.spec.model

    @property
    def cache_path(self) -> Path:
        """Return the calibration cache; it may not exist yet."""
        return self.path / CACHE_NAME

    @property
    def manifest_path(self) -> Path:
        """Return the calibration manifest; it may not exist yet."""
        return self.path / MANIFEST_NAME

    @property
    def golden_path(self) -> Path:
        """Return the directory of golden frames; it may not exist."""
        return self.path / GOLDEN_NAME

    @cached_property
    def model_sha256(self) -> str:
        """Return the sha256 of the ONNX file."""
        return files.sha256_file(self.model_path)

    @cached_property
    def sha256(self) -> str:
        """One hash for the contract and all it decides: model.yaml, network and cache."""
        names = [SPEC_NAME, self.spec.model] + [CACHE_NAME] * self.cache_path.exists()
        return files.sha256_json({name: files.sha256_file(self.path / name) for name in names})

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Let no process exchange this bundle's files meanwhile; others may read them too."""
        with sets.reading(self.path):
            yield


def exposed(path: str | os.PathLike[str]) -> str:
    """
    Return who else can write to a bundle, in words, or ''.

    SHA256SUMS tell damage; whoever can write to the directory can write them anew.
    """
    for each in (Path(path), *sorted(Path(path).rglob('*'))):
        try:
            status = each.lstat()
        except OSError:
            continue
        if status.st_uid not in (os.geteuid(), 0):
            return f'{each}: belongs to another user (uid {status.st_uid}), who can change it'
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(status.st_mode):
            return (f'{each}: other users can write to it (mode '
                    f'{stat.S_IMODE(status.st_mode):04o})')
    return ''


def _check_directory(path: Path) -> None:
    """Raise InputError if a path is no directory that can be read."""
    try:
        os.listdir(path)
    except OSError as error:
        raise InputError(
            f'{path}: no such bundle directory: {error.strerror}'
            + (files.nearest_path(path)
               or '; make one with: trt-segmentation init MODEL.onnx BUNDLE')) from None


def _verify(path: Path) -> None:
    """Check SHA256SUMS, which may only be absent as long as there is nothing to vouch for."""
    if os.path.lexists(path / files.SUMS_NAME):
        files.verify_sums(path)
    else:
        _check_unsealed(path, [CACHE_NAME, GOLDEN_NAME])


def _check_unsealed(path: Path, names: Collection[str]) -> None:
    """Raise InputError if a bundle without SHA256SUMS has one of some files."""
    for name in names:
        if os.path.lexists(path / name):
            raise InputError(
                f'{path / files.SUMS_NAME}: missing, so {name} may be half-written or foreign; '
                f'calibrate or adopt again, or vouch for it with: {command_line("seal", path)}')
