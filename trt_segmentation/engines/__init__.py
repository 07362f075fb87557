# SPDX-License-Identifier: Apache-2.0
"""Engines: what runs a network on this machine, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
import os
from pathlib import Path
from typing import Any, Protocol

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.errors import InputError, nearest
from trt_segmentation.networks.layers import Layer
from trt_segmentation.segmenters.segmenter import Engine

__all__ = ['Backend', 'BACKENDS', 'batch_sizes', 'BuildOptions', 'choose_backend', 'Dla', 'Engine',
           'MAX_BATCH', 'Plan', 'PRECISIONS', 'QUANTIZATIONS']

PRECISIONS = ('int8', 'fp16', 'fp32')
QUANTIZATIONS = ('explicit', 'implicit')
"""How INT8 gets into a network: by Q/DQ pairs in the graph, or by TensorRT's calibrator."""

MAX_BATCH = 16
"""The most images that go through a network at once."""


def batch_sizes(most: int) -> tuple[int, ...]:
    """Return the batch sizes of an engine for up to so many images: 1, 2, 4, ... and the most."""
    return tuple(sorted({most, *(2**n for n in range(most.bit_length()))}))


# In the order in which `auto` prefers them.
_BACKENDS = {
    'tensorrt': ('trt_segmentation.engines.tensorrt.backend', 'TensorRt'),
    'tensorrt_rtx': ('trt_segmentation.engines.tensorrt.backend', 'TensorRtRtx'),
    'onnxruntime': ('trt_segmentation.engines.onnxruntime', 'OnnxRuntime'),
}
BACKENDS = tuple(_BACKENDS)


@dataclass(frozen=True)
class Dla:
    """
    A deep learning accelerator, beside the GPU of some Jetson and DRIVE chips.

    core: its number
    gpu_fallback: layers that it cannot run may run on the GPU; else there must be none
    """

    core: int
    gpu_fallback: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for a core that there cannot be."""
        if self.core < 0:
            raise InputError(f'dla core: found {self.core}, expected 0 or more')


@dataclass(frozen=True)
class Plan:
    """
    A built network: its bytes, what each layer runs in, and the build's noteworthy lines.

    timing_cache: what the builder measured of this machine's kernels; None if it measures none
    """

    data: bytes
    layers: tuple[Layer, ...]
    log: Sequence[str] = ()
    timing_cache: bytes | None = None


@dataclass(frozen=True)
class BuildOptions:
    """
    How to build, where a backend has a choice.

    quantization: of INT8, one of QUANTIZATIONS
    workspace_mib: memory that the builder's tactics may use; None for all there is
    max_batch: how many images the plan shall take at once, 1 to MAX_BATCH; of a network that
        takes any batch size, or can be made to
    timing_cache: the one of an earlier build on this machine, or b''
    timed: measure what is the fastest, where a backend need not; else each build gives the same
    report: takes lines of progress
    """

    quantization: str = 'explicit'
    workspace_mib: int | None = None
    max_batch: int = 1
    timing_cache: bytes = b''
    timed: bool = True
    report: Callable[[str], None] = field(default=lambda line: None)

    def __post_init__(self) -> None:
        """Raise InputError for memory that is none, or a batch size that cannot be."""
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise InputError(f'workspace: found {self.workspace_mib} MiB, expected 1 or more')
        if not 1 <= self.max_batch <= MAX_BATCH:
            raise InputError(f'max batch: found {self.max_batch}, expected 1 to {MAX_BATCH}')


class Backend(Protocol):
    """
    A library that builds and runs plans.

    precisions: what 'auto' takes the fastest of
    instant: a build takes no time, so that each INT8 build is timed against FP32
    is_vehicle: its INT8 is what a vehicle computes
    """

    name: str
    precisions: tuple[str, ...]
    instant: bool
    is_vehicle: bool

    def unavailable(self) -> str:
        """Return why it cannot be used on this machine, or ''."""

    def identity(self) -> Mapping[str, Any]:
        """Return all of library and machine that a plan depends on, as JSON values."""

    def build(self, bundle: Bundle, precision: str, options: BuildOptions) -> Plan:
        """
        Build a plan of the bundle's network; INT8 takes its scales from the bundle's cache.

        :raises InputError: for a precision or a graph it cannot build
        :raises CheckFailed: if the library did not build what it was asked for
        """

    def load(self, plan: bytes, precision: str) -> Engine:
        """Return an engine that runs a plan which this backend built."""


def choose_backend(name: str = 'auto', dla: Dla | None = None) -> Backend:
    """
    Return a backend by name; 'auto' takes the best that this machine has.

    :param dla: where it runs, if not on the GPU; of 'tensorrt' alone, which is then what 'auto' is
    :raises InputError: if it is not there, or if the machine has an NVIDIA device that 'auto'
        would have to leave unused: a vehicle must not fall back to its CPU in silence
    """
    if dla is not None:
        if name not in ('auto', 'tensorrt'):
            raise InputError(f'backend: found {name}, expected tensorrt: no other runs on a DLA')
        name = 'tensorrt'
    if name != 'auto':
        if name not in _BACKENDS:
            raise InputError(f'backend: found {name!r}, expected auto or one of '
                             f'{", ".join(BACKENDS)}{nearest(name, BACKENDS)}')
        backend = _make(name) if dla is None else _make(name, dla)
        if reason := backend.unavailable():
            raise InputError(f'backend {name} cannot be used here: {reason}')
        return backend
    reasons: dict[str, str] = {}
    for candidate in BACKENDS:
        if candidate == 'onnxruntime' and (device := nvidia_device()):
            causes = '; '.join(f'{key}: {reason}' for key, reason in reasons.items())
            raise InputError(
                f'this machine has an NVIDIA device ({device}), but {causes}; mend that, or ask '
                'for the CPU with --backend onnxruntime'
            )
        backend = _make(candidate)
        reasons[candidate] = backend.unavailable()
        if not reasons[candidate]:
            return backend
    causes = '; '.join(f'{key}: {reason}' for key, reason in reasons.items())
    raise InputError(f'no backend can be used on this machine: {causes}')


def nvidia_device() -> str:
    """
    Return the device file of this machine's NVIDIA GPU, or '' if it has none.

    One that is hidden from CUDA, by CUDA_VISIBLE_DEVICES that is empty or -1, is none.
    """
    if os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1'):
        return ''
    for path in ('/dev/nvidia0', '/dev/nvhost-gpu', '/dev/nvgpu'):  # desktop, Jetson and DRIVE
        if Path(path).exists():
            return path
    return ''


def _make(name: str, *arguments: Dla) -> Backend:
    """Return the backend object; its library is imported when it is used."""
    module, attribute = _BACKENDS[name]
    backend: Backend = getattr(import_module(module), attribute)(*arguments)
    return backend
