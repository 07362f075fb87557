# SPDX-License-Identifier: Apache-2.0
"""
What this CPU's integer kernels are good at, found out by running them.

`/proc/cpuinfo` says what a processor has, not what ONNX Runtime makes of it; under an emulator it
even speaks of another processor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from trt_segmentation.engines.timing import rounds, typical
from trt_segmentation.errors import counted
from trt_segmentation.networks.graph import attribute, Graph, node_name, set_nodes
from trt_segmentation.networks.layers import int8_share
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.quantize import Quantized
from trt_segmentation.networks.session import Session

GROUPED, DEPTHWISE = 'grouped', 'depthwise'
_KINDS = (GROUPED, DEPTHWISE)
_GAIN = 0.98  # of the time before: less is noise, and INT8 is what was asked for
_MAJORITY = 0.8  # of the rounds; beside other work the times before and after differ by more
_LANES = 4  # input channels that an integer kernel takes at once


@dataclass(frozen=True)
class Choice:
    """The quantized network that is the fastest here, and in words how that was found."""

    quantized: Quantized
    log: tuple[str, ...]


@lru_cache(1)
def keeps_products() -> bool:
    """
    Tell whether uint8 x int8 products keep all their bits here.

    x86 before VNNI adds pairs of them in 16 bits and saturates, unless weights have 7 bits. A
    convolution whose every output must be 100 gives 51 there.
    """
    channels, kernel, size, code = 16, 3, 8, 100
    x, w = 255, 127
    total = channels * kernel * kernel * x * w
    constants = {
        'x_scale': np.float32(1), 'x_zero': np.uint8(0), 'w_scale': np.float32(1),
        'w': np.full((channels, channels, kernel, kernel), w, np.int8), 'w_zero': np.int8(0),
        'y_scale': np.float32(total / code), 'y_zero': np.uint8(0),
    }
    helper, kind = onnx.helper, onnx.TensorProto.UINT8
    shape, output = [1, channels, size, size], [1, channels, size - 2, size - 2]
    graph = helper.make_graph(
        [helper.make_node('QLinearConv', ['x', 'x_scale', 'x_zero', 'w', 'w_scale', 'w_zero',
                                          'y_scale', 'y_zero'], ['y'], 'convolution')],
        'probe', [helper.make_tensor_value_info('x', kind, shape)],
        [helper.make_tensor_value_info('y', kind, output)],
        [onnx.numpy_helper.from_array(np.asarray(value), name)
         for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 13)], ir_version=8)
    codes = Session(model.SerializeToString()).infer(np.full(shape, x, np.uint8))['y']
    return bool((codes == code).all())


def choose(model: onnx.ModelProto, quantized_without: Callable[[Collection[str]], Quantized],
           input_shapes: Mapping[str, tuple[int, ...]], min_int8_share: float,
           report: Callable[[str], None]) -> Choice:
    """
    Return the network with those kinds of layers in float that are faster so on this CPU.

    Grouped convolutions are what ONNX Runtime's integer kernels are slow at on some processors.
    Each kind that the network has is tried once, on the whole network, for a few seconds.

    :param model: the float network
    :param quantized_without: returns it in INT8, but for the layers of the given names
    :param input_shapes: of one image, by graph input
    :param min_int8_share: what must stay in INT8, a share 0..1 of the multiply-accumulates
    :param report: takes a line on each choice
    """
    tensor = np.zeros(next(iter(input_shapes.values())), np.float32)
    floats: set[str] = set()
    best, log = quantized_without(floats), []
    for kind in _KINDS:
        names = _names_of(model, kind) & {layer.name for layer in best.layers
                                          if layer.precision == 'int8'}
        if not names:
            continue
        other = quantized_without(floats | names)
        share = int8_share(other.layers)
        what = counted(len(names), f'{kind} convolution')
        if share is not None and share < min_int8_share:
            text = f'{what}: in INT8, since without them {share:.1%} would be left in it'
        else:
            sessions = [Session(each.model.SerializeToString()) for each in (best, other)]
            times = rounds([partial(session.infer, tensor) for session in sessions])
            before, after = typical(times)
            faster = int((times[:, 1] < times[:, 0]).sum())
            taken = after < _GAIN * before and faster >= _MAJORITY * len(times)
            text = (f'{what}: in {"float" if taken else "INT8"}; the network takes '
                    f'{before:.2f} ms with them in INT8, {after:.2f} ms with them in float, '
                    f'where it was faster in {faster} of {len(times)} rounds')
            if taken:
                floats |= names
                best = other
        report(text)
        log.append(text)
    layers = tuple(replace(layer, reason='faster in float on this CPU')
                   if layer.name in floats else layer for layer in best.layers)
    return Choice(Quantized(best.model, layers), tuple(log))


def align_inputs(model: onnx.ModelProto) -> None:
    """
    Give dense convolutions of a graph input as many channels as integer kernels take at once.

    An image has three, which leaves the first convolution, the one with the most pixels, to a
    slower kernel. The channels that are added meet weights of 0, so no result changes.

    :param model: of the 'onnxruntime' flavor; changed in place
    """
    graph = Graph(model)
    nodes = list(graph.nodes)
    for quantize in [node for node in nodes
                     if node.op_type == 'QuantizeLinear' and node.input[0] in graph.inputs]:
        dequantizes = graph.readers[quantize.output[0]]
        readers = [reader for node in dequantizes for reader in graph.readers[node.output[0]]]
        if len(dequantizes) != 1 or len(readers) != 1 or not _is_dense_convolution(readers[0]):
            continue  # whatever else reads the input wants it as it is
        weight = graph.producer.get(readers[0].input[1])
        if weight is None or len(graph.readers[weight.output[0]]) != 1:
            continue
        codes = graph.array(weight.input[0])
        missing = -codes.shape[1] % _LANES
        if codes.ndim != 4 or not missing:
            continue
        edges = ((0, missing) if axis == 1 else (0, 0) for axis in range(codes.ndim))
        wider = onnx.numpy_helper.from_array(np.pad(codes, tuple(edges)), weight.input[0])
        graph.constants[weight.input[0]].CopyFrom(wider)
        pads = [0, 0, 0, 0, 0, missing, 0, 0]
        name = graph.add_constant(f'{quantize.input[0]}_pads', np.array(pads, np.int64))
        padded = graph.fresh(f'{quantize.input[0]}_padded')
        dequantizes[0].input[0] = padded
        nodes.insert(nodes.index(quantize) + 1, onnx.helper.make_node(
            'Pad', [quantize.output[0], name, quantize.input[2]], [padded],
            graph.fresh(f'{quantize.input[0]}_pad')))
    set_nodes(model.graph, nodes)
    del model.graph.value_info[:]


def _names_of(model: onnx.ModelProto, kind: str) -> set[str]:
    """Return the names of the convolutions of a kind."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found = set()
    for node in model.graph.node:
        if node.op_type == 'Conv' and attribute(node, 'group', 1) > 1:
            shape = shapes.get(node.input[1], ())
            if (DEPTHWISE if shape[1:2] == (1,) else GROUPED) == kind:
                found.add(node_name(node))
    return found


def _is_dense_convolution(node: onnx.NodeProto) -> bool:
    """Tell whether a node is a convolution in which each output channel sees each of the input."""
    return bool(node.op_type == 'Conv' and attribute(node, 'group', 1) == 1)
