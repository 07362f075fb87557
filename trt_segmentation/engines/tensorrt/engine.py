# SPDX-License-Identifier: Apache-2.0
"""A TensorRT plan at work: deserialized, checked, warmed up, and run on the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
import math
from types import ModuleType
from typing import Any

import numpy as np

from trt_segmentation.cuda.device import Device, Graph
from trt_segmentation.engines.tensorrt.module import Log, make_logger
from trt_segmentation.engines.tensorrt.plans import unpack
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
        """Return the size of one image's part in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def address_of(self, index: int) -> int:
        """Return where one image's part of a batch lies."""
        return self.address + index * self.nbytes


@dataclass
class _Run:
    """One batch size at work: TensorRT's objects, and the CUDA graph where there can be one."""

    engine: Any
    context: Any
    graph: Graph | None = None


class TensorRtEngine:
    """
    An engine on the GPU, for one thread at a time.

    device: where it runs; its stream orders everything
    input: the input tensor, NCHW, float32 or float16
    outputs: the output tensors by name
    batch_sizes: how many images it can run at once, ascending; 1 is the first
    """

    def __init__(self, trt: ModuleType, plan: bytes, backend: str, precision: str,
                 dla_core: int | None = None):
        """
        Deserialize a plan, take the memory it needs, and run it once.

        :param plan: of one image, or of several batch sizes as `pack` made it
        :param dla_core: the DLA that the plan was built for; None for the GPU
        :raises InputError: with TensorRT's own reason, if it does not take the plan
        :raises DeviceError: if the GPU fails
        """
        self.backend, self.precision = backend, precision
        self._log = Log()
        self._logger = make_logger(trt, self._log)  # the runtime does not keep it alive
        self._runs: dict[int, _Run] = {}  # by batch size
        self._runtime: Any = None
        self.device: Any = Device()  # None once it is closed
        try:
            plans = unpack(plan)
            self.batch_sizes = tuple(plans)
            with self.device:
                self._runtime = _runtime(trt, self._logger, self._log, dla_core)
                for count, data in plans.items():
                    engine = _deserialize(self._runtime, data, self._log)
                    context = engine.create_execution_context()
                    if context is None:
                        raise DeviceError(f'TensorRT cannot run the plan: {self._log.reason()}')
                    self._runs[count] = _Run(engine, context)
                engine = self._runs[1].engine
                tensors = [self._allocate(engine, engine.get_tensor_name(i))
                           for i in range(engine.num_io_tensors)]
                self.input = next(t for t in tensors if self._is_input(trt, t.name))
                self.outputs = {t.name: t for t in tensors if t is not self.input}
                for count, run in self._runs.items():
                    for tensor in tensors:
                        self._bind(run, tensor, count)
                    self._warm_up(count, run)
        except BaseException:
            self.close()
            raise

    def enqueue(self, count: int = 1) -> None:
        """
        Put the inference of a batch on the stream; call it inside `with engine.device:`.

        :param count: how many images, one of `batch_sizes`
        :raises DeviceError: if TensorRT does not take it
        """
        run = self._runs[count]
        if run.graph is not None:
            run.graph.launch()
        else:
            self._execute(run)

    @property
    def uses_cuda_graph(self) -> bool:
        """Whether an inference is one launch of a CUDA graph."""
        return self._runs[1].graph is not None

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
                for run in self._runs.values():
                    if run.graph is not None:
                        run.graph.close()
                    run.context = None  # before its engine, and that before the runtime
                self._runs = {}
                self._runtime = None
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
        return bool(self._runs[1].engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)

    def _allocate(self, engine: Any, name: str) -> DeviceTensor:
        """Return a tensor of the engine for one image, with memory for the largest batch."""
        shape = tuple(engine.get_tensor_shape(name))
        dtype = engine.get_tensor_dtype(name).name
        if any(size < 0 for size in shape) or dtype not in _DTYPES:
            raise InputError(f'tensor {name!r} of the plan: found {dtype} {shape}, expected a '
                             'fixed shape and a plain type')
        tensor = DeviceTensor(name, 0, shape, np.dtype(_DTYPES[dtype]))
        return DeviceTensor(name, self.device.allocate(self.batch_sizes[-1] * tensor.nbytes),
                            shape, tensor.dtype)

    def _bind(self, run: _Run, tensor: DeviceTensor, count: int) -> None:
        """Give a tensor of a batch size its memory."""
        shape = tuple(run.engine.get_tensor_shape(tensor.name))
        if count > 1 and shape != (count, *tensor.shape[1:]):
            raise InputError(f'tensor {tensor.name!r} of the plan: found shape {shape} for a '
                             f'batch of {count}')
        if not run.context.set_tensor_address(tensor.name, tensor.address):
            raise DeviceError(f'TensorRT does not take the memory of tensor {tensor.name!r}: '
                              f'{self._log.reason()}')

    def _execute(self, run: _Run) -> None:
        """Put an inference on the stream, as TensorRT does it."""
        if not run.context.execute_async_v3(self.device.stream.handle):
            raise DeviceError(f'TensorRT cannot run the engine: {self._log.reason()}')

    def _warm_up(self, count: int, run: _Run) -> None:
        """Run once as it is, which may compile kernels, then capture a graph where that works."""
        device = self.device
        device.cuda.memset_d8(self.input.address, 0, count * self.input.nbytes)
        self._execute(run)
        device.synchronize()
        run.graph = device.capture(partial(self._execute, run))
        if run.graph is not None:
            run.graph.launch()
            device.synchronize()


def layer_information(trt: ModuleType, plan: bytes, dla_core: int | None = None) -> str:
    """Return the JSON that TensorRT's engine inspector gives of a plan."""
    log = Log()
    logger = make_logger(trt, log)
    device = Device()
    try:
        with device:
            runtime = _runtime(trt, logger, log, dla_core)
            engine = _deserialize(runtime, plan, log)
            inspector = engine.create_engine_inspector()
            text = str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
            del inspector, engine, runtime
    finally:
        device.close()
    return text


def _runtime(trt: ModuleType, logger: Any, log: Log, dla_core: int | None) -> Any:
    """Return a runtime, which must outlive its engines."""
    try:
        runtime = trt.Runtime(logger)
    except TypeError:  # what pybind11 makes of a null pointer
        raise DeviceError(f'TensorRT cannot start: {log.reason()}') from None
    if dla_core is not None:
        runtime.DLA_core = dla_core
    return runtime


def _deserialize(runtime: Any, plan: bytes, log: Log) -> Any:
    """Return the engine of a plan of one batch size."""
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise InputError(f'TensorRT does not take the plan: {log.reason()}; build it anew with: '
                         'trt-segmentation build BUNDLE --force')
    return engine
