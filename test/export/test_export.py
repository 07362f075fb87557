# SPDX-License-Identifier: Apache-2.0
"""Exported files, read by other libraries and compared with what their programs would compute."""

import configparser
import hashlib
import json
import re
import shutil
import struct
import subprocess

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from support.bundles import foreign_bundle, sample_bundle, small_bundle, SMALL_LIMITS
import yaml

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import Cache
from trt_segmentation.bundles.manifest import int8_network
from trt_segmentation.cli import main
from trt_segmentation.engines.onnxruntime import vehicle_emulation
from trt_segmentation.errors import InputError
from trt_segmentation.export.run import export
from trt_segmentation.export.targets import TARGETS
from trt_segmentation.networks.session import Session
from trt_segmentation.segmenters.preprocessing import Preprocessor


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return Bundle.open(sample_bundle(tmp_path_factory.mktemp('sample')))


@pytest.fixture(scope='module')
def exported(bundle, tmp_path_factory):
    root = tmp_path_factory.mktemp('exported')
    return {target: (export(bundle, target, root / target), root / target) for target in TARGETS}


def run(path, tensor, unfused=True):
    """Run a file with ONNX Runtime as it stands."""
    options = onnxruntime.SessionOptions()
    if unfused:
        options.add_session_config_entry('session.disable_quant_qdq', '1')
    session = onnxruntime.InferenceSession(str(path), options, ['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: tensor})[0]


def tensor_of(bundle, seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (*bundle.spec.input.size, 3), np.uint8)
    return image, Preprocessor(bundle.spec.input)(image)


@pytest.mark.parametrize('target', TARGETS)
def test_every_export_is_whole_and_vouched_for(bundle, exported, target):
    record, path = exported[target]
    subprocess.run(['sha256sum', '--check', '--strict', '--quiet', 'SHA256SUMS'], cwd=path,
                   check=True)
    stored = json.loads((path / 'export.json').read_text())
    assert stored['model_sha256'] == hashlib.sha256(bundle.model_path.read_bytes()).hexdigest()
    assert stored['cache_sha256'] == hashlib.sha256(bundle.cache_path.read_bytes()).hexdigest()
    assert stored['agreement'] == record.agreement > 0.97 and stored['golden_frames'] == 2
    onnx.checker.check_model(onnx.load(path / 'model.onnx'), full_check=True)
    for script in path.glob('*.sh'):
        subprocess.run(['sh', '-n', script], check=True)


@pytest.mark.parametrize('target', ['tensorrt-11', 'triton', 'autoware', 'openvino'])
def test_the_quantized_network_computes_what_is_proven(bundle, exported, target):
    _, tensor = tensor_of(bundle)
    engine, _ = vehicle_emulation(bundle)
    expected = engine.infer(tensor)[bundle.spec.output.tensor]
    np.testing.assert_array_equal(run(exported[target][1] / 'model.onnx', tensor), expected)


def test_pairs_are_what_tensorrt_11_takes(exported):
    for name in ('model.onnx', 'model_fp16.onnx'):
        model = onnx.load(exported['tensorrt-11'][1] / name)
        values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        pairs = [n for n in model.graph.node if n.op_type in ('QuantizeLinear',
                                                              'DequantizeLinear')]
        assert pairs and model.opset_import[0].version == 17
        for node in pairs:
            assert values[node.input[1]].dtype == np.float32
            assert values[node.input[2]].dtype == np.int8 and not values[node.input[2]].any()


@pytest.mark.parametrize('target, header', [('tensorrt-8', 'TRT-8601-EntropyCalibration2'),
                                            ('tensorrt-10', 'TRT-100300-EntropyCalibration2')])
def test_the_cache_carries_the_scales_under_the_version_s_header(bundle, exported, target, header):
    lines = (exported[target][1] / 'calibration.cache').read_text().splitlines()
    assert lines[0] == header
    found = {name: struct.unpack('>f', bytes.fromhex(digits))[0]
             for name, digits in (line.rsplit(': ', 1) for line in lines[1:])}
    assert found == dict(Cache.read(bundle.cache_path).scales)
    model = onnx.load(exported[target][1] / 'model.onnx')
    # The original's too: TensorRT passes over names that its network does not have.
    tensors = {name for graph in (model.graph, onnx.load(bundle.model_path).graph)
               for node in graph.node for name in (*node.input, *node.output)}
    assert set(found) <= tensors
    assert not any(node.op_type == 'QuantizeLinear' for node in model.graph.node)


def test_deepstream_s_formulas_give_the_tensor_and_the_classes(bundle, exported):
    path = exported['deepstream'][1]
    parser = configparser.ConfigParser()
    parser.read(path / 'nvinfer.txt')
    config = parser['property']
    image, tensor = tensor_of(bundle)
    planes = image if config['model-color-format'] == '1' else image[..., ::-1]
    offsets = np.array([float(value) for value in config['offsets'].split(';')])
    computed = float(config['net-scale-factor']) * (planes.astype(np.float64) - offsets)
    np.testing.assert_allclose(computed.transpose(2, 0, 1)[None], tensor, atol=1e-5)
    probabilities = run(path / 'model.onnx', tensor)
    # What the cache was made for: in float, rounded weights give other classes here and there.
    network = bundle.path / int8_network(bundle).file
    logits = Session(network).infer(tensor)[bundle.spec.output.tensor]
    np.testing.assert_array_equal(probabilities.argmax(1), logits.argmax(1))
    assert probabilities.min() >= 0 and np.allclose(probabilities.sum(1), 1, atol=1e-5)
    assert int(config['num-detected-classes']) == logits.shape[1]
    assert len((path / config['labelfile-path']).read_text().splitlines()) == logits.shape[1]


def test_isaac_s_formulas_give_the_tensor_and_positive_channels_are_last(bundle, exported):
    path = exported['isaac'][1]
    parameters = yaml.safe_load((path / 'isaac_ros.yaml').read_text())
    encoder = parameters['dnn_image_encoder']
    image, tensor = tensor_of(bundle)
    assert encoder['input_encoding'] == 'bgr8'
    computed = (image / 255 - encoder['image_mean']) / encoder['image_stddev']
    np.testing.assert_allclose(computed.transpose(2, 0, 1)[None], tensor, atol=1e-5)
    found = run(path / 'model.onnx', tensor)
    expected = run(exported['tensorrt-11'][1] / 'model.onnx', tensor)
    assert found.min() >= 0 and np.allclose(found.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(found.argmax(-1), expected.argmax(1))
    decoder = parameters['unet_decoder']
    assert (decoder['mask_height'], decoder['mask_width']) == found.shape[1:3]


def test_triton_s_dimensions_are_the_network_s(exported):
    path = exported['triton'][1]
    text = (path / 'config.pbtxt').read_text()
    graph = onnx.load(path / 'model.onnx').graph
    for value in (*graph.input, *graph.output):
        dims = ', '.join(str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        assert re.search(rf'name: "{value.name}" data_type: TYPE_FP32 dims: \[{dims}\]', text)


def test_the_cpu_s_file_does_not_saturate_anywhere(exported):
    model = onnx.load(exported['onnxruntime'][1] / 'model.onnx')
    weights = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer]
    assert max(np.abs(w.astype(int)).max() for w in weights if w.dtype == np.int8) <= 63


def test_a_contract_that_a_program_cannot_keep_is_refused(tmp_path):
    bundle = Bundle.open(foreign_bundle(tmp_path))  # one scale a channel
    with pytest.raises(InputError, match='input.scale: found .* one net-scale-factor'):
        export(bundle, 'deepstream', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    export(bundle, 'isaac', tmp_path / 'isaac')
    parameters = yaml.safe_load((tmp_path / 'isaac' / 'isaac_ros.yaml').read_text())
    assert parameters['dnn_image_encoder']['input_encoding'] == 'rgb8'
    assert parameters['dnn_image_encoder']['enable_padding'] is True


def test_usage(bundle, exported, tmp_path, capsys):
    assert main(['export', str(bundle.path), '--for', 'openvino', '--output',
                 str(tmp_path / 'out'), '--format', 'json']) == 0
    assert json.loads(capsys.readouterr().out)['target'] == 'openvino'
    assert main(['export', str(bundle.path), '--for', 'openvino', '--output',
                 str(tmp_path / 'out')]) == 2
    assert 'out: exists already' in capsys.readouterr().err


@pytest.mark.parametrize(('acceptance', 'kept', 'said'), [
    (SMALL_LIMITS, True, ''),
    ({'min_agreement': 1.0, 'min_class_agreement': 0, 'min_int8_share': 0}, True,
     "REFUSED    this bundle's limits would refuse it: agreement 0."),
    ({'min_agreement': 0, 'min_class_agreement': 0, 'min_int8_share': 1.0}, True,
     "REFUSED    this bundle's limits would refuse it: "),
    (SMALL_LIMITS, False, 'UNPROVEN   the bundle has no golden frames')])
def test_what_would_be_refused_is_said_first(acceptance, kept, said, tmp_path, capsys):
    path = small_bundle(tmp_path)
    spec = yaml.safe_load((path / 'model.yaml').read_text())
    (path / 'model.yaml').write_text(yaml.safe_dump({**spec, 'acceptance': acceptance}))
    if not kept:
        shutil.rmtree(path / 'golden')
    assert main(['seal', str(path)]) == 0
    capsys.readouterr()
    assert main(['export', str(path), '--for', 'tensorrt-11', '--output',
                 str(tmp_path / 'out')]) == 0
    first, *_, before, last = capsys.readouterr().out.splitlines()
    assert before.startswith(f'written    {tmp_path / "out"}: ')
    assert first.startswith(said) and first.startswith(('REFUSED', 'UNPROVEN')) == bool(said)
    assert last.endswith(str(tmp_path / 'out' / 'build.sh'))
    assert ('if all is right' in last) == bool(said)
    stored = json.loads((tmp_path / 'out' / 'export.json').read_text())
    assert bool(stored['refused']) == said.startswith('REFUSED')


def test_a_blind_network_s_export_is_unproven(tmp_path, capsys):
    path = small_bundle(tmp_path)
    for mask in (path / 'golden').glob('*.mask.png'):
        cv2.imwrite(str(mask), np.zeros_like(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)))
    assert main(['seal', str(path)]) == 0
    capsys.readouterr()
    assert main(['export', str(path), '--for', 'openvino', '--output', str(tmp_path / 'out')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith('UNPROVEN   the golden frames show next to nothing but road')
               and str(path) in line for line in lines)
