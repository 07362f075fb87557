# SPDX-License-Identifier: Apache-2.0
"""Where quantization goes in a network: which layers can be INT8, and which tensors it takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

import numpy as np

from trt_segmentation.errors import InputError
from trt_segmentation.networks.graph import attribute, Graph, node_name
from trt_segmentation.networks.layers import int8_share, Layer
from trt_segmentation.networks.model import onnx, Shape
from trt_segmentation.networks.prepare import prepare
from trt_segmentation.networks.shapes import infer_shapes
from trt_segmentation.networks.work import does_work, multiply_accumulates, uncountable

_QUANTIZED_OPS = ('Conv', 'Gemm', 'MatMul')
# ONNX Runtime has integer kernels for these, so codes can flow through them from layer to layer.
_TRANSPARENT_OPS = ('Add', 'AveragePool', 'Concat', 'GlobalAveragePool', 'MaxPool', 'Resize')
# These pass codes on as they are, so one scale must serve input and output.
_COPYING_OPS = ('MaxPool', 'Resize')
# What may lie between the layers that make logits and the graph's output.
_HEAD_OPS = ('Add', 'ArgMax', 'Cast', 'Identity', 'Log', 'LogSoftmax', 'Max', 'Mul', 'Reshape',
             'Resize', 'Sigmoid', 'Softmax', 'Squeeze', 'Sub', 'Transpose')
_MAX_HEAD_SHARE = 0.03
INTEGER_OPS = ('ConvInteger', 'DequantizeLinear', 'DynamicQuantizeLinear', 'MatMulInteger',
                'QLinearConv', 'QLinearMatMul', 'QuantizeLinear')


def quantizable_share(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]
                      ) -> float | None:
    """
    Return the share 0..1 of the multiply-accumulates that can be in INT8 on the vehicle.

    :returns: None if the work of a layer cannot be counted
    :raises InputError: if the network is quantized, or a weight is not finite
    """
    placement = Placement(model, ())
    for node in placement.graph.nodes:
        if does_work(node) and not placement.float_reason(node):
            placement.finite(node.input[1])
    shapes = infer_shapes(placement.graph.model, input_shapes)
    return int8_share(
        Layer(node.name, node.op_type, multiply_accumulates(node, shapes),
              'float' if placement.float_reason(node) else 'int8')
        for node in placement.graph.nodes if does_work(node))


def quantized_tensors(model: onnx.ModelProto, exclude: Collection[str] = ()) -> set[str]:
    """
    Return the names of the activations whose scales either flavor needs.

    :param model: the float network
    :param exclude: names of nodes that stay in float (a node without a name: its first output)
    :raises InputError: if `exclude` names a node that is not there, or the network is quantized
    """
    placement = Placement(model, exclude)
    layers = [node for node in placement.graph.nodes if not placement.float_reason(node)]
    return set(placement.tensorrt_readers(layers)) | placement.onnxruntime_tensors(layers)


class Placement:
    """The float network made ready, and what of it is quantized in which flavor."""

    def __init__(self, model: onnx.ModelProto, exclude: Collection[str]):
        self.graph = Graph(prepare(model))
        self.exclude = set(exclude)
        names = {node_name(node) for node in self.graph.nodes}
        if unknown := sorted(self.exclude - names):
            raise InputError(f'calibration.exclude: the graph has no node {unknown[0]!r}')
        if integer := [node for node in self.graph.nodes if node.op_type in INTEGER_OPS]:
            raise InputError(
                f'the network is quantized already (node {node_name(integer[0])!r} is '
                f'a {integer[0].op_type}); expected the floating-point network'
            )
        self.nonnegative: set[str] = set()  # tensors whose operator rules negative values out
        for node in self.graph.nodes:
            if self._rules_out_negative(node):
                self.nonnegative.update(node.output)

    def float_reason(self, node: onnx.NodeProto) -> str:
        """Return why a node cannot be quantized, or '' if it can."""
        if node.op_type == 'ConvTranspose':
            return 'transposed convolutions stay in float'
        if reason := uncountable(node):
            return reason
        if node.op_type not in _QUANTIZED_OPS:
            return f'{node.op_type} layers stay in float'
        if node_name(node) in self.exclude:
            return 'excluded by the spec'
        weight = self.graph.constants.get(node.input[1])
        if weight is None and node.input[0] in self.graph.constants:
            return 'its constant is the first factor, and only the second can be a weight'
        if weight is None:
            return 'its weight is not a constant'
        if weight.data_type != onnx.TensorProto.FLOAT:
            return f'its weight is {onnx.TensorProto.DataType.Name(weight.data_type)}, not FLOAT'
        if node.op_type != 'Conv' and len(weight.dims) != 2:
            return 'its weight is not a matrix'
        if node.input[0] in self.graph.constants:
            return 'its input is a constant'
        return ''

    def finite(self, name: str) -> np.ndarray:
        """Return a constant; raises InputError if it holds nan or infinity."""
        value = self.graph.array(name)
        if not np.isfinite(value).all():
            raise InputError(f'weight {name!r} of the network holds nan or infinity; expected '
                             'finite numbers: export the network anew')
        return value

    def tensors_of_layer(self, node: onnx.NodeProto, flavor: str) -> list[str]:
        """Return the tensors whose scales one quantized layer cannot do without."""
        if flavor == 'tensorrt':
            return [node.input[0]]
        return [node.input[0], self.activated(node.output[0])]

    def heads(self, shapes: Mapping[str, Shape]) -> set[int]:
        """
        Return the ids of the layers that make the graph's outputs, if they are little work.

        In ONNX Runtime's flavor a layer in INT8 has its output quantized too. Of logits, small
        leads are lost so, and whole classes with them; and one small layer in float takes no
        longer. (TensorRT's layers give float anyway.)
        """
        found: set[int] = set()
        pending = list(self.graph.outputs)
        while pending:
            node = self.graph.producer.get(pending.pop())
            if node is None or id(node) in found:
                continue
            if does_work(node):
                found.add(id(node))
            elif node.op_type in _HEAD_OPS:
                pending.extend(node.input)
        work = {id(node): multiply_accumulates(node, shapes) or 0 for node in self.graph.nodes}
        share = sum(work[node] for node in found) / max(sum(work.values()), 1)
        return found if share <= _MAX_HEAD_SHARE else set()

    def activated(self, name: str) -> str:
        """Return the output of the Relu or Clip that is the only consumer of `name`, else it."""
        readers = self.graph.readers[name]
        if (len(readers) == 1 and name not in self.graph.outputs
                and self.graph.is_rectifier(readers[0])):
            name = readers[0].output[0]
        return name

    def tensorrt_readers(self, layers: list[onnx.NodeProto]) -> dict[str, list[tuple[int, int]]]:
        """
        Return the tensors that the 'tensorrt' flavor quantizes.

        Each comes with the inputs (node index, input index) that read it quantized.
        """
        index = {id(node): i for i, node in enumerate(self.graph.nodes)}
        readers: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for node in layers:
            readers[node.input[0]].append((index[id(node)], 0))
        producers = {name: node for node in layers for name in node.output}
        for i, node in enumerate(self.graph.nodes):
            if node.op_type == 'Add' and not any(name in self.graph.constants
                                                 for name in node.input):
                # TensorRT fuses the addition into the convolution that runs last; the other
                # input is the residual, which must be quantized for the sum to be one kernel.
                fused = [k for k in (0, 1) if node.input[k] in producers
                         and len(self.graph.readers[node.input[k]]) == 1]
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
            node = self.graph.producer.get(name)
            if node is not None and self.graph.is_rectifier(node):
                node = self.graph.producer.get(node.input[0])
            if node is not None and node.op_type in _TRANSPARENT_OPS:
                inputs = self._data_inputs(node)
                if not any(name in self.graph.constants for name in inputs):
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
        for node in self.graph.nodes:
            if node.op_type in copying and node.output[0] in tensors:
                members = [name for name in (*self._data_inputs(node), node.output[0])
                           if name in group]
                for name in members[1:]:
                    group[root(name)] = root(members[0])
        largest: dict[str, float] = defaultdict(float)
        for name, scale in scales.items():
            largest[root(name)] = max(largest[root(name)], scale)
        return {name: largest[root(name)] for name in scales}

    def _rules_out_negative(self, node: onnx.NodeProto) -> bool:
        """Tell whether what a node gives cannot be negative; its inputs were looked at before."""
        if self.graph.rules_out_negative(node):
            return True
        if node.op_type == 'Resize' and attribute(node, 'mode') == b'cubic':
            return False  # a cubic overshoots
        return (node.op_type in _TRANSPARENT_OPS
                and self.nonnegative.issuperset(self._data_inputs(node)))

    def _data_inputs(self, node: onnx.NodeProto) -> list[str]:
        """Return the inputs that carry activations (Resize has sizes beside them)."""
        return list(node.input) if node.op_type in ('Add', 'Concat') else [node.input[0]]
