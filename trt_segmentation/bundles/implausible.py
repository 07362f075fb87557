# SPDX-License-Identifier: Apache-2.0
"""What is possible in a network or its preprocessing, but hardly meant: a sentence each."""

from __future__ import annotations

from collections import Counter
import re

from trt_segmentation.bundles import form
from trt_segmentation.bundles.bundle import Bundle, SPEC_NAME
from trt_segmentation.bundles.spec import InputSpec
from trt_segmentation.networks.adapt import Adapted
from trt_segmentation.networks.graph import attribute, every_node, Graph
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.work import is_foreign

_TRAINED = 'color', 'mean', 'scale'  # what only the training code knows
_ASSUMED = re.compile(rf'^  ({"|".join(_TRAINED)}):.*\(assumed\)\s*$', re.MULTILINE)
_WHITE = 255
_PIXEL_MEAN = 2.0  # a mean below this is hardly one of pixels 0..255
# Preprocessings in use end at 1 (pixels / 255), 2.64 (by mean and deviation) or 255 (mean alone).
_SMALLEST_RANGE, _LARGEST_RANGE, _DEVIATION_RANGE = 0.3, 300, 2000
# Of ONNX's operators those that no TensorRT up to 10 has a layer or plugin for: the table
# docs/operators.md of the repository onnx/onnx-tensorrt.
_NOT_IN_TENSORRT = frozenset({
    'Compress', 'ConcatFromSequence', 'ConvInteger', 'Det', 'MatMulInteger', 'MaxRoiPool',
    'MaxUnpool', 'Multinomial', 'QLinearConv', 'QLinearMatMul', 'SequenceAt',
    'SequenceConstruct', 'SequenceInsert', 'SplitToSequence', 'StringNormalizer',
    'TfIdfVectorizer', 'Unique'})

_RANDOM = ('Bernoulli', 'Multinomial', 'RandomNormal', 'RandomNormalLike', 'RandomUniform',
           'RandomUniformLike')


def input_notes(spec: InputSpec) -> list[str]:
    """Return what is odd in mean and scale."""
    notes = []
    if any(spec.mean) and max(map(abs, spec.mean)) < _PIXEL_MEAN:
        notes.append(f'mean {list(spec.mean)} is in units of pixels 0..255; a mean for pixels '
                     '0..1 must be multiplied by 255')
    outside = [value for value in spec.mean if not 0 <= value <= _WHITE]
    if outside:
        notes.append(f'mean {list(spec.mean)} is of pixels 0..255, which cannot have a mean of '
                     f'{outside[0]:g}: is the sign, or a factor, wrong?')
        return notes
    largest = spec.amax
    if largest > _LARGEST_RANGE:
        cause = ('was a standard deviation given as scale? expected 1 divided by it'
                 if largest > _DEVIATION_RANGE else
                 'is the scale one for pixels 0..1? it must be divided by 255')
    elif largest < _SMALLEST_RANGE:
        cause = 'are pixels divided by 255 twice, or by the deviation of pixels 0..255 and by 255?'
    else:
        return notes
    notes.append(f'mean and scale give values up to {largest:.3g}, and networks are trained with '
                 f'1 to 255: {cause}')
    return notes


def open_notes(bundle: Bundle) -> list[str]:
    """
    Return what is still open of a bundle's preprocessing.

    That is what `init` assumed, what a contract that was written by hand leaves out, what is odd.
    """
    text = (bundle.path / SPEC_NAME).read_text(encoding='utf-8')
    given = form.read_yaml(bundle.path / SPEC_NAME).get('input') or {}
    notes = []
    if taken := [f'{name} {_words(getattr(bundle.spec.input, name))}' for name in _TRAINED
                 if name not in given]:
        notes.append(f'{SPEC_NAME} leaves out what is taken for {", ".join(taken)}: compare with '
                     'the training code, and write it under input')
    if assumed := _ASSUMED.findall(text):
        notes.append(f'{", ".join(assumed)} in {SPEC_NAME} marked (assumed): compare with the '
                     'training code, and take the mark away')
    return notes + input_notes(bundle.spec.input)


def _words(value: str | tuple[float, ...]) -> str:
    """Return a value of the contract in words."""
    return value if isinstance(value, str) else ' '.join(f'{number:g}' for number in value)


def _drops(node: onnx.NodeProto, graph: Graph) -> bool:
    """Tell whether a node is a Dropout in training mode, or one that may be."""
    mode = node.input[2] if node.op_type == 'Dropout' and len(node.input) > 2 else ''
    return bool(mode) and (mode not in graph.constants or bool(graph.array(mode).any()))


def network_notes(adapted: Adapted, size: tuple[int, int]) -> list[str]:
    """
    Return what is odd in a network.

    :param size: (height, width) of its input
    """
    nodes = list(every_node(adapted.model.graph))
    notes = []
    if foreign := Counter(f'{node.domain}.{node.op_type}' for node in nodes if is_foreign(node)):
        listed = ', '.join(f'{name} ({count})' for name, count in sorted(foreign.items()))
        notes.append(f"operators that are not ONNX's own: {listed}. TensorRT cannot read them, "
                     'and how much of the work is in them is unknown, so no INT8 engine is '
                     'accepted: export the network without optimizing it for a runtime')
    trained = [node for node in nodes if (node.op_type == 'BatchNormalization'
                                          and attribute(node, 'training_mode'))]
    if trained:
        notes.append(f'{len(trained)} BatchNormalization nodes are in training mode, so masks '
                     'depend on what else is in the image: export the network in evaluation mode')
    constants = Graph(adapted.model)
    if random := Counter(node.op_type for node in nodes
                         if node.op_type in _RANDOM or _drops(node, constants)):
        notes.append(f'{", ".join(sorted(random))}: masks differ each time, which no proof holds '
                     'for: export the network in evaluation mode')
    missing = Counter(node.op_type for node in nodes
                      if node.op_type in _NOT_IN_TENSORRT and not is_foreign(node))
    missing.update('MaxPool with indices' for node in nodes
                   if node.op_type == 'MaxPool' and len([*filter(None, node.output)]) > 1)
    if missing:
        listed = ', '.join(f'{name} ({count})' for name, count in sorted(missing.items()))
        notes.append(f'TensorRT has no {listed}: this network runs on the CPU only')
    shape = adapted.output.shape
    if not adapted.ids and len(shape) == 4 and None not in shape[2:]:
        height, width = (side or 1 for side in shape[2:])
        strides, turned = ((size[0] / a, size[1] / b) for a, b in ((height, width),
                                                                   (width, height)))
        if abs(strides[0] - strides[1]) > 0.1 * max(strides) and (
                abs(turned[0] - turned[1]) <= 0.1 * max(turned)):
            notes.append(f'output {adapted.output.name!r} is {height}x{width} for an input of '
                         f'{size[0]}x{size[1]} (height x width): its sides look transposed')
    return notes
