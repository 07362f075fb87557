# SPDX-License-Identifier: Apache-2.0
"""Vouching for a bundle after a change by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import os
from pathlib import Path

from trt_segmentation.bundles import golden, manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.names import check_names
from trt_segmentation.errors import InputError
from trt_segmentation.system import files


@dataclass(frozen=True)
class Sealed:
    """
    What became of a bundle that was sealed.

    differences: name and kind ('changed', 'missing', 'not listed') of each file that was not as
        SHA256SUMS had it; where there was none, every file is 'not listed'
    misfit: for which other network or contract the cache was made, or ''
    """

    differences: tuple[tuple[str, str], ...]
    misfit: str


def seal(path: str | os.PathLike[str]) -> Sealed:
    """
    Write SHA256SUMS of a bundle as it is now.

    :raises InputError: for what no hash can make good: a `model.yaml`, cache, manifest or golden
        frame that cannot be read, a cache that is not the one of its manifest, or a layer or
        tensor that `model.yaml` names and the network does not have
    """
    with Bundle.changing(path, None) as (bundle, change):
        check_names(bundle)
        misfit = ''
        if bundle.cache_path.exists():
            misfit = manifest.misfit(bundle, manifest.intact(bundle)[1])
        for _ in golden.read(bundle.golden_path):
            pass
        differences = tuple(_differences(bundle.path))
        change.commit()
    return Sealed(differences, misfit)


def _differences(directory: Path) -> Iterator[tuple[str, str]]:
    """Yield what is not as SHA256SUMS has it; where that cannot be read, it is everything."""
    try:
        files.read_sums(directory)
    except InputError:
        yield from ((name, 'not listed') for name in files.listed_files(directory))
    else:
        yield from files.differences(directory)
