# SPDX-License-Identifier: Apache-2.0
"""The ONNX files that an export consists of: the very graphs that `build` gives to its engines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import Cache
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.engines.onnxruntime import quantized_network
from trt_segmentation.engines.tensorrt.backend import network
from trt_segmentation.networks.layers import Layer
from trt_segmentation.networks.model import onnx


@dataclass(frozen=True)
class Networks:
    """One bundle's network in each form that some program takes; each is made when asked for."""

    bundle: Bundle

    @property
    def cache(self) -> Cache:
        """Return the scales."""
        return cache_of(self.bundle)

    @cached_property
    def floating(self) -> bytes:
        """Return the float network with fixed shapes, for a calibrator that has the cache."""
        return network(self.bundle, 'int8', 'implicit', strongly_typed=False)[0]

    @cached_property
    def quantized(self) -> bytes:
        """Return the network with int8 Q/DQ pairs where TensorRT wants them; the rest float32."""
        return self._explicit[0]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Return the weighted layers of `quantized`."""
        return self._explicit[1]

    @cached_property
    def half(self) -> bytes:
        """Return `quantized` with float16 between the pairs, at the inputs and the outputs."""
        return network(self.bundle, 'int8', 'explicit', strongly_typed=True)[0]

    @cached_property
    def cpu(self) -> bytes:
        """Return the network with uint8 Q/DQ pairs as ONNX Runtime's CPU kernels fuse them."""
        # 7-bit weights: the file must not saturate on whatever x86 it comes to.
        return quantized_network(self.bundle, 'onnxruntime',
                                 reduce_range=True).model.SerializeToString()

    @cached_property
    def _explicit(self) -> tuple[bytes, tuple[Layer, ...]]:
        return network(self.bundle, 'int8', 'explicit', strongly_typed=False)


def with_tail(model: bytes, operators: tuple[str, ...]) -> bytes:
    """
    Return a network whose output passes through more operators, under its old name.

    :param model: a serialized network with one output, logits (N, channels, h, w)
    :param operators: 'Softmax' (over the channels) and 'Transpose' (to N, h, w, channels)
    """
    proto = onnx.load_from_string(model)
    graph = proto.graph
    output = graph.output[0]
    name = output.name
    current = f'{name}_logits'
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [current if value == name else value for value in names]
    for number, operator in enumerate(operators, 1):
        attributes = {'axis': 1} if operator == 'Softmax' else {'perm': [0, 2, 3, 1]}
        target = name if number == len(operators) else f'{name}_{operator.lower()}'
        graph.node.append(onnx.helper.make_node(operator, [current], [target],
                                                f'{name}_{operator.lower()}', **attributes))
        current = target
    if 'Transpose' in operators:
        dims = output.type.tensor_type.shape.dim
        sizes = [dims[i].dim_value for i in (0, 2, 3, 1)]
        for dim, size in zip(dims, sizes):
            dim.dim_value = size
    data: bytes = proto.SerializeToString()
    return data
