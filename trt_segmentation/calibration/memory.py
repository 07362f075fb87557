# SPDX-License-Identifier: Apache-2.0
"""
What a bundle remembers of its calibration, so that it can be extended without the old images.

`calibration.npz` (NumPy's format; no pickle) holds the range and the histogram of every
activation, what is known of channels and of what convolutions read, and an impression of each
image. All of it merges exactly, so it is the same bytes whatever order the images came in, in one
calibration or in several.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
import json
from typing import Any
import zipfile

import numpy as np

from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle, MEMORY_NAME
from trt_segmentation.calibration.calibrator import Calibrator, Statistics
from trt_segmentation.calibration.channels import Channels
from trt_segmentation.calibration.moments import Moments
from trt_segmentation.calibration.packing import packed, unpacked
from trt_segmentation.calibration.selection import Impression
from trt_segmentation.errors import command_line, InputError, one_line
from trt_segmentation.system import files

_SCHEMA = 1
_MAX_BYTES = 1 << 30  # unpacked; a network of a thousand tensors has a tenth of it


@dataclass(frozen=True, eq=False)
class Memory:
    """
    A calibration that can go on.

    document: its manifest
    images: how many images are in the statistics
    statistics, channels, moments: by name, as `Calibrator` has them
    impressions: of the images; pixels: int64 (256,), what the float network says of them
    """

    document: manifest.Manifest
    images: int
    statistics: Mapping[str, Statistics]
    channels: Mapping[str, Channels]
    moments: Mapping[str, Moments]
    impressions: list[Impression]
    pixels: np.ndarray

    def restore(self, calibrator: Calibrator, where: str) -> None:
        """
        Let a calibrator go on from here.

        :raises InputError: if other tensors are quantized now than were then
        """
        for name, statistics in calibrator.statistics.items():
            before = self.statistics.get(name)
            if before is None or (before.histogram is None) != (statistics.histogram is None):
                raise InputError(
                    f'{where}: it has nothing of tensor {name!r}, which is quantized now: '
                    'calibration.exclude is another one; calibrate anew, without --extend')
        calibrator.images = self.images
        for name in calibrator.statistics:
            calibrator.statistics[name] = self.statistics[name]
        # What was not known of the old images cannot be known of all.
        calibrator.keep(self.channels, self.moments)
        calibrator.remember()


def pack(calibrator: Calibrator, impressions: list[Impression], pixels: np.ndarray) -> bytes:
    """Return what the file holds of a calibration, before anything is derived from it."""
    ordered = sorted(impressions, key=lambda each: (each.name, each.perceptual_hash))
    header, arrays = packed(calibrator)
    header = {
        'schema': _SCHEMA, **header,
        'impressions': [[each.name, each.size, each.brightness, each.contrast,
                         f'{each.perceptual_hash:016x}', len(each.thumbnail)] for each in ordered],
    }
    everything: dict[str, Any] = {
        'header': np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays,
        'thumbnails': np.frombuffer(b''.join(each.thumbnail for each in ordered), np.uint8),
        'pixels': pixels.astype(np.int64),
    }
    stream = BytesIO()
    np.savez_compressed(stream, **everything)  # its entries have no date
    return stream.getvalue()


def recall(bundle: Bundle) -> Memory:
    """
    Return what a bundle remembers of its calibration.

    :raises InputError: if it was not calibrated, by another tool, for another network or contract,
        before there was such a memory, or if the file is damaged
    """
    _, document = manifest.verify(bundle)
    again = command_line('calibrate', bundle.path, '--images', 'IMAGES')
    if document.statistics is None:
        raise InputError(f'{bundle.path / MEMORY_NAME}: this calibration has kept nothing to '
                         f'extend (it was adopted, or made by an older version or by TensorRT); '
                         f'calibrate anew with: {again}')
    path = bundle.path / MEMORY_NAME
    data = files.read(path, _MAX_BYTES)
    if files.sha256_bytes(data) != document.statistics.sha256:
        raise InputError(f'{path}: not the one that {bundle.manifest_path.name} names; copy '
                         'the bundle again from where it was calibrated, or calibrate anew with: '
                         f'{again}')
    try:
        return _unpacked(data, document)
    except (ValueError, KeyError, TypeError, IndexError, OSError, zipfile.BadZipFile,
            RecursionError) as error:
        raise InputError(f'{path}: damaged: {one_line(error)}; calibrate anew with: {again}'
                         ) from None


def _unpacked(data: bytes, document: manifest.Manifest) -> Memory:
    """Return what the file holds; raises one of many errors if it is damaged."""
    with zipfile.ZipFile(BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
            raise ValueError('too large')
    arrays: Any = np.load(BytesIO(data), allow_pickle=False)
    header = json.loads(arrays['header'].tobytes())
    if header['schema'] != _SCHEMA:
        raise ValueError(f'schema {header["schema"]!r}, expected {_SCHEMA}')
    impressions, at = [], 0
    thumbnails = arrays['thumbnails'].tobytes()
    for name, size, brightness, contrast, perceptual_hash, length in header['impressions']:
        impressions.append(Impression(name, (size[0], size[1]), brightness, contrast,
                                      int(perceptual_hash, 16), thumbnails[at:at + length]))
        at += length
    return Memory(document, *unpacked(header, arrays), impressions, arrays['pixels'])
