# SPDX-License-Identifier: Apache-2.0
"""
Images that come on the GPU and masks that stay there, against those that go through the host.

    test/vehicle/run                                                      # on a GPU that is none
    TRT_SEGMENTATION_BACKEND=tensorrt python3 -m pytest test/vehicle/buffers.py    # on a real one

cuda_buffer is a stand-in that hands out device pointers. On a real GPU its publisher writes on a
stream of its own, late, so that who does not wait for it sees something else.
"""

from __future__ import annotations

from array import array
from contextlib import ExitStack
import ctypes
from functools import partial
import os
from time import monotonic_ns
from types import SimpleNamespace

from fake_gpu import compile_kernels, FakeDevice, FakeEngine
import numpy as np
import pytest
from support.native import CudaBuffer, NativeImage
from support.ros import BACKEND, make_bundle, picture

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cuda.device import _call as call
from trt_segmentation.cuda.device import Device
from trt_segmentation.cuda.images import DeviceImage
from trt_segmentation.engines import BuildOptions, choose_backend
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.errors import InputError
from trt_segmentation.recordings import layouts
from trt_segmentation.recordings.layouts import CAMERAS, CHANNELS
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.gpu import CudaSegmenter
from trt_segmentation.segmenters.postprocessing import CLASSES, COLOR, CONFIDENCE

REAL = BACKEND != 'onnxruntime'
ALL = (CLASSES, COLOR, CONFIDENCE)
SIZE = (64, 128)


class _Place(ctypes.Structure):
    """CUmemLocation."""

    _fields_ = [('type', ctypes.c_int), ('id', ctypes.c_int)]


class _Allocation(ctypes.Structure):
    """CUmemAllocationProp: pinned memory of the first GPU that can be given to other processes."""

    _fields_ = [('type', ctypes.c_int), ('handles', ctypes.c_int), ('place', _Place),
                ('metadata', ctypes.c_void_p), ('flags', ctypes.c_ubyte * 8)]


class _Access(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = [('place', _Place), ('flags', ctypes.c_int)]


_FILE, _READ_AND_WRITE = 1, 3  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, CU_MEM_ACCESS_FLAGS_...
_GPU = _Place(1, 0)


class GpuMemory:
    """
    Memory of a real GPU, as `support.native.HostMemory`, from a publisher with its own stream.

    It is what the CUDA backend of rosidl's buffers shares: virtual memory that is mapped from a
    handle which came through a file descriptor.
    """

    _DELAY = 1 << 28  # bytes; to fill them 20 times takes milliseconds

    def __init__(self, consumer):
        self._consumer, self._device = consumer, Device()
        self._mapped = []
        with self._device as device:
            self._delay = device.allocate(self._DELAY)
            self._event = device.cuda.Event()

    def allocate(self, nbytes):
        prop, size = _Allocation(1, _FILE, _GPU), ctypes.c_size_t()
        made, taken, file = ctypes.c_uint64(), ctypes.c_uint64(), ctypes.c_int()
        address = ctypes.c_uint64()
        with self._device as device:
            call('cuMemGetAllocationGranularity', ctypes.byref(size), ctypes.byref(prop), 0)
            size.value *= -(-nbytes // size.value)
            call('cuMemCreate', ctypes.byref(made), size, ctypes.byref(prop), ctypes.c_uint64(0))
            call('cuMemExportToShareableHandle', ctypes.byref(file), made, _FILE,
                 ctypes.c_uint64(0))
            call('cuMemImportFromShareableHandle', ctypes.byref(taken),
                 ctypes.c_void_p(file.value), _FILE)
            os.close(file.value)
            call('cuMemAddressReserve', ctypes.byref(address), size, ctypes.c_size_t(0),
                 ctypes.c_uint64(0), ctypes.c_uint64(0))
            call('cuMemMap', address, size, ctypes.c_size_t(0), taken, ctypes.c_uint64(0))
            call('cuMemSetAccess', address, size,
                 ctypes.byref(_Access(_GPU, _READ_AND_WRITE)), ctypes.c_size_t(1))
            self._mapped.append((address, size, made, taken))
            device.cuda.memset_d8(address.value, 0xa5, nbytes)
        return address.value

    def write(self, address, data):
        values = np.frombuffer(data, np.uint8)
        with self._device as device:
            source = device.upload(values)
            for _ in range(20):
                device.cuda.memset_d8_async(self._delay, 0, self._DELAY, device.stream)
            device.cuda.memcpy_dtod_async(address, source, values.nbytes, device.stream)
            self._event.record(device.stream)

    def read(self, address, nbytes):
        data = np.empty(nbytes, np.uint8)
        with self._device as device:
            device.synchronize()
            device.cuda.memcpy_dtoh(data, address)
        return data.tobytes()

    def wait(self, stream):
        assert stream == self._consumer.stream.handle
        with self._consumer:
            self._consumer.stream.wait_for_event(self._event)

    def written(self, stream):
        assert stream == self._consumer.stream.handle
        with self._consumer:
            self._event.record(self._consumer.stream)

    def close(self):
        with self._device as device:
            device.synchronize()
            for address, size, made, taken in self._mapped:
                call('cuMemUnmap', address, size)
                call('cuMemAddressFree', address, size)
                call('cuMemRelease', taken)
                call('cuMemRelease', made)
            self._event = None
        self._device.close()


class Copies:
    """How many bytes have gone to the GPU and come from it since `clear`."""

    def __init__(self, device, monkeypatch):
        self._counts = {'to': 0, 'from': 0} if REAL else device.copied_bytes
        if REAL:
            for name in ('memcpy_htod', 'memcpy_htod_async'):
                self._count(monkeypatch, device.cuda, name, 'to', 1)
            for name in ('memcpy_dtoh', 'memcpy_dtoh_async'):
                self._count(monkeypatch, device.cuda, name, 'from', 0)

    def _count(self, monkeypatch, cuda, name, way, argument):
        copy = getattr(cuda, name)

        def counted(*arguments):
            self._counts[way] += arguments[argument].nbytes
            return copy(*arguments)

        monkeypatch.setattr(cuda, name, counted)

    def clear(self):
        self._counts.update({'to': 0, 'from': 0})

    def __eq__(self, other):
        return self._counts == other

    def __repr__(self):
        return repr(self._counts)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('buffers')


@pytest.fixture(scope='module')
def opened(folder):
    """Return the bundle, and what opens segmenters of it, on a GPU and on the CPU."""
    bundle = Bundle.open(make_bundle(folder / 'bundle', SIZE))
    if REAL:
        backend = choose_backend(BACKEND)
        plan = backend.build(bundle, 'fp32', BuildOptions(max_batch=4)).data
    else:
        library, network = compile_kernels(folder), OnnxRuntimeEngine(bundle.model_path)

    def gpu(mapped=None):
        engine = backend.load(plan, 'fp32') if REAL else FakeEngine(
            FakeDevice(library), network.infer, ('data', (1, 3, *SIZE)),
            {'logits': ((1, 19, SIZE[0] // 4, SIZE[1] // 4), np.float32)}, max_batch=4)
        return CudaSegmenter(bundle.spec, engine, batch_sizes=(1, 2, 4), mapped=mapped)

    def cpu():
        return CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path))

    return SimpleNamespace(bundle=bundle, gpu=gpu, cpu=cpu)


@pytest.fixture(scope='module', params=[False, True], ids=['copied', 'mapped'])
def segmenter(request, opened):
    """Return one on the GPU, which copies masks or lets kernels write them to the host."""
    with opened.gpu(request.param) as segmenter:
        yield segmenter


@pytest.fixture
def rig(segmenter, monkeypatch):
    """Return it, a stand-in of cuda_buffer, and how much is copied."""
    memory = GpuMemory(segmenter.device) if REAL else None
    yield SimpleNamespace(segmenter=segmenter, device=segmenter.device, mapped=segmenter._mapped,
                          cuda=CudaBuffer(memory), copies=Copies(segmenter.device, monkeypatch))
    if REAL:
        memory.close()


def random_image(layout, size, padding, seed):
    """Return an array whose rows have a gap between them."""
    shape = layouts.shape(size, layout)
    return np.random.default_rng(seed).integers(
        0, 256, (shape[0], shape[1] + padding, *shape[2:]), np.uint8)[:, :shape[1]]


def on_gpu(rig, image, layout, handles):
    """Return an image with its gaps as it is after its way through ROS."""
    buffer = rig.cuda.of(np.ascontiguousarray(image.base).tobytes())
    handle = rig.cuda.from_input_buffer(buffer, rig.device.stream.handle)
    handles.callback(handle.close)
    return DeviceImage(rig.device, layout, layouts.size(image, layout), handle.device_ptr,
                       image.strides[0], lambda: image.copy())


def bring_tables(rig, image):
    """Let the GPU have what the first image of a size and channel order brings with it."""
    rig.segmenter.segment_batch([image], color=image.layout)


@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize('size', [SIZE, (70, 90), (30, 46)])
@pytest.mark.parametrize('layout', [*CHANNELS, *CAMERAS])
def test_an_image_on_the_gpu_has_the_masks_of_one_on_the_host(rig, layout, size, padding):
    image = random_image(layout, size, padding, 0)
    expected = rig.segmenter.segment(image, ALL, color=layout)
    with ExitStack() as handles:
        there = on_gpu(rig, image, layout, handles)
        bring_tables(rig, there)
        rig.copies.clear()
        found, = rig.segmenter.segment_batch([there], ALL, color=layout)
        masks = 0 if rig.mapped else 5 * size[0] * size[1]  # of one, three and one channel
        assert rig.copies == {'to': 0, 'from': masks}
        for name in ALL:
            assert np.array_equal(getattr(found, name), getattr(expected, name))
        assert np.array_equal(np.asarray(there), image)


def test_images_of_both_kinds_go_through_the_network_together(rig):
    # Of four sizes and channel orders, since for so many the tables stay on the GPU.
    kinds = [('bgr', SIZE, True), ('nv12', (40, 60), False), ('nv12', (40, 60), True),
             ('rgb', (31, 47), False), ('bayer_grbg', SIZE, True), ('bgr', SIZE, False)]
    images = [random_image(layout, size, 2, seed)
              for seed, (layout, size, _) in enumerate(kinds)]
    colors = [layout for layout, _, _ in kinds]
    expected = rig.segmenter.segment_batch(images, ALL, color=colors)
    with ExitStack() as handles:
        mixed = [on_gpu(rig, image, layout, handles) if there else image
                 for image, (layout, _, there) in zip(images, kinds)]
        rig.copies.clear()
        found = rig.segmenter.segment_batch(mixed, ALL, color=colors)
    uploads = 0 if rig.mapped else sum(
        image.size for image, (_, _, there) in zip(images, kinds) if not there)
    downloads = 0 if rig.mapped else sum(5 * size[0] * size[1] for _, size, _ in kinds)
    assert rig.copies == {'to': uploads, 'from': downloads}
    for one, other in zip(found, expected):
        for name in ALL:
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_the_coarse_image_is_of_its_rows_and_nothing_else_comes(rig):
    for layout, size in (('bgr', (512, 1024)), ('nv12', (480, 640)), ('bayer_rggb', (200, 320))):
        image, step = random_image(layout, size, 5, 0), size[0] // 16
        with ExitStack() as handles:
            there = on_gpu(rig, image, layout, handles)
            rig.copies.clear()
            coarse = there.coarse(step)
            assert REAL or rig.copies == {'to': 0, 'from': coarse.nbytes}
        assert coarse.nbytes < image.nbytes / 5
        rows = first = np.arange(0, size[0], step)
        if layout != 'bgr':
            rows = np.add.outer(first, (0, 1)).ravel()
        if layout == 'nv12':
            rows = np.append(rows, size[0] + first // 2)
        assert np.array_equal(coarse, image[rows])


@pytest.mark.parametrize('want', [(), (COLOR,), (CONFIDENCE,), ALL])
@pytest.mark.parametrize('stay', [(CLASSES,), (COLOR,), (CLASSES, COLOR)])
@pytest.mark.parametrize('size', [(48, 80), (31, 47)])
def test_masks_that_stay_on_the_gpu_are_those_that_come(rig, size, stay, want):
    image = random_image('bgr', size, 0, 0)
    expected = rig.segmenter.segment(image, ALL)
    nbytes = {CLASSES: size[0] * size[1], COLOR: 3 * size[0] * size[1],
              CONFIDENCE: size[0] * size[1]}
    buffers = {name: rig.cuda.allocate_buffer(nbytes[name]) for name in stay}
    with ExitStack() as handles:
        into = {}
        for name, buffer in buffers.items():
            handle = rig.cuda.from_output_buffer(buffer, rig.device.stream.handle)
            handles.callback(handle.close)
            into[name] = handle.device_ptr
        rig.copies.clear()
        found, = rig.segmenter.segment_batch([image], want, into=[into])
        back = {*want, CLASSES} & (into.keys() if rig.mapped else set(ALL))
        assert rig.copies == {'to': 0 if rig.mapped else image.nbytes,
                              'from': sum(nbytes[name] for name in back)}
    for name in ALL:
        mask = getattr(expected, name)
        assert (getattr(found, name) is None) == (name not in {*want, CLASSES})
        assert getattr(found, name) is None or np.array_equal(getattr(found, name), mask)
        if name in stay:
            assert buffers[name].to_bytes() == mask.tobytes()


def test_wrong_use_is_an_error(rig, opened):
    with opened.cpu() as cpu, ExitStack() as handles:
        image = random_image('bgr', (40, 60), 0, 0)
        there = on_gpu(rig, image, 'bgr', handles)
        for segmenter, options, part in (
                (rig.segmenter, {'color': 'rgb'}, "color: found 'rgb' for an image on the GPU"),
                (rig.segmenter, {'into': [{'depth': 8}]}, "want: found 'depth'"),
                (rig.segmenter, {'into': [{}, {}]}, 'into: found 2 for 1 images'),
                (cpu, {'into': [{CLASSES: 8}]}, 'into: this segmenter has no GPU')):
            with pytest.raises(InputError, match=part):
                segmenter.segment_batch([there], **options)
        # Where there is no GPU, it is an array like others.
        assert np.array_equal(cpu.segment_batch([there])[0].classes, cpu.segment(image).classes)


def test_other_memory_is_not_the_gpu_s(rig):
    """Also what was mapped from another process' handle is."""
    with rig.device:
        assert rig.device.owns(rig.cuda.of(bytes(8)).address)
        assert not REAL or not rig.device.owns(0x1234)


def _collect(published, *given):
    published.append(given)


def test_a_message_on_the_gpu_goes_through_the_node_s_pipeline_without_the_host(
        rig, opened, monkeypatch):
    """What is published natively equals what is published of a message on the host."""
    pytest.importorskip('rclpy', reason="the pipeline is the node's")
    from sensor_msgs.msg import Image
    from support.messages import Camera

    from trt_segmentation.ros import native, outputs
    from trt_segmentation.ros.camera import Frame
    from trt_segmentation.ros.frame_pipeline import Pipeline

    monkeypatch.setattr(native, 'cuda_buffer', lambda: rig.cuda)
    monkeypatch.setattr(outputs, 'Image', NativeImage)
    settings = SimpleNamespace(mask_size='source', max_frame_age_ms=10**9, strict_stamps=False,
                               masks_on_gpu=True)
    pipeline = Pipeline(lambda: 0, settings)
    pipeline._segmenter, pipeline.bundle, pipeline._proven = rig.segmenter, opened.bundle, True
    pipeline._evidence = SimpleNamespace()  # its status is not published here
    size = (480, 640)
    pixels = picture(size, 3)
    host = Image(height=size[0], width=size[1], encoding='bgr8', step=3 * size[1],
                 data=array('B', pixels.tobytes()))
    expected = rig.segmenter.segment(pixels, ALL)
    with ExitStack() as handles:
        bring_tables(rig, on_gpu(rig, random_image('bgr', size, 0, 0), 'bgr', handles))
    for number, wanted in enumerate((('class_mask', 'color_mask'), ('color_mask', 'overlay'))):
        camera, checked = Camera(), []
        # What it checks outlives the buffer, and is written to a recording.
        pipeline.shadow = SimpleNamespace(wants=lambda topic: True,
                                          offer=checked.append) if number else None
        camera.looked_ns = monotonic_ns()  # the confidence is not looked at now
        published = []
        camera.outputs.wanted = partial(frozenset, wanted)
        camera.outputs.publish = partial(_collect, published)
        incoming = rig.cuda.of(host.data.tobytes())
        rig.copies.clear()
        pipeline.process([Frame(camera, NativeImage.of(host, incoming), monotonic_ns())])
        assert camera.dropped == [] and camera.statistics.counts() == {'received_on_gpu': 1}
        nbytes = size[0] * size[1]
        assert number or rig.copies == {'to': 0, 'from': sum((
            0 if REAL else 16 * 3 * size[1],  # of the image, each 30th row for the input's health
            nbytes))}  # the class mask, for status and health
        (_, masks, image, color, *_, stayed), = published
        assert isinstance(image, DeviceImage) and color == 'bgr'
        assert (incoming.downloads > 0) == bool(checked) == bool(number)
        for served in checked:
            assert served.message.data == host.data and np.array_equal(served.image, pixels)
        assert all(handle.closed for buffer in (incoming, *rig.cuda.made)
                   for handle in buffer.handles)
        names = {'class_mask': CLASSES, 'color_mask': COLOR}
        assert stayed.keys() == set(wanted) & names.keys()
        for topic, message in stayed.items():
            assert message.data.to_bytes() == getattr(expected, names[topic]).tobytes()
        assert np.array_equal(masks.classes, expected.classes)
        # An overlay is drawn on the host: it needs the color mask there too.
        assert (masks.color is None) == (number == 0)
        assert number == 0 or np.array_equal(masks.color, expected.color)
