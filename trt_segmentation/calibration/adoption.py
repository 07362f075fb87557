# SPDX-License-Identifier: Apache-2.0
"""Taking over a calibration cache that another tool made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
import math
import os
from pathlib import Path

from trt_segmentation.bundles import cache, form, golden, manifest
from trt_segmentation.bundles.bundle import (
    Bundle,
    CACHE_NAME,
    EQUALIZED_NAME,
    MANIFEST_NAME,
    MEMORY_NAME,
    REPORT_NAME,
)
from trt_segmentation.bundles.cache import Cache, Coverage
from trt_segmentation.bundles.manifest import int8_network
from trt_segmentation.calibration.observer import Observer
from trt_segmentation.errors import CheckFailed, command_line, counted, InputError
from trt_segmentation.networks import activations as graph
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.placement import quantized_tensors
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.system import files

# What a scale may hold, of the values' largest magnitude. The input's is known; a calibrator may
# clip a long tail far below it, and other images than the golden frames may reach beyond them.
_LEAST_INPUT, _MOST_INPUT = 0.25, 1.1
_LEAST, _MOST = 1 / 64, 8.0

# What is about another cache, and what goes with it.
_REMOVED = {
    EQUALIZED_NAME: 'the derived network: INT8 engines will be made of the original',
    MEMORY_NAME: 'without which calibrate --extend cannot go on from those images',
    REPORT_NAME: 'the report of that calibration',
}


def coverage(bundle: Bundle, scales: Cache) -> Coverage:
    """Match a cache against all activations of a bundle's network, and of the derived one."""
    networks = (onnx_model.load(bundle.path / file)
                for file in {bundle.spec.model: None, int8_network(bundle).file: None})
    return cache.coverage(scales, [layer for network in networks
                                   for layer in graph.layers(network)])


@dataclass(frozen=True)
class Implausible:
    """
    A scale that does not fit the values of its tensor.

    amax: what the scale holds, 127 of it; seen: the largest magnitude of the golden frames, or of
    any image for the input tensor
    """

    tensor: str
    amax: float
    seen: float

    def __str__(self) -> str:
        """Return it in words."""
        return f'{self.tensor}: the scale is for {self.amax:.6g}, the values reach {self.seen:.6g}'


def adopt(bundle: str | os.PathLike[str], path: str | os.PathLike[str], *,
          allow_missing: bool = False, allow_implausible: bool = False,
          say: Callable[[str], None] = lambda line: None) -> Coverage:
    """
    Put another tool's cache into a bundle, with a manifest that says so.

    Its scales are kept to the bit, whatever they are; those that are not positive, finite and of
    a magnitude that can be computed with count as missing.

    :param path: a cache in TensorRT's text format
    :param allow_missing: adopt it although layers would run in float for want of a scale
    :param allow_implausible: adopt it although its last line is cut, or scales do not fit the
        preprocessing or what the golden frames show
    :param say: takes a line each of what does not fit, and of what is replaced or removed
    :raises InputError: if either cannot be read, or the cache is one of a bundle and not the one
        that its manifest names, or the one that this bundle was calibrated with
    :raises CheckFailed: if a tensor that INT8 layers read or write has no usable scale, or one
        that does not fit
    """
    foreign = Cache.read(os.fspath(path))
    replaces = (CACHE_NAME, MANIFEST_NAME, *_REMOVED)
    with Bundle.changing(bundle, replaces) as (opened, change):
        _check_vouched(opened, Path(path).resolve())
        model = onnx_model.load(opened.model_path)
        result = cache.coverage(foreign, graph.layers(model))
        needed = quantized_tensors(model, opened.spec.calibration.exclude)
        missing = [name for name in result.missing if name in needed]
        if missing and not allow_missing:
            raise CheckFailed(
                f'{path}: no usable scale for {len(missing)} of '
                f'{counted(len(needed), "quantized tensor")}, the first is {missing[0]!r} of '
                f'layer {result.missing[missing[0]][0]!r}; was the cache '
                f'made for {opened.spec.model}? To run such layers in float, add --allow-missing')
        _check_plausible(opened, foreign, needed, str(path), allow_implausible, say)
        document = manifest.new(
            opened, foreign, method='adopted',
            adopted=manifest.Adopted(
                files.sha256_file(path), os.path.basename(path),
                f'TRT-{foreign.version}-{foreign.algorithm}',
                tuple(sorted(result.missing)), tuple(sorted(result.stale))),
            tensors={name: manifest.Scale(scale, foreign.amax(name))
                     for name, scale in foreign.usable().items()})
        for line in _replaced(opened):
            say(line)
        change.write(CACHE_NAME, foreign.to_bytes())
        change.write(MANIFEST_NAME, form.to_json(document))
        for name in _REMOVED:
            change.remove(name)
        change.commit()
    return result


def _check_vouched(bundle: Bundle, path: Path) -> None:
    """Raise InputError for a bundle's cache that was changed, or that is this bundle's own."""
    beside = path.with_name(MANIFEST_NAME)
    if path.name != CACHE_NAME or not beside.exists():
        return
    document = manifest.read(beside)
    if files.sha256_file(path) != document.cache.sha256:
        raise InputError(f'{path}: not the cache that {beside.name} beside it names: one of them '
                         'was changed; copy that bundle again from where it was calibrated, or '
                         "calibrate it anew (another tool's cache is adopted from outside of a "
                         'bundle)')
    if path.parent == bundle.path.resolve() and not document.adopted:
        raise InputError(f'{path}: this bundle was calibrated with it; there is nothing to adopt')


def _replaced(bundle: Bundle) -> Iterator[str]:
    """Yield a line for each thing that a foreign cache takes the place of."""
    if before := manifest.in_words(bundle):
        yield f'replaces {CACHE_NAME} and {MANIFEST_NAME}, {before}'
    for name, meaning in _REMOVED.items():
        if (bundle.path / name).exists():
            yield f'removes {name}, {meaning}'


def implausible(bundle: Bundle, scales: Cache, needed: Collection[str]) -> list[Implausible]:
    """
    Return the scales that do not fit the values, those that are farthest off first.

    The input tensor's is compared with what mean, scale and pixels 0..255 give; the others with
    what the float network computes of the golden frames, if there are any.

    :param needed: the tensors whose scales matter
    """
    usable = scales.usable()
    spec = bundle.spec.input
    found = []
    if spec.tensor in usable and not (
            _LEAST_INPUT * spec.amax <= scales.amax(spec.tensor) <= _MOST_INPUT * spec.amax):
        found.append(Implausible(spec.tensor, scales.amax(spec.tensor), spec.amax))
    for name, seen in _golden_ranges(bundle).items():
        if name in usable and name in needed and name != spec.tensor and seen > 0 and not (
                _LEAST * seen <= scales.amax(name) <= _MOST * seen):
            found.append(Implausible(name, scales.amax(name), seen))
    return sorted(found, key=lambda each: -abs(math.log(each.amax / each.seen)))


def _check_plausible(bundle: Bundle, foreign: Cache, needed: Collection[str], path: str,
                     allowed: bool, say: Callable[[str], None]) -> None:
    """Say what is suspicious about a foreign cache; raise CheckFailed unless that is allowed."""
    reasons = []
    if not foreign.whole:
        reasons.append('its last line has no end, so the file may be cut short')
    wrong = implausible(bundle, foreign, needed)
    for each in wrong:
        say(str(each))
    if wrong:
        reasons.append(f'{len(wrong)} of {counted(len(needed), "scale does", "scales do")} not '
                       f'fit the values, first {wrong[0]}: was it made for another network '
                       'or preprocessing?')
    if not golden.paths(bundle.golden_path):
        say('the bundle has no golden frames, so only the scale of the input was compared with '
            'values: record some first, with: '
            + command_line('golden', bundle.path, '--images', 'DIRECTORY'))
    if reasons and not allowed:
        raise CheckFailed(f'{path}: {"; ".join(reasons)}; to adopt it all the same, add '
                          '--allow-implausible')


def _golden_ranges(bundle: Bundle) -> dict[str, float]:
    """Return the largest magnitude of each activation over the golden frames."""
    frames = list(golden.read(bundle.golden_path))
    if not frames:
        return {}
    spec = bundle.spec.input
    observer = Observer(bundle.model_path, spec.tensor, spec.size, values=False)
    preprocess = Preprocessor(spec)
    found: dict[str, float] = {}
    for _, image, _ in frames:
        for part in observer(preprocess(image)):
            for name, (smallest, largest) in part.ranges.items():
                found[name] = max(found.get(name, 0.0), largest, -smallest)
    return found
