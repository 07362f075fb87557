# SPDX-License-Identifier: Apache-2.0
"""
Whose file a network is, and a framework that is missing, fails, or dies in its process.

What TensorFlow and PyTorch really convert is compared in `make test-tensorflow`, `test-pytorch`.
"""

import os
import sys
import zipfile

import numpy as np
import onnxruntime
import pytest
from support.networks import Builder

from trt_segmentation.cli import main
from trt_segmentation.errors import InputError
from trt_segmentation.networks.fold import fold_padding
from trt_segmentation.networks.frameworks.recognize import framework_of


def zipped(path, *names):
    with zipfile.ZipFile(path, 'w') as archive:
        for name in names:
            archive.writestr(name, b'x')


def test_a_file_is_known_by_what_is_in_it(tmp_path):
    (tmp_path / 'saved').mkdir()
    (tmp_path / 'saved/saved_model.pb').write_bytes(b'x')
    (tmp_path / 'frozen.pb').write_bytes(b'\n\x05')
    (tmp_path / 'weights.any').write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(8))
    zipped(tmp_path / 'a', 'config.json', 'metadata.json', 'model.weights.h5')
    zipped(tmp_path / 'b', 'net/archive_format', 'net/models/model.json', 'net/data/constants/c')
    zipped(tmp_path / 'c', 'net/data.pkl', 'net/code/__torch__.py', 'net/constants.pkl')
    (tmp_path / 'net.onnx').write_bytes(b'\x08\x08')
    found = {name: framework_of(tmp_path / name) for name in (
        'saved', 'frozen.pb', 'weights.any', 'a', 'b', 'c', 'net.onnx', 'missing')}
    assert found == {
        'saved': 'tensorflow', 'frozen.pb': 'tensorflow', 'weights.any': 'tensorflow',
        'a': 'tensorflow', 'b': 'pytorch', 'c': 'pytorch', 'net.onnx': '', 'missing': ''}


@pytest.mark.parametrize(('name', 'said'), [
    ('net.tflite', 'TensorFlow Lite'), ('net.plan', 'name the network that it was built from'),
    ('net.engine', 'engine of TensorRT'), ('net.caffemodel', '--weights'),
    ('deploy.prototxt', '--weights'), ('net.pdmodel', 'paddle2onnx'), ('net.ckpt', 'checkpoint')])
def test_other_files_say_what_to_do(tmp_path, name, said):
    (tmp_path / name).write_bytes(b'something')
    with pytest.raises(InputError, match=said):
        framework_of(tmp_path / name)


def test_pickles_damaged_archives_and_directories_are_refused(tmp_path):
    zipped(tmp_path / 'weights.pth', 'weights/data.pkl', 'weights/version')
    (tmp_path / 'old.pt').write_bytes(b'\x80\x02}q\x00.')
    for name in ('weights.pth', 'old.pt'):
        with pytest.raises(InputError, match=r'it is a pickle .* torch\.export\.save'):
            framework_of(tmp_path / name)
    zipped(tmp_path / 'docs.zip', 'readme.txt')
    with pytest.raises(InputError, match='none of PyTorch or Keras'):
        framework_of(tmp_path / 'docs.zip')
    (tmp_path / 'cut.keras').write_bytes((tmp_path / 'docs.zip').read_bytes()[:30])
    with pytest.raises(InputError, match='damaged or cut off'):
        framework_of(tmp_path / 'cut.keras')
    with pytest.raises(InputError, match='it is a directory'):
        framework_of(tmp_path)


# A module `torch` that is none, and what is said of it.
TORCHES = {
    'raise ModuleNotFoundError("No module named torch", name="torch")':
        "needs the Python module 'torch', which is not installed: pip install '.[pytorch]'",
    'raise ImportError("libc10.so: cannot open shared object file")':
        'PyTorch cannot convert it: libc10.so: cannot open',
    'import os, signal; os.kill(os.getpid(), signal.SIGKILL)':
        'PyTorch was ended by SIGKILL, perhaps for want of memory',
    'import os, sys; print("no\\nAVX2 here", file=sys.stderr); os._exit(3)':
        'PyTorch ended with code 3: AVX2 here',
    'print("noise"); raise RuntimeError("\\n\\nfirst line\\nsecond\\nthird")':
        'PyTorch cannot convert it: first line second',
}


@pytest.mark.parametrize(('code', 'said'), TORCHES.items())
def test_whatever_a_framework_does_is_one_line(tmp_path, monkeypatch, capfd, code, said):
    (tmp_path / 'torch.py').write_text(code)
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    zipped(tmp_path / 'net.pt', 'net/data.pkl', 'net/constants.pkl')
    assert main(['init', str(tmp_path / 'net.pt'), str(tmp_path / 'bundle')]) == 2
    out, err = capfd.readouterr()
    line, = err.splitlines()
    assert said in line and not out
    assert not os.path.exists(tmp_path / 'bundle')


@pytest.mark.parametrize(('pads', 'value', 'folded'), [
    ([0, 0, 0, 1, 0, 0, 1, 2], None, True), ([0, 0, 2, 2, 0, 0, 0, 0], 0., True),
    ([0, 0, 1, 1, 0, 0, 1, 1], 1., False), ([0, 1, 0, 0, 0, 0, 0, 0], None, False),
    ([0, 0, -1, 0, 0, 0, 0, 0], None, False)])
def test_padding_goes_into_the_convolutions_behind_it(pads, value, folded):
    b = Builder((8, 12))
    inputs = ['image', b.constant('pads', np.array(pads))]
    inputs += [] if value is None else [b.constant('value', np.float32(value))]
    x = b.node('Pad', inputs, 'padded')
    channels = 3 + pads[1]
    left = b.conv(x, 'left', channels, 4)
    right = b.conv(x, 'right', channels, 4, dilations=[2, 2], pads=[2, 2, 2, 2])
    model = b.model(b.node('Add', [left, right], 'sum'), shape=[None] * 4)
    tensor = np.random.default_rng(0).normal(0, 1, (1, 3, 8, 12)).astype(np.float32)

    def run():
        session = onnxruntime.InferenceSession(model.SerializeToString(),
                                               providers=['CPUExecutionProvider'])
        return session.run(None, {'image': tensor})[0]

    expected = run()
    assert fold_padding(model) == folded
    assert ('Pad' in {node.op_type for node in model.graph.node}) != folded
    assert np.allclose(run(), expected, atol=1e-5)
