# SPDX-License-Identifier: Apache-2.0
"""Engines in workers: what is sent in place of them, and opened once in each process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

from trt_segmentation import __version__
from trt_segmentation.bundles import manifest, parcel
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines import choose_backend, Dla
from trt_segmentation.engines.opening import open_named, open_segmenter
from trt_segmentation.engines.store import default_path
from trt_segmentation.errors import InputError
from trt_segmentation.segmenters.segmenter import Segmenter
from trt_segmentation.system import files, machine
from trt_segmentation.system.kept import Kept
from trt_segmentation.system.spread import spread

Given = TypeVar('Given')
Found = TypeVar('Found')


@dataclass(frozen=True)
class Place:
    """
    Where a worker finds a bundle.

    path: its directory; of one that was sent, the hash of all its files
    sha256: the hash that it must have there
    sent: whether it is in the worker's store, because it was sent there
    store: that store; None for the default place
    version: of the package that asks
    """

    path: str
    sha256: str
    sent: bool = False
    store: str | None = None
    version: str = __version__

    def open(self, *, verify: bool = True) -> Bundle:
        """
        Open it.

        :param verify: as `Bundle.open` takes it
        :raises InputError: if it is not the one that was meant, or the package is not
        """
        if self.version != __version__:
            raise InputError(f'a worker has trt_segmentation {__version__}, the command '
                             f'{self.version}; install the same version everywhere')
        path = Path(self.path)
        if self.sent:
            path = parcel.place_of(self.path, Path(self.store) if self.store else default_path())
        bundle = Bundle.open(path, verify=verify)
        if bundle.sha256 != self.sha256:
            raise InputError(f'{bundle.path}: found another bundle there (sha256 '
                             f'{bundle.sha256}) than the one that was opened first '
                             f'({self.sha256})')
        return bundle


@dataclass(frozen=True)
class Engines:
    """
    Which engines a worker is to open.

    names: as `open_named` takes them; with `proven`, as the precision of `open_segmenter`
    """

    place: Place
    names: tuple[str, ...]
    backend: str = 'auto'
    store: str | None = None
    proven: bool = False
    dla: Dla | None = None


@dataclass(frozen=True)
class Workers:
    """Who does the work of a command: an executor, and how many items it can have in hand."""

    executor: Executor
    number: int

    def place(self, bundle: Bundle) -> Place:
        """Return where a worker finds a bundle."""
        return Place(str(bundle.path.absolute()), bundle.sha256)

    def call(self, function: Callable[[Given], Found], given: Given) -> Found:
        """Return what one worker says."""
        return next(iter(spread(self.executor, function, [given], ahead=1)))[1]


@dataclass(frozen=True)
class Identity:
    """
    What runs in a worker; masks can differ where it does.

    engines: by name, backend, precision and a hash of the plan, or of what it follows from
    int8_shares: by name, the share 0..1 of the convolution work in INT8, where it is known
    versions: of the libraries; processor: its name and that of the GPU
    """

    engines: Mapping[str, tuple[str, str, str]]
    int8_shares: Mapping[str, float]
    versions: Mapping[str, str]
    processor: str

    def check(self, other: Identity) -> None:
        """Raise InputError if another worker runs what may give other masks."""
        for what in ('engines', 'versions'):
            if getattr(self, what) != getattr(other, what):
                raise InputError(
                    f'two workers have other {what}, so what comes out would depend on which of '
                    f'them did what: {dict(getattr(self, what))} and '
                    f'{dict(getattr(other, what))}; use workers that are alike: the same '
                    'libraries, all with a GPU or none, and engines that were built and stored '
                    '(--store)')

    def key(self, bundle_sha256: str, **asked: Any) -> str:
        """Return the hash of what masks follow from, but the processor, and of what is asked."""
        return files.sha256_json({
            'bundle': bundle_sha256, 'engines': list(self.engines.items()),
            'package': __version__, 'versions': dict(self.versions), **asked})


@dataclass(frozen=True)
class Opened:
    """Engines that are open in this process."""

    bundle: Bundle
    segmenters: Mapping[str, Segmenter]
    identity: Identity


def opened(engines: Engines) -> AbstractContextManager[Opened]:
    """
    Return the engines, for one thread at a time; they stay open until others are asked for.

    :raises InputError: as `open_named` and `open_segmenter`, for another version of the package
        and for a bundle that is not the one that was meant
    """
    return _kept.of(engines)


def backend_name(backend: str) -> str:
    """Return the backend that 'auto', or what else was asked for, is on this machine."""
    return choose_backend(backend).name


def identify(engines: Engines) -> Identity:
    """Open the engines and tell what they are; what a command asks one worker before the work."""
    with opened(engines) as found:
        return found.identity


def _open(engines: Engines, stack: ExitStack) -> Opened:
    """Open the bundle and its engines, which the stack closes."""
    bundle = engines.place.open()
    segmenters = {}
    for name in engines.names:
        segmenters[name] = stack.enter_context(
            open_segmenter(bundle, precision=name, backend=engines.backend, store=engines.store,
                           dla=engines.dla) if engines.proven
            else open_named(bundle, name, backend=engines.backend, store=engines.store))
    return Opened(bundle, segmenters, identity_of(segmenters))


_kept = Kept(_open)


def identity_of(segmenters: Mapping[str, Segmenter]) -> Identity:
    """Return what runs in this process."""
    engines = {}
    for name, segmenter in segmenters.items():
        engine, record = segmenter.engine, segmenter.record
        if record is not None:
            plan = record.plan_sha256
        elif engine.backend == 'onnxruntime':  # `open_named` builds the same of a bundle each time
            plan = files.sha256_json(choose_backend(engine.backend).identity())
        else:  # its builder goes by a clock
            plan = token_hex()
        engines[name] = (engine.backend, engine.precision, plan)
    return Identity(engines, int8_shares(segmenters), manifest.versions(), processor())


def processor() -> str:
    """Return the names of this machine's processor and GPU."""
    described = machine.describe()
    return ', '.join(described[key] for key in ('processor', 'gpu') if key in described)


def unlike(processors: Collection[str]) -> list[str]:
    """Return that several processors computed something, in a sentence; none of one."""
    if len(processors) < 2:
        return []
    return ['different processors computed this, whose float arithmetic may round differently: '
            + '; '.join(sorted(processors))]


def int8_shares(segmenters: Mapping[str, Segmenter]) -> dict[str, float]:
    """Return the share 0..1 of the work in INT8 of the INT8 engines whose records name it."""
    found = {}
    for name, segmenter in segmenters.items():
        record = getattr(segmenter, 'record', None)
        if record and record.precision == 'int8' and record.acceptance.int8_share is not None:
            found[name] = record.acceptance.int8_share
    return found
