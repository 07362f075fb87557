# SPDX-License-Identifier: Apache-2.0
"""TensorRT, on vehicles and PCs, and TensorRT-RTX, on PCs with an RTX card: one code for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.manifest import cache_of, int8_network
from trt_segmentation.cuda import device
from trt_segmentation.engines import batch_sizes, BuildOptions, Dla, Plan
from trt_segmentation.engines.onnxruntime import input_shapes, quantized_network
from trt_segmentation.engines.tensorrt.builder import build, Built, Order, Settings
from trt_segmentation.engines.tensorrt.engine import layer_information, TensorRtEngine
from trt_segmentation.engines.tensorrt.graph import check, make_ready
from trt_segmentation.engines.tensorrt.layers import (
    EngineLayer,
    parse_dump,
    parse_inspector,
    prove,
)
from trt_segmentation.engines.tensorrt.module import has, import_tensorrt
from trt_segmentation.engines.tensorrt.plans import pack
from trt_segmentation.errors import InputError
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.batch import with_free_batch
from trt_segmentation.networks.float16 import to_float16
from trt_segmentation.networks.layers import float_layers, int8_share, Layer
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.opset import lowered
from trt_segmentation.networks.prepare import prepare

_CACHE_WAS_USED = 'using calibration cache'


class TensorRt:
    """TensorRT from 8.6 on; what a version lacks is found by looking, not by its number."""

    name = 'tensorrt'
    precisions = ('int8', 'fp16')
    instant = False
    is_vehicle = True
    _keeps_timings = True

    def __init__(self, dla: Dla | None = None):
        """Take the accelerator to run on; None for the GPU."""
        self._dla = dla

    def unavailable(self) -> str:
        """Return why it cannot be used on this machine, or ''."""
        try:
            self._module()
        except InputError as error:
            return str(error)
        return device.unavailable()

    def identity(self) -> Mapping[str, Any]:
        """Return the library's version, the GPU and its compute capability, and the DLA if any."""
        dla = {} if self._dla is None else {
            'dla_core': self._dla.core, 'gpu_fallback': self._dla.gpu_fallback}
        return {'version': self._module().__version__, **device.identity(), **dla}

    def build(self, bundle: Bundle, precision: str, options: BuildOptions) -> Plan:
        """Build a plan and prove what each layer runs in."""
        trt = self._module()
        if self._dla is not None and precision == 'fp32':
            raise InputError('precision: a DLA computes in INT8 or FP16, found fp32')
        timings = options.timing_cache if self._keeps_timings else None
        plans, proofs, log = {}, [], []
        for count in batch_sizes(options.max_batch):
            order, layers = make_order(trt, bundle, precision, options.quantization, count)
            built = build(trt, order, Settings(
                workspace_mib=options.workspace_mib, timing_cache=timings, dla=self._dla,
                report=options.report))
            plans[count], timings = built.plan, built.timing_cache
            proofs.append(prove(layers, self._engine_layers(trt, built)))
            log += [line for line in _noteworthy(built, order) if line not in log]
        # What is claimed of the layers holds for each batch size: the least that any has in INT8.
        return Plan(pack(plans), min(proofs, key=lambda proof: int8_share(proof) or 0.0),
                    tuple(log), timings)

    def load(self, plan: bytes, precision: str) -> TensorRtEngine:
        """Return an engine that runs a plan on this machine's GPU."""
        return TensorRtEngine(self._module(), plan, self.name, precision, self._dla_core)

    @property
    def _dla_core(self) -> int | None:
        """Return the DLA's core, if it is one."""
        return None if self._dla is None else self._dla.core

    def _module(self) -> ModuleType:
        """Return the library's Python module."""
        return import_tensorrt(self.name)

    def _engine_layers(self, trt: ModuleType, built: Built) -> tuple[EngineLayer, ...]:
        """Return the layers of a built engine."""
        return _understood(parse_inspector, layer_information(trt, built.plan, self._dla_core))


class TensorRtRtx(TensorRt):
    """TensorRT-RTX; its plans are compiled when they are loaded, so it times nothing."""

    name = 'tensorrt_rtx'
    _keeps_timings = False

    def _engine_layers(self, trt: ModuleType, built: Built) -> tuple[EngineLayer, ...]:
        """Return the layers of a built engine, which the builder writes into its verbose log."""
        return _understood(parse_dump, built.log.dump)


def make_order(trt: ModuleType, bundle: Bundle, precision: str, quantization: str,
               batch: int = 1) -> tuple[Order, tuple[Layer, ...]]:
    """
    Return what is to be built, and the network's weighted layers as the graph has them.

    :param precision: 'int8', 'fp16' or 'fp32'; INT8 leaves FP16 to what is not quantized
    :param quantization: of INT8: 'explicit' (Q/DQ pairs) or 'implicit' (a calibrator)
    :param batch: how many images the plan takes at once
    :raises InputError: for a graph that TensorRT would misread, or what this version lacks
    """
    strongly_typed = has(trt, 'NetworkDefinitionCreationFlag', 'STRONGLY_TYPED')
    implicit = precision == 'int8' and quantization == 'implicit'
    if implicit and not hasattr(trt, 'IInt8EntropyCalibrator2'):
        raise InputError(f'{trt.__name__} {trt.__version__} has no implicit quantization; '
                         'build with --quantization explicit')
    model, layers = network(bundle, precision, quantization, strongly_typed=strongly_typed,
                            batch=batch)
    if not strongly_typed:  # TensorRT 8
        lowered(onnx.load_from_string(model))
    if implicit:
        # An implicitly quantized network is weakly typed: TensorRT chooses among the types.
        return Order(model, fp16=True, int8=True, cache=cache_of(bundle),
                     float_layers=bundle.spec.calibration.exclude), layers
    return Order(model, fp16=precision != 'fp32', int8=precision == 'int8',
                 strongly_typed=strongly_typed), layers


def network(bundle: Bundle, precision: str, quantization: str, *, strongly_typed: bool,
            batch: int = 1) -> tuple[bytes, tuple[Layer, ...]]:
    """
    Return the ONNX graph that TensorRT gets, and its weighted layers.

    :param precision: 'int8', 'fp16' or 'fp32'
    :param quantization: of INT8: 'explicit' gives Q/DQ pairs, 'implicit' the float network
    :param strongly_typed: FP16 then stands in the graph
    :param batch: how many images it takes at once
    :raises InputError: for a graph that TensorRT would misread
    """
    shapes = input_shapes(bundle)
    if precision == 'int8' and quantization == 'explicit':
        quantized = quantized_network(bundle, 'tensorrt')
        model, layers = quantized.model, quantized.layers
    else:
        path = (bundle.path / int8_network(bundle).file if precision == 'int8'
                else bundle.model_path)
        model = prepare(onnx_model.load(path))
        layers = float_layers(model, shapes)
    implicit = precision == 'int8' and quantization == 'implicit'
    if strongly_typed and precision != 'fp32' and not implicit:
        model = to_float16(model)
    return _ready(model, shapes, batch), layers


def _ready(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]], batch: int) -> bytes:
    """Return the checked model as TensorRT gets it."""
    if batch > 1:
        model = with_free_batch(model, shapes)
        shapes = {name: (batch, *shape[1:]) for name, shape in shapes.items()}
    ready = make_ready(model, shapes)
    check(ready)
    return bytes(ready.SerializeToString())


def _understood(parse: Callable[[str], tuple[EngineLayer, ...]], text: str
                ) -> tuple[EngineLayer, ...]:
    """Return the parsed layers; none if they cannot be understood, so that nothing is proven."""
    try:
        return parse(text)
    except ValueError:
        return ()


def _noteworthy(built: Built, order: Order) -> tuple[str, ...]:
    """Return the lines of the log that belong into the record."""
    lines = [f'warning: {line}' for line in built.log.warnings]
    if order.cache is not None:
        lines += list(built.log.evidence)
        if not any(_CACHE_WAS_USED in line for line in built.log.evidence):
            lines.append(f'note: TensorRT logged no line with "{_CACHE_WAS_USED}"; it read the '
                         'cache and asked for no images')
    return tuple(lines)
