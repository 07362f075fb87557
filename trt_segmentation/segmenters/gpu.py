# SPDX-License-Identifier: Apache-2.0
"""Segmentation on the GPU from end to end: an image goes in, and only the masks come back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from logging import getLogger
import math
from time import perf_counter
from typing import Any, Protocol, runtime_checkable, TYPE_CHECKING

import cv2
import numpy as np

from trt_segmentation.bundles.spec import Spec
from trt_segmentation.cuda import kernels
from trt_segmentation.cuda.device import Device
from trt_segmentation.cuda.images import DeviceImage
from trt_segmentation.cuda.loans import Lender, Loan
from trt_segmentation.errors import DeviceError, InputError
from trt_segmentation.recordings import layouts
from trt_segmentation.segmenters.postprocessing import CLASSES, COLOR, CONFIDENCE, Masks
from trt_segmentation.segmenters.segmenter import Engine, Picture, Segmenter

if TYPE_CHECKING:
    from trt_segmentation.engines.record import Record

_SIZES_KEPT = 4
_TRIAL = (64, 202)  # of images to compare conversions by: all values, and some blocks of threads
_LOANS = 16  # of each mask; a node holds one or two of each camera
_STAGED_COLOR = {'bgr': 'rgb', 'rgb': 'bgr'}  # an image's channel order after `stage`


class DeviceTensor(Protocol):
    """An input or output of an engine: where it lies on the GPU, and its fixed form."""

    @property
    def name(self) -> str:
        """Its name in the graph."""

    def address_of(self, index: int) -> int:
        """Return where on the GPU the part of one image of a batch lies."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of that part, NCHW, batch 1."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type."""


@runtime_checkable
class DeviceEngine(Engine, Protocol):
    """
    An engine whose tensors are on a GPU, so that kernels can work on them where they are.

    device: where it runs, as `cuda.device.Device`; None once it is closed
    """

    device: Any

    @property
    def input(self) -> DeviceTensor:
        """Return the input tensor."""

    @property
    def outputs(self) -> Mapping[str, DeviceTensor]:
        """Return the output tensors by name."""

    def enqueue(self, count: int = 1) -> None:
        """Put the inference of a batch on the device's stream; inside `with engine.device:`."""


class CudaSegmenter(Segmenter):
    """
    Pre- and postprocessing in fused kernels around a TensorRT engine.

    The masks that it returns lie in page-locked memory, to which the GPU writes by itself; that
    memory is used again when nothing refers to the arrays any more.
    """

    engine: DeviceEngine
    _device: Device

    def __init__(self, spec: Spec, engine: DeviceEngine, record: Record | None = None, *,
                 batch_sizes: tuple[int, ...] = (1,), mapped: bool | None = None):
        """
        Take the contract and the engine, which it closes.

        :param batch_sizes: as `Segmenter` has them; the engine must take them
        :param mapped: let kernels work on host memory instead of copying; None decides by the
            device: the GPUs of Jetson and DRIVE share the CPU's memory
        :raises InputError: if the engine's tensors are not the ones that the spec describes
        :raises DeviceError: if the GPU fails
        """
        self.spec = spec
        self.record = record
        self.engine = engine
        self.batch_sizes = batch_sizes
        self._device = engine.device
        self._mapped = self._device.integrated if mapped is None else mapped
        self._module: Any = None
        self._marks: list[Any] = []
        self._sizes: OrderedDict[tuple[Any, ...], kernels.Prepared] = OrderedDict()
        self._lender = Lender(self._device.pinned, _LOANS)
        self._staging = [(np.empty(0, np.uint8), 0)] * batch_sizes[-1]
        self._buffers: dict[tuple[str, int], tuple[int, int]] = {}
        try:
            self._make_ready()
        except BaseException:
            self.close()
            raise

    def _make_ready(self) -> None:
        """Load the kernels, take memory, and segment once."""
        spec, outputs = self.spec, self.engine.outputs
        if spec.output.tensor not in outputs:
            raise InputError(f'output {spec.output.tensor!r}: the engine has '
                             f'{", ".join(outputs)}')
        self._output = outputs[spec.output.tensor]
        with self._device as device:
            self._module = kernels.load(device.cuda)
            self._palette = device.upload(kernels.palette(spec))
            self._marks = [device.cuda.Event() for _ in range(3)]
            # The kernels write to it over the bus, but only if something is wrong.
            memory, self._broken_address = device.pinned(4)
            self._broken = memory.view(np.int32)
            self._broken[0] = 0
            self.layouts = kernels.LAYOUTS  # so that each is tried as it will be used
            self.layouts = frozenset(filter(self._converts, kernels.LAYOUTS))
        # The first frame of a vehicle shall be no slower than the others.
        for count in self.batch_sizes:
            self.segment_batch([np.zeros((*spec.input.size, 3), np.uint8)] * count, self.offers)

    def _converts(self, layout: str) -> bool:
        """
        Tell whether the kernel makes of a camera's layout the very pixels that OpenCV makes.

        If not, that layout is left to OpenCV: the same image must have the same masks everywhere,
        and OpenCV's builds for other CPUs need not compute as the one that the kernel was held to.
        """
        image = np.random.default_rng(0).integers(0, 256, layouts.shape(_TRIAL, layout), np.uint8)
        address, _ = self._upload(0, Picture(image, (), layout))
        self._device.synchronize()
        found = np.empty((*_TRIAL, 3), np.uint8)
        self._device.cuda.memcpy_dtoh(found, address)
        same = np.array_equal(found, layouts.as_bgr(image, layout))
        if not same:
            getLogger(__name__).warning('%s: the GPU does not convert it as OpenCV %s does, so '
                                        'the CPU will', layout, cv2.__version__)
        return same

    def _segment(self, pictures: Sequence[Picture]) -> list[Masks]:
        """Return the masks of pictures, as many as a batch size has; DeviceError if that fails."""
        start = perf_counter()
        with self._device as device:
            before, after, end = self._marks
            stream, sizes = device.stream, []
            for i, picture in enumerate(pictures):
                address, color = self._upload(i, picture)
                size = self._size(picture.size, color)
                size.make_input(stream, address, self.engine.input.address_of(i))
                sizes.append(size)
            before.record(stream)
            self.engine.enqueue(len(pictures))
            after.record(stream)
            loans = [self._make_masks(i, size, picture)
                     for i, (size, picture) in enumerate(zip(sizes, pictures))]
            end.record(stream)
            device.synchronize()
            inference, postprocess = after.time_since(before), end.time_since(after)
        if self._broken[0]:
            self._broken[0] = 0
            raise InputError(f'output {self._output.name!r}: some logits are not finite')
        masks = [{name: loan.array if loan.lasting else loan.array.copy()
                  for name, loan in each.items()} for each in loans]
        total = (perf_counter() - start) * 1e3
        stage_ms = {
            'preprocess': total - inference - postprocess,  # with all that the CPU did
            'inference': inference,
            'postprocess': postprocess,
        }
        return [Masks(each[CLASSES], each.get(COLOR), each.get(CONFIDENCE), dict(stage_ms))
                for each in masks]

    def _make_masks(self, index: int, size: kernels.Prepared, picture: Picture
                    ) -> dict[str, Loan]:
        """Put on the stream what makes the masks of one picture of a batch; return their loans."""
        stream = self._device.stream
        loans = {name: self._lender.lend((*picture.size, 3) if name == COLOR else picture.size,
                                         (name, index))
                 for name in {*picture.want, CLASSES}}
        targets = {
            name: loan.address if self._mapped else self._buffer((name, index), loan.array.nbytes)
            for name, loan in loans.items() if name not in picture.into}
        copied = picture.into if self._mapped else loans
        targets |= picture.into
        size.make_masks(stream, self._output.address_of(index), self._palette,
                        self._broken_address,
                        *(targets.get(name, 0) for name in (CLASSES, COLOR, CONFIDENCE)))
        for name, loan in loans.items():
            if name in copied:
                self._device.cuda.memcpy_dtoh_async(loan.array, targets[name], stream)
        return loans

    @property
    def device(self) -> Device:
        """Return the GPU."""
        return self._device

    @property
    def closed(self) -> bool:
        """Tell whether it was closed, or could not be made."""
        return self.engine.device is None

    def close(self) -> None:
        """Free kernels, buffers and the engine; masks that were returned stay valid."""
        if self.closed:
            return
        try:
            with self._device:
                self._sizes.clear()
                self._marks.clear()
                self._module = None
        except DeviceError:
            pass  # the GPU is lost, and what was on it with it
        self.engine.close()

    def _upload(self, index: int, picture: Picture) -> tuple[int, str]:
        """
        Start an image's way to the GPU; return the address of its channels there, and their order.

        A camera's layout has two thirds of the bytes or fewer, and a kernel makes BGR of it.
        """
        image, color = picture.image, picture.color
        if isinstance(image, DeviceImage) and color in {*layouts.CHANNELS, *self.layouts}:
            address = image.address
            if image.step != image.row_bytes:
                address = self._buffer(('image', index), math.prod(image.shape))
                image.pack(address)
        else:
            address, color = self._stage(index, np.asarray(image), color)
        if color in layouts.CHANNELS:
            return address, color
        bgr = self._buffer(('bgr', index), 3 * math.prod(picture.size))
        kernels.convert(self._module, self._device.stream, color, picture.size, address, bgr)
        return bgr, 'bgr'

    def _stage(self, index: int, image: np.ndarray, color: str) -> tuple[int, str]:
        """Start the way of an image on the host; return its address on the GPU and its layout."""
        if color not in self.layouts:
            image, color = layouts.to_channels(image, color)
        if image.nbytes > self._staging[index][0].nbytes:
            # By powers of two, so that growing sizes do not pile up memory.
            self._staging[index] = self._device.pinned(1 << (image.nbytes - 1).bit_length())
        memory, address = self._staging[index]
        copy = stage(image, color, memory)
        if not self._mapped:
            address = self._buffer(('image', index), image.nbytes)
            self._device.cuda.memcpy_htod_async(address, copy, self._device.stream)
        return address, _STAGED_COLOR.get(color, color)

    def _buffer(self, use: tuple[str, int], nbytes: int) -> int:
        """Return the address of memory on the GPU that holds at least so many bytes."""
        capacity, address = self._buffers.get(use, (0, 0))
        if nbytes > capacity:
            if capacity:
                self._device.free(address)
            address = self._device.allocate(nbytes)
            self._buffers[use] = nbytes, address
        return address

    def _size(self, image_size: tuple[int, int], color: str) -> kernels.Prepared:
        """Return what was made ready for images of one size and color order."""
        key = image_size, color
        if key not in self._sizes:
            # No fewer than a batch can have: what is in use must not be freed.
            if len(self._sizes) == max(_SIZES_KEPT, self.batch_sizes[-1]):
                self._sizes.popitem(last=False)[1].free()
            self._sizes[key] = kernels.Prepared(
                self._device, self._module,
                kernels.input_launch(self.spec, image_size, color, self.engine.input.dtype),
                kernels.output_launch(self.spec, image_size, self._output.shape,
                                      self._output.dtype))
        self._sizes.move_to_end(key)
        return self._sizes[key]


def stage(image: np.ndarray, color: str, memory: np.ndarray) -> np.ndarray:
    """
    Return a copy of an image in page-locked memory, as the kernels take it.

    Channels change places on the way, which the kernels undo at no cost: OpenCV does that with
    several threads, and one alone takes half of all that is done around the network.
    """
    copy = memory[:image.nbytes].reshape(image.shape)
    if color in layouts.CHANNELS:
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, copy)
    else:
        np.copyto(copy, image)
    return copy
