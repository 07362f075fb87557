# SPDX-License-Identifier: Apache-2.0
"""The report of a replay, as HTML, Markdown and text."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
import os
from typing import TYPE_CHECKING

from trt_segmentation import reports
from trt_segmentation.bundles.colors import similar_colors
from trt_segmentation.errors import counted
from trt_segmentation.reports import share, Verdict

if TYPE_CHECKING:
    from trt_segmentation.evaluation.comparison import Comparison
    from trt_segmentation.evaluation.metrics import Confusion
    from trt_segmentation.evaluation.replay import Result


UNREAD = 'The recording could not be read whole'
UNPAIRED = 'No: golden masks and frames are not of the same images'
_NAMED = 3  # sentences of one kind in a verdict


def html(bag: str, result: Result, provenance: dict[str, str], failures: Sequence[str] | None,
         limit: float | None = None, unproven: Sequence[str] = ()) -> str:
    """
    Return the page.

    :param bag: the recording's path, of which the name is shown
    :param failures: how the masks are not the golden ones; None if that was not asked
    :param limit: the share 0..1 of a frame's pixels that must be the golden ones
    :param unproven: what `reports.unproven` returned
    """
    comparison = result.comparison
    problems, named = list(result.problems), [bag]
    if comparison is not None:
        problems += comparison.problems
        named.append(os.fspath(comparison.path))
    return reports.render(
        'replay.html', bag=reports.without_directories(bag, bag), facts=facts(result),
        provenance=provenance, limit=limit,
        problems=[reports.without_directories(sentence, *named) for sentence in problems],
        verdicts=verdicts(bag, result, failures, unproven),
        colors={label.name: label.color for label in comparison.confusion.labels.classes}
        if comparison else {},
        similar=similar_colors(comparison.confusion.labels) if comparison else '',
        timeline=_timeline(comparison, limit)
        if comparison and comparison.agreements else '',
        classes=(['class', 'agreement %'], _class_rows(result)),
        worst=comparison.worst if comparison else [])


def markdown(bag: str, result: Result, provenance: dict[str, str],
             failures: Sequence[str] | None, unproven: Sequence[str] = ()) -> str:
    """Return verdict and figures as Markdown; the arguments as `html` takes them."""
    parts = [f'# Replay of {reports.without_directories(bag, bag)}',
             *(verdict.markdown() for verdict in verdicts(bag, result, failures, unproven)),
             reports.facts(facts(result))]
    if rows := _class_rows(result):
        parts.append(reports.markdown_table(['class', 'agreement %'], rows))
    return '\n\n'.join([*parts, reports.facts(provenance)])


def text(bag: str, result: Result, failures: Sequence[str] | None, unproven: Sequence[str] = ()
         ) -> str:
    """Return the verdict and the figures, one a line; the arguments as `html` takes them."""
    lines = [line for verdict in verdicts(bag, result, failures, unproven)
             for line in verdict.lines()]
    lines += [f'{name:<10} {value}' for name, value in facts(result).items()]
    if rows := _class_rows(result):
        lines += ['', reports.text_table(['class', 'agreement %'], rows)]
    if result.comparison:
        lines += [f'{"worst":<10} {worst.name}: {share(worst.agreement)}% agree'
                  for worst in result.comparison.worst]
    return '\n'.join(lines)


def verdicts(bag: str, result: Result, failures: Sequence[str] | None,
             unproven: Sequence[str] = ()) -> list[Verdict]:
    """
    Return what is missing, whether the masks are the golden ones, and what that leaves open.

    That they are not comes before what is no damage of the recording.
    """
    comparison, found = result.comparison, list[Verdict]()
    if result.damage:
        named = [reports.without_directories(text, bag) for text in result.unread]
        found.append(Verdict('bad', UNREAD, [result.damage, *named[:_NAMED]]))
    if result.dropped:
        number = sum(result.dropped.values())
        found.append(Verdict('warn', f'{counted(number, "message")} of '
                             f'{sum(result.read.values())} gave no masks', [
                                 f'{count} {cause}'
                                 for cause, count in sorted(result.dropped.items())]))
    if comparison is not None and comparison.problems:
        path = os.fspath(comparison.path)
        found.append(Verdict('warn', 'Not all golden masks could be read and compared', [
            reports.without_directories(text, path) for text in comparison.problems[:_NAMED]]))
    return [*with_golden(found, _golden(result, failures), failures),
            *doubts(None if comparison is None else comparison.confusion, unproven)]


def _golden(result: Result, failures: Sequence[str] | None) -> Verdict:
    """Return whether the masks are the golden ones, as far as that was asked, and of what."""
    measured, comparison = reports.measured([result.backend]), result.comparison
    if failures is None:
        return Verdict('', f'{counted(result.frames, "frame")} replayed, and nothing to compare '
                       'them with',
                       [*how_to_compare(result.damage), *measured])
    if comparison is not None and failures and failures == comparison.unpaired:
        return Verdict('bad', UNPAIRED, [
            *failures, *same(len(comparison.agreements)), *measured])
    if failures:
        return Verdict('bad', 'No: the masks are not the golden ones', [*failures, *measured])
    return Verdict('good', 'Yes: the masks are the golden ones, within the limit', measured)


def with_golden(found: Sequence[Verdict], golden: Verdict, failures: Sequence[str] | None
                ) -> list[Verdict]:
    """Return verdicts with that on the golden masks: if it is No, before what is no damage."""
    place = sum(verdict.kind == 'bad' for verdict in found) if failures else len(found)
    return [*found[:place], golden, *found[place:]]


def same(compared: int) -> list[str]:
    """Return that no mask that was compared is another one than the golden one."""
    return [f'{counted(compared, "mask")} that could be compared: the golden ones, within the '
            'limit'] if compared else []


def how_to_compare(damage: object) -> list[str]:
    """Return how masks are compared with golden ones; nothing for what could not be read whole."""
    return [] if damage else ['golden masks are given with --golden, and made with '
                              '--record-golden']


def doubts(confusion: Confusion | None, unproven: Sequence[str]) -> list[Verdict]:
    """
    Return what neither the golden masks nor the engine's proof say anything of.

    :param confusion: of the masks with the golden ones; None if they were not compared
    """
    found = list(unproven)
    if confusion is not None:
        missing = [name for name, value in confusion.class_agreement.items() if value != value]
        if missing:
            found.insert(0, 'no golden mask that was compared shows: ' + ', '.join(missing))
    return [Verdict('warn', 'What this does not tell', found)] if found else []


def facts(result: Result) -> dict[str, str]:
    """Return the figures in words, by name."""
    summary = result.summary()
    found = {'frames': f'{result.frames}, {sum(result.dropped.values())} dropped'
             + ''.join(f', {count} {cause}' for cause, count in sorted(result.dropped.items()))}
    found['masks'] = ', '.join(f'of {topic} on {prefix}/...'
                               for topic, prefix in result.topics.items())
    found['speed'] = f'{summary["frames_per_second"]:.1f} frames per second'
    found['stages'] = ', '.join(f'{name} {milliseconds:.1f} ms' for name, milliseconds in
                                summary['stage_ms_p50'].items())
    found['stages'] += ' (medians; frames overlap with each other, with reading and with writing)'
    if golden := summary['golden']:
        found['golden'] = (
            f'{counted(golden["frames"], "frame")} compared, {golden["identical"]} identical, '
            f'{golden["missing"]} without a golden mask, '
            f'{counted(golden["unmet"], "golden mask")} unmet')
        found['agreement'] = (f'{share(golden["agreement"], 3)}% of all pixels, '
                              f'{share(golden["worst_agreement"], 3)}% in the worst frame')
    return found


def class_rows(confusion: Confusion) -> list[list[str]]:
    """
    Return class and agreement of each class that the golden masks have.

    The worst comes first; of equal ones, the first of the labels.
    """
    found = [(value, name) for name, value in confusion.class_agreement.items() if value == value]
    return [[name, share(value, 3)] for value, name in sorted(found, key=itemgetter(0))]


def _class_rows(result: Result) -> list[list[str]]:
    """Return the rows of the classes of a result; none if it was not compared."""
    return class_rows(result.comparison.confusion) if result.comparison else []


def _timeline(comparison: Comparison, limit: float | None) -> str:
    """
    Return a picture of the agreement over time, a line for each camera.

    :param limit: drawn as a line; None for none
    """
    stamps, agreements = comparison.stamps, comparison.agreements
    cameras = list(dict.fromkeys(comparison.topics))
    figure = reports.new_figure(6.4, 2.6 + 0.2 * (len(cameras) > 1) * len(cameras))
    axes = figure.add_subplot()
    for camera in cameras:
        own = [((stamp - min(stamps)) * 1e-9, 100 * agreement) for stamp, agreement, topic
               in zip(stamps, agreements, comparison.topics) if topic == camera]
        axes.plot(*zip(*own), '.-', linewidth=1, markersize=3, label=camera)
    if len(cameras) > 1:
        # Above the lines: inside, it would cover some of them.
        axes.legend(fontsize=8, loc='lower left', bbox_to_anchor=(0, 1), frameon=False)
    if limit is not None:
        axes.axhline(100 * limit, color='#b3261e', linewidth=1)
    axes.set_xlabel('seconds since the first frame')
    axes.set_ylabel('agreement, %')
    axes.ticklabel_format(useOffset=False)
    # No frame agrees on more than all pixels; where all do, a tenth of a percent is shown.
    lowest = 100 * min([*agreements, *([] if limit is None else [limit])])
    space = max(100 - lowest, 0.1) / 20
    axes.set_ylim(min(lowest, 99.9) - space, 100 + space)
    axes.grid(alpha=0.3)
    return reports.figure_uri(figure)
