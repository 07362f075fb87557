# SPDX-License-Identifier: Apache-2.0
"""The report of a calibration: one page that shows whether to trust it."""

from __future__ import annotations

from collections.abc import Sequence
import statistics
from typing import Any

import numpy as np

from trt_segmentation import reports
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.manifest import Manifest, Scale
from trt_segmentation.calibration import methods
from trt_segmentation.calibration.calibrator import Calibrator
from trt_segmentation.calibration.histogram import Histogram
from trt_segmentation.calibration.selection import Impression
from trt_segmentation.errors import missing_library

# The tensors that lose most are drawn large, with their curves; of the others, small histograms.
_LARGE, _SMALL, _COLUMNS = 8, 120, 6
_POINTS = 96  # bars of a drawn histogram
_BLUE, _RED, _GRAY = '#2b6cb0', '#b3261e', '#8a8a93'


def check_libraries() -> None:
    """Raise InputError if a library is missing: before the calibration, not after it."""
    reports.new_figure(1, 1)
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise missing_library('jinja2', 'Writing a report (leave it out with --no-report)',
                              'cpu') from None


def html(bundle: Bundle, manifest: Manifest, calibrator: Calibrator,
         impressions: Sequence[Impression]) -> str:
    """
    Return the page.

    :param manifest: what goes into calibration.json
    :param calibrator: with the statistics of all images
    :param impressions: of the images that were used
    """
    worst_first = sorted(manifest.tensors.items(),
                         key=lambda item: (item[1].sqnr_db is None, item[1].sqnr_db or 0))
    counted = [name for name, tensor in worst_first if tensor.sqnr_db is not None]
    return reports.render(
        'calibration.html', name=bundle.path.absolute().name, manifest=manifest,
        provenance=reports.provenance(bundle), tensors=worst_first,
        thumbnails=[(impression, reports.jpeg_uri(impression.thumbnail))
                    for impression in impressions],
        impressions=_impressions(impressions),
        convergence=_convergence(manifest, calibrator),
        growth=_growth(calibrator, counted),
        large=[(name, manifest.tensors[name],
                _large(calibrator.statistics[name].histogram, manifest.tensors[name]))
               for name in counted[:_LARGE]],
        small=_small([(name, calibrator.statistics[name].histogram, manifest.tensors[name])
                      for name in counted[_LARGE:_LARGE + _SMALL]]),
        undrawn=max(0, len(counted) - _LARGE - _SMALL))


def _convergence(manifest: Manifest, calibrator: Calibrator) -> list[dict[str, Any]]:
    """Return how far the thresholds that fewer images give are from those of all, in percent."""
    differences: dict[int, list[tuple[float, str]]] = {}
    percentile = manifest.parameters.get('percentile', 100.0)
    for name, tensor in manifest.tensors.items():
        if tensor.method != manifest.method or not tensor.threshold:
            continue
        for images, histogram in calibrator.statistics[name].earlier.items():
            earlier = methods.find(tensor.method, histogram, percentile=percentile).value
            differences.setdefault(images, []).append(
                (abs(earlier / tensor.threshold - 1) * 100, name))
    return [{'images': images, 'median': statistics.median(value for value, _ in found),
             'largest': max(found)[0], 'tensor': max(found)[1]}
            for images, found in sorted(differences.items())]


def _impressions(impressions: Sequence[Impression]) -> str:
    """Return a picture of the images' brightness and contrast."""
    figure = reports.new_figure(5, 3)
    axes = figure.add_subplot()
    axes.scatter([impression.brightness for impression in impressions],
                 [impression.contrast for impression in impressions], s=14, color=_BLUE,
                 alpha=0.6, linewidths=0)
    axes.set(xlim=(0, 255), ylim=(0, 100), xlabel='brightness (mean gray value)',
             ylabel='contrast (deviation)')
    return reports.figure_uri(figure)


def _growth(calibrator: Calibrator, names: Sequence[str]) -> str:
    """Return a picture of each tensor's range after each number of images."""
    figure = reports.new_figure(5, 3)
    axes = figure.add_subplot()
    numbers = np.arange(1, calibrator.images + 1)
    curves = []
    for name in names:
        growth = calibrator.statistics[name].growth
        at = np.searchsorted([images for images, _ in growth], numbers, side='right') - 1
        values = np.array([amax for _, amax in growth])
        curves.append(np.where(at >= 0, values[at], 0) / values[-1])
    for curve in curves:
        axes.step(numbers, curve, where='post', color=_GRAY, alpha=0.25, linewidth=0.8)
    if curves:
        axes.step(numbers, np.median(curves, axis=0), where='post', color=_BLUE, linewidth=2)
    axes.set(xlabel='images', ylabel='range, of the final one', ylim=(0, 1.05))
    return reports.figure_uri(figure)


def _large(histogram: Histogram, tensor: Scale) -> str:
    """Return a picture of a histogram with its threshold, and what other thresholds would do."""
    figure = reports.new_figure(9, 2.4)
    left, right = figure.subplots(1, 2)
    _draw(left, histogram, tensor.threshold)
    left.set(xlabel='magnitude', ylabel='values')
    counts = histogram.counts
    if len(counts) > methods.CODES:
        kept = np.arange(methods.CODES, len(counts) + 1, max(1, len(counts) // 400))
        middles = np.arange(len(counts)) + 0.5
        noise = methods.squared_errors(counts, kept) / (counts * middles ** 2).sum()
        right.plot(kept * histogram.width, -10 * np.log10(noise), color=_BLUE)
        right.set_xlabel('threshold')
        right.set_ylabel('signal to noise, dB', color=_BLUE)
        divergence = methods.divergences(methods.without_zero_spike(counts))
        other = right.twinx()
        other.plot(np.arange(methods.LEVELS, len(counts) + 1) * histogram.width, divergence,
                   color=_GRAY, linewidth=0.9)
        other.set_yscale('log')
        other.set_ylabel('KL divergence', color=_GRAY)
        right.axvline(tensor.threshold, color=_RED, linewidth=1)
    return reports.figure_uri(figure)


def _small(tensors: Sequence[tuple[str, Histogram, Scale]]) -> str:
    """Return one picture of many histograms, without scales; '' for none."""
    if not tensors:
        return ''
    rows = -(-len(tensors) // _COLUMNS)
    figure = reports.new_figure(11, 1.05 * rows)
    figure.set_layout_engine('none')  # the constrained layout takes seconds for so many
    for i, (name, histogram, tensor) in enumerate(tensors):
        row, column = divmod(i, _COLUMNS)
        axes = figure.add_axes(((column + 0.03) / _COLUMNS, 1 - (row + 0.8) / rows,
                                0.94 / _COLUMNS, 0.6 / rows))
        _draw(axes, histogram, tensor.threshold)
        axes.set_axis_off()
        axes.set_title(name if len(name) <= 28 else f'...{name[-26:]}', fontsize=6, pad=2)
    return reports.figure_uri(figure)


def _draw(axes: Any, histogram: Histogram, threshold: float) -> None:
    """Draw a histogram with few bars, and the threshold."""
    counts = histogram.counts
    merged = -(-len(counts) // _POINTS)
    padded = np.pad(counts, (0, -len(counts) % merged)).reshape(-1, merged).sum(axis=1)
    edges = np.arange(len(padded) + 1) * merged * histogram.width
    axes.stairs(padded, edges, fill=True, color=_BLUE, alpha=0.75)
    axes.set_yscale('symlog', linthresh=1)
    axes.axvline(threshold, color=_RED, linewidth=1)
    axes.set_xlim(0, edges[-1])
