# SPDX-License-Identifier: Apache-2.0
"""
Compare the calibrator with others, in one run.

    python benchmarks/calibration.py [--peer NAME=PYTHON ...] [--json FILE]

On the sample network and on two with very unequal channels: time, peak memory, the share of the
work in INT8, and what the INT8 network then agrees on with the float one. On a VGG16-sized FCN:
time and memory. Each contender has a process of its own, and the same images. The ranges of
onnxruntime.quantization go into this package's Q/DQ placement; the networks of the other peers
(calibration_peers.py) are their own, and `--peer` names an interpreter that has one. Where theirs
has uint8 activations, which TensorRT does not take, it is judged as it is and with the int8 codes
of the same ranges. Then memory against the number of images, and the entropy search against a
literal double loop.

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
import drawn
from networks import signed, unequal, vgg16_fcn
import numpy as np

from trt_segmentation import reports
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.calibration import calibrate, methods
from trt_segmentation.calibration.equalization import TRIAL_IMAGES
from trt_segmentation.engines.onnxruntime import (
    input_shapes,
    OnnxRuntimeEngine,
    quantized_network,
)
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.graph import Graph, node_name, set_nodes
from trt_segmentation.networks.layers import int8_share, Layer
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.quantize import quantize
from trt_segmentation.networks.shapes import infer_shapes
from trt_segmentation.networks.work import does_work, multiply_accumulates
from trt_segmentation.sample import BUNDLE as SAMPLE
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.segmenters.segmenter import CLASSES
from trt_segmentation.system import scripts
from trt_segmentation.system.files import atomic_write

OURS = ('mse', 'entropy', 'percentile', 'minmax')
THEIRS = ('MinMax', 'Entropy', 'Percentile')
PEERS = {
    'modelopt': ('entropy', 'max'),
    'nncf': ('none', 'fast', 'accurate'),  # which bias correction
    'aimet': ('min_max', 'tf_enhanced', 'tf_enhanced-cle', 'tf_enhanced-cle-adaround'),
    'inc': ('minmax', 'kl', 'percentile'),
}
UNEQUAL = ('depthwise', 'grouped')
PARTS = ('sample', *UNEQUAL, 'more_images', 'vgg16_fcn', 'entropy_search')
BATCH = 4  # ONNX Runtime's histograms fail on a last batch that is smaller


def ours(bundle: Path, images: list[str], method: str) -> None:
    """Calibrate a bundle with this package's calibrator; some of the images it tries ways on."""
    calibrate(bundle, images, count=len(images) - TRIAL_IMAGES, batch_size=BATCH, method=method,
              percentile=99.999, golden=0, report=False)


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


def peer(python: str, name: str, bundle: Path, images: list[str], method: str, output: Path
         ) -> dict[str, Any]:
    """Have a tool, installed for another Python, write a quantized network; return figures."""
    opened = Bundle.open(bundle, verify=False)
    preprocess = Preprocessor(opened.spec.input)
    data = output.with_suffix('.npy')
    np.save(data, np.concatenate([preprocess(cv2.imread(path)) for path in images]))
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    done = subprocess.run(
        [python, str(Path(__file__).with_name('calibration_peers.py')), name, method,
         str(opened.model_path), opened.spec.input.tensor, str(data), str(output)],
        text=True, capture_output=True, env=environment)
    return _figures(done)


def vehicle_model(bundle: Path, scales: dict[str, float]) -> onnx.ModelProto:
    """Return the network with a calibration's scales, in the vehicle's flavor."""
    opened = Bundle.open(bundle, verify=False)
    usable = {name: scale for name, scale in scales.items() if np.isfinite(scale) and scale > 0}
    return quantize(onnx_model.load(opened.model_path), usable, 'tensorrt',
                    exclude=opened.spec.calibration.exclude,
                    input_shapes=input_shapes(opened)).model


def rectify(model: onnx.ModelProto) -> None:
    """Put a Relu before uint8 codes from 0 on, in place: some tools leave the Relu to them."""
    graph, nodes = Graph(model), []
    for node in graph.nodes:
        if node.op_type == 'QuantizeLinear' and len(node.input) > 2:
            zero = graph.array(node.input[2])
            if zero.dtype == np.uint8 and not zero.any():
                before, node.input[0] = node.input[0], graph.fresh(f'{node.input[0]}_rectified')
                nodes.append(onnx.helper.make_node('Relu', [before], [node.input[0]]))
        nodes.append(node)
    set_nodes(model.graph, nodes)


def share(bundle: Path, model: onnx.ModelProto) -> float | None:
    """Return the share of the multiply-accumulates whose both factors are dequantized codes."""
    shapes = infer_shapes(model, input_shapes(Bundle.open(bundle, verify=False)))
    codes = {node.output[0] for node in model.graph.node if node.op_type == 'DequantizeLinear'}
    return int8_share(
        Layer(node_name(node), node.op_type, multiply_accumulates(node, shapes),
              'int8' if codes.issuperset(node.input[:2]) else 'float')
        for node in model.graph.node if does_work(node))


def evaluate(bundle: Path, model: onnx.ModelProto, images: list[str]) -> dict[str, float]:
    """Return how an INT8 network agrees with the float one."""
    opened = Bundle.open(bundle, verify=False)
    confusion = Confusion(opened.spec.labels)
    with CpuSegmenter(opened.spec, OnnxRuntimeEngine(opened.model_path)) as reference, \
            CpuSegmenter(opened.spec, OnnxRuntimeEngine(
                model.SerializeToString(), unfused=True)) as quantized:
        for path in images:
            image = cv2.imread(path)
            confusion.add(*(segmenter.segment(image, (CLASSES,)).classes
                            for segmenter in (reference, quantized)))
    return {'agreement': confusion.agreement, 'iou': confusion.mean_class_iou}


def contest(bundle: Path, images: list[str], evaluation: list[str],
            contenders: list[tuple[str, str]], peers: dict[str, str], rounds: int = 1
            ) -> list[dict[str, Any]]:
    """
    Run each contender in its own process; print and return a row for each.

    :param peers: the interpreter of each peer
    :param rounds: how often all of them run; the least time of each counts, because whatever
        else the machine does can only add to it
    """
    repeated = [_contest(bundle, images, evaluation if not number else [], contenders, peers)
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
             contenders: list[tuple[str, str]], peers: dict[str, str]) -> list[dict[str, Any]]:
    """Run each contender once."""
    rows = []
    for who, method in contenders:
        with tempfile.TemporaryDirectory() as directory:
            copy = Path(directory, 'bundle')
            shutil.copytree(bundle, copy)
            row: dict[str, Any] = {'who': who, 'method': method, 'images': len(images)}
            written = Path(directory, 'quantized.onnx')
            if who in peers:
                row.update(peer(peers[who], who, copy, images, method, written))
            else:
                row.update(_in_process(who, copy, images, method))
            scales = row.pop('scales', None)
            if evaluation and 'error' not in row:
                model = (onnx.load(written) if who in peers else
                         vehicle_model(copy, scales) if scales else
                         quantized_network(Bundle.open(copy), 'tensorrt').model)
                row.update(evaluate(copy, model, evaluation), share=share(copy, model))
                rectify(model)
                if (other := signed(model)) is not None:
                    row.update({f'{key}_int8': value for key, value in
                                evaluate(copy, other, evaluation).items()})
        rows.append(row)
        _print(row)
    return rows


def _print(row: dict[str, Any]) -> None:
    """Print a row."""
    shown = [key for key in ('seconds', 'cpu_seconds', 'peak_mb', 'share', 'agreement', 'iou',
                             'agreement_int8', 'iou_int8') if row.get(key) is not None]
    print('{who:8} {method:24} {images:4} images'.format(**row), ''.join(
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
          peers: dict[str, str], rounds: int) -> Any:
    """Return the figures of one part of the benchmark."""
    if part in ('sample', *UNEQUAL):
        bundle = SAMPLE if part == 'sample' else unequal(temporary / part, part)
        others = drawn.pictures(temporary / f'{part}_scenes', range(95000, 95016))
        return contest(bundle, images[:16], others, everyone, peers, rounds)
    if part == 'more_images':
        return [row for number in (16, 100, 500)
                for row in contest(SAMPLE, images[:number], [], [('ours', 'mse')], {})]
    if part == 'vgg16_fcn':
        return contest(vgg16_fcn(temporary / 'vgg'), images[:16], [],
                       [('ours', 'mse'), ('ours', 'entropy'),
                        *(('theirs', method) for method in THEIRS)], {})
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
    parser.add_argument('--peer', action='append', default=[], metavar='NAME=PYTHON',
                        help='an interpreter that has one of ' + ', '.join(PEERS))
    parser.add_argument('--methods', nargs='+', metavar='WHO:METHOD', help='only these')
    parser.add_argument('--rounds', type=int, default=3,
                        help='how often each contender runs; its least time counts (default: 3)')
    parser.add_argument('--only', choices=PARTS,
                        help='one part of the whole')
    parser.add_argument('--json', type=Path, help='write all figures here')
    parser.add_argument('--task', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        _task()
        return
    peers = dict(each.split('=', 1) for each in args.peer)
    everyone = [(who, method) for who, methods_of in (
        ('ours', OURS), ('theirs', THEIRS), *((name, PEERS[name]) for name in peers))
        for method in methods_of]
    if args.methods:
        everyone = [each for each in everyone if ':'.join(each) in args.methods]
    figures: dict[str, Any] = {}
    if args.bundle:
        figures['bundle'] = contest(args.bundle, sorted(glob.glob(args.images)),
                                    sorted(glob.glob(args.evaluate)), everyone, peers,
                                    args.rounds)
    else:
        parts = [args.only] if args.only else PARTS
        with tempfile.TemporaryDirectory() as temporary:
            number = 500 if 'more_images' in parts else 16
            images = drawn.pictures(Path(temporary, 'images'), range(90000, 90000 + number))
            for part in parts:
                print(part, flush=True)
                figures[part] = _part(part, images, Path(temporary), everyone, peers,
                                      args.rounds)
    if args.json:
        atomic_write(args.json, reports.json_text(figures))


if __name__ == '__main__':
    scripts.end_in_a_line()
    main()
