# SPDX-License-Identifier: Apache-2.0
"""Running a network on ONNX Runtime so that every activation can be seen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
import ctypes
from dataclasses import dataclass
from functools import cache
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trt_segmentation.calibration import segments
from trt_segmentation.errors import InputError, one_line
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.activations import activations
from trt_segmentation.networks.graph import Graph, opset
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.placement import quantized_tensors
from trt_segmentation.networks.session import import_onnxruntime
from trt_segmentation.networks.shapes import tensor_types
from trt_segmentation.system import cores

if TYPE_CHECKING:
    import onnxruntime


_GPU = 'CUDAExecutionProvider'


@dataclass(frozen=True)
class Observation:
    """
    Activations of one image.

    ranges: (smallest, largest) value of those that are not quantized, by name
    values: float32 arrays of the others; views, gone with this object
    output: the network's output, where this part makes it
    """

    ranges: Mapping[str, tuple[float, float]]
    values: Mapping[str, np.ndarray]
    output: np.ndarray | None = None
    _owners: tuple[object, ...] = ()


class Observer:
    """
    A network that shows its activations.

    Those that get quantized become outputs of the graph, a segment of it at a time. Of the
    others only the range is needed, which the graph computes where they arise: they live as
    briefly as without it. One image runs at a time, whatever the batch size, so that memory
    stays small and the batch size cannot change a result.
    """

    def __init__(self, model_path: Path, input_name: str, size: tuple[int, int],
                 exclude: Collection[str] = (), *, output: str = '', values: bool = True):
        """
        Load a network.

        :param model_path: the ONNX file
        :param input_name: the input that takes the image
        :param size: (height, width) of the images that it will be given
        :param exclude: nodes that stay in float
        :param output: the output to show, if any
        :param values: show values; else of all activations the range only
        :raises InputError: for a network that has nothing to quantize or cannot be run
        """
        model = onnx_model.load(model_path)
        _check_inputs(model, model_path, input_name)
        types = tensor_types(model, {input_name: (1, 3, *size)})
        #: The activations by name, in the graph's order.
        self.activations = tuple(activations(model, types))
        #: Those that some layer reads or writes in INT8.
        self.quantized = frozenset(quantized_tensors(model, exclude) & set(self.activations)
                                   if values else ())
        self._output = output
        if values and not self.quantized:
            raise InputError(f'{model_path}: no layer can be quantized: expected a Conv, Gemm or '
                             'MatMul with constant weights that is not excluded')
        self._input = input_name
        parts = segments.split(model, types, self.quantized | {output})
        self._stages = []
        for number, segment in enumerate(parts):
            reduced = [name for name in segment.produced
                       if name in self.activations and name not in self.quantized]
            if not (segment.outputs or reduced):
                continue  # what the network does with its output at last
            part = segments.submodel(model, segment, types)
            _add_reductions(part, reduced, types)
            later = {name for following in parts[number + 1:] for name in following.inputs}
            self._stages.append(_Stage(
                _session(model_path, part.SerializeToString()), segment.inputs, segment.outputs,
                reduced, later))
        del model
        _return_free_memory()
        self.provider: str = self._stages[0].session.get_providers()[0]

    def __call__(self, tensor: np.ndarray) -> Iterator[Observation]:
        """
        Run one image, and show its activations part by part.

        :param tensor: float32, shape (1, 3, height, width)
        """
        ort = import_onnxruntime()
        if self._input in self.quantized:
            yield Observation({}, {self._input: tensor})
        else:
            yield Observation({self._input: (float(tensor.min()), float(tensor.max()))}, {})
        alive = {self._input: ort.OrtValue.ortvalue_from_numpy(tensor)}
        for stage in self._stages:
            yield self._observe(stage, alive)
            for name in set(alive).difference(stage.later):
                del alive[name]

    def _observe(self, stage: _Stage, alive: dict[str, onnxruntime.OrtValue]) -> Observation:
        """Run a stage on the tensors that are alive, and add what later ones need to them."""
        reductions = [f'{name}{suffix}' for name in stage.reduced
                      for suffix in _REDUCTIONS.values()]
        outputs = [*stage.outputs, *reductions]
        try:
            values = stage.session.run_with_ort_values(
                outputs, {name: alive[name] for name in stage.inputs})
        except Exception as error:  # its exceptions share no base class of their own
            raise InputError(f'the network cannot be run part by part: {one_line(error)}'
                             ) from None
        found = dict(zip(outputs, values))
        alive.update((name, found[name]) for name in stage.outputs if name in stage.later)
        return Observation(
            {name: _range(*(found[f'{name}{suffix}'].numpy() for suffix in _REDUCTIONS.values()))
             for name in stage.reduced},
            {name: _view(found[name]) for name in stage.outputs if name in self.quantized},
            found[self._output].numpy() if self._output in found else None,
            tuple(found.values()))


@dataclass(frozen=True)
class _Stage:
    """A segment that is ready to run; `later` are the tensors that stages after it read."""

    session: onnxruntime.InferenceSession
    inputs: Sequence[str]
    outputs: Sequence[str]
    reduced: Sequence[str]
    later: Collection[str]


_REDUCTIONS = {'ReduceMin': '__calibration_minimum', 'ReduceMax': '__calibration_maximum',
               'ReduceMean': '__calibration_mean'}


def _add_reductions(part: onnx.ModelProto, names: Sequence[str],
                    types: Mapping[str, onnx.TypeProto.Tensor]) -> None:
    """Make the smallest value, the largest and the mean of some tensors outputs of a graph."""
    version = opset(part)
    axes_name = '__calibration_axes'
    if version >= 18:
        part.graph.initializer.append(
            onnx.numpy_helper.from_array(np.array([2, 3], np.int64), axes_name))
    for name in names:
        by_channel = name in types and len(types[name].shape.dim) == 4
        for op, suffix in _REDUCTIONS.items():
            node = onnx.helper.make_node(op, [name], [name + suffix], name=name + suffix,
                                         keepdims=0)
            # By channel: ONNX Runtime then uses all cores, which it does not for one value.
            if by_channel and version >= 18:
                node.input.append(axes_name)
            elif by_channel:
                node.attribute.append(onnx.helper.make_attribute('axes', [2, 3]))
            part.graph.node.append(node)
            part.graph.output.append(onnx.helper.make_tensor_value_info(
                name + suffix, onnx.TensorProto.FLOAT, None))


def _range(minimum: np.ndarray, maximum: np.ndarray, mean: np.ndarray) -> tuple[float, float]:
    """Return (smallest, largest); nan if any value is, which ONNX Runtime's comparisons lose."""
    found = float(minimum.min()), float(maximum.max())
    lost = math.isfinite(found[0]) and math.isfinite(found[1]) and not np.isfinite(mean).all()
    return (math.nan, math.nan) if lost else found


def _session(model_path: Path, model: bytes) -> onnxruntime.InferenceSession:
    """Return a session on the CPU, or on CUDA where the installed ONNX Runtime has it."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it warns of each output that has no shape
    options.intra_op_num_threads = cores.threads()
    # The level above changes the layout of tensors for speed, and back for each that is seen.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # The default order runs the reductions last and keeps every activation until then.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    # Images are decoded beside it, and activations counted after it: no core is to be spun on.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    # One arena for all segments: each with its own would keep its memory while others run.
    _share_arena()
    options.add_session_config_entry('session.use_env_allocators', '1')
    options.enable_mem_pattern = False  # it would take one block for all that a run needs
    providers = [_GPU] * uses_gpu() + ['CPUExecutionProvider']
    try:
        return ort.InferenceSession(model, options, providers)
    except Exception as error:  # its exceptions share no base class of their own
        raise InputError(f'{model_path}: ONNX Runtime refuses it: '
                         f'{str(error).strip().splitlines()[0]}') from None


def uses_gpu() -> bool:
    """Tell whether the installed ONNX Runtime runs networks on a GPU."""
    return _GPU in import_onnxruntime().get_available_providers()


@cache
def _share_arena() -> None:
    """Give this process an arena of ONNX Runtime that several sessions can use."""
    ort = import_onnxruntime()
    memory = ort.OrtMemoryInfo('Cpu', ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0,
                               ort.OrtMemType.DEFAULT)
    as_requested = {'max_mem': 0, 'arena_extend_strategy': 1, 'initial_chunk_size_bytes': -1,
                    'max_dead_bytes_per_chunk': -1}
    with suppress(Exception):  # somebody else in this process has one, which will do
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg(as_requested))


def _return_free_memory() -> None:
    """Have the C library return what loading a network left free, several times its weights."""
    with suppress(AttributeError, OSError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)


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
    inputs = Graph(model).inputs
    if others := sorted(set(inputs) - {name}):
        raise InputError(f'{path}: it has the inputs {name!r} and {others[0]!r}; expected a '
                         'network that takes an image and nothing else')
    batch = inputs[name].type.tensor_type.shape.dim[0]
    if batch.dim_value > 1:
        raise InputError(f'{path}: input {name!r} has a fixed batch size of {batch.dim_value}; '
                         'expected 1 or a symbolic one: export the network so')
