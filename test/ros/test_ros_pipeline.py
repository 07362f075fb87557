# SPDX-License-Identifier: Apache-2.0
"""The node's engine: whatever fails while it is opened, proven or opened again, it is closed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason="it is the node's")

from support.failures import Failures
from support.ros import built_bundle

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.ros.frame_pipeline import Pipeline
from trt_segmentation.ros.parameters import Wanted


def test_a_pipeline_that_fails_half_way_holds_nothing(tmp_path, monkeypatch):
    path = built_bundle(tmp_path / 'bundle', tmp_path / 'store', size=(32, 64))
    settings = SimpleNamespace(gpu='', store=str(tmp_path / 'store'))
    pipeline = Pipeline(lambda: 0, settings)

    def work():
        try:
            pipeline.open(Bundle.open(path), Wanted('onnxruntime', 'fp32', None, 1))
            pipeline.self_test()
            pipeline.failed = True
            pipeline.self_test()  # on a new engine
        finally:
            pipeline.close()

    Failures(monkeypatch).inject(work, 60)
