# SPDX-License-Identifier: Apache-2.0
"""The bundle: a directory with a network, its contract, its calibration and its golden frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
import os
from pathlib import Path

from trt_segmentation.bundles.spec import load_spec, Spec
from trt_segmentation.errors import InputError
from trt_segmentation.system import files

SPEC_NAME = 'model.yaml'
CACHE_NAME = 'calibration.cache'
MANIFEST_NAME = 'calibration.json'
GOLDEN_NAME = 'golden'


class Bundle:
    """A bundle on disk, checked: open it with `Bundle.open`."""

    def __init__(self, path: Path, spec: Spec):
        """Take a checked spec; use `Bundle.open` instead."""
        self.path = path
        self.spec = spec

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """
        Read and check a bundle.

        :param path: the bundle's directory
        :param verify: compare all files with SHA256SUMS; only the commands that change a bundle,
            and write SHA256SUMS anew, leave this out
        :raises InputError: for a missing file, a key or value that `model.yaml` must not have, a
            contradiction between `model.yaml` and the ONNX graph, or a file that SHA256SUMS does
            not vouch for
        """
        path = Path(path)
        try:
            os.listdir(path)
        except OSError as error:
            raise InputError(
                f'{path}: no such bundle directory: {error.strerror}; make one with: '
                'trt-segmentation init MODEL.onnx BUNDLE'
            ) from None
        if verify:
            _verify(path)
        return cls(path, load_spec(path / SPEC_NAME))

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
    def lock(self) -> Iterator[None]:
        """Let no other process change this bundle meanwhile; remove what a killed one has left."""
        with files.lock(self.path / '.lock', f'bundle {self.path}'):
            files.remove_temporary(self.path)
            yield

    def write_sums(self) -> None:
        """Write SHA256SUMS; the last act of whoever changes a bundle."""
        files.write_sums(self.path)


def _verify(path: Path) -> None:
    """Check SHA256SUMS, which may only be absent as long as nothing was calibrated."""
    if os.path.lexists(path / files.SUMS_NAME):
        files.verify_sums(path)
    elif os.path.lexists(path / CACHE_NAME):
        raise InputError(
            f'{path / files.SUMS_NAME}: missing, so {CACHE_NAME} may be half-written or foreign; '
            f'run calibrate or adopt again, or vouch for it with: trt-segmentation seal {path}'
        )
