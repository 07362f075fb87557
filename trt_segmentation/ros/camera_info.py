# SPDX-License-Identifier: Apache-2.0
"""Camera parameters: which belong to a frame, and what they become for its mask."""

from __future__ import annotations

from collections import OrderedDict
from math import isfinite

from rclpy.node import Node
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header

# Best effort and volatile hears whoever publishes from now on; what a latched publisher sent
# before, only a subscription gets that asks for it, and that one hears no other publisher.
_QOS = (QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT),
        QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE,
                   durability=QoSDurabilityPolicy.TRANSIENT_LOCAL))
_KEPT = 16  # a frame waits for the engine while newer parameters come


class InfoInput:
    """
    Hears a camera's parameters, latched or not.

    topic: the absolute, remapped name
    """

    def __init__(self, node: Node, name: str):
        """
        Prepare, without subscribing yet.

        :param name: of the topic, as remapping rules apply to it
        """
        self._node, self._name = node, name
        self.topic = node.resolve_topic_name(name)
        self._subscriptions: list[Subscription] = []
        self._infos: OrderedDict[tuple[int, int], CameraInfo] = OrderedDict()

    def listen(self, wanted: bool) -> None:
        """Subscribe, or forget all and listen no more."""
        if wanted:
            for qos in _QOS[len(self._subscriptions):]:  # those that are not there yet
                self._subscriptions.append(self._node.create_subscription(
                    CameraInfo, self._name, self._on_info, qos))
        elif self._subscriptions:
            for subscription in self._subscriptions:
                self._node.destroy_subscription(subscription)
            self._subscriptions = []
            self._infos.clear()

    def of(self, header: Header) -> CameraInfo | None:
        """Return the parameters with a frame's stamp, else the newest; None before any."""
        infos = list(self._infos.items())  # the executor's thread may add one meanwhile
        return dict(infos).get(_stamp(header), infos[-1][1] if infos else None)

    def _on_info(self, message: CameraInfo) -> None:
        """Keep the newest ones; the same one may come by both subscriptions."""
        stamp = _stamp(message.header)
        self._infos[stamp] = message
        self._infos.move_to_end(stamp)
        while len(self._infos) > _KEPT:
            self._infos.popitem(last=False)


def _stamp(header: Header) -> tuple[int, int]:
    """Return a header's stamp."""
    return header.stamp.sec, header.stamp.nanosec


def problem(info: CameraInfo, image_size: tuple[int, int]) -> str:
    """
    Return why parameters do not describe an image, or ''.

    :param image_size: (height, width), pixels
    """
    if not info.width or not info.height:
        return f'its size is {info.width}x{info.height}'
    if not all(map(isfinite, (*info.k, *info.p, *info.r, *info.d))):
        return 'not all of its numbers are finite'
    roi = info.roi
    if roi.x_offset + roi.width > info.width or roi.y_offset + roi.height > info.height:
        return (f'its region of {roi.width}x{roi.height} at ({roi.x_offset}, {roi.y_offset}) '
                f'goes beyond its {info.width}x{info.height}')
    height, width = _described(info)
    if (height, width) != image_size:
        return (f'it describes {width}x{height}, but the image is '
                f'{image_size[1]}x{image_size[0]}')
    return ''


def _described(info: CameraInfo) -> tuple[int, int]:
    """Return the (height, width) of the images that parameters describe."""
    width, height = (info.width, info.height) if _whole(info) else (info.roi.width,
                                                                    info.roi.height)
    return height // (info.binning_y or 1), width // (info.binning_x or 1)


def _whole(info: CameraInfo) -> bool:
    """Tell whether the image is the whole sensor's."""
    return info.roi.width == 0 or info.roi.height == 0


def for_mask(info: CameraInfo, image_size: tuple[int, int], mask_size: tuple[int, int],
             header: Header) -> CameraInfo:
    """
    Return the camera info of a mask.

    A mask of the image's size has the image's camera info. One of another size has the
    intrinsics scaled with pixel centers at (i + 0.5), the rule by which the image was resized:
    f' = f * s and c' = (c + 0.5) * s - 0.5, where s is the ratio of the sizes along the axis.
    Binning and region of interest are worked into them.

    :param info: parameters without a `problem` with the image
    :param image_size, mask_size: (height, width), pixels
    :param header: the mask's
    """
    binning_x, binning_y = info.binning_x or 1, info.binning_y or 1
    result = CameraInfo(
        header=header, height=info.height, width=info.width,
        distortion_model=info.distortion_model, d=info.d, k=info.k, r=info.r, p=info.p,
        binning_x=info.binning_x, binning_y=info.binning_y, roi=info.roi)
    if mask_size == image_size:
        return result
    scale_x = mask_size[1] / image_size[1] / binning_x
    scale_y = mask_size[0] / image_size[0] / binning_y
    left, top = (0, 0) if _whole(info) else (info.roi.x_offset, info.roi.y_offset)
    result.k = _scaled(info.k, 3, scale_x, scale_y, left, top)
    result.p = _scaled(info.p, 4, scale_x, scale_y, left, top)
    result.height, result.width = mask_size
    result.binning_x = result.binning_y = 0
    result.roi = RegionOfInterest(do_rectify=info.roi.do_rectify)
    return result


def _scaled(matrix, columns: int, scale_x: float, scale_y: float, left: int, top: int
            ) -> list[float]:
    """Return a row-major camera matrix for the part at (left, top), scaled."""
    result = list(matrix)
    for row, scale, offset in ((0, scale_x, left), (1, scale_y, top)):
        start = row * columns
        for column in range(columns):
            result[start + column] *= scale
        result[start + 2] = (matrix[start + 2] - offset + 0.5) * scale - 0.5
    return result
