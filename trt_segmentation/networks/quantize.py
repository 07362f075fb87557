# SPDX-License-Identifier: Apache-2.0
"""
Writing a calibration's scales into the graph as QuantizeLinear/DequantizeLinear pairs.

Two flavors of one calibration. 'tensorrt': int8 with zero point 0 at the inputs of weighted
layers and at the residual input of skip additions, as NVIDIA's placement rules ask.
'onnxruntime': uint8, also at the outputs, so that ONNX Runtime's CPU kernels fuse; zero point 0
and scale amax/255 where a tensor cannot be negative, else 128 and amax/127, which are the int8
codes shifted. Weights are int8 in both, per output channel where that is axis 0; bias is float.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
import math
from typing import TYPE_CHECKING

import numpy as np

from trt_segmentation.errors import InputError, one_line
from trt_segmentation.networks import model as onnx_model

if TYPE_CHECKING:
    import onnx

FLAVORS = ('tensorrt', 'onnxruntime')
GRAPH_REVISION = 1
"""
Raise it with every change of what graph is made of a network: here, in `precision`, or in
`engines.tensorrt_graph`. Plans depend on it, so that a fix reaches a vehicle that has built one.
"""

_OPSET = 17  # the newest that TensorRT 8.6 parses; per-channel scales need 13
_IR_VERSION = 8  # the one of that opset; before 4, weights had to be inputs of the graph too
_QUANTIZED_OPS = ('Conv', 'Gemm', 'MatMul')
# ONNX Runtime has integer kernels for these, so codes can flow through them from layer to layer.
_TRANSPARENT_OPS = ('Add', 'AveragePool', 'Concat', 'GlobalAveragePool', 'MaxPool', 'Resize')
# These pass codes on as they are, so one scale must serve input and output.
_COPYING_OPS = ('MaxPool', 'Resize')
# What may lie between the layers that make logits and the graph's output.
_HEAD_OPS = ('Add', 'ArgMax', 'Cast', 'Identity', 'LogSoftmax', 'Reshape', 'Resize', 'Sigmoid',
             'Softmax', 'Squeeze', 'Transpose')
_MAX_HEAD_SHARE = 0.03
_INTEGER_OPS = ('ConvInteger', 'DequantizeLinear', 'DynamicQuantizeLinear', 'MatMulInteger',
                'QLinearConv', 'QLinearMatMul', 'QuantizeLinear')


@dataclass(frozen=True)
class Layer:
    """
    One weighted layer: what it will run in, and why if that is not INT8.

    macs: multiply-accumulates for one image
    precision: 'int8' or 'float' of a graph; of a built engine also 'fp16', 'fp32' or 'unknown'
    """

    name: str
    op: str
    macs: int
    precision: str
    reason: str = ''


@dataclass(frozen=True)
class Quantized:
    """A graph with Q/DQ pairs, and what became of each weighted layer."""

    model: onnx.ModelProto
    layers: tuple[Layer, ...]

    @property
    def int8_share(self) -> float:
        """Return the share 0..1 of the multiply-accumulates that are in INT8 layers."""
        return int8_share(self.layers)


def int8_share(layers: Iterable[Layer]) -> float:
    """Return the share 0..1 of the multiply-accumulates that run in INT8; 0 without any work."""
    layers = tuple(layers)
    int8 = sum(layer.macs for layer in layers if layer.precision == 'int8')
    return int8 / max(sum(layer.macs for layer in layers), 1)


def float_layers(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]
                 ) -> tuple[Layer, ...]:
    """Return the weighted layers of a float network; `input_shapes` as `quantize` takes it."""
    shapes = onnx_model.infer_shapes(model, input_shapes)
    return tuple(
        Layer(onnx_model.node_name(node), node.op_type,
              onnx_model.multiply_accumulates(node, shapes), 'float')
        for node in model.graph.node if node.op_type in onnx_model.WEIGHTED_OPS)


def quantizable_share(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]
                      ) -> float:
    """
    Return the share 0..1 of the multiply-accumulates that can be in INT8 on the vehicle.

    :raises InputError: if the network is quantized
    """
    graph = _Graph(model, ())
    shapes = onnx_model.infer_shapes(graph.model, input_shapes)
    return int8_share(
        Layer(node.name, node.op_type, onnx_model.multiply_accumulates(node, shapes),
              'float' if graph.float_reason(node) else 'int8')
        for node in graph.nodes if node.op_type in onnx_model.WEIGHTED_OPS)


def quantized_tensors(model: onnx.ModelProto, exclude: Collection[str] = ()) -> set[str]:
    """
    Return the names of the activations whose scales either flavor needs.

    :param model: the float network
    :param exclude: names of nodes that stay in float (a node without a name: its first output)
    :raises InputError: if `exclude` names a node that is not there, or the network is quantized
    """
    graph = _Graph(model, exclude)
    layers = [node for node in graph.nodes if not graph.float_reason(node)]
    return set(graph.tensorrt_readers(layers)) | graph.onnxruntime_tensors(layers)


def quantize(model: onnx.ModelProto, scales: Mapping[str, float], flavor: str, *,
             input_shapes: Mapping[str, tuple[int, ...]], exclude: Collection[str] = (),
             reduce_range: bool = False) -> Quantized:
    """
    Return the network with the Q/DQ pairs of a flavor.

    :param model: the float network; it is not changed
    :param scales: amax/127 by tensor name, as a calibration cache has them
    :param flavor: 'tensorrt' or 'onnxruntime'
    :param input_shapes: the shapes to count multiply-accumulates for, by graph input
    :param exclude: names of nodes that stay in float
    :param reduce_range: 7-bit weights, for x86 CPUs whose 8-bit products saturate (no VNNI)
    :raises InputError: for a scale that is not finite and positive, an unknown name, a weight
        that is not finite, or a network that is quantized already
    """
    for name, scale in scales.items():
        if not (math.isfinite(scale) and scale > 0):
            raise InputError(f'scale of tensor {name!r} is {scale}; expected finite, above 0')
    graph = _Graph(model, exclude)
    shapes = onnx_model.infer_shapes(graph.model, input_shapes)
    heads = graph.heads(shapes) if flavor == 'onnxruntime' else set()
    layers, quantized = [], []
    for node in graph.nodes:
        if node.op_type not in onnx_model.WEIGHTED_OPS:
            continue
        reason = graph.float_reason(node)
        if not reason and id(node) in heads:
            reason = 'it makes the logits, which would tie on 8 bits'
        if not reason:
            missing = [name for name in graph.tensors_of_layer(node, flavor)
                       if name not in scales]
            reason = f'no scale for tensor {missing[0]!r}' if missing else ''
        if not reason:
            quantized.append(node)
        layers.append(Layer(
            onnx_model.node_name(node), node.op_type,
            onnx_model.multiply_accumulates(node, shapes), 'float' if reason else 'int8', reason))
    tensors = (graph.tensorrt_readers(quantized) if flavor == 'tensorrt'
               else graph.onnxruntime_tensors(quantized))
    writer = _Writer(graph, graph.shared_scales(scales, tensors, flavor), flavor, reduce_range)
    if flavor == 'tensorrt':
        writer.insert_for_readers(tensors)
    else:
        writer.insert_for_all(tensors)
    writer.quantize_weights(quantized)
    return Quantized(writer.finish(), tuple(layers))


class _Graph:
    """The float network, made ready (opset, constants, batch normalization), and its topology."""

    def __init__(self, model: onnx.ModelProto, exclude: Collection[str]):
        self.model = prepare(model)
        self.graph = self.model.graph
        self.nodes = list(self.graph.node)
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self.outputs = {value.name for value in self.graph.output}
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in _reads(node):
                self.consumers[name].append(node)
        self.exclude = set(exclude)
        names = {onnx_model.node_name(node) for node in self.nodes}
        if unknown := sorted(self.exclude - names):
            raise InputError(f'calibration.exclude: the graph has no node {unknown[0]!r}')
        if integer := [node for node in self.nodes if node.op_type in _INTEGER_OPS]:
            raise InputError(
                f'the network is quantized already (node {onnx_model.node_name(integer[0])!r} is '
                f'a {integer[0].op_type}); expected the floating-point network'
            )
        self.nonnegative: set[str] = set()  # tensors whose operator rules negative values out
        for node in self.nodes:
            if self._rules_out_negative(node):
                self.nonnegative.update(node.output)

    def float_reason(self, node: onnx.NodeProto) -> str:
        """Return why a node cannot be quantized, or '' if it can."""
        onnx = onnx_model.import_onnx()
        if node.op_type == 'ConvTranspose':
            return 'transposed convolutions stay in float'
        if node.op_type not in _QUANTIZED_OPS:
            return 'not a weighted layer'
        if onnx_model.node_name(node) in self.exclude:
            return 'excluded by the spec'
        weight = self.constants.get(node.input[1])
        if weight is None:
            return 'its weight is not a constant'
        if weight.data_type != onnx.TensorProto.FLOAT:
            return f'its weight is {onnx.TensorProto.DataType.Name(weight.data_type)}, not FLOAT'
        if node.op_type != 'Conv' and len(weight.dims) != 2:
            return 'its weight is not a matrix'
        if node.input[0] in self.constants:
            return 'its input is a constant'
        return ''

    def tensors_of_layer(self, node: onnx.NodeProto, flavor: str) -> list[str]:
        """Return the tensors whose scales one quantized layer cannot do without."""
        if flavor == 'tensorrt':
            return [node.input[0]]
        return [node.input[0], self.activated(node.output[0])]

    def heads(self, shapes: Mapping[str, tuple[int, ...]]) -> set[int]:
        """
        Return the ids of the layers that make the graph's outputs, if they are little work.

        In ONNX Runtime's flavor a layer in INT8 has its output quantized too. Of logits, small
        leads are lost so, and whole classes with them; and one small layer in float takes no
        longer. (TensorRT's layers give float anyway.)
        """
        found: set[int] = set()
        pending = list(self.outputs)
        while pending:
            node = self.producer.get(pending.pop())
            if node is None or id(node) in found:
                continue
            if node.op_type in onnx_model.WEIGHTED_OPS:
                found.add(id(node))
            elif node.op_type in _HEAD_OPS:
                pending.extend(node.input)
        work = {id(node): onnx_model.multiply_accumulates(node, shapes) for node in self.nodes
                if node.op_type in onnx_model.WEIGHTED_OPS}
        share = sum(work[node] for node in found) / max(sum(work.values()), 1)
        return found if share <= _MAX_HEAD_SHARE else set()

    def activated(self, name: str) -> str:
        """Return the output of the Relu or Clip that is the only consumer of `name`, else it."""
        consumers = self.consumers[name]
        if len(consumers) == 1 and name not in self.outputs and self._is_rectifier(consumers[0]):
            return consumers[0].output[0]
        return name

    def tensorrt_readers(self, layers: list[onnx.NodeProto]) -> dict[str, list[tuple[int, int]]]:
        """
        Return the tensors that the 'tensorrt' flavor quantizes.

        Each comes with the inputs (node index, input index) that read it quantized.
        """
        index = {id(node): i for i, node in enumerate(self.nodes)}
        readers = defaultdict(list)
        for node in layers:
            readers[node.input[0]].append((index[id(node)], 0))
        producers = {name: node for node in layers for name in node.output}
        for i, node in enumerate(self.nodes):
            if node.op_type == 'Add' and not any(name in self.constants for name in node.input):
                # TensorRT fuses the addition into the convolution that runs last; the other
                # input is the residual, which must be quantized for the sum to be one kernel.
                fused = [k for k in (0, 1) if node.input[k] in producers
                         and len(self.consumers[node.input[k]]) == 1]
                if fused:
                    last = max(fused, key=lambda k: index[id(producers[node.input[k]])])
                    readers[node.input[1 - last]].append((i, 1 - last))
        return readers

    def onnxruntime_tensors(self, layers: list[onnx.NodeProto]) -> set[str]:
        """Return the tensors that the 'onnxruntime' flavor quantizes."""
        tensors: set[str] = set()
        pending = [name for node in layers for name in self.tensors_of_layer(node, 'onnxruntime')]
        while pending:
            name = pending.pop()
            if name in tensors:
                continue
            tensors.add(name)
            node = self.producer.get(name)
            if node is not None and self._is_rectifier(node):
                node = self.producer.get(node.input[0])
            if node is not None and node.op_type in _TRANSPARENT_OPS:
                inputs = self._data_inputs(node)
                if not any(name in self.constants for name in inputs):
                    pending.extend(inputs)
        return tensors

    def shared_scales(self, scales: Mapping[str, float], tensors: Collection[str], flavor: str
                      ) -> dict[str, float]:
        """
        Return the scales with one value, the largest, for tensors whose codes are passed on.

        They are passed on to outputs that are among `tensors`, the ones to be quantized.

        Concat's inputs and output share it in both flavors (TensorRT would requantize each
        input); MaxPool's and Resize's in ONNX Runtime's, which drops the pair only then.
        """
        group = {name: name for name in scales}

        def root(name: str) -> str:
            while group[name] != name:
                name = group[name]
            return name

        copying = ('Concat',) + (_COPYING_OPS if flavor == 'onnxruntime' else ())
        for node in self.nodes:
            if node.op_type in copying and node.output[0] in tensors:
                members = [name for name in (*self._data_inputs(node), node.output[0])
                           if name in group]
                for name in members[1:]:
                    group[root(name)] = root(members[0])
        largest: dict[str, float] = defaultdict(float)
        for name, scale in scales.items():
            largest[root(name)] = max(largest[root(name)], scale)
        return {name: largest[root(name)] for name in scales}

    def _is_rectifier(self, node: onnx.NodeProto) -> bool:
        """Tell whether a node is a Relu, or a Clip from 0 or more."""
        if node.op_type == 'Relu':
            return True
        if node.op_type != 'Clip' or len(node.input) < 2 or node.input[1] not in self.constants:
            return False
        onnx = onnx_model.import_onnx()
        return bool((onnx.numpy_helper.to_array(self.constants[node.input[1]]) >= 0).all())

    def _rules_out_negative(self, node: onnx.NodeProto) -> bool:
        """Tell whether what a node gives cannot be negative; its inputs were looked at before."""
        if self._is_rectifier(node) or node.op_type in ('Sigmoid', 'Softmax', 'HardSigmoid'):
            return True
        if node.op_type == 'Resize' and any(
                attribute.name == 'mode' and attribute.s == b'cubic'
                for attribute in node.attribute):
            return False  # a cubic overshoots
        return (node.op_type in _TRANSPARENT_OPS
                and self.nonnegative.issuperset(self._data_inputs(node)))

    def _data_inputs(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs that carry activations (Resize has sizes beside them)."""
        return list(node.input) if node.op_type in ('Add', 'Concat') else [node.input[0]]


class _Writer:
    """Adds Q/DQ pairs to a prepared graph."""

    def __init__(self, graph: _Graph, scales: Mapping[str, float], flavor: str,
                 reduce_range: bool):
        self._onnx = onnx_model.import_onnx()
        self._graph = graph
        self._scales = scales
        self._unsigned = flavor == 'onnxruntime'
        self._weight_maximum = 63 if reduce_range else 127
        self._fresh = _FreshNames(graph.graph)
        self._initializers: list[onnx.TensorProto] = []
        self._input_scales: dict[str, float] = {}  # by dequantized tensor
        self._weight_nodes: list[onnx.NodeProto] = []
        self._pairs: dict[str, list[onnx.NodeProto]] = {}

    def insert_for_readers(self, readers: Mapping[str, list[tuple[int, int]]]) -> None:
        """Put a pair behind each tensor, for the given inputs (node index, input index) alone."""
        for name in sorted(readers):
            if name in self._scales:  # a residual may have none: it then stays in float
                target = self._fresh(f'{name}_dequantized')
                for node, i in readers[name]:
                    self._graph.nodes[node].input[i] = target
                self._pairs[name] = self._pair(name, name, target)

    def insert_for_all(self, tensors: Collection[str]) -> None:
        """Put a pair behind each tensor, for all that read it, the graph's output included."""
        for name in sorted(tensors):
            if name not in self._scales:
                continue
            source, target = name, name
            if name in self._graph.outputs and name in self._graph.producer:
                # It keeps its name, and with it all who read it: its producer writes elsewhere.
                source = self._fresh(f'{name}_float')
                outputs = self._graph.producer[name].output
                outputs[list(outputs).index(name)] = source
            else:
                target = self._fresh(f'{name}_dequantized')
                for node in self._graph.consumers[name]:
                    for i, read in enumerate(node.input):
                        if read == name:
                            node.input[i] = target
            self._pairs[source] = self._pair(name, source, target)

    def quantize_weights(self, layers: list[onnx.NodeProto]) -> None:
        """Replace the weights of the layers by int8 codes and a DequantizeLinear."""
        users: dict[tuple[str, bool], list[onnx.NodeProto]] = defaultdict(list)
        for node in layers:
            per_channel = node.op_type == 'Conv' or any(
                attribute.name == 'transB' and attribute.i for attribute in node.attribute)
            users[node.input[1], per_channel].append(node)
        for (name, per_channel), nodes in users.items():
            dequantized = self._quantize_weight(name, per_channel, nodes)
            for node in nodes:
                node.input[1] = dequantized

    def finish(self) -> onnx.ModelProto:
        """Return the model, its nodes in an order in which each follows what it reads."""
        graph = self._graph
        ordered = list(self._weight_nodes)
        for value in graph.graph.input:
            ordered += self._pairs.get(value.name, ())
        for node in graph.nodes:
            ordered.append(node)
            for name in node.output:
                ordered += self._pairs.get(name, ())
        model = graph.model
        copies = [self._onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del model.graph.node[:]
        model.graph.node.extend(copies)
        model.graph.initializer.extend(self._initializers)
        used = {name for node in model.graph.node for name in _reads(node)} | graph.outputs
        kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        del model.graph.value_info[:]
        self._onnx.checker.check_model(model)
        return model

    def _pair(self, name: str, source: str, target: str) -> list[onnx.NodeProto]:
        """Return the QuantizeLinear and DequantizeLinear from `source` to `target`."""
        scale, zero_point = self._scales[name], np.int8(0)
        if self._unsigned and name in self._graph.nonnegative:
            scale, zero_point = scale * 127 / 255, np.uint8(0)
        elif self._unsigned:
            zero_point = np.uint8(128)
        self._input_scales[target] = scale
        parameters = [self._constant(f'{name}_scale', np.float32(scale)),
                      self._constant(f'{name}_zero_point', zero_point)]
        codes = self._fresh(f'{name}_quantized')
        make = self._onnx.helper.make_node
        return [
            make('QuantizeLinear', [source, *parameters], [codes],
                 name=self._fresh(f'{name}_quantize')),
            make('DequantizeLinear', [codes, *parameters], [target],
                 name=self._fresh(f'{name}_dequantize')),
        ]

    def _quantize_weight(self, name: str, per_channel: bool, nodes: list[onnx.NodeProto]) -> str:
        """Return the name of the dequantized weight that the given layers share."""
        smallest = reduce(np.maximum, (self._smallest_scale(node, per_channel) for node in nodes))
        codes, scale = quantize_weight(self._finite(name), per_channel, self._weight_maximum,
                                       smallest)
        inputs = [self._constant(f'{name}_int8', codes),
                  self._constant(f'{name}_scale', scale),
                  self._constant(f'{name}_zero_point', np.zeros(scale.shape, np.int8))]
        output = self._fresh(f'{name}_dequantized')
        axis = {'axis': 0} if per_channel else {}
        self._weight_nodes.append(self._onnx.helper.make_node(
            'DequantizeLinear', inputs, [output], name=self._fresh(f'{name}_dequantize'), **axis))
        return output

    def _smallest_scale(self, node: onnx.NodeProto, per_channel: bool) -> np.ndarray | float:
        """
        Return the smallest scale, per channel or one, that a layer's weight may have.

        ONNX Runtime rounds the bias to int32 in steps of input scale x weight scale, and lets it
        overflow: a channel with hardly any weight would lose its bias.
        """
        data, bias = node.input[0], (*node.input, '')[2]
        if not self._unsigned or bias not in self._graph.constants:
            return 0.0
        scales = np.abs(self._finite(bias)) / (2.0 ** 30 * self._input_scales[data])
        return scales if per_channel else scales.max()

    def _finite(self, name: str) -> np.ndarray:
        """Return a constant; raises InputError if it holds nan or infinity."""
        value = self._onnx.numpy_helper.to_array(self._graph.constants[name])
        if not np.isfinite(value).all():
            raise InputError(f'weight {name!r} of the network holds nan or infinity; expected '
                             'finite numbers: export the network anew')
        return value

    def _constant(self, name: str, value: np.ndarray | np.generic) -> str:
        """Add an initializer and return its name."""
        name = self._fresh(name)
        self._initializers.append(self._onnx.numpy_helper.from_array(np.asarray(value), name))
        return name


class _FreshNames:
    """Makes names that nothing in a graph has."""

    def __init__(self, graph: onnx.GraphProto):
        self._taken = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
        for node in graph.node:
            self._taken.update((node.name, *node.output, *_reads(node)))

    def __call__(self, name: str) -> str:
        """Return the name, with underscores behind it if it is taken; it is taken from now on."""
        while name in self._taken:
            name += '_'
        self._taken.add(name)
        return name


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, those of the branches or the loop in it included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _reads(inner)


def quantize_weight(weight: np.ndarray, per_channel: bool = True, maximum: int = 127,
                    smallest: np.ndarray | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """
    Return int8 codes and their float32 scales: symmetric, scale = amax / maximum.

    :param weight: float32; with `per_channel` axis 0 is the output channel
    :param maximum: the largest code, 127 or less
    :param smallest: no scale is below this: one number, or one a channel
    :returns: codes of the weight's shape, and scales of shape (channels,) or (); 1 where the
        weights are 0, or so small that float32 holds no scale for them
    """
    axes = tuple(range(1, weight.ndim)) if per_channel else None
    scale = np.maximum(np.abs(weight).max(axis=axes) / maximum, smallest)
    scale = np.where(scale >= np.finfo(np.float32).tiny, scale, 1).astype(np.float32)
    divisor = scale.reshape(-1, *[1] * (weight.ndim - 1)) if per_channel else scale
    codes = np.clip(np.rint(weight / divisor), -maximum, maximum).astype(np.int8)
    return codes, scale


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """
    Return a copy that is ready to be quantized, with the tensor names of the network.

    It has a fit opset, each constant as an initializer, a name for each node (that of its first
    output where it had none), and BatchNormalization folded into convolutions.
    """
    onnx = onnx_model.import_onnx()
    opset = max((entry.version for entry in model.opset_import
                 if entry.domain in ('', 'ai.onnx')), default=0)
    if opset < 13:
        copy = _converted(model, opset)
    else:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
    constants = {tensor.name for tensor in copy.graph.initializer}
    for value in list(copy.graph.input):
        if value.name in constants:  # up to IR version 3, weights are inputs too
            copy.graph.input.remove(value)
    copy.ir_version = max(copy.ir_version, _IR_VERSION)
    _constants_to_initializers(copy.graph)
    for node in copy.graph.node:  # a runtime tells by its name what became of a layer
        node.name = onnx_model.node_name(node)
    _fold_batch_normalization(copy.graph)
    return copy


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return the network in an opset that has Q/DQ pairs; its tensors keep their names."""
    onnx = onnx_model.import_onnx()
    try:
        import onnx.version_converter
        copy = onnx.version_converter.convert_version(model, _OPSET)
        before, after = ({name for node in graph.node for name in node.output}
                         for graph in (model.graph, copy.graph))
        if lost := sorted(before - after):  # of Upsample, which becomes Resize
            raise ValueError(f'tensor {lost[0]!r}, which scales refer to, would be renamed')
        if opset < 11:
            _keep_old_resize(copy.graph)
    except Exception as error:
        raise InputError(
            f'the network has opset {opset}, Q/DQ needs 13 or later, and it cannot be '
            f'converted ({one_line(error)}): export it with opset {_OPSET}'
        ) from None
    return copy


def _keep_old_resize(graph: onnx.GraphProto) -> None:
    """
    Let each Resize sample as it did before opset 11: x = i / scale, and its floor for nearest.

    Upsample and Resize were defined so; the converter leaves out the attributes that say it, and
    their defaults from opset 11 on are others.
    """
    onnx = onnx_model.import_onnx()
    for node in graph.node:
        if node.op_type == 'Resize':
            given = {attribute.name for attribute in node.attribute}
            for name, value in (('coordinate_transformation_mode', 'asymmetric'),
                                ('nearest_mode', 'floor')):
                if name not in given:
                    node.attribute.append(onnx.helper.make_attribute(name, value))


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Replace Constant nodes and copies of constants: a weight is found in one place only."""
    onnx = onnx_model.import_onnx()
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        value = None
        if node.op_type == 'Constant' and node.attribute:
            value = _constant_value(node.attribute[0])
        elif node.op_type == 'Identity':  # some exporters share weights so
            value = constants.get(node.input[0])
        if value is None:
            kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        constants[tensor.name] = tensor
    del graph.node[:]
    graph.node.extend(kept)


def _constant_value(attribute: onnx.AttributeProto) -> onnx.TensorProto | None:
    """Return the tensor of a Constant node's attribute; None for strings and sparse ones."""
    onnx = onnx_model.import_onnx()
    if attribute.name == 'value':
        return attribute.t
    types = {'value_float': np.float32, 'value_floats': np.float32,
             'value_int': np.int64, 'value_ints': np.int64}
    if attribute.name not in types:
        return None
    value = onnx.helper.get_attribute_value(attribute)
    return onnx.numpy_helper.from_array(np.asarray(value, types[attribute.name]))


def _fold_batch_normalization(graph: onnx.GraphProto) -> None:
    """
    Fold each BatchNormalization into the convolution before it.

    w' = w * gamma / sqrt(var + epsilon); b' = (b - mean) * gamma / sqrt(var + epsilon) + beta.
    Codes must be those of the folded weight: neither runtime folds through a DequantizeLinear.
    """
    onnx = onnx_model.import_onnx()
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producer = {node.output[0]: node for node in graph.node}
    reads = defaultdict(int)
    for name in [name for node in graph.node for name in _reads(node)] + [
            value.name for value in graph.output]:
        reads[name] += 1
    fresh = _FreshNames(graph)
    kept = []
    for node in graph.node:
        convolution = producer.get(node.input[0]) if node.op_type == 'BatchNormalization' else None
        if (convolution is None or convolution.op_type != 'Conv' or reads[node.input[0]] != 1
                or any(a.name == 'training_mode' and a.i for a in node.attribute)
                or not all(name in constants for name in (*convolution.input[1:],
                                                          *node.input[1:]))):
            kept.append(node)
            continue
        gamma, beta, mean, variance = (
            onnx.numpy_helper.to_array(constants[name]) for name in node.input[1:])
        epsilon = next((a.f for a in node.attribute if a.name == 'epsilon'), 1e-5)
        factor = gamma / np.sqrt(variance + epsilon)
        weight = onnx.numpy_helper.to_array(constants[convolution.input[1]])
        bias = (onnx.numpy_helper.to_array(constants[convolution.input[2]])
                if len(convolution.input) > 2 else 0)
        folded = {
            fresh(f'{node.output[0]}_folded_weight'):
                weight * factor.reshape(-1, *[1] * (weight.ndim - 1)),
            fresh(f'{node.output[0]}_folded_bias'): (bias - mean) * factor + beta,
        }
        for name, value in folded.items():
            graph.initializer.append(
                onnx.numpy_helper.from_array(value.astype(weight.dtype), name))
        del convolution.input[1:]
        convolution.input.extend(folded)
        convolution.output[0] = node.output[0]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:]
    graph.node.extend(kept)
