# SPDX-License-Identifier: Apache-2.0
"""
Messages whose data lies on the GPU, as ROS 2 Lyrical has them.

What is used of it: the keyword `acceptable_buffer_backends` of rclpy's subscriptions (rclpy's pull
request 1628); `backend_type`, `to_bytes` and the length of the `data` of a message that came so
(rosidl_buffer_py); and `CudaBuffer` of cuda_buffer_py (the README of cuda_buffer_backend in
ros2/rosidl_buffer_backends). Where one of them is missing, messages come and go through the host.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection
from contextlib import ExitStack
from copy import copy
from functools import cache
import inspect
import math
from typing import Any

import numpy as np
from rclpy.node import Node

from trt_segmentation.cuda.device import Device
from trt_segmentation.cuda.images import DeviceImage
from trt_segmentation.errors import DeviceError, one_line
from trt_segmentation.recordings import image_messages, layouts
from trt_segmentation.recordings.limits import MalformedImage

_KEYWORD, _CUDA = 'acceptable_buffer_backends', 'cuda'


@cache
def cuda_buffer() -> Any:
    """Return `cuda_buffer.CudaBuffer`, or None where that is not installed."""
    try:
        from cuda_buffer import CudaBuffer
        return CudaBuffer
    except ImportError:
        return None


def subscription_options(node: Node) -> dict[str, str]:
    """Return what lets a subscription take data on the GPU, as far as this ROS 2 can."""
    known = inspect.signature(node.create_subscription).parameters
    return {_KEYWORD: _CUDA} if _KEYWORD in known and cuda_buffer() is not None else {}


def is_native(message: Any) -> bool:
    """Tell whether a message's data is a buffer of rosidl's instead of an array."""
    return hasattr(message.data, 'backend_type')


def on_host(message: Any) -> Any:
    """
    Return a message with its data on the host; itself if it is there.

    :raises MalformedImage: if the data cannot be had
    """
    if not is_native(message):
        return message
    host = copy(message)
    host.data = array('B', _read(message.data.to_bytes))
    return host


def to_image(message: Any, device: Device | None, as_they_are: Collection[str],
             handles: ExitStack,
             decode_jpeg: Callable[[np.ndarray, str], Any] | None = None) -> tuple[Any, str]:
    """
    Return the image of a message, as `image_messages.to_image` does, and its layout.

    It stays on the GPU if it came there, and is in a layout that need not be converted, or if
    `decode_jpeg` leaves it there.

    :param device: where segmenters take it; None for nowhere
    :param as_they_are: the layouts of cameras that are not to be converted
    :param handles: what gives the data back to ROS when it ends; work that reads it must be on the
        device's stream by then
    :param decode_jpeg: as `image_messages.to_image` takes it
    :raises MalformedImage: if the message contradicts itself or cannot be converted, or its data
        cannot be had
    """
    layout = image_messages.layout(message) if is_native(message) else ''
    if (device is None or layout not in {*layouts.CHANNELS, *as_they_are}
            or message.data.backend_type != _CUDA or cuda_buffer() is None):
        return image_messages.to_image(on_host(message), as_they_are, decode_jpeg)
    size = image_messages.check(message)
    with device:
        handle = _read(lambda: cuda_buffer().from_input_buffer(message.data,
                                                               device.stream.handle))
        _close_with(handles, handle, device)
        address = _read(lambda: handle.device_ptr)
        if not device.owns(address):
            raise MalformedImage('unreadable', 'its data lies on another GPU than the engine, or '
                                 f'on none: {address:#x}')
    return DeviceImage(device, layout, size, address, message.step, lambda: image_messages
                       .to_image(on_host(message), (layout,))[0]), layout


def output(shape: tuple[int, ...], device: Device, handles: ExitStack) -> tuple[Any, int]:
    """
    Return a new buffer for a mask, as the data of a message, and its address on the GPU.

    :param handles: what hands it to ROS when it ends; work that writes it must be on the device's
        stream by then
    :raises DeviceError: if there is no memory for it
    """
    with device:
        try:
            buffer = cuda_buffer().allocate_buffer(math.prod(shape))
            handle = cuda_buffer().from_output_buffer(buffer, device.stream.handle)
            _close_with(handles, handle, device)
            return buffer, handle.device_ptr
        except Exception as error:  # what it raises is nowhere documented
            raise DeviceError(f'cuda_buffer: {one_line(error)}') from None


def _close_with(handles: ExitStack, handle: Any, device: Device) -> None:
    """Let a handle note, when `handles` end, up to where the device's stream uses its buffer."""
    def close() -> None:
        with device:
            handle.close()

    handles.callback(close)


def _read(get: Callable[[], Any]) -> Any:
    """Return what a buffer gives; MalformedImage if it does not."""
    try:
        return get()
    except Exception as error:  # what it raises is nowhere documented
        raise MalformedImage('unreadable', 'its data on the GPU cannot be read: '
                             f'{one_line(error)}') from None
