# SPDX-License-Identifier: Apache-2.0
"""
Measure class and category IoU, and how far an engine's masks are from another engine's.

The first engine is what the others are compared with. Without true masks, agreement alone is
measured. With --output, an interrupted run goes on where it ended.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from trt_segmentation.cli import (
    add_format,
    add_gpu,
    add_jobs,
    after_refusal,
    few,
    next_step,
    print_json,
    say,
    share,
    size,
    workers_of,
    written,
)
from trt_segmentation.errors import command_line, counted, InputError
from trt_segmentation.system import arguments
from trt_segmentation.system.progress import ProgressBar

if TYPE_CHECKING:
    from pathlib import Path

    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.bundles.labels import LabelSet
    from trt_segmentation.evaluation.datasets import DataSet
    from trt_segmentation.evaluation.tally import Evaluation

EXAMPLE = ('trt-segmentation evaluate my_bundle --cityscapes /data/cityscapes '
           '--max-class-iou-loss 0.3 --output evaluation')

_ENOUGH = 16  # images that are worth a process, which takes some seconds to start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    from trt_segmentation.engines import BACKENDS
    from trt_segmentation.evaluation.masks import ID_SPACES
    parser.add_argument('bundle', metavar='BUNDLE', help='the bundle directory')
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument('--images', metavar='PATH', nargs='+',
                        help='a directory of images, or recordings; or URLs of these')
    source.add_argument('--cityscapes', metavar='ROOT',
                        help='the directory with leftImg8bit/ and gtFine/')
    source.add_argument('--scenes', type=int, metavar='N',
                        help='the first N drawn scenes that the sample network never saw')
    parser.add_argument('--labels', metavar='DIR', help='true masks (PNG) for --images')
    parser.add_argument('--label-ids', choices=ID_SPACES,
                        help="what pixels of --labels are: the bundle's train ids, Cityscapes' "
                             "label ids or train ids, or 0 and 255 for two classes (default: "
                             "what Cityscapes' endings say, else train)")
    parser.add_argument('--split', default='val', help='of Cityscapes (default: val)')
    parser.add_argument('--engines', nargs='+', metavar='NAME',
                        help='PRECISION, BACKEND:PRECISION, or int8-vehicle: the INT8 network '
                             'that TensorRT gets, computed on the CPU (default: fp32 int8, and '
                             'int8-vehicle where int8 runs on the CPU)')
    parser.add_argument('--backend', choices=('auto', *BACKENDS), default='auto',
                        help='of engines that name none (default: the best there is)')
    parser.add_argument('--store', metavar='DIR', help='where built engines live')
    add_gpu(parser)
    add_jobs(parser)
    parser.add_argument('--max-class-iou-loss', type=_points, metavar='POINTS',
                        help='fail if an engine loses more points of class IoU')
    parser.add_argument('--max-category-iou-loss', type=_points, metavar='POINTS',
                        help='the same of category IoU')
    parser.add_argument('--max-single-class-iou-loss', type=_points, metavar='POINTS',
                        help='fail if an engine loses more points of the IoU of any class')
    parser.add_argument('--min-agreement', type=share, metavar='SHARE',
                        help='fail if fewer pixels (0..1) have the class of the first engine')
    parser.add_argument('--output', metavar='DIR',
                        help='write evaluation.html and evaluation.json there')
    add_format(parser, 'markdown')


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from dataclasses import replace

    from trt_segmentation import reports
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.bundles.manifest import tuned
    from trt_segmentation.evaluation.datasets import calibrated_with, check_masks
    from trt_segmentation.evaluation.tally import check_limits
    from trt_segmentation.reports import evaluation as report
    from trt_segmentation.system import environment, files

    if (args.labels or args.label_ids) and not args.images:
        raise InputError('--labels goes with --images; Cityscapes and the scenes have their own')
    if args.split != 'val' and not args.cityscapes:
        raise InputError('--split goes with --cityscapes')
    if args.label_ids and not args.labels:
        raise InputError('--label-ids goes with --labels')
    pictures = few(args.images) if args.images else [
        os.path.join(args.cityscapes, 'leftImg8bit', args.split) if args.cityscapes
        else 'DIRECTORY']
    args.images = args.images and [_here(args, path) for path in args.images]
    args.labels = args.labels and _here(args, args.labels)
    args.cityscapes = args.cityscapes and _here(args, args.cityscapes)
    environment.keep_memory()
    bundle = Bundle.open(args.bundle)
    output = reports.output_directory(args.output) if args.output else None
    limits = {key: getattr(args, key) for key in (
        'max_class_iou_loss', 'max_category_iou_loss', 'max_single_class_iou_loss',
        'min_agreement')}
    with ProgressBar({'': None}) as bar:
        data = _data(args, bundle.spec.labels)
        check_limits(args.engines or ('fp32', 'int8'), bool(args.labels or not args.images),
                     iou=[limit for key, limit in limits.items() if key != 'min_agreement'],
                     agreement=args.min_agreement)
        notes = (check_masks(data.items, bundle.spec.labels)
                 + calibrated_with(data.items, bundle) + reports.unproven(bundle))
        for note in (*data.notes, *notes):
            bar.say(note)
        bar.totals[''] = len(data.items)
        evaluation = _evaluate(args, bundle, data, output, bar)
    evaluation.notes = [*notes, *evaluation.notes]
    evaluation.look = command_line('preview', args.bundle, '--images', *pictures)
    named = [*(args.images or ()), args.labels, args.cityscapes]
    evaluation.taken = [reports.without_directories(note, *named) for note in data.notes]
    failures = evaluation.failures(**limits)
    summary = evaluation.figures(bundle.spec.acceptance)
    provenance = reports.provenance(bundle)
    # Files are handed on; who reads the terminal can type the command as it stands.
    kept = replace(summary, notes=[
        reports.without_directories(note, args.bundle, *pictures) for note in summary.notes])
    document = {**kept.to_json(), 'limits': limits, 'failures': failures,
                'provenance': provenance}
    asked = failures if any(limit is not None for limit in limits.values()) else None
    page = report.Report(bundle.path.absolute().name, kept, provenance, asked,
                         bundle.spec.labels, evaluation.worst)
    if output:
        files.atomic_write(output / 'evaluation.html', report.html(page))
        files.atomic_write(output / 'evaluation.json', reports.json_text(document))
    if args.format == 'json':
        print_json(document)
    elif args.format == 'markdown':
        print(report.markdown(page))
    else:
        print(report.text(replace(page, summary=summary)))
    if output:
        written(args, output / 'evaluation.html', output / 'evaluation.json')
    if args.format == 'text':
        refused = bool(failures) or any(
            engine.judgement is not None and not engine.judgement.accepted
            for engine in summary.engines.values())
        print('next       ' + (
            evaluation.look if summary.doubted
            else after_refusal(args.bundle, tuned(bundle)) if refused
            else next_step(args.bundle, store=args.store)))
    for failure in failures:
        say('evaluate', failure)
    return 1 if failures else 0


def _points(text: str) -> float:
    """Return points of IoU that may be lost, 0..100; for argparse."""
    expected = 'points of IoU, 0..100'
    value = arguments.number(text, expected)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f'found {text!r}, expected {expected}')
    return value


def _here(args: argparse.Namespace, path: str) -> str:
    """Return where this process, and its workers, can read what is at a path or a URL."""
    from trt_segmentation.recordings import remote
    if not args.dask:
        return remote.here(path)
    if remote.is_url(path):
        raise InputError(f'--dask: {path} would be fetched to this machine, where workers of '
                         'others cannot read it; give a path that all of them have')
    return os.path.abspath(path)  # they are in directories of their own


def _evaluate(args: argparse.Namespace, bundle: Bundle, data: DataSet, output: Path | None,
              bar: ProgressBar) -> Evaluation:
    """Run the engines over the images, here or on several workers."""
    from contextlib import ExitStack

    from trt_segmentation.engines.opening import open_named, VEHICLE
    from trt_segmentation.engines.workers import backend_name, Engines
    from trt_segmentation.evaluation.evaluate import evaluate_items, evaluate_spread
    with ExitStack() as stack:
        backend = '' if args.dask else backend_name(args.backend)
        workers = stack.enter_context(workers_of(
            args, len(data.items), _ENOUGH, alone=backend != 'onnxruntime', store=args.store,
            gpu=args.backend != 'onnxruntime'))  # one process owns a GPU's engine
        if args.dask and workers is not None:
            backend = workers.call(backend_name, args.backend)
        names = tuple(args.engines or (
            'fp32', 'int8', *[VEHICLE] * (backend == 'onnxruntime')))
        say('evaluate', f'{counted(len(data.items), "image")}, {size(bundle)}, engines '
            f'{", ".join(names)}, backend {backend}')
        if workers is not None:
            return evaluate_spread(
                Engines(workers.place(bundle), names, args.backend, args.store),
                data.items, bundle, workers, output, progress=lambda name: bar.advance(),
                watch=bar.doing)
        return evaluate_items(
            {name: stack.enter_context(open_named(
                bundle, name, backend=args.backend, store=args.store)) for name in names},
            data.items, bundle, output, decoders=args.jobs or 2,
            progress=lambda name: bar.advance())


def _data(args: argparse.Namespace, labels: LabelSet) -> DataSet:
    """Return the images that the arguments name."""
    from trt_segmentation.evaluation import datasets
    from trt_segmentation.recordings import finder, storage
    if args.cityscapes:
        return datasets.cityscapes(args.cityscapes, labels, args.split)
    if args.scenes is not None:
        if args.scenes < 1:
            raise InputError(f'--scenes: found {args.scenes}, expected 1 or more')
        return datasets.sample_scenes(args.scenes, labels)
    recorded = any(map(storage.within, args.images))
    if recorded and len(args.images) == 1 and os.path.isdir(args.images[0]):
        # Beside pictures, recordings are what is left.
        recorded = not finder.find(args.images, recordings=True).files
    if len(args.images) == 1 and not recorded:
        return datasets.folder(args.images[0], labels, args.labels, label_ids=args.label_ids)
    if args.labels:
        raise InputError('--labels goes with a directory of pictures: recordings have no masks')
    return datasets.recordings(args.images)
