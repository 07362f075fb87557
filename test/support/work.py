# SPDX-License-Identifier: Apache-2.0
"""What workers do in tests of spreading; they import this module, which is quick."""

from multiprocessing import active_children
import os
from pathlib import Path
import random
import signal

import cv2

from trt_segmentation.errors import InputError
from trt_segmentation.system import cores


def square(number):
    return number * number


def large(number):
    """Return more than a pipe holds."""
    return bytes([number % 256]) * (1 << 20)


def noted(item):
    """Leave a file for each call, named by item and process."""
    directory, number = item
    (Path(directory) / f'{number}.{os.getpid()}').touch()
    return number


def deadly(number):
    """Kill the process with one of the items."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def refused(number):
    raise InputError(f'no {number}')


def process(item):
    return os.getpid()


def share(number):
    return cores.cores(), cores.threads(), cv2.getNumThreads()


def kill_one(seed, children=active_children):
    """Kill one of this process's children with SIGKILL, as the kernel does for lack of memory."""
    living = sorted(children(), key=lambda child: child.pid)
    if living:
        random.Random(seed).choice(living).kill()
    return bool(living)
