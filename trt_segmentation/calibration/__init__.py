# SPDX-License-Identifier: Apache-2.0
"""Calibration: from images to the INT8 scale of each activation."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trt_segmentation.calibration.run import calibrate, Calibration

#: How a threshold is found; see `trt_segmentation.calibration.methods`.
METHODS = ('mse', 'entropy', 'percentile', 'minmax')

__all__ = ['Calibration', 'METHODS', 'calibrate']


def __getattr__(name: str):
    """Import a public name on first use: the command line's parser needs METHODS only."""
    if name not in ('calibrate', 'Calibration'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from trt_segmentation.calibration import run
    return getattr(run, name)
