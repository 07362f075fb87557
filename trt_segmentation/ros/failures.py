# SPDX-License-Identifier: Apache-2.0
"""What an error in the node asks for, and how it is said."""

from __future__ import annotations

from trt_segmentation.errors import CheckFailed, DeviceError, DeviceLost, SegmentationError
from trt_segmentation.ros.engine_build import OtherVersion
from trt_segmentation.ros.supervisor import FIRST_PAUSE, Kind, LONGEST_PAUSE, Mode, State
from trt_segmentation.ros.worker import EngineStuck

_WAITS = {
    Mode.RETRYING: f'trying again by itself: after {FIRST_PAUSE:g} s, then after longer and '
                   f'longer pauses, up to {LONGEST_PAUSE:g} s',
    Mode.GIVEN_UP: 'not trying again by itself: waiting until somebody asks for a transition '
                   '(ros2 lifecycle set), or starts the node anew',
}
_AGAIN_SECONDS = 300.0


def kind_of(error: Exception) -> Kind:
    """Return what an error asks for."""
    if isinstance(error, (DeviceLost, EngineStuck)):
        return Kind.LOST
    if isinstance(error, (CheckFailed, OtherVersion)):
        return Kind.FOR_GOOD
    if isinstance(error, DeviceError):
        return Kind.ENGINE
    return Kind.LATER if isinstance(error, (SegmentationError, OSError)) else Kind.ENGINE


def in_words(error: BaseException) -> str:
    """Return an error's message, with its type if it is not one of ours."""
    if isinstance(error, (SegmentationError, EngineStuck)):
        return str(error)
    return f'{type(error).__name__}: {error}'


class Waits:
    """Tells what becomes of a failure: when the node begins to wait, and from time to time."""

    def __init__(self) -> None:
        """Start without one."""
        self._told: tuple[Mode, str] | None = None
        self._told_at = 0.0

    def look(self, state: State, now: float) -> str:
        """
        Return what is to be said now, or ''.

        :param now: a steady clock, seconds
        """
        if not state.reason:  # it is where it should be
            self._told = None
        if state.mode not in _WAITS:
            return ''
        wait, text = (state.mode, state.reason), _WAITS[state.mode]
        if wait == self._told:
            if now - self._told_at < _AGAIN_SECONDS:
                return ''
            text = f'{state.reason}; still {text}'
        self._told, self._told_at = wait, now
        return text
