# SPDX-License-Identifier: Apache-2.0
"""Networks of one image made to take several: against each image alone, in ONNX's reference."""

import re

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
import pytest
from support.networks import Builder

from trt_segmentation.errors import InputError
from trt_segmentation.networks import batch
from trt_segmentation.networks.batch import obstacle, with_free_batch
from trt_segmentation.networks.session import Endless

SIZE = (8, 16)
SHAPES = {'image': (1, 3, *SIZE)}
IMAGES = np.random.default_rng(0).normal(0, 1, (3, 3, *SIZE)).astype(np.float32)


def fixed(network, opset=17, size=SIZE):
    """Return a network of one image, as exporters write it: its batch stands everywhere."""
    builder = Builder(size)
    builder.input.type.tensor_type.shape.dim[0].dim_value = 1
    model = builder.model(network(builder), opset=opset, shape=())
    model.graph.output[0].type.tensor_type.ClearField('shape')
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def reshaped(b):
    x = b.node('Reshape', ['image', b.constant('flat', np.array([1, 3, -1]))], 'flattened')
    x = b.node('Relu', [x], 'relu')
    return b.node('Reshape', [x, b.constant('back', np.array([1, 3, *SIZE]))], 'logits')


def constant_node(b):
    """The sizes are in a node, as PyTorch writes them."""
    value = onnx.numpy_helper.from_array(np.array([1, 3, 4, 32]))
    b.nodes.append(onnx.helper.make_node('Constant', [], ['sizes'], value=value))
    return b.node('Reshape', ['image', 'sizes'], 'logits')


def resized(*sizes, **attributes):
    def network(b):
        x = b.conv('image', 'conv', 3, 4)
        return b.node('Resize', [x, '', '', b.constant('sizes', np.array([1, 4, *sizes]))],
                      'logits', **{'mode': 'linear', **attributes})
    return network


def channels_shuffled(b):
    x = b.conv('image', 'conv', 3, 4)
    x = b.node('Reshape', [x, b.constant('groups', np.array([1, 2, 2, *SIZE]))], 'grouped')
    x = b.node('Transpose', [x], 'transposed', perm=[0, 2, 1, 3, 4])
    return b.node('Reshape', [x, b.constant('flat', np.array([1, 4, *SIZE]))], 'logits')


@pytest.mark.parametrize('network', [
    reshaped, constant_node, channels_shuffled, resized(16, 32), resized(5, 7),
    resized(24, 48, mode='nearest', coordinate_transformation_mode='asymmetric'),
    resized(15, 31, coordinate_transformation_mode='align_corners'),
], ids=lambda network: network.__name__)
def test_each_image_of_a_batch_gets_what_it_gets_alone(network):
    model = fixed(network)
    free = with_free_batch(model, SHAPES)
    onnx.checker.check_model(free, full_check=True)
    for value in (*free.graph.input, *free.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param
    together, = ReferenceEvaluator(free).run(None, {'image': IMAGES})
    for image, found in zip(IMAGES, together):
        alone, = ReferenceEvaluator(model).run(None, {'image': image[None]})
        assert np.allclose(found, alone[0], rtol=0, atol=1e-5)
    assert obstacle(model, SHAPES) == ''


def test_a_network_that_takes_any_batch_keeps_its_nodes():
    builder = Builder(SIZE)
    model = builder.model(builder.conv('image', 'logits', 3, 4))
    assert with_free_batch(model, SHAPES).graph.node == model.graph.node
    assert obstacle(model, SHAPES) == ''


def test_the_model_that_was_given_stays_as_it_is():
    model = fixed(resized(16, 32))
    before = model.SerializeToString()
    with_free_batch(model, SHAPES)
    assert model.SerializeToString() == before


def test_sizes_that_no_scale_leads_to_stay_fixed():
    """Where float32(new / old) * old rounds to less than new; a pair is looked for here."""
    pairs = [(old, new) for old in range(3, 90) for new in range(3, 90)
             if np.floor(np.float32(new) / np.float32(old) * np.float32(old)) != new]
    assert pairs
    old, new = pairs[0]
    model = fixed(resized(new, new), size=(old, old))
    with pytest.raises(InputError, match='Resize.*no scale leads from'):
        with_free_batch(model, {'image': (1, 3, old, old)})
    assert 'no scale leads' in obstacle(model, {'image': (1, 3, old, old)})


def across_images(b):
    """What an image gets depends on the others: no graph of it takes batches."""
    x = b.node('ReduceMax', ['image'], 'most', axes=[0], keepdims=1)
    return b.node('Sub', ['image', x], 'logits')


def summed(b):
    return b.node('ReduceSum', ['image', b.constant('axes', np.array([0]))], 'logits', keepdims=1)


@pytest.mark.parametrize(('network', 'part'), [
    (across_images, "output 'logits' is another one when two images are run together"),
    (summed, r"output 'logits' has the shape \(1, 3, 8, 16\) for two images"),
])
def test_a_network_that_mixes_images_is_found_by_running_it(network, part):
    assert re.search(part, obstacle(fixed(network), SHAPES))


def test_a_run_that_does_not_end_is_no_property_of_batches(monkeypatch):
    def infer(self, tensor, limit_s):
        raise Endless('the network has not ended')
    monkeypatch.setattr(batch.Session, 'infer', infer)
    with pytest.raises(Endless, match='the network has not ended'):
        obstacle(fixed(resized(16, 32)), SHAPES)
