# SPDX-License-Identifier: Apache-2.0
"""
Time several cameras in turn and in batches, end to end over DDS, in one run.

    python benchmarks/cameras.py [--backend tensorrt_rtx --precision fp16] [--max-batch 8]

Sender, node and receiver are processes of their own, as in benchmarks/node.py; `node` takes one
frame after the other, `batched` those of cameras that wait together in one batch, in the sizes
that the build measured to be faster. Each camera sends 1024x512 at its rate, at moments of its
own.
GPU is what nvidia-smi says of the time in which some kernel ran.
"""

from __future__ import annotations

import argparse
from contextlib import contextmanager
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile

from node import add_engine, SAMPLE, Session, VGG

from trt_segmentation import reports
from trt_segmentation.system import machine, scripts
from trt_segmentation.system.files import atomic_write


@contextmanager
def gpu_share():
    """Yield a list that has the GPU's share of busy time, percent, when the block ends."""
    shares: list[float] = []
    if shutil.which('nvidia-smi') is None:
        yield shares
        return
    process = subprocess.Popen(
        ['nvidia-smi', '--query-gpu=utilization.gpu', '--format=csv,noheader,nounits', '-i',
         os.environ.get('CUDA_VISIBLE_DEVICES', '0').partition(',')[0], '-lms', '200'],
        stdout=subprocess.PIPE, text=True)
    try:
        yield shares
    finally:
        process.terminate()
        found = sorted(float(line) for line in process.communicate()[0].split() if line.isdigit())
        # Start and end of the processes are in it too: of the upper half the middle.
        shares += [found[3 * len(found) // 4]] if found else []


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    add_engine(parser)
    parser.add_argument('--network', choices=(SAMPLE, VGG), default=SAMPLE,
                        help='without --bundle')
    parser.add_argument('--cameras', type=int, nargs='+', default=[1, 2, 4, 8])
    parser.add_argument('--hz', type=int, nargs='+', default=[10, 20, 30], help='of each camera')
    parser.add_argument('--max-batch', type=int, default=8)
    parser.add_argument('--seconds', type=float, default=8, help='of each measurement')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures here too')
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as directory:
        session = Session(args, Path(directory))
        for cameras in args.cameras:
            for hz in args.hz:
                for subject in ('node', 'batched'):
                    with gpu_share() as shares:
                        figures = session.measure(subject, '1024x512', hz, args.seconds, cameras)
                    results.append({**figures, 'gpu_share': shares[0] if shares else None})
                    print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    if args.json:
        atomic_write(args.json, reports.json_text(
            {'results': results, 'machine': {**machine.describe(), **machine.state()}}))
    print(reports.text_table(
        ['cameras', 'Hz', 'subject', 'sent', 'received', 'p50 ms', 'p99 ms', 'CPU', 'GPU',
         'batches'],
        [[str(entry['cameras']), str(entry['hz']), entry['subject'], str(entry['sent']),
          str(entry['received']),
          *([f'{entry["latency_ms"][quantile]:.1f}' for quantile in ('p50', 'p99')]
            if entry['latency_ms'] else ['-'] * 2),
          f'{entry["cpu_share"]:.0%}',
          '-' if entry['gpu_share'] is None else f'{entry["gpu_share"]:.0f}%',
          ', '.join(f'{key.split("_")[2]}: {share:.0%}'
                    for key, share in entry['batches'].items())] for entry in results]))


if __name__ == '__main__':
    scripts.end_in_a_line()
    main()
