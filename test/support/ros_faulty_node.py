# SPDX-License-Identifier: Apache-2.0
"""
The node with an engine that fails when a picture tells it to.

The fault is named by the first pixel of a frame, (fault, 77, 99). Run it as the node is run.
"""

from __future__ import annotations

from enum import IntEnum
import os
from pathlib import Path
import sys
import threading
import time

import numpy as np

MARK = (77, 99)


class Fault(IntEnum):
    """What shall happen to a frame, or from it on."""

    RAISE = 1  # as a lost GPU does
    GARBAGE_SHAPE = 2
    NO_OUTPUT = 3
    SLOW = 4
    HANG = 5
    EXIT = 6  # something that is no Exception
    DRIFT = 7  # from now on the engine gives other classes
    RAISE_AND_NOT_OPEN = 8  # and the next time it cannot be opened
    KILL_WORKER = 9
    HANG_LATER = 10  # at the frame after this one
    RAISE_LATER = 11
    RAISE_LET = 12  # when the file that MAY_FAIL names is there
    EXIT_LATER = 13


SLOW_SECONDS = 0.5
LATER = {Fault.HANG_LATER: Fault.HANG, Fault.RAISE_LATER: Fault.RAISE,
         Fault.EXIT_LATER: Fault.EXIT}


def picture_of(fault: Fault, size: tuple[int, int]) -> np.ndarray:
    """Return a picture that causes a fault."""
    image = np.full((*size, 3), 128, np.uint8)
    image[0, 0] = (fault, *MARK)
    return image


class FaultyEngine:
    """An engine that fails as it is told."""

    def __init__(self, engine):
        """Take the engine that works."""
        self._engine = engine
        self.backend, self.precision = engine.backend, engine.precision
        self.fault: Fault | None = None
        self.later: Fault | None = None
        self.drifted = False

    def infer(self, tensor):
        """Run the network, or fail."""
        fault = self.fault or self.later
        self.fault, self.later = None, LATER.get(fault)
        if fault == Fault.SLOW:
            time.sleep(SLOW_SECONDS)
        if fault == Fault.RAISE_LET:
            print('about to fail', flush=True)
            while not Path(os.environ['MAY_FAIL']).exists():
                time.sleep(0.01)
        if fault in (Fault.RAISE, Fault.RAISE_AND_NOT_OPEN, Fault.RAISE_LET):
            raise RuntimeError('injected: the device is lost')
        if fault == Fault.EXIT:
            raise SystemExit('injected: exit')
        if fault == Fault.HANG:
            threading.Event().wait()
        outputs = self._engine.infer(tensor)
        name, values = next(iter(outputs.items()))
        if fault == Fault.GARBAGE_SHAPE:
            return {name: values[:, :3]}
        if fault == Fault.NO_OUTPUT:
            return {}
        self.drifted |= fault == Fault.DRIFT
        return {name: -values} if self.drifted else outputs

    def close(self):
        """Free the engine."""
        if os.environ.get('HANG_AT') == 'close':
            threading.Event().wait()
        self._engine.close()


def main() -> int:
    """Run the node with faults."""
    from trt_segmentation.ros import node as node_module
    from trt_segmentation.ros import transitions, wanted
    open_well = wanted.open_segmenter
    report_well = node_module.SegmentationNode._on_frame_error
    refuse_to_open = kill_worker = False

    def open_faulty(*args, **options):
        nonlocal refuse_to_open
        if threading.current_thread().name != 'engine':  # what checks it has no fault
            return open_well(*args, **options)
        if os.environ.get('HANG_AT') == 'open':
            print('hanging', flush=True)
            threading.Event().wait()
        if refuse_to_open:
            refuse_to_open = False
            raise RuntimeError('injected: cannot be opened')
        opened = open_well(*args, **options)
        opened.engine = FaultyEngine(opened.engine)
        segment_well = opened.segment_batch

        def segment_batch(images, want=('classes', 'color'), **options):
            nonlocal refuse_to_open, kill_worker
            for image in images:
                if tuple(image[0, 0, 1:]) == MARK:
                    opened.engine.fault = Fault(int(image[0, 0, 0]))
                    refuse_to_open |= opened.engine.fault == Fault.RAISE_AND_NOT_OPEN
                    if opened.engine.fault == Fault.KILL_WORKER:
                        kill_worker = True
                        raise RuntimeError('injected: on the way to the end of the worker')
            return segment_well(images, want, **options)

        opened.segment_batch = segment_batch
        return opened

    def on_frame_error(self, error):
        nonlocal kill_worker
        if kill_worker and threading.current_thread().name == 'engine':
            kill_worker = False
            raise RuntimeError('injected: the worker ends')
        report_well(self, error)

    def failing(name, times):
        """Let what a transition does raise instead, so many times."""
        method, left = getattr(transitions.Transitions, name), times

        def fail(self, *args):
            nonlocal left
            if left and self.cameras:
                left -= 1
                raise RuntimeError(f'injected: {name}')
            return method(self, *args)
        setattr(transitions.Transitions, name, fail)

    def hang(self):
        print('hanging', flush=True)
        threading.Event().wait()

    if os.environ.get('HANG_AT') == 'callback':
        node_module._STALL_SECONDS = 2.0
        node_module.SegmentationNode._follow = hang
    for fault in filter(None, os.environ.get('FAIL_IN', '').split(',')):
        method, _, times = fault.partition(':')
        failing(method, int(times))
    wanted.open_segmenter = open_faulty
    node_module.SegmentationNode._on_frame_error = on_frame_error
    return node_module.main()


if __name__ == '__main__':
    sys.exit(main())
