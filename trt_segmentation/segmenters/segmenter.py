# SPDX-License-Identifier: Apache-2.0
"""What a segmenter is: the one call that node, replay, benchmark and self-test make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
import os
from types import TracebackType
from typing import Protocol, TYPE_CHECKING

import numpy as np

import trt_segmentation
from trt_segmentation.bundles.spec import Spec
from trt_segmentation.errors import InputError
from trt_segmentation.segmenters.postprocessing import (
    CLASSES,
    COLOR,
    CONFIDENCE,
    Masks,
    offered,
)

if TYPE_CHECKING:
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.engines.record import Record

__all__ = ['CLASSES', 'COLOR', 'CONFIDENCE', 'Engine', 'Masks', 'Segmenter']


class Engine(Protocol):
    """A network that is ready to run, as its backend made it."""

    backend: str
    precision: str

    def infer(self, tensor: np.ndarray) -> dict[str, np.ndarray]:
        """
        Run the network.

        :param tensor: float32 NCHW, as `Preprocessor` makes it; any batch size
        :returns: every graph output by name
        """

    def close(self) -> None:
        """Free what the engine holds; it cannot run any more."""


class Segmenter(ABC):
    """
    Turns images into masks with a bundle's engine; for one thread at a time.

    spec: the bundle's contract
    engine: what it runs, and closes; closed also when the segmenter cannot be made
    record: what the store knows of the engine; None for one that is not from a store
    """

    spec: Spec
    engine: Engine
    record: Record | None

    @staticmethod
    def open(bundle: str | os.PathLike[str] | Bundle, *, backend: str = 'auto',
             precision: str = 'int8', store: str | os.PathLike[str] | None = None,
             build_missing: bool = True) -> Segmenter:
        """Do what `trt_segmentation.open_segmenter` does; this name goes with version 0.3."""
        return trt_segmentation.open_segmenter(
            bundle, backend=backend, precision=precision, store=store,
            build_missing=build_missing)

    @property
    def offers(self) -> frozenset[str]:
        """Return what can be wanted: no confidence of a network that gives class ids only."""
        return offered(self.spec)

    @abstractmethod
    def segment(self, image: np.ndarray, want: Collection[str] = (CLASSES, COLOR), *,
                color: str = 'bgr') -> Masks:
        """
        Return the masks of one image, at its size.

        :param image: uint8 (height, width, 3), any strides
        :param want: which of `offers` to compute; classes come in any case
        :param color: the image's channel order, 'bgr' or 'rgb'
        :raises InputError: for another dtype or shape, or something that is not offered
        :raises DeviceError: if the GPU fails; close the segmenter then, and open it again
        """

    @abstractmethod
    def close(self) -> None:
        """Free the engine; may be called again."""

    def __enter__(self) -> Segmenter:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        """Free the engine."""
        self.close()


def check_open(is_open: bool) -> None:
    """Raise InputError for a segmenter that was closed."""
    if not is_open:
        raise InputError('this segmenter is closed, with its engine; open another')
