# SPDX-License-Identifier: Apache-2.0
"""
What an image costs until the GPU has it: converted by the CPU first, and as its camera gives it.

    python benchmarks/camera_layouts.py
    python benchmarks/camera_layouts.py --backend tensorrt --precision fp16   # on a GPU

The first needs no GPU: it times what the CPU does with a message before the GPU takes over, the
conversion and the copy to what would be page-locked memory. With a backend the sample network is
built, and each message goes all the way to its masks, beside an image of the network's size.
Where nvJPEG is, JPEG pictures are decoded by the CPU and by it. Milliseconds by turns: the time
that passes, and that of the CPU, of all its threads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
import tempfile
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from trt_segmentation import open_segmenter, reports, sample
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cuda.jpegs import JpegDecoder
from trt_segmentation.engines.build import build
from trt_segmentation.recordings import layouts
from trt_segmentation.recordings.image_messages import to_image
from trt_segmentation.sample import scenes
from trt_segmentation.segmenters.gpu import stage
from trt_segmentation.segmenters.segmenter import Segmenter
from trt_segmentation.system import environment, scripts
from trt_segmentation.system.files import atomic_write

# Name: (encoding, layout, (height, width)).
_CASES = {
    'UYVY 1920x1080': ('uyvy', 'uyvy', (1080, 1920)),
    'NV12 1920x1080': ('nv12', 'nv12', (1080, 1920)),
    'Bayer 1920x1080': ('bayer_rggb8', 'bayer_rggb', (1080, 1920)),
    'NV12 3840x2160': ('nv12', 'nv12', (2160, 3840)),
}


_JPEGS = {'JPEG 1920x1080': (1080, 1920), 'JPEG 3840x2160': (2160, 3840)}


_ROADS = 10  # whose masks are compared


def jpeg_message(size: tuple[int, int], seed: int = 0) -> Any:
    """Return a compressed message of a drawn road, of quality 90 and 4:2:0."""
    image = scenes.scene(seed, size=size)[0]
    data = cv2.imencode('.jpg', image, (cv2.IMWRITE_JPEG_QUALITY, 90))[1]
    return SimpleNamespace(format='jpeg', data=data.tobytes())


def message(encoding: str, layout: str, size: tuple[int, int]) -> Any:
    """Return an image message of noise."""
    shape = layouts.shape(size, layout)
    data = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return SimpleNamespace(height=size[0], width=size[1], encoding=encoding, is_bigendian=0,
                           step=data.nbytes // shape[0], data=data.ravel())


def to_the_gpu(taken: frozenset[str], msg: Any, memory: np.ndarray) -> None:
    """Do what the CPU does before the GPU takes over."""
    stage(*to_image(msg, taken), memory)


def to_masks(taken: frozenset[str], msg: Any, segmenter: Segmenter,
             jpegs: JpegDecoder | None = None) -> None:
    """Do all of it."""
    image, layout = to_image(msg, taken, jpegs.decode if jpegs is not None else None)
    segmenter.segment_batch([image], color=layout)


def differences(segmenter: Segmenter, jpegs: JpegDecoder, size: tuple[int, int]
                ) -> dict[str, float]:
    """Return the largest difference of a channel, and the share of a mask's pixels that differ."""
    largest, shares = 0, []
    for seed in scenes.HELD_OUT_SEEDS[:_ROADS]:
        msg = jpeg_message(size, seed)
        images = [to_image(msg)[0], to_image(msg, (), jpegs.decode)[0]]
        first, second = (segmenter.segment_batch([image])[0].classes for image in images)
        shares.append(float((first != second).mean()))
        largest = max(largest, int(np.abs(np.subtract(*images, dtype=int)).max()))
    return {'largest_difference': largest, 'differing_share': float(np.mean(shares))}


def by_turns(ways: dict[str, Callable[[], None]], frames: int) -> dict[str, float]:
    """Return the median milliseconds of each way: passed, and of the CPU."""
    times: dict[str, list[float]] = {f'{name}{unit}': [] for name in ways
                                     for unit in ('_ms', '_cpu_ms')}
    for _ in range(frames):
        for name, way in ways.items():
            passed, worked = perf_counter(), process_time()
            way()
            times[f'{name}_ms'].append((perf_counter() - passed) * 1e3)
            times[f'{name}_cpu_ms'].append((process_time() - worked) * 1e3)
    return {name: float(np.median(values)) for name, values in times.items()}


def measure(segmenter: Segmenter | None, frames: int) -> dict[str, dict[str, float]]:
    """Return the figures of each case: `converted`, `as_it_came`, and beside them `small`."""
    cases: dict[str, dict[str, Callable[[], None]]] = {}
    for name, (encoding, layout, size) in _CASES.items():
        msg = message(encoding, layout, size)
        if segmenter is None:
            run = partial(to_the_gpu, msg=msg, memory=np.zeros(3 * size[0] * size[1], np.uint8))
        else:
            run = partial(to_masks, msg=msg, segmenter=segmenter)
        cases[name] = {'converted': partial(run, frozenset()),
                       'as_it_came': partial(run, frozenset(layouts.CAMERAS))}
    jpegs = None
    if segmenter is not None and segmenter.device is not None:
        jpegs = JpegDecoder.found(segmenter.device)
        for name, size in _JPEGS.items() if jpegs is not None else ():
            run = partial(to_masks, frozenset(), jpeg_message(size), segmenter)
            cases[name] = {'converted': run, 'as_it_came': partial(run, jpegs)}
    figures = {}
    for name, ways in cases.items():
        if segmenter is not None:
            small = message('bgr8', 'bgr', segmenter.spec.input.size)
            ways['small'] = partial(to_masks, frozenset(), small, segmenter)
        by_turns(ways, 3)
        figures[name] = by_turns(ways, frames)
    if segmenter is not None and jpegs is not None:
        for name, size in _JPEGS.items():
            figures[name] |= differences(segmenter, jpegs, size)
        jpegs.close()
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backend', choices=('tensorrt', 'tensorrt_rtx', 'onnxruntime'),
                        help='go on to the masks, with the sample network')
    parser.add_argument('--precision', choices=('int8', 'fp16', 'fp32'), default='fp16')
    parser.add_argument('--frames', type=int, default=100)
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures here too')
    args = parser.parse_args()
    environment.keep_memory()  # as the commands do, and the node by its environment
    if args.backend:
        engine = {'backend': args.backend, 'precision': args.precision}
        with tempfile.TemporaryDirectory() as store:
            bundle = Bundle.open(sample.BUNDLE)
            build(bundle, store=store, allow_unproven=True, allow_float=True, **engine)
            with open_segmenter(bundle, store=store, **engine) as segmenter:
                figures = measure(segmenter, args.frames)
    else:
        figures = measure(None, args.frames)
    if args.json:
        atomic_write(args.json, reports.json_text(figures))
    columns = list(next(iter(figures.values())))
    print(reports.text_table(['image', *(name.replace('_', ' ') for name in columns)], [
        [name, *(f'{row[column]:.2f}' for column in columns)] for name, row in figures.items()]))
    for name, row in figures.items():
        if 'differing_share' in row:
            print(f'{name}: a channel differs by {row["largest_difference"]} at most, the mask of '
                  f'{_ROADS} roads in {row["differing_share"]:.2e} of its pixels')


if __name__ == '__main__':
    scripts.end_in_a_line()
    main()
