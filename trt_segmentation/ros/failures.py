# SPDX-License-Identifier: Apache-2.0
"""What an error in the node asks for, and how it is said."""

from __future__ import annotations

from trt_segmentation.errors import CheckFailed, DeviceError, DeviceLost, SegmentationError
from trt_segmentation.ros.engine_build import OtherVersion
from trt_segmentation.ros.supervisor import Kind
from trt_segmentation.ros.worker import EngineStuck


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
