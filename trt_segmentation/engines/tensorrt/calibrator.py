# SPDX-License-Identifier: Apache-2.0
"""Implicit INT8 (TensorRT up to 10): a calibrator that has a cache and no images."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from trt_segmentation.bundles.cache import Cache
from trt_segmentation.errors import CheckFailed


class CacheUse:
    """What TensorRT did with a calibrator: whether it read the cache, and asked for images."""

    def __init__(self) -> None:
        """Start with nothing asked."""
        self.cache_was_read = False
        self.batch_was_asked = False

    def check(self, log_reason: str) -> None:
        """
        Raise CheckFailed unless the cache, and only the cache, was used.

        :param log_reason: TensorRT's own last lines, for the message
        """
        if self.batch_was_asked:
            raise CheckFailed('TensorRT did not accept the calibration cache and asked for '
                              f'images: {log_reason}; build with --quantization explicit')
        if not self.cache_was_read:
            raise CheckFailed('TensorRT never read the calibration cache, so nothing would be '
                              f'INT8: {log_reason}; build with --quantization explicit')


def make_calibrator(trt: ModuleType, cache: Cache, use: CacheUse) -> Any:
    """
    Return an IInt8EntropyCalibrator2 that hands out the cache under the local version's header.

    TensorRT catches whatever its callbacks raise and goes on without data, so they raise nothing
    and note in `use` what they were asked. Keep the object until the build is over.
    """
    data = cache.with_header(trt.__version__).to_bytes()

    base: Any = trt.IInt8EntropyCalibrator2

    class Calibrator(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            use.batch_was_asked = True

        def read_calibration_cache(self) -> bytes:
            use.cache_was_read = True
            return data

        def write_calibration_cache(self, cache: bytes) -> None:
            """Ignore what TensorRT writes back; the bundle's file stays as it is."""

    return Calibrator()
