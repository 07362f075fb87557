# SPDX-License-Identifier: Apache-2.0
"""A graph of ONNX that grows layer by layer, with the shapes of all its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from trt_segmentation.networks.caffe.files import Message
from trt_segmentation.networks.model import onnx

Shape = tuple[int, ...]
_LARGEST = 1 << 24  # of one side


class Stop(Exception):
    """Tell why a layer cannot be converted."""


class Builder:
    """A graph that grows by nodes whose shapes are known."""

    def __init__(self, source: str, shape: Shape):
        """Begin with the input."""
        self.source = source
        self.shapes: dict[str, Shape] = {source: shape}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, op: str, inputs: Sequence[str], outputs: str | Sequence[str],
             shape: Shape | Sequence[Shape], **attributes: Any) -> None:
        """Add a node; `shape` is that of its output, or there is one for each."""
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        shapes = cast('list[Shape]', [shape] if isinstance(outputs, str) else list(shape))
        for sizes in shapes:
            if min(sizes, default=1) < 1 or max(sizes, default=1) > _LARGEST:
                raise Stop(f'its output would have the shape {"x".join(map(str, sizes))}')
        self.nodes.append(onnx.helper.make_node(op, list(inputs), names, name=names[0],
                                                **attributes))
        self.shapes.update(zip(names, shapes))

    def constant(self, name: str, value: np.ndarray | np.generic | Sequence[int]) -> str:
        """Add a constant; return its name, which no blob has."""
        name = ':'.join(name.rsplit('/', 1))
        self.constants[name] = (np.asarray(value) if not isinstance(value, list)
                                else np.array(value, np.int64))
        return name

    def model(self, outputs: Sequence[str], opset: int, ir_version: int) -> onnx.ModelProto:
        """Return what was built."""
        make = onnx.helper.make_tensor_value_info
        kinds = {node.output[0]: onnx.TensorProto.INT64 for node in self.nodes
                 if node.op_type == 'ArgMax'}
        model: onnx.ModelProto = onnx.helper.make_model(
            onnx.helper.make_graph(
                self.nodes, 'caffe',
                [make(self.source, onnx.TensorProto.FLOAT, self.shapes[self.source])],
                [make(name, kinds.get(name, onnx.TensorProto.FLOAT), self.shapes[name])
                 for name in outputs],
                [onnx.numpy_helper.from_array(value, name)
                 for name, value in self.constants.items()]),
            opset_imports=[onnx.helper.make_opsetid('', opset)], ir_version=ir_version)
        return model


Layer = Callable[[Builder, Message, list[str], list[str], list[np.ndarray], str], None]
