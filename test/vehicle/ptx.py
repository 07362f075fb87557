# SPDX-License-Identifier: Apache-2.0
"""The shipped PTX: of the source beside it, old enough for vehicles' drivers, and what it does."""

import re

import cv2
import numpy as np
from ptx_on_cpu import Kernel, Memory
import pytest
from support.jpegs import with_planes

from trt_segmentation.cuda import kernels
from trt_segmentation.cuda.compile import compile_ptx, PTX
from trt_segmentation.recordings import jpeg, layouts
from trt_segmentation.recordings.layouts import CAMERAS


def test_the_shipped_ptx_is_what_the_source_compiles_to():
    assert PTX.read_text() == compile_ptx()


def test_drivers_from_cuda_11_0_on_and_gpus_from_xavier_on_take_it():
    text = PTX.read_text()
    assert re.search(r'^\.version 7\.0$', text, re.MULTILINE)
    assert re.search(r'^\.target sm_72$', text, re.MULTILINE)


def test_each_kernel_has_the_arguments_that_python_packs():
    text = PTX.read_text()
    sizes = {'P': 'u64', 'i': 'u32', 'f': 'f32'}
    entries = dict(re.findall(r'\.visible \.entry (\w+)\((.*?)\)', text, re.DOTALL))
    assert len(entries) == 15
    for name, arguments in entries.items():
        signature = {'input': kernels.INPUT_SIGNATURE, 'convert': kernels.CONVERT_SIGNATURE}.get(
            name.split('_')[0], kernels.OUTPUT_SIGNATURE)
        assert re.findall(r'\.param \.(\w+)', arguments) == [sizes[c] for c in signature]


class Module:
    """The shipped kernels, as PyCUDA has a module."""

    def __init__(self, memory):
        self._memory = memory

    def get_function(self, name):
        self._kernel = Kernel(PTX.read_text(), name)
        return self

    def prepare(self, signature):
        return self

    def prepared_async_call(self, grid, block, stream, *arguments):
        self._kernel.run(self._memory, grid[:2], block[0], *arguments)


@pytest.mark.parametrize('layout', CAMERAS)
@pytest.mark.parametrize('size', [(2, 2), (4, 6), (6, 130), (3, 5), (5, 131)])
def test_what_is_shipped_makes_opencv_s_bgr_of_cameras_images(layout, size):
    """Each byte is written once, and none beside them is read."""
    size = tuple(length + length % 2 * even for length, even in zip(size, CAMERAS[layout].even))
    raw = np.random.default_rng(0).integers(0, 256, layouts.shape(size, layout), np.uint8)
    bgr = np.zeros((*size, 3), np.uint8)
    memory = Memory(raw, bgr)
    kernels.convert(Module(memory), None, layout, size, *memory.addresses)
    assert np.array_equal(bgr, cv2.cvtColor(raw, CAMERAS[layout].code))
    assert (memory.written[1] == 1).all() and not memory.written[0].any()


@pytest.mark.parametrize('sampling', jpeg.PLAIN)
@pytest.mark.parametrize('size', [(1, 5), (6, 8), (5, 131)])
def test_what_is_shipped_makes_libjpeg_s_bgr_of_planes(sampling, size):
    rng = np.random.default_rng(0)
    planes = [rng.integers(0, 256, each, np.uint8) for each in jpeg.plane_sizes(size, sampling)]
    expected = np.dstack(planes[:1] * 3)
    if sampling != jpeg.GRAY:
        data, planes = with_planes(planes, sampling)
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    raw, bgr = np.concatenate([plane.ravel() for plane in planes]), np.zeros((*size, 3), np.uint8)
    memory = Memory(raw, bgr)
    kernels.convert(Module(memory), None, sampling, size, *memory.addresses)
    assert np.array_equal(bgr, expected)
    assert (memory.written[1] == 1).all() and not memory.written[0].any()
