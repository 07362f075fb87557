# SPDX-License-Identifier: Apache-2.0
"""
How both executables begin: Ctrl-C while modules are imported ends them without a traceback.

What is imported here costs nothing (`signal` would bring enum); the rest comes in the functions.
"""

from _signal import (  # type: ignore[import-not-found]
    default_int_handler,
    getsignal,
    SIG_DFL,
    SIGINT,
    signal,
)

# Not where it is ignored, as in a background job of a shell.
_INTERRUPTIBLE = getsignal(SIGINT) is default_int_handler
if _INTERRUPTIBLE:
    signal(SIGINT, SIG_DFL)


def command() -> int:
    """Run `trt-segmentation`; return its exit code."""
    from trt_segmentation.cli import main
    _raise_interrupts()
    return main()


def node() -> int:
    """Run `segmentation_node`; return its exit code."""
    from trt_segmentation.ros.command import main
    _raise_interrupts()
    return main()


def _raise_interrupts() -> None:
    """Make Ctrl-C KeyboardInterrupt from now on, which commands turn into a sentence."""
    if _INTERRUPTIBLE:
        signal(SIGINT, default_int_handler)
