# SPDX-License-Identifier: Apache-2.0
"""Image messages, and what a pipeline needs to take them."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

from hypothesis import strategies as st
import numpy as np
from sensor_msgs.msg import Image

from trt_segmentation.recordings.image_messages import ENCODINGS
from trt_segmentation.ros.health import InputHealth, OutputHealth
from trt_segmentation.ros.statistics import Statistics

# Encoding, height, width, step, is_bigendian and data of whatever may come as an Image.
ANY_IMAGE = (
    st.sampled_from([*ENCODINGS, 'rgb', 'jpeg']) | st.text(max_size=8),
    st.integers(0, 20) | st.integers(0, 2**32 - 1), st.integers(0, 20),
    st.integers(0, 130) | st.integers(0, 2**32 - 1), st.integers(0, 255), st.binary(max_size=600))


def message(pixels: np.ndarray, encoding: str, *, width: int | None = None,
            height: int | None = None, padding: int = 0, big_endian: bool = False) -> Image:
    """Lay rows of pixels out as a message, each followed by junk."""
    if pixels.dtype == np.uint16:
        pixels = pixels.astype('>u2' if big_endian else '<u2')
    rows = pixels.reshape(len(pixels), -1).view(np.uint8)
    junk = np.full((len(rows), padding), 0xA5, np.uint8)
    data = np.hstack([rows, junk])
    return Image(height=height or len(pixels), width=width or pixels.shape[1], encoding=encoding,
                 is_bigendian=int(big_endian), step=data.shape[1], data=array('B', data.tobytes()))


def random_pixels(seed: int, *shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def good(**changes) -> Image:
    msg = message(random_pixels(0, 4, 6, 3), 'bgr8')
    for name, value in changes.items():
        setattr(msg, name, value)
    return msg


class Camera:
    """What a pipeline uses of a camera; keeps what is published."""

    topic = '/image'
    looked_ns = 0

    def __init__(self):
        self.input_health, self.output_health = InputHealth(), OutputHealth()
        self.statistics = Statistics()
        self.info = SimpleNamespace(of=lambda header: None)
        self.outputs = SimpleNamespace(
            wanted=lambda: frozenset({'class_mask', 'overlay'}), publish=self._publish,
            publish_status=lambda *_: None, topics={'class_mask': '/class_mask'})
        self.masks, self.image, self.color, self.dropped = None, None, '', []

    def _publish(self, wanted, masks, image, color, header, info, source_size, on_gpu):
        assert masks.classes.shape == masks.color.shape[:2]
        self.masks, self.image, self.color, self.source_size = masks, image, color, source_size

    def drop(self, cause, text):
        self.dropped.append(cause)

    def processed(self, *figures):
        """Take what a real one counts."""

    published = processed
