# SPDX-License-Identifier: Apache-2.0
"""
Measure class and category IoU, and how far an engine's masks are from another engine's.

The first engine is what the others are compared with. Without true masks, agreement alone is
measured. With --output, an interrupted run goes on where it ended.
"""

from __future__ import annotations

import argparse
import sys

from trt_segmentation.cli import print_json, progress_bar, share

EXAMPLE = ('trt-segmentation evaluate my_bundle --cityscapes /data/cityscapes '
           '--max-class-iou-loss 0.3 --output evaluation')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    from trt_segmentation.engines import BACKENDS
    parser.add_argument('bundle', metavar='BUNDLE', help='the bundle directory')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--images', metavar='DIR', help='a directory of images')
    source.add_argument('--cityscapes', metavar='ROOT',
                        help='the directory with leftImg8bit/ and gtFine/')
    source.add_argument('--scenes', type=int, metavar='N',
                        help='the first N drawn scenes that the sample network never saw')
    parser.add_argument('--labels', metavar='DIR', help='true masks (PNG) for --images')
    parser.add_argument('--label-ids', choices=('train', 'cityscapes'), default='train',
                        help='what pixels of --labels are, where their names do not say '
                             '(default: train)')
    parser.add_argument('--split', default='val', help='of Cityscapes (default: val)')
    parser.add_argument('--engines', nargs='+', metavar='NAME',
                        help='PRECISION, BACKEND:PRECISION, or int8-vehicle: the INT8 network '
                             'that TensorRT gets, computed on the CPU (default: fp32 int8, and '
                             'int8-vehicle where int8 runs on the CPU)')
    parser.add_argument('--backend', choices=('auto', *BACKENDS), default='auto',
                        help='of engines that name none (default: the best there is)')
    parser.add_argument('--store', metavar='DIR', help='where built engines live')
    parser.add_argument('--max-class-iou-loss', type=float, metavar='POINTS',
                        help='fail if an engine loses more points of class IoU')
    parser.add_argument('--max-category-iou-loss', type=float, metavar='POINTS',
                        help='the same of category IoU')
    parser.add_argument('--min-agreement', type=share, metavar='SHARE',
                        help='fail if fewer pixels (0..1) have the class of the first engine')
    parser.add_argument('--output', metavar='DIR',
                        help='write evaluation.html and evaluation.json there')
    parser.add_argument('--format', choices=('text', 'json', 'markdown'), default='text',
                        help='how figures are printed to standard output (default: text)')


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from contextlib import ExitStack

    from trt_segmentation import reports
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.engines.opening import open_named, VEHICLE
    from trt_segmentation.errors import InputError
    from trt_segmentation.evaluation.evaluate import evaluate_items
    from trt_segmentation.reports import evaluation as report
    from trt_segmentation.system import environment, files

    if args.labels and not args.images:
        raise InputError('--labels goes with --images; Cityscapes and the scenes have their own')
    environment.keep_memory()
    bundle = Bundle.open(args.bundle)
    output = reports.output_directory(args.output) if args.output else None
    items = _items(args, bundle.spec.labels)
    limits = {key: getattr(args, key) for key in (
        'max_class_iou_loss', 'max_category_iou_loss', 'min_agreement')}
    with ExitStack() as stack:
        engines = {}
        for name in args.engines or ('fp32', 'int8'):
            engines[name] = stack.enter_context(
                open_named(bundle, name, backend=args.backend, store=args.store))
        if not args.engines and engines['int8'].engine.backend == 'onnxruntime':
            engines[VEHICLE] = stack.enter_context(open_named(bundle, VEHICLE))
        with progress_bar(len(items), 'frame') as count:
            evaluation = evaluate_items(
                engines, items, bundle, output, progress=lambda name: count())
    asked = any(limit is not None for limit in limits.values())
    failures = evaluation.failures(**limits)
    provenance = reports.provenance(bundle)
    document = {**evaluation.summary(), 'limits': limits, 'failures': failures,
                'provenance': provenance}
    name = bundle.path.absolute().name
    if output:
        page = report.html(name, evaluation, provenance, failures if asked else None)
        files.atomic_write(output / 'evaluation.html', page)
        files.atomic_write(output / 'evaluation.json', reports.json_text(document))
    if args.format == 'json':
        print_json(document)
    elif args.format == 'markdown':
        print(report.markdown(name, evaluation, provenance))
    else:
        print(report.text(evaluation))
    for failure in failures:
        print(f'trt-segmentation evaluate: {failure}', file=sys.stderr)
    return 1 if failures else 0


def _items(args: argparse.Namespace, labels) -> list:
    """Return the images that the arguments name."""
    from trt_segmentation.errors import InputError
    from trt_segmentation.evaluation import datasets
    if args.cityscapes:
        return datasets.cityscapes(args.cityscapes, labels, args.split)
    if args.scenes is not None:
        if args.scenes < 1:
            raise InputError(f'--scenes: found {args.scenes}, expected 1 or more')
        return datasets.sample_scenes(args.scenes)
    return datasets.folder(args.images, labels, args.labels, label_ids=args.label_ids)
