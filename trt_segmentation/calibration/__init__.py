# SPDX-License-Identifier: Apache-2.0
"""Calibration: from images to the INT8 scale of each activation."""

from trt_segmentation.calibration.run import calibrate, Calibration

__all__ = ['Calibration', 'calibrate']
