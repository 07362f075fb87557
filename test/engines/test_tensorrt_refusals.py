# SPDX-License-Identifier: Apache-2.0
"""Refusals as libraries wrote them, and what a user is told."""

import pytest

from trt_segmentation.engines.tensorrt.module import Log
from trt_segmentation.engines.tensorrt.refusals import explained, REFUSALS

# By TensorRT-RTX 1.6.1's builder for SM 8.6 and a Q/DQ network (run on a machine without a GPU);
# the others as users of TensorRT reported them in public.
RECORDED = {
    'no INT8 convolutions':
        'IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([myelin_graph.h:1259: '
        'attachExceptionMsgToGraph] MyelinCheckException: cudnn_impl.cpp:89: CHECK(dtype == '
        'myelinTypeFloat || dtype == myelinTypeHalf || dtype == myelinTypeBF16 || dtype == '
        'myelinTypeFP8E4M3) failed.  In compileGraph at '
        '/_src/optimizer/myelin/codeGenerator.cpp:1962)',
    'does not run on this GPU':
        'IBuilder::buildSerializedNetwork: Error Code 9: API Usage Error (Target GPU SM 61 is not '
        'supported by this TensorRT release.)',
    'the GPU sm86 has no fp8_e4m3':
        'Cannot compile for target(s) sm86, because the model contains HW-specific datatypes: '
        'fp8_e4m3',
    'too little free memory':
        '../builder/tacticOptimizer.cpp (1230) - OutOfMemory Error in computeCosts: 0',
    'no kernel on this GPU for 002_convolutional,':
        '[optimizer.cpp::computeCosts::3869] Error Code 10: Internal Error (Could not find any '
        'implementation for node 002_convolutional.)',
    'does not know an operator':
        'In node 972 (importFallbackPluginImporter): UNSUPPORTED_NODE: Assertion failed: creator '
        '&& "Plugin not found, are the plugin name, version, and namespace correct?"',
    'another version of the library built the engine':
        '6: The engine plan file is not compatible with this version of TensorRT, expecting '
        'library version 8.0.0 got 8.0.1, please rebuild.',
    'built on another GPU':
        'IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is '
        'generated on an incompatible device, expecting compute 8.9 got compute 8.6, please '
        'rebuild.)',
    'names another calibration method':
        'Calibration table does not match calibrator algorithm type',
}
OTHERS = {
    'another version': (
        '[stdArchiveReader.cpp::StdArchiveReader::35] Error Code 1: Serialization (Serialization '
        'assertion safeVersionRead == safeSerializationVersion failed.Version tag does not match. '
        'Note: Current Version: 0, Serialized Engine Version: 96)'),
    'on this GPU for {ForeignNode[onnx::Gather_72...ScatterND_170]},': (
        '[optimizer.cpp::computeCosts::2011] Error Code 10: Internal Error (Could not find any '
        'implementation for node {ForeignNode[onnx::Gather_72...ScatterND_170]}.)'),
    'on this GPU for (Unnamed Layer* 1) [TopK],': (
        'Internal error: could not find any implementation for node (Unnamed Layer* 1) [TopK], '
        'try increasing the workspace size with IBuilder::setMaxWorkspaceSize()'),
    'not run on this GPU': '../rtSafe/cuda/caskUtils.cpp (80) - Assertion Error in trtSmToCask: 0 '
                           '(Unsupported SM.)',
}


@pytest.mark.parametrize('cause', [*RECORDED, *OTHERS])
def test_a_known_refusal_is_a_sentence_with_what_to_do(cause):
    text = {**RECORDED, **OTHERS}[cause]
    found = explained(text)
    assert cause in found and '\n' not in found
    before, _, own = found.partition(' (the library: ')
    assert '; ' in before  # the cause; what to do
    assert own.startswith(' '.join(text.split())[:100])


def test_an_unknown_refusal_is_kept_as_it_is():
    assert explained('no tactic for layer 7') == 'no tactic for layer 7'
    assert explained('two\n lines') == 'two lines'


def test_the_log_explains_the_known_one_among_its_errors():
    log = Log()
    for text in (RECORDED['no INT8 convolutions'], 'a', 'b', 'c'):
        log.add('ERROR', text)
    assert log.reason().startswith('this TensorRT-RTX has no INT8 convolutions; install')
    assert Log().reason() == 'the library logged no error'


def test_no_pattern_takes_what_another_one_means():
    for text in RECORDED.values():
        assert sum(bool(refusal.pattern.search(text)) for refusal in REFUSALS) == 1, text
