# SPDX-License-Identifier: Apache-2.0
"""What is made of a network must not change unless its revision does: plans depend on it."""

import hashlib

import numpy as np
from onnx import helper, numpy_helper
from support.networks import Builder, fcn

from trt_segmentation.engines.tensorrt.graph import make_ready
from trt_segmentation.networks.float16 import to_float16
from trt_segmentation.networks.prepare import prepare
from trt_segmentation.networks.quantize import FLAVORS, GRAPH_REVISION, quantize

# Of revision: the digest below. A revision that vehicles may have seen is never changed.
DIGESTS = {
    1: '785fef307a83d87569643b04337597fc418c4a320d5ec299b378400439965ae5',
    2: '157e1258043f41e8e0bb4d87be07b5364c720b6212a0e82a0fabd3aa5fb15a9e',
    # Changed graphs of opset 18 and later only, of which there is none below.
    3: '157e1258043f41e8e0bb4d87be07b5364c720b6212a0e82a0fabd3aa5fb15a9e',
}


def tricky():
    """Return a network with what is quantized in a way of its own."""
    b = Builder((32, 64), seed=5)
    x = b.conv('image', 'stem', 3, 8, strides=[2, 2], bias=False)
    parameters = [b.constant(f'bn_{name}', np.linspace(low, 1, 8, dtype=np.float32))
                  for name, low in (('gamma', .5), ('beta', -1), ('mean', -1), ('var', .5))]
    x = skip = b.node('Relu', [b.node('BatchNormalization', [x, *parameters], 'bn')], 'relu')
    x = b.conv_relu(x, 'depthwise', 8, 8, group=8)
    x = b.node('Add', [b.conv(x, 'branch', 8, 8, kernel=1), skip], 'sum')
    pooled = b.node('AveragePool', [x], 'pooled', kernel_shape=[2, 2], strides=[2, 2])
    up = b.node('Resize', [pooled, '', b.constant('scales', np.float32([1, 1, 2, 2]))], 'up',
                mode='linear')
    x = b.node('Concat', [x, up], 'both', axis=1)
    b.conv(x, 'logits', 16, 19, kernel=1)
    return b.model('logits', shape=['N', 19, 16, 32])


def computed():
    """Return a network whose weight is computed in the graph."""
    b = Builder((32, 64), seed=6)
    direction = b.constant('v', np.linspace(-1, 1, 216, dtype=np.float32).reshape(8, 3, 3, 3))
    norm = b.node('ReduceL2', [direction], 'norm', axes=[1, 2, 3], keepdims=1)
    weight = b.node('Div', [direction, norm], 'weight')
    x = b.node('Relu', [b.node('Conv', ['image', weight], 'stem', pads=[1] * 4)], 'relu')
    b.conv(x, 'logits', 8, 19, kernel=1)
    return b.model('logits', shape=['N', 19, 32, 64])


def written_out(model):
    """Yield all of a graph that decides what it computes, whatever wrote the file."""
    for node in model.graph.node:
        attributes = sorted((a.name, str(helper.get_attribute_value(a))) for a in node.attribute)
        yield f'{node.op_type} {list(node.input)} {list(node.output)} {attributes}'
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        value = numpy_helper.to_array(tensor)
        # Rounded: NumPy's versions differ in the last bit of what they fold.
        if value.dtype.kind == 'f':
            value = np.array([f'{x:.4g}' for x in value.ravel().tolist()])
        yield f'{tensor.name} {value.dtype.kind} {list(tensor.dims)} {value.ravel().tolist()}'
    yield str([(entry.domain, entry.version) for entry in model.opset_import])


def test_a_change_of_the_graph_is_a_change_of_its_revision():
    digest = hashlib.sha256()
    for network in (fcn(), tricky(), computed()):
        shapes = {'image': (1, 3, 32, 64)}
        prepared = prepare(network)
        tensors = ['image', *(name for node in prepared.graph.node for name in node.output)]
        scales = {name: 0.01 + i / 1000 for i, name in enumerate(tensors)}
        graphs = [quantize(network, scales, flavor, input_shapes=shapes).model
                  for flavor in FLAVORS]
        for graph in (*graphs, to_float16(graphs[0]), make_ready(prepared, shapes)):
            for line in written_out(graph):
                digest.update(line.encode())
    assert digest.hexdigest() == DIGESTS.get(GRAPH_REVISION), (
        'What is made of a network has changed. Raise GRAPH_REVISION, so that '
        'vehicles build their engines anew, and put the new digest into DIGESTS.')
