# SPDX-License-Identifier: Apache-2.0
"""
Make a bundle from a network of ONNX, TensorFlow, PyTorch or Caffe.

What the file says is read from it; what only its author knows (mean, scale, color order, fit,
labels) is given here, or assumed and marked so in the bundle's model.yaml.
"""

from __future__ import annotations

import argparse
from math import isfinite

from trt_segmentation.cli import new_place
from trt_segmentation.errors import command_line, counted

EXAMPLE = ('trt-segmentation init fcn.onnx my_bundle --color rgb --mean 123.675 116.28 103.53 '
           '--scale 1/58.395 1/57.12 1/57.375')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('model', metavar='MODEL',
                        help='an ONNX file; a frozen graph (.pb), a SavedModel or a Keras file; '
                             'an exported program (.pt2) or TorchScript (.pt); a deploy.prototxt')
    parser.add_argument('bundle', metavar='BUNDLE', type=new_place, help='the directory to make')
    parser.add_argument('--weights', metavar='FILE.caffemodel',
                        help='of a Caffe network, whose MODEL is its deploy.prototxt')
    parser.add_argument('--mean-file', metavar='FILE.binaryproto',
                        help='the mean of a Caffe network, instead of --mean')
    parser.add_argument('--like', metavar='PRESET',
                        help='take mean, scale, color, labels and the rest as the repository of '
                             'this network has them, where nothing is given: pidnet, ddrnet, '
                             'bisenetv2, pp-liteseg, segformer, deeplabv3plus, fcn-resnet, '
                             'tao-unet, ultralytics')
    parser.add_argument('--mean', type=number, nargs=3, metavar='X',
                        help='tensor = (pixel - mean) * scale, pixel 0..255; in the order of '
                             '--color')
    parser.add_argument('--scale', type=number, nargs=3, metavar='X',
                        help='the same; quotients like 1/58.395 or 1/0.229/255 will do')
    parser.add_argument('--color', choices=('bgr', 'rgb'), help="the tensor's channel order")
    parser.add_argument('--fit', choices=('stretch', 'letterbox', 'crop'),
                        help="how an image of another shape becomes the network's size")
    parser.add_argument('--interpolation', choices=('nearest', 'linear', 'area'))
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
                        help='where the graph leaves it free')
    parser.add_argument('--input', metavar='TENSOR', help='where the graph has several inputs')
    parser.add_argument('--output', metavar='TENSOR', help='where the graph has several outputs')
    parser.add_argument('--kind', choices=('logits', 'probabilities', 'class_ids'),
                        help='what the output is (default: what the graph says)')
    parser.add_argument('--upsample', choices=('half_pixel', 'align_corners', 'nearest'),
                        help="how logits reach the network's size")
    parser.add_argument('--labels', metavar='cityscapes|FILE.yaml',
                        help='a list with {name, train_id, color, category} for each channel '
                             '(default: cityscapes)')


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from trt_segmentation.bundles.create import create
    from trt_segmentation.bundles.presets import preset
    created = create(
        args.model, args.bundle, labels=args.labels, input_tensor=args.input,
        output_tensor=args.output, weights=args.weights, mean_file=args.mean_file,
        like=args.like, size=args.size and tuple(args.size), kind=args.kind,
        upsample=args.upsample, color=args.color, mean=args.mean and tuple(args.mean),
        scale=args.scale and tuple(args.scale), fit=args.fit, interpolation=args.interpolation)
    spec = created.spec
    height, width = spec.input.size
    print(f'input      {spec.input.tensor}: {width}x{height} {spec.input.color}')
    print(f'output     {spec.output.tensor}: {spec.output.kind}, '
          f'{counted(len(spec.labels.labels), "label")}')
    print(f'written    {args.bundle}/model.yaml, {args.bundle}/{spec.model}')
    if created.preset:
        print(f'preset     {", ".join(created.preset)}: as {args.like} has them, from '
              f'{preset(args.like).source}')
    if created.assumed:
        print(f'assumed    {", ".join(created.assumed)}: compare with the training code, and '
              'correct model.yaml')
    for change in created.changes:
        print(f'changed    {change}')
    for note in created.notes:
        print(f'note       {note}')
    print('next       ' + command_line('preview', args.bundle, '--images', 'DIRECTORY')
          + '  (does the float network see anything?)')
    return 0


def number(text: str) -> float:
    """Return a number, or a quotient of numbers: '0.017', '1/58.395', '1/0.229/255'."""
    try:
        first, *rest = (float(part) for part in text.split('/'))
        for divisor in rest:
            first /= divisor
        if not isfinite(first):
            raise ValueError
    except ZeroDivisionError:
        raise argparse.ArgumentTypeError(f'{text!r} divides by zero') from None
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'found {text!r}, expected a number or a quotient of numbers, as 0.017 or 1/58.395'
        ) from None
    return first
