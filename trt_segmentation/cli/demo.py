# SPDX-License-Identifier: Apache-2.0
"""
Show the whole story on this machine: calibrate, build, run the node over DDS, compare.

Needs no GPU, no ROS installation and no data: the sample network and drawn road scenes come with
the package. Exits with 1 unless at least 98% of the frames give both masks over DDS, each with its
frame's stamp and equal to what the pipeline gives without DDS.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import signal

from trt_segmentation.cli import add_format, print_json

EXAMPLE = 'trt-segmentation demo --output demo_output'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('--output', type=Path, default=Path('demo_output'), metavar='DIR',
                        help='where everything is written (default: demo_output)')
    parser.add_argument('--rate', type=float, default=20.0, metavar='HZ',
                        help='frames per second of the recording (default: 20)')
    parser.add_argument('--backend', default='onnxruntime', metavar='NAME',
                        help='what runs the engine (default: onnxruntime, which every machine '
                             'can; auto takes a GPU)')
    add_format(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from trt_segmentation.demo import run as demo
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # like Ctrl-C: it ends all it started
            signal.signal(number, signal.default_int_handler)
    figures = demo.run(args.output, args.rate, args.backend)
    if args.format == 'json':
        print_json(figures)
    else:
        print(_table(figures, args.output))
    demo.check(figures)
    return 0


def _table(figures: dict, output: Path) -> str:
    """Return the summary as text."""
    delivery, engine = figures['delivery'], figures['engine']
    latency = delivery['latency_ms']
    drops = ', '.join(f'{count} {cause}' for cause, count in delivery['drops'].items()) or 'none'
    lines = [
        '',
        f'Engine: {engine["backend"]} {engine["version"]}, INT8 for {engine["int8_share"]:.1%} of '
        f'the convolution work',
        '',
        f'Over DDS at {figures["rate"]:g} Hz, 1024x512',
        f'  frames sent                 {delivery["frames"]}',
        f'  both masks received         {delivery["delivered"]}',
        f'  identical without DDS       {delivery["identical"]}',
        f'  frames dropped by the node  {drops}',
        f'  latency, sent to received   p50 {latency["p50"]:.1f} ms, p95 {latency["p95"]:.1f} ms, '
        f'p99 {latency["p99"]:.1f} ms',
        f'  frames per second           {delivery["frames_per_second"]:.1f}',
        '',
    ]
    header = f'  {"":24}{"class IoU":>11}{"category IoU":>14}{"agrees with FP32":>18}'
    names = {'fp32': 'FP32', 'int8': 'INT8, this machine',
             'int8_vehicle': "INT8, TensorRT's codes"}
    titles = {'held_out': f'Accuracy on {figures["held_out_scenes"]} held-out scenes, percent',
              'drive': 'Accuracy on the drive, percent'}
    for key, title in titles.items():
        lines += [title, header]
        lines += [
            f'  {name:24}{100 * row["class_iou"]:11.2f}{100 * row["category_iou"]:14.2f}'
            f'{100 * row["agreement"]:18.2f}'
            for engine_name, name in names.items()
            for row in [figures['accuracy'][key][engine_name]]
        ]
        lines.append('')
    lines.append(f'Pictures: {output / "demo.png"}; recording: {output / "drive"}, masks: '
                 f'{output / "masks"}; figures: {output / "summary.json"}')
    return '\n'.join(lines)
