# SPDX-License-Identifier: Apache-2.0
"""Drawn road scenes as files, and the sample network calibrated on them, for all benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
import shutil
from typing import Any

import cv2

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.calibration import calibrate
from trt_segmentation.sample import BUNDLE, scenes


def pictures(directory: Path, seeds: Iterable[int]) -> list[str]:
    """Draw a scene for each seed into a new directory; return the files' paths, in order."""
    directory.mkdir()
    paths = []
    for number, seed in enumerate(seeds):
        paths.append(str(directory / f'{number:03d}.png'))
        cv2.imwrite(paths[-1], scenes.scene(seed)[0])
    return paths


def calibrated(path: Path, count: int = 20, golden: int = 4, **options: Any) -> Bundle:
    """
    Copy the sample bundle and calibrate it with as few scenes as it takes.

    :param golden: frames, of scenes beside the `count` that it is calibrated with
    :param options: of `calibrate`
    """
    shutil.copytree(BUNDLE, path)
    images = (scenes.scene(seed)[0] for seed in scenes.CALIBRATION_SEEDS[:count + golden])
    calibrate(path, images, count=count, golden=golden, report=False, **options)
    return Bundle.open(path)
