# SPDX-License-Identifier: Apache-2.0
"""Networks of opset 18 to 23 in opset 17 give the same under ONNX Runtime, or say why not."""

import numpy as np
import onnx
import onnxruntime
import pytest
from support.networks import amax_scales, Builder, write_calibrated_bundle

from trt_segmentation.engines.tensorrt.backend import make_order
from trt_segmentation.errors import InputError
from trt_segmentation.export.run import export
from trt_segmentation.networks.opset import lowered

SIZE = (6, 10)
TENSOR = np.random.default_rng(0).normal(0, 1, (1, 3, *SIZE)).astype(np.float32)


def run(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(),
                                           providers=['CPUExecutionProvider'])
    return session.run(None, {'image': TENSOR})[0]


def reduced(b):
    return b.node('ReduceMean', ['image', b.constant('axes', np.array([2, 3]))], 'y', keepdims=1)


def reduced_over_all(b):
    return b.node('ReduceMax', ['image'], 'y', keepdims=1)


def split(b):
    b.nodes.append(onnx.helper.make_node('Split', ['image'], ['a', 'c'], axis=2, num_outputs=2))
    return b.node('Concat', ['c', 'a'], 'y', axis=2)


def split_unevenly(b):
    b.nodes.append(onnx.helper.make_node('Split', ['image'], ['a', 'c'], axis=1, num_outputs=2))
    return b.node('Concat', ['c', 'a'], 'y', axis=1)


def padded(b):
    return b.node('Pad', ['image', b.constant('pads', np.array([0, 0, 1, 2, 0, 0, 0, 1]))], 'y')


def resized(b):
    scales = b.constant('scales', np.array([1, 1, 2, 1.5], np.float32))
    return b.node('Resize', ['image', '', scales], 'y', mode='linear', antialias=0)


def sampled(b):
    grid = np.random.default_rng(1).uniform(-1, 1, (1, 4, 5, 2)).astype(np.float32)
    return b.node('GridSample', ['image', b.constant('grid', grid)], 'y', mode='linear')


def pooled(b):
    return b.node('AveragePool', ['image'], 'y', kernel_shape=[2, 2], dilations=[1, 1])


def convolved(b):
    return b.conv_relu('image', 'y', 3, 4)


@pytest.mark.parametrize('opset', [18, 20, 23])
@pytest.mark.parametrize('body', [
    reduced, reduced_over_all, split, split_unevenly, padded, resized, sampled, pooled, convolved])
def test_the_same_comes_out(body, opset):
    if body is sampled and opset == 18:
        opset = 22  # its modes have these names from 20 on
    if body is pooled and opset == 18:
        opset = 19  # it has dilations from there on
    b = Builder(SIZE)
    b.input.type.tensor_type.shape.dim[0].dim_value = 1
    model = b.model(body(b), opset=opset, shape=[None] * 4)
    found = lowered(model)
    assert [entry.version for entry in found.opset_import] == [17]
    onnx.checker.check_model(found, full_check=True)
    assert np.allclose(run(found), run(model), atol=1e-6)
    assert [entry.version for entry in model.opset_import] == [opset]


def new(b, op, inputs=(), **attributes):
    return b.node(op, ['image', *inputs], 'y', **attributes)


@pytest.mark.parametrize(('opset', 'body', 'said'), [
    (20, lambda b: new(b, 'Gelu'), "node 'y_node' is a Gelu of opset 20, and there"),
    (18, lambda b: new(b, 'Mish'), 'Mish of opset 18'),
    (18, lambda b: new(b, 'Resize', ['', b.constant('s', np.float32([2, 2]))], axes=[2, 3]),
     "attribute 'axes'"),
    (19, lambda b: new(b, 'Pad', [b.constant('p', np.array([0, 0, 1, 1, 0, 0, 0, 0]))],
                       mode='wrap'), "mode 'wrap'"),
    (18, lambda b: new(b, 'Pad', [b.constant('p', np.array([1, 1])), '',
                                  b.constant('axes', np.array([2]))]), "input 'axes'"),
    (19, lambda b: new(b, 'AveragePool', kernel_shape=[2, 2], dilations=[2, 2]), 'dilations'),
])
def test_what_opset_17_lacks_is_named(opset, body, said):
    b = Builder(SIZE)
    with pytest.raises(InputError, match=said):
        lowered(b.model(body(b), opset=opset, shape=[None] * 4))


class TensorRt8:
    """What `make_order` asks of TensorRT 8.6's module: it has calibrators, and no strong types."""

    __name__, __version__ = 'tensorrt', '8.6.1'
    IInt8EntropyCalibrator2 = NetworkDefinitionCreationFlag = object


def modern(activation):
    b = Builder((32, 64))
    x = b.conv_relu('image', 'relu', 3, 8, strides=[4, 4])
    gate = b.node('ReduceMean', [x, b.constant('axes', np.array([2, 3]))], 'gate', keepdims=1)
    x = b.node('Mul', [b.node(activation, [x], 'active'), gate], 'gated')
    return b.model(b.conv(x, 'logits', 8, 19, kernel=1), opset=20, shape=['N', 19, 8, 16])


@pytest.mark.parametrize('quantization', ['explicit', 'implicit'])
def test_tensorrt_8_gets_opset_17_or_a_reason(tmp_path, quantization):
    tensor = np.random.default_rng(0).normal(0, 50, (1, 3, 32, 64)).astype(np.float32)
    for name, activation in (('fits', 'Sigmoid'), ('fits-not', 'Gelu')):
        model = modern(activation)
        scales = {name: scale or 1. for name, scale in amax_scales(model, tensor).items()}
        bundle = write_calibrated_bundle(tmp_path / name, model, scales)
        if activation == 'Gelu':
            with pytest.raises(InputError, match='Gelu of opset 20, .* take TensorRT 10'):
                make_order(TensorRt8, bundle, 'int8', quantization)
            with pytest.raises(InputError, match='Gelu of opset 20'):
                export(bundle, 'tensorrt-8', tmp_path / 'eight')
            assert not (tmp_path / 'eight').exists()
            export(bundle, 'tensorrt-10', tmp_path / f'ten-{quantization}')
        else:
            order, _ = make_order(TensorRt8, bundle, 'int8', quantization)
            assert onnx.load_from_string(order.model).opset_import[0].version == 17
