# SPDX-License-Identifier: Apache-2.0
"""Build, prove and store a bundle's engine for this machine."""

from __future__ import annotations

import argparse
import sys

from trt_segmentation.bundles.bundle import Bundle, exposed
from trt_segmentation.bundles.manifest import tuned
from trt_segmentation.cli import (
    add_engine,
    add_format,
    after_refusal,
    dla_of,
    engine_choice,
    node_step,
    print_json,
)
from trt_segmentation.engines import QUANTIZATIONS
from trt_segmentation.engines.build import build, Refused
from trt_segmentation.engines.record import (
    AGREEMENT,
    CLASS_AGREEMENT,
    NOTHING_JUDGED,
    Record,
)
from trt_segmentation.engines.summary import deciding, describe, verdict
from trt_segmentation.errors import command_line

EXAMPLE = 'trt-segmentation build my_bundle --precision int8'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('bundle', metavar='BUNDLE', help='the bundle directory')
    add_engine(parser)
    parser.add_argument('--force', action='store_true',
                        help='build even if the store has this engine')
    parser.add_argument('--allow-unproven', action='store_true',
                        help='accept an engine although the bundle has no golden frames')
    parser.add_argument('--allow-float', action='store_true',
                        help='accept an INT8 engine with less work in INT8 than the bundle asks '
                             'for (acceptance.min_int8_share)')
    parser.add_argument('--quantization', choices=QUANTIZATIONS, default='explicit',
                        help='how INT8 gets into the network: by Q/DQ pairs in the graph '
                             '(explicit, the default), or by a calibrator that has the cache only '
                             '(implicit; TensorRT up to 10; nobody has run it on a GPU yet)')
    parser.add_argument('--workspace-mib', type=int, metavar='N',
                        help='memory that the builder may use for trying kernels (default: all)')
    parser.add_argument('--max-batch', type=int, default=1, metavar='N',
                        help='let it take up to N images at once, of cameras that wait together; '
                             'sizes that are not faster for each image are not used (default: '
                             '1)')
    parser.add_argument('--prune', action='store_true',
                        help='then remove older engines of this bundle, except the last one')
    parser.add_argument('--private', action='store_true',
                        help='refuse a bundle that other users can write to, and so seal anew')
    parser.add_argument('--verbose', action='store_true',
                        help='print all classes, all layers and the build log too')
    add_format(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    bundle = Bundle.open(args.bundle, private=args.private)
    if reason := exposed(args.bundle):
        print(f'warning: {reason}, and seal it anew', file=sys.stderr)
    try:
        built = build(
            bundle, backend=args.backend, precision=args.precision,
            quantization=args.quantization, store=args.store, allow_unproven=args.allow_unproven,
            allow_float=args.allow_float, force=args.force, prune=args.prune,
            workspace_mib=args.workspace_mib, max_batch=args.max_batch, dla=dla_of(args),
            report=lambda line: print(line, file=sys.stderr))
    except Refused as error:
        if args.format == 'json':
            print_json({'reused': False, **error.record.to_json()})
        else:
            _print(error.record, args)
            print(f'next       {_mended(error.record, bundle, args)}')
        print(end='', flush=True)  # so that the sentence that says why comes last
        raise
    if args.format == 'json':
        print_json({'reused': built.reused, **built.record.to_json()})
    else:
        _print(built.record, args)
        print(f'key        {built.key}{" (from the store)" if built.reused else ""}')
        batch = {'max_batch': args.max_batch} if args.max_batch != 1 else {}
        there = built.record.acceptance.vehicle
        following = node_step(
            args.bundle, built.record.inputs.backend, {**engine_choice(args), **batch},
            after_refusal(args.bundle, tuned(bundle)) if there and there.failures else '')
        if built.record.acceptance.only_class:
            look = command_line('preview', args.bundle, '--images', 'DIRECTORY')
            following = f'{look}; if the masks are right: {following}'
        print(f'next       {following}')
    return 0


def _mended(record: Record, bundle: Bundle, args: argparse.Namespace) -> str:
    """Return the command that may lead from a refused engine to one that is accepted."""
    kinds = {failure.kind for failure in record.acceptance.failures}
    if record.precision != 'int8' or record.acceptance.only_class or NOTHING_JUDGED in kinds:
        return command_line('preview', args.bundle, '--images', 'DIRECTORY')
    measured = kinds & {AGREEMENT, CLASS_AGREEMENT}  # which tuning may mend
    return after_refusal(args.bundle, tuned(bundle) or not measured)


def _print(record: Record, args: argparse.Namespace) -> None:
    """Print the verdict, and what decides it or, on request, all there is."""
    lines = (describe if args.verbose else deciding)(record, args.bundle)
    print(verdict(record), *lines, sep='\n')
