# SPDX-License-Identifier: Apache-2.0
"""Pictures to calibrate with, and the values that a network really computes on them."""

import cv2
import numpy as np
from support.networks import infer_all

from trt_segmentation import calibrate
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.segmenters.preprocessing import Preprocessor


def pictures(number, size=(32, 64), seed=0):
    """Return random pictures that are smooth enough not to look alike."""
    random = np.random.default_rng(seed)
    return [cv2.resize(random.integers(0, 256, (6, 9, 3), np.uint8), size[::-1])
            for _ in range(number)]


def write_pictures(directory, number, **options):
    directory.mkdir()
    for i, picture in enumerate(pictures(number, **options)):
        cv2.imwrite(str(directory / f'{i:03d}.png'), picture)
    return directory


def values_of(model, bundle, images):
    """Return all values of each tensor over some images, by ONNX Runtime run plainly."""
    preprocess = Preprocessor(Bundle.open(bundle, verify=False).spec.input)
    runs = [infer_all(model, preprocess(image)) for image in images]
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]}


def run(bundle, images, **options):
    options = {'count': len(images), 'golden': 0, 'report': False, **options}
    return calibrate(bundle, images, **options)
