# SPDX-License-Identifier: Apache-2.0
"""
Take over a calibration cache that TensorRT or another tool made.

It must cover the inputs of all layers that run in INT8. Its scales are compared with what the
preprocessing gives and with the values that the golden frames have; the manifest records it as
adopted.
"""

from __future__ import annotations

import argparse
from functools import partial

from trt_segmentation.cli import next_step, say
from trt_segmentation.errors import counted

EXAMPLE = 'trt-segmentation adopt my_bundle calib.table'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('bundle', metavar='BUNDLE', help='the bundle directory')
    parser.add_argument('cache', metavar='CACHE', help="a cache in TensorRT's text format")
    parser.add_argument('--allow-missing', action='store_true',
                        help='adopt it although some layers would run in float for want of a '
                             'scale')
    parser.add_argument('--allow-implausible', action='store_true',
                        help='adopt it although scales do not fit the preprocessing or what the '
                             'golden frames show, or its last line is cut')


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from trt_segmentation.calibration.adoption import adopt
    result = adopt(args.bundle, args.cache, allow_missing=args.allow_missing,
                   allow_implausible=args.allow_implausible, say=partial(say, 'adopt'))
    print(f'covered    {counted(len(result.covered), "tensor")}')
    print(f'missing    {len(result.missing)}')
    print(f'stale      {len(result.stale)} (not tensors of this network)')
    print(f'adopted    {args.cache} into {args.bundle}')
    print(f'next       {next_step(args.bundle)}')
    return 0
