# SPDX-License-Identifier: Apache-2.0
"""An engine whose share of INT8 cannot be told is refused, and says why."""

import numpy as np
from onnx import helper
import pytest
from support.networks import fcn, write_bundle

from trt_segmentation import calibrate
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cli import main
from trt_segmentation.engines.build import build
from trt_segmentation.errors import CheckFailed


@pytest.fixture
def bundle(tmp_path):
    """A calibrated bundle of a network that a runtime has optimized."""
    model = fcn()
    node = next(node for node in model.graph.node if node.name == 'relu3_conv_node')
    node.op_type, node.domain = 'FusedConv', 'com.microsoft'
    model.opset_import.append(helper.make_opsetid('com.microsoft', 1))
    path = write_bundle(tmp_path / 'bundle', model, acceptance={
        'min_agreement': 0.0, 'min_class_agreement': 0.0, 'min_int8_share': 0.0})
    rng = np.random.default_rng(0)
    calibrate(path, [rng.integers(0, 256, (32, 64, 3), np.uint8) for _ in range(5)],
              count=3, golden=2, report=False)
    return path


def test_it_is_refused_with_its_reason_even_where_no_share_is_asked_for(bundle, tmp_path):
    with pytest.raises(CheckFailed) as error:
        build(Bundle.open(bundle), backend='onnxruntime', store=tmp_path / 'store')
    message = str(error.value).replace(str(tmp_path), '')  # which has a number of its own
    assert 'is not known' in message
    assert 'relu3_conv_node' in message
    assert 'com.microsoft.FusedConv is not an operator of ONNX' in message
    assert '0.0%' not in message and '100' not in message


def test_a_waiver_is_shown_as_such(bundle, tmp_path, capsys):
    store = str(tmp_path / 'store')
    assert main(['build', str(bundle), '--backend', 'onnxruntime', '--store', store,
                 '--allow-float']) == 0
    assert 'WAIVED' in (out := capsys.readouterr().out) and 'not known' in out
    assert '%' not in out.split('int8', 2)[1].splitlines()[0]
