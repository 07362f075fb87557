# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation, as HTML, Markdown and text."""

from __future__ import annotations

from typing import Any

import numpy as np

from trt_segmentation import reports
from trt_segmentation.evaluation.evaluate import Evaluation
from trt_segmentation.reports import points, share

Table = tuple[list[str], list[list[str]]]

_LOSERS = 5


def html(name: str, evaluation: Evaluation, provenance: dict[str, str],
         verdict: list[str] | None) -> str:
    """
    Return the page.

    :param name: of the bundle
    :param verdict: the limits that were not kept; None if there were none
    """
    summary = evaluation.summary()
    engines = summary['engines']
    return reports.render(
        'evaluation.html', name=name, summary=summary, provenance=provenance,
        verdict=verdict, others=list(engines)[1:], overview=overview(summary),
        classes=class_table(summary), categories=category_table(summary),
        colors={label.name: label.color for label in evaluation.labels.classes},
        losers=losers(summary),
        confusions={engine: _confusion_picture(summary['classes'], figures['confusion'])
                    for engine, figures in engines.items() if 'confusion' in figures},
        worst={engine: [{'name': worst.name, 'agreement': worst.agreement,
                         'picture': reports.jpeg_uri(worst.picture)} for worst in entries]
               for engine, entries in evaluation.worst.items()})


def markdown(name: str, evaluation: Evaluation, provenance: dict[str, str]) -> str:
    """Return the tables as Markdown."""
    summary = evaluation.summary()
    parts = [f'# Evaluation of {name}', f'{_frames(summary)}.',
             reports.markdown_table(*overview(summary)),
             reports.markdown_table(*class_table(summary))]
    if categories := category_table(summary):
        parts.append(reports.markdown_table(*categories))
    return '\n\n'.join([*parts, reports.facts(provenance)])


def text(evaluation: Evaluation) -> str:
    """Return the tables in columns."""
    summary = evaluation.summary()
    lines = [f'frames     {_frames(summary)}', '',
             reports.text_table(*overview(summary)), '',
             reports.text_table(*class_table(summary))]
    if categories := category_table(summary):
        lines += ['', reports.text_table(*categories)]
    for engine, entries in losers(summary).items():
        lines += ['', f'{engine} lost most: ' + ', '.join(
            f'{label} {value}' for label, value in entries)]
    for engine, figures in summary['engines'].items():
        for worst in figures.get('worst_frames', [])[:3]:
            lines.append(f'{engine} changed most: {worst["name"]} '
                         f'({share(worst["agreement"])}% agree)')
    return '\n'.join(lines)


def overview(summary: dict[str, Any]) -> Table:
    """Return a row for each engine."""
    truth = summary['frames_with_truth'] > 0
    reference = summary['reference']
    compared = len(summary['engines']) > 1
    head = ['engine']
    if truth:
        head += ['class IoU', 'category IoU', 'accuracy']
        head += ['class IoU loss', 'category IoU loss'] if compared else []
    if compared:
        head += [f'agreement with {reference}', f'IoU with {reference}', 'worst frame']
    rows = []
    for engine, figures in summary['engines'].items():
        row = [engine]
        if truth:
            row += [share(figures[f'mean_{kind}_iou']) for kind in ('class', 'category')]
            row.append(share(figures['pixel_accuracy']))
        if truth and compared:
            row += [points(figures.get(f'mean_{kind}_iou_loss')) for kind in (
                'class', 'category')]
        if compared:
            row += [share(figures.get('agreement')), share(figures.get('mean_iou_with_reference')),
                    share(figures.get('frame_agreement', {}).get('min'))]
        rows.append(row)
    return head, rows


def class_table(summary: dict[str, Any]) -> Table:
    """Return a row for each class."""
    return _by_name(summary, 'class', summary['classes'])


def category_table(summary: dict[str, Any]) -> Table | None:
    """Return a row for each category; None without true masks."""
    if not summary['frames_with_truth']:
        return None
    return _by_name(summary, 'category',
                    list(summary['engines'][summary['reference']]['category_iou']))


def losers(summary: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Return the classes that lost most, with the points they lost, for each engine."""
    found = {}
    for engine, figures in summary['engines'].items():
        losses = [(value, label) for label, value in figures.get('class_iou_loss', {}).items()
                  if value > 0]
        if losses:
            found[engine] = [(label, f'{value:.2f}')
                             for value, label in sorted(losses, reverse=True)[:_LOSERS]]
    return found


def _by_name(summary: dict[str, Any], kind: str, names: list[str]) -> Table:
    """Return the table of classes or of categories."""
    head, columns = [kind], []
    for engine, figures in summary['engines'].items():
        for key, title, form in ((f'{kind}_iou', 'IoU', share),
                                 (f'{kind}_iou_loss', 'loss', points),
                                 (f'{kind}_agreement', 'agreement', share)):
            if key in figures:
                head.append(f'{engine} {title}')
                columns.append([form(figures[key][name]) for name in names])
    return head, [list(row) for row in zip(names, *columns)]


def _frames(summary: dict[str, Any]) -> str:
    """Return how many frames were counted, in words."""
    with_truth = summary['frames_with_truth']
    return f'{summary["frames"]}' + (f', {with_truth} with true masks' if with_truth else
                                     ', without true masks: agreement only')


def _confusion_picture(names: list[str], counts: list[list[int]]) -> str:
    """Return a picture of a confusion matrix, each row in percent of its sum."""
    matrix = np.array(counts, float)
    total = matrix.sum(1, keepdims=True)
    percent = 100 * np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)
    side = 2.2 + 0.38 * len(names)
    figure = reports.new_figure(side + 0.6, side)
    axes = figure.add_subplot()
    axes.imshow(np.sqrt(percent), cmap='Blues', vmin=0, vmax=10, aspect='equal')
    axes.set_xticks(range(len(names) + 1), [*names, 'other'], rotation=60, ha='right')
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(labelsize=8)
    for (row, column), value in np.ndenumerate(percent):
        if value >= 0.5:
            axes.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize=7,
                      color='white' if value > 45 else 'black')
    axes.set_xlabel('taken for')
    axes.set_ylabel('true class')
    return reports.figure_uri(figure)
