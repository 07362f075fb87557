# SPDX-License-Identifier: Apache-2.0
"""
Build, prove and measure on this machine's GPU, and write it down to be sent to others.

    make vehicle-report

or, with a bundle of yours, `python3 benchmarks/vehicle_report.py --bundle BUNDLE`. Without one it
is the sample network, calibrated here with drawn scenes. Writes vehicle-report.json, with all
figures, and vehicle-report.md, one page to attach to an issue. It names the machine's hardware and
software, and holds no pictures; look through it before you send it. A step that fails is written
down with its reason, and the next one is done.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
import json
from pathlib import Path
import sys
import tempfile
from typing import Any

import drawn
import gpu

from trt_segmentation import __version__, reports
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines import BACKENDS, choose_backend
from trt_segmentation.engines.build import build
from trt_segmentation.engines.opening import open_segmenter
from trt_segmentation.engines.summary import layer_table
from trt_segmentation.errors import InputError, SegmentationError
from trt_segmentation.evaluation import benchmark
from trt_segmentation.networks.layers import Layer
from trt_segmentation.system import machine, scripts
from trt_segmentation.system.files import atomic_write

CAMERA = (1080, 1920)
# Precision and quantization of each engine, by the name that it has in the report.
ENGINES = {'int8': ('int8', 'explicit'), 'int8 implicit': ('int8', 'implicit'),
           'fp16': ('fp16', 'explicit'), 'fp32': ('fp32', 'explicit')}


def report(bundle: Bundle, backend: str, store: Path, frames: int) -> dict[str, Any]:
    """Return all figures; a failed step has an entry 'error'."""
    result: dict[str, Any] = {
        'schema': 1, 'package_version': __version__, 'machine': machine.describe(),
        'backend': backend, 'library': dict(choose_backend(backend).identity()),
        'model_sha256': bundle.model_sha256, 'size': list(bundle.spec.input.size),
        'state_before': machine.state(), 'engines': {},
    }
    with ExitStack() as stack:
        segmenters = {}
        for name, (precision, quantization) in ENGINES.items():
            entry = result['engines'][name] = _tried(lambda p=precision, q=quantization: _built(
                bundle, backend, p, q, store))
            if 'error' not in entry:
                segmenters[name] = stack.enter_context(open_segmenter(
                    bundle, backend=backend, precision=precision, store=store))
                entry['cuda_graph'] = segmenters[name].engine.uses_cuda_graph
        for key, size in (('network_size', None), ('camera_size', CAMERA)):
            if segmenters:
                _say(f'measuring {", ".join(segmenters)} ({key.replace("_", " ")})')
                result[key] = _tried(lambda s=size: benchmark.measure(
                    segmenters, frames=frames, image_size=s))
    _say('measuring the kernels')
    result['bandwidth'] = _tried(gpu.bandwidths)
    result['state_after'] = machine.state()
    return result


def _built(bundle: Bundle, backend: str, precision: str, quantization: str, store: Path
           ) -> dict[str, Any]:
    """Build, prove and store an engine; return what its record says."""
    lines: list[str] = []

    def note(line: str) -> None:
        lines.append(line)
        _say(f'  {line}')

    _say(f'building {precision}, {quantization}')
    try:
        record = build(bundle, backend=backend, precision=precision, quantization=quantization,
                       store=store, force=True, report=note).record.to_json()
    except SegmentationError as error:
        raise SegmentationError('\n'.join([str(error), *lines])) from None
    return {key: record[key] for key in ('build_seconds', 'acceptance', 'layers', 'log')}


def _tried(step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a step returns, or why it failed."""
    try:
        return step()
    except (SegmentationError, OSError) as error:
        _say(f'  failed: {error}')
        return {'error': str(error)}


def page(result: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    library = result['library']
    lines = [
        f'# Vehicle report: {library["gpu"]}', '',
        reports.markdown_table(('', ''), [
            *([key, value] for key, value in result['machine'].items()),
            ['library', f'{result["backend"]} {library["version"]}'],
            ['compute capability', library['compute_capability']],
            ['trt_segmentation', result['package_version']],
            ['network', f'sha256 {result["model_sha256"][:16]}, '
                        f'{result["size"][0]}x{result["size"][1]}'],
        ]), '', '## Engines', '',
        reports.markdown_table(
            ('engine', 'built in s', 'work in INT8', 'agreement', 'lowest class', 'CUDA graph'),
            [_engine_row(name, entry) for name, entry in result['engines'].items()]), '',
    ]
    for name, entry in result['engines'].items():
        if 'error' in entry:
            lines += [f'{name} failed:', '', '```', entry['error'], '```', '']
    for key, title in (('network_size', "images of the network's size"),
                       ('camera_size', f'images of {CAMERA[1]}x{CAMERA[0]}')):
        if 'error' in result.get(key, {}):
            lines += [f'Measuring {title} failed: {result[key]["error"]}', '']
        elif key in result:
            lines += [f'## Milliseconds a frame, {title}', '', _latency_table(result[key]), '']
    lines += ['## Kernels', '', _kernel_table(result['bandwidth']), '']
    for name, entry in result['engines'].items():
        if name.startswith('int8') and 'error' not in entry:
            table = layer_table(Layer(**layer) for layer in entry['layers'])
            lines += [f'## Layers of {name}', '', '```', *table, '```', '']
    states = [f'{key}: {result["state_before"][key]} before, '
              f'{result["state_after"].get(key, "?")} after' for key in result['state_before']]
    return '\n'.join([*lines, '## Clocks and temperatures', '', *(f'- {line}' for line in states),
                      ''])


def _engine_row(name: str, entry: dict[str, Any]) -> list[str]:
    """Return the row of one engine."""
    if 'error' in entry:
        return [name, 'failed', '', '', '', '']
    acceptance = entry['acceptance']
    lowest = min(acceptance['classes'].values(), default=None)
    share = acceptance['int8_share']
    return [name, f'{entry["build_seconds"]:.1f}', 'unknown' if share is None else f'{share:.1%}',
            *('' if value is None else f'{value:.4f}'
              for value in (acceptance['agreement'], lowest)),
            'yes' if entry['cuda_graph'] else 'no']


def _latency_table(result: dict[str, Any]) -> str:
    """Return the table of stages."""
    rows = []
    for name, figures in result['engines'].items():
        stages = figures['stages']
        total = stages[benchmark.TOTAL]
        rows.append([name, *(f'{total[q]:.2f}' for q in ('p50', 'p95', 'p99')),
                     *(f'{stages[stage]["p50"]:.2f}'
                       for stage in ('preprocess', 'inference', 'postprocess')),
                     f'{figures["frames_per_second"]:.0f}'])
    return reports.markdown_table(('engine', 'p50', 'p95', 'p99', 'preprocess', 'inference',
                                   'postprocess', 'frames/s'), rows)


def _kernel_table(result: dict[str, Any]) -> str:
    """Return the table of kernels."""
    if 'error' in result:
        return result['error']
    rows = [[name, f'{row["us"]:.1f}', f'{row["bytes"] / 1e6:.1f}', f'{row["gb_per_s"]:.0f}',
             f'{row["share_of_copy"]:.0%}'] for name, row in result['kernels'].items()]
    return (f'A copy on the GPU: {result["copy_gb_per_s"]:.0f} GB/s, read and written.\n\n'
            + reports.markdown_table(('kernel', 'us', 'MB', 'GB/s', 'of the copy'), rows))


def _say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Write the report; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--bundle', type=Path, help='calibrated, with golden frames')
    parser.add_argument('--backend', choices=('auto', *BACKENDS[:-1]), default='auto')
    parser.add_argument('--frames', type=int, default=300)
    parser.add_argument('--output', type=Path, default=Path('.'), metavar='DIR')
    args = parser.parse_args()
    backend = choose_backend(args.backend).name
    if backend not in BACKENDS[:-1]:
        raise InputError('this machine has no NVIDIA GPU to report on')
    with tempfile.TemporaryDirectory() as folder:
        if args.bundle is None:
            _say('calibrating the sample network')
        bundle = (Bundle.open(args.bundle) if args.bundle
                  else drawn.calibrated(Path(folder, 'bundle'), 50, 8))
        result = report(bundle, backend, Path(folder, 'store'), args.frames)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, text in (('vehicle-report.json', json.dumps(result, indent=1) + '\n'),
                       ('vehicle-report.md', page(result))):
        atomic_write(args.output / name, text)
        _say(f'wrote {args.output / name}')
    return 0


if __name__ == '__main__':
    scripts.end_in_a_line()
    sys.exit(main())
