# SPDX-License-Identifier: Apache-2.0
"""
FP16 by types in the graph, for runtimes that are strongly typed.

TensorRT from 11 on, and TensorRT-RTX, have no FP16 flag: a tensor has the type that the graph
gives it. Here every float32 tensor becomes float16 except what Q/DQ pairs need: their scales stay
float32 (float16 loses scales below 6e-5) and so does what they quantize, between two Casts. All of
it is valid ONNX of the opset that the graph has, so ONNX Runtime can check the result.
"""

from __future__ import annotations

import numpy as np

from trt_segmentation.errors import InputError
from trt_segmentation.networks.graph import bodies, Graph, node_name, set_constants, set_nodes
from trt_segmentation.networks.model import onnx

# Inputs (by index) that ONNX keeps float32 whatever the type of the data.
_FLOAT_INPUTS = {
    'QuantizeLinear': (0, 1), 'DequantizeLinear': (1,),
    'Resize': (1, 2), 'Upsample': (1,),
}
_LARGEST = float(np.finfo(np.float16).max)


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """
    Return the network with float16 tensors, its inputs and outputs too.

    :param model: float32, prepared as `prepare.prepare` does it, with or without Q/DQ pairs;
        it is not changed
    :raises InputError: for a weight that float16 cannot hold, a graph with branches or loops, or
        an operator that has no float16
    """
    return _Converter(model).run()


class _Converter:
    """Rewrites one graph."""

    def __init__(self, model: onnx.ModelProto):
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._graph = self._model.graph
        self._weights = Graph(self._model).constants
        self._half: dict[str, onnx.TensorProto] = {}
        self._float: dict[str, onnx.TensorProto] = {}
        self._casts: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []

    def run(self) -> onnx.ModelProto:
        """Return the converted model."""
        for value in (*self._graph.input, *self._graph.output):
            tensor = value.type.tensor_type
            if tensor.elem_type == onnx.TensorProto.FLOAT:
                tensor.elem_type = onnx.TensorProto.FLOAT16
        for node in list(self._graph.node):
            if any(bodies(node)):
                raise InputError(f'node {node_name(node)!r} ({node.op_type}): a graph '
                                 'with branches or loops cannot be made FP16; expected a plain '
                                 'feed-forward network')
            self._convert(node)
        set_nodes(self._graph, self._nodes)
        others = [tensor for tensor in self._weights.values()
                  if tensor.data_type != onnx.TensorProto.FLOAT]
        set_constants(self._graph, [*others, *self._half.values(), *self._float.values()])
        del self._graph.value_info[:]
        try:
            onnx.checker.check_model(self._model, full_check=True)
        except Exception as error:  # its exceptions share no base class of their own
            raise InputError(f'the network cannot be made FP16: {str(error).splitlines()[0]}; '
                             'build it with --precision fp32') from None
        return self._model

    def _convert(self, node: onnx.NodeProto) -> None:
        """Convert one node; casts around it come before and after."""
        float_inputs = _FLOAT_INPUTS.get(node.op_type, ())
        for i, name in enumerate(node.input):
            weight = self._weights.get(name)
            if weight is not None and weight.data_type == onnx.TensorProto.FLOAT:
                node.input[i] = self._weight(weight, i in float_inputs)
            elif name and weight is None and i in float_inputs:
                node.input[i] = self._cast_to_float(name)
        if node.op_type == 'DequantizeLinear':
            name = node.output[0]
            node.output[0] = f'{name}_float'
            self._nodes += [node, self._cast(f'{name}_float', name, 'FLOAT16')]
            return
        for attribute in node.attribute:
            self._convert_attribute(node.op_type, attribute)
        self._nodes.append(node)

    def _convert_attribute(self, op_type: str, attribute: onnx.AttributeProto) -> None:
        """Replace a float32 that an attribute asks for or holds."""
        types = onnx.TensorProto
        if (op_type, attribute.name) in (('Cast', 'to'), ('EyeLike', 'dtype')):
            if attribute.i == types.FLOAT:
                attribute.i = types.FLOAT16
        elif op_type in ('ConstantOfShape', 'Constant') and attribute.name == 'value':
            if attribute.t.data_type == types.FLOAT:
                attribute.t.CopyFrom(self._to_half(attribute.t))

    def _weight(self, tensor: onnx.TensorProto, stays_float: bool) -> str:
        """Return the name of the weight in the type that its reader needs."""
        if stays_float:
            name = f'{tensor.name}_float32'
            if tensor.name not in self._float:
                copy = onnx.TensorProto.FromString(tensor.SerializeToString())
                copy.name = name
                self._float[tensor.name] = copy
            return name
        if tensor.name not in self._half:
            self._half[tensor.name] = self._to_half(tensor)
        return str(tensor.name)

    def _to_half(self, tensor: onnx.TensorProto) -> onnx.TensorProto:
        """Return a tensor in float16; raises InputError if it does not fit."""
        values = onnx.numpy_helper.to_array(tensor)
        largest = float(np.abs(values).max(initial=0))
        if not largest <= _LARGEST:
            raise InputError(f'weight {tensor.name!r}: its largest magnitude {largest:g} is '
                             f'beyond FP16 ({_LARGEST:g}); build with --precision fp32')
        return onnx.numpy_helper.from_array(values.astype(np.float16), tensor.name)

    def _cast_to_float(self, name: str) -> str:
        """Return the name of a tensor's float32 copy, made at its first use."""
        if name not in self._casts:
            self._casts[name] = f'{name}_to_float'
            self._nodes.append(self._cast(name, self._casts[name], 'FLOAT'))
        return self._casts[name]

    def _cast(self, source: str, target: str, type_name: str) -> onnx.NodeProto:
        """Return a Cast from a tensor to another."""
        return onnx.helper.make_node(
            'Cast', [source], [target], name=f'{target}_cast',
            to=getattr(onnx.TensorProto, type_name))
