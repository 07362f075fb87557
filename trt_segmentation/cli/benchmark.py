# SPDX-License-Identifier: Apache-2.0
"""
Measure latency by stage and end to end, for each precision; or compare two results.

Engines take turns on drawn scenes of a fixed seed, after a warm-up that is timed apart.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from trt_segmentation.cli import (
    add_format,
    add_gpu,
    after_refusal,
    print_json,
    say,
    written,
)
from trt_segmentation.errors import command_line, counted, InputError
from trt_segmentation.system.progress import ProgressBar

_SIDES = (32, 8192)  # of the drawn scenes

EXAMPLE = 'trt-segmentation benchmark my_bundle --output benchmark'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    from trt_segmentation.engines import BACKENDS
    parser.add_argument('bundle', metavar='BUNDLE', nargs='?', help='the bundle directory')
    parser.add_argument('--compare', nargs=2, metavar=('A.json', 'B.json'),
                        help='compare two results, or the directories that they were written '
                             'to, with the noise, instead of measuring')
    parser.add_argument('--engines', nargs='+', metavar='NAME',
                        help='PRECISION, BACKEND:PRECISION, or opencv, the framework '
                             'baseline (default: opencv, fp32, fp16 where the backend has '
                             'it, int8)')
    parser.add_argument('--backend', choices=('auto', *BACKENDS), default='auto',
                        help='of engines that name none (default: the best there is)')
    parser.add_argument('--store', metavar='DIR', help='where built engines live')
    add_gpu(parser)
    parser.add_argument('--frames', type=int, default=200, metavar='N',
                        help='timed frames of each engine (default: 200)')
    parser.add_argument('--warmup', type=int, default=20, metavar='N',
                        help='frames before them (default: 20)')
    parser.add_argument('--image-size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
                        help="of the images (default: the network's)")
    parser.add_argument('--seed', type=int, default=0, help='of the drawn scenes (default: 0)')
    parser.add_argument('--output', metavar='DIR',
                        help='write benchmark.html, benchmark.json and benchmark.csv there; with '
                             '--compare, comparison.html and comparison.json')
    add_format(parser, 'markdown')


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    if (args.bundle is None) == (args.compare is None):
        raise InputError('expected a bundle to measure, or --compare with two results')
    return _compare(args) if args.compare else _measure(args)


def _measure(args: argparse.Namespace) -> int:
    """Measure a bundle's engines."""
    from contextlib import ExitStack

    from trt_segmentation import reports
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.bundles.manifest import tuned
    from trt_segmentation.evaluation import benchmark
    from trt_segmentation.reports import benchmark as report
    from trt_segmentation.system import environment, files

    if args.image_size and not all(_SIDES[0] <= side <= _SIDES[1] for side in args.image_size):
        raise InputError('--image-size: found {} {}, expected sides of {} to {}'.format(
            *args.image_size, *_SIDES))
    benchmark.check_counts(args.frames, args.warmup)
    environment.keep_memory()
    bundle = Bundle.open(args.bundle)
    output = reports.output_directory(args.output) if args.output else None
    with ExitStack() as stack:
        engines = {}
        for name in args.engines or _default_engines(args.backend):
            try:
                engines[name] = stack.enter_context(benchmark.open_engine(
                    bundle, name, backend=args.backend, store=args.store))
            except InputError as error:
                if args.engines or name != benchmark.BASELINE:
                    raise
                say('benchmark', f'without the baseline: {error}')
        height, width = args.image_size or bundle.spec.input.size
        backends = {segmenter.engine.backend: None for segmenter in engines.values()}
        say('benchmark', f'{counted(args.frames, "frame")} of {width}x{height} after '
            f'{args.warmup} to warm up, for each of {", ".join(engines)}, '
            f'backend{"s" * (len(backends) > 1)} {", ".join(backends)}')
        with ProgressBar({'': len(engines) * (args.frames + args.warmup)}) as bar:
            result = benchmark.measure(
                engines, frames=args.frames, warmup=args.warmup,
                image_size=args.image_size and tuple(args.image_size), seed=args.seed,
                progress=bar.advance)
        refused = benchmark.refused(bundle, engines)
    provenance, unproven = reports.provenance(bundle), reports.unproven(bundle)
    kept = [reports.without_directories(text, bundle.path) for text in unproven]
    document = {**result, 'refused': refused, 'unproven': kept, 'provenance': provenance}
    name = bundle.path.absolute().name
    if output:
        page = report.html(name, result, provenance, kept, refused)
        files.atomic_write(output / 'benchmark.html', page)
        files.atomic_write(output / 'benchmark.json', reports.json_text(document))
        files.atomic_write(output / 'benchmark.csv', benchmark.to_csv(result))
    if args.format == 'json':
        print_json(document)
    elif args.format == 'markdown':
        print(report.markdown(name, result, provenance, kept, refused))
    else:
        print(report.text(result, unproven, refused))
    if output:
        written(args, *(output / f'benchmark.{end}' for end in ('html', 'json', 'csv')))
    if args.format == 'text':
        print('next       ' + (
            after_refusal(args.bundle, tuned(bundle)) if any(refused.values()) else
            'after a change: ' + command_line(
                'benchmark', '--compare', output / 'benchmark.json', 'OTHER.json') if output else
            'keep it, to compare with after a change: ' + command_line(
                'benchmark', args.bundle, '--output', 'benchmark')))
    return 0


def _compare(args: argparse.Namespace) -> int:
    """Compare two results."""
    from trt_segmentation import reports
    from trt_segmentation.evaluation import benchmark
    from trt_segmentation.reports import benchmark as report
    from trt_segmentation.system import files
    sides = [benchmark.read(path) for path in args.compare]
    comparison = benchmark.compare(*sides)
    verdicts = report.comparison_verdicts(comparison, sides)
    document = {'verdict': verdicts[0].answer, 'verdicts': [asdict(each) for each in verdicts],
                'engines': comparison}
    if args.output:
        output = reports.output_directory(args.output)
        page = report.comparison_html(comparison, sides, reports.provenance())
        files.atomic_write(output / 'comparison.html', page)
        files.atomic_write(output / 'comparison.json', reports.json_text(document))
    if args.format == 'json':
        print_json(document)
    elif args.format == 'markdown':
        print(report.comparison_markdown(comparison, sides))
    else:
        print(report.comparison_text(comparison, sides))
    if args.output:
        written(args, output / 'comparison.html', output / 'comparison.json')
    return 0


def _default_engines(backend: str) -> list[str]:
    """Return the baseline and what the backend can run, from the slowest to the fastest."""
    from trt_segmentation.engines import choose_backend
    from trt_segmentation.evaluation.benchmark import BASELINE
    half = ['fp16'] if 'fp16' in choose_backend(backend).precisions else []
    return [BASELINE, 'fp32', *half, 'int8']
