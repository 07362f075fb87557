# SPDX-License-Identifier: Apache-2.0
"""
Whoever opens an engine closes it, whatever fails: of 200 failures nothing stays.

The node's part of it is in test/ros/test_ros_parts.py; a build's is in test_opening.py too.
"""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
from support.failures import Failures
from support.networks import fcn, write_bundle

from trt_segmentation import calibrate
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.calibration.run import record
from trt_segmentation.cli import main
from trt_segmentation.engines.build import build
from trt_segmentation.recordings import bags

ACCEPT = {'min_agreement': 0.2, 'min_class_agreement': 0.0, 'min_int8_share': 0.2}


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """Make pictures, a bag, a bundle that is calibrated, and a store with its engine."""
    path = tmp_path_factory.mktemp('leaks')
    bundle = write_bundle(path / 'bundle', fcn(), acceptance=ACCEPT)
    (path / 'pictures').mkdir()
    with bags.Writer(path / 'bag') as writer:
        for i in range(8):
            pixels = np.random.default_rng(i).integers(0, 256, (4, 8, 3), np.uint8)
            image = cv2.resize(pixels, (64, 32))
            cv2.imwrite(str(path / 'pictures' / f'{i}.png'), image)
            if i < 3:
                writer.write_image('/c/image', image, 'bgr8', i + 1, 'c')
    calibrate(bundle, path / 'pictures', count=4, golden=2, report=False)
    build(Bundle.open(bundle), backend='onnxruntime', store=path / 'store')
    return path


def fail():
    raise RuntimeError


def test_who_uses_an_engine_closes_it(home, monkeypatch, tmp_path, capsys):
    """The commands that take a proven engine, and the ones that are built for now."""
    monkeypatch.chdir(home)
    words = ['bundle', '--backend', 'onnxruntime', '--store', 'store']

    def run(command, *more):
        shutil.rmtree(tmp_path / 'out', ignore_errors=True)
        if code := main([command, *words[:1 if command in ('preview', 'export') else 5], *more]):
            raise RuntimeError(code)

    out = str(tmp_path / 'out')
    failures = Failures(monkeypatch)
    failures.inject(lambda: run('evaluate', '--images', 'pictures'), 25)
    failures.inject(lambda: run('replay', '--bag', 'bag', '--record-golden', out), 25)
    failures.inject(lambda: run('benchmark', '--frames', '2', '--warmup', '1', '--engines', 'fp32',
                                'int8'), 20)
    failures.inject(lambda: run('preview', '--images', 'pictures', '--output', f'{out}.png'), 10)
    failures.inject(lambda: run('export', '--for', 'tensorrt-10', '--output', out), 10)
    capsys.readouterr()


def test_a_build_that_times_its_engines_closes_them(home, monkeypatch, tmp_path):
    def work():
        build(Bundle.open(home / 'bundle'), backend='onnxruntime', precision='auto',
              store=tmp_path / 'store', force=True)

    def after():
        assert [path.name for path in (tmp_path / 'store').glob('.*')] == ['.lock']

    Failures(monkeypatch).inject(work, 30, after)


def test_a_calibration_leaves_neither_sessions_nor_a_changed_bundle(home, monkeypatch, tmp_path):
    bundle = tmp_path / 'bundle'
    shutil.copytree(home / 'bundle', bundle)

    def after():
        Bundle.open(bundle)  # whole: the old one or the new one
        assert [path.name for path in bundle.glob('.*')] == ['.lock']

    failures = Failures(monkeypatch)
    failures.inject(lambda: calibrate(bundle, home / 'pictures', count=3, golden=2, tuned=True,
                                      report=False), 30, after)
    failures.inject(lambda: record(bundle, home / 'pictures', count=1), 20, after)
    failures.inject(lambda: main(['adopt', str(bundle), str(home / 'bundle/calibration.cache')])
                    and fail(), 10, after)
