# SPDX-License-Identifier: Apache-2.0
"""Calibrated bundles for tests: the sample network, and a foreign one that differs in all."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
import shutil
from tempfile import mkdtemp, TemporaryDirectory

import cv2
import numpy as np
import onnx
from support.networks import Builder, fcn, write_bundle

from trt_segmentation import sample
from trt_segmentation.bundles.create import create
from trt_segmentation.bundles.labels import IGNORE, Label, LabelSet
from trt_segmentation.calibration import calibrate
from trt_segmentation.sample import scenes

FOREIGN_SIZE = (96, 160)
# What a pixel's color says, in RGB: the foreign network sees nothing else.
FOREIGN_LABELS = LabelSet(tuple(
    Label(name, train_id, color, category) for name, train_id, color, category in (
        ('asphalt', 0, (90, 90, 95), 'ground'), ('paint', 1, (230, 230, 225), 'ground'),
        ('grass', 2, (40, 160, 20), 'nature'), ('sky', 3, (120, 170, 235), 'nature'),
        ('brick', 5, (170, 70, 50), 'built'), ('night', 7, (10, 10, 15), 'nature'),
        ('else', IGNORE, (255, 0, 255), 'void'))))


MEAN = (123.675, 116.28, 103.53)
SCALE = (1 / 58.395, 1 / 57.12, 1 / 57.375)


def foreign_network(labels: LabelSet = FOREIGN_LABELS, mean=MEAN, scale=SCALE, size=FOREIGN_SIZE,
                    bgr=False) -> onnx.ModelProto:
    """Return a network of its own size and normalization, logits at stride 8: nearest color."""
    builder = Builder(size)
    x = 'image'
    for name, stride in (('half', 2), ('eighth', 4)):
        weight = np.zeros((3, 3, stride, stride), np.float32)
        weight[range(3), range(3)] = 1 / stride**2
        x = builder.node('Conv', [x, builder.constant(f'{name}_weight', weight)], name,
                         strides=[stride, stride], kernel_shape=[stride, stride])
    colors = np.array([label.color for label in labels.labels])[:, ::-1 if bgr else 1]
    colors = (colors - np.array(mean)) * np.array(scale)
    weight = (2 * colors).astype(np.float32)[..., None, None]
    bias = -(colors**2).sum(1).astype(np.float32)
    builder.node('Conv', [x, builder.constant('score_weight', weight),
                          builder.constant('score_bias', bias)], 'scores', kernel_shape=[1, 1])
    return builder.model('scores')


SMALL_LIMITS = {'min_agreement': 0.5, 'min_class_agreement': 0.0, 'min_int8_share': 0.5}


def foreign_bundle(directory: Path, labels: LabelSet = FOREIGN_LABELS) -> Path:
    """Make a calibrated bundle of the foreign network; return its path."""
    return shutil.copytree(_foreign(labels), directory / 'foreign')


def sample_bundle(directory: Path) -> Path:
    """Copy the sample bundle, calibrated with a few scenes; return its path."""
    return shutil.copytree(_sample(), directory / 'sample')


def small_bundle(directory: Path) -> Path:
    """Copy the bundle of a small FCN that is calibrated, two golden frames; return its path."""
    return shutil.copytree(_small(), directory / 'bundle')


# Calibrated once a session; each test gets a copy. The directory goes when the session ends.
_calibrated = TemporaryDirectory(prefix='trt_segmentation_test_')


@lru_cache
def _foreign(labels: LabelSet) -> Path:
    """Return the foreign network's calibrated bundle with these labels."""
    model = Path(_calibrated.name) / 'foreign.onnx'
    bundle = Path(mkdtemp(dir=_calibrated.name)) / 'foreign'
    onnx.save(foreign_network(labels), model)
    create(model, bundle, labels=labels, color='rgb', mean=MEAN, scale=SCALE, fit='letterbox',
           interpolation='area')
    calibrate(bundle, (scene(i, (60, 110))[0] for i in range(16)), count=12, golden=4,
              method='minmax', report=False)
    return bundle


@lru_cache
def _sample() -> Path:
    """Return the sample network's bundle, calibrated with a few scenes."""
    bundle = Path(_calibrated.name) / 'sample'
    shutil.copytree(sample.BUNDLE, bundle)
    calibrate(bundle, (scene(i)[0] for i in range(12)), count=10, golden=2, report=False)
    return bundle


@lru_cache
def _small() -> Path:
    """Return the small FCN's bundle, calibrated with noise."""
    bundle = write_bundle(Path(_calibrated.name) / 'small', fcn(), acceptance=SMALL_LIMITS)
    rng = np.random.default_rng(0)
    calibrate(bundle, [rng.integers(0, 256, (32, 64, 3), np.uint8) for _ in range(6)],
              count=4, golden=2, report=False)
    return bundle


def scene(number: int, size: tuple[int, int] = scenes.SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene of those for calibration: (BGR image, train ids)."""
    return scenes.scene(scenes.CALIBRATION_SEEDS[number], size=size)


def save_with_truth(directory: Path, count: int) -> None:
    """Write pictures, and true masks that fit them badly, to `images` and `truth`."""
    ids = np.array([label.train_id for label in FOREIGN_LABELS.classes], np.uint8)
    for i in range(count):
        image, truth = scene(i, (60, 110))
        save(directory / 'images' / f'{i:03d}.png', image)
        save(directory / 'truth' / f'{i:03d}.png', ids[truth % len(ids)])


def save(path: Path, pixels: np.ndarray) -> None:
    """Write a picture file, with its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
