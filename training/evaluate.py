# SPDX-License-Identifier: Apache-2.0
"""Measure the sample network on held-out scenes: FP32, the vehicle's INT8 and the CPU's INT8."""

from __future__ import annotations

import argparse
from pathlib import Path
import shutil
import sys
import tempfile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without being installed

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.labels import CITYSCAPES
from trt_segmentation.calibration import calibrate
from trt_segmentation.engines.onnxruntime import (
    OnnxRuntimeEngine,
    quantized_network,
    vehicle_emulation,
)
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.sample import BUNDLE, scenes
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.system import scripts

CALIBRATION_IMAGES, GOLDEN = 100, 8


def main() -> None:
    """Calibrate a copy of the bundle and compare three engines on the same scenes."""
    sample = BUNDLE
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--bundle', type=Path, default=sample)
    parser.add_argument('--held-out', type=int, default=500, help='scenes to evaluate on')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        for name in ('model.onnx', 'model.yaml'):
            shutil.copy(arguments.bundle / name, directory)
        seeds = scenes.CALIBRATION_SEEDS[:CALIBRATION_IMAGES + GOLDEN]
        calibrate(directory, (scenes.scene(seed)[0] for seed in seeds),
                  count=CALIBRATION_IMAGES, golden=GOLDEN)
        confusions, share = evaluate(Bundle.open(directory), arguments.held_out)
    report(confusions)
    print(f'\n{arguments.held_out} held-out scenes; INT8 share of the convolution work in the '
          f"vehicle's flavor {100 * share:.2f}%")


def evaluate(bundle: Bundle, count: int) -> tuple[dict[str, Confusion], float]:
    """Return the confusion matrix of each engine, and the INT8 share of the vehicle's graph."""
    vehicle, quantized = vehicle_emulation(bundle)
    cpu = quantized_network(bundle, 'onnxruntime').model.SerializeToString()
    engines = {'FP32': OnnxRuntimeEngine(bundle.model_path), 'INT8, vehicle': vehicle,
               'INT8, CPU': OnnxRuntimeEngine(cpu)}
    segmenters = {name: CpuSegmenter(bundle.spec, engine) for name, engine in engines.items()}
    confusions = {name: Confusion(CITYSCAPES) for name in engines}
    for picture, truth in map(scenes.scene, scenes.HELD_OUT_SEEDS[:count]):
        for name, segmenter in segmenters.items():
            confusions[name].add(truth, segmenter.segment(picture, ('classes',)).classes)
    return confusions, quantized.int8_share


def report(confusions: dict[str, Confusion]) -> None:
    """Print the IoU of each class and category, in percent, as Markdown tables."""
    columns = confusions.values()
    for title, values, means in (
            ('class', [c.class_iou for c in columns], [c.mean_class_iou for c in columns]),
            ('category', [c.category_iou for c in columns],
             [c.mean_category_iou for c in columns])):
        print(f'\n| {title} | {" | ".join(confusions)} |\n|---|' + '---|' * len(confusions))
        for name in values[0]:
            print(f'| {name} | ' + ' | '.join(f'{100 * v[name]:.1f}' for v in values) + ' |')
        print('| **mean** | ' + ' | '.join(f'**{100 * mean:.2f}**' for mean in means) + ' |')


if __name__ == '__main__':
    scripts.end_in_a_line()
    main()
