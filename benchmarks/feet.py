# SPDX-License-Identifier: Apache-2.0
"""
The table that this method was published with, from what `benchmark` and `evaluate` wrote.

The publication gives accuracy and time of a framework, of FP32 and of INT8, and the way that a
vehicle travels meanwhile: 242 ms at 35 mph, about 12 feet.

    trt-segmentation benchmark my_bundle --output bench
    trt-segmentation evaluate my_bundle --cityscapes /data/cityscapes --output evaluation
    python benchmarks/feet.py bench/benchmark.json --evaluation evaluation/evaluation.json
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
import json
from pathlib import Path
import re
import sys
from typing import Any

from trt_segmentation.errors import InputError
from trt_segmentation.evaluation.benchmark import BASELINE, read, TOTAL
from trt_segmentation.reports import markdown_table, share, text_table
from trt_segmentation.system import scripts

_SPEED_UNITS = {'mph': 0.44704, 'km/h': 1 / 3.6, 'kmh': 1 / 3.6, 'm/s': 1.0}
FOOT = 0.3048
_TITLES = {BASELINE: 'framework (OpenCV DNN, CPU), FP32'}
_HEAD = ['network', 'class IoU %', 'category IoU %', 'p50 ms', 'p99 ms', 'speedup',
         'metres a frame', 'feet a frame']


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('result', metavar='BENCHMARK.json', help='what benchmark wrote')
    parser.add_argument('--evaluation', metavar='EVALUATION.json', type=Path,
                        help='what evaluate wrote, for the columns of accuracy')
    parser.add_argument('--speed', default='35mph', metavar='SPEED',
                        help='35mph, 50km/h, 14m/s (default: 35mph)')
    parser.add_argument('--format', choices=('text', 'json', 'markdown'), default='text')
    args = parser.parse_args()
    try:
        evaluation = json.loads(args.evaluation.read_text()) if args.evaluation else None
        rows = published_table(read(args.result), args.speed, evaluation)
    except (OSError, ValueError) as error:
        print(f'feet: {error}', file=sys.stderr)
        return 2
    if args.format == 'json':
        print(json.dumps(rows, indent=2))
        return 0
    cells = [[_TITLES.get(row['engine'], row['engine']), share(row['class_iou']),
              share(row['category_iou']), f'{row["p50_ms"]:.2f}', f'{row["p99_ms"]:.2f}',
              f'{row["speedup"]:.2f}', f'{row["metres"]:.2f}', f'{row["feet"]:.1f}']
             for row in rows]
    print(f'A vehicle at {args.speed}:')
    print((markdown_table if args.format == 'markdown' else text_table)(_HEAD, cells))
    return 0


def metres_per_second(speed: str) -> float:
    """Return a speed like '35mph', '50km/h' or '14m/s' in metres per second."""
    match = re.fullmatch(r'\s*([0-9.]+)\s*(mph|km/h|kmh|m/s)\s*', speed)
    try:
        value = float(match[1]) * _SPEED_UNITS[match[2]] if match else 0.0
    except ValueError:
        value = 0.0
    if not value > 0:
        raise InputError(f'speed: found {speed!r}, expected for instance 35mph or 50km/h')
    return value


def published_table(result: Mapping[str, Any], speed: str,
                    evaluation: Mapping[str, Any] | None = None
                    ) -> list[dict[str, Any]]:
    """
    Return the rows of the table that this method was published with, for this machine.

    :param speed: of the vehicle, as `metres_per_second` takes it
    :param evaluation: the figures that `evaluate` wrote, for the columns of accuracy
    :returns: for each engine: engine, class_iou, category_iou (0..1 or None), p50_ms, p99_ms,
        speedup (against the first row), metres and feet that the vehicle travels in the p50
    """
    velocity = metres_per_second(speed)
    scores = (evaluation or {}).get('engines', {})
    rows = []
    for name, figures in result['engines'].items():
        total = figures['stages'][TOTAL]
        # OpenCV runs the float network too: its masks are those of FP32.
        accuracy = scores.get(name) or (scores.get('fp32', {}) if name == BASELINE else {})
        metres = velocity * total['p50'] / 1e3
        rows.append({
            'engine': name,
            'class_iou': accuracy.get('mean_class_iou'),
            'category_iou': accuracy.get('mean_category_iou'),
            'p50_ms': total['p50'],
            'p99_ms': total['p99'],
            'speedup': (rows[0]['p50_ms'] if rows else total['p50']) / total['p50'],
            'metres': metres,
            'feet': metres / FOOT,
        })
    return rows


if __name__ == '__main__':
    scripts.end_in_a_line()
    sys.exit(main())
