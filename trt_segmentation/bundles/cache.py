# SPDX-License-Identifier: Apache-2.0
"""
TensorRT's calibration cache: the text file of one INT8 scale a tensor.

The format is published nowhere in full. TensorRT writes a header line
``TRT-<version>-<algorithm>`` and one line ``<tensor name>: <hex>`` a tensor, where the
hexadecimal number is the IEEE-754 float32 bit pattern of the scale, which is amax / 127
(NVIDIA, sampleINT8, README, "Calibration file"). Names may contain colons, so the last colon
separates. Writers differ in zero padding: one to eight digits are read, eight are written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
import math
from pathlib import Path
import re
import struct

from trt_segmentation.errors import InputError
from trt_segmentation.system.files import atomic_write, read

#: TensorRT quantizes symmetrically to -127..127.
LEVELS = 127
#: The header names the calibrator class that is to accept the file, not how the scales were
#: found. trtexec and DLA accept EntropyCalibration2 only, and the method is in the manifest.
DEFAULT_ALGORITHM = 'EntropyCalibration2'
#: For a host without TensorRT; whoever builds rewrites it for the TensorRT it has.
DEFAULT_VERSION = '8.6.1'

MAX_BYTES = 64 << 20
_SMALLEST = 1e-35  # float32 has no full precision below; nothing computes with more than 1e35
_HEADER = re.compile(r'TRT-(\d+)-([A-Za-z0-9_]+)')
_HEX = re.compile(r'[0-9a-fA-F]{1,8}')


def version_token(version: str) -> str:
    """
    Return the number that a TensorRT version writes into the header.

    ``version`` is dotted, as in ``tensorrt.__version__``: '8.6.1' gives '8601' (major * 1000 +
    minor * 100 + patch up to TensorRT 9) and '10.3.0' gives '100300' (major * 10000 +
    minor * 100 + patch). Raises InputError for anything else.
    """
    match = re.match(r'(\d+)\.(\d+)(?:\.(\d+))?', version)
    if match is None:
        raise InputError(f'TensorRT version: found {version!r}, expected a number like 8.6.1')
    major, minor, patch = (int(part or 0) for part in match.groups())
    thousands = 10000 if major >= 10 else 1000
    return str(major * thousands + minor * 100 + patch)


@dataclass(frozen=True)
class Cache:
    """
    A calibration cache.

    ``version`` is the header's number as it stands there, ``algorithm`` its last part, and
    ``scales`` maps tensor names, in the file's order, to float32 scales (amax / 127) held as
    Python floats. What was read may hold scales that nothing can use: see `unusable`. ``whole``
    tells whether the file's last line ended: if not, its number may be cut short.
    """

    version: str
    algorithm: str
    scales: Mapping[str, float]
    whole: bool = True

    @classmethod
    def from_amax(cls, amax: Mapping[str, float], *, tensorrt_version: str = DEFAULT_VERSION,
                  algorithm: str = DEFAULT_ALGORITHM) -> Cache:
        """Make a cache from the largest magnitude that each tensor's INT8 is to hold."""
        return cls(version_token(tensorrt_version), algorithm,
                   {name: _float32(value / LEVELS) for name, value in amax.items()})

    @classmethod
    def parse(cls, data: bytes, source: str = 'calibration cache') -> Cache:
        """
        Read a cache from the bytes of its file; ``source`` names the file in messages.

        Blank lines and CRLF line ends are accepted. Raises InputError, with the line's number,
        for a header, a line, a number or a repeated name that TensorRT would misread.
        """
        try:
            lines = data.decode('utf-8').split('\n')
        except UnicodeDecodeError:
            raise InputError(f'{source}: found binary data, expected a TensorRT calibration '
                             'cache, which is text') from None
        header = _HEADER.fullmatch(lines[0].rstrip('\r'))
        if header is None:
            raise InputError(f'{source}:1: found {_excerpt(lines[0])}, expected a header like '
                             'TRT-8601-EntropyCalibration2')
        scales: dict[str, float] = {}
        for number, line in enumerate(lines[1:], start=2):
            line = line.rstrip('\r')
            if not line.strip():
                continue
            name, _, digits = line.rpartition(':')
            digits = digits.strip()
            if not name or not _HEX.fullmatch(digits):
                raise InputError(f'{source}:{number}: found {_excerpt(line)}, expected a tensor '
                                 'name, a colon and 1 to 8 hexadecimal digits')
            if name in scales:
                raise InputError(f'{source}:{number}: tensor {name!r} appears a second time; '
                                 'remove one of its lines')
            scales[name] = struct.unpack('>f', bytes.fromhex(digits.zfill(8)))[0]
        return cls(header[1], header[2], scales, whole=data.endswith(b'\n'))

    @classmethod
    def read(cls, path: str | Path) -> Cache:
        """Read a cache file; raises InputError if it is missing or not a cache."""
        return cls.parse(read(path, MAX_BYTES), str(path))

    def to_bytes(self) -> bytes:
        """Return the file's bytes: LF line ends, eight lower-case digits a scale."""
        lines = [f'TRT-{self.version}-{self.algorithm}']
        for name, scale in self.scales.items():
            if not name or '\n' in name or '\r' in name:
                raise InputError(f'tensor name {name!r} cannot stand in a calibration cache; '
                                 'rename the tensor in the ONNX file')
            lines.append(f'{name}: {struct.pack(">f", scale).hex()}')
        return ('\n'.join(lines) + '\n').encode()

    def write(self, path: str | Path) -> None:
        """Write the file in one step: a reader sees the old one or the new one."""
        atomic_write(Path(path), self.to_bytes())

    def with_header(self, tensorrt_version: str,
                    algorithm: str = DEFAULT_ALGORITHM) -> Cache:
        """
        Return the same scales under the header that a local TensorRT accepts.

        TensorRT silently recalibrates (or fails, having no images) when the header is another
        version's or another calibrator's; the scales themselves carry over.
        """
        return replace(self, version=version_token(tensorrt_version), algorithm=algorithm)

    def usable(self) -> dict[str, float]:
        """Return the scales that INT8 can have: finite, above zero, and no absurd magnitude."""
        return {name: scale for name, scale in self.scales.items() if _usable(scale)}

    def unusable(self) -> dict[str, float]:
        """Return the scales that are infinite, nan, zero, negative or of absurd magnitude."""
        return {name: scale for name, scale in self.scales.items() if not _usable(scale)}

    def amax(self, name: str) -> float:
        """Return the largest magnitude that a tensor's INT8 holds: its scale times 127."""
        return self.scales[name] * LEVELS


@dataclass(frozen=True)
class Difference:
    """What distinguishes two caches, in the order of their files."""

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    #: (name, scale in the first, scale in the second) of each scale whose bits differ.
    changed: tuple[tuple[str, float, float], ...]
    same_header: bool

    @property
    def identical(self) -> bool:
        """Whether header, names and scales are the same."""
        return not (self.only_first or self.only_second or self.changed) and self.same_header


def compare(first: Cache, second: Cache) -> Difference:
    """Compare two caches tensor by tensor."""
    changed = tuple(
        (name, scale, second.scales[name]) for name, scale in first.scales.items()
        if name in second.scales and struct.pack('>f', scale) != struct.pack(
            '>f', second.scales[name]))
    return Difference(
        only_first=tuple(name for name in first.scales if name not in second.scales),
        only_second=tuple(name for name in second.scales if name not in first.scales),
        changed=changed,
        same_header=(first.version, first.algorithm) == (second.version, second.algorithm))


@dataclass(frozen=True)
class Coverage:
    """How far a cache's scales serve a network's tensors."""

    covered: tuple[str, ...]
    #: Tensors of the network without a usable scale, with the layers that consume or produce
    #: each: TensorRT runs those layers in floating point, and says so in a warning only.
    missing: Mapping[str, tuple[str, ...]]
    #: Names in the cache that are no tensor of the network. Some are harmless (TensorRT
    #: lists constants and tensors that its parser makes); many of them mean another network.
    stale: tuple[str, ...]


def coverage(cache: Cache, layers: Iterable[tuple[str, Iterable[str]]]) -> Coverage:
    """
    Match a cache against a network.

    ``layers`` gives each layer's name with the activation tensors that it reads and writes.
    """
    users: dict[str, list[str]] = {}
    for layer, tensors in layers:
        for tensor in dict.fromkeys(tensors):
            users.setdefault(tensor, []).append(layer)
    usable = cache.usable()
    return Coverage(
        covered=tuple(name for name in users if name in usable),
        missing={name: tuple(layer) for name, layer in users.items() if name not in usable},
        stale=tuple(name for name in cache.scales if name not in users))


def _usable(scale: float) -> bool:
    return math.isfinite(scale) and _SMALLEST <= scale <= 1 / _SMALLEST


def _float32(value: float) -> float:
    return float(struct.unpack('>f', struct.pack('>f', value))[0])


def _excerpt(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:57] + '...')
