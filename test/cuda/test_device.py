# SPDX-License-Identifier: Apache-2.0
"""Which GPU is used: what CUDA is told before it starts."""

import os

import pytest

from trt_segmentation.cli import main
from trt_segmentation.cuda import device
from trt_segmentation.errors import InputError

UUID = 'GPU-8f3c2d10-1111-2222-3333-444455556666'


@pytest.fixture
def environment(monkeypatch):
    """A process in which CUDA has not started and nobody has chosen."""
    monkeypatch.setattr(device, '_choice', device._Choice())
    for name in ('CUDA_VISIBLE_DEVICES', 'CUDA_DEVICE_ORDER'):
        monkeypatch.setenv(name, '')  # so that it is put back
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize('gpu', ['1', '0', UUID, 'MIG-8f3c2d10-1111-2222-3333-444455556666'])
def test_an_index_or_a_uuid_is_all_that_cuda_shows(environment, gpu):
    device.select(gpu)
    assert os.environ['CUDA_VISIBLE_DEVICES'] == gpu
    assert os.environ['CUDA_DEVICE_ORDER'] == 'PCI_BUS_ID'


def test_an_index_counts_in_the_list_that_was_given(environment):
    environment.setenv('CUDA_VISIBLE_DEVICES', f'3,{UUID}')
    device.select('1')
    assert os.environ['CUDA_VISIBLE_DEVICES'] == UUID
    device.select('0')  # also after another choice
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '3'
    with pytest.raises(InputError, match=f"found '2', expected an index of .*=3,{UUID}"):
        device.select('2')


def test_without_a_choice_nothing_is_changed(environment):
    environment.setenv('CUDA_VISIBLE_DEVICES', '2')
    device.select('')
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '2' and 'CUDA_DEVICE_ORDER' not in os.environ


@pytest.mark.parametrize('gpu', ['-1', '1.0', 'first', '0,1', 'GPU-', ' 1', '٣'])
def test_anything_else_is_refused(environment, gpu):
    with pytest.raises(InputError, match='gpu: found .*nvidia-smi --list-gpus'):
        device.select(gpu)
    assert 'CUDA_VISIBLE_DEVICES' not in os.environ


def test_a_process_keeps_the_gpu_that_it_began_with(environment):
    device.select('1')
    device._choice.started = True
    device.select('1')
    with pytest.raises(InputError, match='gpu: 0 is asked for, but this process uses 1 already'):
        device.select('0')


def test_commands_tell_cuda_before_they_use_it(environment, tmp_path, capsys):
    assert main(['build', str(tmp_path / 'bundle'), '--gpu', '7']) == 2
    assert os.environ['CUDA_VISIBLE_DEVICES'] == '7'
    assert main(['replay', str(tmp_path / 'bundle'), '--bag', 'x', '--gpu', 'seven']) == 2
    assert "gpu: found 'seven'" in capsys.readouterr().err
