# SPDX-License-Identifier: Apache-2.0
"""The one view of a graph: who reads what, which names are free, how much work a layer is."""

import numpy as np
import onnx
from onnx import helper, TensorProto
import pytest
from support.networks import Builder, fcn, infer_all

from trt_segmentation.errors import InputError
from trt_segmentation.networks.graph import Graph, reads
from trt_segmentation.networks.prepare import prepare
from trt_segmentation.networks.shapes import infer_shapes, tensor_types
from trt_segmentation.networks.work import multiply_accumulates
from trt_segmentation.system.libraries import Library


def branch(name, *nodes, output):
    return helper.make_graph(list(nodes), name, [], [
        helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


def test_what_branches_read_is_read_by_their_node_and_what_is_theirs_is_not():
    inner = helper.make_node('If', ['flag'], ['deep'],
                             then_branch=branch('a', output='far'),
                             else_branch=branch('b', helper.make_node('Neg', ['own'], ['low']),
                                                output='low'))
    node = helper.make_node(
        'If', ['flag'], ['result'],
        then_branch=branch('c', helper.make_node('Relu', ['near'], ['own']), inner,
                           output='deep'),
        else_branch=branch('d', output='plain'))
    assert sorted(set(reads(node))) == ['far', 'flag', 'near', 'plain']


def test_readers_are_counted_once_for_each_time_they_read():
    b = Builder()
    x = b.conv('image', 'a', 3, 4)
    b.node('Add', [x, x], 'twice')
    graph = Graph(b.model('twice'))
    assert [node.name for node in graph.readers['a']] == ['twice_node', 'twice_node']
    assert graph.producer['twice'].op_type == 'Add'
    assert set(graph.inputs) == {'image'} and graph.outputs == {'twice'}


def test_a_fresh_name_is_that_of_no_node_tensor_or_branch():
    b = Builder()
    flag = b.node('Greater', [b.node('ReduceSum', ['image'], 'sum', keepdims=0),
                              b.constant('zero', np.float32(0))], 'flag')
    b.node('If', [flag], 'out',
           then_branch=branch('a', helper.make_node('Relu', ['image'], ['hidden'], name='inner'),
                              output='hidden'),
           else_branch=branch('b', helper.make_node('Neg', ['image'], ['other']),
                              output='other'))
    graph = Graph(b.model('out', shape=['N', 3, 32, 64]))
    for taken in ('image', 'flag', 'flag_node', 'zero', 'hidden', 'inner', 'other'):
        assert graph.fresh(taken) == f'{taken}_'
    assert graph.fresh('free') == 'free' and graph.fresh('free') == 'free_'


@pytest.mark.parametrize('size', [(32, 64), (64, 32)])
def test_shapes_are_those_of_a_run(size):
    model = fcn()  # of another size; what the file says of sizes is stale then
    for value in model.graph.input[0], model.graph.output[0]:
        for axis, name in ((2, 'h'), (3, 'w')):
            value.type.tensor_type.shape.dim[axis].dim_param = f'{value.name}_{name}'
    values = infer_all(model, np.zeros((1, 3, *size), np.float32))
    shapes = infer_shapes(model, {'image': (1, 3, *size)})
    for name, value in values.items():
        assert shapes[name] == value.shape, name
    types = tensor_types(model, {'image': (1, 3, *size)})
    assert types['relu1_conv_weight'].elem_type == TensorProto.FLOAT
    layer = next(node for node in model.graph.node if node.name == 'score3_node')
    assert multiply_accumulates(layer, shapes) == size[0] // 8 * size[1] // 8 * 19 * 16


def test_a_convolution_whose_output_is_wanted_keeps_its_batch_normalization():
    """What is an output of the network has to stay, whoever else reads it."""
    b = Builder()
    x = b.conv('image', 'conv', 3, 4)
    names = [b.constant(name, np.full(4, value, np.float32)) for name, value in (
        ('gamma', 2), ('beta', 1), ('mean', 0), ('var', 1))]
    b.node('BatchNormalization', [x, *names], 'normal')
    model = b.model('normal')
    model.graph.output.append(helper.make_tensor_value_info(
        'conv', TensorProto.FLOAT, ['N', 4, 32, 64]))
    onnx.checker.check_model(prepare(model))
    assert 'BatchNormalization' in {node.op_type for node in prepare(model).graph.node}


def test_a_library_that_is_missing_says_what_to_install():
    missing = Library('no_such_module', 'Flying', 'wings')
    with pytest.raises(InputError, match=r"Flying needs.*'no_such_module'.*\[wings\]"):
        missing.fly  # noqa: B018
    assert Library('json', 'x', 'y', ('tool',)).tool.__name__ == 'json.tool'
