# SPDX-License-Identifier: Apache-2.0
"""What goes to OpenVINO and comes from it, run by OpenVINO; `make test-openvino` brings it."""

import numpy as np
import onnx
import openvino
from openvino import opset1
import openvino.opset13 as ops
import pytest
from support.bundles import sample_bundle

from trt_segmentation.bundles import golden
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.export.run import export
from trt_segmentation.segmenters.cpu import CpuSegmenter


class OpenVino:
    """A network in OpenVINO, behind what a segmenter asks of an engine."""

    def __init__(self, path, output):
        core = openvino.Core()
        self._model, self._output = core.compile_model(core.read_model(path), 'CPU'), output

    def infer(self, tensor):
        return {self._output: next(iter(self._model([tensor]).values()))}

    def close(self):
        self._model = None


def test_openvino_gives_the_float_network_s_masks(tmp_path):
    bundle = Bundle.open(sample_bundle(tmp_path))
    record = export(bundle, 'openvino', tmp_path / 'out')
    engine = OpenVino(tmp_path / 'out' / 'model.onnx', bundle.spec.output.tensor)
    equal = pixels = 0
    with CpuSegmenter(bundle.spec, engine) as segmenter:
        for _, image, mask in golden.read(bundle.golden_path):
            equal += (segmenter.segment(image, ('classes',)).classes == mask).sum()
            pixels += mask.size
    print(f'OpenVINO agrees on {equal / pixels:.4f}, ONNX Runtime on {record.agreement:.4f}')
    assert equal / pixels > 0.98


def openvino_network(half):
    """Return a network of the operators that Open Model Zoo's road segmentation has."""
    random = np.random.default_rng(0)
    kind = np.float16 if half else np.float32

    def constant(*shape):
        return ops.constant(random.normal(0, 0.4, shape).astype(kind))

    def convolution(x, channels, groups=1, stride=1):
        before = list(x.get_output_shape(0))[1]
        if groups > 1:
            x = ops.group_convolution(
                x, constant(groups, channels // groups, before // groups, 3, 3), [stride] * 2,
                [1, 1], [1, 1], [1, 1])
        else:
            x = ops.convolution(x, constant(channels, before, 3, 3), [stride] * 2, [1, 1], [1, 1],
                                [1, 1])
        return ops.add(x, constant(1, channels, 1, 1))

    data = ops.parameter([1, 3, 32, 48], np.float32, name='data')
    x = ops.convert(data, 'f16') if half else data
    x = first = ops.relu(convolution(x, 8, stride=2))
    x = ops.relu(convolution(x, 8, groups=8))
    x = opset1.max_pool(x, [2, 2], [0, 0], [0, 0], [2, 2], 'ceil')
    x = opset1.avg_pool(x, [2, 2], [0, 0], [0, 0], [2, 2], False, 'ceil')
    x = convolution(x, 8)
    size = ops.constant(np.array([16, 24], np.int64))
    x = opset1.interpolate(x, size, {'axes': [2, 3], 'mode': 'linear', 'align_corners': True})
    x = convolution(ops.add(x, first), 4)
    x = ops.interpolate(x, ops.constant(np.array([32, 48], np.int64)), 'linear_onnx', 'sizes',
                        [0] * 4, [0] * 4, 'align_corners', axes=ops.constant(np.array([2, 3])))
    x = ops.softmax(x, 1)
    return openvino.Model([ops.convert(x, 'f32') if half else x], [data], 'net')


@pytest.mark.parametrize('half', [False, True])
def test_an_openvino_network_becomes_the_same_in_onnx(half, tmp_path, capsys, monkeypatch):
    openvino.save_model(openvino_network(half), tmp_path / 'net.xml', compress_to_fp16=False)
    monkeypatch.setattr('sys.argv', ['from_openvino', str(tmp_path / 'net.xml'),
                                     str(tmp_path / 'net.onnx')])
    from training import from_openvino
    assert from_openvino.main() == 0
    said = capsys.readouterr().out
    assert 'compared' in said and 'written' in said
    network = onnx.load(tmp_path / 'net.onnx')
    kinds = [node.op_type for node in network.graph.node]
    assert kinds.count('Conv') == 4 and kinds.count('Add') == 1  # the others are biases
    groups = [a.i for node in network.graph.node for a in node.attribute if a.name == 'group']
    assert groups == [1, 8, 1, 1]


def test_an_operator_without_a_rule_is_named(tmp_path, monkeypatch):
    data = ops.parameter([1, 3, 8, 8], np.float32, name='data')
    network = openvino.Model([ops.sinh(data)], [data], 'net')
    from training import from_openvino
    with pytest.raises(SystemExit, match='no rule for operator Sinh'):
        from_openvino.convert(network)
