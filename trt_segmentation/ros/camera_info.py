# SPDX-License-Identifier: Apache-2.0
"""Camera parameters that belong to a mask."""

from __future__ import annotations

from sensor_msgs.msg import CameraInfo, RegionOfInterest
from std_msgs.msg import Header


def for_mask(info: CameraInfo, image_size: tuple[int, int], mask_size: tuple[int, int],
             header: Header) -> CameraInfo | None:
    """
    Return the camera info of a mask, or None if `info` does not belong to the image.

    A mask of the image's size has the image's camera info. One of another size has the
    intrinsics scaled with pixel centers at (i + 0.5), the rule by which the image was resized:
    f' = f * s and c' = (c + 0.5) * s - 0.5, where s is the ratio of the sizes along the axis.
    Binning and region of interest are worked into them.

    :param image_size, mask_size: (height, width), pixels
    :param header: the mask's
    """
    binning_x, binning_y = info.binning_x or 1, info.binning_y or 1
    whole = info.roi.width == 0 or info.roi.height == 0
    width, height = (info.width, info.height) if whole else (info.roi.width, info.roi.height)
    if (height // binning_y, width // binning_x) != image_size:
        return None
    result = CameraInfo(
        header=header, height=info.height, width=info.width,
        distortion_model=info.distortion_model, d=info.d, k=info.k, r=info.r, p=info.p,
        binning_x=info.binning_x, binning_y=info.binning_y, roi=info.roi)
    if mask_size == image_size:
        return result
    scale_x = mask_size[1] / image_size[1] / binning_x
    scale_y = mask_size[0] / image_size[0] / binning_y
    left, top = (0, 0) if whole else (info.roi.x_offset, info.roi.y_offset)
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
