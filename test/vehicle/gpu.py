# SPDX-License-Identifier: Apache-2.0
"""
On a machine with a GPU: the real kernels against the CPU path, and engines from end to end.

    TRT_SEGMENTATION_BACKEND=tensorrt python3 -m pytest test/vehicle/gpu.py

The backend is tensorrt unless the variable names tensorrt_rtx. With TRT_SEGMENTATION_BUNDLE (a
calibrated bundle with golden frames) an engine is also built, proven, stored and opened.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
import gc
import os
from pathlib import Path
import subprocess
import sys
import threading

import cv2
from hypothesis import assume, given, HealthCheck, settings
from hypothesis import strategies as st
import numpy as np
import onnx
import pytest
from support.networks import fcn

from trt_segmentation.bundles import golden
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.labels import CITYSCAPES, LabelSet
from trt_segmentation.bundles.spec import InputSpec, OutputSpec, Spec
from trt_segmentation.cuda import device as device_module
from trt_segmentation.cuda.device import Device
from trt_segmentation.engines import BuildOptions, choose_backend
from trt_segmentation.engines.acceptance import self_test
from trt_segmentation.engines.build import build
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.engines.opening import open_segmenter
from trt_segmentation.engines.tensorrt.engine import DeviceTensor, layer_information
from trt_segmentation.engines.tensorrt.module import import_tensorrt, Log, make_logger
from trt_segmentation.engines.tensorrt.plans import unpack
from trt_segmentation.errors import DeviceError, InputError
from trt_segmentation.recordings import layouts
from trt_segmentation.recordings.layouts import CAMERAS
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.gpu import CudaSegmenter
from trt_segmentation.segmenters.postprocessing import CLASSES, COLOR, CONFIDENCE, Postprocessor
from trt_segmentation.segmenters.preprocessing import Geometry, Preprocessor

BACKEND = os.environ.get('TRT_SEGMENTATION_BACKEND', 'tensorrt')
BUNDLE = os.environ.get('TRT_SEGMENTATION_BUNDLE')
ALL = (CLASSES, COLOR, CONFIDENCE)
SIDES = st.tuples(st.integers(1, 400), st.integers(1, 800))


@pytest.fixture(scope='module', autouse=True)
def context():
    """Keep the GPU's context from one test to the next: making it takes longer than a test."""
    device = Device()
    yield
    device.close()


class FixedEngine:
    """An engine on the real GPU that always gives the same output."""

    backend, precision = 'fixed', 'fp32'

    def __init__(self, spec, output, dtype=np.float32):
        self.device = Device()
        shape, dtype = (1, 3, *spec.input.size), np.dtype(dtype)
        try:
            with self.device as device:
                nbytes = int(np.prod(shape)) * dtype.itemsize
                self.input = DeviceTensor(spec.input.tensor, device.allocate(nbytes), shape, dtype)
                self.outputs = {spec.output.tensor: DeviceTensor(
                    spec.output.tensor, device.upload(output), output.shape, output.dtype)}
        except BaseException:
            self.close()
            raise

    def enqueue(self, count=1):
        """The output is there already."""

    def tensor(self):
        """Return what the input kernel wrote."""
        result = np.empty(self.input.shape, self.input.dtype)
        with self.device as device:
            device.cuda.memcpy_dtoh(result, self.input.address)
        return result

    def close(self):
        if self.device is not None:
            self.device.close()
        self.device = None


def make_spec(size, upsample='half_pixel', labels=CITYSCAPES, **options):
    return Spec('model.onnx', InputSpec('data', size, **options),
                OutputSpec('logits', 'logits', upsample), labels)


def nearly_equal(spec, logits, image_size):
    """Tell where the two best logits differ by less than 1e-4."""
    classes, _, amplified = Postprocessor(spec)(logits * 100, image_size, ALL)
    return (amplified <= 1) & (classes != 255)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(image_size=SIDES, size=SIDES, stride_size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
       fit=st.sampled_from(['stretch', 'letterbox', 'crop']),
       interpolation=st.sampled_from(['nearest', 'linear', 'area']),
       upsample=st.sampled_from(['half_pixel', 'align_corners', 'nearest']),
       dtype=st.sampled_from([np.float32, np.float16]), classes=st.integers(1, 19),
       full=st.booleans(), mapped=st.booleans(),
       color=st.sampled_from(['bgr', 'rgb', *CAMERAS]))
def test_tensor_and_masks_are_the_cpu_s(image_size, size, stride_size, fit, interpolation,
                                        upsample, dtype, classes, full, mapped, color):
    if color in CAMERAS:  # where they share colors, by twos
        image_size = image_size[0] + image_size[0] % 2, image_size[1] + image_size[1] % 2
    try:
        Geometry.of(image_size, size, fit)
    except InputError:
        assume(False)
    rng = np.random.default_rng(len(upsample) * size[0] + classes)
    spec = make_spec(size, upsample, LabelSet(CITYSCAPES.labels[:classes]), fit=fit,
                     interpolation=interpolation)
    logits = rng.normal(0, 3, (1, classes, *(size if full else stride_size))).astype(dtype)
    image = rng.integers(0, 256, layouts.shape(image_size, color), np.uint8)
    engine = FixedEngine(spec, logits, dtype)
    segmenter = CudaSegmenter(spec, engine, mapped=mapped)
    try:
        assert segmenter.layouts == set(CAMERAS)  # bit for bit as OpenCV has them
        masks = segmenter.segment(image, ALL, color=color)
        tensor = engine.tensor().astype(np.float64)
    finally:
        segmenter.close()
    rounding = 1e-3 if dtype == np.float32 else .13  # float16 at 255
    assert np.abs(tensor - Preprocessor(spec.input)(image, color)).max() <= 1 + rounding
    logits = logits.astype(np.float32)
    expected = Postprocessor(spec)(logits, image_size, ALL)
    doubtful = nearly_equal(spec, logits, image_size)
    assert (masks.classes == expected[0])[~doubtful].all()
    assert (masks.color == expected[1])[~doubtful].all()
    assert np.abs(masks.confidence.astype(int) - expected[2])[~doubtful].max(initial=0) <= 1


@pytest.mark.parametrize('factors', [(2, 2), (4, 4), (2, 4), (8, 8), (3, 3), (2, 1)])
def test_averages_are_rounded_as_opencv_rounds_them(factors):
    """Where no weight is rounded itself, or none of the averages is a half."""
    size = (24, 40)
    spec = make_spec(size, fit='stretch', interpolation='area', mean=(0, 0, 0), scale=(1, 1, 1))
    image = np.random.default_rng(0).integers(
        0, 256, (factors[0] * size[0], factors[1] * size[1], 3), np.uint8)
    engine = FixedEngine(spec, np.zeros((1, 19, *size), np.float32))
    segmenter = CudaSegmenter(spec, engine)
    try:
        segmenter.segment(image, (CLASSES,))
        tensor = engine.tensor()
    finally:
        segmenter.close()
    averages = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    assert np.array_equal(tensor[0].transpose(1, 2, 0), averages)


def test_logits_that_are_not_finite_make_no_mask():
    spec = make_spec((64, 128))
    logits = np.ones((1, 19, 64, 128), np.float32)
    logits[0, 3, 5, 7] = np.nan
    engine = FixedEngine(spec, logits)
    with pytest.raises(InputError, match='not finite'):
        CudaSegmenter(spec, engine)
    engine.close()


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """Return (spec, ONNX path, plans by precision) of a small network."""
    folder = tmp_path_factory.mktemp('small')
    size = (64, 128)
    onnx.save(fcn(size), folder / 'model.onnx')
    (folder / 'model.yaml').write_text('version: 1\nmodel: model.onnx\n')
    bundle = Bundle.open(folder)
    backend = choose_backend(BACKEND)
    plans = {precision: backend.build(bundle, precision, BuildOptions(timing_cache=b''))
             for precision in ('fp32', 'fp16')}
    return bundle, plans


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_an_engine_computes_what_onnx_runtime_computes(small, precision):
    bundle, plans = small
    assert {layer.precision for layer in plans[precision].layers} == {precision}
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    engine = choose_backend(BACKEND).load(plans[precision].data, precision)
    tensor = Preprocessor(bundle.spec.input)(image)
    found = engine.infer(np.concatenate([tensor, tensor]))['logits']
    expected = OnnxRuntimeEngine(bundle.model_path).infer(tensor)['logits']
    error = np.abs(found[:1] - expected).max() / np.abs(expected).max()
    print(f'{precision}: largest error {error:.2e} of the largest logit, CUDA graph '
          f'{engine.uses_cuda_graph}')
    assert error < {'fp32': 5e-3, 'fp16': 2e-2}[precision]  # FP32 convolutions may use TF32
    assert np.array_equal(found[0], found[1])
    # The same logits through both ways after the engine.
    cuda = CudaSegmenter(bundle.spec, engine)
    masks = cuda.segment(image, ALL)
    same = CpuSegmenter(bundle.spec, engine).segment(image, ALL)
    doubtful = nearly_equal(bundle.spec, found[:1], (64, 128))
    agreement = (masks.classes == same.classes)[~doubtful].mean()
    assert agreement == 1 if precision == 'fp32' else agreement > .999
    cuda.close()


def test_threads_share_an_engine_by_turns(small):
    bundle, plans = small
    segmenter = CudaSegmenter(bundle.spec, choose_backend(BACKEND).load(plans['fp16'].data,
                                                                        'fp16'))
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    lock = threading.Lock()

    def run(_):
        with lock:
            return segmenter.segment(image).classes

    first = segmenter.segment(image).classes
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(classes, first) for classes in pool.map(run, range(40)))
        pool.submit(segmenter.close).result()
    assert (first >= 0).all()  # masks outlive what made them


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_a_batch_gives_the_masks_of_single_images(small, precision):
    """Of other sizes and channel orders; from the plan for batches, and from the one for one."""
    bundle, plans = small
    backend, rng = choose_backend(BACKEND), np.random.default_rng(0)
    plan = backend.build(bundle, precision, BuildOptions(max_batch=4))
    sizes = ((64, 128), (70, 90), (200, 300), (33, 47), (64, 128), (480, 640), (20, 20))
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    colors = ['bgr', 'rgb', 'rgb', 'bgr', 'rgb', 'bgr', 'bgr']
    with CudaSegmenter(bundle.spec, backend.load(plan.data, precision),
                       batch_sizes=(1, 2, 4)) as batches, \
            CudaSegmenter(bundle.spec, backend.load(plans[precision].data, precision)) as turns:
        assert batches.engine.batch_sizes == (1, 2, 4)
        together = batches.segment_batch(images, ALL, color=colors)
        for masks, image, color in zip(together, images, colors):
            for alone in (batches.segment(image, ALL, color=color),
                          turns.segment(image, ALL, color=color)):
                differ = masks.classes != alone.classes
                print(precision, image.shape, f'{differ.mean():.2e} differ, confidence at most',
                      alone.confidence[differ].max(initial=0))
                assert alone.confidence[differ].max(initial=0) <= 2 and differ.mean() < .01
        assert all(run.graph for run in batches.engine._runs.values())


CYCLES, FAULTS = 1000, 200


class Memory:
    """What this process has of the card and of the host."""

    def __init__(self):
        self._probe = Device()  # keeps the context alive, so that free memory can be compared
        self.seen = []

    def look(self):
        gc.collect()
        with self._probe:
            free = self._probe.cuda.mem_get_info()[0]
        resident = int(Path('/proc/self/statm').read_text().split()[1]) * 4096
        self.seen.append((free >> 20, resident >> 20, len(device_module._LOCKED)))

    def ends(self):
        """Return what was seen when a tenth was over, and at the end."""
        return self.seen[len(self.seen) // 10], self.seen[-1]

    def check(self, megabytes, *, host=True):
        """Compare the end with the time when a tenth was over; `host` too, or the card alone."""
        early, late = self.ends()
        print('free MiB of the card, resident MiB, locked blocks:', self.seen[:: len(
            self.seen) // 10 or 1], late)
        assert late[0] >= early[0] - megabytes
        assert not host or late[1] <= early[1] + megabytes
        assert late[2] == early[2]
        self._probe.close()


def test_a_thousand_times_opened_and_closed_memory_is_flat():
    """Kernels, tables, page-locked memory, streams and graphs, around an engine of its own."""
    spec, memory = make_spec((64, 128)), Memory()
    logits = np.random.default_rng(0).normal(0, 3, (1, 19, 8, 16)).astype(np.float32)
    image = np.zeros((100, 150, 3), np.uint8)
    for i in range(CYCLES):
        with CudaSegmenter(spec, FixedEngine(spec, logits), mapped=bool(i % 2)) as segmenter:
            device = segmenter.engine.device
            with device:
                scratch = device.allocate(1 << 20)
                graph = device.capture(partial(device.cuda.memset_d8_async, scratch, 0, 1 << 20,
                                               device.stream))
                graph.launch()
                device.synchronize()
                graph.close()
            masks = segmenter.segment(image, ALL)
        assert masks.classes.shape == (100, 150)
        if i % 10 == 0:
            memory.look()
    memory.check(16)


def open_by_the_library(trt, plans, device, memory):
    """Open, run and close engines with nothing but the library's own calls."""
    logger = make_logger(trt, Log())  # the runtime does not keep it alive
    runtime = trt.Runtime(logger)
    for plan in plans:
        engine = runtime.deserialize_cuda_engine(plan)
        context = engine.create_execution_context()
        for i in range(engine.num_io_tensors):
            assert context.set_tensor_address(engine.get_tensor_name(i), memory[i])
        assert context.execute_async_v3(device.stream.handle)
        device.synchronize()
        del context, engine  # in this order


def test_engines_are_opened_and_closed_and_memory_is_flat(small):
    """
    With the library's contexts and the graphs of three batch sizes; on the card.

    But for what the library keeps itself: TensorRT-RTX 1.6.1 keeps half a MiB of the card and tens
    of MiB of the host with each engine that it opens (H100, November 2026: a loop of nothing but
    its own calls lost 14 MiB and 1475 MiB in 25 rounds).
    """
    bundle, _ = small
    backend, memory, device = choose_backend(BACKEND), Memory(), Device()
    plan = backend.build(bundle, 'fp16', BuildOptions(max_batch=4)).data
    trt, plans = import_tensorrt(BACKEND), unpack(plan)
    rounds = int(os.environ.get('TRT_SEGMENTATION_ENGINE_CYCLES', 20))
    with device:
        tensors = [device.allocate(16 << 20) for _ in range(2)]
        for _ in range(rounds):
            open_by_the_library(trt, plans.values(), device, tensors)
            memory.look()
    device.close()
    early, late = memory.ends()
    print('free MiB of the card around the library alone:', early[0], late[0])
    memory.seen.clear()
    for _ in range(rounds):
        CudaSegmenter(bundle.spec, backend.load(plan, 'fp16'), batch_sizes=tuple(plans)).close()
        memory.look()
    memory.check(16 + early[0] - late[0], host=False)


def test_whatever_call_fails_everything_is_given_back(monkeypatch):
    """The nth call of the driver, at opening or at work: an error of ours, and no memory lost."""
    spec, memory = make_spec((64, 128)), Memory()
    calls, fails_at = 0, 0
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (1, 19, 8, 16)).astype(np.float32)

    def failing(name):
        method = getattr(Device, name)

        def call(self, *args):
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise DeviceError(f'injected: {name}')
            return method(self, *args)
        monkeypatch.setattr(Device, name, call)

    for name in ('allocate', 'upload', 'pinned', 'synchronize'):
        failing(name)
    raised = {}
    for i in range(FAULTS):
        calls, fails_at = 0, 1 + i % 80  # some more than there are
        segmenter = None
        try:
            segmenter = CudaSegmenter(spec, FixedEngine(spec, logits))
            for size in ((64, 128), (100, 50), (300, 400)):
                segmenter.segment(np.zeros((*size, 3), np.uint8), ALL)
        except DeviceError as error:
            raised[str(error)] = raised.get(str(error), 0) + 1
        finally:
            if segmenter is not None:
                segmenter.close()
        del segmenter
        memory.look()
    print(sum(raised.values()), 'of', FAULTS, 'failed:', raised)
    assert FAULTS / 4 < sum(raised.values()) < FAULTS and len(raised) == 4
    memory.check(16)


def test_opening_and_closing_leaves_no_memory_behind(small):
    bundle, plans = small
    backend = choose_backend(BACKEND)
    probe = Device()  # keeps the context alive, so that free memory can be compared
    free = []
    for _ in range(6):
        segmenter = CudaSegmenter(bundle.spec, backend.load(plans['fp16'].data, 'fp16'))
        segmenter.close()
        del segmenter
        gc.collect()
        with probe:
            free.append(probe.cuda.mem_get_info()[0])
    probe.close()
    print('free MiB after each:', [value >> 20 for value in free])
    assert free[-1] >= free[1] - (4 << 20)


def test_a_plan_that_is_none_is_refused_with_the_library_s_reason(small):
    _, plans = small
    backend = choose_backend(BACKEND)
    for data in (b'', b'garbage' * 100, plans['fp32'].data[:-1000]):
        with pytest.raises((InputError, DeviceError)) as caught:
            backend.load(data, 'fp32')
        print(caught.value)


def test_running_out_of_memory_is_an_error_after_which_all_works(small):
    _, plans = small
    hog = Device()
    with pytest.raises(DeviceError, match='memory'), hog:
        while True:
            hog.allocate(8 << 30)
    with pytest.raises(DeviceError), hog:
        while True:
            hog.allocate(64 << 20)
    spec = make_spec((4096, 8192))
    with pytest.raises(DeviceError, match='memory'):
        FixedEngine(spec, np.zeros((1, 19, 4096, 8192), np.float32))
    hog.close()
    engine = choose_backend(BACKEND).load(plans['fp32'].data, 'fp32')
    engine.infer(np.zeros((1, 3, 64, 128), np.float32))
    engine.close()


_LOST = """
import sys
import numpy as np
from gpu import *
from trt_segmentation.errors import DeviceLost
spec = make_spec((64, 128))
segmenter = CudaSegmenter(spec, FixedEngine(spec, np.zeros((1, 19, 8, 16), np.float32)))
image = np.zeros((64, 128, 3), np.uint8)
segmenter.segment(image)
size, = segmenter._sizes.values()
size._tables[0] = 8  # the kernel reads where nothing is: the context is lost
for _ in range(2):
    try:
        segmenter.segment(image)
    except DeviceError as error:
        print('lost:', error)
segmenter.close()
try:
    again = CudaSegmenter(spec, FixedEngine(spec, np.zeros((1, 19, 8, 16), np.float32)))
    again.segment(image)
    print('opened again')
except DeviceLost as error:
    print('not opened again:', error)
print('alive')
"""


def test_a_lost_context_does_not_end_the_process():
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, '-c', _LOST], capture_output=True, text=True,
                          cwd=here, env={**os.environ, 'PYTHONPATH': os.pathsep.join(
                              [str(here), str(here.parent), *sys.path])})
    print(done.stdout, done.stderr[-2000:])
    assert done.returncode == 0 and 'not opened again: the GPU is lost' in done.stdout
    assert done.stdout.count('lost: the GPU is lost to this process') == 2
    assert done.stdout.endswith('alive\n')


def test_the_inspector_s_form(small):
    """Prints it: the proof of TensorRT reads it, and that of TensorRT-RTX its log instead."""
    _, plans = small
    print(layer_information(choose_backend(BACKEND)._module(), plans['fp16'].data)[:3000])


if BUNDLE:
    @pytest.mark.parametrize('precision', ['fp32', 'fp16'])
    def test_a_bundle_is_built_proven_stored_and_opened(tmp_path, precision):
        bundle, lines = Bundle.open(BUNDLE), []
        built = build(bundle, backend=BACKEND, precision=precision, store=tmp_path / 'store',
                      report=lines.append)
        acceptance = built.record.acceptance
        print(precision, 'agreement', acceptance.agreement, 'in',
              built.record.build_seconds, 's', lines)
        assert acceptance.agreement > .99 and not acceptance.failures
        assert build(bundle, backend=BACKEND, precision=precision,
                     store=tmp_path / 'store').reused
        with open_segmenter(bundle, backend=BACKEND, precision=precision,
                            store=tmp_path / 'store', build_missing=False) as segmenter:
            assert isinstance(segmenter, CudaSegmenter)
            assert self_test(segmenter, golden.contents(bundle.golden_path)) == ''
        plan = tmp_path / 'store' / built.key / 'plan'
        data = bytearray(plan.read_bytes())
        data[len(data) // 2] ^= 1
        plan.write_bytes(data)
        with pytest.raises(InputError, match='not those of its record'):
            open_segmenter(bundle, backend=BACKEND, precision=precision,
                           store=tmp_path / 'store', build_missing=False)

    def test_int8_is_built_or_refused_with_a_reason(tmp_path):
        bundle, lines = Bundle.open(BUNDLE), []
        try:
            built = build(bundle, backend=BACKEND, store=tmp_path / 'store',
                          report=lines.append)
        except Exception as error:
            print('int8:', type(error).__name__, error, *lines, sep='\n')
            assert isinstance(error, (InputError, DeviceError)) or 'INT8' in str(error)
        else:
            print('int8:', built.record.acceptance)
