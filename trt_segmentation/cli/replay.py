# SPDX-License-Identifier: Apache-2.0
"""
Run a recording through the pipeline: the same masks as the node's, without DDS, repeatable.

Of a damaged bag, what is readable is processed and what is not is named; the exit code is 2 then.
With --golden it is 1 if a frame's mask is not the golden one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
import os
from pathlib import Path
from typing import TYPE_CHECKING

from trt_segmentation.cli import (
    add_engine,
    add_format,
    add_jobs,
    dla_of,
    engine_words,
    few,
    new_file,
    new_place,
    print_json,
    say,
    share,
    size,
    workers_of,
    written,
)
from trt_segmentation.errors import command_line, counted, InputError
from trt_segmentation.system import files
from trt_segmentation.system.progress import ProgressBar

if TYPE_CHECKING:
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.engines.workers import Engines, Workers
    from trt_segmentation.evaluation.frames import Frames

EXAMPLE = ('trt-segmentation replay my_bundle --bag drive --output masks '
           '--golden golden.mcap --min-agreement 0.995')

_ENOUGH = 1  # items that are worth a process, which takes some seconds to start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('bundle', metavar='BUNDLE', help='the bundle directory')
    parser.add_argument('--bag', required=True, nargs='+', metavar='BAG',
                        help='the recording: a directory, or a file .mcap, .db3 or .bag (ROS 1); '
                             'of several, of a directory or glob with recordings, or of URLs, '
                             'each is replayed, and what is written or compared with are '
                             'directories with a bag for each')
    parser.add_argument('--topic', nargs='+', default=[], metavar='TOPIC',
                        help='its image topics (default: those of cameras, one for each of '
                             'them; what is left out is named)')
    parser.add_argument('--output', metavar='BAG', type=new_place,
                        help='write class and color masks to a new bag')
    parser.add_argument('--storage', choices=('mcap', 'sqlite3'), default='',
                        help="of the output (default: by the name's end, else mcap)")
    parser.add_argument('--golden', metavar='BAG',
                        help='compare the class masks with those of this bag, frame by frame')
    parser.add_argument('--min-agreement', type=share, default=0.995, metavar='SHARE',
                        help='of the pixels of each frame that must be the golden ones (0..1, '
                             'default: 0.995)')
    parser.add_argument('--record-golden', metavar='BAG', type=new_place,
                        help='write the class masks to a new bag, to compare with later')
    parser.add_argument('--report', metavar='FILE.html', type=_report, help='write a report')
    add_engine(parser)
    add_jobs(parser)
    add_format(parser, 'markdown')


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from trt_segmentation import reports
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.evaluation.fleet import is_fleet
    from trt_segmentation.evaluation.replay import open_bag, replay
    from trt_segmentation.reports import replay as report
    from trt_segmentation.system import environment

    if not (args.output or args.golden or args.record_golden or args.report):
        raise InputError('nothing to do; expected --output, --golden, --record-golden or --report')
    environment.keep_memory()
    bundle = Bundle.open(args.bundle)
    if is_fleet(args.bag):
        return _fleet(args, bundle)
    (path,) = args.bag
    bag = open_bag(path, args.topic)
    _check_golden(args, os.path.exists(args.golden or ''))
    for topic, reason in bag.left_out.items():
        say('replay', f'{topic} is left out: {reason}')
    _say_count(args, bundle, f'{counted(bag.count, "image") if bag.count else "images"} of '
               f'{", ".join(bag.topics)}')
    with _frames(args, bundle) as frames, ProgressBar({'': bag.count or None}) as bar:
        result = replay(frames, bag, output=args.output, storage=args.storage,
                        record_golden=args.record_golden, golden=args.golden,
                        progress=bar.advance)
    comparison = result.comparison
    asked = comparison.failures(args.min_agreement) if comparison else None
    failures = asked or []
    provenance, unproven = reports.provenance(bundle), reports.unproven(bundle)
    kept = [reports.without_directories(text, bundle.path) for text in unproven]
    verdict, *_ = report.verdicts(path, result, asked)
    document = {'verdict': verdict.answer, 'reasons': verdict.reasons, **result.summary(),
                'min_agreement': args.min_agreement, 'failures': failures, 'unproven': kept,
                'provenance': provenance}
    if args.report:
        _write_report(args.report, report.html(
            path, result, provenance, asked, args.min_agreement, kept))
    if args.format == 'json':
        print_json(document)
    elif args.format == 'markdown':
        print(report.markdown(path, result, provenance, asked, kept))
    else:
        print(report.text(path, result, asked, unproven))
    _print_rest(args, asked, whole=not result.problems, differ=bool(
        comparison and failures != comparison.unpaired))
    return _end([*result.problems, *(comparison.problems if comparison else [])], failures)


def _say_count(args: argparse.Namespace, bundle: Bundle, what: str) -> None:
    """Tell before the work how much there is, and what does it."""
    from trt_segmentation.engines.workers import backend_name
    on = f'on {args.dask}' if args.dask else f'backend {backend_name(args.backend)}'
    say('replay', f'{what}, {size(bundle)}, {args.precision}, {on}')


def _report(text: str) -> str:
    """Return the path of a report, which may lie in what else is written; for argparse."""
    return new_file(text, parents=True)


def _write_report(path: str, page: str) -> None:
    """Write the report, in a directory that is made if needed."""
    from trt_segmentation import reports
    reports.output_directory(Path(path).parent)
    files.atomic_write(path, page)


def _check_golden(args: argparse.Namespace, there: bool) -> None:
    """Raise InputError, before any work, if there is nothing to compare with."""
    if args.golden and not there:
        raise InputError(f'--golden: {args.golden}: there are no golden masks of this'
                         + (files.nearest_path(args.golden) or '; record them with: '
                            + _again(args, '--record-golden', args.golden)))


def _print_rest(args: argparse.Namespace, failures: Sequence[str] | None, *, whole: bool,
                differ: bool) -> None:
    """
    Print what was written where, and what to do next.

    :param whole: whether all that the recordings have could be read and segmented
    :param differ: whether masks that were compared are not the golden ones
    """
    if paths := [path for path in (args.output, args.record_golden, args.report) if path]:
        written(args, *paths)
    if args.format != 'text':
        return
    if failures and differ:
        print('next       see where they differ: '
              + (args.report or _again(args, '--golden', args.golden, '--report', 'replay.html')))
    elif not whole:
        print('next       copy what could not be read again, or record it anew; golden masks of '
              'a part prove that part only')
    elif args.record_golden:
        print('next       after a change: ' + _again(args, '--golden', args.record_golden))
    elif failures is None:
        print('next       golden masks, to compare with after a change: '
              + _again(args, '--record-golden', 'GOLDEN'))
    elif failures:
        print('next       replay what the golden masks were recorded of, or record them anew: '
              + _again(args, '--record-golden', 'GOLDEN'))


def _again(args: argparse.Namespace, *more: str) -> str:
    """Return a command that replays the same again."""
    topics = ('--topic', *args.topic) if args.topic else ()
    dask = ('--dask', args.dask) if args.dask else ()
    return command_line('replay', args.bundle, '--bag', *few(args.bag), *topics,
                        *engine_words(args), *dask, *more)


@contextmanager
def _frames(args: argparse.Namespace, bundle: Bundle) -> Iterator[Frames]:
    """Yield who makes masks of one recording's frames: this process, if nothing is asked for."""
    from trt_segmentation.engines.opening import open_segmenter
    from trt_segmentation.evaluation.frames import InProcess, OnWorkers
    with _workers(args, args.jobs or 1) as workers:
        if workers is not None:
            yield OnWorkers(workers, _engines(args, workers, bundle), bundle.spec.labels)
            return
        with open_segmenter(bundle, backend=args.backend, precision=args.precision,
                            store=args.store, dla=dla_of(args)) as segmenter:
            on_cores = segmenter.engine.backend == 'onnxruntime'
            yield InProcess(segmenter, None if on_cores else args.jobs)


def _workers(args: argparse.Namespace, items: int) -> AbstractContextManager[Workers | None]:
    """Return who works on the items; None for this process alone, as where it owns a GPU."""
    from trt_segmentation.engines.workers import backend_name
    alone = dla_of(args) is not None or not (
        args.dask or backend_name(args.backend) == 'onnxruntime')
    return workers_of(args, items, _ENOUGH, alone=alone, store=args.store,
                      gpu=args.backend != 'onnxruntime')


def _engines(args: argparse.Namespace, workers: Workers, bundle: Bundle) -> Engines:
    """Return what workers are to open."""
    from trt_segmentation.engines.workers import Engines
    return Engines(workers.place(bundle), (args.precision,), args.backend, args.store, True,
                   dla_of(args))


def _fleet(args: argparse.Namespace, bundle: Bundle) -> int:
    """Replay several recordings; return the exit code."""
    from trt_segmentation import reports
    from trt_segmentation.engines.workers import identify, Workers
    from trt_segmentation.evaluation import fleet
    from trt_segmentation.evaluation.account import STATE_NAME
    from trt_segmentation.reports import fleet as report
    from trt_segmentation.system.spread import Here

    recordings = fleet.find(args.bag)
    # Dask's workers may see more than this machine.
    _check_golden(args, bool(args.dask) or any(
        fleet.golden_bag(args.golden or '', recording.name) for recording in recordings))
    outputs = [os.path.abspath(path) if path else None
               for path in (args.output, args.record_golden, args.golden)]
    kept = next(filter(None, (*outputs[:2], args.report and os.path.dirname(
        os.path.abspath(args.report)))), None)
    _say_count(args, bundle, counted(len(recordings), 'recording'))
    with ProgressBar({'': len(recordings)}, 'recording') as bar, \
            _workers(args, len(recordings)) as several:
        workers = several or Workers(Here(), 1)
        engines = _engines(args, workers, bundle)
        identity = workers.call(identify, engines)
        found = fleet.replay_all(
            recordings, fleet.Wanted(engines, tuple(args.topic), outputs[0], args.storage,
                                     outputs[1], outputs[2], args.min_agreement),
            workers, identity, bundle.spec.labels, Path(kept, STATE_NAME) if kept else None,
            progress=bar.advance, watch=bar.doing)
    for path in filter(None, outputs[:2]):
        with suppress(OSError):
            os.rmdir(path)  # where no recording could be replayed
    failures = found.failures(args.min_agreement)
    asked = failures if args.golden else None
    provenance, unproven = reports.provenance(bundle), reports.unproven(bundle)
    kept = [reports.without_directories(text, bundle.path) for text in unproven]
    if args.report:
        _write_report(args.report, report.html(found, provenance, asked, kept))
    if args.format == 'json':
        verdict, *_ = report.verdicts(found, asked)
        print_json({'verdict': verdict.answer, 'reasons': verdict.reasons, **found.summary(),
                    'min_agreement': args.min_agreement, 'failures': failures, 'unproven': kept,
                    'provenance': provenance})
    elif args.format == 'markdown':
        print(report.markdown(found, provenance, asked, kept))
    else:
        print(report.text(found, asked, unproven))
    if any(not row.error for row in found.rows):
        _print_rest(args, asked, whole=not any(row.error or row.problems for row in found.rows),
                    differ=any(row.below for row in found.rows))
    return _end([f'{row.name}: {sentence}' for row in found.rows
                 for sentence in ([row.error] if row.error else row.shown)], failures)


def _end(problems: Sequence[str], failures: Sequence[str]) -> int:
    """Print what went wrong; return the exit code."""
    for sentence in [*problems[:10], *failures]:
        say('replay', sentence)
    if len(problems) > 10:
        say('replay', f'and {len(problems) - 10} more like these')
    return 2 if problems else 1 if failures else 0
