# SPDX-License-Identifier: Apache-2.0
"""
Try what bundles promise, many times, and print a table: promise, trials, failures.

Killed writers: each command that changes a bundle is killed at a random moment of its run; then
every reader must take the bundle, the old set or the new one, and the next command must go on.
Damage: one byte of a bundle is changed; no reader may take it, and no command but `seal` may
vouch for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import random
import shutil
import sys

from support.audit import audit, in_process, kill, seconds, wait
from support.calibration import write_pictures
from support.networks import fcn, write_bundle

# Whatever the commands need is imported here, once; each of them runs in a process of its own.
from trt_segmentation.bundles import golden, seal  # noqa: F401
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.calibration import adoption, run  # noqa: F401
from trt_segmentation.errors import InputError
from trt_segmentation.system import files

FILES = ('model.onnx', 'model.yaml', 'calibration.cache', 'calibration.json', 'SHA256SUMS',
         'golden/000.png', 'golden/001.mask.png')


class Place:
    """A directory with a calibrated bundle, images, and a foreign cache."""

    def __init__(self, directory: Path):
        """Make all of it."""
        self.bundle = directory / 'bundle'
        self._original = write_bundle(directory / 'original', fcn())
        self.images = [str(write_pictures(directory / f'images{i}', 8, seed=i)) for i in (0, 1)]
        self.foreign = str(directory / 'foreign.cache')
        seconds(self.calibrate(0, self._original))
        shutil.copy(self._original / 'calibration.cache', self.foreign)

    def fresh(self) -> None:
        """Put the bundle as it was."""
        shutil.rmtree(self.bundle, ignore_errors=True)
        shutil.copytree(self._original, self.bundle)

    def calibrate(self, images: int, bundle: Path | None = None) -> list[str]:
        """Return the command that calibrates with one set of images."""
        return ['calibrate', str(bundle or self.bundle), '--images', self.images[images],
                '--count', '4', '--golden', '2', '--no-report']

    def commands(self) -> dict[str, list[str]]:
        """Return each command that changes a bundle."""
        return {
            'calibrate': self.calibrate(1),
            'adopt': ['adopt', str(self.bundle), self.foreign, '--allow-implausible'],
            'golden': ['golden', str(self.bundle), '--images', self.images[1], '--count', '3'],
            'seal': ['seal', str(self.bundle)],
        }


def read(bundle: Path) -> None:
    """Read a bundle as a build and a node do; raises InputError if it cannot be taken."""
    opened = Bundle.open(bundle)
    cache_of(opened)
    if len(list(golden.read(opened.golden_path))) not in (2, 3):
        raise InputError('golden frames are missing')


def killed(place: Place, name: str, trials: int) -> Iterator[str]:
    """Kill a command `trials` times; yield what went wrong."""
    command = place.commands()[name]
    place.fresh()
    duration = seconds(command)
    for i in range(trials):
        place.fresh()
        kill(command, duration)
        try:
            read(place.bundle)
            if name == 'seal' or i % 10 == 0:
                with in_process(command) as child:
                    if status := wait(child):
                        yield f'{name} ended with {status} after a killed one'
                read(place.bundle)
        except InputError as error:
            yield f'after a killed {name}: {error}'


def damaged(place: Place, trials: int) -> Iterator[str]:
    """Change one byte `trials` times; yield who took the bundle or vouched for it."""
    for i in range(trials):
        place.fresh()
        name = FILES[i % len(FILES)]
        path = place.bundle / name
        data = bytearray(path.read_bytes())
        position = random.randrange(len(data))
        sums = files.read_sums(place.bundle)
        data[position] ^= 1 << random.randrange(8)
        path.write_bytes(data)
        try:
            read(place.bundle)
            # Another case of a digit, or sha256sum's other mark, says the same.
            if name != files.SUMS_NAME or files.read_sums(place.bundle) != sums:
                yield f'{name}, byte {position}: taken'
        except InputError:
            pass
        own = ['adopt', str(place.bundle), str(place.bundle / 'calibration.cache')]
        for verb, command in {**place.commands(), 'adopt its own': own}.items():
            if verb == 'seal' or name == files.SUMS_NAME:
                continue
            place.fresh()
            path.write_bytes(data)
            before = files.sha256_file(path)
            with in_process(command) as child:
                status = wait(child)
            if status == 0 and path.exists() and files.sha256_file(path) == before:
                yield f'{name}, byte {position}: {verb} vouched for it'


def promises(directory: Path, trials: int) -> Iterator[tuple[str, int, Iterator[str]]]:
    """Yield what bundles promise."""
    place = Place(directory)
    for name in place.commands():
        yield (f'`{name}` killed at any moment leaves a bundle that is taken', trials,
               killed(place, name, trials))
    yield ('a changed byte is never taken, nor vouched for', trials // 4,
           damaged(place, trials // 4))


if __name__ == '__main__':
    sys.exit(audit(__doc__, promises))
