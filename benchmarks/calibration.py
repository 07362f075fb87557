# SPDX-License-Identifier: Apache-2.0
"""
Compare the calibrator with those of onnxruntime.quantization, in one run.

    python benchmarks/calibration.py [--json FILE]

On the sample network: time, peak memory, and what the INT8 network then agrees on with the float
one. On a VGG16-sized FCN: time and memory. Each contender has a process of its own; images, batch
and Q/DQ placement are the same for all, so only the ranges differ. Then memory against the number
of images, and the entropy search against a literal double loop.

    python benchmarks/calibration.py --bundle BUNDLE --images GLOB --evaluate GLOB

does the first on a network and pictures of yours.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
from pathlib import Path
import resource
import shutil
import subprocess
import sys
import tempfile
from time import perf_counter, process_time
from typing import Any

import cv2
import numpy as np

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.calibration import calibrate, methods
from trt_segmentation.engines.onnxruntime import input_shapes, OnnxRuntimeEngine
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.quantize import quantize
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.segmenters.segmenter import CLASSES

SAMPLE = Path(__file__).parents[1] / 'trt_segmentation/sample/bundle'
OURS = ('mse', 'entropy', 'percentile', 'minmax')
THEIRS = ('MinMax', 'Entropy', 'Percentile')
BATCH = 4  # ONNX Runtime's histograms fail on a last batch that is smaller


def ours(bundle: Path, images: list[str], method: str) -> dict[str, float]:
    """Return the scales that this package's calibrator finds."""
    result = calibrate(bundle, images, count=len(images), batch_size=BATCH, method=method,
                       percentile=99.999, golden=0, report=False)
    return dict(result.cache.scales)


def theirs(bundle: Path, images: list[str], method: str) -> dict[str, float]:
    """Return the scales that onnxruntime.quantization finds, symmetric, for Conv's tensors."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator
    opened = Bundle.open(bundle, verify=False)
    preprocess = Preprocessor(opened.spec.input)
    fixed = opened.spec.input.tensor
    batch = BATCH if _has_free_batch(opened) else 1

    class Reader(CalibrationDataReader):
        def __init__(self):
            self._batches = iter([images[i:i + batch] for i in range(0, len(images), batch)])

        def get_next(self):
            paths = next(self._batches, None)
            return None if paths is None else {fixed: np.concatenate(
                [preprocess(cv2.imread(path)) for path in paths])}

    with tempfile.TemporaryDirectory() as directory:
        calibrator = create_calibrator(
            str(opened.model_path), ['Conv'], os.path.join(directory, 'augmented.onnx'),
            getattr(CalibrationMethod, method), extra_options={
                'symmetric': True, 'percentile': 99.999} if method != 'MinMax' else {
                'symmetric': True})
        calibrator.collect_data(Reader())
        ranges = calibrator.compute_data()
    return {name: float(max(abs(np.asarray(bound)).max() for bound in data.range_value)) / 127
            for name, data in ranges.items()}


def modelopt(python: str, bundle: Path, images: list[str], method: str, output: Path
             ) -> dict[str, Any]:
    """Have ModelOpt, installed for another Python, write a quantized network; return figures."""
    opened = Bundle.open(bundle, verify=False)
    preprocess = Preprocessor(opened.spec.input)
    data = output.with_suffix('.npy')
    np.save(data, np.concatenate([preprocess(cv2.imread(path)) for path in images]))
    done = subprocess.run(
        [python, str(Path(__file__).with_name('calibration_modelopt.py')),
         str(opened.model_path), opened.spec.input.tensor, str(data), method, str(output)],
        text=True, capture_output=True)
    return _figures(done)


def vehicle_model(bundle: Path, scales: dict[str, float]) -> bytes:
    """Return the network with a calibration's scales, in the vehicle's flavor."""
    opened = Bundle.open(bundle, verify=False)
    usable = {name: scale for name, scale in scales.items() if np.isfinite(scale) and scale > 0}
    return quantize(onnx_model.load(opened.model_path), usable, 'tensorrt',
                    exclude=opened.spec.calibration.exclude,
                    input_shapes=input_shapes(opened)).model.SerializeToString()


def evaluate(bundle: Path, model: bytes | Path, images: list[str]) -> dict[str, float]:
    """Return how an INT8 network agrees with the float one."""
    opened = Bundle.open(bundle, verify=False)
    confusion = Confusion(opened.spec.labels)
    with CpuSegmenter(opened.spec, OnnxRuntimeEngine(opened.model_path)) as reference, \
            CpuSegmenter(opened.spec, OnnxRuntimeEngine(model, unfused=True)) as quantized:
        for path in images:
            image = cv2.imread(path)
            confusion.add(*(segmenter.segment(image, (CLASSES,)).classes
                            for segmenter in (reference, quantized)))
    return {'agreement': confusion.agreement, 'iou': confusion.mean_class_iou}


def contest(bundle: Path, images: list[str], evaluation: list[str],
            contenders: list[tuple[str, str]], python: str | None = None, rounds: int = 1
            ) -> list[dict[str, Any]]:
    """
    Run each contender in its own process; print and return a row for each.

    :param python: an interpreter that has ModelOpt
    :param rounds: how often all of them run; the least time of each counts, because whatever
        else the machine does can only add to it
    """
    repeated = [_contest(bundle, images, evaluation if not number else [], contenders, python)
                for number in range(rounds)]
    rows = repeated[0]
    for row, *others in zip(*repeated):
        for key in {'seconds', 'cpu_seconds'} & set(row):
            row[key] = min(other[key] for other in (row, *others) if key in other)
    if rounds > 1:
        for row in rows:
            _print(row)
    return rows


def _contest(bundle: Path, images: list[str], evaluation: list[str],
             contenders: list[tuple[str, str]], python: str | None) -> list[dict[str, Any]]:
    """Run each contender once."""
    rows = []
    for who, method in contenders:
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory, 'bundle')
            shutil.copytree(bundle, copy)
            row: dict[str, Any] = {'who': who, 'method': method, 'images': len(images)}
            model: bytes | Path = Path(directory, 'quantized.onnx')
            if who == 'modelopt':
                row.update(modelopt(python, copy, images, method, model))
            else:
                row.update(_in_process(who, copy, images, method))
            scales = row.pop('scales', None)
            if evaluation and 'error' not in row:
                model = vehicle_model(copy, scales) if scales else model
                row.update(evaluate(copy, model, evaluation))
        rows.append(row)
        _print(row)
    return rows


def _print(row: dict[str, Any]) -> None:
    """Print a row."""
    shown = [key for key in ('seconds', 'cpu_seconds', 'peak_mb', 'agreement', 'iou')
             if key in row]
    print('{who:8} {method:11} {images:4} images'.format(**row), ''.join(
        f'  {key} {row[key]:.4g}' for key in shown) or f'  {row["error"]}', flush=True)


def _in_process(who: str, bundle: Path, images: list[str], method: str) -> dict[str, Any]:
    """Run one contender in a fresh process and return its figures."""
    task = json.dumps([who, str(bundle), images, method])
    done = subprocess.run([sys.executable, __file__, '--task', '-'], input=task, text=True,
                          capture_output=True)
    return _figures(done)


def _figures(done: subprocess.CompletedProcess) -> dict[str, Any]:
    """Return the figures that a process printed last, or why it has none."""
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {'error': lines[-1] if lines else f'ended by signal {-done.returncode}'}
    return json.loads(done.stdout.splitlines()[-1])


def _task() -> None:
    """Do what another process of this script asked for on standard input."""
    who, bundle, images, method = json.load(sys.stdin)
    # A contender that wants all the memory is stopped, so that the machine survives it.
    limit = int(0.8 * _proc('/proc/meminfo', 'MemAvailable'))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    started, cpu_started = perf_counter(), process_time()
    scales = {'ours': ours, 'theirs': theirs}[who](Path(bundle), images, method)
    print(json.dumps({
        'seconds': perf_counter() - started,
        'cpu_seconds': process_time() - cpu_started,
        'peak_mb': _proc('/proc/self/status', 'VmHWM') / 1e6,
        'scales': scales}))


def _proc(path: str, key: str) -> int:
    """Return a size in bytes that the kernel tells; getrusage would tell the parent's."""
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) << 10


def draw_scenes(directory: Path, number: int, start: int) -> list[str]:
    """Draw road scenes into a directory; return their paths."""
    from trt_segmentation.sample.scenes import scene
    directory.mkdir()
    for i in range(number):
        cv2.imwrite(str(directory / f'{i:03d}.png'), scene(start + i)[0])
    return sorted(map(str, directory.iterdir()))


def vgg16_fcn(path: Path, size: tuple[int, int] = (512, 1024)) -> Path:
    """Write a bundle of VGG16's convolutions with an FCN head, 19 classes, random weights."""
    import onnx
    from onnx import helper, numpy_helper
    random = np.random.default_rng(0)
    nodes, weights, data, channels = [], [], 'image', 3

    def conv(name: str, outputs: int, kernel: int, relu: bool = True) -> None:
        nonlocal data, channels
        deviation = (2 / (channels * kernel * kernel)) ** 0.5
        weights.append(numpy_helper.from_array(random.normal(
            0, deviation, (outputs, channels, kernel, kernel)).astype(np.float32), f'{name}_w'))
        nodes.append(helper.make_node('Conv', [data, f'{name}_w'], [name], name=name,
                                      kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4))
        data, channels = name, outputs
        if relu:
            nodes.append(helper.make_node('Relu', [name], [f'{name}_relu'], name=f'{name}_relu'))
            data = f'{name}_relu'

    for block, (layers, outputs) in enumerate([(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]):
        for layer in range(layers):
            conv(f'conv{block + 1}_{layer + 1}', outputs, 3)
        nodes.append(helper.make_node('MaxPool', [data], [f'pool{block + 1}'],
                                      name=f'pool{block + 1}', kernel_shape=[2, 2],
                                      strides=[2, 2]))
        data = f'pool{block + 1}'
    conv('score', 19, 1, relu=False)
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, 'vgg16_fcn', [helper.make_tensor_value_info('image', float32, ['N', 3, *size])],
        [helper.make_tensor_value_info('score', float32, ['N', 19, size[0] // 32, size[1] // 32])],
        weights)
    path.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8),
              path / 'model.onnx')
    (path / 'model.yaml').write_text('version: 1\nmodel: model.onnx\n')
    return path


def entropy_search(bins: int = 2048) -> dict[str, Any]:
    """Time the search against the published double loop on one histogram."""
    sys.path.insert(0, str(Path(__file__).parents[1] / 'test'))
    from support.entropy import literal_divergences
    values = np.maximum(np.random.default_rng(0).standard_normal(1 << 20), 0) ** 2
    counts = methods.without_zero_spike(np.histogram(values, bins)[0])
    started = perf_counter()
    literal = literal_divergences(counts.tolist())
    between = perf_counter()
    fast = methods.divergences(counts)
    ended = perf_counter()
    return {'bins': bins, 'literal_seconds': between - started, 'seconds': ended - between,
            'literal_threshold': int(np.argmin(literal)), 'threshold': int(np.argmin(fast)),
            'largest_difference': float(np.nanmax(np.abs(literal - fast)))}


def _part(part: str, images: list[str], temporary: Path, everyone: list[tuple[str, str]],
          python: str | None, rounds: int) -> Any:
    """Return the figures of one part of the benchmark."""
    if part == 'sample':
        return contest(SAMPLE, images[:16], draw_scenes(temporary / 'evaluation', 32, 95000),
                       everyone, python, rounds)
    if part == 'more_images':
        return [row for number in (16, 100, 500)
                for row in contest(SAMPLE, images[:number], [], [('ours', 'mse')])]
    if part == 'vgg16_fcn':
        return contest(vgg16_fcn(temporary / 'vgg'), images[:16], [],
                       [('ours', 'mse'), ('ours', 'entropy'),
                        *(('theirs', method) for method in THEIRS)])
    found = entropy_search()
    print(found)
    return found


def _has_free_batch(bundle: Bundle) -> bool:
    """Tell whether a network takes batches."""
    tensor = onnx_model.describe(bundle.model_path).inputs[bundle.spec.input.tensor]
    return tensor.shape[0] is None


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--bundle', type=Path)
    parser.add_argument('--images', help='a glob: what to calibrate with')
    parser.add_argument('--evaluate', help='a glob: what to compare on')
    parser.add_argument('--modelopt', metavar='PYTHON',
                        help="an interpreter with 'nvidia-modelopt[onnx]', to compare with it too")
    parser.add_argument('--rounds', type=int, default=3,
                        help='how often each contender runs; its least time counts (default: 3)')
    parser.add_argument('--only', choices=('sample', 'more_images', 'vgg16_fcn', 'entropy_search'),
                        help='one part of the whole')
    parser.add_argument('--json', type=Path, help='write all figures here')
    parser.add_argument('--task', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        _task()
        return
    everyone = [*(('ours', method) for method in OURS), *(('theirs', method) for method in THEIRS)]
    with_modelopt = [*everyone, *([('modelopt', 'entropy'), ('modelopt', 'max')]
                                  if args.modelopt else [])]
    figures: dict[str, Any] = {}
    if args.bundle:
        figures['bundle'] = contest(args.bundle, sorted(glob.glob(args.images)),
                                    sorted(glob.glob(args.evaluate)), with_modelopt,
                                    args.modelopt, args.rounds)
    else:
        parts = [args.only] if args.only else [
            'sample', 'more_images', 'vgg16_fcn', 'entropy_search']
        with tempfile.TemporaryDirectory() as temporary:
            images = draw_scenes(Path(temporary, 'images'),
                                 500 if 'more_images' in parts else 16, 90000)
            for part in parts:
                print(part, flush=True)
                figures[part] = _part(part, images, Path(temporary), with_modelopt,
                                      args.modelopt, args.rounds)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
    main()
