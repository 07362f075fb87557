# SPDX-License-Identifier: Apache-2.0
"""
The manifest, `calibration.json`: what a calibration cache was made from.

A cache is nothing but names and numbers: it does not say which network it belongs to, nor how
its images were preprocessed. With the wrong one an INT8 engine builds and drives without a
complaint, and sees badly. So whoever takes a cache out of a bundle compares the two first.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
import json
from pathlib import Path
import platform
from typing import Any, TYPE_CHECKING

from trt_segmentation import __version__
from trt_segmentation.errors import InputError
from trt_segmentation.system import files

if TYPE_CHECKING:
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.bundles.cache import Cache

SCHEMA = 1


def new(bundle: Bundle, cache: Cache, **content: Any) -> dict[str, Any]:
    """
    Return the manifest of a cache that is about to be put into a bundle.

    :param content: what the caller knows beside: method, images, tensors and so on, as JSON
    """
    return {
        'schema': SCHEMA,
        'tool': f'trt_segmentation {__version__}',
        'date': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'model': {'file': bundle.spec.model, 'sha256': bundle.model_sha256},
        'preprocessing': {'sha256': bundle.spec.input.sha256},
        'ranges': dict(bundle.spec.calibration.ranges),
        'cache': {'sha256': files.sha256_bytes(cache.to_bytes())},
        'adopted': None,
        **content,
        'versions': versions(),
    }


def read(path: str | Path) -> dict[str, Any]:
    """
    Read a manifest.

    :raises InputError: if it is missing, is not JSON, has another schema, or lacks a hash
    """
    try:
        manifest = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise InputError(f'{path}: cannot read the manifest of the calibration cache: '
                         f'{error.strerror}; run: trt-segmentation calibrate, or adopt') from None
    except ValueError as error:
        raise InputError(f'{path}: not valid JSON: {error}') from None
    schema = manifest.get('schema') if isinstance(manifest, dict) else None
    if schema != SCHEMA:
        raise InputError(f'{path}: schema: found {schema!r}, expected {SCHEMA}')
    for key in ('model', 'preprocessing', 'cache'):
        section = manifest.get(key)
        if not isinstance(section, dict) or not isinstance(section.get('sha256'), str):
            raise InputError(f'{path}: {key}.sha256 is missing')
    return manifest


def to_text(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as it stands in its file."""
    return json.dumps(manifest, indent=1, allow_nan=False) + '\n'


def verify(bundle: Bundle) -> dict[str, Any]:
    """
    Compare a bundle's cache with its manifest, and the manifest with the bundle.

    :returns: the manifest
    :raises InputError: if the manifest is missing or unreadable, or if the cache, the network,
        the preprocessing or the given ranges are not those that it names
    """
    path = bundle.manifest_path
    manifest = read(path)
    again = f'run: trt-segmentation calibrate {bundle.path}'
    found = files.sha256_file(bundle.cache_path)
    if found != manifest['cache']['sha256']:
        raise InputError(f'{bundle.cache_path}: sha256 is {found[:12]}, expected '
                         f'{manifest["cache"]["sha256"][:12]} (from {path.name}); {again}, or for '
                         "another tool's cache: trt-segmentation adopt")
    if bundle.model_sha256 != manifest['model']['sha256']:
        raise InputError(f'{path}: the cache was made for a network with sha256 '
                         f'{manifest["model"]["sha256"][:12]}, but {bundle.model_path} has '
                         f'{bundle.model_sha256[:12]}; {again}')
    if bundle.spec.input.sha256 != manifest['preprocessing']['sha256']:
        raise InputError(f'{path}: the cache was made with another preprocessing than the input '
                         f'section of {bundle.path / "model.yaml"} now describes; {again}')
    if not manifest['adopted'] and manifest.get('ranges') != bundle.spec.calibration.ranges:
        raise InputError(f'{path}: the cache was made with other calibration.ranges than '
                         f'{bundle.path / "model.yaml"} now has; {again}')
    return manifest


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a calibration depends on."""
    found = {'python': platform.python_version()}
    for name in ('numpy', 'opencv-python-headless', 'opencv-python', 'onnx', 'onnxruntime',
                 'onnxruntime-gpu', 'tensorrt'):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

