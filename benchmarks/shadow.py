# SPDX-License-Identifier: Apache-2.0
"""
Time the node with the shadow check and without, by turns, in one run.

    python benchmarks/shadow.py [--rounds 6] [--seconds 40] [--hz 10] [--period 10] [--json FILE]

The load and the latency are those of benchmarks/node.py: from before publish() of an image to the
first line of the callback of its last mask. Percentiles are over the frames of all rounds of a
kind; the spread is that of the 99th percentile from round to round without the check, within which
nothing can be told.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys
import tempfile
from typing import Any

from node import add_engine, Session
import numpy as np

from trt_segmentation import reports
from trt_segmentation.system import machine, scripts
from trt_segmentation.system.files import atomic_write

_PERCENTILES = (50, 95, 99)


def main() -> int:
    """Run and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--rounds', type=int, default=6, help='of each kind')
    parser.add_argument('--seconds', type=float, default=40)
    parser.add_argument('--hz', type=float, default=10)
    parser.add_argument('--size', default='1024x512')
    parser.add_argument('--period', type=float, default=10.0, help='of the shadow check, seconds')
    add_engine(parser)
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures here too')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        figures = compare(Session(args, Path(directory)), args)
    figures['machine'] = {**machine.describe(), **machine.state()}
    if args.json:
        atomic_write(args.json, reports.json_text(figures))
    print(json.dumps(figures, indent=2))
    return 0


def compare(session: Session, args: argparse.Namespace) -> dict[str, Any]:
    """Return latencies with and without the check, and how the 99th percentile changes."""
    latencies: dict[str, list[np.ndarray]] = {'without': [], 'with': []}
    for number in range(args.rounds):
        # In turns that go both ways, so that a machine that warms up favors neither.
        for kind in ('without', 'with') if number % 2 == 0 else ('with', 'without'):
            session.parameters = {'shadow_period_s': args.period if kind == 'with' else 0.0}
            session.measure('node', args.size, args.hz, args.seconds)
            latencies[kind].append(session.latencies_ms)
            print(kind, *(f'{np.percentile(latencies[kind][-1], q):.1f}' for q in _PERCENTILES),
                  file=sys.stderr, flush=True)
    percentiles = {kind: {f'p{q}': float(np.percentile(np.concatenate(rounds), q))
                          for q in _PERCENTILES} for kind, rounds in latencies.items()}
    each = [float(np.percentile(rounds, 99)) for rounds in latencies['without']]
    return {
        'hz': args.hz, 'size': args.size, 'period_s': args.period, 'rounds': args.rounds,
        'frames': {kind: int(sum(map(len, rounds))) for kind, rounds in latencies.items()},
        'latency_ms': percentiles,
        'p99_change': percentiles['with']['p99'] / percentiles['without']['p99'] - 1,
        'p99_spread': max(each) / min(each) - 1,
    }


if __name__ == '__main__':
    scripts.end_in_a_line()
    sys.exit(main())
