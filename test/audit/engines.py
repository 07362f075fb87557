# SPDX-License-Identifier: Apache-2.0
"""
Try what the store promises, many times, and print a table: promise, trials, failures.

Killed builds: the engine that was there, or the new one, must open afterwards. Builds beside a
loop that adopts other caches: what lies under a key must be what is built from that key's cache.
Damage: a record or plan with one changed byte must not open. Killed makers of files (init, replay,
export): their output is whole or not there, and the next run cleans up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
import os
from pathlib import Path
import random
import shutil
import sys

import onnx
from support.audit import audit, in_process, kill, seconds, wait
from support.calibration import pictures, write_pictures
from support.networks import fcn, write_bundle

from trt_segmentation.bundles.bundle import Bundle

# Whatever the commands need is imported here, once; each of them runs in a process of its own.
from trt_segmentation.calibration import adoption, run  # noqa: F401
from trt_segmentation.cli import main
from trt_segmentation.engines import choose_backend
from trt_segmentation.engines.build import build, is_proven, plan_inputs
from trt_segmentation.engines.store import Store
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation import replay  # noqa: F401
from trt_segmentation.export import run as export  # noqa: F401
from trt_segmentation.recordings import bags
from trt_segmentation.system import files

ENGINE = ['--backend', 'onnxruntime', '--store']
LIMITS = {'min_agreement': 0.3, 'min_class_agreement': 0.0, 'min_int8_share': 0.5}


class Place:
    """A directory with a calibrated bundle, a store with its engine, and two caches."""

    def __init__(self, directory: Path):
        """Make all of it."""
        self.directory = directory
        self.bundle, self.store = directory / 'bundle', directory / 'store'
        write_bundle(self.bundle, fcn(), acceptance=LIMITS)
        self.caches = []
        for seed in (0, 1):  # the second calibration's golden frames stay
            images = write_pictures(directory / f'images{seed}', 8, seed=seed)
            seconds(['calibrate', str(self.bundle), '--images', str(images), '--count', '4',
                     '--golden', '2', '--no-report', '--equalize', 'off'])
            cache = directory / f'{seed}.cache'
            shutil.copy(self.bundle / 'calibration.cache', cache)
            self.caches.append(str(cache))
        seconds(self.build())
        onnx.save(fcn(), directory / 'fcn.onnx')
        with bags.Writer(directory / 'bag') as writer:
            for i, image in enumerate(pictures(6)):
                writer.write_image('/c/image', image, 'bgr8', i + 1, 'c')

    def build(self, *options: str) -> list[str]:
        """Return the command that builds."""
        return ['build', str(self.bundle), *ENGINE, str(self.store), *options]

    def adopt(self, number: int) -> list[str]:
        """Return the command that takes over one of the caches."""
        return ['adopt', str(self.bundle), self.caches[number], '--allow-implausible']

    def opened(self) -> None:
        """Read the engine as a node does before it runs it; raises InputError if it may not."""
        bundle = Bundle.open(self.bundle)
        inputs = plan_inputs(bundle, choose_backend('onnxruntime'), 'int8')
        record, _ = Store(self.store, writable=False).engine(inputs.key)
        if record.inputs != inputs or not is_proven(record, bundle):
            raise InputError('not the engine of this bundle, or not proven')

    def left(self) -> list[str]:
        """Return what lies in the store that is neither an engine nor its lock."""
        return [path.name for path in self.store.iterdir()
                if path.name[0] == '.' and path.name != '.lock']


def killed_builds(place: Place, trials: int) -> Iterator[str]:
    """Kill `build --force`; yield where no proven engine opens afterwards."""
    command = place.build('--force')
    duration = seconds(command)
    for i in range(trials):
        kill(command, duration)
        try:
            place.opened()
        except InputError as error:
            yield f'after a killed build: {error}'
            seconds(command)
        if i % 20 == 0:
            seconds(command)
            if left := place.left():
                yield f'the next build left {left}'


def builds_beside_adoptions(place: Place, trials: int) -> Iterator[str]:
    """Build while the bundle's cache changes; yield plans that lie under another cache's key."""
    expected = {}
    for number in (0, 1):
        seconds(place.adopt(number))
        seconds(place.build('--force'))
        bundle = Bundle.open(place.bundle)
        key = plan_inputs(bundle, choose_backend('onnxruntime'), 'int8').key
        expected[key] = Store(place.store).engine(key)[0].plan_sha256
    if len(set(expected.values())) != 2:
        yield 'the two caches give one plan: nothing is tried'

    def adopting() -> int:
        number = 0
        while True:
            number += 1
            main(place.adopt(number % 2))

    def building() -> int:
        build(Bundle.open(place.bundle), backend='onnxruntime', store=place.store, force=True)
        return 0  # else the bundle changed between two looks at it, which is said

    built = 0
    with in_process(adopting) as child_that_adopts:
        for _ in range(trials):
            with in_process(building) as child:
                built += wait(child) == 0
            for key in expected:
                with suppress(InputError):
                    _, plan = Store(place.store).engine(key)
                    if files.sha256_bytes(plan) != expected[key]:
                        yield f'{key[:12]}: the plan of another cache'
        if built < trials / 4 or os.waitpid(child_that_adopts, os.WNOHANG)[0]:
            yield f'{built} builds of {trials} came to an end: too few to say anything'


def changed_bytes(place: Place, trials: int) -> Iterator[str]:
    """Change one byte of record or plan; yield what opens nevertheless."""
    seconds(place.build('--force'))
    key = plan_inputs(Bundle.open(place.bundle), choose_backend('onnxruntime'), 'int8').key
    for i in range(trials):
        path = place.store / key / ('record.json', 'plan')[i % 2]
        data = path.read_bytes()
        changed = bytearray(data)
        at = random.randrange(len(data))
        changed[at] ^= 1 << random.randrange(8)
        path.write_bytes(changed)
        try:
            place.opened()
            yield f'{path.name}, byte {at}: opened'
        except InputError:
            pass
        path.write_bytes(data)
    place.opened()


def killed_makers(place: Place, trials: int) -> Iterator[str]:
    """Kill what makes a new directory or file; yield what is there in part, or left behind."""
    work = place.directory / 'work'
    work.mkdir()
    out = work / 'out'
    bundle, store = str(place.bundle), str(place.store)
    commands = {
        'init': (['init', str(place.directory / 'fcn.onnx'), str(out)],
                 lambda: Bundle.open(out, verify=False)),
        'replay': (['replay', bundle, '--bag', str(place.directory / 'bag'), '--output', str(out),
                    *ENGINE, store],
                   lambda: len(list(bags.Reader(out))) == 12 or wrong('frames are missing')),
        'export': (['export', bundle, '--for', 'onnxruntime', '--output', str(out)],
                   lambda: files.verify_sums(out))}
    for number, (name, (command, check)) in enumerate(commands.items(), 1):
        duration = seconds(command)
        shutil.rmtree(out)
        share = trials * number // len(commands) - trials * (number - 1) // len(commands)
        for i in range(share):
            kill(command, duration)
            try:
                if out.exists():
                    check()
            except InputError as error:
                yield f'{name}: {error}'
            shutil.rmtree(out, ignore_errors=True)
            if i % 10 == 0:
                seconds(command)
                if left := [path.name for path in work.iterdir() if path != out]:
                    yield f'the next {name} left {left}'
                shutil.rmtree(out)
        for path in work.iterdir():
            shutil.rmtree(path)


def wrong(what: str) -> None:
    """Raise InputError."""
    raise InputError(what)


def promises(directory: Path, trials: int) -> Iterator[tuple[str, int, Iterator[str]]]:
    """Yield what the store and the makers of files promise."""
    place = Place(directory)
    for promise, found in (
            ('after a killed `build --force` a proven engine opens', killed_builds),
            ('no plan lies under the key of another cache, whoever adopts meanwhile',
             builds_beside_adoptions),
            ('a record or plan with a changed byte does not open', changed_bytes),
            ('what a killed `init`, `replay` or `export` makes is whole or not there',
             killed_makers)):
        yield promise, trials, found(place, trials)


if __name__ == '__main__':
    sys.exit(audit(__doc__, promises))
