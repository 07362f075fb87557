# SPDX-License-Identifier: Apache-2.0
"""A TensorRT plan at work: deserialized, checked, warmed up, and run on the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
import math
from types import ModuleType
from typing import Any

import numpy as np

from trt_segmentation.cuda.device import Device, Graph
from trt_segmentation.engines.tensorrt.module import has, Log, make_logger
from trt_segmentation.errors import DeviceError, InputError

_DTYPES = {'FLOAT': np.float32, 'HALF': np.float16, 'INT32': np.int32, 'INT64': np.int64,
           'INT8': np.int8, 'UINT8': np.uint8, 'BOOL': np.bool_}


@dataclass(frozen=True)
class DeviceTensor:
    """
    An input or output of the engine: its memory on the GPU.

    address: of the first image's part; those of a batch lie one behind the other
    shape: of one image's part, batch 1
    """

    name: str
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """The size of one image's part in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def address_of(self, index: int) -> int:
        """Return where one image's part of a batch lies."""
        return self.address + index * self.nbytes


class TensorRtEngine:
    """
    An engine on the GPU, for one thread at a time.

    device: where it runs; its stream orders everything
    input: the input tensor, NCHW, float32 or float16
    outputs: the output tensors by name
    max_batch: how many images it can run at once
    """

    def __init__(self, trt: ModuleType, plan: bytes, backend: str, precision: str,
                 dla_core: int | None = None):
        """
        Deserialize a plan, take the memory it needs, and run it once.

        :param dla_core: the DLA that the plan was built for; None for the GPU
        :raises InputError: with TensorRT's own reason, if it does not take the plan
        :raises DeviceError: if the GPU fails
        """
        self.backend, self.precision = backend, precision
        self._log = Log()
        self._logger = make_logger(trt, self._log)  # the runtime does not keep it alive
        self._graphs: dict[int, Graph | None] = {}  # by batch size; None where there can be none
        self._count = 1  # the batch size that the context expects
        self.device: Any = Device()  # None once it is closed
        try:
            with self.device:
                self._runtime, self._engine = _deserialize(
                    trt, plan, self._logger, self._log, dla_core)
                names = [self._engine.get_tensor_name(i)
                         for i in range(self._engine.num_io_tensors)]
                name = next(name for name in names if self._is_input(trt, name))
                free = self._engine.get_tensor_shape(name)[0] < 0  # the batch size
                self._context = _context(trt, self._engine, free)
                if self._context is None:
                    raise DeviceError(f'TensorRT cannot run the plan: {self._log.reason()}')
                if free:
                    self._set_shape(name, self._engine.get_tensor_profile_shape(name, 0)[-1])
                self.max_batch = self._count
                tensors = {name: self._bind(name) for name in names}
                self.input = tensors.pop(name)
                self.outputs = tensors
                device = self.device
                device.cuda.memset_d8(self.input.address, 0, self.max_batch * self.input.nbytes)
                self._make_ready(1)
        except BaseException:
            self.close()
            raise

    def enqueue(self, count: int = 1) -> None:
        """
        Put the inference of a batch on the stream; call it inside `with engine.device:`.

        The first one of each size takes longer.

        :param count: how many images, 1 to `max_batch`
        :raises DeviceError: if TensorRT does not take it
        """
        if count not in self._graphs:
            self._make_ready(count)
        graph = self._graphs[count]
        if graph is not None:
            graph.launch()
        else:
            self._execute(count)

    @property
    def uses_cuda_graph(self) -> bool:
        """Whether an inference is one launch of a CUDA graph."""
        return self._graphs[1] is not None

    def infer(self, tensor: np.ndarray) -> dict[str, np.ndarray]:
        """Run the network, image by image."""
        parts = [self._infer_one(image[None]) for image in tensor]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}

    def close(self) -> None:
        """Free engine and device memory, in the order that TensorRT asks for."""
        if self.device is None:
            return
        try:
            with self.device:
                for graph in filter(None, self._graphs.values()):
                    graph.close()
                self._graphs = {}
                self._context = self._engine = self._runtime = None
        except DeviceError:
            pass  # the GPU is lost, and what was on it with it
        self.device.close()
        self.device = None

    def _infer_one(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Run one image from and to host memory."""
        if image.shape != self.input.shape:
            raise InputError(f'input {self.input.name!r}: found shape {image.shape}, expected '
                             f'{self.input.shape}')
        image = np.ascontiguousarray(image, self.input.dtype)
        results = {name: np.empty(t.shape, t.dtype) for name, t in self.outputs.items()}
        with self.device as device:
            cuda, stream = device.cuda, device.stream
            cuda.memcpy_htod_async(self.input.address, image, stream)
            self.enqueue()
            for name, result in results.items():
                cuda.memcpy_dtoh_async(result, self.outputs[name].address, stream)
            device.synchronize()
        # Float16 is an affair between the engine and the kernels.
        return {name: result.astype(np.float32) if result.dtype == np.float16 else result
                for name, result in results.items()}

    def _is_input(self, trt: ModuleType, name: str) -> bool:
        """Tell whether a tensor is an input."""
        return bool(self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)

    def _set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Tell the context the input's shape."""
        shape = tuple(shape)
        if not self._context.set_input_shape(name, shape):
            raise DeviceError(f'TensorRT does not take the shape {shape} for tensor {name!r}: '
                              f'{self._log.reason()}')
        self._count = shape[0]

    def _bind(self, name: str) -> DeviceTensor:
        """Give a tensor its memory."""
        shape = tuple((self._engine if self.max_batch == 1 else self._context)
                      .get_tensor_shape(name))
        dtype = self._engine.get_tensor_dtype(name).name
        if any(size < 0 for size in shape) or dtype not in _DTYPES:
            raise InputError(f'tensor {name!r} of the plan: found {dtype} {shape}, expected a '
                             'fixed shape and a plain type')
        if self.max_batch > 1:
            if not shape or shape[0] != self.max_batch:
                raise InputError(f'tensor {name!r} of the plan: found shape {shape} for a batch '
                                 f'of {self.max_batch}')
            shape = 1, *shape[1:]
        tensor = DeviceTensor(name, 0, shape, np.dtype(_DTYPES[dtype]))
        tensor = DeviceTensor(name, self.device.allocate(self.max_batch * tensor.nbytes), shape,
                              tensor.dtype)
        if not self._context.set_tensor_address(name, tensor.address):
            raise DeviceError(f'TensorRT does not take the memory of tensor {name!r}: '
                              f'{self._log.reason()}')
        return tensor

    def _execute(self, count: int) -> None:
        """Put the inference of a batch on the stream, as TensorRT does it."""
        if self.max_batch > 1 and count != self._count:
            self._set_shape(self.input.name, (count, *self.input.shape[1:]))
        if not self._context.execute_async_v3(self.device.stream.handle):
            raise DeviceError(f'TensorRT cannot run the engine: {self._log.reason()}')

    def _make_ready(self, count: int) -> None:
        """Run a batch as it is, which may compile kernels; capture a graph where that works."""
        self._execute(count)
        self.device.synchronize()
        graph = self.device.capture(partial(self._execute, count))
        self._graphs[count] = graph
        if graph is not None:
            graph.launch()
            self.device.synchronize()


def _context(trt: ModuleType, engine: Any, free_batch: bool) -> Any:
    """
    Return an execution context, or None.

    TensorRT-RTX compiles kernels for a batch size in the background when it first meets it, and
    runs slower ones until then; a graph would keep those, so it shall wait for them.
    """
    if not free_batch or not has(trt, 'DynamicShapesKernelSpecializationStrategy', 'EAGER'):
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = (
        trt.DynamicShapesKernelSpecializationStrategy.EAGER)
    return engine.create_execution_context(config)


def layer_information(trt: ModuleType, plan: bytes, dla_core: int | None = None) -> str:
    """Return the JSON that TensorRT's engine inspector gives of a plan."""
    log = Log()
    logger = make_logger(trt, log)
    device = Device()
    try:
        with device:
            runtime, engine = _deserialize(trt, plan, logger, log, dla_core)
            inspector = engine.create_engine_inspector()
            text = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
            del inspector, engine, runtime
    finally:
        device.close()
    return text


def _deserialize(trt: ModuleType, plan: bytes, logger: Any, log: Log, dla_core: int | None
                 ) -> tuple[Any, Any]:
    """Return runtime and engine; the runtime must outlive the engine."""
    try:
        runtime = trt.Runtime(logger)
    except TypeError:  # what pybind11 makes of a null pointer
        raise DeviceError(f'TensorRT cannot start: {log.reason()}') from None
    if dla_core is not None:
        runtime.DLA_core = dla_core
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise InputError(f'TensorRT does not take the plan: {log.reason()}; build it anew with: '
                         'trt-segmentation build BUNDLE --force')
    return runtime, engine
