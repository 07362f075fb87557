# SPDX-License-Identifier: Apache-2.0
"""Making a bundle from a network: what its file says, and what only its author knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
import os
from pathlib import Path
from typing import Any

from trt_segmentation.bundles import form, manifest
from trt_segmentation.bundles.bundle import Bundle, SPEC_NAME
from trt_segmentation.bundles.cache import Cache, LEVELS
from trt_segmentation.bundles.implausible import input_notes, network_notes
from trt_segmentation.bundles.labels import CITYSCAPES, Label, LabelSet, parse_labels
from trt_segmentation.bundles.model_yaml import min_int8_share, model_yaml
from trt_segmentation.bundles.presets import preset
from trt_segmentation.bundles.spec import AcceptanceSpec, InputSpec, load_spec, OutputSpec, Spec
from trt_segmentation.errors import InputError
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

BINARY = LabelSet((Label('background', 0, (0, 0, 0), 'background'),
                   Label('object', 1, (255, 255, 255), 'object')))
"""The labels of a network with one channel whose author names none."""


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
    model_preset = preset(like) if like else None
    if bundle.exists():
        raise InputError(f'{bundle}: exists already; name a new directory')
    if weights is not None:
        choices |= _from_caffe(model, mean_file, choices)
    elif mean_file is not None:
        raise InputError('--mean-file goes with --weights: it is for networks of Caffe')
    framework = '' if weights is not None else framework_of(model)
    if weights is not None or framework:
        with files.temporary_directory() as directory:
            path, said = Path(directory) / f'{model.stem or model.resolve().stem}.onnx', []
            if weights is not None:
                onnx.save(convert_caffe(model, Path(weights), size), path)
            else:
                input_tensor, output_tensor = (
                    name and name.removesuffix(':0') for name in (input_tensor, output_tensor))
                said = [convert(model, framework, path, size=size, input_tensor=input_tensor,
                                output_tensor=output_tensor)]
            try:
                created = create(path, bundle, labels=labels, input_tensor=input_tensor,
                                 output_tensor=output_tensor, size=size, kind=kind, like=like,
                                 **choices)
            except InputError as error:
                raise InputError(str(error).replace(str(path), str(model))) from None
            created.changes[:0] = said
            return created
    graph = onnx_model.describe(model)
    source = _pick(graph.inputs, input_tensor, model, 'input')
    target = _pick(graph.outputs, output_tensor, model, 'output')
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
    known = _given_labels(labels)
    given = {key: value for key, value in (*choices.items(), ('labels', known), ('size', size))
             if value is not None}
    filled, notes = model_preset.fill(like, given) if like and model_preset else ({}, [])
    if None not in _sides(source):
        filled.pop('size', None)
    given |= filled
    known, size = given.pop('labels', None), given.pop('size', None)
    height, width = size or _fixed_size(source, model)
    proto, scales = onnx_model.load(model), None
    taken = []
    try:
        if is_quantized(proto):
            proto, scales, codes = dequantize(proto)
            taken.append(f'its Q/DQ pairs are taken out: {len(scales)} scales of theirs are the '
                         f'calibration, and {codes} weights are what their codes stand for')
        adapted = adapt(proto, source, target, (height, width), kind=kind,
                        classes=None if known is None else len(known.labels))
        check_weights(adapted.model)
        adapted.changes[:0] = taken
    except InputError as error:
        raise InputError(f'{model}: {error}') from None
    del proto
    if adapted.whole:
        if {'mean', 'scale'} & {key for key in given if key not in filled}:
            raise InputError(f'{model}: input {source.name!r} is {source}, so the network takes '
                             'pixels 0..255 and normalizes them itself; expected no mean and no '
                             'scale')
        given |= {'mean': (0.0, 0.0, 0.0), 'scale': (1.0, 1.0, 1.0)}
        filled = {key: value for key, value in filled.items() if key not in ('mean', 'scale')}
    if kind is None and not adapted.ids and len(adapted.output.shape) == 3:
        raise InputError(f'{model}: output {target.name!r} is {target}: is that one channel of '
                         'logits or probabilities, or class ids? say so with --kind logits, '
                         'probabilities or class_ids')
    kind = 'class_ids' if adapted.ids else 'logits'
    label_set = known or _assumed_labels(adapted, target, model)
    if len(label_set.labels) == 1 and not adapted.ids and adapted.output.shape[1:2] == (2,):
        raise InputError(f'labels: found one label; of the one channel of {target.name!r} two '
                         'classes are made: expected a list of two, the background first')
    source_of_labels = (like if 'labels' in filled else
                        'the list of labels' if isinstance(labels, LabelSet) else
                        f'--labels {labels}')
    _check_channels(adapted, target, known, f'{model}: {source_of_labels}')
    in_spec = InputSpec(source.name, (height, width), **{
        key: given[key] for key in given if key != 'upsample'})
    out_spec = OutputSpec(adapted.output.name, kind,
                          given.get('upsample', OutputSpec.upsample))
    assumed = [key for key in ('color', 'mean', 'scale', 'fit', 'interpolation', 'upsample')
               if key not in given]
    if kind == 'class_ids' or adapted.output.shape[2:] == (height, width):
        assumed = [key for key in assumed if key != 'upsample']  # there is nothing to upsample
    if known is None:
        assumed.append('labels')
    origins = dict.fromkeys(filled, f'preset {like}') | dict.fromkeys(assumed, 'assumed')
    name = model.name.lstrip('.')
    shapes = {source.name: (1, 3, height, width)}
    layers: tuple[Layer, ...] = ()
    try:
        if scales is None:
            share = quantizable_share(adapted.model, shapes)
        else:
            in_graph = set(activations(adapted.model))
            scales = {name: scale for name, scale in scales.items() if name in in_graph}
            layers = quantize(adapted.model, scales, 'tensorrt', input_shapes=shapes).layers
            share = int8_share(layers)
    except InputError as error:
        raise InputError(f'{model}: {error}') from None
    text = model_yaml(name, in_spec, out_spec, label_set, adapted.input, adapted.output, origins,
                      share, model_preset.source if model_preset else '')
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
                          target.name)
            except InputError as error:
                named = str(error).startswith(str(model))
                raise InputError(str(error) if named else f'{model}: {error}') from None
    except OSError as error:
        raise InputError(f'{bundle}: cannot be written: {error.strerror}') from None
    notes += [*input_notes(spec.input), *network_notes(adapted, spec.input.size)]
    if share is not None and share < AcceptanceSpec.min_int8_share:
        notes.append(f'{share:.1%} of the work can be in INT8, so acceptance.min_int8_share is '
                     f'{min_int8_share(share)}')
    if rest := [f'{layer.name} ({layer.reason})' for layer in layers if layer.reason]:
        notes.append(f'in float: {", ".join(rest[:3])}{" ..." if len(rest) > 3 else ""}')
    if model_preset is not None and model_preset.caution:
        notes.append(f'preset {like}: {model_preset.caution}')
    return Created(spec, assumed, adapted.changes, notes, calibrated=scales is not None,
                   preset=[key for key in filled if key in origins])


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
        raise InputError(f'{model}: it has no {what} {name!r}; expected one of {listed}')
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


def _given_labels(labels: str | os.PathLike[str] | LabelSet | None) -> LabelSet | None:
    """Return the labels that were given, or None."""
    if labels is None or isinstance(labels, LabelSet):
        return labels
    if str(labels) == 'cityscapes':
        return CITYSCAPES
    if not os.path.exists(labels):
        raise InputError(f'{labels}: cannot be read: no such file; expected cityscapes, or a '
                         'YAML file with a list of labels')
    return parse_labels(form.read_yaml(labels), str(labels))


def _channels(adapted: Adapted) -> int | None:
    """Return how many classes the logits have; None for class ids, or if that is free."""
    output = adapted.output
    return output.shape[1] if not adapted.ids and len(output.shape) == 4 else None


def _check_channels(adapted: Adapted, target: Tensor, labels: LabelSet | None, where: str
                    ) -> None:
    """Raise InputError if labels are not those of a network with that many classes."""
    channels = _channels(adapted)
    if labels is not None and channels not in (None, len(labels.labels)):
        raise InputError(
            f'{where} has {len(labels.labels)} labels, but output {target.name!r} is {target}, '
            f"which gives {channels} classes: give the training's own with --labels, cityscapes "
            f'or a YAML file with {{name, train_id, color, category}} for each of the {channels}')


def _assumed_labels(adapted: Adapted, target: Tensor, model: Path) -> LabelSet:
    """Return the labels of a network whose author names none."""
    channels = _channels(adapted)
    if channels == len(BINARY.labels) and target.shape[1:2] != (channels,):
        return BINARY
    if channels not in (None, len(CITYSCAPES.labels)):
        raise InputError(
            f'{model}: output {target.name!r} is {target}, which gives {channels} classes, but '
            f'cityscapes has {len(CITYSCAPES.labels)} labels; give --labels FILE, a YAML list '
            f'with {{name, train_id, color, category}} for each of the {channels} classes')
    return CITYSCAPES


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
