# SPDX-License-Identifier: Apache-2.0
"""The spec: a network's contract as `model.yaml` states it, checked against the ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
import json
import os
from pathlib import Path
from typing import Any

import yaml

from trt_segmentation.bundles import form
from trt_segmentation.bundles.form import parsed
from trt_segmentation.bundles.labels import CITYSCAPES, LabelSet, parse_labels
from trt_segmentation.errors import InputError, nearest, shown
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.model import Description, Tensor
from trt_segmentation.recordings.limits import MAX_PIXELS, MAX_SIDE
from trt_segmentation.system import files

# The parsers of values: each raises ValueError with what it expects.

_LARGEST = 3.4e38  # float32 holds no more,
_SMALLEST = 1e-35  # and nothing less than this divided by 127 with all its digits


def _exactly_one(value: Any) -> int:
    if value != 1 or isinstance(value, bool):
        raise ValueError('1, the version of this format')
    return 1


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError('a text')
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError('a list of names')
    return tuple(_text(entry) for entry in value)


def _file_name(value: Any) -> str:
    text = _text(value)
    if Path(text).name != text or text.startswith('.') or not text.isprintable():
        raise ValueError('the name of an ONNX file inside the bundle, without a path')
    return text


def _is_number(value: Any) -> bool:
    """Tell whether a value is a number that float32 holds; nan and infinity are none."""
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and abs(value) <= _LARGEST)


def _share(value: Any) -> float:
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError('a share 0..1')
    return float(value)


def parse_size(value: Any) -> tuple[int, int]:
    """Return (height, width); raises ValueError with what it expects."""
    if (not isinstance(value, list) or len(value) != 2
            or not all(isinstance(v, int) and not isinstance(v, bool) and 0 < v <= MAX_SIDE
                       for v in value) or value[0] * value[1] > MAX_PIXELS):
        raise ValueError(f'[height, width], two integers 1..{MAX_SIDE}, at most {MAX_PIXELS} '
                         'pixels')
    return value[0], value[1]


def _three_numbers(value: Any) -> tuple[float, float, float]:
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_number, value)):
        texts = [form.as_number(v) for v in value if isinstance(v, str)] if isinstance(
            value, list) else []
        raise ValueError('three numbers, one a channel'
                         + ''.join(f' ({text})' for text in texts if text))
    return float(value[0]), float(value[1]), float(value[2])


def _three_nonzero_numbers(value: Any) -> tuple[float, float, float]:
    numbers = _three_numbers(value)
    if min(map(abs, numbers)) < _SMALLEST:
        raise ValueError('three numbers other than zero, one a channel')
    return numbers


def _one_of(*choices: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in choices:
            raise ValueError(f'one of {", ".join(choices)}')
        return str(value)
    return parse


def _ranges(value: Any) -> dict[str, float | str]:
    if (not isinstance(value, dict)
            or not all(isinstance(name, str) and (amax in ('minmax', 'float') or (
                _is_number(amax) and amax >= _SMALLEST)) for name, amax in value.items())):
        raise ValueError('a mapping of tensor names to positive numbers (amax), minmax or float')
    return {name: amax if isinstance(amax, str) else float(amax)
            for name, amax in value.items()}


@dataclass(frozen=True)
class InputSpec:
    """
    How an image becomes the input tensor; everything the preprocessing depends on.

    tensor: name of the graph input, float32 NCHW with 3 channels
    size: (height, width) of the tensor, pixels
    color: channel order of the tensor, of mean and of scale: 'bgr' or 'rgb'
    mean, scale: tensor = (pixel - mean) * scale, pixel 0..255, one value a channel
    fit: 'stretch', 'letterbox' (padded with zeros in the tensor) or 'crop' (center)
    interpolation: 'nearest', 'linear' or 'area'
    """

    tensor: str = field(metadata=parsed(_text))
    size: tuple[int, int] = field(metadata=parsed(parse_size))
    color: str = field(default='bgr', metadata=parsed(_one_of('bgr', 'rgb')))
    mean: tuple[float, float, float] = field(
        default=(71.60, 82.10, 72.31), metadata=parsed(_three_numbers))
    scale: tuple[float, float, float] = field(
        default=(1.0, 1.0, 1.0), metadata=parsed(_three_nonzero_numbers))
    fit: str = field(default='stretch', metadata=parsed(_one_of('stretch', 'letterbox', 'crop')))
    interpolation: str = field(
        default='linear', metadata=parsed(_one_of('nearest', 'linear', 'area')))

    @property
    def sha256(self) -> str:
        """Hash of all fields: two preprocessings are the same if and only if these are equal."""
        return files.sha256_json(form.contract(self))

    @property
    def amax(self) -> float:
        """Return the largest magnitude that any 8-bit image has in the tensor."""
        return max(abs((pixel - mean) * scale)
                   for mean, scale in zip(self.mean, self.scale) for pixel in (0, 255))

    @property
    def is_nonnegative(self) -> bool:
        """Tell whether no 8-bit image has a negative value in the tensor."""
        return all((pixel - mean) * scale >= 0
                   for mean, scale in zip(self.mean, self.scale) for pixel in (0, 255))


@dataclass(frozen=True)
class OutputSpec:
    """
    How the output tensor becomes a class mask.

    tensor: name of the graph output
    kind: 'logits' (N, channels, h, w) at any stride, or 'class_ids' (N, h, w) or (N, 1, h, w)
    upsample: how logits reach the network's size: 'half_pixel', 'align_corners' or 'nearest'
    """

    tensor: str = field(metadata=parsed(_text))
    kind: str = field(default='logits', metadata=parsed(_one_of('logits', 'class_ids')))
    upsample: str = field(default='half_pixel', metadata=parsed(
        _one_of('half_pixel', 'align_corners', 'nearest')))


@dataclass(frozen=True)
class CalibrationSpec:
    """
    What calibration does not decide.

    ranges: by tensor name a fixed amax, 'minmax' for all of the range that the images show, or
        'float' for no scale, so that what reads or writes the tensor stays in float
    exclude: names of nodes that stay in float
    """

    ranges: Mapping[str, float | str] = field(default_factory=dict, metadata=parsed(_ranges))
    exclude: tuple[str, ...] = field(default=(), metadata=parsed(_texts))


@dataclass(frozen=True)
class AcceptanceSpec:
    """
    What an engine must reach on the golden frames before it may run, each a share 0..1.

    min_agreement: pixels with the float network's class
    min_class_agreement: the same for each class that covers at least 0.1% of the golden pixels
    min_int8_share: convolution work (multiply-accumulates) that really runs in INT8
    """

    min_agreement: float = field(default=0.95, metadata=parsed(_share))
    min_class_agreement: float = field(default=0.80, metadata=parsed(_share))
    min_int8_share: float = field(default=0.90, metadata=parsed(_share))


@dataclass(frozen=True)
class Spec:
    """The parsed `model.yaml`."""

    model: str
    input: InputSpec
    output: OutputSpec
    labels: LabelSet = CITYSCAPES
    calibration: CalibrationSpec = CalibrationSpec()
    acceptance: AcceptanceSpec = AcceptanceSpec()


@dataclass(frozen=True)
class _Document:
    """The keys of `model.yaml`; what input and output leave out depends on the graph."""

    version: int = field(metadata=parsed(_exactly_one))
    model: str = field(metadata=parsed(_file_name))
    input: Any = None
    output: Any = None
    labels: Any = 'cityscapes'
    calibration: CalibrationSpec = CalibrationSpec()
    acceptance: AcceptanceSpec = AcceptanceSpec()


def load_spec(path: str | os.PathLike[str]) -> Spec:
    """
    Read a `model.yaml`; what it leaves out comes from the ONNX graph or has its default.

    :raises InputError: naming the file, the key, what was found and what was expected
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise InputError(f'{path}: not there, so {path.parent} is no bundle; make one with: '
                         'trt-segmentation init MODEL.onnx BUNDLE')
    document = form.record(_Document, form.read_yaml(path), str(path))
    model_path = path.parent / document.model
    # A link could lead out of the bundle: what is checked must be what is shipped.
    if model_path.is_symlink() or not model_path.is_file():
        raise InputError(f'{path}: model: {model_path} is not a file; expected the ONNX file')

    # Where the engine only runs, onnx need not be installed: what the graph says was checked by
    # whoever built the engine, which belongs to the same bytes.
    graph = onnx_model.describe(model_path) if find_spec('onnx') else None
    if graph is not None and not graph.has_weights:
        raise InputError(
            f'{path}: model: {document.model} keeps weights in other files, which its hash does '
            'not cover; expected one file: make the bundle with: '
            'trt-segmentation init MODEL.onnx BUNDLE'
        )
    spec = Spec(
        document.model,
        _input(document.input, graph, f'{path}: input'),
        _output(document.output, graph, f'{path}: output'),
        parse_labels(document.labels, f'{path}: labels'),
        document.calibration, document.acceptance,
    )
    if graph is not None:
        _check_input(spec.input, graph.inputs[spec.input.tensor], f'{path}: input')
        _check_output(spec, graph.outputs[spec.output.tensor], f'{path}: output')
    return spec


def _input(section: Any, graph: Description | None, where: str) -> InputSpec:
    """Return the input section; tensor and size default to the graph's."""
    defaults = _defaults(section, graph.inputs if graph else None, where)
    shape = graph.inputs[defaults['tensor']].shape if graph else ()
    if len(shape) == 4 and None not in shape[2:]:
        defaults['size'] = list(shape[2:])
    return form.record(InputSpec, {**defaults, **(section or {})}, where)


def _output(section: Any, graph: Description | None, where: str) -> OutputSpec:
    """Return the output section; the tensor defaults to the graph's only output."""
    return form.record(OutputSpec, {**_defaults(section, graph.outputs if graph else None, where),
                                    **(section or {})}, where)


def _defaults(section: Any, tensors: Mapping[str, Tensor] | None, where: str) -> dict[str, Any]:
    """Return what the graph says where a section does not: the name of its only tensor."""
    if section is not None and not isinstance(section, Mapping):
        raise InputError(f'{where}: expected a mapping of keys to values, '
                         f'found {shown(section)}')
    name = (section or {}).get('tensor')
    if name is None and tensors and len(tensors) == 1:
        name = next(iter(tensors))
    if name is None:
        raise InputError(f'{where}: key tensor is missing')
    if not isinstance(name, str):
        raise InputError(f'{where}.tensor: expected a text, found {shown(name)}')
    if tensors is not None and name not in tensors:
        raise InputError(f'{where}.tensor: the graph has no {shown(name)}; expected one of '
                         f'{", ".join(sorted(tensors))}' + nearest(name, tensors))
    return {'tensor': name}


def _check_input(spec: InputSpec, tensor: Tensor, where: str) -> None:
    """Compare the input section with the graph's input tensor."""
    if tensor.dtype != 'float32' or len(tensor.shape) != 4 or tensor.shape[1] not in (3, None):
        raise InputError(
            f'{where}.tensor: {tensor.name!r} is {tensor} in the graph; '
            'expected float32 [N, 3, H, W]'
        )
    for found, expected in zip(spec.size, tensor.shape[2:]):
        if expected not in (None, found):
            raise InputError(
                f'{where}.size: found {list(spec.size)}, but {tensor.name!r} is {tensor} in the '
                'graph; expected its height and width'
            )


def _check_output(spec: Spec, tensor: Tensor, where: str) -> None:
    """Compare kind and label count with the graph's output tensor."""
    logits = spec.output.kind == 'logits'
    rank_fits = len(tensor.shape) == 4 or (len(tensor.shape) == 3 and not logits)
    if not rank_fits or tensor.dtype.startswith('float') != logits:
        expected = 'float [N, C, h, w]' if logits else 'integer [N, h, w] or [N, 1, h, w]'
        raise InputError(
            f'{where}.kind: found {spec.output.kind}, which needs {expected}; '
            f'{tensor.name!r} is {tensor} in the graph'
        )
    labels = len(spec.labels.labels)
    if logits and labels == 1:
        raise InputError(
            f'{where}.kind: found logits with one label, but the best of one channel is always '
            'the same; expected two channels (background and object) or more, or class_ids: '
            'export the network so'
        )
    channels = tensor.shape[1] if len(tensor.shape) == 4 else None
    if channels not in (None, labels if logits else 1):
        raise InputError(
            f'{where}.tensor: {tensor.name!r} is {tensor} in the graph; expected '
            + (f'{labels} channels, one for each entry of labels' if logits else 'one channel')
        )


def with_exclude(text: str, exclude: Sequence[str]) -> str:
    """
    Return the text of a model.yaml with calibration.exclude set; comments and the rest stay.

    :param text: a valid model.yaml
    :param exclude: names of nodes that stay in float
    """
    value = json.dumps(list(exclude))  # JSON's lists of strings are YAML's
    top = yaml.compose(text, yaml.SafeLoader)
    assert isinstance(top, yaml.MappingNode)  # of a valid model.yaml
    key, calibration = _find(top, 'calibration')
    if key is None or calibration is None:
        return f'{text.rstrip()}\n\ncalibration:\n  exclude: {value}\n'
    if not isinstance(calibration, yaml.MappingNode):  # the key with nothing behind it
        return _put(text, key, calibration, f'{{exclude: {value}}}')
    old_key, old = _find(calibration, 'exclude')
    if old_key is not None and old is not None:
        return _put(text, old_key, old, value)
    if calibration.flow_style:
        at = calibration.start_mark.index + 1
        comma = ', ' if calibration.value else ''
        return f'{text[:at]}exclude: {value}{comma}{text[at:]}'
    first = calibration.value[0][0].start_mark
    return f'{text[:first.index]}exclude: {value}\n{" " * first.column}{text[first.index:]}'


def _find(mapping: yaml.MappingNode, name: str) -> tuple[yaml.Node | None, yaml.Node | None]:
    """Return a key of a mapping and its value."""
    return next(((key, value) for key, value in mapping.value if key.value == name),
                (None, None))


def _put(text: str, key: yaml.Node, old: yaml.Node, value: str) -> str:
    """Return the text with the value of a key replaced."""
    # A block's own end is where the next thing begins, comments between them included.
    last = old.value[-1] if isinstance(old, yaml.SequenceNode) and old.value else old
    end = last.end_mark.index if not getattr(old, 'flow_style', True) else old.end_mark.index
    return f'{text[:key.end_mark.index]}: {value}{text[end:]}'
