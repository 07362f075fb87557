# SPDX-License-Identifier: Apache-2.0
"""
Record golden frames: images, and the masks that the float network gives them.

They replace the bundle's golden frames; those images are taken that show most: classes, drives,
unlike scenes. An engine is proven with them after each build.
"""

from __future__ import annotations

import argparse
from functools import partial

from trt_segmentation.cli import next_step, say
from trt_segmentation.errors import counted

EXAMPLE = 'trt-segmentation golden my_bundle --images night_drive/ --count 8'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('bundle', metavar='BUNDLE', help='the bundle directory')
    parser.add_argument('--images', metavar='PATH', nargs='+', required=True,
                        help='directories, globs, list files (.txt), images, bags, URLs')
    parser.add_argument('--count', type=int, metavar='N',
                        help='how many frames to record (default: 8, or as many as there are)')
    parser.add_argument('--seed', type=int, default=0, metavar='N',
                        help='decides which images are used (default: 0)')
    parser.add_argument('--topic', action='append', default=[], dest='topics', metavar='TOPIC',
                        help='an image topic of the bags; may be repeated (default: '
                             'those of cameras)')


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from trt_segmentation.calibration.run import record
    frames = record(args.bundle, args.images, count=args.count, seed=args.seed,
                    topics=args.topics, say=partial(say, 'golden'))
    print(f'golden     {counted(len(frames), "frame")} recorded in {args.bundle}')
    print(f'next       {next_step(args.bundle)}')
    return 0
