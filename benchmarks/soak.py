# SPDX-License-Identifier: Apache-2.0
"""
Run the node for a long time under a steady load; its memory and descriptors must stay flat.

    python benchmarks/soak.py [--minutes 30] [--hz 30] [--loop] [--json FILE]

The load is the one of benchmarks/node.py; with --loop the shadow check runs ten times as often as
by default, and every checked frame that is not like another one is captured. What is in use is
read from /proc every two seconds.
Exits with 1 if, after the first tenth of the time, resident memory grows by more than 20 MB, file
descriptors or threads become more, or the 99th percentile of the latency grows by more than 1.2
from the first third to the last.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
import json
import os
from pathlib import Path
import sys
import tempfile
import threading
import time
from typing import Any

from node import add_engine, Session
import numpy as np

from trt_segmentation import reports
from trt_segmentation.system import machine, scripts
from trt_segmentation.system.files import atomic_write

MAX_MEMORY_MB, MAX_GROWTH = 20.0, 1.2
RING_MB = 100
PERIOD = 2.0


def main() -> int:
    """Run, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--minutes', type=float, default=30)
    parser.add_argument('--hz', type=float, default=30)
    parser.add_argument('--size', default='1024x512')
    parser.add_argument('--loop', action='store_true', help='with shadow check and capture')
    add_engine(parser)
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures here too')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        session = Session(args, Path(directory))
        ring = Path(directory) / 'capture'
        if args.loop:
            session.parameters = {
                'shadow_period_s': 1.0, 'shadow_max_share': 0.2, 'capture_directory': ring,
                'capture_agreement': 1.0, 'capture_max_mb': RING_MB, 'capture_min_free_mb': 0}
        figures = soak(session, args.minutes * 60, args.hz, args.size)
        captured = sum(path.stat().st_size for path in ring.glob('*.mcap')) / 1e6
        figures['captured_mb'] = captured
        if captured > RING_MB:
            figures['failures'].append(f'{captured:.1f} MB were captured')
        if args.loop and not captured:
            figures['failures'].append('nothing was captured')
    if args.json:
        atomic_write(args.json, reports.json_text(figures))
    print(json.dumps({key: value for key, value in figures.items() if key != 'samples'}, indent=2))
    return 1 if figures['failures'] else 0


def soak(session: Session, seconds: float, hz: float, size: str) -> dict[str, Any]:
    """Return what the node used over the time, how late its masks were, and what is wrong."""
    samples: list[dict[str, float]] = []

    @contextmanager
    def watch(pid: int) -> Iterator[None]:
        done, begin = threading.Event(), time.monotonic()

        def sample() -> None:
            while not done.wait(PERIOD):
                samples.append({'seconds': time.monotonic() - begin, **in_use(pid)})

        watcher = threading.Thread(target=sample)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    delivery = session.measure('node', size, hz, seconds, watch=watch)
    settled = [sample for sample in samples if sample['seconds'] > seconds / 10]
    quarter = max(1, len(settled) // 4)
    change = {key: float(np.median([sample[key] for sample in settled[-quarter:]])
                         - np.median([sample[key] for sample in settled[:quarter]]))
              for key in ('memory_mb', 'descriptors', 'threads')}
    failures = []
    if change['memory_mb'] > MAX_MEMORY_MB:
        failures.append(f'memory grew by {change["memory_mb"]:.1f} MB')
    failures += [f'{key} grew by {change[key]:.0f}' for key in ('descriptors', 'threads')
                 if change[key] > 0]
    if delivery['growth'] is None or delivery['growth'] > MAX_GROWTH:
        failures.append(f'the latency grew by {delivery["growth"]}')
    return {'minutes': seconds / 60, **delivery, 'change': change,
            'memory_mb': [settled[0]['memory_mb'], settled[-1]['memory_mb']],
            'failures': failures, 'samples': samples,
            'machine': {**machine.describe(), **machine.state()}}


def in_use(pid: int) -> dict[str, float]:
    """Return a process's resident memory, open descriptors and threads."""
    process = Path('/proc') / str(pid)
    pages = int((process / 'statm').read_text().split()[1])
    return {'memory_mb': pages * os.sysconf('SC_PAGE_SIZE') / 1e6,
            'descriptors': len(list((process / 'fd').iterdir())),
            'threads': len(list((process / 'task').iterdir()))}


if __name__ == '__main__':
    scripts.end_in_a_line()
    sys.exit(main())
