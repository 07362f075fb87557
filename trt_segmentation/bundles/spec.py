# SPDX-License-Identifier: Apache-2.0
"""The spec: a network's contract as `model.yaml` states it, checked against the ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
import os
from pathlib import Path
from typing import Any

from trt_segmentation.bundles import form as yaml_file
from trt_segmentation.bundles.labels import CITYSCAPES, LabelSet, parse_labels
from trt_segmentation.errors import InputError, shown
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.model import Description, Tensor
from trt_segmentation.system import files


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

    tensor: str
    size: tuple[int, int]
    color: str = 'bgr'
    mean: tuple[float, float, float] = (71.60, 82.10, 72.31)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    fit: str = 'stretch'
    interpolation: str = 'linear'

    @property
    def sha256(self) -> str:
        """Hash of all fields: two preprocessings are the same if and only if these are equal."""
        return files.sha256_json(asdict(self))


@dataclass(frozen=True)
class OutputSpec:
    """
    How the output tensor becomes a class mask.

    tensor: name of the graph output
    kind: 'logits' (N, channels, h, w) at any stride, or 'class_ids' (N, h, w) or (N, 1, h, w)
    upsample: how logits reach the network's size: 'half_pixel', 'align_corners' or 'nearest'
    """

    tensor: str
    kind: str = 'logits'
    upsample: str = 'half_pixel'


@dataclass(frozen=True)
class CalibrationSpec:
    """
    What calibration does not decide.

    ranges: by tensor name a fixed amax, 'minmax' for all of the range that the images show, or
        'float' for no scale, so that what reads or writes the tensor stays in float
    exclude: names of nodes that stay in float
    """

    ranges: Mapping[str, float | str] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class AcceptanceSpec:
    """
    What an engine must reach on the golden frames before it may run, each a share 0..1.

    min_agreement: pixels with the float network's class
    min_class_agreement: the same for each class that covers at least 0.1% of the golden pixels
    min_int8_share: convolution work (multiply-accumulates) that really runs in INT8
    """

    min_agreement: float = 0.95
    min_class_agreement: float = 0.80
    min_int8_share: float = 0.90


@dataclass(frozen=True)
class Spec:
    """The parsed `model.yaml`."""

    model: str
    input: InputSpec
    output: OutputSpec
    labels: LabelSet = CITYSCAPES
    calibration: CalibrationSpec = CalibrationSpec()
    acceptance: AcceptanceSpec = AcceptanceSpec()


def load_spec(path: str | os.PathLike) -> Spec:
    """
    Read a `model.yaml`; what it leaves out comes from the ONNX graph or has its default.

    :raises InputError: naming the file, the key, what was found and what was expected
    """
    return _parse_spec(yaml_file.read(path), Path(path))


def _parse_spec(document: Any, path: Path) -> Spec:
    """Return the spec of a YAML document, checked against the graph that it names."""
    top = _Section(document, str(path))
    top.take('version', _exactly_one)
    model = top.take('model', _file_name)
    input_section = top.section('input')
    output_section = top.section('output')
    labels = parse_labels(top.take('labels', lambda value: value, 'cityscapes'),
                          f'{path}: labels')
    calibration = _parse_calibration(top.section('calibration'))
    acceptance = _parse_acceptance(top.section('acceptance'))
    top.close()
    model_path = path.parent / model
    # A link could lead out of the bundle: what is checked must be what is shipped.
    if model_path.is_symlink() or not model_path.is_file():
        raise InputError(f'{path}: model: {model_path} is not a file; expected the ONNX file')

    # Where the engine only runs, onnx need not be installed: what the graph says was checked by
    # whoever built the engine, which belongs to the same bytes.
    graph = onnx_model.describe(model_path) if find_spec('onnx') else None
    if graph is not None and not graph.has_weights:
        raise InputError(
            f'{path}: model: {model} keeps weights in other files, which its hash does not cover; '
            'expected one file: make the bundle with trt-segmentation init'
        )
    spec = Spec(
        model,
        _parse_input(input_section, graph),
        _parse_output(output_section, graph),
        labels, calibration, acceptance,
    )
    if graph is not None:
        _check_input(spec.input, graph.inputs[spec.input.tensor], f'{path}: input')
        _check_output(spec, graph.outputs[spec.output.tensor], f'{path}: output')
    return spec


def _parse_input(section: _Section, graph: Description | None) -> InputSpec:
    """Return the input section; tensor and size default to the graph's."""
    tensor = _tensor_name(section, graph and graph.inputs)
    shape = graph.inputs[tensor].shape if graph else ()
    graph_size = shape[2:] if len(shape) == 4 and None not in shape[2:] else None
    default = InputSpec(tensor, section.take('size', _size, graph_size or _MISSING))
    result = InputSpec(
        default.tensor,
        default.size,
        section.take('color', _one_of('bgr', 'rgb'), default.color),
        section.take('mean', _three_numbers, default.mean),
        section.take('scale', _three_nonzero_numbers, default.scale),
        section.take('fit', _one_of('stretch', 'letterbox', 'crop'), default.fit),
        section.take('interpolation', _one_of('nearest', 'linear', 'area'),
                     default.interpolation),
    )
    section.close()
    return result


def _parse_output(section: _Section, graph: Description | None) -> OutputSpec:
    """Return the output section; the tensor defaults to the graph's only output."""
    default = OutputSpec(_tensor_name(section, graph and graph.outputs))
    result = OutputSpec(
        default.tensor,
        section.take('kind', _one_of('logits', 'class_ids'), default.kind),
        section.take('upsample', _one_of('half_pixel', 'align_corners', 'nearest'),
                     default.upsample),
    )
    section.close()
    return result


def _tensor_name(section: _Section, tensors: Mapping[str, Tensor] | None) -> str:
    """Return the tensor that the section names, or the graph's only one."""
    only = next(iter(tensors)) if tensors and len(tensors) == 1 else _MISSING
    name = section.take('tensor', _text, only)
    if tensors is not None and name not in tensors:
        raise InputError(
            f'{section.where}.tensor: the graph has no {name!r}; expected one of '
            f'{", ".join(sorted(tensors))}'
        )
    return name


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


def _parse_calibration(section: _Section) -> CalibrationSpec:
    """Return the calibration section."""
    default = CalibrationSpec()
    result = CalibrationSpec(
        section.take('ranges', _ranges, default.ranges),
        section.take('exclude', _texts, default.exclude),
    )
    section.close()
    return result


def _parse_acceptance(section: _Section) -> AcceptanceSpec:
    """Return the acceptance section."""
    default = asdict(AcceptanceSpec())
    result = AcceptanceSpec(**{key: section.take(key, _share, value)
                               for key, value in default.items()})
    section.close()
    return result


_MISSING = object()


class _Section:
    """A mapping of the YAML document whose keys are taken one by one; what is left is unknown."""

    def __init__(self, value: Any, where: str):
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise InputError(f'{where}: expected a mapping of keys to values, '
                             f'found {shown(value)}')
        self.where = where
        self._values = dict(value)
        self._known: list[str] = []

    def _key(self, key: str) -> str:
        """Return where a key stands: the file, then the keys joined by dots."""
        return f'{self.where}{"." if ": " in self.where else ": "}{key}'

    def take(self, key: str, parse: Callable[[Any], Any], default: Any = _MISSING) -> Any:
        """Return the parsed value of `key`, or the default."""
        self._known.append(key)
        if key not in self._values:
            if default is _MISSING:
                raise InputError(f'{self.where}: key {key} is missing')
            return default
        value = self._values.pop(key)
        try:
            return parse(value)
        except ValueError as error:
            raise InputError(f'{self._key(key)}: expected {error}, found {shown(value)}'
                             ) from None

    def section(self, key: str) -> _Section:
        """Return the mapping under `key`; an absent one is empty."""
        self._known.append(key)
        return _Section(self._values.pop(key, None), self._key(key))

    def close(self) -> None:
        """Raise InputError if a key was not taken."""
        for key in self._values:
            raise InputError(
                f'{self.where}: unknown key {shown(key)}; expected one of '
                f'{", ".join(self._known)}'
            )


# The parsers of values: each raises ValueError with what it expects.

_LARGEST = 3.4e38  # float32 holds no more,
_SMALLEST = 1e-35  # and nothing less than this divided by 127 with all its digits

def _exactly_one(value: Any) -> int:
    if value != 1 or isinstance(value, bool):
        raise ValueError('1, the version of this format')
    return value


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


def _size(value: Any) -> tuple[int, int]:
    if (not isinstance(value, list) or len(value) != 2
            or not all(isinstance(v, int) and not isinstance(v, bool) and 0 < v <= 16384
                       for v in value)):
        raise ValueError('[height, width], two integers 1..16384')
    return value[0], value[1]


def _three_numbers(value: Any) -> tuple[float, float, float]:
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_number, value)):
        raise ValueError('three numbers, one a channel')
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
        return value
    return parse


def _ranges(value: Any) -> dict[str, float | str]:
    if (not isinstance(value, dict)
            or not all(isinstance(name, str) and (amax in ('minmax', 'float') or (
                _is_number(amax) and amax >= _SMALLEST)) for name, amax in value.items())):
        raise ValueError('a mapping of tensor names to positive numbers (amax), minmax or float')
    return {name: amax if isinstance(amax, str) else float(amax)
            for name, amax in value.items()}
