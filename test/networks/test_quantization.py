# SPDX-License-Identifier: Apache-2.0
"""The Q/DQ graphs: literal formulas, the placement rules, and what ONNX Runtime makes of them."""

import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import onnxruntime
import pytest
from support.networks import amax_scales, Builder, fcn, infer_all

from trt_segmentation.engines.onnxruntime import as_they_run, OnnxRuntimeEngine
from trt_segmentation.errors import InputError
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.placement import quantizable_share, quantized_tensors
from trt_segmentation.networks.prepare import prepare
from trt_segmentation.networks.quantize import FLAVORS, quantize, quantize_weight

SIZE = (32, 64)


def image(size=SIZE, seed=1):
    return np.random.default_rng(seed).normal(0, 50, (1, 3, *size)).astype(np.float32)


def quantized(model, flavor, scales=None, size=SIZE, **options):
    if scales is None:
        scales = amax_scales(model, image(size))
    return quantize(model, scales, flavor, input_shapes={'image': (1, 3, *size)}, **options)


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producers(model):
    return {name: node for node in model.graph.node for name in node.output}


def run(model, tensor, unfused=True):
    return OnnxRuntimeEngine(model.SerializeToString(), unfused=unfused).infer(tensor)


def optimized_operators(model, tmp_path):
    """Return the operators that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'optimized.onnx')
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options,
                                 ['CPUExecutionProvider'])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def test_weights_are_codes_of_amax_over_127_per_output_channel():
    weight = np.random.default_rng(0).normal(0, 1, (4, 3, 3, 3)).astype(np.float32)
    weight[2] = 0
    codes, scale = quantize_weight(weight)
    for channel in range(4):
        amax = np.abs(weight[channel]).max()
        expected = amax / 127 if amax else 1
        assert scale[channel] == pytest.approx(expected, rel=1e-6)
        assert np.abs(codes[channel] * scale[channel] - weight[channel]).max() <= expected / 2
    assert codes.dtype == np.int8 and np.abs(codes.astype(int)).max() == 127
    assert np.abs(quantize_weight(weight, maximum=63)[0].astype(int)).max() == 63


@pytest.mark.parametrize('flavor', FLAVORS)
def test_one_convolution_equals_the_literal_formula(flavor):
    b = Builder((8, 8))
    b.conv('image', 'y', 3, 4, kernel=1)
    model, x = b.model('y'), image((8, 8))
    scales = {'image': 0.9, 'y': 1.7}
    weight, bias = (numpy_helper.to_array(t) for t in model.graph.initializer)
    codes, weight_scale = quantize_weight(weight)
    fake_x = np.clip(np.rint(x / np.float32(0.9)), -128, 127) * np.float32(0.9)
    fake_w = codes.reshape(4, 3).astype(np.float64) * weight_scale[:, None]
    expected = np.einsum('oc,nchw->nohw', fake_w, fake_x) + bias[:, None, None]
    found = run(quantized(model, flavor, scales, (8, 8)).model, x)['y']
    if flavor == 'onnxruntime':  # its output is quantized too: at most half a step apart
        assert np.abs(found - np.clip(expected, -128 * 1.7, 127 * 1.7)).max() <= 1.7 / 2 + 1e-3
        assert np.allclose(np.rint(found / 1.7), found / np.float32(1.7), atol=1e-4)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_tensorrt_flavor_keeps_what_every_tensorrt_version_asks_for():
    model = quantized(fcn(), 'tensorrt').model
    values, made_by = constants(model), producers(model)
    for node in model.graph.node:
        if node.op_type in ('QuantizeLinear', 'DequantizeLinear'):
            scale, zero_point = values[node.input[1]], values[node.input[2]]
            assert scale.dtype == np.float32 and (scale > 0).all()
            assert zero_point.dtype == np.int8 and not zero_point.any()
            assert zero_point.shape == scale.shape
            assert [a.i for a in node.attribute if a.name == 'axis'] == [0] * scale.ndim
        if node.op_type == 'Conv':
            assert [made_by[name].op_type for name in node.input[:2]] == ['DequantizeLinear'] * 2
            assert values[node.input[2]].dtype == np.float32
        if node.op_type == 'ConvTranspose':
            assert node.input[1] in values  # its weight is float
    assert model.opset_import[0].version <= 17
    assert TensorProto.UINT8 not in {t.data_type for t in model.graph.initializer}


def test_onnxruntime_flavor_uses_all_255_codes_where_nothing_is_negative():
    model, x = fcn(), image()
    scales = amax_scales(model, x)
    result = quantized(model, 'onnxruntime', scales).model
    values = constants(result)
    assert values['relu2_zero_point'] == 0 and values['relu2_zero_point'].dtype == np.uint8
    assert values['relu2_scale'] == pytest.approx(scales['relu2'] * 127 / 255, rel=1e-6)
    assert values['image_zero_point'] == 128
    assert values['image_scale'] == pytest.approx(scales['image'], rel=1e-6)


def test_onnxruntime_runs_every_convolution_with_integers(tmp_path):
    operators = optimized_operators(quantized(fcn(), 'onnxruntime').model, tmp_path)
    assert 'Conv' not in operators and 'FusedConv' not in operators
    assert operators.count('QLinearConv') == 5
    assert 'Relu' not in operators  # the zero point does its work


def test_fused_and_unfused_agree():
    # With 8-bit weights, products saturate in the fused kernels of an x86 CPU without VNNI.
    model, x = quantized(fcn(), 'onnxruntime', reduce_range=True).model, image()
    unfused, fused = (run(model, x, unfused=u)['logits'] for u in (True, False))
    assert np.abs(fused - unfused).mean() < 0.02 * np.abs(unfused).mean()


@pytest.mark.parametrize('flavor', FLAVORS)
def test_result_is_close_to_the_float_network(flavor):
    model, x = fcn(), image()
    reference = infer_all(model, x)['logits']
    error = run(quantized(model, flavor).model, x)['logits'] - reference
    signal_to_noise = 10 * np.log10((reference ** 2).sum() / (error ** 2).sum())
    assert signal_to_noise > 25  # 8 bits give about 48 dB to one tensor


@pytest.mark.parametrize('flavor', FLAVORS)
def test_input_is_not_changed_and_outputs_keep_their_names(flavor):
    model = fcn()
    before = model.SerializeToString()
    result = quantized(model, flavor).model
    assert model.SerializeToString() == before
    assert [v.name for v in result.graph.output] == ['logits']
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize('flavor', FLAVORS)
def test_a_convolution_at_the_graph_output_is_quantized(flavor, tmp_path):
    b = Builder(SIZE)
    b.conv(b.conv_relu('image', 'relu1', 3, 8), 'logits', 8, 4, kernel=1)
    result = quantized(b.model('logits'), flavor)
    assert result.int8_share == 1
    assert [v.name for v in result.model.graph.output] == ['logits']
    if flavor == 'onnxruntime':
        assert optimized_operators(result.model, tmp_path).count('QLinearConv') == 2


def residual_network():
    b = Builder(SIZE)
    x = b.conv_relu('image', 'relu1', 3, 8)
    main = b.conv(b.conv_relu(x, 'relu2', 8, 8), 'branch', 8, 8)
    x = b.node('Relu', [b.node('Add', [main, x], 'sum')], 'relu3')
    b.conv(x, 'logits', 8, 4)
    return b.model('logits')


def test_tensorrt_quantizes_the_residual_input_of_an_addition_alone():
    result = quantized(residual_network(), 'tensorrt').model
    addition = next(node for node in result.graph.node if node.op_type == 'Add')
    made_by = producers(result)
    assert [made_by[name].op_type for name in addition.input] == ['Conv', 'DequantizeLinear']


def test_onnxruntime_adds_with_integers(tmp_path):
    operators = optimized_operators(quantized(residual_network(), 'onnxruntime').model, tmp_path)
    assert operators.count('QLinearAdd') == 1 and 'Add' not in operators


@pytest.mark.parametrize('flavor', FLAVORS)
def test_concat_shares_the_largest_scale(flavor):
    b = Builder(SIZE)
    left = b.conv_relu('image', 'left', 3, 8)
    right = b.conv_relu('image', 'right', 3, 8)
    b.conv(b.node('Concat', [left, right], 'both', axis=1), 'logits', 16, 4)
    scales = {'image': 1., 'left': 2., 'right': 5., 'both': 4., 'logits': 1.}
    values = constants(quantized(b.model('logits'), flavor, scales).model)
    factor = 127 / 255 if flavor == 'onnxruntime' else 1
    found = {name: float(values[f'{name}_scale']) for name in ('left', 'right', 'both')
             if f'{name}_scale' in values}
    assert 'both' in found
    for scale in found.values():
        assert scale == pytest.approx(5 * factor)


@pytest.mark.parametrize('op, attributes', [
    ('Resize', {'mode': 'linear'}), ('MaxPool', {'kernel_shape': [2, 2], 'strides': [2, 2]})])
def test_q_stands_behind_resize_and_pooling(op, attributes):
    b = Builder(SIZE)
    x = b.conv_relu('image', 'relu1', 3, 8)
    sizes = [b.constant('roi', np.zeros(0, np.float32)),
             b.constant('factors', np.array([1, 1, 2, 2], np.float32))] if op == 'Resize' else []
    b.conv(b.node(op, [x, *sizes], 'moved', **attributes), 'logits', 8, 4)
    model = b.model('logits')
    made_by = producers(quantized(model, 'tensorrt').model)
    dequantize = made_by[next(n for n in made_by.values() if n.name == 'logits_node').input[0]]
    assert made_by[dequantize.input[0]].input[0] == 'moved'
    values = constants(quantized(model, 'onnxruntime').model)
    assert values['moved_scale'] == values['relu1_scale']  # codes are copied


def test_batch_normalization_is_folded():
    b = Builder(SIZE)
    x = b.conv('image', 'conv1', 3, 8, bias=False)
    names = [b.constant(name, b.rng.uniform(.5, 2, 8).astype(np.float32))
             for name in ('gamma', 'beta', 'mean', 'var')]
    x = b.node('Relu', [b.node('BatchNormalization', [x, *names], 'bn1')], 'relu1')
    b.conv(x, 'logits', 8, 4)
    model, x = b.model('logits'), image()
    result = quantized(model, 'tensorrt').model
    assert 'BatchNormalization' not in {node.op_type for node in result.graph.node}
    reference = infer_all(model, x)['logits']
    error = run(result, x)['logits'] - reference
    assert np.abs(error).mean() < 0.03 * np.abs(reference).mean()


@pytest.mark.parametrize('flavor', FLAVORS)
def test_a_layer_stays_in_float_with_its_reason(flavor):
    model = fcn()
    scales = amax_scales(model, image())
    del scales['relu3']
    result = quantized(model, flavor, scales, exclude=['relu2_conv_node'])
    reasons = {layer.name: layer.reason for layer in result.layers if layer.precision == 'float'}
    assert reasons['relu2_conv_node'] == 'excluded by the spec'
    assert reasons['score3_node'] == "no scale for tensor 'relu3'"
    assert reasons['up3_node'] == 'transposed convolutions stay in float'
    macs = {layer.name: layer.macs for layer in result.layers}
    assert macs['relu1_conv_node'] == 16 * 32 * 8 * 27
    assert macs['up3_node'] == 19 * 4 * 8 * 19 * 16
    int8 = sum(layer.macs for layer in result.layers if layer.precision == 'int8')
    assert result.int8_share == pytest.approx(int8 / sum(macs.values()))


def test_needed_tensors_are_those_that_the_flavors_use():
    model = fcn()
    needed = quantized_tensors(model)
    everything = amax_scales(model, image())
    only_needed = {name: everything[name] for name in needed}
    for flavor in FLAVORS:
        assert (quantized(model, flavor, only_needed).model.SerializeToString()
                == quantized(model, flavor, everything).model.SerializeToString())
    for name in needed:  # and none can be left out
        fewer = {key: value for key, value in only_needed.items() if key != name}
        assert any(quantized(model, flavor, fewer).model.SerializeToString()
                   != quantized(model, flavor, only_needed).model.SerializeToString()
                   for flavor in FLAVORS)


@pytest.mark.parametrize('scale', [0.0, -1.0, float('inf'), float('nan')])
def test_bad_scales_are_refused(scale):
    with pytest.raises(InputError, match='relu1.*expected finite, above 0'):
        quantized(fcn(), 'tensorrt', {'relu1': scale})


def test_unknown_excluded_node_is_named():
    with pytest.raises(InputError, match="calibration.exclude.*'nothing'"):
        quantized(fcn(), 'tensorrt', exclude=['nothing'])


def test_old_opsets_are_converted():
    b = Builder(SIZE)
    b.conv(b.conv_relu('image', 'relu1', 3, 8), 'logits', 8, 4)
    model = b.model('logits', opset=11)
    result = quantized(model, 'tensorrt')
    assert result.model.opset_import[0].version == 17 and result.int8_share == 1
    assert run(result.model, image())['logits'].shape == (1, 4, *SIZE)


@pytest.mark.parametrize('flavor', FLAVORS)
@pytest.mark.parametrize('op', ['Gemm', 'MatMul'])
def test_matrix_products(op, flavor):
    b = Builder((4, 4))
    pooled = b.node('GlobalAveragePool', [b.conv_relu('image', 'relu1', 3, 8)], 'pooled')
    flat = b.node('Flatten', [pooled], 'flat')
    weight = b.constant('weight', b.rng.normal(0, 1, (8, 50)).astype(np.float32))
    b.node(op, [flat, weight], 'scores')
    model, x = b.model('scores'), image((4, 4))
    result = quantized(model, flavor, amax_scales(model, x), (4, 4))
    assert result.int8_share == 1
    reference = infer_all(model, x)['scores']
    error = np.abs(run(result.model, x)['scores'] - reference).max()
    assert error < 0.05 * np.abs(reference).max()


def signal_to_noise(model, flavor, unfused=True, size=SIZE):
    """Return the decibels between a network's output and what quantization does to it."""
    x = image(size)
    values = infer_all(model, x)
    scales = {name: float(np.abs(value).max() / 127) for name, value in values.items()
              if value.dtype == np.float32 and value.size and value.any()}
    result = quantized(model, flavor, scales, size).model
    onnx.checker.check_model(result, full_check=True)
    output = model.graph.output[0].name
    error = run(result, x, unfused)[output] - values[output]
    return 10 * np.log10((values[output] ** 2).sum() / (error ** 2).sum())


def normalized(b, data, output, channels, **attributes):
    names = [b.constant(f'{output}_{part}', b.rng.uniform(.5, 2, channels).astype(np.float32))
             for part in ('scale', 'bias', 'mean', 'var')]
    return b.node('BatchNormalization', [data, *names], output, **attributes)


@pytest.mark.parametrize('flavor', FLAVORS)
def test_names_that_the_graph_has_already_are_not_taken_again(flavor):
    b = Builder(SIZE)
    x = normalized(b, b.conv('image', 'conv1', 3, 8, bias=False), 'bn1', 8)  # 'bn1_scale'
    y = b.node('Neg', [x], 'bn1_dequantized')
    x = b.conv(b.node('Relu', [x], 'relu1'), 'relu1_quantized', 8, 8)
    b.conv(b.node('Add', [x, y], 'relu1_float'), 'logits', 8, 4)
    b.nodes[0].name = 'relu1_quantize'
    assert signal_to_noise(b.model('logits'), flavor) > 25


def branches(b, data, then_node, else_node):
    """Add an If that takes the first branch; both read the graph around them."""
    total = b.node('ReduceSum', ['image'], 'total', keepdims=0)
    condition = b.node('Greater', [total, b.constant('low', np.float32(-1e9))], 'condition')
    graphs = {name: helper.make_graph(
        [node], name, [], [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)])
        for name, node in (('then_branch', then_node), ('else_branch', else_node))}
    return b.node('If', [condition], data, **graphs)


@pytest.mark.parametrize('flavor', FLAVORS)
def test_branches_still_find_what_they_read(flavor):
    b = Builder(SIZE)
    raw = b.conv('image', 'conv1', 3, 8, bias=False)
    x = b.node('Relu', [normalized(b, raw, 'bn1', 8)], 'relu1')
    weight = b.constant('weight', b.rng.normal(0, .2, (8, 8, 3, 3)).astype(np.float32))
    x = b.node('Conv', [x, weight], 'conv2', pads=[1] * 4)
    x = b.node('Relu', [x], 'relu2')
    b.constant('gain', np.full((8, 1, 1), .5, np.float32))
    x = branches(b, 'branch', helper.make_node('Conv', ['conv1', 'weight'], ['a'], pads=[1] * 4),
                 helper.make_node('Mul', ['conv2', 'gain'], ['b']))
    b.conv(x, 'logits', 8, 4)
    assert signal_to_noise(b.model('logits', shape=['N', 4, *SIZE]), flavor) > 25


def test_weights_that_come_through_identity_are_constants():
    b = Builder(SIZE)
    x = b.conv_relu('image', 'relu1', 3, 8)
    weight = b.constant('weight', b.rng.normal(0, .2, (8, 8, 3, 3)).astype(np.float32))
    x = b.node('Conv', [x, weight], 'conv2', pads=[1] * 4)
    b.node('Identity', [b.node('Identity', [weight], 'once')], 'twice')
    b.node('Conv', [x, 'twice'], 'logits', pads=[1] * 4)
    model = b.model('logits')
    assert quantized(model, 'tensorrt').int8_share == 1
    assert signal_to_noise(model, 'tensorrt') > 25


def test_bounds_of_clip_may_be_constant_nodes_of_any_shape():
    b = Builder(SIZE)
    b.nodes.append(helper.make_node('Constant', [], ['low'], value_float=0.0))
    x = b.node('Clip', [b.conv('image', 'conv1', 3, 8), 'low',
                        b.constant('high', np.float32(6))], 'clip1')
    x = b.node('Clip', [b.conv(x, 'conv2', 8, 8), b.constant('low1', np.zeros(1, np.float32))],
               'clip2')
    b.conv(x, 'logits', 8, 4)
    graph = helper.make_graph(b.nodes, 'network', [b.input], [helper.make_tensor_value_info(
        'logits', TensorProto.FLOAT, ['N', 4, *SIZE])], b.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    values = constants(quantized(model, 'onnxruntime', dict.fromkeys(
        ('image', 'clip1', 'clip2', 'logits'), 1.)).model)
    assert values['clip1_zero_point'] == values['clip2_zero_point'] == 0
    assert values['logits_zero_point'] == 128


def test_weights_may_be_inputs_as_they_had_to_be_in_old_files(tmp_path):
    b = Builder(SIZE)
    b.conv(b.conv_relu('image', 'relu1', 3, 8), 'logits', 8, 4)
    model = b.model('logits', opset=13)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(
            tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 3
    onnx.save(model, tmp_path / 'old.onnx')
    loaded = onnx_model.load(tmp_path / 'old.onnx')
    assert [value.name for value in loaded.graph.input] == ['image']
    assert signal_to_noise(loaded, 'tensorrt') > 25


def test_long_chains_of_pooling_take_no_recursion():
    b = Builder((8, 8))
    x = b.conv_relu('image', 'relu1', 3, 4)
    for i in range(1200):
        x = b.node('MaxPool', [x], f'pool{i}', kernel_shape=[1, 1])
    for i in range(40):  # two paths each, so a trillion in all
        pooled = b.node('MaxPool', [x], f'same{i}', kernel_shape=[1, 1])
        x = b.node('Add', [x, pooled], f'sum{i}')
    b.conv(x, 'logits', 4, 4)
    scales = {name: 1. for node in b.nodes for name in node.output} | {'image': 1.}
    values = constants(quantized(b.model('logits'), 'onnxruntime', scales, (8, 8)).model)
    assert values['sum39_zero_point'] == 0


def test_normalization_by_the_batch_is_not_folded():
    b = Builder(SIZE)
    x = normalized(b, b.conv('image', 'conv1', 3, 8), 'bn1', 8, training_mode=1)
    b.nodes[-1].output.extend(['running_mean', 'running_var'])
    b.conv(x, 'logits', 8, 4)
    assert signal_to_noise(b.model('logits'), 'tensorrt') > 25


def test_a_folded_layer_without_a_name_can_be_excluded_by_its_output():
    b = Builder(SIZE)
    x = normalized(b, b.conv('image', 'conv1', 3, 8, bias=False), 'bn1', 8)
    b.conv(x, 'logits', 8, 4)
    for node in b.nodes:
        node.name = ''
    layers = quantized(b.model('logits'), 'tensorrt', exclude=['conv1']).layers
    assert {layer.name: layer.precision for layer in layers} == {
        'conv1': 'float', 'logits': 'int8'}


@pytest.mark.parametrize('factor', [0, 1e-40, 1e-12, 1e-6])
def test_a_channel_with_hardly_any_weight_keeps_its_bias(factor):
    b = Builder(SIZE)
    x = b.conv_relu('image', 'relu1', 3, 8)
    weight = b.rng.normal(0, .2, (8, 8, 1, 1))
    weight[:4] *= factor
    bias = b.rng.uniform(10, 20, 8)
    x = b.node('Conv', [x, b.constant('weight', weight.astype(np.float32)),
                        b.constant('bias', bias.astype(np.float32))], 'conv2')
    b.conv(b.node('Relu', [x], 'relu2'), 'logits', 8, 4, kernel=1)
    assert signal_to_noise(b.model('logits'), 'onnxruntime', unfused=False) > 25


def test_weights_too_small_for_a_scale_become_zero():
    weight = np.full((2, 3, 1, 1), 1e-44, np.float32)
    weight[1] = 1
    codes, scale = quantize_weight(weight)
    assert scale.tolist() == pytest.approx([1, 1 / 127]) and not codes[0].any()


def test_weights_that_are_not_finite_are_refused():
    model = fcn()
    weight = next(t for t in model.graph.initializer if t.name == 'score3_weight')
    array = numpy_helper.to_array(weight).copy()
    array[0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    with pytest.raises(InputError, match="weight 'score3_weight'.*nan or infinity"):
        quantized(model, 'tensorrt', amax_scales(fcn(), image()))


def test_a_quantized_network_is_refused():
    once = quantized(fcn(), 'tensorrt').model
    with pytest.raises(InputError, match='quantized already.*expected the floating-point'):
        quantized_tensors(once)


def test_an_old_operator_whose_conversion_loses_names_is_refused():
    b = Builder(SIZE)
    x = b.node('Upsample', [b.conv_relu('image', 'relu1', 3, 8),
                            b.constant('factors', np.array([1, 1, 2, 2], np.float32))], 'up')
    b.conv(x, 'logits', 8, 4)
    with pytest.raises(InputError, match="opset 9.*'up'.*export it with opset 17"):
        quantized_tensors(b.model('logits', opset=9))


def test_a_layer_that_onnxruntime_leaves_in_float_counts_as_float():
    b = Builder((4, 4))
    pooled = b.node('GlobalAveragePool', [b.conv_relu('image', 'relu1', 3, 8)], 'pooled')
    flat = b.node('Flatten', [pooled], 'flat')
    weight = b.constant('weight', b.rng.normal(0, 1, (8, 50)).astype(np.float32))
    bias = b.constant('bias', np.ones(50, np.float32))
    b.node('Gemm', [flat, weight, bias], 'scores', beta=2.0)  # its integer Gemm has no beta
    for node in b.nodes:
        node.name = ''
    model = b.model('scores')
    result = quantized(model, 'onnxruntime', amax_scales(model, image((4, 4))), (4, 4))
    assert result.int8_share == 1
    layers = as_they_run(result.model.SerializeToString(), result.layers)
    assert [(layer.name, layer.precision) for layer in layers] == [
        ('relu1_conv', 'int8'), ('scores', 'float')]
    assert layers[1].reason == 'ONNX Runtime has no integer kernel for it'


@pytest.mark.parametrize('flavor', FLAVORS)
def test_concat_shares_no_scale_where_nothing_reads_its_codes(flavor):
    b = Builder(SIZE)
    x = b.conv_relu('image', 'large', 3, 8)
    small = b.node('Sigmoid', [x], 'small')
    y = b.conv(small, 'scores', 8, 4)
    both = b.node('Softmax', [b.node('Concat', [x, small], 'both', axis=1)], 'soft', axis=1)
    b.node('Concat', [both, y], 'logits', axis=1)
    scales = {'image': 1., 'large': 500., 'small': 1., 'both': 500., 'soft': 1., 'scores': 1.,
              'logits': 1.}
    values = constants(quantized(b.model('logits'), flavor, scales).model)
    assert values['small_scale'] == pytest.approx(127 / 255 if flavor == 'onnxruntime' else 1)


@pytest.mark.parametrize('mode', ['linear', 'nearest'])
@pytest.mark.parametrize(('opset', 'op', 'last'), [
    (9, 'Upsample', True), (10, 'Resize', True), (10, 'Resize', False)])
def test_networks_of_old_opsets_sample_as_they_did(mode, opset, op, last):
    b = Builder((16, 24), channels=3)
    x = b.conv_relu('image', 'relu1', 3, 8, strides=[2, 2])
    x = b.node(op, [x, b.constant('scales', np.float32([1, 1, 2, 2]))],
               'logits' if last else 'up', mode=mode)
    if not last:
        b.conv(x, 'logits', 8, 4, kernel=1)
    model = b.model('logits', opset=opset, shape=['N', 8 if last else 4, 16, 24])
    x = image((16, 24))
    np.testing.assert_allclose(run(prepare(model), x)['logits'], run(model, x)['logits'],
                               rtol=1e-5, atol=1e-4)


def test_the_layer_that_makes_the_logits_stays_in_float_on_the_cpu(tmp_path):
    """Logits on 8 bits tie, and the first class wins; the vehicle's layers give float anyway."""
    b = Builder(SIZE)
    skip = b.conv_relu(b.conv_relu('image', 'relu1', 3, 32, strides=[2, 2]), 'relu2', 32, 32)
    deep = b.conv_relu(skip, 'relu3', 32, 32, strides=[2, 2])
    twice = b.constant('scales', np.float32([1, 1, 2, 2]))
    score = b.node('Resize', [b.conv(deep, 'score3', 32, 5, kernel=1), '', twice], 'up3',
                   mode='linear')
    b.node('Add', [score, b.conv(skip, 'score2', 32, 5, kernel=1)], 'logits')
    model = b.model('logits')
    result = quantized(model, 'onnxruntime')
    reasons = {layer.name: layer.reason for layer in result.layers if layer.precision == 'float'}
    assert set(reasons) == {'score2_node', 'score3_node'}
    assert all('would tie' in reason for reason in reasons.values())
    logits = run(result.model, image(), unfused=False)['logits']
    assert len(np.unique(logits)) > 0.9 * logits.size  # not 256 values
    assert quantized(model, 'tensorrt').int8_share == 1


def test_a_head_that_is_much_of_the_work_is_quantized_all_the_same():
    b = Builder(SIZE)
    b.conv(b.conv_relu('image', 'relu1', 3, 4), 'logits', 4, 19)
    assert quantized(b.model('logits'), 'onnxruntime').int8_share == 1


def test_the_share_that_can_be_quantized_is_counted_by_hand():
    b = Builder((8, 8))
    x = b.conv_relu('image', 'relu1', 3, 4)  # 8 * 8 * 4 * 3 * 9 multiply-accumulates
    b.transposed(x, 'logits', 4, 5)  # 8 * 8 * 4 * 5 * 16
    model = b.model('logits')
    expected = 3 * 9 / (3 * 9 + 5 * 16)
    assert quantizable_share(model, {'image': (1, 3, 8, 8)}) == pytest.approx(expected)
