# SPDX-License-Identifier: Apache-2.0
"""Write a calibrated network as the files that another program takes."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
import shlex

from trt_segmentation.cli import (
    add_format,
    after_refusal,
    new_place,
    next_step,
    print_json,
    written,
)
from trt_segmentation.errors import command_line, counted

EXAMPLE = 'trt-segmentation export my_bundle --for tensorrt-11 --output for_trt11'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    from trt_segmentation.export.targets import TARGETS
    parser.add_argument('bundle', metavar='BUNDLE', help='the calibrated bundle')
    parser.add_argument('--for', dest='target', required=True, choices=tuple(TARGETS),
                        metavar='TARGET',
                        help='; '.join(f'{name}: {target.summary}'
                                       for name, target in TARGETS.items()))
    parser.add_argument('--output', required=True, metavar='DIR', type=new_place,
                        help='the directory to make')
    add_format(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.bundles.manifest import tuned
    from trt_segmentation.engines.summary import only_class
    from trt_segmentation.export.run import export
    bundle = Bundle.open(args.bundle)
    record = export(bundle, args.target, args.output)
    files = f'{args.output}: {", ".join(record.files)}'
    if args.format == 'json':
        written(args, files)
        print_json(asdict(record))
        return 0
    if record.refused:
        print(f"REFUSED    this bundle's limits would refuse it: {'; '.join(record.refused)}")
    if not record.golden_frames:
        print('UNPROVEN   the bundle has no golden frames')
    elif record.only_class:
        print(f'UNPROVEN   {only_class(record.only_class, args.bundle)}')
    share = 'an unknown share' if record.int8_share is None else f'{record.int8_share:.1%}'
    print(f'int8       {share} of the convolution work')
    if record.agreement is not None:
        print(f'agreement  {record.agreement:.4f} with the float network on '
              f'{counted(record.golden_frames, "golden frame")}, by ONNX Runtime on this machine')
    if record.not_run:
        print(f'not run    {record.not_run}')
    written(args, files)
    script = Path(args.output, 'build.sh')
    doubt = (command_line('preview', args.bundle, '--images', 'DIRECTORY') if record.only_class
             else after_refusal(args.bundle, tuned(bundle)) if record.refused
             else next_step(args.bundle) if not record.golden_frames else '')
    following = (f'where TensorRT is: {shlex.join(["sh", str(script)])}' if script.exists() else
                 f'copy {args.output} to where {args.target} runs; docs/export.md says how each '
                 'file is used')
    print('next       ' + (f'{doubt}; if all is right: ' if doubt else '') + following)
    return 0
