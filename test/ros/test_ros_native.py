# SPDX-License-Identifier: Apache-2.0
"""
Messages whose data is on a GPU, against the same messages on the host.

The GPU is none, and cuda_buffer a stand-in; `test/vehicle` has the kernels, and a real GPU.
"""

from __future__ import annotations

from array import array
from contextlib import ExitStack
from time import monotonic_ns
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

pytest.importorskip('rclpy', reason="the messages are ROS's")
from sensor_msgs.msg import Image
from support.messages import ANY_IMAGE, Camera, good, message, random_pixels
from support.native import CudaBuffer, NativeImage
from support.ros import BACKEND
from vehicle.fake_gpu import FakeDevice

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cuda.images import DeviceImage
from trt_segmentation.errors import DeviceError
from trt_segmentation.recordings import image_messages, layouts
from trt_segmentation.recordings.image_messages import ENCODINGS
from trt_segmentation.recordings.layouts import CAMERAS, CHANNELS
from trt_segmentation.recordings.limits import MalformedImage
from trt_segmentation.ros import native, outputs
from trt_segmentation.ros.camera import Frame
from trt_segmentation.ros.frame_pipeline import Pipeline
from trt_segmentation.ros.health import InputHealth
from trt_segmentation.ros.input import Input
from trt_segmentation.ros.wanted import Wanted
from trt_segmentation.segmenters.segmenter import Masks


@pytest.fixture
def cuda(monkeypatch):
    """Return what stands in for cuda_buffer, which is installed then."""
    standin = CudaBuffer()
    monkeypatch.setattr(native, 'cuda_buffer', lambda: standin)
    return standin


def any_message(encoding, height=6, width=8, padding=0):
    """Return a message with random bytes."""
    names = {'yuv422': 'uyvy', 'yuv422_yuy2': 'yuyv'}
    layout = names.get(encoding, encoding.removesuffix('8'))
    rows = height * 3 // 2 if layout.startswith('nv') else height
    items = 8 if encoding.endswith('16') else 4
    return message(random_pixels(0, rows, width * items), encoding, height=height, width=width,
                   padding=padding)


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize('encoding', ENCODINGS)
def test_an_image_on_the_gpu_is_the_one_on_the_host(cuda, encoding, padding):
    host = any_message(encoding, padding=padding)
    buffer = cuda.of(host.data)
    device, msg = FakeDevice(None), NativeImage.of(host, buffer)
    expected, layout = image_messages.to_image(host, CAMERAS)
    with ExitStack() as handles:
        image, found = native.to_image(msg, device, CAMERAS, handles)
        stays = isinstance(image, DeviceImage)
        if stays:
            handle, = buffer.handles
            assert (image.address, image.step) == (buffer.address, host.step)
            assert not handle.closed and handle.stream == device.stream.handle
            assert buffer.downloads == 0
    # What the kernels take stays; the rest is converted on the host, and nothing is open then.
    assert stays == (encoding in {'bgr8', 'rgb8', '8UC3'} or layout in CAMERAS)
    assert all(handle.closed for handle in buffer.handles) and device.depth == 0
    assert found == layout and image.shape == expected.shape
    assert np.array_equal(np.asarray(image), expected)
    assert buffer.downloads == 1
    # A segmenter without a GPU, or that leaves this layout to OpenCV.
    for where, kept in ((None, CAMERAS), (device, ())):
        with ExitStack() as handles:
            image, found = native.to_image(msg, where, kept, handles)
        assert isinstance(image, DeviceImage) == (where is not None and layout in CHANNELS
                                                  and encoding in {'bgr8', 'rgb8', '8UC3'})
        pixels, color = image_messages.to_image(host, kept)
        assert found == color and np.array_equal(np.asarray(image), pixels)


@settings(deadline=None)
@given(layout=st.sampled_from([*CHANNELS, *CAMERAS]), height=st.integers(1, 150),
       width=st.integers(1, 5), step=st.integers(1, 9), padding=st.integers(0, 7))
def test_the_coarse_image_has_the_rows_of_a_sample(layout, height, width, step, padding):
    height, width = 2 * height, 2 * width
    whole = random_pixels(height, *layouts.shape((height, width), layout))
    host = message(whole, layout, padding=padding)
    cuda, device = CudaBuffer(), FakeDevice(None)
    image = DeviceImage(device, layout, (height, width), cuda.of(host.data).address, host.step,
                        lambda: whole)
    coarse = image.coarse(step)
    layouts.check(coarse, layout)
    if layout in CHANNELS:
        picked = np.arange(0, height, step)
    else:
        first = np.arange(0, height, step + step % 2)
        picked = np.add.outer(first, (0, 1)).ravel()
        if layout.startswith('nv'):
            picked = np.append(picked, height + first // 2)
    assert np.array_equal(coarse, whole[picked])
    assert device.copied_bytes['from'] == (0 if step == 1 else coarse.nbytes)


@pytest.mark.parametrize('size', [(170, 200), (96, 70), (20, 30)])
@pytest.mark.parametrize('layout', [*CHANNELS, *CAMERAS])
def test_an_image_has_the_same_health_on_the_gpu_as_on_the_host(layout, size):
    """Where a row or a column is another one it is another image there if it is one here."""
    image = random_pixels(0, *layouts.shape(size, layout))
    cuda, here, there, found = CudaBuffer(), InputHealth(), InputHealth(), []
    for axis in (0, 1):
        for i in range(image.shape[axis]):
            np.moveaxis(image, axis, 0)[i] ^= 0xff
            msg = message(image, layout, padding=3)
            here.see(image, layout)
            there.see(DeviceImage(FakeDevice(None), layout, size, cuda.of(msg.data).address,
                                  msg.step, image.copy), layout)
            assert (there.repeated, there.exposure) == (here.repeated, here.exposure)
            found.append(here.repeated)
    assert 0 in found and (min(size) < 32 or max(found) > 0)


BAD = [
    ('zero_size', good(height=0)), ('zero_size', good(width=0)),
    ('absurd_size', good(height=2**32 - 1, step=2**32 - 1, width=2**32 - 1)),
    ('unknown_encoding', good(encoding='')), ('unknown_encoding', good(encoding='32FC1')),
    ('short_step', good(step=17)), ('short_data', good(data=array('B', bytes(4 * 18 - 1)))),
    ('short_data', good(data=array('B'))), ('short_data', good(step=2**32 - 1)),
    ('odd_size', good(encoding='nv12', height=3)),
]


@pytest.mark.parametrize(('cause', 'host'), BAD)
@pytest.mark.parametrize('on_gpu', [True, False])
def test_a_malformed_message_on_the_gpu_has_the_words_of_one_on_the_host(cuda, cause, host,
                                                                         on_gpu):
    device = FakeDevice(None) if on_gpu else None
    with pytest.raises(MalformedImage) as expected:
        image_messages.to_image(host)
    buffer = cuda.of(host.data)
    msg = NativeImage.of(host, buffer)
    with pytest.raises(MalformedImage) as checked:
        image_messages.check(msg)
    with ExitStack() as handles, pytest.raises(MalformedImage) as caught:
        native.to_image(msg, device, CAMERAS, handles)
    assert str(caught.value) == str(checked.value) == str(expected.value)
    assert caught.value.cause == checked.value.cause == cause
    assert not buffer.handles


@settings(deadline=None)
@given(*ANY_IMAGE)
def test_any_message_is_on_the_gpu_what_it_is_on_the_host(encoding, height, width, step,
                                                          big_endian, data):
    host = Image(encoding=encoding, height=height, width=width, step=step,
                 is_bigendian=big_endian, data=array('B', data))
    cuda, found = CudaBuffer(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, 'cuda_buffer', lambda: cuda)
        for function in (lambda: image_messages.to_image(host, CAMERAS), lambda: native.to_image(
                NativeImage.of(host, cuda.of(data)), FakeDevice(None), CAMERAS, ExitStack())):
            try:
                image, layout = function()
                found.append((layout, np.asarray(image).tolist()))
            except MalformedImage as error:
                found.append((error.cause, str(error)))
    assert found[0] == found[1]


def fails(*_):
    raise RuntimeError('cudaIpcOpen: no such thing\n  in file.cpp')


def test_data_that_cannot_be_had_is_malformed(cuda, monkeypatch):
    """On another GPU; of a publisher that is gone; on the way to the host."""
    host, device = good(), FakeDevice(None)

    def words(where, foreign=False):
        buffer = cuda.of(host.data)
        device.foreign = {buffer.address} if foreign else set()
        with pytest.raises(MalformedImage) as caught, ExitStack() as handles:
            native.to_image(NativeImage.of(host, buffer), where, (), handles)
        assert caught.value.cause == 'unreadable' and device.depth == 0
        assert all(handle.closed for handle in buffer.handles)
        return str(caught.value)

    assert words(device, True).startswith('its data lies on another GPU than the engine')
    cannot = 'its data on the GPU cannot be read: cudaIpcOpen: no such thing'
    monkeypatch.setattr(CudaBuffer, 'from_input_buffer', fails)
    assert words(device) == cannot
    monkeypatch.setattr('support.native.Buffer.to_bytes', fails)
    assert words(None) == cannot


def test_a_mask_without_memory_is_an_error_of_the_gpu(cuda, monkeypatch):
    monkeypatch.setattr(CudaBuffer, 'allocate_buffer', fails)
    with ExitStack() as handles, pytest.raises(DeviceError, match='cuda_buffer: cudaIpcOpen'):
        outputs.on_gpu(frozenset({'class_mask'}), (4, 6), None, FakeDevice(None), handles)


def test_messages_for_masks_are_published_when_they_are_written(cuda, monkeypatch):
    monkeypatch.setattr(outputs, 'Image', NativeImage)
    header, device = good().header, FakeDevice(None)
    with ExitStack() as handles:
        messages, into = outputs.on_gpu(frozenset({'class_mask', 'color_mask', 'overlay'}), (4, 6),
                                        header, device, handles)
        assert not any(buffer.written for buffer in cuda.made)
    assert all(buffer.written for buffer in cuda.made) and device.depth == 0
    assert {topic: (msg.encoding, msg.height, msg.width, msg.step, len(msg.data), msg.header)
            for topic, msg in messages.items()} == {
        'class_mask': ('mono8', 4, 6, 6, 24, header), 'color_mask': ('bgr8', 4, 6, 18, 72, header)}
    assert into == {'classes': messages['class_mask'].data.address,
                    'color': messages['color_mask'].data.address}


def test_a_mask_on_the_gpu_takes_the_place_of_the_one_on_the_host():
    published, header = {}, good().header
    node = SimpleNamespace(
        resolve_topic_name=lambda name: name, create_publisher=lambda kind, name, *_, **__: (
            SimpleNamespace(publish=lambda message: published.update({name: message}))))
    found = outputs.Outputs(node, '', ('classes', 'color', 'confidence'))
    classes, color = random_pixels(0, 4, 6), random_pixels(1, 4, 6, 3)
    image = random_pixels(2, 4, 6, 3)
    wanted = frozenset({'class_mask', 'color_mask', 'overlay'})
    for on_gpu in ({}, {'color_mask': 'on the GPU'}):
        published.clear()
        found.publish(wanted, Masks(classes, color, None, {}), image, 'bgr', header, None,
                      (4, 6), on_gpu)
        assert published.keys() == wanted
        assert published['class_mask'].data.tobytes() == classes.tobytes()
        assert published['overlay'].encoding == 'bgr8'
        assert (published['color_mask'] == 'on the GPU' if on_gpu
                else published['color_mask'].data.tobytes() == color.tobytes())


def test_an_engine_on_the_cpu_takes_what_came_on_the_gpu(cuda, built):
    """As when it serves instead of one on the GPU; with the same masks, health and causes."""
    pipeline = Pipeline(lambda: 0, SimpleNamespace(
        gpu='', store=str(built['store']), mask_size='source', max_frame_age_ms=10**9,
        strict_stamps=False, masks_on_gpu=True))
    pipeline.open(Bundle.open(built['bundle']), Wanted(BACKEND, 'fp32', None, 1))
    pipeline.self_test()
    for encoding in ('bgr8', 'nv12', 'mono16'):
        host, cameras = any_message(encoding, 48, 80), []
        for msg in (host, NativeImage.of(host, cuda.of(host.data))):
            cameras.append(Camera())
            pipeline.process([Frame(cameras[-1], msg, monotonic_ns())])
            assert cameras[-1].dropped == []
        for name in ('classes', 'color'):
            assert np.array_equal(*(getattr(camera.masks, name) for camera in cameras))
    pipeline.close()


class Lyrical:
    """A node of an rclpy with the keyword, as a subscription needs it."""

    def __init__(self):
        self.asked = []

    def create_subscription(self, msg_type, topic, callback, qos_profile, *, callback_group=None,
                            qos_overriding_options=None, acceptable_buffer_backends='cpu'):
        self.asked.append(acceptable_buffer_backends)

    def resolve_topic_name(self, name):
        return f'/{name}'

    def get_publishers_info_by_topic(self, topic):
        return []


class Kilted(Lyrical):
    """One without."""

    def create_subscription(self, msg_type, topic, callback, qos_profile, *, callback_group=None,
                            qos_overriding_options=None):
        self.asked.append(None)


@pytest.mark.parametrize(('ros', 'installed', 'asked'), [
    (Lyrical, True, 'cuda'), (Lyrical, False, 'cpu'), (Kilted, True, None),
    (Kilted, False, None)])
def test_a_subscription_asks_for_data_on_the_gpu_where_it_can(monkeypatch, ros, installed, asked):
    monkeypatch.setattr(native, 'cuda_buffer', lambda: CudaBuffer() if installed else None)
    node, intake = ros(), SimpleNamespace(group=None, add=lambda *_: None)
    Input(node, intake, 0, 'image', Image, 'auto', None, None,
          native.subscription_options(node)).start()
    assert node.asked == [asked]


def test_without_cuda_buffer_there_is_none():
    assert native.cuda_buffer() is None
