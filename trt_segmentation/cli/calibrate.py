# SPDX-License-Identifier: Apache-2.0
"""
Make a bundle's INT8 calibration cache, its manifest and its golden frames from images.

Images are chosen at random from all that are given; some are held out as golden frames.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any, TYPE_CHECKING

from trt_segmentation.calibration import METHODS
from trt_segmentation.cli import (
    add_format,
    add_jobs,
    after_refusal,
    few,
    next_step,
    print_json,
    say,
    workers_of,
)
from trt_segmentation.errors import command_line, counted, InputError
from trt_segmentation.system.arguments import at_least, number
from trt_segmentation.system.progress import ProgressBar

if TYPE_CHECKING:
    from trt_segmentation.bundles.manifest import Manifest

EXAMPLE = 'trt-segmentation calibrate my_bundle --images drives/ --count 500'

_SHOWN = 10
_ENOUGH = 8  # images that are worth a process, which takes some seconds to start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('bundle', metavar='BUNDLE', help='the bundle directory')
    parser.add_argument('--images', metavar='PATH', nargs='+', required=True,
                        help='directories, globs, list files (.txt), images, bags, URLs; of a '
                             "directory in Cityscapes' layout the training images are taken")
    parser.add_argument('--count', type=int, metavar='N',
                        help='how many images to calibrate with (default: 100, or as many as '
                             'there are)')
    parser.add_argument('--batch-size', type=int, default=5, metavar='N',
                        help='images a batch; the result does not depend on it (default: 5)')
    parser.add_argument('--extend', action='store_true',
                        help='go on from the calibration that the bundle has, whose images are '
                             'not needed, and add to its golden frames')
    parser.add_argument('--method', choices=METHODS,
                        help='how thresholds are found: least squared error, entropy (KL, as '
                             'published for TensorRT), percentile, or no clipping (default: mse, '
                             'or with --extend as before)')
    parser.add_argument('--percentile', type=float, metavar='P',
                        help='share of values that --method percentile keeps (default: 99.99, or '
                             'with --extend as before)')
    parser.add_argument('--seed', type=int, default=0, metavar='N',
                        help='decides which images are used (default: 0)')
    parser.add_argument('--golden', type=int, metavar='N',
                        help='images held out as golden frames, chosen so that they show as much '
                             'as they can (default: 8, or a fifth of few images)')
    parser.add_argument('--exclude', metavar='PATH', nargs='+', default=[],
                        help='images that must not be used, nor near-duplicates of them: '
                             'training, validation and test sets; paths as for --images')
    parser.add_argument('--topic', action='append', default=[], dest='topics', metavar='TOPIC',
                        help='an image topic of the bags; may be repeated (default: '
                             'those of cameras)')
    parser.add_argument('--spacing', type=at_least(0.0, number), default=0.0, metavar='SECONDS',
                        help="the least time between two images of a bag's topic (default: 0)")
    parser.add_argument('--calibrator', choices=('onnxruntime', 'tensorrt'),
                        default='onnxruntime',
                        help="tensorrt drives TensorRT's own entropy or minmax calibrator, up to "
                             'TensorRT 10, on a GPU (default: onnxruntime)')
    parser.add_argument('--equalize', choices=('auto', 'off'), default='auto',
                        help='derive a network that loses less in INT8 (weights rounded for what '
                             'they read, tensors centered, channels equalized) where that is '
                             'better on a few more images (auto, the default)')
    parser.add_argument('--tune', action='store_true',
                        help='search the method that agrees best with the float network on the '
                             'golden frames, and the few layers to leave in float')
    parser.add_argument('--tune-images', metavar='DIR',
                        help='tune on these images instead, with --tune-labels')
    parser.add_argument('--tune-labels', metavar='DIR', help='the true masks of --tune-images')
    parser.add_argument('--no-report', action='store_true', help='write no calibration.html')
    parser.add_argument('--allow-fewer', action='store_true',
                        help='go on if fewer images can be used than were asked for')
    add_jobs(parser)
    add_format(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from trt_segmentation.bundles import form
    from trt_segmentation.bundles.labels import one_class
    from trt_segmentation.bundles.manifest import CALIBRATION_IMAGES
    from trt_segmentation.calibration import calibrate
    from trt_segmentation.calibration.observer import uses_gpu
    from trt_segmentation.reports.calibration import trusted
    if args.dask and args.calibrator == 'tensorrt':
        raise InputError("--dask: TensorRT's own calibrator works alone; leave one of them out")
    alone = args.calibrator == 'tensorrt' or uses_gpu()  # one process has the GPU
    with ProgressBar(dict.fromkeys(('golden frames', 'calibrating')), 'image') as bar, workers_of(
            args, args.count or CALIBRATION_IMAGES, _ENOUGH, alone=alone) as workers:
        result = calibrate(
            args.bundle, args.images, count=args.count, batch_size=args.batch_size,
            method=args.method, percentile=args.percentile, seed=args.seed, extend=args.extend,
            golden=args.golden, allow_fewer=args.allow_fewer, topics=args.topics,
            spacing=args.spacing, exclude=args.exclude, calibrator=args.calibrator,
            equalize=args.equalize, tuned=_tuned(args), report=not args.no_report,
            workers=workers, progress=bar.show, expect=bar.expect,
            say=partial(say, 'calibrate'))
    if args.format == 'json':
        print_json(form.plain(result.manifest))
        return 0
    document = result.manifest
    verdict = trusted(document, result.judged, args.bundle)
    print(f'trusted    {verdict.answer} {"; ".join(verdict.reasons)}')
    _print(document, result.warnings)
    counts, equalization, coverage = document.counts, document.equalization, document.coverage
    print(f'written    {args.bundle}: calibration.cache, calibration.json'
          + (', equalized.onnx' if equalization and equalization.network else '')
          + (', golden/' if counts and counts.golden else '')
          + ('' if args.no_report else ', calibration.html'))
    doubted = coverage is not None and one_class(coverage.classes)
    print('next       ' + (
        command_line('preview', args.bundle, '--images', *few(args.images)) if doubted
        else after_refusal(args.bundle, document.tuning is not None, args.images,
                           len(document.images))
        if result.judged is not None and result.judged.differs else next_step(args.bundle)))
    return 0


def _print(manifest: Manifest, warnings: tuple[str, ...]) -> None:
    """Print what came of a calibration."""
    counts = manifest.counts
    assert counts is not None  # a calibration has them
    print(f'images     {counts.used} calibrated with, {counted(counts.golden, "golden frame")} '
          f'held out, {counts.skipped} skipped')
    if extension := manifest.extension:
        print(f'extended   {counted(extension.images_before, "image")} from before and '
              f'{extension.images_added} new ones')
    for skipped in manifest.skipped[:_SHOWN]:
        print(f'           skipped {skipped.name}: {skipped.reason}')
    if counts.skipped > _SHOWN:
        print(f'           and {counts.skipped - _SHOWN} more: see calibration.json')
    for warning in warnings:
        print(f'           {warning}')
    methods = [tensor.method for tensor in manifest.tensors.values()]
    print(f'tensors    {len(methods)}: ' + ', '.join(
        f'{methods.count(method)} {method}' for method in dict.fromkeys(methods)))
    if equalization := manifest.equalization:
        for trial in equalization.trials:
            print(f'tried      {trial.name}: agreement {trial.agreement:.4f}, class IoU '
                  f'{trial.iou:.4f}')
        print(f'derived    {equalization.chosen or "nothing: none gained more than noise"}'
              + (f' ({counted(len(equalization.tensors), "tensor")})'
                 if equalization.tensors else ''))
    if tuning := manifest.tuning:
        for trial in tuning.trials:
            share = 'an unknown share' if trial.int8_share is None else f'{trial.int8_share:.1%}'
            chosen = '  <- chosen' if trial.name == tuning.chosen else ''
            print(f'tried      {trial.name}: agreement {trial.agreement:.4f}, class IoU '
                  f'{trial.iou:.4f}, {share} in INT8{chosen}')
        print(f'ranked     {counted(len(tuning.sensitivity_db), "layer")} by the harm that each '
              'does in INT8')
        for limit in tuning.limits:
            print(f'limit      {limit}: another run may come to another result')
    for compared in extension.sets if extension else ():
        print(f'agreement  {compared.name} ({compared.frames}): '
              f'{compared.agreement_before:.4f} before, {compared.agreement_after:.4f} after; '
              f'{_worst(compared.worst_before, compared.worst_agreement_before)} before, '
              f'{_worst(compared.worst_after, compared.worst_agreement_after)} after')


def _worst(name: str, agreement: float | None) -> str:
    """Return the class that agrees least, in words."""
    return 'no class to judge by' if agreement is None else f'{name} {agreement:.4f}'


def _tuned(args: argparse.Namespace) -> Any:
    """Return what to tune on: False, True for the golden frames, or frames with true masks."""
    if bool(args.tune_images) != bool(args.tune_labels):
        raise InputError('--tune-images and --tune-labels belong together')
    if not args.tune_images:
        return args.tune
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.calibration.lab import Frame
    from trt_segmentation.evaluation import datasets
    from trt_segmentation.recordings import remote
    labels = Bundle.open(args.bundle, verify=False).spec.labels
    items = datasets.folder(remote.here(args.tune_images), labels,
                            remote.here(args.tune_labels)).items
    for note in datasets.check_masks(items, labels):
        say('calibrate', note)
    pairs = [item.load() for item in items]
    return [Frame(image, mask, labelled=True) for image, mask in pairs if mask is not None]
