# SPDX-License-Identifier: Apache-2.0
"""
Batches: letting a network that was exported for one image take several at once.

Most exporters write the batch size of the example into the file: into the shapes of inputs and
outputs, and into the constants that Reshape and Resize take their sizes from.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trt_segmentation.errors import InputError
from trt_segmentation.networks.graph import attribute, Graph, node_name
from trt_segmentation.networks.model import onnx, Shape, sizes
from trt_segmentation.networks.prepare import constants_to_initializers
from trt_segmentation.networks.session import Endless, FIRST_RUN_S, Session
from trt_segmentation.networks.shapes import tensor_types

_BATCH = 'batch'
_CLOSE = 1e-3  # of the largest value: float arithmetic in another order, nothing more


def with_free_batch(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]
                    ) -> onnx.ModelProto:
    """
    Return a copy that takes any number of images at once; one that does already stays as it is.

    :param input_shapes: of one image's input tensor, by name; one entry
    :raises InputError: naming the node that keeps it from that
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants_to_initializers(copy.graph)
    shapes = {name: sizes(kind) for name, kind in tensor_types(copy, input_shapes).items()
              if kind.HasField('shape')}
    graph = Graph(copy)
    for node in copy.graph.node:
        if node.op_type == 'Reshape':
            _free_reshape(graph, node, shapes)
        elif node.op_type == 'Resize':
            _free_resize(graph, node, shapes)
    for value in (*copy.graph.input, *copy.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and (value.name in input_shapes
                     or (value.name in graph.outputs and dims[0].dim_value == 1)):
            dims[0].dim_param = _BATCH
    del copy.graph.value_info[:]  # they have the old size
    return copy


def obstacle(model: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]) -> str:
    """
    Return why a network cannot take several images at once, or ''.

    Two random images are run together and each alone; their outputs must be the same but for the
    rounding of float arithmetic.

    :param input_shapes: as `with_free_batch` takes them
    :raises Endless: if a run does not end, which says nothing of batches
    """
    (shape,) = input_shapes.values()
    rng = np.random.default_rng(0)
    images = rng.uniform(-128, 128, (2, *shape[1:])).astype(np.float32)
    try:
        free = Session(with_free_batch(model, input_shapes).SerializeToString())
        together = free.infer(images, 2 * FIRST_RUN_S)
        alone = Session(model.SerializeToString())
        for i in range(2):
            for name, expected in alone.infer(images[i:i + 1], FIRST_RUN_S).items():
                found = together[name]
                if found.shape != (2, *expected.shape[1:]):
                    return (f'output {name!r} has the shape {found.shape} for two images and '
                            f'{expected.shape} for one')
                # What is not finite alone must not be so together either.
                if not np.allclose(found[i], expected[0], rtol=0, equal_nan=True,
                                   atol=_CLOSE * np.abs(expected).max()):
                    return f'output {name!r} is another one when two images are run together'
    except Endless:
        raise
    except InputError as error:
        return str(error)
    return ''


def _free_reshape(graph: Graph, node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> None:
    """Let a Reshape to (1, ...) of a batch of one take its first size from the input."""
    if node.input[1] not in graph.constants:
        return
    target = graph.array(node.input[1])
    if not target.size or target[0] != 1 or (*shapes.get(node.input[0], ()), None)[0] != 1:
        return
    if attribute(node, 'allowzero'):  # 0 is a size then, so nothing stands for the input's
        raise InputError(f'node {node_name(node)!r} (Reshape): its first size is fixed at 1')
    node.input[1] = graph.add_constant(f'{node_name(node)}_free',
                                       np.array([0, *target[1:]], np.int64))


def _free_resize(graph: Graph, node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> None:
    """
    Let a Resize to fixed sizes take any batch: by scales, which are what it computes of them.

    A scale is size / old size in float32, and the new size its product with the old one, rounded
    down: where that is another one, the network stays as it is.
    """
    if len(node.input) < 4 or node.input[3] not in graph.constants:
        return
    where = f'node {node_name(node)!r} (Resize)'
    axes = list(attribute(node, 'axes', []))
    wanted, old = graph.array(node.input[3]), shapes.get(node.input[0], ())
    if axes and 0 not in [axis % len(old) if old else axis for axis in axes]:
        return
    if attribute(node, 'keep_aspect_ratio_policy', b'stretch') != b'stretch':
        raise InputError(f'{where}: its sizes are fixed, with a batch of 1')
    if not old or None in old:
        raise InputError(f'{where}: its sizes are fixed, and those of its input not known')
    before = np.array([old[axis] for axis in axes] if axes else old, np.float32)
    scales = wanted.astype(np.float32) / before
    if not np.array_equal(np.floor(scales * before), wanted):
        raise InputError(f'{where}: no scale leads from {before.astype(int).tolist()} to '
                         f'{wanted.tolist()}, so its sizes stay fixed')
    node.input[2] = graph.add_constant(f'{node_name(node)}_free', scales)
    del node.input[3:]
