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


@pytest.fixture
def served(built):
    """Return a pipeline that is proven, its camera, and `now`, which sets the node's clock."""
    clock = SimpleNamespace(now=10**9)
    pipeline = Pipeline(lambda: clock.now, SimpleNamespace(
        gpu='', store=str(built['store']), mask_size='source', max_frame_age_ms=100,
        strict_stamps=False))
    pipeline.open(Bundle.open(built['bundle']), Wanted(BACKEND, 'fp32', None, 1))
    pipeline.self_test()
    segment, asked = pipeline._segmenter.segment_batch, []

    def segment_batch(images, compute, **options):
        asked.append(compute[0])
        masks = segment(images, compute, **options)
        clock.now += clock.passes
        return masks

    pipeline._segmenter.segment_batch = segment_batch
    camera = Camera()
    camera.foreign_stamp = lambda: camera.statistics.count('foreign_stamp')

    def process(passes):
        """Process a frame of now, in whose segmentation so many nanoseconds pass."""
        clock.passes, camera.masks = passes, None
        message = Image(height=8, width=8, encoding='mono8', step=8, data=array('B', bytes(64)))
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(clock.now, 10**9)
        pipeline.process([Frame(camera, message, monotonic_ns())])
        return camera.masks is not None

    yield SimpleNamespace(pipeline=pipeline, camera=camera, process=process, asked=asked)
    pipeline.close()


def test_a_frame_that_a_look_made_late_does_not_make_the_next_one_look(served):
    """Health is looked at every few seconds, which takes its time."""
    assert not served.process(passes=200_000_000)
    assert served.camera.statistics.counts()['dropped_late_before_publishing'] == 1
    assert served.process(passes=0)
    assert ['confidence' in compute for compute in served.asked] == [True, False]
    assert served.camera.output_health.low_margin_share is not None


@pytest.mark.parametrize('jump_s', [-5, 11])
def test_strict_stamps_hold_for_a_clock_that_jumps_while_a_frame_is_segmented(served, jump_s):
    served.pipeline._settings.max_frame_age_ms = 10_000
    assert served.process(passes=jump_s * 10**9) and not served.camera.dropped
    served.pipeline._settings.strict_stamps = True
    assert served.process(passes=0)
    assert not served.process(passes=jump_s * 10**9)
    assert served.camera.dropped == ['foreign_stamp']


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
