# SPDX-License-Identifier: Apache-2.0
"""
Show what the float network sees: a contact sheet of images and their masks.

A wrong mean, scale or color order is seen there at once, before an hour of calibration. Nothing
but the bundle's network and model.yaml is needed; it runs on the CPU.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from trt_segmentation.cli import (
    add_format,
    few,
    new_file,
    next_step,
    print_json,
    say,
    size,
    written,
)
from trt_segmentation.errors import command_line, counted, InputError
from trt_segmentation.system.progress import ProgressBar

if TYPE_CHECKING:
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.recordings.pictures import Picture

EXAMPLE = 'trt-segmentation preview my_bundle --images drives/ --output preview.png'

_SHOWN = 5  # classes
_MOST = 64  # images: of upright ones too, the sheet stays below the 65,535 rows of viewers, JPEG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('bundle', metavar='BUNDLE', help='the bundle directory')
    parser.add_argument('--images', metavar='PATH', nargs='+', required=True,
                        help='directories, globs, list files (.txt), images, bags, URLs')
    parser.add_argument('--count', type=int, default=6, metavar='N',
                        help=f'how many images to show, up to {_MOST} (default: 6)')
    parser.add_argument('--seed', type=int, default=0, metavar='N',
                        help='decides which (default: 0)')
    parser.add_argument('--output', metavar='FILE', default='preview.png', type=new_file,
                        help='the contact sheet, PNG or JPEG (default: preview.png)')
    add_format(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from pathlib import Path

    import cv2

    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.bundles.implausible import open_notes
    from trt_segmentation.engines.opening import open_named
    from trt_segmentation.evaluation.preview import preview
    from trt_segmentation.system import files

    output = Path(args.output)
    if output.suffix.lower() not in ('.png', '.jpg', '.jpeg'):
        raise InputError(f'--output: found {output.name}, expected a name that ends in .png or '
                         '.jpg')
    if not 1 <= args.count <= _MOST:
        raise InputError(f'--count: found {args.count}, expected 1 to {_MOST}: more make a sheet '
                         'that viewers do not show')
    bundle = Bundle.open(args.bundle)
    for note in open_notes(bundle):
        say('preview', note)
    with ProgressBar({'': args.count}, 'image') as bar:
        loaded, unreadable, number = _load(args, bundle, bar)
        with open_named(bundle, 'onnxruntime:fp32') as segmenter:
            found = preview(segmenter, ((picture.name, picture.pixels) for picture in loaded))
    ok, data = cv2.imencode(output.suffix.lower(), found.sheet)
    if not ok:
        raise InputError(f'{output}: the contact sheet cannot be encoded')
    files.atomic_write(output, data.tobytes())
    if args.format == 'json':
        print_json({'output': str(output), 'images': [picture.name for picture in loaded],
                    'said': found.said, 'ignored': found.ignored,
                    'confidence': found.confidence,
                    'unreadable': unreadable, 'warning': found.warning or None,
                    'similar_colors': found.similar or None})
    else:
        print(f'images     {len(loaded)} of {number}')
        ignored = {'ignored': found.ignored} if found.ignored else {}
        print('says       ' + ', '.join(
            f'{name} {share:.1%}'
            for name, share in [*list(found.said.items())[:_SHOWN], *ignored.items()]))
        if found.confidence is not None:
            print(f'confidence {found.confidence:.2f} in the mean')
    written(args, f'{output}: look at it')
    for name, reason in unreadable.items():
        say('preview', f'{name} is left out: {reason}')
    for warning in filter(None, (found.similar, found.warning)):
        say('preview', warning)
    if args.format == 'text':
        again = command_line('preview', args.bundle, '--images', *few(args.images))
        print('next       ' + (
            f'correct model.yaml by the training code, and look again: {again}; if the masks are '
            'right: ' if found.warning else '') + next_step(args.bundle, args.images))
    return 0


def _load(args: argparse.Namespace, bundle: Bundle, bar: ProgressBar
          ) -> tuple[list[Picture], dict[str, str], int]:
    """Return the pictures, why others cannot be decoded, and how many there are to choose from."""
    from trt_segmentation.calibration import sources
    from trt_segmentation.recordings.pictures import load_ahead, Picture
    notes: list[str] = []
    candidates = sources.shuffled(sources.find(args.images, notes=notes), args.seed)
    for note in notes:
        bar.say(note)
    say('preview', f'{min(args.count, len(candidates))} of {counted(len(candidates), "image")}, '
        f'{size(bundle)}, fp32, backend onnxruntime')
    loaded: list[Picture] = []
    unreadable: dict[str, str] = {}
    for entry in load_ahead(candidates):
        if isinstance(entry, Picture):
            loaded.append(entry)
        else:
            candidate, error = entry
            unreadable[candidate.name] = str(error)
        if len(loaded) == args.count:
            break
    if not loaded:
        name, reason = next(iter(unreadable.items()))
        raise InputError(f'{args.images[0]}: none of {counted(len(candidates), "image")} can be '
                         f'decoded; the first is {name}: {reason}')
    return loaded, unreadable, len(candidates)
