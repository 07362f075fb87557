# SPDX-License-Identifier: Apache-2.0
"""The report of a benchmark, as HTML, Markdown and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TYPE_CHECKING

import numpy as np

from trt_segmentation import reports
from trt_segmentation.errors import counted
from trt_segmentation.reports import Table, Verdict
from trt_segmentation.system import cores, machine

if TYPE_CHECKING:
    from trt_segmentation.evaluation.benchmark import Change, Result

Comparison = Mapping[str, Mapping[str, 'Change']]
"""What `benchmark.compare` returns: by engine and stage."""

Sides = Sequence[Mapping[str, Any]]
"""Two results, as `benchmark.read` returns them."""

_TOTAL = 'total'
_SIDES = ('first', 'second')
_SAME = {'networks': ('network',), 'sizes of images': ('images',),
         'machines': ('processor', 'cores', 'board', 'gpu')}
_DIGITS = 12  # of a hash, which tell two networks apart
_IN_TABLE = {'no difference beyond the noise': 'same', 'too few frames to tell': 'too few frames'}
_CHANGES = {'faster': 'good', 'slower': 'bad'}
_TITLES = {'opencv': 'the framework (OpenCV DNN, CPU)'}
_BUSY = 1.0  # load above the number of cores from which on a machine is busy with other things
_DRIFT = 0.1


def html(name: str, result: Result, provenance: Mapping[str, str],
         unproven: Sequence[str] = (),
         refused: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str:
    """
    Return the page.

    :param name: of the bundle
    :param unproven: what `reports.unproven` returned
    :param refused: what `benchmark.refused` returned
    """
    return reports.render(
        'benchmark.html', name=name, provenance=provenance,
        verdicts=verdicts(result, unproven, refused),
        overview=overview(result), stages=stage_table(result), latency=_latency_picture(result),
        parts=_stage_picture(result), settings=settings(result))


def markdown(name: str, result: Result, provenance: Mapping[str, str],
             unproven: Sequence[str] = (),
             refused: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str:
    """Return verdict and tables as Markdown; the arguments as `html` takes them."""
    return '\n\n'.join([
        f'# Benchmark of {name}',
        *(verdict.markdown() for verdict in verdicts(result, unproven, refused)),
        reports.markdown_table(*overview(result)), reports.markdown_table(*stage_table(result)),
        reports.facts({**settings(result), **provenance})])


def text(result: Result, unproven: Sequence[str] = (),
         refused: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str:
    """Return verdict and tables in columns; the arguments as `html` takes them."""
    lines = [line for verdict in verdicts(result, unproven, refused) for line in verdict.lines()]
    return '\n'.join([*lines, '', reports.text_table(*overview(result)), '',
                      reports.text_table(*stage_table(result)), '',
                      *(f'{key:<16} {value}' for key, value in settings(result).items())])


def verdicts(result: Result, unproven: Sequence[str] = (),
             refused: Mapping[str, Sequence[str]] = MappingProxyType({})) -> list[Verdict]:
    """
    Return how fast the fastest engine is, on what, and what mars the figures.

    What the bundle's limits refuse comes first: it is no engine to be fast with.
    """
    engines = result['engines']
    fastest = min(engines, key=lambda name: engines[name]['stages'][_TOTAL]['p50'])
    total = engines[fastest]['stages'][_TOTAL]
    reasons = [f'{_ratio(engines[name]["stages"][_TOTAL]["p50"] / total["p50"])} as fast as '
               f'{_TITLES.get(name, name)}' for name in engines if name != fastest]
    number = len(engines[fastest]['samples_ms'][_TOTAL])
    if number < 100:  # of so few, p99 is made up between the two slowest
        within, words = total['max'], f'the slowest of {counted(number, "frame")} took'
    else:
        within, words = total['p99'], '99 of 100 frames are done within'
    reasons.append(f'{words} {within:.2f} ms, which keeps up with {1e3 / within:.1f} Hz')
    int8 = [name for name in engines if name.rpartition(':')[2] == 'int8']
    slower = [name for name in int8 if name != fastest and fastest.rpartition(':')[2] == 'fp32']
    measured = reports.measured({figures['backend'] for figures in engines.values()})
    marred = doubts(result)
    found = [Verdict('warn', f"{name} was measured, but this bundle's limits refuse it: build "
                     'does not accept this engine', failures)
             for name, failures in refused.items() if failures]
    if slower and marred:
        found.append(Verdict('warn', f'{slower[0]} came out slower than {fastest}, in figures '
                             'that are to be measured again', measured))
    elif slower:
        found.append(Verdict('bad', f'{slower[0]} is slower than {fastest} on this machine',
                             [*measured, 'build with --precision auto takes the faster']))
    found.append(Verdict('' if slower or marred or refused.get(fastest) else 'good',
                         f'{_TITLES.get(fastest, fastest)} is the fastest: {total["p50"]:.2f} ms '
                         'a frame, image in and both masks out (median)',
                         reasons if slower else [*measured, *reasons]))
    if marred:
        found.append(Verdict('warn', 'Measure again', marred))
    left = [f'{name} was built for this measurement only: build proves it, or refuses it'
            for name, failures in refused.items() if not failures]
    if left or unproven:  # being fast is not being right
        found.append(Verdict('warn', 'Time is all that was measured here', [*left, *unproven]))
    return found


def overview(result: Result) -> Table:
    """Return a row for each engine, end to end."""
    rows = []
    first = next(iter(result['engines'].values()))['stages'][_TOTAL]['p50']
    for name, figures in result['engines'].items():
        total = figures['stages'][_TOTAL]
        rows.append([name, f'{total["p50"]:.2f}', f'{total["p99"]:.2f}',
                     f'{figures["frames_per_second"]:.1f}', f'{first / total["p50"]:.2f}'])
    return ['engine', 'p50 ms', 'p99 ms', 'frames/s', 'speedup'], rows


def stage_table(result: Result) -> Table:
    """Return a row for each engine and stage."""
    keys = ['p50', 'p90', 'p95', 'p99', 'max']
    return ['engine', 'stage', *(f'{key} ms' for key in keys)], [
        [name, stage, *(f'{values[key]:.2f}' for key in keys)]
        for name, figures in result['engines'].items()
        for stage, values in figures['stages'].items()]


def comparison_html(comparison: Comparison, sides: Sides, provenance: Mapping[str, str]) -> str:
    """Return the page of a comparison; for the others see `comparison_verdicts`."""
    return reports.render('comparison.html', provenance=provenance,
                          verdicts=comparison_verdicts(comparison, sides),
                          sides=sides_table(sides), changes=comparison_table(comparison))


def comparison_text(comparison: Comparison, sides: Sides) -> str:
    """Return a comparison in columns, after its verdict."""
    lines = [line for verdict in comparison_verdicts(comparison, sides)
             for line in verdict.lines()]
    return '\n'.join([*lines, '', reports.text_table(*comparison_table(comparison)), '',
                      reports.text_table(*sides_table(sides))])


def comparison_markdown(comparison: Comparison, sides: Sides) -> str:
    """Return a comparison as Markdown, after its verdict."""
    return '\n\n'.join([
        *(verdict.markdown() for verdict in comparison_verdicts(comparison, sides)),
        reports.markdown_table(*comparison_table(comparison)),
        reports.markdown_table(*sides_table(sides))])


def comparison_verdicts(comparison: Comparison, sides: Sides) -> list[Verdict]:
    """
    Return whether the second result is faster than the first, end to end: INT8 decides.

    That they are not of the same comes first.

    :param sides: the two results, as `benchmark.read` returned them
    """
    engines = list(comparison)
    decides = next((name for name in engines if name.rpartition(':')[2] == 'int8'), engines[-1])
    first, second = map(_of, sides)
    differing = [what for what, keys in _SAME.items()
                 if any(first.get(key) != second.get(key) for key in keys)]
    marred = [f'the {side} result: {doubt}' for side, result in zip(_SIDES, sides)
              for doubt in doubts(result)]
    measured = reports.measured({str(figures.get('backend')) for result in sides
                                 for figures in result['engines'].values()})
    found = []
    if differing:
        found.append(Verdict('warn', 'The two results are of different ' + ' and '.join(
            differing) + ', so they do not tell what a change has brought'))
    plain = not differing and not marred
    found.append(Verdict(
        _CHANGES.get(comparison[decides][_TOTAL]['verdict'], '') if plain else '',
        _changed(decides, comparison[decides][_TOTAL]),
        [*measured, *(_changed(name, comparison[name][_TOTAL])
                      for name in engines if name != decides)]))
    if refused := [f"the {side} result's {name}" for side, result in zip(_SIDES, sides)
                   for name, failures in result.get('refused', {}).items() if failures]:
        found.append(Verdict('warn', "Being fast is not being right: the bundle's limits refuse "
                             + ', '.join(refused)))
    return found + ([Verdict('warn', 'Measure again', marred)] if marred else [])


def sides_table(sides: Sides) -> Table:
    """Return of what the two results are: a row for each thing that one of them says."""
    first, second = map(_of, sides)
    return ['', *_SIDES], [[name, first.get(name, '-'), second.get(name, '-')]
                           for name in {**first, **second}]


def _of(result: Mapping[str, Any]) -> dict[str, str]:
    """Return of what bundle, images and machine a result of `benchmark.read` is, in words."""
    said = result.get('provenance', {})
    size = result['settings'].get('image_size')
    return {'bundle': str(said.get('bundle', '-')),
            'network': str(said.get('network sha256', '-'))[:_DIGITS],
            'images': f'{size[1]}x{size[0]}' if size else '-',
            **{key: str(said[key]) for key in (*_SAME['machines'], 'time') if key in said}}


def _changed(engine: str, change: Change) -> str:
    """Return in one line by how much an engine changed, and whether that is noise."""
    size = f'{abs(change["change_percent"]):.1f}%'
    interval = (f'(95% interval {change["low_percent"]:+.1f} to {change["high_percent"]:+.1f}%, '
                f'drift {change["drift_percent"]:.1f}%)')
    times = f'{change["first_ms"]:.2f} ms, then {change["second_ms"]:.2f} ms'
    if change['verdict'] in _CHANGES:
        return f'{engine} is {size} {change["verdict"]}, beyond the noise: {times} {interval}'
    if change['verdict'] == 'too few frames to tell':
        return (f'{engine} is measured on too few frames to tell a change from the noise '
                f'({change["change_percent"]:+.1f}%; 50 frames or more of each): {times} '
                f'{interval}')
    return (f'{engine} is the same within the noise ({change["change_percent"]:+.1f}%): {times} '
            f'{interval}')


def comparison_table(comparison: Comparison) -> Table:
    """Return a row for each engine and stage of a comparison."""
    head = ['engine', 'stage', 'verdict', 'change %', 'first ms', 'second ms', '95% interval',
            'drift %']
    return head, [[name, stage, _IN_TABLE.get(entry['verdict'], entry['verdict']),
                   f'{entry["change_percent"]:+.1f}',
                   f'{entry["first_ms"]:.2f}', f'{entry["second_ms"]:.2f}',
                   f'{entry["low_percent"]:+.1f} to {entry["high_percent"]:+.1f}',
                   f'{entry["drift_percent"]:.1f}']
                  for name, stages in comparison.items() for stage, entry in stages.items()]


def settings(result: Result) -> dict[str, str]:
    """Return how it was measured, in words."""
    height, width = result['settings']['image_size']
    found = {'frames': f'{result["settings"]["frames"]} of {width}x{height} pixels for each '
                       f'engine, after {result["settings"]["warmup"]} to warm up'}
    for name, figures in result['engines'].items():
        if figures['warmup_ms']:
            found[f'first of {name}'] = f'{figures["warmup_ms"][0]:.1f} ms'
    for when, state in (('before', result['machine_before']), ('after', result['machine_after'])):
        for key, value in state.items():
            found[f'{key} {when}'] = value
    return found


def doubts(result: Mapping[str, Any]) -> list[str]:
    """
    Return why the figures may be those of a busy or changing machine.

    :param result: as it was measured just now on this machine, or as `benchmark.read` returned it
    """
    found = []
    load = machine.load(result['machine_before'])
    number = int(result.get('provenance', {}).get('cores') or cores.cores())
    if load > number + _BUSY:
        found.append(f'the machine was busy with other things: load {load:.1f} on '
                     f'{counted(number, "core")}')
    for name, figures in result['engines'].items():
        times = figures['samples_ms'][_TOTAL]
        half = len(times) // 2
        if half >= 10:
            drift = float(np.median(times[half:]) / np.median(times[:half]) - 1)
            if abs(drift) > _DRIFT:
                found.append(f'the second half of {name} took {abs(drift):.0%} '
                             f'{"more" if drift > 0 else "less"} than the first half: clocks, '
                             'heat or other processes changed meanwhile')
    return found


def _ratio(value: float) -> str:
    """Return how many times, in words."""
    return f'{value:.2f} times'


def _latency_picture(result: Result) -> str:
    """Return a picture of the share of frames that were done after a time."""
    figure = reports.new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    for name, figures in result['engines'].items():
        times = np.sort(figures['samples_ms'][_TOTAL])
        axes.step(times, 100 * np.arange(1, len(times) + 1) / len(times), where='post',
                  label=f'{name} (p50 {figures["stages"][_TOTAL]["p50"]:.1f} ms)')
    axes.set_xscale('log')
    reports.plain_numbers(axes.xaxis)
    axes.set_xlabel('end to end, ms')
    axes.set_ylabel('frames done, %')
    axes.grid(alpha=0.3, which='both')
    axes.legend(loc='lower right', fontsize=8)
    return reports.figure_uri(figure)


def _stage_picture(result: Result) -> str:
    """Return a picture of the stages' medians, one bar an engine."""
    engines = result['engines']
    figure = reports.new_figure(6.4, 1.6 + 0.5 * len(engines))
    axes = figure.add_subplot()
    left = np.zeros(len(engines))
    stages = list(dict.fromkeys(stage for figures in engines.values()
                                for stage in figures['stages'] if stage != _TOTAL))
    for stage in stages:
        widths = np.array([figures['stages'].get(stage, {}).get('p50', 0)
                           for figures in engines.values()])
        axes.barh(list(engines), widths, left=left, label=stage)
        left += widths
    axes.invert_yaxis()
    axes.set_xlabel('median, ms')
    # Above the bars: inside, it would cover one of them.
    axes.legend(fontsize=8, loc='lower left', bbox_to_anchor=(0, 1), ncol=4, frameon=False)
    return reports.figure_uri(figure)
