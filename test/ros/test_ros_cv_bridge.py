# SPDX-License-Identifier: Apache-2.0
"""
Image conversion against the real cv_bridge.

cv_bridge's compiled part needs the NumPy it was built with, so it runs in the system's Python
(Debian and Ubuntu: apt install python3-cv-bridge), which gets messages and returns images.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
import re
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from trt_segmentation.recordings.image_messages import to_image

pytestmark = pytest.mark.debian

SYSTEM_PYTHON = '/usr/bin/python3'
ORACLE = """
import base64, json, sys
from types import SimpleNamespace
import numpy as np
from cv_bridge import CvBridge
bridge, results = CvBridge(), []
for case in json.load(sys.stdin):
    case['data'] = base64.b64decode(case['data'])
    image = bridge.imgmsg_to_cv2(SimpleNamespace(**case), 'bgr8')
    image = np.ascontiguousarray(image)
    results.append((image.shape, base64.b64encode(image.tobytes()).decode()))
json.dump(results, sys.stdout)
"""

# Channels in memory, bits. Left out: what this cv_bridge does not know (yuyv, nv12, nv21 and the
# new name uyvy) or takes for no color (8UC1, 8UC3).
KNOWN = {
    'bgr8': (3, 8), 'rgb8': (3, 8), 'bgra8': (4, 8), 'rgba8': (4, 8), 'mono8': (1, 8),
    'bgr16': (3, 16), 'rgb16': (3, 16), 'bgra16': (4, 16), 'rgba16': (4, 16), 'mono16': (1, 16),
    'bayer_rggb16': (1, 16), 'bayer_grbg16': (1, 16),
    'bayer_rggb8': (1, 8), 'bayer_bggr8': (1, 8), 'bayer_gbrg8': (1, 8), 'bayer_grbg8': (1, 8),
    'yuv422': (2, 8),
}


def cases() -> list[dict]:
    """Return messages of several sizes, without row padding: this cv_bridge ignores the step."""
    random = np.random.default_rng(0)
    result = []
    for encoding, (channels, bits) in KNOWN.items():
        for height, width in ((6, 8), (34, 64), (5, 10)):
            step = width * channels * bits // 8
            data = random.integers(0, 256, height * step, np.uint8).tobytes()
            result += [{'encoding': encoding, 'height': height, 'width': width, 'step': step,
                        'is_bigendian': order, 'data': base64.b64encode(data).decode()}
                       for order in range(1 if bits == 8 else 2)]
    return result


@pytest.fixture(scope='module')
def answers() -> list[tuple[dict, np.ndarray]]:
    """Return each message with cv_bridge's image of it."""
    try:
        probe = subprocess.run([SYSTEM_PYTHON, '-c', 'import cv_bridge'], capture_output=True)
    except OSError:
        pytest.skip(f'no {SYSTEM_PYTHON}')
    if probe.returncode:
        pytest.skip('cv_bridge cannot be imported: apt install python3-cv-bridge')
    messages = cases()
    run = subprocess.run([SYSTEM_PYTHON, '-c', ORACLE], input=json.dumps(messages), text=True,
                         capture_output=True, check=True)
    images = [np.frombuffer(base64.b64decode(data), np.uint8).reshape(shape)
              for shape, data in json.loads(run.stdout)]
    return list(zip(messages, images))


@pytest.mark.parametrize('padding', [0, 1, 12])
@pytest.mark.parametrize('encoding', KNOWN)
def test_images_equal_cv_bridges(encoding, padding, answers):
    compared = 0
    for fields, expected in answers:
        if fields['encoding'] != encoding:
            continue
        rows = np.frombuffer(base64.b64decode(fields['data']), np.uint8)
        rows = np.pad(rows.reshape(fields['height'], -1), ((0, 0), (0, padding)))
        msg = SimpleNamespace(**{**fields, 'step': rows.shape[1], 'data': rows.tobytes()})
        image, color = to_image(msg)
        np.testing.assert_array_equal(image if color == 'bgr' else image[..., ::-1], expected)
        compared += 1
    assert compared == (3 if KNOWN[encoding][1] == 8 else 6)


FOREIGN = """
import json, sys
from types import SimpleNamespace
from trt_segmentation.recordings.image_messages import to_image
from trt_segmentation.recordings.limits import MalformedImage
said = {}
for encoding in json.load(sys.stdin):
    message = SimpleNamespace(encoding=encoding, height=4, width=6, step=192, is_bigendian=0,
                              data=bytes(4 * 192))
    try:
        image, color = to_image(message)
        said[encoding] = [list(image.shape), str(image.dtype), color]
    except MalformedImage as error:
        said[encoding] = str(error)
json.dump(said, sys.stdout)
"""


def test_what_is_not_converted_here_is_left_to_cv_bridge():
    """The package runs in the system's Python; cv_bridge decides, and its refusal is told."""
    foreign = ['nv24', '8UC2', '8SC1', '8SC3', '16UC3', '16SC1', '32SC1', '32FC3', '64FC4']
    run = subprocess.run([SYSTEM_PYTHON, '-c', FOREIGN], input=json.dumps(foreign), text=True,
                         capture_output=True, check=True, cwd=Path(__file__).parents[2])
    said = json.loads(run.stdout)
    assert list(said) == foreign
    for encoding, found in said.items():
        if isinstance(found, list):
            assert found == [[4, 6, 3], 'uint8', 'bgr']
        else:
            assert re.fullmatch(rf'encoding {encoding}: cv_bridge: .*\[{encoding}\].*', found)
