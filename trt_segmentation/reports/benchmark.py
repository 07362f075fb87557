# SPDX-License-Identifier: Apache-2.0
"""The report of a benchmark, as HTML, Markdown and text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from trt_segmentation import reports
from trt_segmentation.evaluation.benchmark import BASELINE, QUANTILES, TOTAL
from trt_segmentation.reports import share

Table = tuple[list[str], list[list[str]]]

NOTE = ('The form is that of the publication of this method, where a frame in the framework took '
        '242 ms, in which a vehicle at 35 mph travels about 12 feet.')
_TITLES = {BASELINE: 'framework (OpenCV DNN, CPU), FP32'}


def html(name: str, result: Mapping[str, Any], rows: list[dict[str, Any]], speed: str,
         provenance: Mapping[str, str]) -> str:
    """
    Return the page.

    :param name: of the bundle
    :param rows: what `benchmark.published_table` returned for `speed`
    """
    return reports.render(
        'benchmark.html', name=name, result=result, provenance=provenance, note=NOTE,
        speed=speed, published=published(rows), stages=stage_table(result),
        latency=_latency_picture(result), parts=_stage_picture(result),
        settings=settings(result))


def markdown(name: str, result: Mapping[str, Any], rows: list[dict[str, Any]], speed: str,
             provenance: Mapping[str, str]) -> str:
    """Return the tables as Markdown."""
    return '\n\n'.join([
        f'# Benchmark of {name}', f'A vehicle at {speed}. {NOTE}',
        reports.markdown_table(*published(rows)), reports.markdown_table(*stage_table(result)),
        reports.facts({**settings(result), **provenance})])


def text(result: Mapping[str, Any], rows: list[dict[str, Any]], speed: str) -> str:
    """Return the tables in columns."""
    return '\n'.join([reports.text_table(*stage_table(result)), '',
                      f'at {speed}:', reports.text_table(*published(rows)), '',
                      *(f'{key:<16} {value}' for key, value in settings(result).items())])


def comparison_text(comparison: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a comparison in columns."""
    return reports.text_table(*comparison_table(comparison))


def comparison_markdown(comparison: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a comparison as Markdown."""
    return reports.markdown_table(*comparison_table(comparison))


def published(rows: list[dict[str, Any]]) -> Table:
    """Return the published table's form."""
    head = ['network', 'class IoU %', 'category IoU %', 'p50 ms', 'p99 ms', 'speedup',
            'metres a frame', 'feet a frame']
    return head, [[_TITLES.get(row['engine'], row['engine']), share(row['class_iou']),
                   share(row['category_iou']), f'{row["p50_ms"]:.2f}', f'{row["p99_ms"]:.2f}',
                   f'{row["speedup"]:.2f}', f'{row["metres"]:.2f}', f'{row["feet"]:.1f}']
                  for row in rows]


def stage_table(result: Mapping[str, Any]) -> Table:
    """Return a row for each engine and stage."""
    head = ['engine', 'stage', *(f'{key} ms' for key in QUANTILES), 'max ms', 'frames/s']
    rows = []
    for name, figures in result['engines'].items():
        for stage, values in figures['stages'].items():
            rows.append([name, stage, *(f'{values[key]:.2f}' for key in (*QUANTILES, 'max')),
                         f'{figures["frames_per_second"]:.1f}' if stage == TOTAL else ''])
    return head, rows


def comparison_table(comparison: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a row for each engine and stage of a comparison."""
    head = ['engine', 'stage', 'first ms', 'second ms', 'change %', '95% interval',
            'drift %', 'verdict']
    return head, [[name, stage, f'{entry["first_ms"]:.2f}', f'{entry["second_ms"]:.2f}',
                   f'{entry["change_percent"]:+.1f}',
                   f'{entry["low_percent"]:+.1f} to {entry["high_percent"]:+.1f}',
                   f'{entry["drift_percent"]:.1f}', entry['verdict']]
                  for name, stages in comparison.items() for stage, entry in stages.items()]


def settings(result: Mapping[str, Any]) -> dict[str, str]:
    """Return how it was measured, in words."""
    height, width = result['settings']['image_size']
    found = {'frames': f'{result["settings"]["frames"]} of {width}x{height} pixels for each '
                       f'engine, after {result["settings"]["warmup"]} to warm up'}
    for name, figures in result['engines'].items():
        if figures['warmup_ms']:
            found[f'first of {name}'] = f'{figures["warmup_ms"][0]:.1f} ms'
    for when in ('before', 'after'):
        for key, value in result[f'machine_{when}'].items():
            found[f'{key} {when}'] = value
    return found


def _latency_picture(result: Mapping[str, Any]) -> str:
    """Return a picture of the share of frames that were done after a time."""
    figure = reports.new_figure(9, 4)
    axes = figure.add_subplot()
    for name, figures in result['engines'].items():
        times = np.sort(figures['samples_ms'][TOTAL])
        axes.step(times, 100 * np.arange(1, len(times) + 1) / len(times), where='post',
                  label=f'{name} (p50 {figures["stages"][TOTAL]["p50"]:.1f} ms)')
    axes.set_xscale('log')
    axes.set_xlabel('end to end, ms')
    axes.set_ylabel('frames done, %')
    axes.grid(alpha=0.3, which='both')
    axes.legend(loc='lower right')
    return reports.figure_uri(figure)


def _stage_picture(result: Mapping[str, Any]) -> str:
    """Return a picture of the stages' medians, one bar an engine."""
    engines = result['engines']
    figure = reports.new_figure(9, 1 + 0.6 * len(engines))
    axes = figure.add_subplot()
    left = np.zeros(len(engines))
    stages = list(dict.fromkeys(stage for figures in engines.values()
                                for stage in figures['stages'] if stage != TOTAL))
    for stage in stages:
        widths = np.array([figures['stages'].get(stage, {}).get('p50', 0)
                           for figures in engines.values()])
        axes.barh(list(engines), widths, left=left, label=stage)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel('median, ms')
    axes.legend()
    return reports.figure_uri(figure)
