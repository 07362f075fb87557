# SPDX-License-Identifier: Apache-2.0
"""What an engine's own words say about its layers: the proof that INT8 is INT8."""

import json

import pytest

from trt_segmentation.engines.tensorrt.layers import parse_dump, parse_inspector, prove, UNKNOWN
from trt_segmentation.networks.layers import int8_share, Layer

# Shaped on what TensorRT 8.4's inspector gives of quantized ResNets and MobileNets (keys, order
# and wording as in the engines published with NVIDIA's trt-engine-explorer); names are our own.
INT8 = 'Thirty-two wide channel vectorized row major Int8 format'
FP16 = 'Channel major FP16 format where channel % 8 == 0'
FP32 = 'Row major linear FP32'


def tensor(form, name='t'):
    return {'Name': name, 'Location': 'Device', 'Dimensions': [1, 32, 16, 16],
            'Format/Datatype': form}


def convolution(name, form=INT8, weights='Int8', kind='CaskConvolution', **extra):
    return {'Name': name, 'LayerType': kind, 'Inputs': [tensor(form)], 'Outputs': [tensor(FP32)],
            'ParameterType': 'Convolution', 'Kernel': [3, 3], 'Stride': [1, 1], 'Groups': 1,
            'Weights': {'Type': weights, 'Count': 9216}, 'Bias': {'Type': 'Float', 'Count': 32},
            'HasSparseWeights': 0, 'Activation': 'RELU', 'TacticValue': '0x1', **extra}


def reformat(name, source=FP32, target=INT8):
    return {'Name': name, 'LayerType': 'Reformat', 'Inputs': [tensor(source)],
            'Outputs': [tensor(target)], 'ParameterType': 'Reformat', 'Origin': 'QDQ',
            'TacticValue': '0x0'}


def inspected(*layers):
    return parse_inspector(json.dumps({'Layers': layers, 'Bindings': ['image', 'logits']}))


def layer(name, macs=100, precision='int8', reason=''):
    return Layer(name, 'Conv', macs, precision, reason)


def test_fused_layers_are_found_by_the_names_they_are_joined_from():
    engine = inspected(
        reformat('image_quantize'),
        convolution('w1 + w1_quantize + conv1'),
        convolution('w2 + w2_quantize + conv2 + add3 + relu4'),
        convolution('w5 + w5_quantize + conv5 + PWN(clip6)', kind='CudaDepthwiseConvolution'),
        convolution('conv7 || conv8'),
        {'Name': 'conv9 + pool10', 'LayerType': 'ConvActPool', 'Inputs': [tensor(INT8)],
         'Outputs': [tensor(INT8)], 'ParameterType': 'ConvActPool',
         'ConvWeights': {'Type': 'Int8', 'Count': 9408}, 'ConvParameterType': 'Convolution'},
    )
    names = ('conv1', 'conv2', 'conv5', 'conv7', 'conv8', 'conv9')
    proven = prove([layer(name) for name in names], engine)
    assert [entry.precision for entry in proven] == ['int8'] * 6
    assert int8_share(proven) == 1


@pytest.mark.parametrize('form, weights, expected', [
    (INT8, 'Int8', 'int8'), (FP16, 'Half', 'fp16'), (FP32, 'Float', 'fp32'),
    ('Four wide channel vectorized row major Int8 format', 'Int8', 'int8'),
    ('Two wide channel vectorized row major FP16 format', 'Half', 'fp16'),
    (INT8, 'Float', UNKNOWN), ('N/A due to dynamic shapes', 'Half', UNKNOWN),
    ('Row major linear FP8 format', 'FP8', UNKNOWN), ('Row major linear BF16', 'BF16', UNKNOWN),
])
def test_the_type_is_that_of_activations_and_weights_together(form, weights, expected):
    proven, = prove([layer('conv1')], inspected(convolution('conv1', form, weights)))
    assert proven.precision == expected
    assert proven.reason == ('' if expected == 'int8' else f'the engine runs it in {expected}')


def test_metadata_names_the_nodes_where_there_is_some():
    engine = inspected(convolution(
        '__myl_Conv_0', LayerType='correlation', ParameterType=None,
        Metadata='[ONNX Layer: /net/conv[0]]\x1f[ONNX Layer: conv2]\x1e[ONNX Layer: relu]'))
    assert engine[0].nodes == ('/net/conv[0]', 'conv2', 'relu')
    proven = prove([layer('/net/conv[0]'), layer('__myl_Conv_0')], engine)
    assert [entry.precision for entry in proven] == ['int8', UNKNOWN]


def test_the_graph_compiler_s_layers_have_their_weights_among_constants():
    def compiled(activations, weights):
        return {'Name': 'conv1_myl0_1', 'LayerType': 'correlation',
                'Inputs': [{'Name': 'x', 'Dimensions': [1, 3, 8, 8], 'Datatype': activations,
                            'Format': '(NHWC) Channel major format'}],
                'Constants': [{'Name': 'w', 'Datatype': weights}], 'Outputs': [],
                'TacticName': 't', 'StreamId': 0, 'Metadata': '[ONNX Layer: conv1]'}
    for activations, weights, expected in (
            ('Int8', 'Int8', 'int8'), ('Half', 'Half', 'fp16'), ('Int8', 'Half', UNKNOWN)):
        proven, = prove([layer('conv1')], inspected(compiled(activations, weights)))
        assert proven.precision == expected


@pytest.mark.parametrize('missing', ['Inputs', 'Weights', 'LayerType', 'ParameterType', 'Name'])
def test_a_layer_described_otherwise_is_not_proven(missing):
    other = convolution('conv1')
    renamed = {f'{key}2' if key == missing else key: value for key, value in other.items()}
    proven, = prove([layer('conv1')], inspected(renamed))
    if missing in ('Weights', 'LayerType'):  # the other keys say enough
        assert proven.precision == 'int8'
    else:
        assert proven.precision == UNKNOWN and proven.reason


@pytest.mark.parametrize('kind', ['kgen', 'PointWiseV2', 'Reformat', 'SomethingNew'])
def test_a_layer_in_a_kernel_of_unknown_kind_is_not_proven(kind):
    engine = inspected({**convolution('conv1'), 'LayerType': kind, 'ParameterType': kind})
    proven, = prove([layer('conv1')], engine)
    assert proven.precision == UNKNOWN and kind in proven.reason


def test_a_layer_that_is_missing_is_not_proven():
    proven, = prove([layer('conv1')], inspected(convolution('conv10')))
    assert proven.precision == UNKNOWN
    assert proven.reason == "it is not in the engine's table of layers"


def test_a_layer_split_into_several_kernels_is_as_good_as_the_worst():
    engine = inspected(convolution('conv1'), convolution('conv1', FP16, 'Half'))
    assert prove([layer('conv1')], engine)[0].precision == 'fp16'


def test_the_graph_s_own_reason_is_kept():
    reason = 'transposed convolutions stay in float'
    proven, = prove([layer('up', 7, 'float', reason)], inspected(convolution('up', FP16, 'Half')))
    assert (proven.precision, proven.reason, proven.macs) == ('fp16', reason, 7)


@pytest.mark.parametrize('text', [
    'nonsense', '[]', '{}', '{"Layers": {}}',
    '{"Layers": ["conv1", "conv2"]}',  # built without detailed verbosity: names only
])
def test_json_of_another_form_is_an_error(text):
    with pytest.raises(ValueError):
        parse_inspector(text)


# As TensorRT-RTX 1.7 wrote it for a network of ours.
DUMP = """Layers:
Name: __myl_Quan_0, LayerType: kgen, Inputs: [ { Name: image, Dimensions: [1,3,64,128], \
Strides: [24576,8192,128,1], StrideOrder: [3,2,1,0], Datatype: Half, Format: (Linear) Row major \
linear format }], Constants: [], Outputs: [ { Name: q, Dimensions: [1,3,64,128], Datatype: Int8, \
Format: (NHWC) Channel major format }], TacticName: __myl_Quan_0x22, StreamId: 0, \
Metadata: [ONNX Layer: image_quantize][ONNX Layer: conv1]
Name: conv1_myl0_1, LayerType: correlation, Inputs: [ { Name: q, Dimensions: [1,3,64,128], \
Datatype: Int8, Format: (NHWC) Channel major format }, { Name: r, Dimensions: [1], Datatype: \
Float, Format: (Linear) }], Constants: [ { Name: w, Dimensions: [32,3,3,3], Datatype: Int8, \
Format: (NHWC) Channel major format }, { Name: b, Datatype: Float, Format: (Linear) }], \
Outputs: [ { Name: y, Datatype: Float, Format: (NHWC) }], TacticName: __myelin_CASK_STUB, \
StreamId: 0, Metadata: [ONNX Layer: conv1][ONNX Layer: relu1]
Name: up_myl0_2, LayerType: deconv, Inputs: [ { Name: y, Datatype: Half, Format: (NHWC) }], \
Constants: [ { Name: w2, Datatype: Half, Format: (NHWC) }], Outputs: [ { Name: z, Datatype: Half, \
Format: (NHWC) }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: up]
Name: __myl_Tran_3, LayerType: kgen, Inputs: [ { Name: z, Datatype: Half, Format: (NHWC) }], \
Constants: [], Outputs: [ { Name: logits, Datatype: Half, Format: (Linear) }], TacticName: t, \
StreamId: 0, Metadata: \

I/O Tensors:
 Name: image, IOMode: Input, DataType: Half, Dimensions: [1,3,64,128], Location: Device
"""


def test_the_dump_of_tensorrt_rtx():
    engine = parse_dump(DUMP)
    assert [entry.kind for entry in engine] == ['kgen', 'correlation', 'deconv', 'kgen']
    proven = prove([layer('conv1'), layer('up')], engine)
    assert [entry.precision for entry in proven] == ['int8', 'fp16']


def test_a_dump_of_another_form_is_an_error_and_none_proves_nothing():
    with pytest.raises(ValueError):
        parse_dump(DUMP.replace('TacticName', 'Tactic'))
    assert prove([layer('conv1')], parse_dump(''))[0].precision == UNKNOWN


# By TensorRT-RTX 1.7.1 for SM 7.5, where weights are computed as the engine runs.
TURING = (
    'Layers:\n'
    'Name: conv_myl0_7, LayerType: correlation, Inputs: [ { Name: x, Dimensions: [1,8,8,16], '
    'Strides: [1024,1,128,8], StrideOrder: [3,0,2,1], Datatype: Half, Format: (NHWC) Channel '
    'major format }, { Name: w, Dimensions: [16,8,3,3], Strides: [72,1,24,8], StrideOrder: '
    '[3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }], Constants: [ { Name: '
    '__mye1247_const_myl0, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Float, '
    'Format: (Linear) Row major linear format }, { Name: __mye1251_const_myl0, Dimensions: [1], '
    'Strides: [1], StrideOrder: [0], Datatype: Float, Format: (Linear) Row major linear format }, '
    '{ Name: __mye968dconst_myl0, Dimensions: [1,16,1,1], Strides: [16,1,16,16], StrideOrder: '
    '[3,0,2,1], Datatype: Half, Format: (NHWC) Channel major format }], Outputs: [ { Name: y, '
    'Dimensions: [1,16,8,16], Strides: [2048,1,256,16], StrideOrder: [3,0,2,1], Datatype: Half, '
    'Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, '
    'Metadata: [ONNX Layer: conv]\x1f[ONNX Layer: relu]\n')


def test_the_dump_of_a_turing_gpu_says_that_it_runs_in_float():
    proven, = prove([layer('conv')], parse_dump(TURING))
    assert (proven.precision, proven.reason) == ('fp16', 'the engine runs it in fp16')
