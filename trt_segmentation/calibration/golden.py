# SPDX-License-Identifier: Apache-2.0
"""Golden frames: images that are held out, with the masks that the float network gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from trt_segmentation.bundles.bundle import Bundle, SPEC_NAME
from trt_segmentation.bundles.labels import IGNORE
from trt_segmentation.bundles.manifest import Image
from trt_segmentation.calibration.lab import Frame
from trt_segmentation.calibration.selection import listed, Progress
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.errors import InputError
from trt_segmentation.recordings.pictures import Picture
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.segmenters.segmenter import CLASSES
from trt_segmentation.system import files


def record_golden(bundle: Bundle, pictures: Iterable[Picture], directory: Path,
                  progress: Progress) -> list[Image]:
    """
    Write golden frames: images, and the float network's masks of them.

    :param directory: where NNN.png and NNN.mask.png go
    :returns: name and sha256 of each image
    """
    frames: list[Image] = []
    directory.mkdir(exist_ok=True)
    preprocess = Preprocessor(bundle.spec.input)
    with CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path)) as segmenter:
        for picture in pictures:
            try:
                mask = segmenter.segment(picture.pixels, (CLASSES,)).classes
            except InputError as error:
                raise InputError(f'image {picture.name}: {error}') from None
            if bundle.spec.output.kind == 'class_ids':
                _check_ids(bundle, segmenter.engine.infer(preprocess(picture.pixels)))
            path = directory / f'{len(frames):03d}.png'
            files.atomic_write(path, _png(picture.pixels))
            files.atomic_write(path.with_suffix('.mask.png'), _png(mask))
            frames.append(listed(picture))
            progress('golden frames', len(frames))
    return frames


def float_frames(bundle: Bundle, pictures: Iterable[Picture]) -> list[Frame]:
    """Return images with the float network's masks of them."""
    with CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path)) as segmenter:
        frames = []
        for picture in pictures:
            with suppress(InputError):  # of a picture that the network computes nan of
                mask = segmenter.segment(picture.pixels, (CLASSES,)).classes
                frames.append(Frame(picture.pixels, mask))
        return frames


def _check_ids(bundle: Bundle, outputs: Mapping[str, np.ndarray]) -> None:
    """Raise InputError if a network gives class ids that have no label: they would be ignored."""
    spec = bundle.spec
    ids = np.unique(outputs[spec.output.tensor])
    unknown = ids[((ids < 0) | (ids >= len(spec.labels.labels))) & (ids != IGNORE)]
    if len(unknown):
        raise InputError(
            f'output {spec.output.tensor!r}: the network gives class {unknown[0]}, but '
            f'{bundle.path / SPEC_NAME} has labels for 0..{len(spec.labels.labels) - 1} only; '
            'give labels for all classes')


def _png(pixels: np.ndarray) -> bytes:
    """Return an array as the bytes of a PNG file."""
    return bytes(cv2.imencode('.png', pixels)[1])
