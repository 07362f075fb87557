# SPDX-License-Identifier: Apache-2.0
"""The file exported for OpenVINO, run by OpenVINO; `make test-openvino` brings the library."""

import openvino
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
