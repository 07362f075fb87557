# SPDX-License-Identifier: Apache-2.0
"""
How both executables begin and end: signals at any moment end them, without a traceback.

What is imported here costs nothing (`signal` would bring enum); the rest comes in the functions.
"""

from _signal import (  # type: ignore[import-not-found]
    default_int_handler,
    getsignal,
    pthread_kill,
    SIG_DFL,
    SIGINT,
    signal,
    SIGTERM,
)
from _thread import allocate_lock, get_ident, start_new_thread
import sys
from time import sleep

TYPE_CHECKING = False  # typing costs something
if TYPE_CHECKING:
    from types import FrameType

# Not what is ignored, as Ctrl-C is in a background job of a shell.
_ENDING = [number for number in (SIGINT, SIGTERM)
           if getsignal(number) in (default_int_handler, SIG_DFL)]
_MAIN_THREAD = get_ident()
_LATER_SECONDS = 0.01
_put_off = allocate_lock()  # held while an interrupt is to come again
for _number in _ENDING:
    signal(_number, SIG_DFL)


def command() -> int:
    """Run `trt-segmentation`; return its exit code."""
    from trt_segmentation.cli import main
    from trt_segmentation.system.streams import outlive_readers
    _raise_interrupts()
    try:
        outlive_readers()
        return main()
    finally:
        for number in _ENDING:  # the work is done or given up: what is left is Python's own end
            signal(number, SIG_DFL)


def node() -> int:
    """Run `segmentation_node`; return its exit code."""
    from trt_segmentation.ros.command import main
    _raise_interrupts()
    return main()  # the node takes its signals over


def _raise_interrupts() -> None:
    """Make signals KeyboardInterrupt from now on, which commands turn into a sentence."""
    if _ENDING:
        sys.unraisablehook = _unraisable
    for number in _ENDING:
        signal(number, _interrupt)


def _interrupt(number: int, frame: 'FrameType | None') -> None:
    """
    Raise KeyboardInterrupt of the signal; while a module is imported, a moment later.

    A library that is interrupted while it is imported seems to be missing, or crashes.
    """
    while frame is not None and frame.f_code not in (command.__code__, node.__code__):
        if frame.f_code.co_filename.startswith('<frozen importlib'):
            _put_it_off(number)
            return
        frame = frame.f_back
    raise KeyboardInterrupt(number)


def _unraisable(found: 'sys.UnraisableHookArgs') -> None:
    """Interrupt again where KeyboardInterrupt met what cannot pass it on, as a destructor."""
    if isinstance(found.exc_value, KeyboardInterrupt):
        _put_it_off(*found.exc_value.args[:1])
    else:
        sys.__unraisablehook__(found)


def _put_it_off(number: int = SIGINT) -> None:
    """Interrupt a moment later; once, however often it was asked for, as a second one ends it."""
    if _put_off.acquire(False):
        start_new_thread(_again, (number,))


def _again(number: int) -> None:
    """Send a signal again, a moment later; a real signal, which ends what waits."""
    sleep(_LATER_SECONDS)
    _put_off.release()
    pthread_kill(_MAIN_THREAD, number)
