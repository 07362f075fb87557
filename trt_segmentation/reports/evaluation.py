# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation, as HTML, Markdown and text: the verdict first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trt_segmentation import reports
from trt_segmentation.bundles.colors import similar_colors
from trt_segmentation.bundles.labels import LabelSet
from trt_segmentation.engines.opening import VEHICLE
from trt_segmentation.errors import counted
from trt_segmentation.reports import points, share, Table, Verdict

if TYPE_CHECKING:
    from trt_segmentation.evaluation.figures import EngineFigures, Judgement, Summary
    from trt_segmentation.evaluation.progress import Worst

_HERE = (
    "int8 is this machine's CPU with its own INT8 kernels, which round at other places than the "
    "vehicle's, so either may be the better one")
_THERE = (
    "int8-vehicle is TensorRT's INT8 network computed on the CPU, and the one to judge a "
    'calibration by')
_HERE_ALONE = (
    "int8 is this machine's own: on a CPU ONNX Runtime's kernels, which round at other places "
    "than the vehicle's; to judge a calibration by TensorRT's: --engines fp32 int8-vehicle")
_COMPARED = 'Agreement and shares in percent, over the pixels where either says a class.'
_COUNTED = (
    "IoU, accuracy, shares and agreement in percent, losses in points. IoU is computed as "
    "Cityscapes' own script does: TP / (TP + FP + FN) over all pixels whose true class is not "
    'ignored. Losses are over the classes that occur in the true masks.')
_LOSERS = 5
_SHOWN_LOSS = 0.005  # points; less is 0.00 as it is printed
_MOVES = 8


@dataclass(frozen=True)
class Report:
    """
    What a report is made of.

    name: of the bundle
    failures: the limits of the command line that were not kept; None if there were none
    worst: by engine, the frames that it changed most
    """

    name: str
    summary: Summary
    provenance: Mapping[str, str]
    failures: Sequence[str] | None
    labels: LabelSet
    worst: Mapping[str, Sequence[Worst]]


def html(report: Report) -> str:
    """Return the page."""
    summary = report.summary
    reference = summary.engines[summary.reference]
    changed = _to_show(summary)
    before = after = None
    rows = 'true class' if reference.scores else f'class in {summary.reference}'
    if reference.scores:
        before = _percent(reference.scores.confusion)
        if changed and (scores := summary.engines[changed].scores):
            after = _percent(scores.confusion) - before
    elif changed:
        compared = summary.engines[changed].agreement
        if compared:
            after = _percent(compared.confusion_with_reference)
            after -= np.eye(*after.shape) * (after.sum(1, keepdims=True) > 0) * 100
    return reports.render(
        'evaluation.html', report=report, provenance=report.provenance,
        frames=_frames(summary), verdicts=verdicts(report),
        explained=_explained(summary), overview=overview(summary),
        counted=_COUNTED if reference.scores else _COMPARED,
        losers=losers(summary), classes=class_table(summary),
        categories=category_table(summary), reference=summary.reference,
        colors={label.name: label.color for label in report.labels.classes},
        similar=similar_colors(report.labels), changed=changed,
        confusion='' if before is None else _matrix(summary.classes, before, rows),
        moves=_moves(summary.classes, after) if after is not None else None,
        difference='' if after is None else _matrix(
            summary.classes, after, rows, difference=True),
        difference_caption=_difference_caption(summary, changed))


def markdown(report: Report) -> str:
    """Return verdict and tables as Markdown."""
    summary = report.summary
    parts = [f'# Evaluation of {report.name}', f'{_frames(summary)}.',
             *(verdict.markdown() for verdict in verdicts(report)),
             reports.markdown_table(*overview(summary)),
             reports.markdown_table(*class_table(summary))]
    if categories := category_table(summary):
        parts.append(reports.markdown_table(*categories))
    return '\n\n'.join([*parts, reports.facts(report.provenance)])


def text(report: Report) -> str:
    """Return verdict and tables in columns."""
    summary = report.summary
    lines = [line for verdict in verdicts(report) for line in verdict.lines()]
    if explained := _explained(summary):
        lines.append(explained)
    lines += ['', f'frames     {_frames(summary)}']
    lines += [f'           {line}' for line in summary.taken]
    lines += ['', reports.text_table(*overview(summary)),
              '', reports.text_table(*class_table(summary))]
    if categories := category_table(summary):
        lines += ['', reports.text_table(*categories)]
    lines.append('')
    for engine, figures in summary.engines.items():
        if figures.losses:
            entries = losers(summary).get(engine, [])
            lines.append(f'{engine} lost most: ' + ', '.join(
                f'{label} {value}' for label, value in entries)
                if entries else f'{engine} lost nothing of any class')
    for engine, found in report.worst.items():
        lines += [f'{engine} changed most: {worst.name} ({share(worst.agreement)}% agree)'
                  for worst in found[:3]]
    return '\n'.join(lines).strip('\n')


def verdicts(report: Report) -> list[Verdict]:
    """
    Return whether limits are kept: those asked for, then the bundle's; then what to know.

    That the reference itself may see nothing, or not all there is, comes before all.
    """
    found = []
    summary = report.summary
    engines, good = summary.engines, 'warn' if summary.doubted else 'good'
    kept = ''
    if summary.blind:
        kept = f', which proves nothing: {summary.reference} itself may see nothing'
    elif summary.not_found:
        kept = f', as far as {summary.reference} finds what is there'
    if report.failures is not None:
        found.append(Verdict('bad', 'The limits that were asked for are not kept', report.failures)
                     if report.failures else
                     Verdict(good, f'The limits that were asked for are kept{kept}'))
    for engine in sorted(engines, key=lambda name: name != VEHICLE):  # what counts comes first
        if (judgement := engines[engine].judgement) is not None:
            reasons = _reasons(judgement)
            answer = 'yes' if judgement.accepted else 'no'
            if judgement.accepted and summary.blind:
                answer = 'that is not known'
                reasons.insert(0, f'{summary.reference} itself may see nothing, and to agree with '
                                  'it proves nothing')
            found.append(Verdict(
                good if judgement.accepted else 'bad',
                f"{engine}: would be accepted by this bundle's limits, on these frames: "
                f'{answer}, because', reasons))
    if not found:
        scores = engines[summary.reference].scores
        found.append(Verdict(
            '', f'{summary.reference}: '
            + (f'class IoU {share(scores.mean_class_iou)}%' if scores else 'not judged')
            + (', compared with nothing' if len(engines) == 1 else
               ', and no float network to judge the others by')))
    if summary.notes:
        found.insert(0 if summary.doubted else len(found), Verdict(
            'warn', 'Before you believe the figures', summary.notes))
    return found


def _reasons(judgement: Judgement) -> list[str]:
    """Return why an engine is accepted or not, and the classes that had no part in that."""
    reasons = list(judgement.reasons)
    unproven = judgement.unproven_classes
    if few := [f'{name} ({share(value, 3)}% of the pixels)'
               for name, value in unproven.items() if value > 0]:
        reasons.append(f'too few pixels to judge: {", ".join(few)}')
    if none := [name for name, value in unproven.items() if not value > 0]:
        reasons.append(f'nothing was judged of what no frame shows: {", ".join(none)}')
    return reasons


def overview(summary: Summary) -> Table:
    """Return a row for each figure and a column for each engine."""
    columns = [_figures(figures, summary.reference) for figures in summary.engines.values()]
    rows = [[title, *cells] for title, *cells in zip(columns[0], *(
        column.values() for column in columns)) if any(cells)]
    return ['', *summary.engines], rows


def _figures(figures: EngineFigures, reference: str) -> dict[str, str]:
    """Return an engine's figures in words, by their titles; '' for what was not measured."""
    scores, losses, agreement = figures.scores, figures.losses, figures.agreement
    return {
        'class IoU': share(scores.mean_class_iou) if scores else '',
        'loss of class IoU': points(losses.mean_class_iou_loss) if losses else '',
        'category IoU': share(scores.mean_category_iou) if scores else '',
        'loss of category IoU': points(losses.mean_category_iou_loss) if losses else '',
        'accuracy': share(scores.pixel_accuracy) if scores else '',
        'better than chance (kappa)': f'{scores.kappa:.2f}' if scores else '',
        f'agreement with {reference}': share(agreement.agreement) if agreement else '',
        f'IoU with {reference}': share(agreement.mean_iou_with_reference) if agreement else '',
        'worst frame': share(agreement.frame_agreement.get('min')) if agreement else '',
        'pixels compared': share(agreement.agreement_coverage) if agreement else '',
        'work in INT8': '' if figures.int8_share is None else share(figures.int8_share, 1),
    }


def class_table(summary: Summary) -> Table:
    """Return a row for each class."""
    kind = 'share of pixels' if summary.frames_with_truth else f'share in {summary.reference}'
    shares = [share(summary.class_share[name]) for name in summary.classes]
    return _by_name(summary, 'class', summary.classes, (kind, shares))


def category_table(summary: Summary) -> Table | None:
    """Return a row for each category; None without true masks."""
    scores = summary.engines[summary.reference].scores
    return _by_name(summary, 'category', list(scores.category_iou)) if scores else None


def losers(summary: Summary) -> dict[str, list[tuple[str, str]]]:
    """Return the classes that lost most, with the points they lost, for each engine."""
    found = {}
    for engine, figures in summary.engines.items():
        by_class = figures.losses.class_iou_loss if figures.losses else {}
        losses = [(value, label) for label, value in by_class.items() if value >= _SHOWN_LOSS]
        if losses:
            found[engine] = [(label, f'{value:.2f}')
                             for value, label in sorted(losses, reverse=True)[:_LOSERS]]
    return found


def _by_name(summary: Summary, kind: str, names: Sequence[str],
             first: tuple[str, list[str]] | None = None) -> Table:
    """Return the table of classes or of categories: of the others, what they lose and change."""
    head, columns = [kind], []
    if first:
        head.append(first[0])
        columns.append(first[1])
    for engine, figures in summary.engines.items():
        if figures.scores and engine == summary.reference:
            values = getattr(figures.scores, f'{kind}_iou')
            head.append(f'{engine} IoU')
            columns.append([share(values.get(name)) for name in names])
        if figures.losses:
            values = getattr(figures.losses, f'{kind}_iou_loss')
            head.append(f'{engine} loss')
            columns.append([points(values.get(name)) for name in names])
        if figures.agreement and kind == 'class':
            head.append(f'{engine} agrees')
            columns.append([share(figures.agreement.class_agreement.get(name))
                            for name in names])
    return head, [list(row) for row in zip(names, *columns)]


def _frames(summary: Summary) -> str:
    """Return how many frames and pixels were counted, in words."""
    if not summary.frames_with_truth:
        return f'{counted(summary.frames, "frame")} without true masks: agreement only'
    return (f'{counted(summary.frames, "frame")}, {summary.frames_with_truth} with true masks, '
            f'which give {share(summary.coverage)}% of the pixels a class')


def _explained(summary: Summary) -> str:
    """Return whose arithmetic the INT8 engines have."""
    if VEHICLE not in summary.engines:
        return f'{_HERE_ALONE}.' if 'int8' in summary.engines else ''
    return f'{_HERE}; {_THERE}.' if 'int8' in summary.engines else f'{_THERE}.'


def _to_show(summary: Summary) -> str:
    """Return the engine whose changes are shown: the one to judge by; '' if there is none."""
    others = list(summary.engines)[1:]
    return VEHICLE if VEHICLE in others else others[0] if others else ''


def _difference_caption(summary: Summary, changed: str) -> str:
    """Return what the picture of differences shows."""
    if summary.engines[summary.reference].scores:
        return (f'{changed} minus {summary.reference}: of each true class (row), by how many '
                'points more (red) or less (blue) is taken for each class (column). On the '
                'diagonal, blue is a loss.')
    return (f'Of the pixels of each class in {summary.reference} (row), the share in percent '
            f'that {changed} takes for each other class (column); on the diagonal, what it lost.')


def _percent(counts: Sequence[Sequence[int]]) -> np.ndarray:
    """Return a confusion matrix with each row in percent of its sum; 0 where that is none."""
    matrix = np.array(counts, float)
    total = matrix.sum(1, keepdims=True)
    return 100 * np.divide(matrix, total, out=np.zeros_like(matrix), where=total > 0)


def _moves(names: Sequence[str], difference: np.ndarray) -> Table:
    """Return the largest changes from class to class."""
    columns = [*names, 'ignored']
    entries = sorted(((value, names[row], columns[column])
                      for (row, column), value in np.ndenumerate(difference)
                      if row != column and value), key=lambda entry: -abs(entry[0]))[:_MOVES]
    return ['of class', 'taken for', 'points'], [[name, other, points(value)]
                                                 for value, name, other in entries]


def _matrix(names: Sequence[str], percent: np.ndarray, rows: str, *, difference: bool = False
            ) -> str:
    """Return a picture of a matrix in percent, or of a difference of two in points."""
    side = 2.0 + 0.34 * len(names)
    figure = reports.new_figure(side + 0.5, side)
    axes = figure.add_subplot()
    if difference:
        largest = max(float(np.abs(percent).max()), 0.1)
        axes.imshow(percent, cmap='RdBu_r', vmin=-largest, vmax=largest, aspect='equal')
        shown, dark = largest / 50, 0.6 * largest
    else:
        axes.imshow(np.sqrt(percent), cmap='Blues', vmin=0, vmax=10, aspect='equal')
        shown, dark = 0.5, 45.0
    axes.set_xticks(range(len(names) + 1), [*names, 'ignored'], rotation=60, ha='right')
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(labelsize=9)
    digits = 1 if difference and np.abs(percent).max() < 10 else 0
    for (row, column), value in np.ndenumerate(percent):
        if abs(value) >= max(shown, 0.5 * 10 ** -digits):
            axes.text(column, row, f'{value:+.{digits}f}' if difference else f'{value:.0f}',
                      ha='center', va='center', fontsize=7,
                      color='white' if abs(value) > dark else 'black')
    axes.set_xlabel('taken for')
    axes.set_ylabel(rows)
    return reports.figure_uri(figure)
