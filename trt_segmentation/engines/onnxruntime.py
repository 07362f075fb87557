# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime on the CPU: real INT8 kernels, and the vehicle's arithmetic layer by layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
import os
from pathlib import Path
import platform
from typing import Any

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.manifest import cache_of, int8_network
from trt_segmentation.engines import BuildOptions, Plan
from trt_segmentation.engines.onnxruntime_choice import align_inputs, choose, keeps_products
from trt_segmentation.errors import InputError
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.batch import with_free_batch
from trt_segmentation.networks.layers import float_layers, Layer
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.quantize import quantize, Quantized
from trt_segmentation.networks.session import import_onnxruntime, Session
from trt_segmentation.system import files


class OnnxRuntimeEngine(Session):
    """An ONNX model in an ONNX Runtime session on the CPU."""

    backend = 'onnxruntime'

    def __init__(self, model: bytes | str | os.PathLike[str], precision: str = 'fp32', *,
                 unfused: bool = False, optimized: Path | None = None):
        """Open a session, as `Session` describes it; the precision is what it is called."""
        super().__init__(model, unfused=unfused, optimized=optimized)
        self.precision = precision


class OnnxRuntime:
    """The CPU backend; its plan is the ONNX model with Q/DQ pairs in the flavor that fuses."""

    name = 'onnxruntime'
    precisions = ('int8', 'fp32')
    instant = True
    is_vehicle = False

    def unavailable(self) -> str:
        """Return why ONNX Runtime cannot be used, or ''."""
        try:
            import_onnxruntime()
        except InputError as error:
            return str(error)
        return ''

    def identity(self) -> Mapping[str, Any]:
        """Return the version, and the machine's kind: kernels and weights' width depend on it."""
        return {
            'version': import_onnxruntime().__version__,
            'machine': platform.machine(),
            'reduce_range': not keeps_products(),
        }

    def build(self, bundle: Bundle, precision: str, options: BuildOptions) -> Plan:
        """Return the float model as it is, or with the Q/DQ pairs of its calibration."""
        if options.quantization != 'explicit':
            raise InputError('quantization: the onnxruntime backend has no '
                             f'{options.quantization}; expected explicit')
        if precision == 'fp32':
            model = onnx_model.load(bundle.model_path)
            return Plan(_plan(model, bundle, options),
                        float_layers(model, input_shapes(bundle)))
        if precision != 'int8':
            raise InputError(f'precision: the onnxruntime backend has no {precision}; '
                             'expected int8 or fp32')
        return self._int8_plan(bundle, options)

    def load(self, plan: bytes, precision: str) -> OnnxRuntimeEngine:
        """Return an engine that runs a plan."""
        return OnnxRuntimeEngine(plan, precision)

    def _int8_plan(self, bundle: Bundle, options: BuildOptions) -> Plan:
        """Return the network in INT8; where builds are timed, as it is the fastest on this CPU."""
        reduce_range = not keeps_products()

        def quantized_without(floats: Collection[str]) -> Quantized:
            quantized = quantized_network(bundle, 'onnxruntime', reduce_range=reduce_range,
                                          floats=floats)
            align_inputs(quantized.model)
            return quantized

        log = []
        if reduce_range:
            log.append('weights have 7 bits, since products of 8 saturate on this CPU (no VNNI)')
            options.report(log[0])
        if options.timed:
            choice = choose(onnx_model.load(bundle.model_path), quantized_without,
                            input_shapes(bundle), bundle.spec.acceptance.min_int8_share,
                            options.report)
            quantized, log = choice.quantized, [*log, *choice.log]
        else:
            quantized = quantized_without(())
        plan = _plan(quantized.model, bundle, options)
        return Plan(plan, as_they_run(plan, quantized.layers), log)


def _plan(model: onnx.ModelProto, bundle: Bundle, options: BuildOptions) -> bytes:
    """Return the network as it is stored; with a free batch size where batches are wanted."""
    if options.max_batch > 1:
        model = with_free_batch(model, input_shapes(bundle))
    return bytes(model.SerializeToString())


def as_they_run(plan: bytes, layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """Return the layers with those in float that have Q/DQ pairs, but no integer kernel."""
    with files.temporary_directory() as directory:
        path = Path(directory) / 'optimized.onnx'
        OnnxRuntimeEngine(plan, 'int8', optimized=path).close()
        nodes = onnx.load(path, load_external_data=False).graph.node
    # A layer that stays keeps its name; what replaces it is a QLinearConv, QGemm, ConvInteger..
    left = {node.name for node in nodes
            if not node.op_type.startswith('Q') and 'Integer' not in node.op_type}
    return tuple(
        replace(layer, precision='float', reason='ONNX Runtime has no integer kernel for it')
        if layer.precision == 'int8' and layer.name in left else layer for layer in layers)


def vehicle_emulation(bundle: Bundle) -> tuple[OnnxRuntimeEngine, Quantized]:
    """Return the vehicle's INT8 network as the CPU computes it, and its graph."""
    quantized = quantized_network(bundle, 'tensorrt')
    return emulated(quantized), quantized


def emulated(quantized: Quantized) -> OnnxRuntimeEngine:
    """
    Return a network of the 'tensorrt' flavor as the CPU computes it.

    It is the graph that TensorRT gets, run unfused: the same codes at the same places, so its
    accuracy is the vehicle's up to rounding. Its speed says nothing.
    """
    return OnnxRuntimeEngine(quantized.model.SerializeToString(), 'int8', unfused=True)


def quantized_network(bundle: Bundle, flavor: str, *, reduce_range: bool = False,
                      floats: Collection[str] = ()) -> Quantized:
    """
    Return the bundle's network with the Q/DQ pairs of its calibration cache.

    :param floats: names of layers that stay in float, beside those that the spec excludes
    """
    return quantize(
        # The CPU's flavor quantizes outputs too, so it gains nothing by equal inputs.
        onnx_model.load(bundle.path / int8_network(bundle).file if flavor == 'tensorrt'
                        else bundle.model_path),
        cache_of(bundle).usable(),
        flavor,
        input_shapes=input_shapes(bundle),
        exclude={*bundle.spec.calibration.exclude, *floats},
        reduce_range=reduce_range,
    )


def input_shapes(bundle: Bundle) -> dict[str, tuple[int, ...]]:
    """Return the shape of one image's input tensor, by name."""
    return {bundle.spec.input.tensor: (1, 3, *bundle.spec.input.size)}
