# SPDX-License-Identifier: Apache-2.0
"""
Show the whole story on this machine: calibrate, build, run the node over DDS, compare.

Needs no GPU, no ROS installation and no data: the sample network and drawn road scenes come with
the package. Exits with 1 if anything is wrong that must hold on every machine: each frame that the
node took gave both masks over DDS, with its stamp and frame_id, equal to what the pipeline gives
without DDS, or was dropped for lack of time and counted; INT8 is as accurate as the float network.
How fast all this is depends on the machine, so it is measured and not judged.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import signal
import sys
from typing import Any

from trt_segmentation.cli import add_format, print_json
from trt_segmentation.errors import CheckFailed

EXAMPLE = 'trt-segmentation demo --output demo_output'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('--output', type=Path, default=Path('demo_output'), metavar='DIR',
                        help='where everything is written (default: demo_output)')
    parser.add_argument('--rate', type=float, metavar='HZ',
                        help='frames per second to play, 1 to 100, whatever comes of it (default: '
                             'what this machine carries by a short measurement, 30 at most)')
    parser.add_argument('--backend', default='onnxruntime', metavar='NAME',
                        help='what runs the engine (default: onnxruntime, which every machine '
                             'can; auto takes a GPU)')
    add_format(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    # Now, since the imports below take seconds from a slow disk.
    print('== The demo: calibrate, build, run the node over DDS, compare (a minute or two)',
          file=sys.stderr, flush=True)
    from trt_segmentation.demo import run as demo
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # like Ctrl-C: it ends all it started
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    figures = demo.run(args.output, args.rate, args.backend)
    if args.format == 'json':
        print_json(figures)
    else:
        print(_text(figures, args.output))
    if figures['problems']:
        raise CheckFailed('; '.join(figures['problems']))
    return 0


def _text(figures: dict[str, Any], output: Path) -> str:
    """Return the result as text: the verdict first."""
    from trt_segmentation.demo.children import program
    warnings = [f'warning: {text}' for text in figures['warnings']]
    return '\n'.join(['', _verdict(figures), *warnings, '', *_speed(figures), '',
                      *_accuracy(figures),
                      f'Pictures: {output / "demo.png"}, {output / "demo.gif"}',
                      f'Figures: {output / "summary.json"}',
                      f'Next, with a network of yours: {program()} init MODEL.onnx BUNDLE'])


def _verdict(figures: dict[str, Any]) -> str:
    """Return the verdict in one line."""
    if figures['problems']:
        return f'FAILED: {figures["problems"][0]}'
    compared, accuracy = figures['compared'], figures['accuracy']['held_out']
    trial = compared['frames'] - figures['delivery']['delivered']
    beside = f' ({trial} of them while the rate was tried)' if trial else ''
    return (f'PASSED: {compared["identical"]} of {compared["frames"]} frames that came through'
            f'{beside} are identical to the pipeline without DDS; class IoU '
            f'{100 * accuracy["int8"]["class_iou"]:.2f} in INT8, '
            f'{100 * accuracy["fp32"]["class_iou"]:.2f} in FP32')


def _speed(figures: dict[str, Any]) -> list[str]:
    """Return the table of what became of the frames, and in what time."""
    delivery, engine, rate = figures['delivery'], figures['engine'], figures['rate']
    latency = ', '.join(f'{name} {value:.1f} ms' for name, value in delivery['latency_ms'].items())
    rows = {
        'frames sent': delivery['sent'],
        'both masks received': delivery['delivered'],
        **{f'dropped: {cause.replace("_", " ")}': count
           for cause, count in delivery['dropped'].items()},
        'not seen by the node': delivery['not_taken'],
        'masks lost by DDS': delivery['masks_lost'],
    }
    optional = ('not seen by the node', 'masks lost by DDS')
    return [
        f'Over DDS, 1024x512, {delivery["sent_per_second"]:.1f} frames sent a second '
        f'({rate["played"]:g} Hz: {rate["reason"]})',
        *(f'  {name:28}{value}' for name, value in rows.items() if value or name not in optional),
        f'  {"latency, sent to received":28}{latency or "none"}',
        f'  {"frames through a second":28}{delivery["masks_per_second"]:.1f}; {delivery["pace"]}',
        f'  {"engine":28}{engine["backend"]} {engine["version"]}, INT8 for '
        f'{engine["int8_share"]:.1%} of the convolution work',
    ]


def _accuracy(figures: dict[str, Any]) -> list[str]:
    """Return the tables of accuracy."""
    names = {'fp32': 'FP32', 'int8': 'INT8, this machine',
             'int8_vehicle': "INT8, TensorRT's codes"}
    titles = {'held_out': f'Accuracy on {figures["held_out_scenes"]} held-out scenes, percent',
              'drive': 'Accuracy on the drive, percent'}
    lines = []
    for key, title in titles.items():
        lines += [title,
                  f'  {"":24}{"class IoU":>11}{"category IoU":>14}{"agrees with FP32":>18}']
        lines += [
            f'  {name:24}{100 * row["class_iou"]:11.2f}{100 * row["category_iou"]:14.2f}'
            f'{100 * row["agreement"]:18.2f}'
            for engine_name, name in names.items()
            for row in [figures['accuracy'][key][engine_name]]
        ]
        lines.append('')
    return lines
