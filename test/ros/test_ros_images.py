# SPDX-License-Identifier: Apache-2.0
"""Image messages against literal definitions of their encodings, OpenCV and Pillow."""

from __future__ import annotations

from array import array
import io
import sys

import cv2
from hypothesis import example, given, settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image as Pillow
import pytest

pytest.importorskip('rclpy', reason='the conversions are of ROS messages')
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from support.messages import ANY_IMAGE, good, message, random_pixels

from trt_segmentation.recordings import image_messages
from trt_segmentation.recordings.image_messages import check, ENCODINGS, to_image
from trt_segmentation.recordings.limits import CAUSES, MalformedImage, MAX_SIDE
from trt_segmentation.ros.outputs import to_message, to_png_message

SIDES = st.integers(1, 9)

# What an encoding's pixels mean, in the words of sensor_msgs/image_encodings.hpp: how many
# channels, which of them are red, green and blue, and how many bits each has.
PACKED = {
    'bgr8': (3, (2, 1, 0), 8), 'rgb8': (3, (0, 1, 2), 8), '8UC3': (3, (2, 1, 0), 8),
    'bgra8': (4, (2, 1, 0), 8), 'rgba8': (4, (0, 1, 2), 8), '8UC4': (4, (2, 1, 0), 8),
    'mono8': (1, (0, 0, 0), 8), '8UC1': (1, (0, 0, 0), 8),
    'bgr16': (3, (2, 1, 0), 16), 'rgb16': (3, (0, 1, 2), 16), 'bgra16': (4, (2, 1, 0), 16),
    'rgba16': (4, (0, 1, 2), 16), 'mono16': (1, (0, 0, 0), 16),
}


def as_rgb(msg: Image | CompressedImage) -> np.ndarray:
    image, color = to_image(msg)
    assert image.dtype == np.uint8 and image.ndim == 3
    return image if color == 'rgb' else image[..., ::-1]


@settings(deadline=None)
@given(st.sampled_from(sorted(PACKED)), SIDES, SIDES, st.integers(0, 7), st.booleans(),
       st.integers(0, 1 << 30))
def test_packed_encodings_mean_what_their_names_say(encoding, height, width, padding, big_endian,
                                                    seed):
    channels, rgb, bits = PACKED[encoding]
    pixels = random_pixels(seed, height, width, channels, dtype=f'uint{bits}')
    msg = message(pixels, encoding, padding=padding, big_endian=big_endian)
    expected = pixels[..., rgb]
    if bits == 16:
        expected = np.rint(expected.astype(float) * 255 / 65535)
    assert check(msg) == (height, width)
    np.testing.assert_array_equal(as_rgb(msg), expected)


@pytest.mark.parametrize('encoding', ['bgr8', 'rgb8', '8UC3'])
def test_three_channels_of_eight_bits_are_not_copied(encoding):
    msg = message(random_pixels(0, 4, 5, 3), encoding, padding=2)
    image, _ = to_image(msg)
    assert np.shares_memory(image, np.frombuffer(msg.data, np.uint8))


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_a_bayer_mosaic_of_one_color_becomes_this_color(pattern, bits):
    color = {'r': 200, 'g': 120, 'b': 30}
    tile = np.array([color[letter] for letter in pattern]).reshape(2, 2)
    mosaic = np.tile(tile, (5, 6))
    if bits == 16:
        mosaic = mosaic * 257  # 255 becomes 65535
    msg = message(mosaic.astype(f'uint{bits}'), f'bayer_{pattern}{bits}', padding=3)
    np.testing.assert_array_equal(as_rgb(msg), np.broadcast_to((200, 120, 30), (10, 12, 3)))


def test_a_bayer_image_keeps_its_greens():
    mosaic = random_pixels(3, 12, 14)
    # In rggb, (even, odd) and (odd, even) are green as measured; the border is interpolated.
    image = as_rgb(message(mosaic, 'bayer_rggb8'))
    np.testing.assert_array_equal(image[2:-2:2, 3:-2:2, 1], mosaic[2:-2:2, 3:-2:2])
    np.testing.assert_array_equal(image[3:-2:2, 2:-2:2, 1], mosaic[3:-2:2, 2:-2:2])


def bt601(y, u, v) -> np.ndarray:
    """Return RGB of limited-range YUV by ITU-R BT.601, as V4L2 defines these formats."""
    y, u, v = 1.164383 * (float(y) - 16), float(u) - 128, float(v) - 128
    return np.clip((y + 1.596027 * v, y - 0.391762 * u - 0.812968 * v, y + 2.017232 * u), 0, 255)


@pytest.mark.parametrize(('encoding', 'order'), [
    ('yuv422', 'uyvy'), ('uyvy', 'uyvy'), ('yuv422_yuy2', 'yuyv'), ('yuyv', 'yuyv')])
def test_yuv422_pixels_share_their_chroma_by_twos(encoding, order):
    value = {'y': 150, 'u': 90, 'v': 170}
    row = [value[letter] for letter in order] * 3
    first_y = order.index('y')
    row[first_y] = 60  # the first of six pixels is darker
    msg = message(np.array([row] * 4, np.uint8), encoding, width=6, padding=5)
    image = as_rgb(msg)
    np.testing.assert_allclose(image[:, 0], np.tile(bt601(60, 90, 170), (4, 1)), atol=1.5)
    np.testing.assert_allclose(image[:, 1:], np.tile(bt601(150, 90, 170), (4, 5, 1)), atol=1.5)


@pytest.mark.parametrize(('encoding', 'order'), [('nv12', 'uv'), ('nv21', 'vu')])
def test_nv_images_have_a_plane_of_chroma_below(encoding, order):
    value = {'u': 90, 'v': 170}
    luma = np.full((4, 6), 150)
    chroma = np.tile([value[letter] for letter in order], (2, 3))
    rows = np.vstack([luma, chroma]).astype(np.uint8)
    msg = message(rows, encoding, height=4, padding=2)
    assert check(msg) == (4, 6)
    np.testing.assert_allclose(as_rgb(msg), np.tile(bt601(150, 90, 170), (4, 6, 1)), atol=1.5)


@pytest.mark.parametrize(('encoding', 'code'), [
    ('yuv422', cv2.COLOR_YUV2RGB_UYVY), ('yuyv', cv2.COLOR_YUV2RGB_YUYV),
    ('nv12', cv2.COLOR_YUV2RGB_NV12), ('nv21', cv2.COLOR_YUV2RGB_NV21)])
def test_yuv_images_equal_opencvs_conversion_from_contiguous_memory(encoding, code):
    rows, shape = (9, (9, 8)) if encoding.startswith('nv') else (6, (6, 8, 2))
    pixels = random_pixels(7, *shape)
    msg = message(pixels, encoding, height=6, padding=3)
    assert msg.step * rows == len(msg.data)
    np.testing.assert_array_equal(as_rgb(msg), cv2.cvtColor(pixels, code))


def test_every_encoding_is_covered_here():
    others = {'yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv', 'nv12', 'nv21'}
    bayer = {f'bayer_{p}{b}' for p in ('rggb', 'bggr', 'gbrg', 'grbg') for b in (8, 16)}
    assert set(ENCODINGS) == set(PACKED) | others | bayer


@pytest.mark.parametrize(('cause', 'msg'), [
    ('zero_size', good(height=0)),
    ('zero_size', good(width=0)),
    ('absurd_size', good(width=MAX_SIDE + 1)),
    ('absurd_size', good(height=2**32 - 1, step=2**32 - 1, width=2**32 - 1)),
    ('absurd_size', good(height=16000, width=16000)),
    ('unknown_encoding', good(encoding='')),
    ('unknown_encoding', good(encoding='32FC1')),
    ('unknown_encoding', good(encoding='bgr8 ' * 1000)),
    ('short_step', good(step=17)),
    ('short_data', good(data=array('B', bytes(4 * 18 - 1)))),
    ('short_data', good(data=array('B'))),
    ('short_data', good(step=2**32 - 1)),
    ('odd_size', good(encoding='yuv422', width=5)),
    ('odd_size', good(encoding='nv12', height=3)),
    ('odd_size', good(encoding='bayer_rggb8', width=2)),  # OpenCV makes it black
    ('odd_size', good(encoding='bayer_gbrg16', height=1)),
    ('damaged', CompressedImage(format='jpeg', data=array('B', b'\xff\xd8\xff'))),
    ('damaged', CompressedImage(format='png', data=array('B', b'\x89PNG\r\n\x1a\n'))),
    ('undecodable', CompressedImage(format='png')),
])
def test_a_malformed_message_has_its_cause(cause, msg):
    for function in (check, to_image):
        with pytest.raises(MalformedImage) as caught:
            function(msg)
        assert caught.value.cause == cause
        assert len(str(caught.value)) < 500 and '\n' not in str(caught.value)


@settings(max_examples=500, deadline=None)
@given(*ANY_IMAGE)
def test_any_message_is_an_image_of_its_size_or_malformed(encoding, height, width, step,
                                                          big_endian, data):
    msg = Image(encoding=encoding, height=height, width=width, step=step,
                is_bigendian=big_endian, data=array('B', data))
    try:
        size = check(msg)
    except MalformedImage as error:
        assert error.cause in CAUSES
        with pytest.raises(MalformedImage):
            to_image(msg)
        return
    image, color = to_image(msg)
    assert size == (height, width)
    assert image.shape == (height, width, 3) and image.dtype == np.uint8
    assert color in ('bgr', 'rgb')


def encoded(picture: np.ndarray, format_: str, **options) -> CompressedImage:
    file = io.BytesIO()
    Pillow.fromarray(picture).save(file, format_, **options)
    return CompressedImage(format=format_.lower(), data=array('B', file.getvalue()))


PICTURE = cv2.resize(random_pixels(5, 3, 5, 3), (50, 30), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize('picture', [PICTURE, PICTURE[..., 0],
                                     np.dstack([PICTURE, PICTURE[..., 0]])],
                         ids=['rgb', 'gray', 'rgba'])
def test_png_is_what_pillow_wrote(picture):
    expected = np.asarray(Pillow.fromarray(picture).convert('RGB'))
    np.testing.assert_array_equal(as_rgb(encoded(picture, 'PNG')), expected)


@pytest.mark.parametrize('options', [{}, {'progressive': True}, {'quality': 100, 'subsampling': 0},
                                     {'comment': b'x' * 300}, {'dpi': (72, 72)}])
@pytest.mark.parametrize('gray', [False, True])
def test_jpeg_is_what_pillow_reads(options, gray):
    msg = encoded(PICTURE[..., 0] if gray else PICTURE, 'JPEG', **options)
    expected = np.asarray(Pillow.open(io.BytesIO(msg.data.tobytes())).convert('RGB'))
    assert check(msg) == (30, 50)
    # Decoders may differ in the last bits of the inverse DCT and of chroma's interpolation.
    assert np.abs(as_rgb(msg).astype(int) - expected).mean() < 1.5


def test_an_orientation_tag_does_not_turn_the_image():
    exif = Pillow.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    msg = encoded(PICTURE, 'JPEG', exif=exif)
    assert check(msg) == (30, 50)
    assert to_image(msg)[0].shape == (30, 50, 3)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(['JPEG', 'PNG']), st.integers(0, 2000), st.integers(0, 255),
       st.integers(0, 2000))
@example('JPEG', 0, 0, 0)
def test_damaged_pictures_are_images_of_the_claimed_size_or_malformed(format_, at, value, end):
    msg = encoded(PICTURE, format_)
    if at < len(msg.data):
        msg.data[at] = value
    msg.data = msg.data[:end] if end % 2 else msg.data
    try:
        height, width = check(msg)
        image, _ = to_image(msg)
    except MalformedImage as error:
        assert error.cause in CAUSES
    else:
        assert image.shape == (height, width, 3)


def test_a_small_picture_that_claims_a_gigantic_size_is_not_unpacked():
    msg = encoded(PICTURE, 'PNG')
    msg.data[16:24] = array('B', (16000).to_bytes(4, 'big') * 2)
    with pytest.raises(MalformedImage) as caught:
        to_image(msg)
    assert caught.value.cause == 'absurd_size'


@settings(deadline=None)
@given(SIDES, SIDES, st.sampled_from([('mono8', 1), ('bgr8', 3)]), st.booleans(),
       st.integers(0, 1 << 30))
def test_a_message_holds_the_pixels_row_by_row(height, width, encoding, strided, seed):
    name, channels = encoding
    pixels = random_pixels(seed, height, width * (2 if strided else 1), channels)[:, :width]
    if channels == 1:
        pixels = pixels[..., 0]
    header = Header(frame_id='camera')
    msg = to_message(pixels, name, header)
    assert (msg.height, msg.width, msg.encoding, msg.step) == (height, width, name,
                                                              width * channels)
    assert msg.header is header and msg.is_bigendian == 0
    assert msg.data.tobytes() == pixels.tobytes()
    expected = pixels if channels == 3 else np.dstack([pixels] * 3)
    np.testing.assert_array_equal(to_image(msg)[0], expected)


def test_a_png_message_loses_nothing():
    mask = random_pixels(1, 33, 47)
    msg = to_png_message(mask, Header(frame_id='camera'))
    np.testing.assert_array_equal(np.asarray(Pillow.open(io.BytesIO(msg.data.tobytes()))), mask)
    assert 'png' in msg.format and msg.header.frame_id == 'camera'


def test_the_native_byte_order_needs_no_flag():
    values = np.array([[0, 257, 65535]], np.uint16)
    msg = message(values, 'mono16', big_endian=sys.byteorder == 'big')
    assert as_rgb(msg)[0, :, 0].tolist() == [0, 1, 255]


def test_encodings_beyond_ours_are_cv_bridges(monkeypatch):
    """cv_bridge decides what it takes, and a refusal of its own is the message's."""
    class Bridge:
        def imgmsg_to_cv2(self, msg, desired):
            assert desired == 'bgr8'
            if msg.encoding != 'nv24':
                raise ValueError('not a color format\nand more')
            return np.full((msg.height, msg.width, 3), 7, np.uint8)

    monkeypatch.setattr(image_messages, '_cv_bridge', Bridge)
    data = array('B', bytes(4 * 6 * 3))
    taken = Image(height=4, width=6, step=18, encoding='nv24', data=data)
    assert check(taken) == (4, 6)
    image, color = to_image(taken)
    assert image.shape == (4, 6, 3) and (image == 7).all() and color == 'bgr'
    for changes, cause, words in (
            ({'encoding': '32SC1'}, 'unknown_encoding', 'cv_bridge: not a color format$'),
            ({'step': 19}, 'short_data', 'data has 72 bytes'),
            ({'height': 0}, 'zero_size', '6x0'),
            ({'encoding': 'nv25'}, 'unknown_encoding', 'is not one of')):
        msg = Image(height=4, width=6, step=18, encoding='nv24', data=data)
        for name, value in changes.items():
            setattr(msg, name, value)
        with pytest.raises(MalformedImage, match=words) as caught:
            to_image(msg)
        assert caught.value.cause == cause
    monkeypatch.setattr(image_messages, '_cv_bridge', lambda: None)
    with pytest.raises(MalformedImage, match='is not one of'):
        check(taken)
