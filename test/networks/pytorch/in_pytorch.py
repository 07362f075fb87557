# SPDX-License-Identifier: Apache-2.0
"""Networks of PyTorch give as bundles what they give in PyTorch (`make test-pytorch`)."""

import io
import pickle
import zipfile

import numpy as np
import onnx
import pytest
from support.networks import infer
import torch
from torch import nn
from torch.nn import functional

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.create import create
from trt_segmentation.bundles.labels import Label, LabelSet
from trt_segmentation.cli import main
from trt_segmentation.errors import InputError

CLASSES, SIZE = 5, (32, 48)
LABELS = LabelSet(tuple(Label(f'l{i}', i, (i, i, i), 'c') for i in range(CLASSES)))
PIXELS = np.random.default_rng(1).integers(0, 256, (1, 3, *SIZE)).astype(np.float32)


class Net(nn.Module):
    """A small network with what segmentation networks have."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8),
                                  nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 2, dilation=2), nn.BatchNorm2d(16),
                                  nn.Hardswish())
        self.head, self.aux = nn.Conv2d(24, CLASSES, 1), nn.Conv2d(8, CLASSES, 1)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, .3)
                part.running_var.uniform_(.5, 2)
        self.eval()

    def forward(self, image):
        low = self.stem(image)
        x = self.deep(low)
        x = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
        x = functional.interpolate(x, low.shape[2:], mode='bilinear', align_corners=False)
        x = self.head(torch.cat([x, low], 1))
        return functional.interpolate(x, scale_factor=2., mode='bilinear', align_corners=True)


class TwoHeads(Net):
    """Like those of torchvision: it returns a dictionary."""

    def forward(self, image):
        return {'out': super().forward(image), 'aux': self.aux(self.stem(image))}


def check(path, tmp_path, expected, **options):
    created = create(path, tmp_path / 'bundle', labels=LABELS, mean=(0, 0, 0),
                     scale=(1 / 255,) * 3, **options)
    bundle = Bundle.open(tmp_path / 'bundle')
    found = infer(bundle.model_path, PIXELS / np.float32(255))
    assert np.abs(found - expected.numpy()).max() < 1e-4 * expected.abs().max()
    assert 'torch.onnx' in created.changes[0]
    assert 'of what PyTorch gives' in created.changes[0]
    # No path and no line of the training code goes along.
    assert __file__.encode() not in bundle.model_path.read_bytes()
    assert not any(node.metadata_props for node in onnx.load(bundle.model_path).graph.node)
    return created


def given(network):
    with torch.no_grad():
        return network(torch.from_numpy(PIXELS / np.float32(255)))


@pytest.mark.parametrize('free', [False, True])
def test_exported_programs(tmp_path, free):
    network = Net()
    image = torch.rand(2 if free else 1, 3, *SIZE)
    sizes = {'image': dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)} if free else None
    path = tmp_path / 'net.pt2'
    torch.export.save(torch.export.export(network, (image,), dynamic_shapes=sizes), path)
    if free:
        with pytest.raises(InputError, match="'image' has no fixed size .* --size"):
            create(path, tmp_path / 'bundle', labels=LABELS)
    else:
        with pytest.raises(InputError, match='is 32x48 .* and --size 8 16 is not'):
            create(path, tmp_path / 'bundle', labels=LABELS, size=(8, 16))
    created = check(path, tmp_path, given(network), size=SIZE if free else None)
    assert created.spec.input.tensor == 'image'


def test_a_program_in_training_mode_is_refused_for_that(tmp_path):
    torch.export.save(torch.export.export(Net().train(), (torch.rand(1, 3, *SIZE),)),
                      tmp_path / 'net.pt2')
    with pytest.raises(InputError, match=r'differs .* training mode, by its batch_norm \(2\): .*'
                                         r'eval\(\)'):
        create(tmp_path / 'net.pt2', tmp_path / 'bundle', labels=LABELS)


@pytest.mark.parametrize('way', ['script', 'trace'])
def test_torchscript(tmp_path, way):
    network = Net()
    scripted = (torch.jit.trace(network, torch.rand(1, 3, *SIZE)) if way == 'trace'
                else torch.jit.script(network))
    scripted.save(tmp_path / 'net.pt')
    with pytest.raises(InputError, match="'image' has no fixed size .* --size"):
        create(tmp_path / 'net.pt', tmp_path / 'bundle', labels=LABELS)
    check(tmp_path / 'net.pt', tmp_path, given(network), size=SIZE)


@pytest.mark.parametrize('name', ['net.pt', 'net.pt2'])
def test_heads_are_named_by_the_keys_of_their_dictionary(tmp_path, name):
    network, image = TwoHeads(), torch.rand(1, 3, *SIZE)
    if name == 'net.pt2':
        torch.export.save(torch.export.export(network, (image,)), tmp_path / name)
    else:
        torch.jit.trace(network, image, strict=False).save(tmp_path / name)
    with pytest.raises(InputError, match='2 outputs; name one with --output: out .*, aux'):
        create(tmp_path / name, tmp_path / 'bundle', labels=LABELS, size=SIZE)
    for head in ('aux', 'out'):
        (tmp_path / head).mkdir()
        check(tmp_path / name, tmp_path / head, given(network)[head], size=SIZE,
              output_tensor=head)


class Payload:
    """Something that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


def test_pickles_are_refused_and_not_loaded(tmp_path, capsys):
    mark = tmp_path / 'mark'
    torch.save(Net(), tmp_path / 'module.pt')
    torch.save(Net().state_dict(), tmp_path / 'weights.pth')
    torch.save(Payload(mark), tmp_path / 'payload.pt')
    torch.save(Payload(mark), tmp_path / 'old.pt', _use_new_zipfile_serialization=False)
    for name in ('module.pt', 'weights.pth', 'payload.pt', 'old.pt'):
        assert main(['init', str(tmp_path / name), str(tmp_path / 'bundle')]) == 2
        line, = capsys.readouterr().err.splitlines()
        assert 'it is a pickle' in line and 'torch.export.save' in line
    assert not mark.exists()


def test_a_pickle_inside_an_exported_program_is_not_loaded(tmp_path, capsys):
    program = torch.export.export(Net(), (torch.rand(1, 3, *SIZE),))
    torch.export.save(program, tmp_path / 'net.pt2')
    payload = io.BytesIO()
    torch.save(Payload(tmp_path / 'mark'), payload)
    with zipfile.ZipFile(tmp_path / 'net.pt2') as good, \
            zipfile.ZipFile(tmp_path / 'bad.pt2', 'w') as bad:
        changed = [name for name in good.namelist() if 'sample_inputs' in name]
        assert changed
        for name in good.namelist():
            bad.writestr(name, payload.getvalue() if name in changed else good.read(name))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(payload.getvalue()))
    assert main(['init', str(tmp_path / 'bad.pt2'), str(tmp_path / 'bundle')]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert 'PyTorch cannot convert it' in line
    assert not (tmp_path / 'mark').exists()


def test_damaged_files_and_other_forwards_are_one_line(tmp_path, capsys):
    torch.jit.script(Net()).save(tmp_path / 'net.pt')
    data = (tmp_path / 'net.pt').read_bytes()
    (tmp_path / 'cut.pt').write_bytes(data[:len(data) // 2])

    class Two(nn.Module):
        def forward(self, left, right):
            return left + right

    image = torch.rand(1, 3, *SIZE)
    torch.export.save(torch.export.export(Two(), (image, image)), tmp_path / 'two.pt2')
    torch.jit.script(nn.Conv2d(4, 2, 1)).save(tmp_path / 'four.pt')
    for name, said in {'cut.pt': 'damaged or cut off', 'two.pt2': '2 inputs',
                       'four.pt': 'PyTorch cannot convert it: '}.items():
        assert main(['init', str(tmp_path / name), str(tmp_path / 'bundle'), '--size', '32',
                     '48']) == 2
        line, = capsys.readouterr().err.splitlines()
        assert said in line, line
