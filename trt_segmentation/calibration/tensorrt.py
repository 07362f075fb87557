# SPDX-License-Identifier: Apache-2.0
"""
Driving TensorRT's own calibrators (up to TensorRT 10) with this package's images.

Their Python binding has traps. It catches whatever a callback raises, prints it, takes it for
the end of the data, and then has the cache of half the images written; so what was raised is
kept here, raised after the build, and nothing is published. It copies as many pointers as the
network has inputs, whatever the list's length; so there is exactly one for each name. And it
owns no memory: buffers live until the build is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from types import ModuleType
from typing import Any, Protocol, TYPE_CHECKING

import numpy as np

from trt_segmentation.bundles.cache import Cache
from trt_segmentation.engines.tensorrt.module import flags, Log, make_logger
from trt_segmentation.errors import InputError

if TYPE_CHECKING:
    from trt_segmentation.cuda.device import Device

#: The calibrator class for each method.
CLASSES = {'entropy': 'IInt8EntropyCalibrator2', 'minmax': 'IInt8MinMaxCalibrator'}


class DeviceMemory(Protocol):
    """What the stream needs of a GPU; addresses are those of device memory."""

    def allocate(self, nbytes: int) -> int:
        """Return the address of new memory."""

    def write(self, address: int, values: np.ndarray) -> None:
        """Copy values there; done when it returns."""

    def free(self, address: int) -> None:
        """Free what `allocate` returned."""


class GpuMemory:
    """The memory of a GPU."""

    def __init__(self, device: Device):
        """Take the GPU, whose context must be entered when the memory is used."""
        self._device = device

    def allocate(self, nbytes: int) -> int:
        """Return the address of new memory."""
        return self._device.allocate(nbytes)

    def write(self, address: int, values: np.ndarray) -> None:
        """Copy values there; done when it returns."""
        self._device.cuda.memcpy_htod(address, values)

    def free(self, address: int) -> None:
        """Free what `allocate` returned."""
        self._device.free(address)


class Stream:
    """
    Batches on their way into a calibrator, and what became of it.

    batches: how many TensorRT has taken
    error: what a callback raised, if one did
    cache: the bytes that TensorRT wrote, if it did
    """

    def __init__(self, input_name: str, tensors: Iterable[np.ndarray], batch_size: int,
                 memory: DeviceMemory):
        """
        Prepare to give batches; nothing is read or allocated yet.

        :param tensors: float32, shape (1, 3, height, width) each
        """
        self.batches = 0
        self.error: BaseException | None = None
        self.cache: bytes | None = None
        self._input = input_name
        self._arrays = _batches(iter(tensors), batch_size)
        self._memory = memory
        self._address: int | None = None

    def get_batch(self, names: list[str]) -> list[int] | None:
        """Return one device address a name, or None when there are no more batches."""
        try:
            if self.error is not None:
                return None
            if list(names) != [self._input]:
                raise InputError(f'TensorRT asks for the inputs {", ".join(names)}; expected '
                                 f'{self._input} and nothing else')
            batch = next(self._arrays, None)
            if batch is None:
                return None
            if self._address is None:
                self._address = self._memory.allocate(batch.nbytes)
            self._memory.write(self._address, batch)
            self.batches += 1
            return [self._address]
        except BaseException as error:  # Ctrl-C too: the binding would swallow it
            self.error = error
            return None

    def write_cache(self, cache: Any) -> None:
        """Keep a copy of the cache: its memory is TensorRT's, and ends with the call."""
        self.cache = bytes(cache)

    def close(self) -> None:
        """Free the device memory."""
        if self._address is not None:
            self._memory.free(self._address)
            self._address = None

    def result(self, log: Log) -> Cache:
        """
        Return the cache.

        :raises InputError: if TensorRT wrote none, or whatever a callback raised
        """
        if self.error is not None:
            raise self.error
        if self.cache is None:
            raise InputError(f'TensorRT did not calibrate: {log.reason()}')
        if next(self._arrays, None) is not None:
            raise InputError(f'TensorRT calibrated with the first {self.batches} batches only: '
                             f'{log.reason()}')
        return Cache.parse(self.cache, 'the cache that TensorRT wrote')


def make_calibrator(trt: ModuleType, method: str, stream: Stream, batch_size: int) -> Any:
    """Return a calibrator of that TensorRT; keep it until the build is over."""
    base: Any = getattr(trt, CLASSES[method])

    class Calibrator(base):
        def __init__(self):
            base.__init__(self)  # pybind11 wants it called by name

        def get_batch_size(self):
            return batch_size

        def get_batch(self, names):
            return stream.get_batch(names)

        def read_calibration_cache(self):
            """Return nothing, so that TensorRT calibrates."""

        def write_calibration_cache(self, cache):
            stream.write_cache(cache)

    return Calibrator()


def calibrate(trt: ModuleType, model: bytes, method: str, stream: Stream, batch_size: int
              ) -> Cache:
    """
    Calibrate with TensorRT.

    :param trt: the module, 10 or older
    :param model: the serialized ONNX model, its input's shape fixed to a whole batch
    :param method: 'entropy' or 'minmax'
    :raises InputError: for a graph or a machine that TensorRT refuses, or what a callback raised
    """
    if not hasattr(trt, CLASSES[method]):
        raise InputError(f'TensorRT {trt.__version__} has no calibrators: they ended with '
                         'TensorRT 10; use --calibrator onnxruntime')
    log = Log()
    logger = make_logger(trt, log)
    try:
        builder = trt.Builder(logger)
    except TypeError:  # what pybind11 makes of a null pointer
        raise InputError(f'TensorRT cannot make a builder: {log.reason()}') from None
    network = builder.create_network(flags(trt, 'NetworkDefinitionCreationFlag',
                                           'EXPLICIT_BATCH'))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise InputError(f'TensorRT cannot read the network: {"; ".join(errors) or log.reason()}')
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.INT8)
    if hasattr(config, 'builder_optimization_level'):
        config.builder_optimization_level = 0  # the plan is thrown away: the cache is wanted
    calibrator = make_calibrator(trt, method, stream, batch_size)
    config.int8_calibrator = calibrator
    try:
        builder.build_serialized_network(network, config)
    finally:
        stream.close()
    return stream.result(log)


def _batches(tensors: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yield whole batches; the network's shape has no room for a part of one."""
    while group := list(islice(tensors, size)):
        if len(group) < size:
            raise InputError(f'images: the last batch has {len(group)} of {size}; with '
                             '--calibrator tensorrt, --count must be a multiple of --batch-size')
        yield np.ascontiguousarray(np.concatenate(group))
