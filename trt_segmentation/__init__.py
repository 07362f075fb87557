# SPDX-License-Identifier: Apache-2.0
"""INT8 semantic segmentation for ROS 2: calibrate on a host, build on the vehicle, run on time."""

__version__ = '0.2.0'

# Nothing is imported here: Ctrl-C meanwhile would be a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from trt_segmentation.calibration import calibrate
    from trt_segmentation.engines.opening import open_segmenter
    from trt_segmentation.segmenters.segmenter import Segmenter

# Resolved on first use, so that importing the package costs nothing and needs no other library.
_EXPORTS = {
    'Segmenter': 'trt_segmentation.segmenters.segmenter',
    'calibrate': 'trt_segmentation.calibration',
    'open_segmenter': 'trt_segmentation.engines.opening',
}

__all__ = ['Segmenter', '__version__', 'calibrate', 'open_segmenter']


def __getattr__(name: str) -> 'Any':
    """Import a public name on first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    """Return the public names, also those that were not used yet."""
    return sorted({*__all__, *(name for name in globals() if name.startswith('__'))})
