# SPDX-License-Identifier: Apache-2.0
"""
Time everything but the network, stage by stage, beside the plain NumPy way, in one run.

    python benchmarks/pipeline.py [--json FILE]

From an image message of 1024x512 pixels to two mask messages, on drawn scenes and the sample
network's own logits. The plain way is the one of the sample that this method was published with:
arrays all the way, argmax over logits that are upsampled in NumPy, and a Python loop over the
pixels for the color mask. Both give the same masks; the share of pixels where they do not (equal
logits up to rounding) is in the figures.
"""

from __future__ import annotations

import argparse
from array import array
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from trt_segmentation import reports
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.evaluation.pictures import colorize
from trt_segmentation.recordings import image_messages
from trt_segmentation.sample import BUNDLE as SAMPLE
from trt_segmentation.sample import scenes
from trt_segmentation.segmenters.postprocessing import CLASSES, Postprocessor
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.system import environment, machine, scripts
from trt_segmentation.system.arguments import at_least, integer
from trt_segmentation.system.files import atomic_write

STAGES = ('conversion', 'preprocessing', 'upsampling and argmax', 'coloring', 'messages')
TARGET_MS = 8.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures here too')
    parser.add_argument('--frames', type=at_least(1, integer), default=100,
                        help='timed frames (default: 100)')
    parser.add_argument('--plain-frames', type=at_least(1, integer), default=4,
                        help='timed frames of the plain way (default: 4)')
    args = parser.parse_args()
    environment.keep_memory()  # as the commands do, and the node by its environment
    figures = measure(args.frames, args.plain_frames)
    if args.json:
        atomic_write(args.json, reports.json_text(figures))
    rows = [[stage, f'{entry["ms"]:.2f}', f'{entry["plain_ms"]:.2f}', f'{entry["ratio"]:.0f}']
            for stage, entry in figures['stages'].items()]
    print(reports.text_table(['stage', 'ms', 'plain NumPy ms', 'times'], rows))
    print(f'pixels that differ: {figures["different_pixels"]:.6%}')
    print(f'everything but the network: {figures["stages"]["all"]["ms"]:.2f} ms a frame, target '
          f'below {TARGET_MS:.0f} ms')


def measure(frames: int, plain_frames: int) -> dict[str, Any]:
    """Return medians in milliseconds of each stage of both ways, and how far they agree."""
    bundle = Bundle.open(SAMPLE, verify=False)
    spec = bundle.spec
    engine = OnnxRuntimeEngine(bundle.model_path)
    preprocess, postprocess = Preprocessor(spec.input), Postprocessor(spec)
    images = [scenes.scene(seed)[0] for seed in scenes.DEMO_SEEDS[:4]]
    messages = [_message(image) for image in images]
    logits = [engine.infer(preprocess(image))[spec.output.tensor] for image in images]
    to_message, plain_message = _message_makers()
    tensor = np.empty((1, 3, *spec.input.size), np.float32)

    def ours(i: int) -> tuple[list[float], np.ndarray, np.ndarray]:
        watch = _Watch()
        image, color = watch(image_messages.to_image, messages[i])
        watch(preprocess, image, color, tensor)
        classes, _, _ = watch(postprocess, logits[i], image.shape[:2], (CLASSES,))
        colors = watch(colorize, classes, spec.labels)
        watch(lambda: (to_message(classes, 'mono8'), to_message(colors, 'bgr8')))
        return watch.times, classes, colors

    def plain(i: int) -> tuple[list[float], np.ndarray, np.ndarray]:
        watch = _Watch()
        image = watch(_plain_conversion, messages[i])
        watch(_plain_preprocessing, image, spec.input)
        classes = watch(_plain_argmax, logits[i][0], image.shape[:2])
        colors = watch(_plain_coloring, classes, spec.labels)
        watch(lambda: (plain_message(classes, 'mono8'), plain_message(colors, 'bgr8')))
        return watch.times, classes, colors

    ours(0)
    # Masks are not kept meanwhile: new memory for each frame would be timed too.
    own = [ours(i % len(images))[0] for i in range(frames)]
    other = [plain(i % len(images))[0] for i in range(plain_frames)]
    different = [np.mean(ours(i)[1] != plain(i)[1]) for i in range(2)]
    return {
        'image': [scenes.SIZE[1], scenes.SIZE[0]],
        'frames': frames,
        'plain_frames': plain_frames,
        'ros_messages': to_message is not _array_message,
        'stages': {stage: _entry([times[k] for times in own], [times[k] for times in other])
                   for k, stage in enumerate(STAGES)}
        | {'all': _entry(list(map(sum, own)), list(map(sum, other)))},
        'different_pixels': float(np.mean(different)),
        'machine': {**machine.describe(), **machine.state()},
    }


class _Watch:
    """Calls functions and keeps how many milliseconds each took."""

    def __init__(self):
        self.times: list[float] = []

    def __call__(self, function: Callable, *arguments: Any) -> Any:
        """Return what the function returns."""
        start = perf_counter()
        result = function(*arguments)
        self.times.append((perf_counter() - start) * 1e3)
        return result


def _entry(own: list[float], plain: list[float]) -> dict[str, float]:
    """Return the medians and their ratio."""
    return {'ms': median(own), 'plain_ms': median(plain), 'ratio': median(plain) / median(own)}


def _message(image: np.ndarray) -> Any:
    """Return an image message, as rclpy delivers it: its data is an array('B')."""
    data = array('B')
    data.frombytes(image.tobytes())
    return argparse.Namespace(height=image.shape[0], width=image.shape[1], encoding='bgr8',
                              is_bigendian=0, step=image.shape[1] * 3, data=data)


def _message_makers() -> tuple[Callable, Callable]:
    """Return the node's and the plain way to make a message; without ROS, their costly part."""
    try:
        from sensor_msgs.msg import Image
        from std_msgs.msg import Header

        from trt_segmentation.ros.outputs import to_message
    except ImportError:
        return _array_message, lambda pixels, encoding: pixels.tobytes()

    def plain(pixels: np.ndarray, encoding: str) -> Any:
        message = Image()
        message.height, message.width = pixels.shape[:2]
        message.encoding, message.step = encoding, pixels.strides[0]
        message.data = pixels.tobytes()
        return message

    return lambda pixels, encoding: to_message(pixels, encoding, Header()), plain


def _array_message(pixels: np.ndarray, encoding: str) -> array:
    """Copy pixels into what a message's data must be."""
    data = array('B')
    data.frombytes(memoryview(np.ascontiguousarray(pixels)))
    return data


def _plain_conversion(message: Any) -> np.ndarray:
    """Copy a message's data into an image."""
    return np.array(message.data, np.uint8).reshape(message.height, message.width, 3)


def _plain_preprocessing(image: np.ndarray, spec: Any) -> np.ndarray:
    """Subtract the mean, scale, and put the channels first."""
    normalized = (image.astype(np.float32) - np.array(spec.mean)) * np.array(spec.scale)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None], np.float32)


def _plain_argmax(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Upsample all logits bilinearly by index arithmetic, then take the largest."""
    for axis, length in ((1, size[0]), (2, size[1])):
        n = logits.shape[axis]
        at = ((np.arange(length) + 0.5) * n / length - 0.5).clip(0, n - 1)
        low = at.astype(int)
        weight = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        logits = (logits.take(low, axis) * (1 - weight)
                  + logits.take(np.minimum(low + 1, n - 1), axis) * weight)
    return logits.argmax(0).astype(np.uint8)


def _plain_coloring(classes: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Look up each pixel's color in a Python loop."""
    palette = labels.palette_bgr
    colors = np.zeros((*classes.shape, 3), np.uint8)
    for y in range(classes.shape[0]):
        for x in range(classes.shape[1]):
            colors[y, x] = palette[classes[y, x]]
    return colors


if __name__ == '__main__':
    scripts.end_in_a_line()
    main()
