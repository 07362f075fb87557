# SPDX-License-Identifier: Apache-2.0
"""Running a network on ONNX Runtime so that every activation can be seen."""

from __future__ import annotations

from collections.abc import Collection, Mapping
import ctypes
from dataclasses import dataclass
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trt_segmentation import onnx_model
from trt_segmentation.calibration.graph import Activation, activations
from trt_segmentation.engines.onnxruntime import import_onnxruntime
from trt_segmentation.errors import InputError
from trt_segmentation.quantization import quantized_tensors

if TYPE_CHECKING:
    import onnx
    import onnxruntime


@dataclass(frozen=True)
class Observation:
    """
    The activations of one image.

    ranges: (smallest, largest) value of each activation, by name, in the graph's order
    values: float32 arrays of those that are quantized; views, gone with this object
    """

    ranges: Mapping[str, tuple[float, float]]
    values: Mapping[str, np.ndarray]
    _owners: tuple[object, ...]


class Observer:
    """
    A network that shows its activations.

    Those that get quantized become outputs of the graph. Of the others only the range is
    needed, which the graph computes where they arise: they live as briefly as without it.
    One image runs at a time, whatever the batch size, so no more than one image's activations
    are ever in memory, and the batch size cannot change a result.
    """

    def __init__(self, model_path: Path, input_name: str, exclude: Collection[str] = ()):
        """
        Load a network.

        :param model_path: the ONNX file
        :param input_name: the input that takes the image
        :param exclude: nodes that stay in float
        :raises InputError: for a network that has nothing to quantize or cannot be run
        """
        model = onnx_model.load(model_path)
        _check_inputs(model, model_path, input_name)
        known = activations(model)
        #: The activations by name, in the graph's order.
        self.activations = tuple(known)
        #: Those that some layer reads or writes in INT8.
        self.quantized = frozenset(quantized_tensors(model, exclude) & set(known))
        if not self.quantized:
            raise InputError(f'{model_path}: no layer can be quantized: expected a Conv, Gemm or '
                             'MatMul with constant weights that is not excluded')
        outputs = {value.name for value in model.graph.output} & set(known)
        #: Seen whole. Graph outputs are there in any case.
        self._whole = [name for name in known if name in self.quantized | outputs]
        reduced = [known[name] for name in known if name not in self._whole]
        self._reduced = [activation.name for activation in reduced]
        self._input = input_name
        whole = [name for name in self._whole if name != input_name]
        extra = _observing_nodes(model, [name for name in whole if name not in outputs], reduced)
        del model
        # Protocol buffers merge when their bytes are joined, so the weights need not pass
        # through Python once more.
        self._session = _session(model_path, model_path.read_bytes() + extra)
        self._outputs = whole + [f'{name}{suffix}' for name in self._reduced
                                 for suffix in (_MINIMUM, _MAXIMUM)]

    @property
    def provider(self) -> str:
        """The ONNX Runtime execution provider in use."""
        return self._session.get_providers()[0]

    def __call__(self, tensor: np.ndarray) -> Observation:
        """
        Run one image.

        :param tensor: float32, shape (1, 3, height, width)
        """
        ort = import_onnxruntime()
        found = self._session.run_with_ort_values(
            self._outputs, {self._input: ort.OrtValue.ortvalue_from_numpy(tensor)})
        arrays = dict(zip(self._outputs, map(_view, found)))
        arrays[self._input] = tensor
        ranges = {}
        for name in self.activations:
            if name in arrays:
                # NumPy's minimum and maximum are nan if any value is.
                ranges[name] = float(arrays[name].min()), float(arrays[name].max())
            else:
                ranges[name] = (float(arrays[name + _MINIMUM].min()),
                                float(arrays[name + _MAXIMUM].max()))
        return Observation(ranges, {name: arrays[name] for name in self._whole
                                    if name in self.quantized}, tuple(found))


_MINIMUM, _MAXIMUM = '__calibration_minimum', '__calibration_maximum'


def _observing_nodes(model: onnx.ModelProto, whole: Collection[str],
                     reduced: Collection[Activation]) -> bytes:
    """Return the serialized part of a model that is to be joined to the file's bytes."""
    onnx = onnx_model.import_onnx()
    opset = max(entry.version for entry in model.opset_import if entry.domain in ('', 'ai.onnx'))
    part = onnx.ModelProto()
    float32 = onnx.TensorProto.FLOAT
    for name in whole:
        part.graph.output.append(onnx.helper.make_tensor_value_info(name, float32, None))
    axes_name = '__calibration_axes'
    if opset >= 18:
        part.graph.initializer.append(
            onnx.numpy_helper.from_array(np.array([2, 3], np.int64), axes_name))
    for activation in reduced:
        for op, suffix in (('ReduceMin', _MINIMUM), ('ReduceMax', _MAXIMUM)):
            node = onnx.helper.make_node(op, [activation.name], [activation.name + suffix],
                                         name=activation.name + suffix, keepdims=0)
            # By channel: ONNX Runtime then uses all cores, which it does not for one value.
            if activation.rank == 4 and opset >= 18:
                node.input.append(axes_name)
            elif activation.rank == 4:
                node.attribute.append(onnx.helper.make_attribute('axes', [2, 3]))
            part.graph.node.append(node)
            part.graph.output.append(
                onnx.helper.make_tensor_value_info(activation.name + suffix, float32, None))
    return part.SerializeToString()


def _session(model_path: Path, model: bytes) -> onnxruntime.InferenceSession:
    """Return a session on the CPU, or on CUDA where the installed ONNX Runtime has it."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it warns of each output that has no shape
    # The default order runs the reductions last and keeps every activation until then.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    providers = [name for name in ('CUDAExecutionProvider', 'CPUExecutionProvider')
                 if name in ort.get_available_providers()]
    try:
        return ort.InferenceSession(model, options, providers)
    except Exception as error:  # its exceptions share no base class of their own
        raise InputError(f'{model_path}: ONNX Runtime refuses it: '
                         f'{str(error).strip().splitlines()[0]}') from None


def _view(value: onnxruntime.OrtValue) -> np.ndarray:
    """Return a tensor's values, without a copy where they are in main memory."""
    if value.device_name() != 'cpu':
        return value.numpy()
    shape = value.shape()
    if 0 in shape:
        return np.empty(shape, np.float32)
    # OrtValue.numpy() copies, which would double the memory of the largest tensors.
    buffer = (ctypes.c_float * math.prod(shape)).from_address(value.data_ptr())
    return np.frombuffer(buffer, np.float32).reshape(shape)


def _check_inputs(model: onnx.ModelProto, path: str | os.PathLike, name: str) -> None:
    """Raise InputError if the network needs more than one image at a time."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in constants}
    if others := sorted(set(inputs) - {name}):
        raise InputError(f'{path}: it has the inputs {name!r} and {others[0]!r}; expected a '
                         'network that takes an image and nothing else')
    batch = inputs[name].type.tensor_type.shape.dim[0]
    if batch.dim_value > 1:
        raise InputError(f'{path}: input {name!r} has a fixed batch size of {batch.dim_value}; '
                         'expected 1 or a symbolic one: export the network so')
