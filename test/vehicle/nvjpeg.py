# SPDX-License-Identifier: Apache-2.0
"""JPEG pictures on the GPU, with a library that stands in for nvJPEG; and nvJPEG by its header."""

from array import array
from importlib.util import find_spec
from pathlib import Path
import re
from time import monotonic_ns
from types import SimpleNamespace

import cv2
from fake_gpu import compile_kernels, FakeDevice, FakeEngine
from fake_nvjpeg import FakeNvjpeg
import numpy as np
import pytest
from support.jpegs import decode_planes

from trt_segmentation.bundles.labels import CITYSCAPES
from trt_segmentation.bundles.spec import InputSpec, OutputSpec, Spec
from trt_segmentation.cuda import jpegs, nvjpeg
from trt_segmentation.cuda.jpegs import JpegDecoder
from trt_segmentation.recordings import decoder, jpeg
from trt_segmentation.segmenters.gpu import CudaSegmenter

TRIALS = {sampling: np.fromfile(Path(jpegs.__file__).with_name('jpeg')
                                / f'{sampling.replace(":", "")}.jpg', np.uint8)
          for sampling in jpeg.PLAIN}


@pytest.fixture(scope='session')
def functions(tmp_path_factory):
    return compile_kernels(tmp_path_factory.mktemp('kernels'))


@pytest.fixture
def device(functions):
    return FakeDevice(functions)


@pytest.fixture
def library(monkeypatch):
    """The only nvJPEG there is."""
    library = FakeNvjpeg()
    monkeypatch.setattr(nvjpeg, 'find', lambda: iter(['libnvjpeg.so.13']))
    monkeypatch.setattr(nvjpeg, 'load', lambda path: library)
    yield library
    assert not library.broken


@pytest.fixture
def pictures(device, library):
    pictures = JpegDecoder.found(device)
    yield pictures
    pictures.close()
    assert not library.live and not device.memory


def decoded(pictures, data, *arguments):
    """Return what a decoder makes of a picture; None if it leaves it to the CPU."""
    image = pictures.decode(np.frombuffer(data, np.uint8), *arguments)
    return None if image is None else np.asarray(image)


def encode(image, *options):
    return cv2.imencode('.jpg', image, options)[1].tobytes()


def test_a_picture_of_each_sampling_is_the_cpu_s_but_for_rounding(pictures):
    assert pictures.samplings == set(jpeg.PLAIN)
    for sampling, data in TRIALS.items():
        assert jpeg.plain(memoryview(data)) == sampling
        difference = np.abs(decoded(pictures, data).astype(int) - decoder.decode(data))
        assert 0 < difference.max() <= 3 and difference.mean() < .1


def test_images_of_other_slots_stay(pictures):
    first = pictures.decode(TRIALS['4:2:0'], 'rgb', 'left')
    second = pictures.decode(np.frombuffer(COLOR, np.uint8), 'bgr', 'right')
    expected = decoder.decode(TRIALS['4:2:0'])
    assert first.layout == 'rgb' and np.abs(np.asarray(first).astype(int) - expected).max() <= 3
    assert np.asarray(second).shape == (40, 50, 3)


NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
COLOR = encode(NOISE)


@pytest.mark.parametrize('data', [
    encode(NOISE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    encode(NOISE[:, :4]),  # libjpeg does not interpolate so few columns of chroma
    COLOR[:2] + b'\xff\xee\0\x0eAdobe\0d\0\0\0\0\0' + COLOR[2:],
    COLOR.replace(b'\x01\x22\0\x02\x11\x01\x03\x11\x01', b'R\x22\0G\x11\x01B\x11\x01').replace(
        b'\3\1\0\2\x11\3\x11\0\x3f\0', b'\3R\0G\x11B\x11\0\x3f\0'),
    COLOR.replace(b'\x01\x22\0\x02\x11\x01\x03\x11\x01', b'\x01\x12\0\x02\x11\x01\x03\x11\x01'),
], ids=['progressive', 'narrow', 'adobe', 'rgb', '4:4:0'])
def test_other_pictures_are_left_to_the_cpu(pictures, library, data):
    library.calls.clear()
    assert jpeg.plain(memoryview(data)) == '' and data != COLOR
    assert decoded(pictures, data) is None and library.calls == []


@pytest.mark.parametrize('function', [
    'JpegStreamParse', 'DecodeJpegHost', 'DecodeJpegTransferToDevice', 'DecodeJpegDevice'])
def test_what_nvjpeg_refuses_is_left_to_the_cpu(pictures, library, function, caplog):
    """And is said once."""
    caplog.set_level('INFO')
    library.statuses[f'nvjpeg{function}'] = 10
    for _ in range(2):
        assert decoded(pictures, COLOR) is None
    assert caplog.messages == [
        f'nvJPEG leaves a picture to the CPU: nvjpeg{function}: incomplete bitstream']
    library.statuses.clear()
    assert decoded(pictures, COLOR) is not None


def test_damage_that_the_library_reports_is_for_the_cpu_to_judge(pictures):
    start = COLOR.index(b'\xff\xda') + 14
    data = COLOR[:start] + b'\xff\0' * ((len(COLOR) - start) // 2) + b'\xff\xd9'
    jpeg.check(memoryview(data))  # its markers are in order
    assert decoded(pictures, data) is None


@pytest.mark.parametrize('name', [name for name in nvjpeg.SIGNATURES if 'Create' in name
                                  or 'Set' in name or 'Attach' in name])
def test_a_library_that_does_not_work_leaves_all_to_the_cpu(device, library, name, caplog):
    """And what was made of it is given back."""
    library.statuses[name] = 7
    assert JpegDecoder.found(device) is None and not library.live
    said, = caplog.messages
    assert said == ('the CPU decodes JPEG pictures, there is no nvJPEG: libnvjpeg.so.13: '
                    f'{name}: architecture mismatch')


def test_without_a_library_it_is_said_what_to_install(device, monkeypatch, caplog):
    monkeypatch.setattr(nvjpeg, 'find', lambda: iter(['/nowhere/libnvjpeg.so.13']))
    assert JpegDecoder.found(device) is None
    said, = caplog.messages
    assert said.endswith(jpegs._INSTALL)


def test_a_sampling_that_nvjpeg_decodes_otherwise_is_left_to_the_cpu(device, library, caplog):
    def brighter(data):
        planes = decode_planes(data)
        if len(planes) == 3 and planes[1].shape[0] < planes[0].shape[0]:  # 4:2:0
            planes[0] = planes[0] // 2 + 64
        return planes

    library._decode = brighter
    pictures = JpegDecoder.found(device)
    assert pictures.samplings == set(jpeg.PLAIN) - {'4:2:0'}
    said, = caplog.messages
    assert re.fullmatch(r'JPEG 4:2:0: nvJPEG 13\.3\.2 differs by \d+ from the CPU, at most 4 is '
                        'taken, so the CPU will', said)
    assert decoded(pictures, TRIALS['4:2:0']) is None
    assert decoded(pictures, TRIALS['4:2:2']) is not None
    pictures.close()


def test_a_failure_of_the_gpu_at_the_trial_leaves_nothing_behind(device, library, monkeypatch):
    def fails(*arguments):
        raise MemoryError

    monkeypatch.setattr(device.cuda, 'memcpy_dtoh', fails)
    with pytest.raises(MemoryError):
        JpegDecoder.found(device)
    assert library.calls and not library.live and not device.memory


def test_jpegs_of_messages_go_through_the_node_s_pipeline(device, library, monkeypatch):
    """Two cameras in one batch; what is damaged, or nvJPEG refuses, has the verdict of the CPU."""
    pytest.importorskip('rclpy', reason="the pipeline is the node's")
    from sensor_msgs.msg import CompressedImage
    from support.messages import Camera

    from trt_segmentation.ros import frame_pipeline
    from trt_segmentation.ros.camera import Frame

    spec = Spec('model.onnx', InputSpec('data', (16, 32)), OutputSpec('logits', 'logits'),
                CITYSCAPES)
    weight = np.random.default_rng(0).normal(0, 1, (19, 3))
    engine = FakeEngine(
        device, lambda tensor: {'logits': np.einsum('kc,nchw->nkhw', weight, tensor)},
        ('data', (1, 3, 16, 32)), {'logits': ((1, 19, 16, 32), np.float32)}, max_batch=2)
    segmenter = CudaSegmenter(spec, engine, batch_sizes=(1, 2))
    monkeypatch.setattr(frame_pipeline, 'Evidence', lambda *_: SimpleNamespace())
    settings = SimpleNamespace(
        gpu='', store='', gpu_jpeg=True, masks_on_gpu=False, mask_size='source',
        max_frame_age_ms=10**9, strict_stamps=False)
    pipeline = frame_pipeline.Pipeline(lambda: 0, settings)
    pipeline.open(SimpleNamespace(spec=spec, sha256='', golden_path=Path('/nowhere')),
                  SimpleNamespace(open=lambda bundle, store: segmenter))
    pipeline._proven = True

    def process(*pictures):
        cameras = [Camera() for _ in pictures]
        for i, camera in enumerate(cameras):
            camera.topic = f'/camera_{i}'
        pipeline.process([
            Frame(camera, CompressedImage(format='jpeg', data=array('B', bytes(data))),
                  monotonic_ns()) for camera, data in zip(cameras, pictures)])
        return cameras

    good, other = TRIALS['4:2:0'].tobytes(), TRIALS['4:4:4'].tobytes()
    for camera, data in zip(process(good, other), (good, other)):
        assert camera.statistics.counts() == {'decoded_on_gpu': 1} and not camera.dropped
        image = np.asarray(camera.image)
        assert np.abs(image.astype(int) - decoder.decode(data)).max() <= 3
        assert camera.source_size == image.shape[:2]
        for name in ('classes', 'color'):
            assert np.array_equal(getattr(camera.masks, name),
                                  getattr(segmenter.segment(image), name))
    cut, whole = process(good[:-300], good)
    assert cut.dropped == ['malformed_damaged'] and cut.masks is None
    assert whole.statistics.counts() == {'decoded_on_gpu': 1} and whole.masks is not None
    settings.mask_size = 'network'  # the CPU makes it small
    small, = process(good)
    assert small.statistics.counts() == {} and small.masks is not None
    settings.mask_size = 'source'
    library.statuses['nvjpegDecodeJpegHost'] = 3
    refused, = process(good)
    assert refused.statistics.counts() == {} and refused.dropped == []
    assert np.array_equal(refused.image, decoder.decode(good))
    pipeline.close()
    assert not library.live and segmenter.closed


WHEEL = next((Path(folder) for folder in getattr(find_spec('nvidia'),
                                                 'submodule_search_locations', ())
              if list(Path(folder).glob('*/include/nvjpeg.h'))), None)


@pytest.mark.skipif(WHEEL is None, reason='the wheel nvidia-nvjpeg is not there')
def test_names_numbers_and_arguments_are_those_of_the_header():
    header, = WHEEL.glob('*/include/nvjpeg.h')
    text = re.sub(r'//.*|/\*.*?\*/', '', header.read_text(), flags=re.MULTILINE)
    letters = {'size_t': 'n', 'unsigned int': 'u', 'int': 'i', 'libraryPropertyType': 'i',
               'nvjpegBackend_t': 'i', 'nvjpegOutputFormat_t': 'i'}
    for name, signature in nvjpeg.SIGNATURES.items():
        arguments, = re.findall(rf'nvjpegStatus_t NVJPEGAPI {name}\((.*?)\);', text, re.DOTALL)
        kinds = []
        for argument in arguments.split(','):
            kind = argument.strip().removeprefix('const ').rpartition(' ')[0].strip()
            pointer = '*' in argument or (kind.endswith('_t') and kind not in letters)
            kinds.append('P' if pointer else letters[kind])
        assert ''.join(kinds) == signature, name
    numbers = dict(re.findall(r'(NVJPEG_\w+)\s*=?\s+(\d+(?:<<\d+)?)', text))
    assert {int(value): name for name, value in numbers.items()
            if name.startswith('NVJPEG_STATUS_')}.keys() == {0, *nvjpeg.STATUSES}
    assert int(numbers['NVJPEG_BACKEND_HYBRID']) == nvjpeg.HYBRID
    assert int(numbers['NVJPEG_BACKEND_GPU_HYBRID']) == nvjpeg.GPU_HYBRID
    assert int(numbers['NVJPEG_BACKEND_DEFAULT']) == nvjpeg.BACKEND_DEFAULT
    assert int(numbers['NVJPEG_OUTPUT_UNCHANGED']) == nvjpeg.OUTPUT_UNCHANGED
    assert numbers['NVJPEG_FLAGS_BITSTREAM_STRICT'] == '1<<2'
    assert nvjpeg.FLAGS_BITSTREAM_STRICT == 4
    components, = re.findall(r'#define NVJPEG_MAX_COMPONENT (\d)', text)
    assert len(nvjpeg.Image().channel) == len(nvjpeg.Image().pitch) == int(components)


@pytest.mark.skipif(WHEEL is None, reason='the wheel nvidia-nvjpeg is not there')
def test_the_real_library_is_found_and_says_why_it_does_not_work_here(device):
    path = next(nvjpeg.find())
    assert Path(path).is_relative_to(WHEEL)
    with device, pytest.raises(nvjpeg.NvjpegError, match='nvjpegCreateEx: '):
        nvjpeg.Decoder(device, nvjpeg.load(path))
