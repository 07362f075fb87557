# SPDX-License-Identifier: Apache-2.0
"""The node's engine, closed whatever fails while it is opened, and what it is given of a frame."""

from __future__ import annotations

from array import array
from time import monotonic_ns
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason="it is the node's")

from sensor_msgs.msg import Image
from support.failures import Failures
from support.messages import Camera
from support.ros import BACKEND

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.recordings.image_messages import ENCODINGS
from trt_segmentation.recordings.layouts import as_bgr, CAMERAS
from trt_segmentation.ros.camera import Frame
from trt_segmentation.ros.frame_pipeline import Pipeline
from trt_segmentation.ros.wanted import Wanted


def test_a_pipeline_that_fails_half_way_holds_nothing(built, monkeypatch):
    settings = SimpleNamespace(gpu='', store=str(built['store']))
    pipeline = Pipeline(lambda: 0, settings)

    def work():
        try:
            pipeline.open(Bundle.open(built['bundle']), Wanted('onnxruntime', 'fp32', None, 1))
            pipeline.self_test()
            pipeline.failed = True
            pipeline.self_test()  # on a new engine
        finally:
            pipeline.close()

    Failures(monkeypatch).inject(work, 60)


@pytest.mark.parametrize('mask_size', ['source', 'network'])
def test_a_segmenter_that_takes_cameras_layouts_gets_what_came(built, mask_size):
    """With the masks, the health and the causes of one that is given channels."""
    settings = SimpleNamespace(gpu='', store=str(built['store']), mask_size=mask_size,
                               max_frame_age_ms=10**9, strict_stamps=False)
    pipeline = Pipeline(lambda: 0, settings)
    pipeline.open(Bundle.open(built['bundle']), Wanted(BACKEND, 'fp32', None, 1))
    pipeline.self_test()
    size, rng = (48, 80), np.random.default_rng(0)
    ways = {False: frozenset(), True: frozenset(CAMERAS)}
    for encoding in ENCODINGS:
        layout = {'yuv422': 'uyvy', 'yuv422_yuy2': 'yuyv'}.get(
            encoding, encoding.removesuffix('8'))
        raw = layout in CAMERAS
        rows = size[0] * 3 // 2 if layout.startswith('nv') else size[0]
        data = rng.integers(0, 256, rows * (8 * size[1] + 5), np.uint8)
        message = Image(height=size[0], width=size[1], encoding=encoding, step=8 * size[1] + 5,
                        data=array('B', data.tobytes()))
        cameras = {}
        for takes, layouts in ways.items():
            pipeline._segmenter.layouts = layouts
            cameras[takes] = camera = Camera()
            for _ in range(2):
                pipeline.process([Frame(camera, message, monotonic_ns())])
            assert camera.dropped == []
            shared = np.shares_memory(camera.image, np.frombuffer(message.data, np.uint8))
            if takes and raw:
                assert (camera.color, shared) == ((layout, True) if mask_size == 'source'
                                                  else ('bgr', False))
            assert camera.source_size == size and camera.input_health.repeated == 1
            assert camera.input_health.exposure == ''
        for name in ('classes', 'color'):
            assert np.array_equal(*(getattr(camera.masks, name) for camera in cameras.values()))
        assert np.array_equal(*(as_bgr(camera.image, camera.color)
                                for camera in cameras.values()))
    pipeline.close()
