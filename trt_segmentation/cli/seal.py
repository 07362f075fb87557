# SPDX-License-Identifier: Apache-2.0
"""
Vouch for a bundle after a change by hand: check it and write SHA256SUMS anew.

It says which files have changed since they were last vouched for. A cache that does not fit the
network or the preprocessing any more is named: nobody will take it until you calibrate again.
"""

from __future__ import annotations

import argparse

from trt_segmentation.cli import next_step
from trt_segmentation.errors import command_line

EXAMPLE = 'trt-segmentation seal my_bundle'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('bundle', metavar='BUNDLE', help='the bundle directory')


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from trt_segmentation.bundles.seal import seal
    sealed = seal(args.bundle)
    for name, kind in sealed.differences:
        print(f'{kind:10} {name}')
    if not sealed.differences:
        print('unchanged  all files are those that SHA256SUMS names')
    print(f'sealed     {args.bundle}')
    if sealed.misfit:
        print(f'warning    the calibration cache was made {sealed.misfit}')
        print('next       ' + command_line('calibrate', args.bundle, '--images', 'DIRECTORY'))
    else:
        print(f'next       {next_step(args.bundle)}')
    return 0
