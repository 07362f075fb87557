# SPDX-License-Identifier: Apache-2.0
"""
Speed on a GPU: the engine alone, end to end, and the plain way, in one run.

    python3 benchmarks/gpu.py --backend tensorrt --precisions fp32 fp16 --json gpu.json
    python3 benchmarks/gpu.py --batches 8 [--network sample]  # in turn and in batches instead

The network is that of benchmarks/vgg16_fcn.py; its logits come at full size, as exports of such
networks have them, or with --stride 8 where the last upsampling is left to the kernel that makes
the masks. One frame is in
flight: an image in pageable memory goes in, class mask and color mask come back to host arrays,
and those of the frame before are still held. The plain way is NumPy before and after the same
engine: normalization, logits to the host, argmax, palette. The table of kernels has the bytes
that each must move at least over its time, beside the GPU's own copy; buffers take turns, so that
they come from memory and not from the cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
import json
from pathlib import Path
import platform
import shutil
from statistics import median
import sys
import tempfile
from time import perf_counter
from typing import Any

import numpy as np
from vgg16_fcn import CLASSES, SIZE, write_bundle

from trt_segmentation import sample
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.spec import InputSpec, OutputSpec, Spec
from trt_segmentation.cuda import kernels
from trt_segmentation.cuda.device import Device
from trt_segmentation.engines import choose_backend
from trt_segmentation.engines.build import build
from trt_segmentation.engines.opening import open_segmenter
from trt_segmentation.engines.store import Store
from trt_segmentation.segmenters.choice import segmenter_of
from trt_segmentation.system import scripts
from trt_segmentation.system.files import atomic_write

_WARM_UP = 10  # frames before each turn that are not timed


def measure(bundle: Bundle, backend: str, precision: str, store: Path, frames: int
            ) -> dict[str, Any]:
    """Return the figures of one precision, each in milliseconds."""
    build(bundle, backend=backend, precision=precision, store=store, allow_unproven=True,
          allow_float=True, report=lambda line: print(f'  {line}', file=sys.stderr))
    segmenter = open_segmenter(bundle, backend=backend, precision=precision, store=store)
    engine, record = segmenter.engine, segmenter.record
    rng = np.random.default_rng(1)
    images = [_image(rng) for _ in range(8)]
    held: list[Any] = []

    def engine_alone(i: int) -> None:
        with engine.device as device:
            engine.enqueue()
            device.synchronize()

    def end_to_end(i: int) -> None:
        held[:] = held[-1:] + [segmenter.segment(images[i % len(images)])]

    plain = _plain_way(bundle, engine)
    ways: dict[str, tuple[Callable[[int], Any], int]] = {
        'engine': (engine_alone, frames), 'end_to_end': (end_to_end, frames),
        'plain': (lambda i: plain(images[i % len(images)]), max(frames // 50, 3)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(5):  # by turns, so that a slow moment of the machine meets all of them
        for name, (way, count) in ways.items():
            for i in range(min(_WARM_UP, count)):  # the plain way has emptied all caches
                way(i)
            for i in range(count // 5 or 1):
                start = perf_counter()
                way(i)
                times[name].append((perf_counter() - start) * 1e3)
    figures = {name: {'p50': float(np.percentile(values, 50)),
                      'p99': float(np.percentile(values, 99)), 'count': len(values)}
               for name, values in times.items()}
    p50 = {name: value['p50'] for name, value in figures.items()}
    result = {
        **figures,
        'overhead_ms': p50['end_to_end'] - p50['engine'],
        'p99_over_p50': figures['end_to_end']['p99'] / p50['end_to_end'],
        'speedup_over_plain': p50['plain'] / p50['end_to_end'],
        'cuda_graph': engine.uses_cuda_graph,
        'stages_ms': segmenter.segment(images[0]).stage_ms,
        'int8_share': record.acceptance.int8_share,
        'build_seconds': record.build_seconds,
    }
    segmenter.close()
    return result


def measure_batches(bundle: Bundle, backend: str, precision: str, store: Path, frames: int,
                    most: int) -> list[dict[str, float]]:
    """
    Return milliseconds a frame for each batch size: the engine alone, and images to masks.

    In turn is the engine that was built for one image, in batches the one for `most`.
    """
    sizes = tuple(2**n for n in range(most.bit_length()))

    def opened(max_batch: int, sizes: tuple[int, ...]) -> Any:
        built = build(bundle, backend=backend, precision=precision, store=store,
                      max_batch=max_batch, allow_unproven=True, allow_float=True,
                      report=lambda line: print(f'  {line}', file=sys.stderr))
        engine = choose_backend(backend).load(Store(store).plan(built.key), precision)
        return segmenter_of(bundle.spec, engine, batch_sizes=sizes)

    rng = np.random.default_rng(1)
    images = [_image(rng) for _ in range(most)]
    rows = []
    with opened(1, (1,)) as turns, opened(most, sizes) as batches:
        def engine_alone(segmenter: Any, count: int) -> None:
            with segmenter.engine.device as device:
                segmenter.engine.enqueue(count)
                device.synchronize()

        def in_turn(way: Callable[..., Any], given: list[Any]) -> None:
            for each in given:
                way(each)

        for count in sizes:
            given = images[:count]
            ways: dict[str, Callable[[], Any]] = {
                'engine_in_turn': partial(in_turn, partial(engine_alone, turns), [1] * count),
                'engine': partial(engine_alone, batches, count),
                'in_turn': partial(in_turn, turns.segment, given),
                'batched': partial(batches.segment_batch, given),
            }
            times: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(5):  # by turns, so that a slow moment of the machine meets all of them
                for name, way in ways.items():
                    for _ in range(_WARM_UP):
                        way()
                    for _ in range(max(frames // count // 5, 20)):
                        start = perf_counter()
                        way()
                        times[name].append((perf_counter() - start) * 1e3)
            rows.append({'batch': count, **{
                f'{name}_{quantile}': float(np.percentile(values, int(quantile[1:]))) / count
                for name, values in times.items() for quantile in ('p50', 'p99')}})
    return rows


def _plain_way(bundle: Bundle, engine: Any) -> Callable[[np.ndarray], Any]:
    """Return what a first implementation does around the same engine."""
    mean = np.array(bundle.spec.input.mean, np.float32)
    palette, name = bundle.spec.labels.palette_bgr, bundle.spec.output.tensor
    factor = SIZE[0] // engine.outputs[name].shape[-2]

    def run(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        tensor = np.ascontiguousarray((image.astype(np.float32) - mean).transpose(2, 0, 1)[None])
        logits = engine.infer(tensor)[name][0]
        classes = logits.argmax(0).astype(np.uint8)
        classes = classes.repeat(factor, 0).repeat(factor, 1)
        return classes, palette[classes]
    return run


def bandwidths() -> dict[str, Any]:
    """Return the achieved bandwidth of each kernel, of copies on the GPU and over the bus."""
    device = Device()
    with device:
        module = kernels.load(device.cuda)
        rows = {name: _kernel_bandwidth(device, module, *case) for name, case in _CASES.items()}
        nbytes = 1 << 30
        source, target = device.allocate(nbytes), device.allocate(nbytes)
        seconds = _device_seconds(
            device, lambda i: device.cuda.memcpy_dtod_async(target, source, nbytes,
                                                            device.stream), 20)
        copy = 2 * nbytes / seconds / 1e9
        nbytes = 2 << 20
        memory, _ = device.pinned(nbytes)
        bus = {
            'to_gpu': nbytes / 1e9 / _device_seconds(device, lambda i: (
                device.cuda.memcpy_htod_async(target, memory, device.stream)), 50),
            'from_gpu': nbytes / 1e9 / _device_seconds(device, lambda i: (
                device.cuda.memcpy_dtoh_async(memory, source, device.stream)), 50),
        }
    device.close()
    for row in rows.values():
        row['share_of_copy'] = row['gb_per_s'] / copy
    return {'copy_gb_per_s': copy, 'bus_2_mib_gb_per_s': bus, 'kernels': rows}


# Name: (image size, fit, interpolation, shape of the logits, their type, which kernel is timed).
_CASES = {
    'input, same size': ((512, 1024), 'linear', (512, 1024), np.float32, 'input'),
    'input, 1080p, linear': ((1080, 1920), 'linear', (512, 1024), np.float32, 'input'),
    'input, 1080p, linear, FP16': ((1080, 1920), 'linear', (512, 1024), np.float16, 'input'),
    'input, 1024x2048, area': ((1024, 2048), 'area', (512, 1024), np.float32, 'input'),
    'masks, stride 1': ((512, 1024), 'linear', (512, 1024), np.float32, 'masks'),
    'masks, stride 1, FP16': ((512, 1024), 'linear', (512, 1024), np.float16, 'masks'),
    'masks, stride 8': ((512, 1024), 'linear', (64, 128), np.float32, 'masks'),
    'masks, stride 8, FP16': ((512, 1024), 'linear', (64, 128), np.float16, 'masks'),
    'masks, stride 8, to 1080p': ((1080, 1920), 'linear', (64, 128), np.float32, 'masks'),
}


def _kernel_bandwidth(device: Device, module: Any, image_size: tuple[int, int],
                      interpolation: str, logits_size: tuple[int, int], dtype: type, which: str
                      ) -> dict[str, float]:
    """Return microseconds and GB/s of one kernel, its buffers in turns over 256 MiB."""
    spec = Spec('model.onnx', InputSpec('data', SIZE, interpolation=interpolation),
                OutputSpec('logits'))
    dtype = np.dtype(dtype)
    shape = (1, CLASSES, *logits_size)
    prepared = kernels.Prepared(
        device, module, kernels.input_launch(spec, image_size, 'bgr', dtype),
        kernels.output_launch(spec, image_size, shape, dtype))
    pixels, image = image_size[0] * image_size[1], 3 * image_size[0] * image_size[1]
    rng = np.random.default_rng(0)
    if which == 'input':
        sizes = (image, 3 * SIZE[0] * SIZE[1] * dtype.itemsize)
        first = rng.integers(0, 256, image, np.uint8)
    else:
        sizes = (CLASSES * logits_size[0] * logits_size[1] * dtype.itemsize, pixels, image)
        first = rng.normal(0, 3, shape).astype(dtype)
    sets = []
    for _ in range(max(2, (256 << 20) // sum(sizes))):
        sets.append([device.upload(first), *(device.allocate(size) for size in sizes[1:])])
    palette, broken = device.upload(kernels.palette(spec)), device.pinned(4)[1]

    def launch(i: int) -> None:
        buffers = sets[i % len(sets)]
        if which == 'input':
            prepared.make_input(device.stream, *buffers)
        else:
            prepared.make_masks(device.stream, buffers[0], palette, broken, *buffers[1:], 0)

    seconds = _device_seconds(device, launch, 100)
    for address in (palette, *(address for buffers in sets for address in buffers)):
        device.free(address)
    prepared.free()
    return {'us': seconds * 1e6, 'bytes': sum(sizes), 'gb_per_s': sum(sizes) / seconds / 1e9}


def _device_seconds(device: Device, launch: Callable[[int], None], count: int) -> float:
    """Return the seconds of one launch on the GPU: the median of five means of many in a row."""
    return median(_mean_seconds(device, launch, count) for _ in range(5))


def _mean_seconds(device: Device, launch: Callable[[int], None], count: int) -> float:
    """Return the seconds of one launch, the mean of many, one after the other."""
    begin, end = device.cuda.Event(), device.cuda.Event()
    for i in range(5):
        launch(i)
    # The GPU waits behind a long job until all is queued: launching is not what is timed.
    hold = device.allocate(1 << 30)
    for _ in range(16):
        device.cuda.memset_d8_async(hold, 0, 1 << 30, device.stream)
    begin.record(device.stream)
    for i in range(count):
        launch(i)
    end.record(device.stream)
    device.synchronize()
    device.free(hold)
    return end.time_since(begin) / count / 1e3


def _image(rng: np.random.Generator) -> np.ndarray:
    """Return a noisy image in ordinary, pageable memory."""
    return rng.integers(0, 256, (*SIZE, 3), np.uint8)


def machine(backend: str) -> dict[str, Any]:
    """Return what the figures were measured on."""
    from trt_segmentation.cuda import device
    return {'cpu': platform.processor() or platform.machine(), 'system': platform.platform(),
            'python': platform.python_version(), 'backend': backend,
            **choose_backend(backend).identity(),
            'driver_cuda': device.import_driver().get_driver_version()}


def main() -> int:
    """Run the benchmark; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--backend', choices=('tensorrt', 'tensorrt_rtx'), default='tensorrt')
    parser.add_argument('--precisions', nargs='+', choices=('int8', 'fp16', 'fp32'),
                        default=['fp32', 'fp16'])
    parser.add_argument('--stride', type=int, choices=(1, 8), default=1, help='of the logits')
    parser.add_argument('--frames', type=int, default=500)
    parser.add_argument('--batches', type=int, metavar='N',
                        help='measure batches of up to N images, and nothing else')
    parser.add_argument('--network', choices=('vgg16_fcn', 'sample'), default='vgg16_fcn',
                        help='with --batches')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures here too')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle_path, store = Path(folder, 'bundle'), Path(folder, 'store')
        bundle_path.mkdir()
        if args.network == 'sample':
            bundle = Bundle.open(shutil.copytree(sample.BUNDLE, bundle_path,
                                                 dirs_exist_ok=True))
        else:
            bundle = write_bundle(bundle_path, args.stride, calibrated='int8' in args.precisions)
        if args.batches:
            tables = {precision: measure_batches(bundle, args.backend, precision, store,
                                                 args.frames, args.batches)
                      for precision in args.precisions}
            if args.json:
                atomic_write(args.json, json.dumps(
                    {'machine': machine(args.backend), 'network': args.network,
                     'stride': args.stride, 'batches': tables}, indent=1) + '\n')
            _print_batches(args, tables)
            return 0
        results = {'machine': machine(args.backend), 'stride': args.stride, 'precisions': {
            precision: measure(bundle, args.backend, precision, store, args.frames)
            for precision in args.precisions}}
    results.update(bandwidths())
    if args.json:
        atomic_write(args.json, json.dumps(results, indent=1) + '\n')
    _print(results)
    return 0


def _print_batches(args: argparse.Namespace, tables: dict[str, list[dict[str, float]]]) -> None:
    """Print the tables of batches."""
    network = (args.network if args.network == 'sample'
               else f'{args.network}, logits at stride {args.stride}')
    print(f'{machine(args.backend)["gpu"]}, {args.backend}, {network}; milliseconds a frame, p50 '
          '(p99)')
    print(f'{"":5} {"batch":>5} {"engine in turn":>16} {"engine batched":>16} '
          f'{"end to end in turn":>18} {"end to end batched":>18}')
    for precision, rows in tables.items():
        for row in rows:
            cells = [f'{row[f"{name}_p50"]:.3f} ({row[f"{name}_p99"]:.3f})'
                     for name in ('engine_in_turn', 'engine', 'in_turn', 'batched')]
            print(f'{precision:5} {row["batch"]:5} {cells[0]:>16} {cells[1]:>16} {cells[2]:>18} '
                  f'{cells[3]:>18}')


def _print(results: dict[str, Any]) -> None:
    """Print the tables."""
    print(f'{results["machine"]["gpu"]}, {results["machine"]["backend"]} '
          f'{results["machine"]["version"]}, VGG16-FCN 512x1024, logits at stride '
          f'{results["stride"]}; milliseconds')
    print(f'{"":5} {"engine p50":>10} {"p99":>7} {"end to end p50":>14} {"p99":>7} '
          f'{"over engine":>11} {"plain p50":>9} {"plain / end to end":>18}')
    for name, row in results['precisions'].items():
        print(f'{name:5} {row["engine"]["p50"]:10.3f} {row["engine"]["p99"]:7.3f} '
              f'{row["end_to_end"]["p50"]:14.3f} {row["end_to_end"]["p99"]:7.3f} '
              f'{row["overhead_ms"]:11.3f} {row["plain"]["p50"]:9.2f} '
              f'{row["speedup_over_plain"]:18.1f}')
    bus = results['bus_2_mib_gb_per_s']
    print(f'\ncopy on the GPU {results["copy_gb_per_s"]:.0f} GB/s (read and written); bus, 2 MiB '
          f'at a time: {bus["to_gpu"]:.1f} GB/s to the GPU, {bus["from_gpu"]:.1f} from it')
    print(f'{"kernel":28} {"us":>7} {"MB":>6} {"GB/s":>6} {"of the copy":>11}')
    for name, row in results['kernels'].items():
        print(f'{name:28} {row["us"]:7.2f} {row["bytes"] / 1e6:6.1f} {row["gb_per_s"]:6.0f} '
              f'{row["share_of_copy"]:11.0%}')


if __name__ == '__main__':
    scripts.end_in_a_line()
    sys.exit(main())
