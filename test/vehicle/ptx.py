# SPDX-License-Identifier: Apache-2.0
"""The shipped PTX: made from the source beside it, and old enough for a vehicle's driver."""

import re

from trt_segmentation.cuda import kernels
from trt_segmentation.cuda.compile import compile_ptx, PTX


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
    assert len(entries) == 14
    for name, arguments in entries.items():
        signature = {'input': kernels.INPUT_SIGNATURE, 'convert': kernels.CONVERT_SIGNATURE}.get(
            name.split('_')[0], kernels.OUTPUT_SIGNATURE)
        assert re.findall(r'\.param \.(\w+)', arguments) == [sizes[c] for c in signature]
