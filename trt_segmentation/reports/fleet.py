# SPDX-License-Identifier: Apache-2.0
"""The report of a replay of many recordings, as HTML, Markdown and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trt_segmentation import reports
from trt_segmentation.bundles.colors import similar_colors
from trt_segmentation.errors import counted
from trt_segmentation.reports import share, Table, Verdict
from trt_segmentation.reports.replay import (
    class_rows,
    doubts,
    how_to_compare,
    same,
    UNPAIRED,
    with_golden,
)

if TYPE_CHECKING:
    from trt_segmentation.evaluation.account import Fleet, Row

_WORST = 10  # recordings, and recordings with problems, that are named by themselves
_MANY = 50
_NAMED = 5  # recordings in a verdict
_HEAD = ['recording', 'frames', 'dropped', 'problems', 'compared', 'identical', 'below',
         'missing', 'unmet', 'agreement %', 'worst frame %']


def html(fleet: Fleet, provenance: dict[str, str], failures: Sequence[str] | None,
         unproven: Sequence[str] = ()) -> str:
    """
    Return the page.

    :param failures: how masks are not the golden ones; None if that was not asked
    :param unproven: what `reports.unproven` returned
    """
    damaged = [(row.name, [row.error] if row.error else list(row.shown))
               for row in fleet.rows if row.damaged]
    worst_recordings, classes = _tables(fleet)
    return reports.render(
        'fleet.html', count=len(fleet.rows), facts=facts(fleet), provenance=provenance,
        verdicts=verdicts(fleet, failures, unproven),
        worst_recordings=worst_recordings, classes=classes,
        colors={label.name: label.color for label in fleet.confusion.labels.classes},
        similar=similar_colors(fleet.confusion.labels), worst=fleet.worst,
        problems=damaged[:_MANY], left=max(0, len(damaged) - _MANY),
        rows=(_HEAD, [_cells(row) for row in fleet.rows]))


def markdown(fleet: Fleet, provenance: dict[str, str], failures: Sequence[str] | None,
             unproven: Sequence[str] = ()) -> str:
    """Return verdict and figures as Markdown, with the worst recordings only."""
    parts = [f'# Replay of {counted(len(fleet.rows), "recording")}',
             *(verdict.markdown() for verdict in verdicts(fleet, failures, unproven)),
             reports.facts(facts(fleet))]
    parts += [reports.markdown_table(*table) for table in _tables(fleet) if table[1]]
    return '\n\n'.join([*parts, reports.facts(provenance)])


def text(fleet: Fleet, failures: Sequence[str] | None, unproven: Sequence[str] = ()) -> str:
    """Return verdict and figures, with the worst recordings only."""
    lines = [line for verdict in verdicts(fleet, failures, unproven) for line in verdict.lines()]
    lines += [f'{name:<10} {value}' for name, value in facts(fleet).items()]
    for table in _tables(fleet):
        if table[1]:
            lines += ['', reports.text_table(*table)]
    return '\n'.join([*lines, *(f'{"worst":<10} {frame.name}: {share(frame.agreement)}% agree'
                                for frame in fleet.worst)])


def verdicts(fleet: Fleet, failures: Sequence[str] | None, unproven: Sequence[str] = ()
             ) -> list[Verdict]:
    """
    Return what is missing, whether the masks are the golden ones, and what that leaves open.

    That they are not comes before what is no damage of the recordings.
    """
    found = []
    for kind, answer, texts in (
            ('bad', 'could not be read whole',
             [f'{row.name}: {row.damage}' for row in fleet.rows if row.damage]),
            ('warn', 'had messages that gave no masks',
             [f'{row.name}: ' + ', '.join(f'{count} {cause}' for cause, count in
                                          sorted(row.dropped.items()))
              for row in fleet.rows if row.dropped])):
        if texts:
            more = [f'and {len(texts) - _NAMED} more like these'] if len(texts) > _NAMED else []
            found.append(Verdict(
                kind, f'{len(texts)} of {counted(len(fleet.rows), "recording")} {answer}',
                [*texts[:_NAMED], *more]))
    return [*with_golden(found, _golden(fleet, failures), failures),
            *doubts(fleet.confusion if fleet.summary()['compared'] else None, unproven)]


def _golden(fleet: Fleet, failures: Sequence[str] | None) -> Verdict:
    """Return whether the masks are the golden ones, as far as that was asked."""
    errors = sum(bool(row.error) for row in fleet.rows)
    left = [f'{errors} of {counted(len(fleet.rows), "recording")} gave no masks'] if errors else []
    measured = reports.measured([fleet.backend])
    if failures and not any(row.below for row in fleet.rows):
        return Verdict('bad', UNPAIRED, [
            *failures, *same(sum(row.compared for row in fleet.rows)), *left, *measured])
    if failures:
        return Verdict('bad', 'No: the masks are not the golden ones',
                       [*failures, *left, *measured])
    if left:
        return Verdict('bad', 'No: not all recordings could be replayed', [*left, *measured])
    if failures is None:
        return Verdict('', f'{counted(len(fleet.rows), "recording")} replayed, and nothing to '
                       'compare them with', [
                           *how_to_compare(any(row.damage for row in fleet.rows)), *measured])
    return Verdict('good', 'Yes: the masks are the golden ones, within the limit', measured)


def facts(fleet: Fleet) -> dict[str, str]:
    """Return the figures in words, by name."""
    summary = fleet.summary()
    found = {'recordings': f'{summary["recordings"]}, {summary["failed"]} with masks that are not '
                           f'the golden ones, {summary["damaged"]} with problems',
             'frames': f'{summary["frames"]}, {summary["dropped"]} dropped'}
    if summary['compared']:
        found['golden'] = (f'{counted(summary["compared"], "frame")} compared, '
                           f'{summary["identical"]} identical')
        found['agreement'] = f'{share(summary["agreement"], 3)}% of all pixels'
    return found


def worst(fleet: Fleet) -> list[Row]:
    """Return the recordings whose masks differ most, the worst first."""
    differing = [row for row in fleet.rows if row.failed or (
        row.agreement is not None and row.agreement < 1)]
    return sorted(differing, key=lambda row: (
        1.0 if row.agreement is None else row.agreement, -row.below, row.name))[:_WORST]


def _tables(fleet: Fleet) -> tuple[Table, Table]:
    """Return the worst recordings and the classes, each as head and rows."""
    return ((_HEAD, [_cells(row) for row in worst(fleet)]),
            (['class', 'agreement %'], class_rows(fleet.confusion)))


def _cells(row: Row) -> list[str]:
    """Return the cells of a recording."""
    if row.error:
        return [row.name, *['-'] * 2, 'no masks', *['-'] * 7]
    golden = ([str(value) for value in (row.compared, row.identical, row.below, row.missing,
                                        row.unmet)]
              if row.compared or row.missing or row.unmet else ['-'] * 5)
    return [row.name, str(row.frames), str(sum(row.dropped.values())), str(row.problems), *golden,
            share(row.agreement, 3), share(row.worst_agreement, 3)]
