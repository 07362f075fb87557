# SPDX-License-Identifier: Apache-2.0
"""Build, prove and store a bundle's engine for this machine."""

from __future__ import annotations

import argparse
import sys

from trt_segmentation.cli import add_engine, add_format, print_json

EXAMPLE = 'trt-segmentation build my_bundle --precision int8'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    from trt_segmentation.engines import QUANTIZATIONS
    parser.add_argument('bundle', metavar='BUNDLE', help='the bundle directory')
    add_engine(parser)
    parser.add_argument('--force', action='store_true',
                        help='build even if the store has this engine')
    parser.add_argument('--allow-unproven', action='store_true',
                        help='accept an engine although the bundle has no golden frames')
    parser.add_argument('--allow-float', action='store_true',
                        help='accept an INT8 engine with less work in INT8 than the bundle asks '
                             'for (acceptance.min_int8_share)')
    parser.add_argument('--quantization', choices=('auto', *QUANTIZATIONS), default='auto',
                        help='how INT8 gets into the network: by Q/DQ pairs in the graph '
                             '(explicit, the default), or by a calibrator that has the cache only '
                             '(implicit; TensorRT up to 10)')
    parser.add_argument('--workspace-mib', type=int, metavar='N',
                        help='memory that the builder may use for trying kernels (default: all)')
    parser.add_argument('--prune', action='store_true',
                        help='then remove older engines of this bundle, except the last one')
    add_format(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.engines.build import build
    built = build(
        Bundle.open(args.bundle), backend=args.backend, precision=args.precision,
        quantization=args.quantization, store=args.store, allow_unproven=args.allow_unproven,
        allow_float=args.allow_float, force=args.force, prune=args.prune,
        workspace_mib=args.workspace_mib,
        report=lambda line: print(line, file=sys.stderr))
    if args.format == 'json':
        print_json({'reused': built.reused, **built.record})
        return 0
    inputs, acceptance = built.record['inputs'], built.record['acceptance']
    print(f'engine     {inputs["precision"]} for {inputs["backend"]} '
          f'{inputs["identity"].get("version", "")}{" (from the store)" if built.reused else ""}')
    print(f'key        {built.key}')
    print(f'int8       {acceptance["int8_share"]:.1%} of the convolution work')
    for text in acceptance['waived']:
        print(f'WAIVED     {text}')
    if acceptance['agreement'] is None:
        print('agreement  UNPROVEN: the bundle has no golden frames')
    else:
        print(f'agreement  {acceptance["agreement"]:.4f} with the float network on '
              f'{len(acceptance["frames"])} golden frames')
    return 0
