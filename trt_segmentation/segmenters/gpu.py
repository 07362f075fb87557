# SPDX-License-Identifier: Apache-2.0
"""Segmentation on the GPU from end to end: an image goes in, and only the masks come back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from time import perf_counter
from typing import Any, Protocol, runtime_checkable, TYPE_CHECKING

import cv2
import numpy as np

from trt_segmentation.bundles.spec import Spec
from trt_segmentation.cuda import kernels
from trt_segmentation.cuda.loans import Lender
from trt_segmentation.errors import DeviceError, InputError
from trt_segmentation.segmenters.postprocessing import (
    check_want,
    CLASSES,
    COLOR,
    CONFIDENCE,
    Masks,
)
from trt_segmentation.segmenters.preprocessing import check_image
from trt_segmentation.segmenters.segmenter import check_open, Engine, Segmenter

if TYPE_CHECKING:
    from trt_segmentation.engines.record import Record

_SIZES_KEPT = 4
_LOANS = 16  # of each mask; a node holds one or two
_STAGED_COLOR = {'bgr': 'rgb', 'rgb': 'bgr'}  # an image's channel order after `_upload`


class DeviceTensor(Protocol):
    """An input or output of an engine: where it lies on the GPU, and its fixed form."""

    @property
    def name(self) -> str:
        """Its name in the graph."""

    @property
    def address(self) -> int:
        """Its memory on the GPU."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, NCHW, batch 1."""

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

    def enqueue(self) -> None:
        """Put one inference on the device's stream; inside `with engine.device:`."""


class CudaSegmenter(Segmenter):
    """
    Pre- and postprocessing in fused kernels around a TensorRT engine.

    The masks that it returns lie in page-locked memory, to which the GPU writes by itself; that
    memory is used again when nothing refers to the arrays any more.
    """

    engine: DeviceEngine

    def __init__(self, spec: Spec, engine: DeviceEngine, record: Record | None = None, *,
                 mapped: bool | None = None):
        """
        Take the contract and the engine, which it closes.

        :param mapped: let kernels work on host memory instead of copying; None decides by the
            device: the GPUs of Jetson and DRIVE share the CPU's memory
        :raises InputError: if the engine's tensors are not the ones that the spec describes
        :raises DeviceError: if the GPU fails
        """
        self.spec = spec
        self.record = record
        self.engine = engine
        self._device = engine.device
        self._mapped = self._device.integrated if mapped is None else mapped
        self._module: Any = None
        self._marks: list[Any] = []
        self._sizes: OrderedDict[tuple[Any, ...], kernels.Prepared] = OrderedDict()
        self._lender = Lender(self._device.pinned, _LOANS)
        self._staging: tuple[np.ndarray, int] = np.empty(0, np.uint8), 0
        self._buffers: dict[str, tuple[int, int]] = {}
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
        # The first frame of a vehicle shall be no slower than the others.
        self.segment(np.zeros((*spec.input.size, 3), np.uint8), self.offers)

    def segment(self, image: np.ndarray, want: Collection[str] = (CLASSES, COLOR), *,
                color: str = 'bgr') -> Masks:
        """Return the masks of one image, at its size; raises DeviceError if the GPU fails."""
        start = perf_counter()
        check_open(self.engine.device is not None)
        check_want(want, self.spec)
        check_image(image)
        if color not in _STAGED_COLOR:
            raise InputError(f'color: found {color!r}, expected bgr or rgb')
        shapes = {name: image.shape if name == COLOR else image.shape[:2]
                  for name in {*want, CLASSES}}
        with self._device as device:
            before, after, end = self._marks
            stream, size = device.stream, self._size(image.shape[:2], _STAGED_COLOR[color])
            size.make_input(stream, self._upload(image), self.engine.input.address)
            before.record(stream)
            self.engine.enqueue()
            after.record(stream)
            loans = {name: self._lender.lend(shape) for name, shape in shapes.items()}
            targets = {
                name: loan.address if self._mapped else self._buffer(name, loan.array.nbytes)
                for name, loan in loans.items()}
            size.make_masks(stream, self._output.address, self._palette, self._broken_address,
                            *(targets.get(name, 0) for name in (CLASSES, COLOR, CONFIDENCE)))
            if not self._mapped:
                for name, loan in loans.items():
                    device.cuda.memcpy_dtoh_async(loan.array, targets[name], stream)
            end.record(stream)
            device.synchronize()
            inference, postprocess = after.time_since(before), end.time_since(after)
        if self._broken[0]:
            self._broken[0] = 0
            raise InputError(f'output {self._output.name!r}: some logits are not finite')
        masks = {name: loan.array if loan.lasting else loan.array.copy()
                 for name, loan in loans.items()}
        total = (perf_counter() - start) * 1e3
        return Masks(masks[CLASSES], masks.get(COLOR), masks.get(CONFIDENCE), {
            'preprocess': total - inference - postprocess,  # with all that the CPU did
            'inference': inference,
            'postprocess': postprocess,
        })

    def close(self) -> None:
        """Free kernels, buffers and the engine; masks that were returned stay valid."""
        if self.engine.device is None:
            return
        try:
            with self._device:
                self._sizes.clear()
                self._marks.clear()
                self._module = None
        except DeviceError:
            pass  # the GPU is lost, and what was on it with it
        self.engine.close()

    def _upload(self, image: np.ndarray) -> int:
        """
        Start the image's way to the GPU; return the address where kernels find it.

        Its channels change places on the way, which the kernels undo at no cost: OpenCV does that
        with several threads, and one alone takes half of all that is done around the network.
        """
        if image.nbytes > self._staging[0].nbytes:
            # By powers of two, so that growing sizes do not pile up memory.
            self._staging = self._device.pinned(1 << (image.nbytes - 1).bit_length())
        memory, address = self._staging
        copy = memory[:image.nbytes].reshape(image.shape)
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, copy)
        if self._mapped:
            return address
        address = self._buffer('image', image.nbytes)
        self._device.cuda.memcpy_htod_async(address, copy, self._device.stream)
        return address

    def _buffer(self, name: str, nbytes: int) -> int:
        """Return the address of memory on the GPU that holds at least so many bytes."""
        capacity, address = self._buffers.get(name, (0, 0))
        if nbytes > capacity:
            if capacity:
                self._device.free(address)
            address = self._device.allocate(nbytes)
            self._buffers[name] = nbytes, address
        return address

    def _size(self, image_size: tuple[int, int], color: str) -> kernels.Prepared:
        """Return what was made ready for images of one size and color order."""
        key = image_size, color
        if key not in self._sizes:
            if len(self._sizes) == _SIZES_KEPT:
                self._sizes.popitem(last=False)[1].free()
            self._sizes[key] = kernels.Prepared(
                self._device, self._module,
                kernels.input_launch(self.spec, image_size, color, self.engine.input.dtype),
                kernels.output_launch(self.spec, image_size, self._output.shape,
                                      self._output.dtype))
        self._sizes.move_to_end(key)
        return self._sizes[key]
