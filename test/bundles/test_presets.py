# SPDX-License-Identifier: Apache-2.0
"""Presets: the tensor that a network's own repository makes of a pixel, written out as it does."""

import numpy as np
import onnx
import pytest
from support.networks import fcn

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.create import create
from trt_segmentation.bundles.labels import CITYSCAPES
from trt_segmentation.bundles.presets import PRESETS
from trt_segmentation.cli import main
from trt_segmentation.errors import InputError
from trt_segmentation.segmenters.preprocessing import Preprocessor

PIXEL = np.array([10, 100, 250], np.float64)  # red, green, blue
IMAGENET = (PIXEL / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
BY_THEIR_CODE = {
    'pidnet': IMAGENET,
    'ddrnet': IMAGENET,
    'bisenetv2': (PIXEL / 255 - [0.3257, 0.3690, 0.3223]) / [0.2112, 0.2148, 0.2115],
    'pp-liteseg': (PIXEL / 255 - 0.5) / 0.5,
    'segformer': (PIXEL - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375],
    'deeplabv3plus': IMAGENET,
    'fcn-resnet': IMAGENET,
    'tao-unet': PIXEL[::-1] / 127.5 - 1,
    'ultralytics': PIXEL / 255,
}


def saved(tmp_path, classes=19, size=(32, 64), free=False):
    model = fcn(size, classes)
    if free:
        for value in (*model.graph.input, *model.graph.output):
            for dim in value.type.tensor_type.shape.dim[2:]:
                dim.Clear()
        del model.graph.value_info[:]
    path = tmp_path / 'net.onnx'
    onnx.save(model, path)
    return path


@pytest.mark.parametrize('name', PRESETS)
def test_the_tensor_is_the_one_that_the_network_was_trained_with(tmp_path, name):
    classes = 21 if name == 'fcn-resnet' else 19
    created = create(saved(tmp_path, classes), tmp_path / 'bundle', like=name)
    image = np.broadcast_to(PIXEL.astype(np.uint8), (32, 64, 3))
    tensor = Preprocessor(created.spec.input)(image, 'rgb')
    assert np.allclose(tensor[0, :, 5, 7], BY_THEIR_CODE[name], atol=1e-5)
    assert created.assumed == (['labels'] if name == 'tao-unet' else [])
    text = (tmp_path / 'bundle/model.yaml').read_text()
    assert text.count(f'(preset {name})') == len(created.preset)
    assert PRESETS[name].source in text
    assert Bundle.open(tmp_path / 'bundle').spec == created.spec


def test_what_is_given_wins_and_is_said(tmp_path, capsys):
    path = saved(tmp_path)
    assert main(['init', str(path), str(tmp_path / 'b'), '--like', 'pidnet', '--color', 'bgr',
                 '--mean', '123.675', '116.28', '103.53']) == 0
    out = capsys.readouterr().out
    assert 'color: bgr as given, and not the rgb of preset pidnet' in out
    assert 'mean:' not in out  # it is the preset's own
    assert 'XuJiacong/PIDNet' in out and 'assumed' not in out
    spec = Bundle.open(tmp_path / 'b').spec
    assert (spec.input.color, spec.output.upsample, spec.labels) == (
        'bgr', 'align_corners', CITYSCAPES)


def test_a_free_size_is_the_preset_s_and_a_fixed_one_the_graph_s(tmp_path):
    created = create(saved(tmp_path, free=True), tmp_path / 'b1', like='ddrnet', size=(64, 128))
    assert created.spec.input.size == (64, 128)
    assert any('size: 64, 128 as given' in note for note in created.notes)
    created = create(saved(tmp_path), tmp_path / 'b2', like='ddrnet')
    assert created.spec.input.size == (32, 64) and 'size' not in created.preset


def test_other_classes_than_the_preset_s_are_refused(tmp_path):
    with pytest.raises(InputError, match='pidnet has 19 labels, .* gives 11 classes: give'):
        create(saved(tmp_path, 11), tmp_path / 'bundle', like='pidnet')
    with pytest.raises(InputError, match='fcn-resnet has 21 labels'):
        create(saved(tmp_path, 19), tmp_path / 'bundle', like='fcn-resnet')
    created = create(saved(tmp_path, 19), tmp_path / 'bundle', like='fcn-resnet',
                     labels='cityscapes')
    assert created.spec.labels == CITYSCAPES
    assert 'labels: cityscapes as given, and not the 21 labels' in ' '.join(created.notes)


def test_an_unknown_preset_names_the_nearest(tmp_path, capsys):
    path = saved(tmp_path)
    assert main(['init', str(path), str(tmp_path / 'b'), '--like', 'segfromer']) == 2
    line, = capsys.readouterr().err.splitlines()
    assert 'did you mean segformer?' in line and 'ultralytics' in line
    assert main(['init', str(path), str(tmp_path / 'b'), '--like', 'zzz']) == 2
    assert 'expected one of pidnet' in capsys.readouterr().err


def test_the_help_names_every_preset(capsys):
    with pytest.raises(SystemExit):
        main(['init', '--help'])
    out = ''.join(capsys.readouterr().out.split())
    assert all(name in out for name in PRESETS)


def test_colors_of_voc_are_those_of_its_development_kit():
    colors = {label.name: label.color for label in PRESETS['fcn-resnet'].labels.labels}
    assert len(colors) == 21
    assert colors['background'] == (0, 0, 0) and colors['aeroplane'] == (128, 0, 0)
    assert colors['person'] == (192, 128, 128) and colors['tvmonitor'] == (0, 64, 128)
