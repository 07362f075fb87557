# SPDX-License-Identifier: Apache-2.0
"""
Press Ctrl-C at random moments of each command, and print a table: promise, trials, failures.

An interrupted command ends with 130 and one line, or by the signal while its modules are imported
and when Python ends; never with a traceback, and never with 0 before its work is done.
"""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import sys
import time

from support.audit import audit, seconds
from support.calibration import pictures, write_pictures
from support.networks import fcn, write_bundle

from trt_segmentation.recordings import bags

# What comes before is Python's own start, whose tracebacks nobody can help.
PROGRAM = ('import os, sys; from trt_segmentation import start; '
           'os.write(int(sys.argv.pop()), b"."); sys.exit(start.command())')
LIMITS = {'min_agreement': 0.3, 'min_class_agreement': 0.0, 'min_int8_share': 0.5}
PATIENCE = 60.0


def commands(home: Path) -> dict[str, list[str]]:
    """Return the words of each command, which makes home/out."""
    bundle, store, out = str(home / 'bundle'), ['--store', str(home / 'store')], str(home / 'out')
    images = ['--images', str(home / 'images')]
    return {'preview': [bundle, *images, '--output', f'{out}.png'],
            'calibrate': [f'{out}.bundle', *images, '--count', '4', '--golden', '2'],
            'build': [bundle, '--store', out],
            'evaluate': [bundle, *images, *store, '--output', out],
            'replay': [bundle, '--bag', str(home / 'bag'), *store, '--output', out],
            'benchmark': [bundle, *store, '--frames', '20', '--output', out]}


def prepared(home: Path) -> None:
    """Make what the commands need."""
    write_bundle(home / 'bundle', fcn(), acceptance=LIMITS)
    shutil.copytree(home / 'bundle', home / 'plain')
    write_pictures(home / 'images', 8)
    words = commands(home)
    seconds(['calibrate', str(home / 'bundle'), *words['calibrate'][1:]])
    seconds(['build', str(home / 'bundle'), '--store', str(home / 'store')])
    with bags.Writer(home / 'bag') as writer:
        for i, image in enumerate(pictures(6)):
            writer.write_image('/c/image', image, 'bgr8', i + 1, 'c')


def run(home: Path, verb: str, moment: float) -> tuple[int, str, float]:
    """Interrupt a command; return its exit code, what it said, and when it ended by itself."""
    for path in home.glob('out*'):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if verb == 'calibrate':
        shutil.copytree(home / 'plain', home / 'out.bundle')
    reader, writer = os.pipe()
    with subprocess.Popen(
            [sys.executable, '-c', PROGRAM, verb, *commands(home)[verb], str(writer)],
            pass_fds=[writer], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            # In a shell's background job it would be born deaf to Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)) as child:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        begun = time.monotonic()
        try:
            child.wait(moment)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
        try:
            _, said = child.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            said = 'it did not end'
        return child.returncode, said, time.monotonic() - begun


def interrupted(home: Path, verb: str, trials: int) -> Iterator[str]:
    """Interrupt a command so often; yield what it should not have done."""
    code, said, duration = run(home, verb, PATIENCE)
    if code:
        yield f'{verb}: ended with {code} by itself: {said}'
        return
    whole = {path.name for path in home.glob('out*')}
    for _ in range(trials):
        moment = duration * random.random()
        code, said, _ = run(home, verb, moment)
        sentence = said.endswith(f'trt-segmentation {verb}: interrupted\n')
        silent = code == -signal.SIGINT or (code == 0 and whole <= {
            path.name for path in home.glob('out*')})
        if 'Traceback' in said or 'ignored' in said or not (silent or (code == 130 and sentence)):
            yield f'{verb} after {moment:.2f} s: ended with {code}: {said[-2000:]}'


def promises(home: Path, trials: int) -> Iterator[tuple[str, int, Iterator[str]]]:
    """Yield what each command promises."""
    prepared(home)
    for verb in commands(home):
        share = max(1, trials // len(commands(home)))
        yield f'an interrupted `{verb}` says so in a line', share, interrupted(home, verb, share)


if __name__ == '__main__':
    sys.exit(audit(__doc__, promises))
