# SPDX-License-Identifier: Apache-2.0
"""What a segmenter is: the one call that node, replay, benchmark and self-test make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
import os
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Protocol, TYPE_CHECKING

import numpy as np

import trt_segmentation
from trt_segmentation.bundles.spec import Spec
from trt_segmentation.cuda.device import Device
from trt_segmentation.cuda.images import DeviceImage
from trt_segmentation.errors import InputError
from trt_segmentation.recordings import layouts
from trt_segmentation.segmenters.postprocessing import (
    check_want,
    CLASSES,
    COLOR,
    CONFIDENCE,
    Masks,
    offered,
)

if TYPE_CHECKING:
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.engines.record import Record

__all__ = ['CLASSES', 'COLOR', 'CONFIDENCE', 'Engine', 'Masks', 'Picture', 'Segmenter']


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


class Picture(NamedTuple):
    """
    An image as `Segmenter.segment` takes it, what is wanted of it, and its layout.

    into: the masks that go to addresses on the GPU
    """

    image: np.ndarray | DeviceImage
    want: Collection[str]
    color: str
    into: Mapping[str, int] = MappingProxyType({})

    @property
    def size(self) -> tuple[int, int]:
        """Return (height, width) of the image, and of its masks."""
        return layouts.size(self.image, self.color)


class Segmenter(ABC):
    """
    Turns images into masks with a bundle's engine; for one thread at a time.

    spec: the bundle's contract
    engine: what it runs, and closes; closed also when the segmenter cannot be made
    record: what the store knows of the engine; None for one that is not from a store
    batch_sizes: how many images it runs through the network at once, ascending; 1 is the first
    layouts: those of cameras that cost it no more of the CPU than channels do
    """

    spec: Spec
    engine: Engine
    record: Record | None
    batch_sizes: tuple[int, ...]
    layouts: frozenset[str] = frozenset()

    @staticmethod
    def open(bundle: str | os.PathLike[str] | Bundle, *, backend: str = 'auto',
             precision: str = 'int8', store: str | os.PathLike[str] | None = None,
             build_missing: bool = True) -> Segmenter:
        """Do what `trt_segmentation.open_segmenter` does; this name goes with version 0.3."""
        return trt_segmentation.open_segmenter(
            bundle, backend=backend, precision=precision, store=store,
            build_missing=build_missing)

    @property
    def device(self) -> Device | None:
        """Return the GPU on which images may lie and masks may stay; None without one."""
        return None

    @property
    def offers(self) -> frozenset[str]:
        """Return what can be wanted: no confidence of a network that gives class ids only."""
        return offered(self.spec)

    def segment(self, image: np.ndarray, want: Collection[str] = (CLASSES, COLOR), *,
                color: str = 'bgr') -> Masks:
        """
        Return the masks of one image, at its size.

        :param image: uint8 (height, width, 3), any strides; or as a camera gives it
        :param want: which of `offers` to compute; classes come in any case
        :param color: the image's channel order, 'bgr' or 'rgb'; or the camera's layout: 'uyvy' or
            'yuyv' (height, width, 2), 'nv12' or 'nv21' (height * 3 / 2, width), 'bayer_rggb',
            'bayer_bggr', 'bayer_gbrg' or 'bayer_grbg' (height, width), all uint8
        :raises InputError: for another dtype or shape, or something that is not offered
        :raises DeviceError: if the GPU fails; close the segmenter then, and open it again
        """
        return self.segment_batch([image], want, color=color)[0]

    def segment_batch(self, images: Sequence[np.ndarray | DeviceImage],
                      want: Collection[str] | Sequence[Collection[str]] = (CLASSES, COLOR), *,
                      color: str | Sequence[str] = 'bgr',
                      into: Sequence[Mapping[str, int]] = ()) -> list[Masks]:
        """
        Return the masks of several images, each at its size, as `segment` returns them.

        As many at once go through the network as `batch_sizes` offers; `stage_ms` of each are
        those of its whole batch.

        :param images: any number, each as `segment` takes it, of any size; or on `device`
        :param want: which of `offers` to compute of all, or a collection for each image
        :param color: the channel order or layout of all, or one for each image
        :param into: for each image the masks, wanted or not, that are written to addresses on
            `device` as well, each a multiple of 4; nothing for none
        :raises InputError: for another dtype or shape, something that is not offered, or as many
            wants, colors or targets as there are no images
        :raises DeviceError: if the GPU fails; close the segmenter then, and open it again
        """
        if self.closed:
            raise InputError('this segmenter is closed, with its engine; open another')
        pictures = _pictures(images, want, color, into)
        if self.device is None and any(into):
            raise InputError('into: this segmenter has no GPU for masks to stay on')
        for picture in pictures:
            check_want({*picture.want, *picture.into}, self.spec)
            if not isinstance(picture.image, DeviceImage):
                layouts.check(picture.image, picture.color)
            elif picture.image.layout != picture.color:
                raise InputError(f'color: found {picture.color!r} for an image on the GPU that is '
                                 f'{picture.image.layout}')
        masks: list[Masks] = []
        while len(masks) < len(pictures):
            size = largest(self.batch_sizes, len(pictures) - len(masks))
            masks += self._segment(pictures[len(masks):len(masks) + size])
        return masks

    @abstractmethod
    def _segment(self, pictures: Sequence[Picture]) -> list[Masks]:
        """Return the masks of pictures that were checked, as many as a batch size has."""

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Tell whether it was closed."""

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


def largest(batch_sizes: Sequence[int], waiting: int) -> int:
    """Return the largest of ascending sizes that so many images, at least one, fill."""
    return max(size for size in batch_sizes if size <= waiting)


def _pictures(images: Sequence[np.ndarray | DeviceImage],
              want: Collection[str] | Sequence[Collection[str]], color: str | Sequence[str],
              into: Sequence[Mapping[str, int]]) -> list[Picture]:
    """Return each image with what is wanted of it, its layout, and where its masks go."""
    # A text is a collection of texts too, but no name of a mask is a single letter.
    wants: list[Any] = (
        [want] * len(images) if all(isinstance(name, str) for name in want) else list(want))
    colors = [color] * len(images) if isinstance(color, str) else list(color)
    targets = into or [{}] * len(images)
    for name, given in (('want', wants), ('color', colors), ('into', targets)):
        if len(given) != len(images):
            raise InputError(f'{name}: found {len(given)} for {len(images)} images, expected one '
                             'for all or one for each')
    return [Picture(*each) for each in zip(images, wants, colors, targets)]
