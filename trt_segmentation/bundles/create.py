# SPDX-License-Identifier: Apache-2.0
"""Making a bundle from a network: what its file says, and what only its author knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
import os
from pathlib import Path
from typing import Any

from trt_segmentation.bundles import form, manifest
from trt_segmentation.bundles.bundle import Bundle, SPEC_NAME
from trt_segmentation.bundles.cache import Cache, LEVELS
from trt_segmentation.bundles.colors import similar_colors
from trt_segmentation.bundles.implausible import input_notes, network_notes
from trt_segmentation.bundles.label_choice import fitting_labels, given_labels
from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.bundles.model_yaml import min_int8_share, model_yaml
from trt_segmentation.bundles.presets import Preset, preset
from trt_segmentation.bundles.spec import (
    AcceptanceSpec,
    InputSpec,
    load_spec,
    OutputSpec,
    parse_size,
    Spec,
)
from trt_segmentation.errors import InputError, nearest
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.activations import activations
from trt_segmentation.networks.adapt import (
    adapt,
    Adapted,
    can_run,
    check,
    check_weights,
    has_channels_last,
    try_out,
)
from trt_segmentation.networks.caffe.convert import convert as convert_caffe
from trt_segmentation.networks.caffe.convert import defaults, mean_of
from trt_segmentation.networks.caffe.files import read_mean
from trt_segmentation.networks.dequantize import dequantize, is_quantized
from trt_segmentation.networks.frameworks.convert import convert
from trt_segmentation.networks.frameworks.recognize import framework_of
from trt_segmentation.networks.layers import int8_share, Layer
from trt_segmentation.networks.model import onnx, Shape, Tensor
from trt_segmentation.networks.placement import quantizable_share
from trt_segmentation.networks.quantize import quantize
from trt_segmentation.system import files

_NUMBERS = ('float', 'bfloat', 'int', 'uint')


@dataclass(frozen=True)
class Created:
    """
    What `create` made.

    assumed: names of the values that were neither given nor in the file
    preset: names of the values that are those of a preset
    changes: what in the bundle's network is not as in the file, in words
    notes: what is worth a second look, in sentences
    calibrated: the network had scales of its own, which are the bundle's calibration
    """

    spec: Spec
    assumed: list[str]
    changes: list[str]
    notes: list[str]
    calibrated: bool = False
    preset: list[str] = field(default_factory=list)


def create(model: str | os.PathLike[str], bundle: str | os.PathLike[str], *,
           labels: str | os.PathLike[str] | LabelSet | None = None,
           input_tensor: str | None = None, output_tensor: str | None = None,
           size: tuple[int, int] | None = None, kind: str | None = None,
           weights: str | os.PathLike[str] | None = None,
           mean_file: str | os.PathLike[str] | None = None, like: str | None = None,
           **choices: Any) -> Created:
    """
    Make a bundle of a network; what is left out is read from its file or is the default.

    :param model: the ONNX file; weights in files beside it are taken into the bundle's copy; with
        `weights`, the deploy.prototxt of a Caffe network; a frozen graph, a SavedModel or a Keras
        file of TensorFlow, an exported program or a TorchScript file of PyTorch
    :param bundle: the directory to make; it must not exist
    :param labels: 'cityscapes', labels, or a YAML file with a list as in model.yaml
    :param input_tensor, output_tensor: needed where the graph has several
    :param size: (height, width); needed where the graph leaves them free
    :param kind: 'logits', 'probabilities' or 'class_ids'; by default what the graph says
    :param weights: the caffemodel of a Caffe network; mean_file: its mean, in Caffe's form
    :param like: the name of a preset, whose values hold where nothing is given
    :param choices: color, mean, scale, fit, interpolation, upsample: as in model.yaml; None is
        as good as left out
    :raises InputError: for a network that cannot be used so, naming what to give
    """
    model, bundle = Path(model), Path(bundle)
    asked = _Asked(labels, input_tensor, output_tensor, size, kind, preset(like) if like else None,
                   like or '', choices)
    if bundle.exists():
        raise InputError(f'{bundle}: exists already; name a new directory')
    if size is not None:
        try:
            parse_size([*size])
        except ValueError as error:
            raise InputError(f'--size: found {[*size]}, expected {error}') from None
    if weights is None and mean_file is not None:
        raise InputError('--mean-file goes with --weights: it is for networks of Caffe')
    if weights is not None:
        asked = replace(asked, choices=choices | _from_caffe(model, mean_file, choices))
    framework = '' if weights is not None else framework_of(model)
    if weights is None and not framework:
        return _of_onnx(model, bundle, asked)
    with files.temporary_directory() as directory:
        path, said = Path(directory) / f'{model.stem or model.resolve().stem}.onnx', []
        if weights is not None:
            onnx.save(convert_caffe(model, Path(weights), size), path)
        else:
            input_tensor, output_tensor = (
                name and name.removesuffix(':0') for name in (input_tensor, output_tensor))
            asked = replace(asked, input_tensor=input_tensor, output_tensor=output_tensor)
            said = [convert(model, framework, path, size=size, input_tensor=input_tensor,
                            output_tensor=output_tensor)]
        try:
            created = _of_onnx(path, bundle, asked)
        except InputError as error:
            raise InputError(str(error).replace(str(path), str(model))) from None
    created.changes[:0] = said
    return created


@dataclass(frozen=True)
class _Asked:
    """What `create` was asked for, as its parameters say; `like` is the name of the preset."""

    labels: str | os.PathLike[str] | LabelSet | None
    input_tensor: str | None
    output_tensor: str | None
    size: tuple[int, int] | None
    kind: str | None
    preset: Preset | None
    like: str
    choices: Mapping[str, Any]


def _of_onnx(model: Path, bundle: Path, asked: _Asked) -> Created:
    """Make a bundle of an ONNX file."""
    source, target = _tensors(model, asked)
    known = given_labels(asked.labels)
    given = {key: value for key, value in (*asked.choices.items(), ('labels', known),
                                           ('size', asked.size)) if value is not None}
    filled, notes = asked.preset.fill(asked.like, given) if asked.preset else ({}, [])
    if None not in _sides(source):
        filled.pop('size', None)
    if asked.size and any(fixed not in (None, side)
                          for side, fixed in zip(asked.size, _sides(source))):
        raise InputError(f'--size: found {[*asked.size]}, but {model} has its size: '
                         f'{source.name!r} is {source}; leave --size out')
    given |= filled
    known = given.pop('labels', None)
    height, width = given.pop('size', None) or _fixed_size(source, model)
    size = (height, width)
    adapted, scales = _adapted(model, source, target, size, asked.kind, known)
    if adapted.whole:
        if {'mean', 'scale'} & {key for key in given if key not in filled}:
            raise InputError(f'{model}: input {source.name!r} is {source}, so the network takes '
                             'pixels 0..255 and normalizes them itself; expected no mean and no '
                             'scale')
        given |= {'mean': (0.0, 0.0, 0.0), 'scale': (1.0, 1.0, 1.0)}
        filled = {key: value for key, value in filled.items() if key not in ('mean', 'scale')}
    if asked.kind is None and not adapted.ids and len(adapted.output.shape) == 3:
        raise InputError(f'{model}: output {target.name!r} is {target}: is that one channel of '
                         'logits or probabilities, or class ids? say so with --kind logits, '
                         'probabilities or class_ids')
    kind = 'class_ids' if adapted.ids else 'logits'
    labels = fitting_labels(adapted, target, known, model, asked.like if 'labels' in filled else
                            'the list of labels' if isinstance(asked.labels, LabelSet) else
                            f'--labels {asked.labels}')
    in_spec = InputSpec(source.name, size, **{
        key: given[key] for key in given if key != 'upsample'})
    out_spec = OutputSpec(adapted.output.name, kind, given.get('upsample', OutputSpec.upsample))
    assumed = [key for key in ('color', 'mean', 'scale', 'fit', 'interpolation', 'upsample')
               if key not in given]
    if kind == 'class_ids' or adapted.output.shape[2:] == size:
        assumed = [key for key in assumed if key != 'upsample']  # there is nothing to upsample
    if known is None:
        assumed.append('labels')
    origins = (dict.fromkeys(filled, f'preset {asked.like}')
               | dict.fromkeys(assumed, 'assumed'))
    try:
        share, layers = _int8(adapted.model, scales, {source.name: (1, 3, *size)})
    except InputError as error:
        raise InputError(f'{model}: {error}') from None
    name = model.name.lstrip('.')
    text = model_yaml(name, in_spec, out_spec, labels, adapted.input, adapted.output, origins,
                      share, asked.preset.source if asked.preset else '')
    spec = _write(bundle, name, text, model, adapted, scales, target.name)
    notes += [*input_notes(spec.input), *network_notes(adapted, spec.input.size)]
    if similar := similar_colors(spec.labels):
        notes.append(similar)
    if share is not None and share < AcceptanceSpec.min_int8_share:
        notes.append(f'{share:.1%} of the work can be in INT8, so acceptance.min_int8_share is '
                     f'{min_int8_share(share)}')
    if rest := [f'{layer.name} ({layer.reason})' for layer in layers if layer.reason]:
        notes.append(f'in float: {", ".join(rest[:3])}{" ..." if len(rest) > 3 else ""}')
    if asked.preset is not None and asked.preset.caution:
        notes.append(f'preset {asked.like}: {asked.preset.caution}')
    return Created(spec, assumed, adapted.changes, notes, calibrated=scales is not None,
                   preset=[key for key in filled if key in origins])


def _tensors(model: Path, asked: _Asked) -> tuple[Tensor, Tensor]:
    """Return the input and the output of the file that are wanted; raise InputError for others."""
    graph = onnx_model.describe(model)
    source = _pick(graph.inputs, asked.input_tensor, model, 'input')
    target = _pick(graph.outputs, asked.output_tensor, model, 'output')
    if not source.dtype.startswith(_NUMBERS) or len(source.shape) != 4 or (
            3 not in source.shape[1::2] and None not in source.shape[1::2]):
        raise InputError(f'{model}: input {source.name!r} is {source}; expected four axes, '
                         '[N, 3, H, W] or [N, H, W, 3], of numbers: export it with one for the '
                         'batch, and for images in color')
    if not target.dtype.startswith((*_NUMBERS, 'bool')):
        raise InputError(f'{model}: output {target.name!r} is {target}; expected a tensor of '
                         'numbers: export it so')
    if source.shape[:1] not in ((None,), (1,)):
        raise InputError(f'{model}: input {source} has a fixed batch of {source.shape[0]}; '
                         'expected 1 or a free one: export it so')
    return source, target


def _adapted(model: Path, source: Tensor, target: Tensor, size: tuple[int, int],
             kind: str | None, labels: LabelSet | None
             ) -> tuple[Adapted, dict[str, float] | None]:
    """Return the network as this package runs it, and the scales of its Q/DQ pairs, if any."""
    proto, scales = onnx_model.load(model), None
    taken = []
    try:
        if is_quantized(proto):
            proto, scales, codes = dequantize(proto)
            taken.append(f'its Q/DQ pairs are taken out: {len(scales)} scales of theirs are the '
                         f'calibration, and {codes} weights are what their codes stand for')
        adapted = adapt(proto, source, target, size, kind=kind,
                        classes=None if labels is None else len(labels.labels))
        check_weights(adapted.model)
        adapted.changes[:0] = taken
        if scales is not None:
            in_graph = set(activations(adapted.model))
            scales = {name: scale for name, scale in scales.items() if name in in_graph}
    except InputError as error:
        raise InputError(f'{model}: {error}') from None
    return adapted, scales


def _int8(model: onnx.ModelProto, scales: Mapping[str, float] | None,
          shapes: Mapping[str, tuple[int, ...]]) -> tuple[float | None, tuple[Layer, ...]]:
    """Return the share of the work that can be in INT8; of known scales, what each layer is in."""
    if scales is None:
        return quantizable_share(model, shapes), ()
    layers = quantize(model, scales, 'tensorrt', input_shapes=shapes).layers
    return int8_share(layers), layers


def _write(bundle: Path, name: str, text: str, model: Path, adapted: Adapted,
           scales: Mapping[str, float] | None, output: str) -> Spec:
    """
    Write a bundle whose network computes what the file does, and return its spec.

    :param name: of the network in it; text: of model.yaml
    :param scales: those of its own pairs; output: the file's
    """
    try:
        with files.atomic_directory(bundle) as directory:
            files.atomic_write(directory / name, _single_file(model, adapted))
            files.atomic_write(directory / SPEC_NAME, text)
            try:
                spec = load_spec(directory / SPEC_NAME)
            except InputError as error:  # about a file that will not be there
                raise InputError(str(error).replace(str(directory), str(bundle))) from None
            if scales is not None:
                _write_calibration(directory, scales)
            try:
                if can_run() and scales is not None:
                    try_out(adapted, spec.input.size)
                elif can_run():
                    check(adapted, model, spec.input.mean, spec.input.scale, spec.input.size,
                          output)
            except InputError as error:
                named = str(error).startswith(str(model))
                raise InputError(str(error) if named else f'{model}: {error}') from None
    except OSError as error:
        raise InputError(f'{bundle}: cannot be written: {error.strerror}') from None
    return spec


def _from_caffe(prototxt: Path, mean_file: str | os.PathLike[str] | None,
                choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Caffe's files say of the preprocessing, where nothing else was given."""
    found: dict[str, Any] = {'color': 'bgr', **defaults(prototxt)}
    if mean_file is not None:
        if choices.get('mean') is not None:
            raise InputError('--mean and --mean-file: expected one of the two')
        found['mean'] = mean_of(read_mean(Path(mean_file)))
    return {key: value for key, value in found.items() if choices.get(key) is None}


def _write_calibration(directory: Path, scales: Mapping[str, float]) -> None:
    """Write the scales of a network's own Q/DQ pairs as its cache and manifest, and seal it."""
    opened = Bundle(directory, load_spec(directory / SPEC_NAME))
    cache = Cache.from_amax({name: scale * LEVELS for name, scale in scales.items()})
    document = manifest.new(
        opened, cache, method='graph',
        tensors={name: manifest.Scale(scale, cache.amax(name))
                 for name, scale in cache.scales.items()})
    files.atomic_write(opened.cache_path, cache.to_bytes())
    files.atomic_write(opened.manifest_path, form.to_json(document))
    files.write_sums(directory)


def _pick(tensors: Mapping[str, Tensor], name: str | None, model: Path, what: str) -> Tensor:
    """Return the tensor of that name, or the only one."""
    listed = ', '.join(f'{name} {tensor}' for name, tensor in tensors.items())
    if name is None and len(tensors) != 1:
        raise InputError(f'{model}: it has {len(tensors)} {what}s; name one with --{what}: '
                         f'{listed}')
    if name is not None and name not in tensors:
        raise InputError(f'{model}: it has no {what} {name!r}; expected one of {listed}'
                         + nearest(name, tensors))
    return tensors[name] if name is not None else next(iter(tensors.values()))


def _fixed_size(source: Tensor, model: Path) -> tuple[int, int]:
    """Return the height and width of the graph's input."""
    height, width = _sides(source)
    if height is None or width is None:
        raise InputError(f'{model}: input {source.name!r} is {source}; name its height and width '
                         'with --size HEIGHT WIDTH')
    return height, width


def _sides(source: Tensor) -> Shape:
    """Return height and width of an input with four axes; None for one that is free."""
    return source.shape[1:3] if has_channels_last(source.shape) else source.shape[2:]


def _single_file(model: Path, adapted: Adapted) -> bytes:
    """Return the bytes of the bundle's network: the file's, unless its weights are elsewhere."""
    whole = onnx_model.describe(model).has_weights
    if whole and not adapted.changes:
        return model.read_bytes()
    try:
        data: bytes = adapted.model.SerializeToString()
    except Exception as error:  # protobuf's own, by whichever implementation is installed
        raise InputError(f'{model}: its weights do not fit into one file: {error}') from None
    return data
