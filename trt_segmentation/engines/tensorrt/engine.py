# SPDX-License-Identifier: Apache-2.0
"""A TensorRT plan at work: deserialized, checked, warmed up, and run on the GPU."""

from __future__ import annotations

from dataclasses import dataclass
import math
from types import ModuleType
from typing import Any

import numpy as np

from trt_segmentation.cuda.device import Device, Graph
from trt_segmentation.engines.tensorrt.module import Log, make_logger
from trt_segmentation.errors import DeviceError, InputError

_DTYPES = {'FLOAT': np.float32, 'HALF': np.float16, 'INT32': np.int32, 'INT64': np.int64,
           'INT8': np.int8, 'UINT8': np.uint8, 'BOOL': np.bool_}


@dataclass(frozen=True)
class DeviceTensor:
    """An input or output of the engine: its memory on the GPU, of fixed shape."""

    name: str
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class TensorRtEngine:
    """
    An engine on the GPU, for one thread at a time.

    device: where it runs; its stream orders everything
    input: the input tensor, NCHW with batch 1, float32 or float16
    outputs: the output tensors by name
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
        self._graph: Graph | None = None
        self.device: Any = Device()  # None once it is closed
        try:
            with self.device:
                self._runtime, self._engine = _deserialize(
                    trt, plan, self._logger, self._log, dla_core)
                self._context = self._engine.create_execution_context()
                if self._context is None:
                    raise DeviceError(f'TensorRT cannot run the plan: {self._log.reason()}')
                tensors = [self._bind(trt, self._engine.get_tensor_name(i))
                           for i in range(self._engine.num_io_tensors)]
                self.input = next(t for t in tensors if self._is_input(trt, t.name))
                self.outputs = {t.name: t for t in tensors if t is not self.input}
                self._warm_up()
        except BaseException:
            self.close()
            raise

    def enqueue(self) -> None:
        """
        Put one inference on the stream; call it inside `with engine.device:`.

        :raises DeviceError: if TensorRT does not take it
        """
        if self._graph is not None:
            self._graph.launch()
        elif not self._context.execute_async_v3(self.device.stream.handle):
            raise DeviceError(f'TensorRT cannot run the engine: {self._log.reason()}')

    @property
    def uses_cuda_graph(self) -> bool:
        """Whether an inference is one launch of a CUDA graph."""
        return self._graph is not None

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
                if self._graph is not None:
                    self._graph.close()
                self._graph = self._context = self._engine = self._runtime = None
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

    def _bind(self, trt: ModuleType, name: str) -> DeviceTensor:
        """Give a tensor its memory."""
        shape = tuple(self._engine.get_tensor_shape(name))
        dtype = self._engine.get_tensor_dtype(name).name
        if any(size < 0 for size in shape) or dtype not in _DTYPES:
            raise InputError(f'tensor {name!r} of the plan: found {dtype} {shape}, expected a '
                             'fixed shape and a plain type')
        tensor = DeviceTensor(name, 0, shape, np.dtype(_DTYPES[dtype]))
        tensor = DeviceTensor(name, self.device.allocate(tensor.nbytes), shape, tensor.dtype)
        if not self._context.set_tensor_address(name, tensor.address):
            raise DeviceError(f'TensorRT does not take the memory of tensor {name!r}: '
                              f'{self._log.reason()}')
        return tensor

    def _warm_up(self) -> None:
        """Run once as it is, which may compile kernels, then capture a graph where that works."""
        device = self.device
        device.cuda.memset_d8(self.input.address, 0, self.input.nbytes)
        self.enqueue()
        device.synchronize()
        self._graph = device.capture(self.enqueue)
        if self._graph is not None:
            self._graph.launch()
            device.synchronize()


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
