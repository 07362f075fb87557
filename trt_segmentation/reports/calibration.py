# SPDX-License-Identifier: Apache-2.0
"""The report of a calibration: one page that shows whether to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
import os
import statistics
from typing import Any, TYPE_CHECKING

import numpy as np

from trt_segmentation import reports
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.manifest import (
    CALIBRATION_IMAGES,
    GOLDEN_FRAMES,
    Manifest,
    Scale,
)
from trt_segmentation.engines.record import Figures
from trt_segmentation.engines.summary import only_class
from trt_segmentation.errors import command_line, counted, missing_library
from trt_segmentation.reports import Table, Verdict
from trt_segmentation.system.files import readable

if TYPE_CHECKING:
    from trt_segmentation.calibration.selection import Impression

# The tensors that lose most are drawn large, with their curves; of the others, small histograms.
LARGE = 8
_SMALL, _COLUMNS = 120, 4
_POINTS = 96  # bars of a drawn histogram
_BLUE, _RED, _GRAY = '#2b6cb0', '#b3261e', '#6f6f78'


@dataclass(frozen=True)
class Curve:
    """Values by threshold, two arrays of one length."""

    thresholds: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Distribution:
    """
    How the magnitudes of one tensor are distributed.

    counts: by bins of `width`, the first one starting at 0
    growth: (number of images, largest magnitude) each time that it grew; empty if only the last
        is known
    earlier: the threshold that fewer images would have given, by their number
    noise, divergence: signal to noise (dB) and KL divergence; None where they are not drawn
    """

    counts: np.ndarray
    width: float
    growth: Sequence[tuple[int, float]]
    earlier: Mapping[int, float]
    noise: Curve | None
    divergence: Curve | None


@dataclass(frozen=True)
class Judged:
    """
    What INT8 gives on the golden frames in the vehicle's arithmetic, and the limits it misses.

    frames: their number; unjudged: classes that they do not show, or too little of
    only: the class beside which they show a trace of others, which proves nothing; or ''
    differs: whether limits on agreement are among those that are missed
    """

    frames: int
    figures: Figures
    failures: tuple[str, ...]
    unjudged: tuple[str, ...]
    only: str = ''
    differs: bool = False


def check_libraries() -> None:
    """Raise InputError if a library is missing: before the calibration, not after it."""
    reports.new_figure(1, 1)
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise missing_library('jinja2', 'Writing a report (leave it out with --no-report)',
                              'cpu') from None


def worst_first(manifest: Manifest) -> list[str]:
    """Return the tensors whose loss was measured, the one that loses most first."""
    measured = {name: tensor.sqnr_db for name, tensor in manifest.tensors.items()
                if tensor.sqnr_db is not None}
    return sorted(measured, key=measured.__getitem__)


def html(bundle: Bundle, manifest: Manifest, distributions: Mapping[str, Distribution],
         impressions: Sequence[Impression], judged: Judged | None, *,
         limits: tuple[float, float, float]) -> str:
    """
    Return the page.

    :param manifest: what goes into calibration.json
    :param distributions: of the tensors whose loss was measured
    :param impressions: of the images that were used
    :param judged: None without golden frames
    :param limits: gray values 0..255 that warnings go by: an image is dark below the first,
        bright above the second, of low contrast with a deviation below the third
    """
    names = worst_first(manifest)
    rest = [name for name in manifest.tensors if name not in distributions]
    histories = [found.growth for found in distributions.values() if found.growth]
    first = manifest.extension.images_before if manifest.extension else 1
    return reports.render(
        'calibration.html', name=bundle.path.absolute().name, manifest=manifest,
        provenance=reports.provenance(bundle), verdicts=verdicts(
            manifest, judged, reports.without_directories(readable(bundle.path), bundle.path)),
        table=_table(manifest, [*names, *rest]),
        thumbnails=impressions, impressions=_impressions(impressions, limits),
        convergence=_convergence(manifest, distributions),
        growth=_growth(histories, first, len(impressions)), growth_from=first,
        growth_unknown=len(distributions) - len(histories),
        large=[(name, manifest.tensors[name],
                _large(distributions[name], manifest.tensors[name])) for name in names[:LARGE]],
        small=_small([(name, distributions[name], manifest.tensors[name])
                      for name in names[LARGE:LARGE + _SMALL]]),
        equalizations=[[trial.name, reports.share(trial.agreement), reports.share(trial.iou)]
                       for trial in (manifest.equalization.trials if manifest.equalization
                                     else ())],
        extensions=[[each.name, str(each.frames), reports.share(each.agreement_before),
                     reports.share(each.agreement_after),
                     _class(each.worst_before, each.worst_agreement_before),
                     _class(each.worst_after, each.worst_agreement_after)]
                    for each in (manifest.extension.sets if manifest.extension else ())],
        undrawn=max(0, len(names) - LARGE - _SMALL))


def _class(name: str, agreement: float | None) -> str:
    """Return a class with its agreement, for a table."""
    return f'{name} {reports.share(agreement)}' if name else ''


def verdicts(manifest: Manifest, judged: Judged | None,
             bundle: str | os.PathLike[str] = 'BUNDLE') -> list[Verdict]:
    """
    Return whether the calibration is to be trusted, and what its images lack.

    :param bundle: its path in the commands that a sentence has
    """
    found = [trusted(manifest, judged, bundle)]
    found[0] = replace(found[0], answer=f'Is this calibration to be trusted? {found[0].answer}')
    lacks = [*_few(manifest, judged), *(manifest.coverage.warnings if manifest.coverage else ())]
    if judged is not None and judged.unjudged:
        lacks.insert(0, f'not judged, because the golden frames show too little of them: '
                        f'{", ".join(judged.unjudged)}')
    if lacks:
        found.append(Verdict('warn', 'What it does not know', lacks))
    return found


def trusted(manifest: Manifest, judged: Judged | None, bundle: str | os.PathLike[str] = 'BUNDLE'
            ) -> Verdict:
    """
    Return whether the calibration is to be trusted, and why.

    :param bundle: its path in the commands that a sentence has
    """
    only = [only_class(judged.only, bundle)] if judged is not None and judged.only else []
    if judged is None:
        record = command_line('golden', bundle, '--images', 'DIRECTORY')
        return Verdict('warn', 'That is not known, because', [
            "TensorRT's own calibrator was taken: build judges what comes of it"
            if manifest.counts and manifest.counts.golden else
            'there are no golden frames to judge it by; hold some out with --golden, or record '
            f'some with: {record}'])
    if judged.failures:
        return Verdict('bad', "No: this bundle's limits would refuse it, because",
                       [*judged.failures, *only, _where(judged)])
    if only:
        return Verdict('warn', 'That is not known, because', [*only, _where(judged)])
    reasons = [*_reasons(judged), _where(judged)]
    if _few(manifest, judged):
        return Verdict('warn', "Yes, as far as so few pictures tell: this bundle's limits would "
                               'accept it, because', reasons)
    return Verdict('good', "Yes: this bundle's limits would accept it, because", reasons)


def _few(manifest: Manifest, judged: Judged | None) -> list[str]:
    """Return that there were fewer images or golden frames than a calibration takes."""
    found = []
    used = manifest.counts.used if manifest.counts else CALIBRATION_IMAGES
    if used < CALIBRATION_IMAGES:
        found.append(f'{counted(used, "image")} to calibrate with: {CALIBRATION_IMAGES} of '
                     'different places and weather are better')
    if judged is not None and judged.frames < GOLDEN_FRAMES:
        found.append(f'{counted(judged.frames, "golden frame")} to judge by: {GOLDEN_FRAMES} or '
                     'more prove more')
    return found


def _reasons(judged: Judged) -> list[str]:
    """Return what speaks for a calibration."""
    figures = judged.figures
    found = []
    if figures.agreement is not None:
        found.append(f'INT8 gives {figures.agreement:.2%} of the pixels the class that the float '
                     'network gives them')
    if figures.classes:
        lowest = min(figures.classes, key=figures.classes.__getitem__)
        found.append(f'the class that suffers most, {lowest}, keeps '
                     f'{figures.classes[lowest]:.2%} of its pixels')
    if figures.int8_share is not None:
        found.append(f'{figures.int8_share:.1%} of the convolution work is in INT8')
    return found


def _where(judged: Judged) -> str:
    """Return what a calibration was judged by."""
    return (f'measured on {counted(judged.frames, "golden frame")}, which it was not made from, '
            "with TensorRT's codes computed on the CPU: int8-vehicle")


def _table(manifest: Manifest, names: Sequence[str]) -> Table:
    """Return a row for each tensor."""
    rows = []
    for name in names:
        tensor = manifest.tensors[name]
        rows.append([
            name, '-' if tensor.sqnr_db is None else f'{tensor.sqnr_db:.1f}', tensor.method or '-',
            f'{tensor.amax:.4g}', f'{tensor.threshold:.4g}', reports.share(tensor.clipped, 4),
            f'{tensor.scale:.4g}'])
    return ['tensor', 'signal to noise, dB', 'method', 'largest', 'threshold', 'clipped %',
            'scale'], rows


def _convergence(manifest: Manifest, distributions: Mapping[str, Distribution]
                 ) -> list[dict[str, Any]]:
    """Return how far the thresholds that fewer images give are from those of all, in percent."""
    differences: dict[int, list[tuple[float, str]]] = {}
    for name, distribution in distributions.items():
        threshold = manifest.tensors[name].threshold
        for images, earlier in distribution.earlier.items():
            if threshold:
                differences.setdefault(images, []).append(
                    (abs(earlier / threshold - 1) * 100, name))
    return [{'images': images, 'median': statistics.median(value for value, _ in found),
             'largest': max(found)[0], 'tensor': max(found)[1]}
            for images, found in sorted(differences.items())]


def _impressions(impressions: Sequence[Impression], limits: tuple[float, float, float]) -> str:
    """Return a picture of the images' brightness and contrast, with the limits of warnings."""
    figure = reports.new_figure(5, 3)
    axes = figure.add_subplot()
    axes.scatter([impression.brightness for impression in impressions],
                 [impression.contrast for impression in impressions], s=14, color=_BLUE,
                 alpha=0.6, linewidths=0)
    dark, bright, flat = limits
    style = {'color': _RED, 'linewidth': 0.8, 'linestyle': '--'}
    axes.axvline(dark, **style)
    axes.axvline(bright, **style)
    axes.axhline(flat, **style)
    for x, y, text, side in ((dark, 96, 'dark ', 'right'), (bright, 96, ' bright', 'left'),
                             (253, flat - 1, 'low contrast', 'right')):
        axes.text(x, y, text, ha=side, va='top', fontsize=8, color=_RED)
    axes.set(xlim=(0, 255), ylim=(0, 100), xlabel='brightness (mean gray value)',
             ylabel='contrast (deviation)')
    return reports.figure_uri(figure)


def _growth(histories: Sequence[Sequence[tuple[int, float]]], first: int, images: int) -> str:
    """Return a picture of each tensor's range after each number of images, `first` to `images`."""
    figure = reports.new_figure(5, 3)
    axes = figure.add_subplot()
    numbers = np.arange(first, images + 1)
    curves = []
    for history in histories:
        after, ranges = zip(*history)
        at = np.searchsorted(after, numbers, side='right') - 1
        values = np.array(ranges)
        curves.append(np.where(at >= 0, values[at], 0) / values[-1])
    for curve in curves:
        axes.step(numbers, curve, where='post', color=_GRAY, alpha=0.25, linewidth=0.8)
    if curves:
        axes.step(numbers, np.median(curves, axis=0), where='post', color=_BLUE, linewidth=2)
    axes.set(xlabel='images', ylabel='range, of the final one', ylim=(0, 1.05))
    return reports.figure_uri(figure)


def _large(distribution: Distribution, tensor: Scale) -> str:
    """Return a picture of a histogram with its threshold, and what other thresholds would do."""
    figure = reports.new_figure(6.6, 2.3)
    left, right = figure.subplots(1, 2)
    _draw(left, distribution, tensor.threshold)
    left.set_xlabel('magnitude')
    left.set_ylabel('values')
    if distribution.noise is not None and distribution.divergence is not None:
        right.plot(distribution.noise.thresholds, distribution.noise.values, color=_BLUE)
        right.set_xlabel('threshold')
        right.set_ylabel('signal to noise, dB', color=_BLUE)
        other = right.twinx()
        other.plot(distribution.divergence.thresholds, distribution.divergence.values,
                   color=_GRAY, linewidth=0.9)
        other.set_yscale('log')
        reports.plain_numbers(other.yaxis)
        other.set_ylabel('KL divergence', color=_GRAY)
        right.axvline(tensor.threshold, color=_RED, linewidth=1)
    for axes in figure.axes:
        axes.tick_params(labelsize=8)
    return reports.figure_uri(figure)


def _small(tensors: Sequence[tuple[str, Distribution, Scale]]) -> str:
    """Return one picture of many histograms, without scales; '' for none."""
    if not tensors:
        return ''
    rows = -(-len(tensors) // _COLUMNS)
    figure = reports.new_figure(6.6, 0.95 * rows)
    figure.set_layout_engine('none')  # the constrained layout takes seconds for so many
    for i, (name, distribution, tensor) in enumerate(tensors):
        row, column = divmod(i, _COLUMNS)
        axes = figure.add_axes(((column + 0.03) / _COLUMNS, 1 - (row + 0.8) / rows,
                                0.94 / _COLUMNS, 0.6 / rows))
        _draw(axes, distribution, tensor.threshold)
        axes.set_axis_off()
        axes.set_title(name if len(name) <= 28 else f'...{name[-26:]}', fontsize=6, pad=2)
    return reports.figure_uri(figure)


def _draw(axes: Any, distribution: Distribution, threshold: float) -> None:
    """Draw a histogram with few bars, and the threshold."""
    counts = distribution.counts
    merged = -(-len(counts) // _POINTS)
    padded = np.pad(counts, (0, -len(counts) % merged)).reshape(-1, merged).sum(axis=1)
    edges = np.arange(len(padded) + 1) * merged * distribution.width
    axes.stairs(padded, edges, fill=True, color=_BLUE, alpha=0.75)
    axes.set_yscale('symlog', linthresh=1)
    reports.plain_numbers(axes.yaxis, symmetric=True)
    axes.axvline(threshold, color=_RED, linewidth=1)
    axes.set_xlim(0, edges[-1])
