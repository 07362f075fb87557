# SPDX-License-Identifier: Apache-2.0
"""Launching the fused kernels: which one, with what arguments, on how many threads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_segmentation.bundles.geometry import Geometry
from trt_segmentation.bundles.labels import IGNORE
from trt_segmentation.bundles.spec import Spec
from trt_segmentation.cuda.device import Device
from trt_segmentation.cuda.tables import CELL, input_tables, output_tables
from trt_segmentation.errors import InputError
from trt_segmentation.recordings.layouts import CAMERAS

THREADS = 128
"""Threads of a block; each makes one pixel of an image or input tensor, or four of the masks."""

# As the struct module writes them: pointers, integers, floats.
INPUT_SIGNATURE = 4 * 'P' + 4 * 'i' + 6 * 'f'
OUTPUT_SIGNATURE = 8 * 'P' + 6 * 'i'
CONVERT_SIGNATURE = 2 * 'P' + 3 * 'i'
# Of each camera's layout the kernel that converts it, and the order that it takes; and of JPEG's
# planes.
_OF_CAMERAS = {
    'uyvy': ('yuv422', 1), 'yuyv': ('yuv422', 0), 'nv12': ('nv', 0), 'nv21': ('nv', 1),
    **{layout: ('bayer', layout.removeprefix('bayer_').index('r')) for layout in CAMERAS
       if layout.startswith('bayer_')},
}
_CONVERSIONS = _OF_CAMERAS | {
    'gray': ('jpeg', 4), '4:4:4': ('jpeg', 0), '4:2:2': ('jpeg', 1), '4:2:0': ('jpeg', 3)}
LAYOUTS = frozenset(_OF_CAMERAS)
"""The layouts of cameras that `convert` takes."""
_FLOAT_TYPES = ('float32', 'float16')
_ID_TYPES = ('uint8', 'int32', 'int64')


@dataclass(frozen=True)
class Launch:
    """A kernel, its tables, how many blocks it needs, and its arguments after the pointers."""

    kernel: str
    rows: np.ndarray
    columns: np.ndarray
    grid: tuple[int, int]
    arguments: tuple[int | float, ...]


def input_launch(spec: Spec, image_size: tuple[int, int], color: str, dtype: np.dtype
                 ) -> Launch:
    """
    Return how an image becomes the input tensor.

    :param image_size: (height, width); rows of the image lie 3 * width bytes apart
    :param color: the image's channel order
    :param dtype: of the tensor
    :raises InputError: if no kernel writes that type
    """
    wanted = spec.input
    if dtype.name not in _FLOAT_TYPES:
        raise InputError(f'input {wanted.tensor!r}: the engine takes {dtype.name}, expected '
                         f'{" or ".join(_FLOAT_TYPES)}')
    geometry = Geometry.of(image_size, wanted.size, wanted.fit)
    rows, columns = input_tables(geometry, wanted.interpolation)
    height, width = wanted.size
    kind = 'area' if rows.dtype == CELL else 'linear'
    return Launch(
        f'input_{kind}_{dtype.name}', rows, columns, (_blocks(width), height),
        (height, width, 3 * image_size[1], int(color != wanted.color), *wanted.scale,
         *(-mean * scale for mean, scale in zip(wanted.mean, wanted.scale))))


def output_launch(spec: Spec, image_size: tuple[int, int], shape: tuple[int, ...],
                  dtype: np.dtype) -> Launch:
    """
    Return how the network's output becomes the masks.

    :param shape: of the output tensor, as `Postprocessor` takes it
    :param dtype: of the output tensor
    :raises InputError: if the output has another shape or type than the spec says
    """
    name, height, width = spec.output.tensor, *shape[-2:]
    labels = len(spec.labels.labels)
    logits = spec.output.kind == 'logits'
    if logits and (len(shape) != 4 or shape[:2] != (1, labels)):
        raise InputError(f'output {name!r}: expected logits (1, {labels}, h, w), found shape '
                         f'{shape}')
    if not logits and (len(shape) not in (3, 4) or any(size != 1 for size in shape[:-2])):
        raise InputError(f'output {name!r}: expected one mask of class ids, found shape {shape}')
    types = _FLOAT_TYPES if logits else _ID_TYPES
    if dtype.name not in types:
        raise InputError(f'output {name!r}: the engine gives {dtype.name}, expected one of '
                         f'{", ".join(types)}')
    geometry = Geometry.of(image_size, spec.input.size, spec.input.fit)
    rows, columns = output_tables(geometry, (height, width),
                                  spec.output.upsample if logits else 'nearest')
    if logits:
        linear = rows['weight'].any() or columns['weight'].any()
        kernel = f'{"linear" if linear else "nearest"}_logits_{dtype.name}'
    else:
        kernel = f'ids_{dtype.name}'
    # Where several rows of the image take the same of the network's, one thread makes them.
    repeat = min(max(round(image_size[0] / geometry.resized[0]), 1), 4)
    return Launch(
        kernel, rows, columns,
        (_blocks(-(-image_size[1] // 4)), -(-image_size[0] // repeat)),
        (*image_size, repeat, labels, height, width))


def palette(spec: Spec) -> np.ndarray:
    """
    Return what the kernels look classes up in: uint32, shape (257,).

    The lowest byte is the channel's train id, above it are blue, green and red of that id; entry
    256 is for pixels that the network did not see.
    """
    train_ids = np.full(257, IGNORE, np.uint32)
    train_ids[:len(spec.labels.labels)] = spec.labels.train_ids
    blue, green, red = spec.labels.palette_bgr[train_ids].T.astype(np.uint32)
    return train_ids | blue << 8 | green << 16 | red << 24


def load(cuda: Any) -> Any:
    """Return the kernels as a PyCUDA module; the driver compiles them for its GPU here."""
    return cuda.module_from_buffer(Path(__file__).with_name('kernels.ptx').read_bytes() + b'\0')


def convert(module: Any, stream: Any, layout: str, size: tuple[int, int], raw: int, bgr: int
            ) -> None:
    """
    Put the kernel on the stream that makes BGR of an image in a camera's layout, both by address.

    :param module: what `load` returned
    :param layout: one of `LAYOUTS`; or of `jpeg.PLAIN`, for planes one behind the other
    :param size: (height, width); rows lie as close as they can
    """
    height, width = size
    kernel, order = _CONVERSIONS[layout]
    function = module.get_function(f'convert_{kernel}').prepare(CONVERT_SIGNATURE)
    function.prepared_async_call((_blocks(width), height, 1), (THREADS, 1, 1), stream, raw, bgr,
                                 height, width, order)


class Prepared:
    """Both kernels, ready for images of one size and color order, with their tables on the GPU."""

    def __init__(self, device: Device, module: Any, into: Launch, out: Launch):
        """
        Upload the tables; call it inside `with device:`.

        :param module: what `load` returned
        """
        self._device, self._into, self._out = device, into, out
        self._make_input = module.get_function(into.kernel).prepare(INPUT_SIGNATURE)
        self._make_masks = module.get_function(out.kernel).prepare(OUTPUT_SIGNATURE)
        self._tables = [device.upload(table)
                        for table in (into.rows, into.columns, out.rows, out.columns)]

    def make_input(self, stream: Any, image: int, tensor: int) -> None:
        """Put the kernel on the stream that makes the tensor of an image, both by address."""
        self._make_input.prepared_async_call(
            (*self._into.grid, 1), (THREADS, 1, 1), stream, image, tensor, *self._tables[:2],
            *self._into.arguments)

    def make_masks(self, stream: Any, output: int, palette: int, broken: int, classes: int,
                   color: int, confidence: int) -> None:
        """
        Put the kernel on the stream that makes masks of the network's output, all by address.

        :param broken: of an int32 that becomes 1 if a logit is not finite
        :param classes, color, confidence: 0 for a mask that is not wanted
        """
        self._make_masks.prepared_async_call(
            (*self._out.grid, 1), (THREADS, 1, 1), stream, output, palette, *self._tables[2:],
            classes, color, confidence, broken, *self._out.arguments)

    def free(self) -> None:
        """Free the tables."""
        for table in self._tables:
            self._device.free(table)


def _blocks(threads: int) -> int:
    """Return how many blocks hold so many threads."""
    return -(-threads // THREADS)
