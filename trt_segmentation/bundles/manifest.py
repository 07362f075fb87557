# SPDX-License-Identifier: Apache-2.0
"""
The manifest, `calibration.json`: what a calibration cache was made from.

A cache is nothing but names and numbers: it does not say which network it belongs to, nor how
its images were preprocessed. With the wrong one an INT8 engine builds and drives without a
complaint, and sees badly. So whoever takes a cache out of a bundle compares the two first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
import platform
from typing import Any

from trt_segmentation import __version__
from trt_segmentation.bundles import form
from trt_segmentation.bundles.bundle import Bundle, EQUALIZED_NAME, SPEC_NAME
from trt_segmentation.bundles.cache import Cache, MAX_BYTES
from trt_segmentation.errors import command_line, counted, InputError
from trt_segmentation.system import files

SCHEMA = 1

CALIBRATION_IMAGES, GOLDEN_FRAMES = 100, 8
"""How many images a calibration takes and holds out where there are enough."""


@dataclass(frozen=True)
class Hash:
    """The sha256 of something, in hex."""

    sha256: str


@dataclass(frozen=True)
class File:
    """A file of the bundle and its sha256."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Image:
    """An image that was used: its name, and the sha256 of its file or message."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Skipped:
    """An image that was not used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Adopted:
    """
    A cache that another tool made.

    missing: tensors of the network without a scale; stale: names that are no tensor of it
    """

    sha256: str
    file: str
    header: str
    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counts:
    """Numbers of images."""

    asked: int
    used: int
    golden: int
    skipped: int


@dataclass(frozen=True)
class Represented:
    """
    What the images represent, and sentences about what they lack.

    brightness, contrast: (smallest, median, largest) of the images' gray values, 0..255
    dark, bright, flat: shares 0..1 of the images; near_duplicates: of those like one before,
        in the order of their hashes
    classes: the share 0..1 of the pixels that the float network says is of each class
    """

    brightness: tuple[float, float, float]
    contrast: tuple[float, float, float]
    dark: float
    bright: float
    flat: float
    near_duplicates: float
    sizes: tuple[str, ...]
    warnings: tuple[str, ...]
    classes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """
    What was found for one tensor; see `methods.Threshold`.

    scale: threshold / 127; amax: the largest magnitude that the images show
    """

    scale: float
    threshold: float
    amax: float | None = None
    method: str | None = None
    clipped: float | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True)
class Trial:
    """A setting that tuning tried, and what came of it, each a share 0..1."""

    name: str
    agreement: float
    iou: float
    int8_share: float | None
    exclude: tuple[str, ...]
    classes: Mapping[str, float | None]


@dataclass(frozen=True)
class Tuning:
    """
    What tuning tried.

    sensitivity_db: signal to noise with each layer alone in INT8, of those that may be left in
        float
    limits: what it had no time for, in sentences; another run may then come to another result
    """

    chosen: str
    trials: tuple[Trial, ...]
    sensitivity_db: Mapping[str, float]
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Equalization:
    """
    Whether a network was derived that loses less in INT8, and what was tried.

    chosen: what was done, in words, or '' for nothing; network: the file of the network that
    INT8 engines are made of, None if it is the original; tensors: the original's that were
    equalized or centered
    """

    chosen: str
    network: File | None
    tensors: tuple[str, ...]
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Compared:
    """
    Two calibrations on some frames, in the vehicle's arithmetic.

    agreement_before, agreement_after: shares 0..1 of the float network's pixels
    worst_before, worst_after: the class that agrees least, with its agreement; '' and None if no
        class has enough pixels to judge by
    """

    name: str
    frames: int
    agreement_before: float
    worst_before: str
    worst_agreement_before: float | None
    agreement_after: float
    worst_after: str
    worst_agreement_after: float | None


@dataclass(frozen=True)
class Extension:
    """
    The calibration that this one goes on from, and what that has brought.

    cache_sha256: of its cache; images_before, images_added: that were calibrated with
    """

    cache_sha256: str
    images_before: int
    images_added: int
    sets: tuple[Compared, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of `calibration.json`."""

    schema: int
    tool: str
    date: str
    model: File
    preprocessing: Hash
    ranges: Mapping[str, float | str]
    cache: Hash
    adopted: Adopted | None = None
    method: str = ''
    parameters: Mapping[str, float] = field(default_factory=dict)
    calibrator: str = ''
    batch_size: int | None = None
    seed: int | None = None
    counts: Counts | None = None
    images: tuple[Image, ...] = ()
    golden: tuple[Image, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    coverage: Represented | None = None
    equalization: Equalization | None = None
    tuning: Tuning | None = None
    tensors: Mapping[str, Scale] = field(default_factory=dict)
    statistics: File | None = None
    extension: Extension | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def new(bundle: Bundle, cache: Cache, **content: Any) -> Manifest:
    """
    Return the manifest of a cache that is about to be put into a bundle.

    :param content: what the caller knows beside: method, images, tensors and so on
    """
    return Manifest(
        schema=SCHEMA,
        tool=f'trt_segmentation {__version__}',
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        model=File(bundle.spec.model, bundle.model_sha256),
        preprocessing=Hash(bundle.spec.input.sha256),
        ranges=dict(bundle.spec.calibration.ranges),
        cache=Hash(files.sha256_bytes(cache.to_bytes())),
        versions=versions(),
        **content)


def read(path: Path) -> Manifest:
    """
    Read a manifest.

    :raises InputError: if it is missing, is not JSON, has another schema, or a key is missing,
        unknown or of another type
    """
    if not path.exists():
        raise InputError(f'{path}: No such file: the manifest of the calibration cache is '
                         'missing; run: '
                         + command_line('calibrate', path.parent, '--images', 'DIRECTORY')
                         + ", or for another tool's cache: "
                         + command_line('adopt', path.parent, 'CACHE'))
    document = form.read_json(path)
    schema = document.get('schema') if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise InputError(f'{path}: schema: found {schema!r}, expected {SCHEMA}')
    return form.record(Manifest, document, str(path))


def cache_of(bundle: Bundle) -> Cache:
    """
    Return a bundle's calibration cache after comparing it with its manifest.

    :raises InputError: if cache or manifest is missing or unreadable, or if the manifest names
        another network, another preprocessing or another cache
    """
    return verify(bundle)[0]


def verify(bundle: Bundle) -> tuple[Cache, Manifest]:
    """
    Compare a bundle's cache with its manifest, and the manifest with the bundle.

    :returns: the cache and the manifest
    :raises InputError: if one is missing or unreadable, or if the cache, the network, the
        preprocessing or the given ranges are not those that the manifest names
    """
    cache, manifest = intact(bundle)
    if reason := misfit(bundle, manifest):
        raise InputError(f'{bundle.manifest_path}: the cache was made {reason}; '
                         'run: '
                         + command_line('calibrate', bundle.path, '--images', 'DIRECTORY'))
    return cache, manifest


def tuned(bundle: Bundle) -> bool:
    """Tell whether a bundle's calibration is the best of those that --tune tries."""
    return bundle.manifest_path.exists() and read(bundle.manifest_path).tuning is not None


def int8_network(bundle: Bundle) -> File:
    """
    Return the network that the vehicle's INT8 engines are made of: original or equalized.

    :raises InputError: as `verify`
    """
    manifest = verify(bundle)[1]
    if manifest.equalization is not None and manifest.equalization.network is not None:
        return manifest.equalization.network
    return File(bundle.spec.model, bundle.model_sha256)


def intact(bundle: Bundle) -> tuple[Cache, Manifest]:
    """
    Return a bundle's cache and its manifest, whatever network they were made for.

    :raises InputError: if one is missing or unreadable, or they do not belong together
    """
    if not bundle.cache_path.exists():
        raise InputError(
            f'{bundle.cache_path}: no calibration cache; run: '
            + command_line('calibrate', bundle.path, '--images', 'DIRECTORY'))
    manifest = read(bundle.manifest_path)
    data = files.read(bundle.cache_path, MAX_BYTES)
    found, expected = files.sha256_bytes(data), manifest.cache.sha256
    if found != expected:
        again = (command_line('adopt', bundle.path, 'CACHE') if manifest.adopted else
                 command_line('calibrate', bundle.path, '--images', 'DIRECTORY'))
        raise InputError(f'{bundle.cache_path}: sha256 is {found[:12]}, expected '
                         f'{expected[:12]} (from {bundle.manifest_path.name}): one of them was '
                         'changed; copy the bundle again from where it was calibrated, or make '
                         f'both anew with: {again}')
    equalized = manifest.equalization.network if manifest.equalization else None
    if equalized is not None and (
            equalized.file != EQUALIZED_NAME
            or files.sha256_file(bundle.path / EQUALIZED_NAME) != equalized.sha256):
        raise InputError(f'{bundle.path / EQUALIZED_NAME}: not the network that '
                         f'{bundle.manifest_path.name} names; copy the bundle again from where '
                         'it was calibrated, or run: '
                         + command_line('calibrate', bundle.path, '--images', 'DIRECTORY'))
    return Cache.parse(data, str(bundle.cache_path)), manifest


def misfit(bundle: Bundle, manifest: Manifest) -> str:
    """Return for which other network or contract a cache was made, or '' if for the bundle's."""
    if bundle.model_sha256 != manifest.model.sha256:
        return (f'for a network with sha256 {manifest.model.sha256[:12]}, but '
                f'{bundle.model_path} has {bundle.model_sha256[:12]}')
    spec = bundle.path / SPEC_NAME
    if bundle.spec.input.sha256 != manifest.preprocessing.sha256:
        return f'with another preprocessing than the input section of {spec} now describes'
    if not manifest.adopted and dict(manifest.ranges) != bundle.spec.calibration.ranges:
        return f'with other calibration.ranges than {spec} now has'
    return ''


def in_words(bundle: Bundle) -> str:
    """Return which calibration a bundle has, in words; '' for none."""
    if not bundle.manifest_path.exists():
        return ''
    try:
        manifest = read(bundle.manifest_path)
    except InputError:
        return 'a calibration whose manifest cannot be read'
    made = (f'adopted from {manifest.adopted.file}' if manifest.adopted else
            f'with {counted(len(manifest.images), "image")}')
    return f'the calibration of {manifest.date} {made}'


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
