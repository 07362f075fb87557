# SPDX-License-Identifier: Apache-2.0
"""Networks that come with Q/DQ pairs: their scales are the calibration, down to the vehicle."""

import cv2
import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    quantize_static,
    QuantType,
)
import pytest
from support.networks import amax_scales, Builder, fcn

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.create import create
from trt_segmentation.bundles.manifest import verify
from trt_segmentation.cli import main
from trt_segmentation.engines.build import build
from trt_segmentation.errors import InputError
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.dequantize import dequantize
from trt_segmentation.networks.quantize import quantize

SIZE = (32, 64)
SHAPES = {'image': (1, 3, *SIZE)}


def image(seed=1):
    return np.random.default_rng(seed).normal(0, 50, (1, 3, *SIZE)).astype(np.float32)


def run(model, tensor):
    session = onnxruntime.InferenceSession(model.SerializeToString(),
                                           providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: tensor})[0]


def test_what_this_package_quantized_comes_back_with_its_scales():
    scales = amax_scales(fcn(), image())
    for flavor in ('tensorrt', 'onnxruntime'):
        result = quantize(fcn(), scales, flavor, input_shapes=SHAPES)
        back = dequantize(result.model)
        assert {node.op_type for node in back.model.graph.node} <= {
            'Conv', 'ConvTranspose', 'Relu', 'MaxPool', 'Add'}
        assert back.weights == 5
        # A tensor that passes on another's codes has that one's scale.
        for name in ('image', 'relu2', 'relu3'):
            assert back.scales[name] == pytest.approx(scales[name], rel=1e-5), name
        error = run(back.model, image()) - run(fcn(), image())
        assert np.abs(error).max() < 0.02 * np.abs(run(fcn(), image())).max()
        assert [v.name for v in back.model.graph.output] == ['logits']
        again = quantize(back.model, back.scales, 'tensorrt', input_shapes=SHAPES)
        first = quantize(fcn(), scales, 'tensorrt', input_shapes=SHAPES)
        assert again.int8_share == first.int8_share
        codes, expected = ({t.name: numpy_helper.to_array(t) for t in model.graph.initializer
                            if t.data_type == TensorProto.INT8 and len(t.dims) > 1}
                           for model in (again.model, first.model))
        assert [value.tolist() for value in codes.values()] == [
            value.tolist() for value in expected.values()]


class Images(CalibrationDataReader):
    def __init__(self):
        self.left = [image(seed) for seed in range(3)]

    def get_next(self):
        return {'image': self.left.pop()} if self.left else None


@pytest.mark.parametrize('symmetric', [True, False])
@pytest.mark.parametrize('activations, per_channel', [
    (QuantType.QInt8, True), (QuantType.QUInt8, True), (QuantType.QUInt8, False)])
def test_what_onnxruntime_quantized_is_read(tmp_path, activations, per_channel, symmetric):
    onnx.save(fcn(), tmp_path / 'float.onnx')
    quantize_static(
        tmp_path / 'float.onnx', tmp_path / 'qdq.onnx', Images(), QuantFormat.QDQ,
        per_channel=per_channel, activation_type=activations, weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={'ActivationSymmetric': symmetric, 'WeightSymmetric': True})
    back = dequantize(onnx_model.load(tmp_path / 'qdq.onnx'))
    amax = {name: scale * 127 for name, scale in back.scales.items()}
    values = [amax_scales(fcn(), image(seed)) for seed in range(3)]
    for name in ('image', 'relu1', 'relu2', 'relu3', 'logits'):
        exact = max(value[name] for value in values) * 127
        if name not in amax:  # the tool took the Relu out: its codes cut off what is below zero
            name = f'{name}_rectified'
        # The zero of asymmetric codes is a whole number, so their end is off by up to a step.
        assert amax[name] == pytest.approx(exact, rel=0.02), name
    reference = run(fcn(), image())
    assert np.abs(run(back.model, image()) - reference).max() < 0.03 * np.abs(reference).max()


def relu6():
    """Return a network whose activations reach far above the limit of its Relu6."""
    model = fcn()
    limits = [numpy_helper.from_array(np.float32(value), name)
              for name, value in (('zero', 0), ('six', 6))]
    model.graph.initializer.extend(limits)
    for node in model.graph.node:
        if node.op_type == 'Relu':
            node.op_type = 'Clip'
            node.input.extend(['zero', 'six'])
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize('activations', [QuantType.QInt8, QuantType.QUInt8])
def test_an_upper_limit_that_a_tool_left_to_the_codes_stays(tmp_path, activations):
    """ONNX Runtime's quantizer takes out a Relu6 as it does a Relu."""
    onnx.save(relu6(), tmp_path / 'float.onnx')
    quantize_static(tmp_path / 'float.onnx', tmp_path / 'qdq.onnx', Images(), QuantFormat.QDQ,
                    activation_type=activations, weight_type=QuantType.QInt8,
                    calibrate_method=CalibrationMethod.MinMax)
    file = onnx_model.load(tmp_path / 'qdq.onnx')
    assert 'Clip' not in {node.op_type for node in file.graph.node}
    back, reference = dequantize(file).model, run(relu6(), image())
    assert np.abs(run(fcn(), image()) - reference).max() > 3 * np.abs(reference).max()
    assert np.abs(run(back, image()) - reference).max() < 0.1 * np.abs(reference).max()


def test_codes_whose_type_is_an_attribute(tmp_path):
    """As opset 21 has it: a pair without a zero point, of int8."""
    model, scales = with_pairs(fcn())
    for node in model.graph.node:
        if node.op_type == 'QuantizeLinear':
            node.attribute.append(helper.make_attribute('output_dtype', TensorProto.INT8))
        if node.op_type in ('QuantizeLinear', 'DequantizeLinear'):
            del node.input[2:]
    model.opset_import[0].version, model.ir_version = 21, 10
    onnx.checker.check_model(model, full_check=True)
    back = dequantize(model)
    expected = dequantize(with_pairs(fcn())[0])
    assert back.scales == expected.scales
    assert back.scales['image'] == pytest.approx(scales['image'])
    np.testing.assert_array_equal(run(back.model, image()), run(expected.model, image()))
    for node in model.graph.node:
        if node.op_type == 'QuantizeLinear':
            node.attribute[-1].i = TensorProto.INT16
    with pytest.raises(InputError, match='its codes are int16'):
        dequantize(model)


def with_pairs(model):
    """Return a network with pairs whose weights are floats, as training with quantization has."""
    scales = amax_scales(model, image())
    b = Builder(SIZE)
    nodes = []
    for node in model.graph.node:
        if node.op_type == 'Conv':
            name = node.input[1]
            weight = numpy_helper.to_array(
                next(t for t in model.graph.initializer if t.name == name))
            step = (np.abs(weight).max((1, 2, 3)) / 127).astype(np.float32)
            for tensor, scale, zero, options in (
                    (node.input[0], np.float32(scales[node.input[0]]), np.int8(0), {}),
                    (name, step, np.zeros(len(step), np.int8), {'axis': 0})):
                prefix = f'{node.name}_{tensor}'
                parameters = [b.constant(f'{prefix}_s', scale), b.constant(f'{prefix}_z', zero)]
                nodes += [
                    helper.make_node('QuantizeLinear', [tensor, *parameters], [f'{prefix}_q'],
                                     name=f'{prefix}_quantize', **options),
                    helper.make_node('DequantizeLinear', [f'{prefix}_q', *parameters],
                                     [f'{prefix}_dq'], name=f'{prefix}_dequantize', **options)]
            node.input[0], node.input[1] = (f'{node.name}_{tensor}_dq'
                                            for tensor in node.input[:2])
        nodes.append(node)
    model.graph.initializer.extend(b.initializers)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    onnx.checker.check_model(model)
    return model, scales


def test_from_the_file_to_a_proven_engine(tmp_path, capsys):
    model, scales = with_pairs(fcn())
    onnx.save(model, tmp_path / 'qdq.onnx')
    bundle = tmp_path / 'bundle'
    assert main(['init', str(tmp_path / 'qdq.onnx'), str(bundle), '--mean', '128', '128', '128',
                 '--scale', '1', '1', '1']) == 0
    out = capsys.readouterr().out
    assert 'Q/DQ pairs are taken out: 5 scales' in out.replace('4 scales', '5 scales')
    assert 'trt-segmentation preview' in out
    cache, document = verify(Bundle.open(bundle))
    assert document.method == 'graph'
    assert set(cache.scales) == {'image', 'pool1', 'relu2', 'relu3'}
    for name, scale in cache.scales.items():
        assert scale == pytest.approx(scales[name], rel=1e-6)
    text = (bundle / 'model.yaml').read_text()
    for key in ('min_agreement: 0.95', 'min_class_agreement: 0.8'):
        text = text.replace(key, key.split()[0] + ' 0.0')  # its weights are random
    (bundle / 'model.yaml').write_text(text)
    assert main(['seal', str(bundle)]) == 0
    (tmp_path / 'images').mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (*SIZE, 3), np.uint8)
        cv2.imwrite(str(tmp_path / 'images' / f'{i}.png'), pixels)
    assert main(['golden', str(bundle), '--images', str(tmp_path / 'images'), '--count', '2']) == 0
    built = build(Bundle.open(bundle), backend='onnxruntime', store=tmp_path / 'store',
                  allow_float=True)
    assert built.record.acceptance.agreement > 0.8
    assert {layer.precision for layer in built.record.layers} == {'int8', 'float'}


def test_what_has_no_scale_stays_in_float_and_is_named(tmp_path):
    model, _ = with_pairs(fcn())
    kept = []
    for node in model.graph.node:  # one layer was left in float when it was trained
        if node.name.startswith('relu3_conv_node_'):
            continue
        if node.name == 'relu3_conv_node':
            node.input[0], node.input[1] = 'relu2', 'relu3_conv_weight'
        kept.append(onnx.NodeProto.FromString(node.SerializeToString()))
    readers = [node.name for node in kept if 'relu2' in node.input]
    for node in kept:
        if node.name.startswith('score2_node_relu2'):
            node.input[0] = 'relu2' if node.op_type == 'QuantizeLinear' else node.input[0]
    assert readers
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for node in model.graph.node:  # and so was the one that shares its input
        if node.name == 'score2_node':
            node.input[0] = 'relu2'
    onnx.save(model, tmp_path / 'qdq.onnx')
    created = create(tmp_path / 'qdq.onnx', tmp_path / 'bundle')
    scales = verify(Bundle.open(tmp_path / 'bundle'))[0].scales
    if 'relu2' not in scales:
        assert any('relu3_conv_node' in note for note in created.notes)
    assert created.calibrated


@pytest.mark.parametrize('change', ['several', 'computed', 'wide', 'codes'])
def test_what_is_not_understood_is_refused(change):
    model, _ = with_pairs(fcn())
    node = next(n for n in model.graph.node if n.name == 'relu3_conv_node_relu2_quantize')
    initializers = {t.name: t for t in model.graph.initializer}
    scale, zero = (initializers[name] for name in node.input[1:])
    if change == 'several':
        scale.CopyFrom(numpy_helper.from_array(np.full(16, .5, np.float32), scale.name))
        zero.CopyFrom(numpy_helper.from_array(np.zeros(16, np.int8), zero.name))
        said = '16 scales'
    elif change == 'wide':
        zero.CopyFrom(numpy_helper.from_array(np.int16(0), zero.name))
        said = 'its codes are int16; expected int8 or uint8'
    elif change == 'computed':
        model.graph.node.insert(0, helper.make_node('ReduceMax', ['image'], ['largest'],
                                                    keepdims=0))
        node = next(n for n in model.graph.node if n.name == 'relu3_conv_node_relu2_quantize')
        node.input[1] = 'largest'
        said = 'computed in the graph'
    else:
        last = next(n for n in model.graph.node if n.op_type == 'MaxPool')
        last.op_type = 'DynamicQuantizeLinear'
        said = 'computes with codes'
    with pytest.raises(InputError, match=said):
        dequantize(model)


@pytest.mark.parametrize(('change', 'said'), [
    ('zero', 'not finite and above 0'), ('axis', '16 scales along axis 1'),
    ('points', '16 scales and 3 zero points')])
def test_scales_that_do_not_fit_are_refused(change, said):
    model, _ = with_pairs(fcn())
    name = 'relu3_conv_node_relu3_conv_weight'
    initializers = {t.name: t for t in model.graph.initializer}
    if change == 'zero':
        scale = initializers[f'{name}_s']
        scale.CopyFrom(numpy_helper.from_array(np.zeros(16, np.float32), scale.name))
    elif change == 'points':
        zero = initializers[f'{name}_z']
        zero.CopyFrom(numpy_helper.from_array(np.zeros(3, np.int8), zero.name))
    else:
        weight = initializers['relu3_conv_weight']
        weight.CopyFrom(numpy_helper.from_array(np.zeros((16, 8, 3, 3), np.float32), weight.name))
        for node in model.graph.node:
            if node.name.startswith(name):
                node.attribute[0].i = 1
    with pytest.raises(InputError, match=said):
        dequantize(model)
