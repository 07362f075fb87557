# SPDX-License-Identifier: Apache-2.0
"""
What a built engine is, in lines to read: for `build`, for `inspect` and for reports.

Where a sentence has a command in it, `bundle` is the path in that; by default it is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import os

from trt_segmentation.bundles.manifest import GOLDEN_FRAMES
from trt_segmentation.engines.record import (
    Acceptance,
    AGREEMENT,
    CLASS_AGREEMENT,
    Failure,
    Figures,
    INT8_SHARE,
    INT8_UNKNOWN,
    NOTHING_JUDGED,
    Record,
)
from trt_segmentation.errors import command_line, counted
from trt_segmentation.networks.layers import Layer

_BUNDLE = 'BUNDLE'
_LOWEST = 3  # classes that are shown without --verbose
_ALL_IN_INT8 = (1, 23)  # the ONNX Runtime from which on convolutions with a float bias are INT8
_LOSES_MORE = 0.002  # agreement that a CPU's kernels lose beside the vehicle's, worth a line
_FLOAT = 5  # layers that are shown without --verbose


def layer_table(layers: Iterable[Layer]) -> list[str]:
    """Return a table of weighted layers: type, share of the work, name, why it is not INT8."""
    layers = list(layers)
    return _layer_rows(layers, layers)


def agreement_table(acceptance: Acceptance) -> list[str]:
    """Return a table of the agreement with the float network, by class, the lowest first."""
    rows = sorted(acceptance.classes.items(), key=lambda row: row[1])
    width = max((len(name) for name in (*acceptance.classes, *acceptance.pixels)), default=0)
    lines = [f'{"class":{width}}  agreement  golden pixels']
    lines += [f'{name:{width}}  {value:9.4f}  {acceptance.pixels.get(name, ""):>13}'
              for name, value in rows]
    lines += [f'{name:{width}}  {"-":>9}  {acceptance.pixels[name]:>13}'
              for name in acceptance.unproven_classes]
    return [line.rstrip() for line in lines]


def verdict(record: Record) -> str:
    """Return one line: accepted or not, what, and by what."""
    inputs, acceptance = record.inputs, record.acceptance
    word = 'REFUSED' if acceptance.failures else 'ACCEPTED'
    if not acceptance.failures and (not acceptance.frames or acceptance.only_class):
        word = 'UNPROVEN'
    return (f'{word:10} {inputs.precision} for {inputs.backend} {inputs.version}: '
            f'{_figures(acceptance, inputs.precision)}')


def deciding(record: Record, bundle: str | os.PathLike[str] = _BUNDLE) -> list[str]:
    """
    Return what goes with the verdict, or limits what it says: a line each.

    First comes why an engine is refused.
    """
    acceptance, lines = record.acceptance, []
    lines += [f'because    {failure.text}' for failure in acceptance.failures]
    lines += [f'WAIVED     {failure.text}, accepted with --allow-float'
              for failure in acceptance.waived]
    lines += [f'UNPROVEN   {text}' for text in unproven(acceptance, bundle)]
    if 0 < len(acceptance.frames) < GOLDEN_FRAMES:
        lines.append(f'proof      {counted(len(acceptance.frames), "golden frame")} to judge by: '
                     f'{GOLDEN_FRAMES} or more prove more')
    if acceptance.frames:
        lowest = sorted(acceptance.classes.items(), key=lambda row: row[1])[:_LOWEST]
        if lowest:
            lines.append('lowest     ' + ', '.join(f'{name} {value:.4f}'
                                                   for name, value in lowest))
    lines += vehicle(record)
    lines += batches(record)
    rest = float_layers(record)
    if record.precision == 'int8' and rest:
        lines += ['', 'layers that are not in INT8:', *_layer_rows(rest[:_FLOAT], record.layers)]
        if len(rest) > _FLOAT:
            lines.append(f'... and {len(rest) - _FLOAT} more; all with --verbose')
    return lines


def unproven(acceptance: Acceptance, bundle: str | os.PathLike[str] = _BUNDLE) -> list[str]:
    """Return what the golden frames could not prove, as sentences; none if they proved all."""
    if not acceptance.frames:
        return ['the bundle has no golden frames']
    if acceptance.only_class:
        return [only_class(acceptance.only_class, bundle)]
    if names := acceptance.unproven_classes:
        return [f'{len(names)} of {len(acceptance.pixels)} classes '
                + ('covers' if len(names) == 1 else 'cover') + ' less than 0.1% of the golden '
                f'frames and {"was" if len(names) == 1 else "were"} not judged: '
                + ', '.join(names)]
    return []


def only_class(name: str, bundle: str | os.PathLike[str] = _BUNDLE) -> str:
    """Return what it means that the golden frames show one class of several, and what to do."""
    look = command_line('preview', bundle, '--images', 'DIRECTORY')
    record = command_line('golden', bundle, '--images', 'DIRECTORY')
    return (f'the golden frames show next to nothing but {name}, so they prove next to nothing: '
            f'does the float network see anything ({look})? If so, and '
            'unless the other classes are as rare as that on every road, record golden frames '
            f'that show them, with: {record}')


def vehicle(record: Record) -> list[str]:
    """Return what a host's engine says of the vehicle's; nothing for an engine of the vehicle."""
    found = record.acceptance.vehicle
    if found is None:
        return []
    would = 'would be ' + ('refused: ' + '; '.join(causes(found.failures)) if found.failures
                           else 'as little proven' if record.acceptance.only_class
                           else 'accepted')
    lines = [
        "judged     by this CPU's own INT8 kernels, which count where "
        f'{record.inputs.backend} runs the network',
        f"vehicle    TensorRT's arithmetic, computed here: {_figures(found, 'int8')}; {would} "
        '(its own build, there, decides)']
    here = record.acceptance.agreement
    if (here is not None and found.agreement is not None
            and found.agreement - here > _LOSES_MORE):
        lines.append(f'           this CPU differs from the float network on {1 - here:.2%} of '
                     f"the pixels, the vehicle's arithmetic on {1 - found.agreement:.2%}: the "
                     "CPU's kernels round what each layer gives, too, not only what it reads")
    return lines


def batches(record: Record) -> list[str]:
    """Return what batches take, and which are used; nothing for an engine of single images."""
    if not record.batches:
        return []
    measured = ', '.join(f'{batch.size}: {batch.frame_ms:.2f}' for batch in record.batches)
    lines = [f'batches    milliseconds a frame {measured}; taken: '
             + ', '.join(map(str, record.batch_sizes))]
    return lines + [f'           {batch.size}: {batch.differs}' for batch in record.batches
                    if batch.differs]


def float_layers(record: Record) -> list[Layer]:
    """Return the layers that do not run in INT8: those of unknown work, then by their work."""
    return sorted((layer for layer in record.layers if layer.precision != 'int8'),
                  key=lambda layer: (layer.macs is not None, -(layer.macs or 0)))


def refusal(record: Record, bundle: str | os.PathLike[str] = _BUNDLE, *, tuned: bool = False,
            auto: bool = False) -> str:
    """
    Return why an engine is not accepted, and what there is to do, in one line.

    :param tuned: whether the calibration is the best of those that --tune tries
    :param auto: whether other precisions are tried anyway
    """
    acceptance = record.acceptance
    kinds = {failure.kind for failure in acceptance.failures}
    parts = ['; '.join(causes(acceptance.failures))]
    found = acceptance.vehicle
    if found is not None:
        parts.append(
            f"this judged the kernels of this machine's CPU; the vehicle's arithmetic gives "
            f'{_figures(found, "int8")} and '
            + ('would be refused too' if found.failures else 'would be accepted'))
        known = {(failure.kind, failure.subject) for failure in acceptance.failures}
        if others := [failure.text for failure in _named(found.failures)
                      if (failure.kind, failure.subject) not in known]:
            parts[-1] += f': {"; ".join(others)}'
    if NOTHING_JUDGED in kinds:
        parts.append('record golden frames in which the network sees its classes, with: '
                     + command_line('golden', bundle, '--images', 'DIRECTORY'))
    if INT8_UNKNOWN in kinds:
        unknown = [layer.name for layer in record.layers if layer.macs is None]
        parts.append(f'the work of {", ".join(unknown[:3])}{" ..." if len(unknown) > 3 else ""} '
                     'cannot be counted')
    if record.precision == 'int8' and kinds & {INT8_SHARE, INT8_UNKNOWN}:
        rest = float_layers(record)
        names = ', '.join(f'{layer.name} ({layer.reason})' for layer in rest[:3])
        parts.append(f'in float: {names}{" ..." if len(rest) > 3 else ""}')
        parts.append(_old_library(record) or (
            'if that is right for this network, lower acceptance.min_int8_share in model.yaml '
            '(and seal the bundle), or build with --allow-float'))
    if acceptance.only_class:
        parts.append(only_class(acceptance.only_class, bundle))
    elif record.precision == 'int8' and kinds & {AGREEMENT, CLASS_AGREEMENT}:
        if advice := ['calibrate with --tune'] * (not tuned) + [
                'build with --precision auto, which falls back to float (a node has the '
                'parameter precision)'] * (not auto):
            parts.append(', or '.join(advice))
    return '; '.join(parts)


def causes(failures: Sequence[Failure]) -> list[str]:
    """Return the limits that were not kept, of the classes the lowest and how many more."""
    named = _named(failures)
    more = len(failures) - len(named)
    return [failure.text for failure in named] + [
        f'and {counted(more, "more class", "more classes")} below it'] * bool(more)


def _named(failures: Sequence[Failure]) -> Sequence[Failure]:
    """Return the failures without those of all classes but the lowest, which come last."""
    general = sum(failure.kind != CLASS_AGREEMENT for failure in failures)
    return failures[:general + _LOWEST]


def _old_library(record: Record) -> str:
    """Return that the library is the cause of layers in float, and what to do, or ''."""
    version = [int(part) for part in record.inputs.version.split('.')[:2] if part.isdigit()]
    if record.inputs.backend != 'onnxruntime' or version >= [*_ALL_IN_INT8]:
        return ''
    first = '.'.join(map(str, _ALL_IN_INT8))
    return (f'ONNX Runtime {record.inputs.version} is old, and not the network to blame: before '
            f"{first} it leaves most convolutions with a bias in float; pip install "
            f"'onnxruntime>={first}' and build again")


def describe(record: Record, bundle: str | os.PathLike[str] = _BUNDLE) -> list[str]:
    """Return all that a plan's record says, as lines."""
    inputs, acceptance = record.inputs, record.acceptance
    identity = ', '.join(f'{key} {value}' for key, value in inputs.identity.items())
    how = f', {inputs.quantization} quantization' if inputs.quantization else ''
    lines = [
        f'plan       {record.key}',
        f'engine     {inputs.precision} for {inputs.backend} ({identity}){how}',
        f'built      {record.built} in {record.build_seconds:.1f} s by trt_segmentation '
        f'{record.package_version}',
        f'model      sha256 {inputs.model}',
    ]
    if inputs.cache is not None:
        lines.append(f'cache      sha256 {inputs.cache}')
    lines.append(f'int8       {_share(acceptance)} of the convolution work')
    if not record.vouched:
        lines.append('UNPROVEN   the record is one of 0.1.0, which has no hash; prove the engine '
                     f'again with: {command_line("build", bundle)}')
    lines += [f'WAIVED     {failure.text}, accepted with --allow-float'
              for failure in acceptance.waived]
    lines += [f'REFUSED    {failure.text}' for failure in acceptance.failures]
    lines += [f'UNPROVEN   {text}' for text in unproven(acceptance, bundle)]
    lines += vehicle(record)
    lines += batches(record)
    if acceptance.agreement is not None:
        lines.append(f'agreement  {acceptance.agreement:.4f} with the float network on '
                     f'{counted(len(acceptance.frames), "golden frame")}')
        lines += ['', *agreement_table(acceptance)]
    lines += ['', *layer_table(record.layers)]
    if record.log:
        lines += ['', 'build log:', *(f'  {line}' for line in record.log)]
    return lines


def _figures(figures: Figures, precision: str) -> str:
    """Return agreement and share of INT8 in words."""
    frames = len(figures.frames) if isinstance(figures, Acceptance) else 0
    parts = ['no agreement measured' if figures.agreement is None else
             f'agreement {figures.agreement:.4f}'
             + (f' with the float network on {counted(frames, "golden frame")}' if frames else '')]
    if precision == 'int8':
        parts.append(f'{_share(figures)} of the convolution work in INT8')
    return ', '.join(parts)


def _share(figures: Figures) -> str:
    """Return the share of INT8 in words."""
    return 'an unknown share' if figures.int8_share is None else f'{figures.int8_share:.1%}'


def _layer_rows(shown: list[Layer], of: Iterable[Layer]) -> list[str]:
    """Return a table of some layers, with their shares of the work of all."""
    total = max(sum(layer.macs or 0 for layer in of), 1)
    width = max((len(layer.name) for layer in shown), default=0)
    lines = [f'{"type":8} {"work":>6}  {"layer":{width}}  reason']
    lines += [
        f'{layer.precision:8} {(layer.macs or 0) / total:6.1%}  {layer.name:{width}}  '
        f'{layer.reason}' for layer in shown]
    return [line.rstrip() for line in lines]
