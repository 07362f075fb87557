# SPDX-License-Identifier: Apache-2.0
"""
Compare evaluation and replay by two processes with one thread each with one process, in one run.

    python benchmarks/fleet.py [--bundle BUNDLE] [--json FILE]

Scenes are drawn into files once, then evaluated by turns: by one process with one thread, by two
with one thread each, and by this process with two threads, as without --jobs. Workers are open
before their turn, as they are for nearly all of a long run. What a frame takes of all processors
together is measured too: it tells what two processes cost beside one, also on a machine that has
other work, where they cannot show how fast they are. Then the same pictures are replayed from a
bag into another, by this process and with its frames on the two. Where Dask is installed, what it
costs beside the work is measured too: items that do nothing, on two workers of a scheduler on
loopback.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from multiprocessing import active_children
from pathlib import Path
import shutil
from statistics import median
import tempfile
from time import perf_counter, process_time
from typing import Any

import drawn
from node import cpu_seconds

from trt_segmentation import reports
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.opening import open_named, open_segmenter
from trt_segmentation.engines.workers import Engines, identify, Workers
from trt_segmentation.evaluation.datasets import folder
from trt_segmentation.evaluation.evaluate import evaluate_items, evaluate_spread
from trt_segmentation.evaluation.frames import Frames, InProcess, OnWorkers
from trt_segmentation.evaluation.replay import replay
from trt_segmentation.recordings import bags
from trt_segmentation.sample import scenes
from trt_segmentation.system import environment, machine, scripts
from trt_segmentation.system.files import atomic_write
from trt_segmentation.system.processes import Processes
from trt_segmentation.system.spread import spread

TARGET = 1.6
DASK_TARGET_MS = 10.0
_NAMES = ('fp32', 'int8')


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--bundle', type=Path,
                        help='a calibrated bundle (default: the sample, calibrated for this)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures here too')
    parser.add_argument('--rounds', type=int, default=3, help='turns of each (default: 3)')
    parser.add_argument('--frames', type=int, default=32, help='a turn (default: 32)')
    args = parser.parse_args()
    environment.keep_memory()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        bundle = Bundle.open(args.bundle) if args.bundle else drawn.calibrated(work / 'bundle')
        drawn.pictures(work / 'images', scenes.HELD_OUT_SEEDS[:args.frames])
        figures = measure(bundle, work, args.rounds)
    figures['dask_ms'] = _dask()
    figures['machine'] = {**machine.describe(), **machine.state()}
    if args.json:
        atomic_write(args.json, reports.json_text(figures))
    for kind in ('evaluate', 'replay'):
        for name, found in figures[kind].items():
            print(f'{kind:<9} {name:<32} {found["frames_per_second"]:.2f} frames per second; of '
                  f'processors a frame {found["parent_ms"]:.1f} ms in the parent, '
                  f'{found["workers_ms"]:.1f} ms in workers')
    for name, target in (('two_by_one', TARGET), ('two_by_today', 1.0)):
        ratios = figures[name]
        print(f'{name:<30} {median(ratios):.2f} times, target {target} or more '
              f'({min(ratios):.2f} to {max(ratios):.2f})')
    if figures['dask_ms'] is not None:
        print(f'{"dask, beside the work":<30} {figures["dask_ms"]:.2f} ms an item, target below '
              f'{DASK_TARGET_MS:g}')


def measure(bundle: Bundle, work: Path, rounds: int) -> dict[str, Any]:
    """Return what each way to evaluate and to replay images took, and ratios, turn by turn."""
    items = folder(work / 'images', bundle.spec.labels).items
    store = str(work / 'store')
    bag = work / 'drive'
    with bags.Writer(bag) as writer:
        for number, item in enumerate(items, 1):
            writer.write_image('/camera/image_raw', item.load()[0], 'bgr8', number, 'camera')
    with Processes(1, 1) as one, Processes(2, 1) as two, \
            open_named(bundle, 'fp32') as fp32, open_named(bundle, 'int8') as int8, \
            open_segmenter(bundle, store=store) as segmenter:
        def by(workers: Workers) -> Any:
            engines = Engines(workers.place(bundle), _NAMES)
            return evaluate_spread(engines, items, bundle, workers)

        def here() -> Any:
            return evaluate_items({'fp32': fp32, 'int8': int8}, items, bundle)

        def replayed(frames: Frames) -> None:
            shutil.rmtree(work / 'masks', ignore_errors=True)
            replay(frames, bag, output=work / 'masks')

        ways = {'one process, one thread': lambda: by(Workers(one, 1)),
                'two processes, one thread each': lambda: by(Workers(two, 2)),
                'one process, two threads': here}
        found = [way() for way in ways.values()]  # to warm up, and that they are the same
        agreements = [sorted(result.agreements['int8']) for result in found]
        assert agreements[0] == agreements[1] == agreements[2]
        for workers in (Workers(one, 1), Workers(two, 2)):
            list(spread(workers.executor, identify,
                        [Engines(workers.place(bundle), _NAMES)] * 8, ahead=8))
        evaluated = _by_turns(ways, len(items), rounds)
        proven = Engines(Workers(two, 2).place(bundle), ('int8',), store=store, proven=True)
        on_two = OnWorkers(Workers(two, 2), proven, bundle.spec.labels)
        frames = {'two processes, one thread each': on_two,
                  'one process, two threads': InProcess(segmenter)}
        for source in frames.values():
            replayed(source)
        replays = _by_turns({name: partial(replayed, source) for name, source in frames.items()},
                            len(items), rounds)
    single, double, today = (taken['rates'] for taken in evaluated.values())
    return {'frames': len(items), 'rounds': rounds,
            'evaluate': {name: _medians(taken) for name, taken in evaluated.items()},
            'replay': {name: _medians(taken) for name, taken in replays.items()},
            'two_by_one': [b / a for a, b in zip(single, double)],
            'two_by_today': [b / a for a, b in zip(today, double)]}


def _by_turns(ways: dict[str, Callable[[], Any]], frames: int, rounds: int
              ) -> dict[str, dict[str, list[float]]]:
    """Return frames per second, and ms of processors a frame, of each way in each turn."""
    found: dict[str, dict[str, list[float]]] = {
        name: {'rates': [], 'parent': [], 'workers': []} for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start, own, workers = perf_counter(), process_time(), _workers_seconds()
            way()
            found[name]['rates'].append(frames / (perf_counter() - start))
            found[name]['parent'].append((process_time() - own) / frames * 1e3)
            found[name]['workers'].append((_workers_seconds() - workers) / frames * 1e3)
    return found


def _medians(taken: dict[str, list[float]]) -> dict[str, float]:
    """Return the medians of what `_by_turns` has of a way."""
    return {'frames_per_second': median(taken['rates']), 'parent_ms': median(taken['parent']),
            'workers_ms': median(taken['workers'])}


def _workers_seconds() -> float:
    """Return what all workers of this process have taken of the processors so far."""
    return sum(cpu_seconds(child.pid) for child in active_children())


def nothing(item: int) -> int:
    """Return an item as it is."""
    return item


def _dask(items: int = 1000) -> float | None:
    """Return what an item costs on a Dask cluster, ms; None without Dask."""
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        return None
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, \
            Client(cluster) as client:
        executor = client.get_executor(pure=False)
        list(spread(executor, nothing, range(100), ahead=8))
        start = perf_counter()
        list(spread(executor, nothing, range(items), ahead=8))
        return (perf_counter() - start) / items * 1e3


if __name__ == '__main__':
    scripts.end_in_a_line()
    main()
