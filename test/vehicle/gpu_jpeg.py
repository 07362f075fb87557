# SPDX-License-Identifier: Apache-2.0
"""
On a machine with a GPU and nvJPEG: its pictures against the CPU's decoder.

    python3 -m pytest -s test/vehicle/gpu_jpeg.py

What it prints are the figures of the documentation. simplejpeg must be there for the verdicts on
damaged data: OpenCV alone does not tell.
"""

from functools import cache, partial
import os
from time import perf_counter, process_time

import cv2
from gpu import FAULTS, Memory
import numpy as np
import pytest

from trt_segmentation.cuda import nvjpeg
from trt_segmentation.cuda.device import Device
from trt_segmentation.cuda.jpegs import JpegDecoder, LARGEST_DIFFERENCE
from trt_segmentation.errors import DeviceError
from trt_segmentation.recordings import decoder, jpeg
from trt_segmentation.recordings.limits import MalformedImage

BACKENDS = {'huffman on the CPU': nvjpeg.HYBRID, 'huffman on the GPU': nvjpeg.GPU_HYBRID}
HARDWARE = 3  # NVJPEG_BACKEND_HARDWARE, which not every GPU has
DECODES = int(os.environ.get('TRT_SEGMENTATION_DECODES', 1000))
_FACTORS = {'4:4:4': 0x111111, '4:2:2': 0x211111, '4:2:0': 0x221111}


@cache
def library():
    """Return the first nvJPEG that works here."""
    device, problems = Device(), []
    try:
        for path in nvjpeg.find():
            try:
                loaded = nvjpeg.load(path)
                with device:
                    nvjpeg.Decoder(device, loaded).close()
                print('nvJPEG:', path)
                return loaded
            except (OSError, AttributeError, nvjpeg.NvjpegError) as error:
                problems.append(f'{path}: {error}')
    finally:
        device.close()
    pytest.fail(f'no nvJPEG works here: {problems}')


class Pictures:
    """A decoder, on a device of its own."""

    def __init__(self, backend, loaded=None):
        self._device = Device()
        try:
            with self._device as device:
                self.planes = nvjpeg.Decoder(device, loaded or library(), backend)
                self.jpegs = JpegDecoder(device, self.planes)
        except BaseException:
            self._device.close()
            raise

    def decode(self, data):
        """Return a picture; None if it is left to the CPU."""
        image = self.jpegs.decode(np.frombuffer(data, np.uint8))
        return None if image is None else np.asarray(image)

    def wait(self):
        with self._device as device:
            device.synchronize()

    def close(self):
        self.jpegs.close()
        self._device.close()


@pytest.fixture(params=BACKENDS)
def pictures(request):
    pictures = Pictures(BACKENDS[request.param])
    print(f'\n{request.param}, nvJPEG {pictures.planes.version}: takes '
          f'{", ".join(sorted(pictures.jpegs.samplings))}')
    yield pictures
    pictures.close()


def scene(rng, size):
    """Return an image that is smooth, with edges and noise, as cameras' are."""
    height, width = size
    coarse = rng.integers(0, 256, (max(height // 40, 2), max(width // 40, 2), 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(int)
    image += rng.integers(-8, 9, image.shape)
    for _ in range(8):
        y, x = rng.integers(0, height), rng.integers(0, width)
        image[y:y + height // 5 + 1, x:x + width // 7 + 1] = rng.integers(0, 256, 3)
    return np.clip(image, 0, 255).astype(np.uint8)


def encode(image, sampling, quality=90, restarts=0):
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_RST_INTERVAL, restarts]
    if sampling == jpeg.GRAY:
        image = np.ascontiguousarray(image[..., 1])
    else:
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _FACTORS[sampling]]
    return cv2.imencode('.jpg', image, options)[1].tobytes()


def test_each_sampling_is_taken(pictures):
    assert pictures.jpegs.samplings == set(jpeg.PLAIN)


def test_random_pictures_are_the_cpu_s_but_for_rounding_and_memory_is_flat(pictures):
    rng, memory, largest, sums, refused = np.random.default_rng(0), Memory(), {}, {}, {}
    pictures.decode(encode(scene(rng, (600, 800)), '4:4:4'))  # buffers have their sizes
    for i in range(DECODES):
        sampling = sorted(jpeg.PLAIN)[i % 4]
        size = int(rng.integers(1, 600)), int(rng.integers(5, 800))
        image = scene(rng, size) if i % 3 else rng.integers(0, 256, (*size, 3), np.uint8)
        data = encode(image, sampling, int(rng.integers(20, 101)), int(rng.integers(0, 3)) * 7)
        found = pictures.decode(data)
        if found is None:
            refused[sampling] = refused.get(sampling, 0) + 1
            continue
        difference = np.abs(found.astype(int) - decoder.decode(data))
        largest[sampling] = max(largest.get(sampling, 0), int(difference.max()))
        sums.setdefault(sampling, []).append(difference.mean())
        if i % 20 == 0:
            memory.look()
    print('largest difference:', largest, 'mean:',
          {name: float(np.mean(means)) for name, means in sums.items()}, 'refused:', refused)
    memory.check(16)
    assert max(largest.values()) <= LARGEST_DIFFERENCE


def damage(rng, data):
    """Return a picture with something changed in its scan, and what."""
    start, result = data.index(b'\xff\xda') + 14, bytearray(data)
    at = int(rng.integers(start, len(data) - 70))
    kind = ('bit', 'zeros', 'cut', 'lost', 'noise')[rng.integers(5)]
    if kind == 'bit':
        result[at] ^= 1 << int(rng.integers(8))
    elif kind == 'zeros':
        result[at:at + 64] = bytes(64)
    elif kind == 'cut':
        result[at:] = b'\xff\xd9'
    elif kind == 'lost':
        del result[at:at + 64]
    else:
        result[at:at + 64] = rng.integers(0, 255, 64, np.uint8).tobytes()
    return bytes(result), kind


def test_what_is_made_of_damaged_data(pictures):
    """Prints it: whatever nvJPEG takes, the next picture is as it was."""
    rng, table = np.random.default_rng(1), {}
    good = encode(scene(rng, (240, 320)), '4:2:0')
    expected = pictures.decode(good)
    assert expected is not None
    for i in range(DECODES):
        data, kind = damage(rng, encode(scene(rng, (240, 320)), sorted(jpeg.PLAIN)[i % 4]))
        try:
            jpeg.check(memoryview(data))
        except MalformedImage:
            continue  # nvJPEG never sees it
        try:
            decoder.decode(data)
            verdict = 'CPU takes it'
        except MalformedImage:
            verdict = 'CPU refuses it'
        verdict += ', nvJPEG ' + ('refuses' if pictures.decode(data) is None else 'takes it')
        row = table.setdefault(kind, {})
        row[verdict] = row.get(verdict, 0) + 1
        assert np.array_equal(pictures.decode(good), expected)
    print(*table.items(), sep='\n')


class Failing:
    """The library, of which the nth call returns an error."""

    def __init__(self, loaded, nth):
        self._loaded, self._left = loaded, nth

    def __getattr__(self, name):
        function = getattr(self._loaded, name)
        return function if name.endswith('Destroy') else partial(self._call, function)

    def _call(self, function, *arguments):
        self._left -= 1
        return function(*arguments) if self._left else 6


def test_whatever_call_fails_everything_is_given_back():
    memory, failed = Memory(), 0
    data = encode(scene(np.random.default_rng(0), (240, 320)), '4:2:0')
    for i in range(FAULTS):
        try:
            pictures = Pictures(nvjpeg.GPU_HYBRID, Failing(library(), 1 + i % 60))
        except (nvjpeg.NvjpegError, DeviceError):
            failed += 1
        else:
            pictures.decode(data)
            pictures.close()
        memory.look()
    print(failed, 'of', FAULTS, 'were not opened')
    assert 0 < failed < FAULTS
    memory.check(16)


@pytest.mark.parametrize('size', [(1080, 1920), (2160, 3840)])
def test_what_a_picture_costs(size):
    """Prints medians in milliseconds; CUDA waits busily, so the CPU's time is taken before too."""
    data = encode(scene(np.random.default_rng(0), size), '4:2:0')
    ways, opened = {'CPU': (partial(decoder.decode, data), int)}, []
    for name, backend in {**BACKENDS, 'hardware': HARDWARE}.items():
        try:
            opened.append(Pictures(backend))
        except nvjpeg.NvjpegError as error:
            print(f'\n{name}: {error}')
            continue
        decode = partial(opened[-1].jpegs.decode, np.frombuffer(data, np.uint8))
        ways[name] = decode, opened[-1].wait
    times = {name: [] for name in ways}
    for i in range(33):
        for name, (way, wait) in ways.items():
            passed, worked = perf_counter(), process_time()
            if way() is None:
                continue
            before = process_time() - worked
            wait()
            if i > 2:
                times[name].append((perf_counter() - passed, process_time() - worked, before))
    print(f'\n{size[1]}x{size[0]}, {len(data)} bytes: time that passes, of the CPU, of it before '
          'the GPU is waited for')
    for name, values in times.items():
        print(f'{name}:', np.median(values, 0) * 1e3 if values else 'refuses it')
    for pictures in opened:
        pictures.close()
