# SPDX-License-Identifier: Apache-2.0
"""Each TensorRT's real Python bindings, over stub libraries: every name that the code uses."""

import inspect
import json
import signal

from fake_gpu import FakeDevice
import numpy as np
import onnx
import pytest
from standins import Module, Standin
from support.networks import amax_scales, fcn, write_calibrated_bundle

from trt_segmentation.bundles.cache import version_token
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.engines import BuildOptions, Dla
from trt_segmentation.engines.tensorrt import (
    backend as tensorrt,
)
from trt_segmentation.engines.tensorrt import (
    builder as tensorrt_builder,
)
from trt_segmentation.engines.tensorrt import (
    engine as tensorrt_engine,
)
from trt_segmentation.engines.tensorrt.module import import_tensorrt, Log, make_logger
from trt_segmentation.engines.tensorrt.plans import pack, unpack
from trt_segmentation.errors import CheckFailed, DeviceError, InputError
from trt_segmentation.networks.layers import int8_share
from trt_segmentation.segmenters.gpu import DeviceEngine

trt = import_tensorrt('tensorrt')
MAJOR = int(trt.__version__.split('.')[0])
SIZE = (32, 64)
IMAGE = np.random.default_rng(1).normal(0, 50, (1, 3, *SIZE)).astype(np.float32)


@pytest.fixture
def bundle(tmp_path):
    return write_calibrated_bundle(tmp_path / 'bundle', fcn(SIZE), amax_scales(fcn(SIZE), IMAGE),
                                   calibration={'exclude': ['score2_node']})


class Library:
    """A TensorRT whose builder does what `work(config)` does, and gives the plan it returns."""

    def __init__(self, work=lambda config: b'plan', **builder):
        self.layers = [Standin(trt, 'ILayer', name=name, num_outputs=1)
                       for name in ('relu1_conv_node', 'score2_node')]
        self.network = Standin(trt, 'INetworkDefinition', num_layers=len(self.layers),
                               get_layer=lambda i: self.layers[i])
        self.timing_cache = Standin(trt, 'ITimingCache', serialize=lambda: b'timings')
        self.config = Standin(trt, 'IBuilderConfig',
                              create_timing_cache=lambda data: self.timing_cache)
        self.parser = Standin(trt, 'OnnxParser')
        self.builder = Standin(
            trt, 'Builder', create_network=lambda flags: self.network,
            create_builder_config=lambda: self.config,
            build_serialized_network=lambda network, config: work(config), **builder)
        self.module = Module(trt, Builder=lambda logger: self.builder,
                             OnnxParser=lambda network, logger: self.parser)

    def build(self, bundle, precision='int8', quantization='explicit', timing_cache=b'',
              **settings):
        order, self.intended = tensorrt.make_order(self.module, bundle, precision, quantization)
        return tensorrt_builder.build(self.module, order, tensorrt_builder.Settings(
            timing_cache=timing_cache, **settings))

    def flags(self):
        """Return the builder flags that were set."""
        return {call[1].name for call in self.config.calls if call[0] == 'set_flag'}

    def network_flags(self):
        """Return the network's flags, by name."""
        mask, = (call[1] for call in self.builder.calls if call[0] == 'create_network')
        members = trt.NetworkDefinitionCreationFlag.__members__
        return {name for name, value in members.items() if mask >> int(value) & 1}

    def parsed(self):
        """Return the model that the parser got."""
        data, = (call[1] for call in self.parser.calls if call[0] == 'parse')
        return onnx.load_from_string(data)


def test_a_builder_that_the_library_does_not_make_is_an_error(bundle):
    order, _ = tensorrt.make_order(trt, bundle, 'fp32', 'explicit')
    with pytest.raises(InputError, match='TensorRT cannot make a builder'):
        tensorrt_builder.build(trt, order, tensorrt_builder.Settings())


def test_a_logger_of_this_version_keeps_what_it_is_told():
    log = Log()
    logger = make_logger(trt, log)
    for name in ('INTERNAL_ERROR', 'ERROR', 'WARNING', 'INFO', 'VERBOSE'):
        logger.log(getattr(trt.ILogger.Severity, name), f'{name} of calibration')
    logger.log(trt.ILogger.Severity.VERBOSE, 'Layers:\nName: a')
    assert list(log.errors) == ['INTERNAL_ERROR of calibration', 'ERROR of calibration']
    assert list(log.warnings) == ['WARNING of calibration']
    assert 'VERBOSE of calibration' not in log.evidence and len(log.evidence) == 4
    assert log.dump == 'Layers:\nName: a'


@pytest.mark.parametrize('precision', ['int8', 'fp16', 'fp32'])
def test_explicit_networks_are_strongly_typed_where_that_exists(bundle, precision):
    library = Library()
    built = library.build(bundle, precision, workspace_mib=512)
    assert built.plan == b'plan' and built.timing_cache == b'timings'
    types = {tensor.data_type for tensor in library.parsed().graph.initializer}
    operators = {node.op_type for node in library.parsed().graph.node}
    assert ('QuantizeLinear' in operators) == (precision == 'int8')
    # Up to 8.6, FP16 and INT8 are flags and the graph is float; from 9 on, types say it all.
    if MAJOR == 8:
        assert library.network_flags() == {'EXPLICIT_BATCH'}
        assert library.flags() == {'int8': {'FP16', 'INT8'}, 'fp16': {'FP16'},
                                   'fp32': set()}[precision]
        assert onnx.TensorProto.FLOAT16 not in types
    else:
        assert 'STRONGLY_TYPED' in library.network_flags()
        assert library.flags() == set()
        assert (onnx.TensorProto.FLOAT16 in types) == (precision != 'fp32')
    assert ('set_memory_pool_limit', trt.MemoryPoolType.WORKSPACE, 512 << 20
            ) in library.config.calls
    assert library.config.values['profiling_verbosity'] == trt.ProfilingVerbosity.DETAILED
    assert 'int8_calibrator' not in library.config.values


def test_progress_is_reported_and_can_stop_the_build_where_there_is_a_monitor(
        bundle, monkeypatch):
    monkeypatch.setattr(tensorrt_builder, '_REPORT_SECONDS', .01)
    lines, going_on = [], []

    def work(config):
        if not hasattr(trt, 'IProgressMonitor'):
            # Nothing stops this TensorRT but the end of the process, which Ctrl-C is let do.
            going_on.append(signal.getsignal(signal.SIGINT) is signal.SIG_DFL)
            __import__('time').sleep(.1)
            return b'plan'
        monitor = config.progress_monitor
        assert isinstance(monitor, trt.IProgressMonitor)
        monitor.phase_start('building', None, 3)
        monitor.phase_start('detail', 'building', 9)
        for step in range(3):
            __import__('time').sleep(.05)
            monitor.step_complete('detail', step)
            going_on.append(monitor.step_complete('building', step))
        monitor.phase_finish('building')
        return b'plan'

    handler = signal.getsignal(signal.SIGINT)
    Library(work).build(bundle, report=lines.append)
    assert going_on and all(going_on)
    assert any('building: 0 s' in line for line in lines)
    assert signal.getsignal(signal.SIGINT) is handler


def test_none_from_the_builder_is_an_error_with_the_library_s_last_lines(bundle):
    library = Library(lambda config: None)
    library.module = Module(library.module, Builder=lambda logger: (
        logger.log(trt.ILogger.Severity.ERROR, 'no tactic for layer 7') or library.builder))
    with pytest.raises(CheckFailed, match='cannot build the engine: no tactic for layer 7'):
        library.build(bundle)


def test_a_model_that_the_parser_refuses_is_an_error_with_its_reason(bundle):
    library = Library()
    error = Standin(trt, 'ParserError', desc=lambda: 'unsupported Foo')
    library.parser = Standin(trt, 'OnnxParser', parse=lambda data: False, num_errors=1,
                             get_error=lambda i: error)
    with pytest.raises(InputError, match='cannot read the network: unsupported Foo'):
        library.build(bundle)


def test_a_timing_cache_of_another_device_is_replaced(bundle):
    library, lines, data = Library(), [], []
    library.config = Standin(
        trt, 'IBuilderConfig',
        create_timing_cache=lambda given: data.append(given) or library.timing_cache,
        set_timing_cache=lambda cache, ignore: data[-1] == b'')
    built = library.build(bundle, timing_cache=b'foreign', report=lines.append)
    assert data == [b'foreign', b''] and built.timing_cache == b'timings'
    assert any('another device' in line for line in lines)
    # A mismatch must not be ignored: tactics of another GPU may not exist here.
    assert all(call[2] is False for call in library.config.calls if call[0] == 'set_timing_cache')


if hasattr(trt, 'IInt8EntropyCalibrator2'):

    def calibrating(*questions):
        """Return a builder's work that asks the calibrator what TensorRT asks."""
        answers = {}

        def work(config):
            calibrator = config.int8_calibrator
            assert isinstance(calibrator, trt.IInt8EntropyCalibrator2)
            assert calibrator.get_algorithm() == trt.CalibrationAlgoType.ENTROPY_CALIBRATION_2
            assert calibrator.get_batch_size() == 1
            for question in questions:
                answers[question] = getattr(calibrator, question)(
                    *[['image']] * (question == 'get_batch'))
            return b'plan'
        return work, answers

    def test_implicit_quantization_hands_out_the_cache_under_the_local_header(bundle):
        work, answers = calibrating('read_calibration_cache')
        library = Library(work)
        library.build(bundle, quantization='implicit')
        data = bytes(memoryview(answers['read_calibration_cache']))
        header, _, rest = data.partition(b'\n')
        assert header.decode() == f'TRT-{version_token(trt.__version__)}-EntropyCalibration2'
        assert rest == cache_of(bundle).to_bytes().partition(b'\n')[2]
        assert library.flags() == {'INT8', 'FP16', 'OBEY_PRECISION_CONSTRAINTS'}
        assert 'STRONGLY_TYPED' not in library.network_flags()
        operators = {node.op_type for node in library.parsed().graph.node}
        assert 'QuantizeLinear' not in operators and 'Cast' not in operators
        free, excluded = library.layers
        assert 'precision' not in free.values
        assert excluded.values['precision'] == trt.DataType.HALF
        assert excluded.calls == [('set_output_type', 0, trt.DataType.HALF)]

    @pytest.mark.parametrize('questions, part', [
        (('read_calibration_cache', 'get_batch'), 'did not accept the calibration cache'),
        (('get_batch',), 'did not accept the calibration cache'),
        ((), 'never read the calibration cache'),
    ])
    def test_a_build_that_did_not_use_the_cache_fails(bundle, questions, part):
        work, answers = calibrating(*questions)
        with pytest.raises(CheckFailed, match=part):
            Library(work).build(bundle, quantization='implicit')
        assert answers.get('get_batch') is None  # no data, which ends a calibration

    def test_the_calibrator_overrides_what_this_version_calls():
        overridden = {'get_batch_size', 'get_batch', 'read_calibration_cache',
                      'write_calibration_cache'}
        assert overridden <= set(dir(trt.IInt8EntropyCalibrator2))

else:

    def test_implicit_quantization_is_refused_where_there_are_no_calibrators(bundle):
        with pytest.raises(InputError, match='no implicit quantization.*--quantization explicit'):
            Library().build(bundle, quantization='implicit')


# The backend around the builder: what it proves and records.

def description(types):
    """Return an inspector's JSON with the network's layers in given types, by name."""
    words = {'int8': ('Row major Int8 format', 'Int8'), 'fp16': ('Row major FP16', 'Half')}
    return json.dumps({'Layers': [
        {'Name': name, 'LayerType': 'CaskConvolution', 'ParameterType': 'Convolution',
         'Inputs': [{'Name': 'x', 'Format/Datatype': words[type][0]}],
         'Weights': {'Type': words[type][1], 'Count': 9}} for name, type in types.items()]})


LAYERS = {'relu1_conv_node': 'int8', 'relu2_conv_node': 'int8', 'relu3_conv_node': 'fp16',
          'score3_node': 'int8', 'up3_node': 'fp16', 'score2_node': 'fp16'}


def backend_build(bundle, monkeypatch, library, text, **options):
    monkeypatch.setattr(tensorrt, 'layer_information', lambda trt, plan, dla_core: text)
    backend = tensorrt.TensorRt()
    monkeypatch.setattr(backend, '_module', lambda: library.module)
    return backend.build(bundle, 'int8', BuildOptions(timing_cache=b'old', **options))


def test_the_backend_proves_each_layer(bundle, monkeypatch):
    plan = backend_build(bundle, monkeypatch, Library(), description(LAYERS))
    assert (plan.data, plan.timing_cache) == (b'plan', b'timings')
    assert {layer.name: layer.precision for layer in plan.layers} == LAYERS
    reasons = {layer.name: layer.reason for layer in plan.layers}
    assert reasons['relu3_conv_node'] == 'the engine runs it in fp16'
    assert reasons['up3_node'] == 'transposed convolutions stay in float'
    assert reasons['score2_node'] == 'excluded by the spec'
    assert plan.log == ()


@pytest.mark.parametrize('text', ['', 'nonsense', '{"Layers": ["relu1_conv_node"]}'])
def test_a_description_that_is_not_understood_proves_nothing(bundle, monkeypatch, text):
    plan = backend_build(bundle, monkeypatch, Library(), text)
    assert len(plan.layers) == 6 and int8_share(plan.layers) == 0


if hasattr(trt, 'IInt8EntropyCalibrator2'):

    @pytest.mark.parametrize('line, noted', [
        ('Generated calibration scales using calibration cache. Make sure that calibration cache '
         'has latest scales.', False), ('other words about calibration', True)])
    def test_what_the_library_says_of_the_cache_is_recorded(bundle, monkeypatch, line, noted):
        work, _ = calibrating('read_calibration_cache')
        library = Library(work)
        library.module = Module(library.module, Builder=lambda logger: (
            logger.log(trt.ILogger.Severity.INFO, line)
            or logger.log(trt.ILogger.Severity.WARNING, 'Missing scale and zero-point for x')
            or library.builder))
        plan = backend_build(bundle, monkeypatch, library, description(LAYERS),
                             quantization='implicit')
        assert line in plan.log
        assert 'warning: Missing scale and zero-point for x' in plan.log
        assert any(entry.startswith('note: ') for entry in plan.log) == noted


class Plan:
    """A TensorRT that runs plans: one input, one output, and a network that doubles."""

    def __init__(self, monkeypatch, dtype='FLOAT', shape=(1, 3, 4, 8), answers=None, device=None):
        answers = answers or {}
        self.addresses = {}
        self.context = Standin(trt, 'IExecutionContext', **{
            'set_tensor_address': lambda name, address: self.addresses.update({name: address})
            is None, 'execute_async_v3': self._execute, **answers})
        names = ('x', 'y')
        self.inspector = Standin(
            trt, 'EngineInspector',
            get_engine_information=lambda form: json.dumps({'Layers': [], 'form': form.name}))
        self.engine = Standin(trt, 'ICudaEngine', **{
            'num_io_tensors': 2, 'get_tensor_name': lambda i: names[i],
            'get_tensor_mode': lambda name: (trt.TensorIOMode.INPUT if name == 'x'
                                             else trt.TensorIOMode.OUTPUT),
            'get_tensor_shape': lambda name: shape,
            'get_tensor_dtype': lambda name: getattr(trt.DataType, dtype),
            'create_execution_context': lambda: self.context,
            'create_engine_inspector': lambda: self.inspector, **answers})
        self.runtime = Standin(trt, 'Runtime', **{
            'deserialize_cuda_engine': lambda plan: self.engine, **answers})
        self.module = Module(trt, Runtime=lambda logger: (
            logger.log(trt.ILogger.Severity.ERROR, 'the library said so') or self.runtime))
        self.device = device or FakeDevice(None)
        monkeypatch.setattr(tensorrt_engine, 'Device', lambda: self.device)

    def open(self, **options):
        return tensorrt_engine.TensorRtEngine(self.module, b'plan', 'tensorrt', 'int8', **options)

    def _execute(self, stream):
        x, y = (self.device.memory[self.addresses[name]] for name in 'xy')
        dtype = np.float16 if x.nbytes == 2 * 3 * 4 * 8 else np.float32
        y[:] = (x.view(dtype) * 2).view(np.uint8)
        return True


@pytest.mark.parametrize('dtype', ['FLOAT', 'HALF'])
def test_an_engine_runs_image_by_image(monkeypatch, dtype):
    engine = Plan(monkeypatch, dtype).open()
    assert isinstance(engine, DeviceEngine)  # so that its segmenter is the one on the GPU
    tensor = np.random.default_rng(0).integers(0, 50, (3, 3, 4, 8)).astype(np.float32)
    outputs = engine.infer(tensor)
    assert outputs['y'].dtype == np.float32
    assert np.array_equal(outputs['y'], tensor * 2)
    device = engine.device
    engine.close()
    engine.close()
    assert not device.memory and device.depth == 0


class Sizes(Plan):
    """A TensorRT whose plans say their batch size."""

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        self.ran = []
        self.runtime._answers['deserialize_cuda_engine'] = self._engine

    def _engine(self, plan):
        count, addresses = int(plan), {}

        def execute(stream):
            self.ran.append(count)
            x, y = (self.device.memory[addresses[name]].view(np.float32) for name in 'xy')
            y[:count * 96] = 2 * x[:count * 96]
            return True

        context = Standin(trt, 'IExecutionContext', execute_async_v3=execute, set_tensor_address=(
            lambda name, address: addresses.update({name: address}) is None))
        return Standin(trt, 'ICudaEngine', **{
            **self.engine._answers, 'get_tensor_shape': lambda name: (count, 3, 4, 8),
            'create_execution_context': lambda: context})


def test_plans_of_several_batch_sizes_share_their_memory(monkeypatch):
    plan = Sizes(monkeypatch)
    engine = tensorrt_engine.TensorRtEngine(
        plan.module, pack({1: b'1', 2: b'2', 4: b'4'}), 'tensorrt', 'int8')
    assert engine.batch_sizes == (1, 2, 4) and plan.ran == [1, 2, 4]  # each was warmed up
    assert engine.input.shape == engine.outputs['y'].shape == (1, 3, 4, 8)
    assert engine.input.address_of(3) - engine.input.address == 3 * 3 * 4 * 8 * 4
    device, y = engine.device, engine.outputs['y']
    x = device.memory[engine.input.address].view(np.float32)
    x[:] = np.arange(x.size)
    for count in (4, 1, 2):
        found = device.memory[y.address].view(np.float32)
        found[:] = -1
        with device:
            engine.enqueue(count)
        assert np.array_equal(found, np.where(np.arange(x.size) < count * 96, 2 * x, -1))
    assert plan.ran[3:] == [4, 1, 2]
    engine.close()
    assert not device.memory and device.depth == 0


def test_a_plan_of_another_batch_size_than_it_says_is_refused(monkeypatch):
    plan = Sizes(monkeypatch)
    with pytest.raises(InputError, match='found shape .4, 3, 4, 8. for a batch of 2'):
        tensorrt_engine.TensorRtEngine(plan.module, pack({1: b'1', 2: b'4'}), 'tensorrt', 'int8')
    assert not plan.device.memory and plan.device.depth == 0


@pytest.mark.parametrize('answers, error, part', [
    ({'deserialize_cuda_engine': lambda plan: None}, InputError,
     'does not take the plan: the library said so.*build BUNDLE --force'),
    ({'create_execution_context': lambda: None}, DeviceError, 'the library said so'),
    ({'set_tensor_address': False}, DeviceError, 'the library said so'),
    ({'execute_async_v3': False}, DeviceError, 'the library said so'),
    ({'get_tensor_shape': lambda name: (-1, 3, 4, 8)}, InputError, 'expected a fixed shape'),
])
def test_none_and_false_never_pass_unnoticed(monkeypatch, answers, error, part):
    plan = Plan(monkeypatch, answers=answers)
    with pytest.raises(error, match=part):
        plan.open()
    assert not plan.device.memory and plan.device.depth == 0  # all is free again


def test_a_runtime_that_the_library_does_not_make_is_an_error(monkeypatch):
    monkeypatch.setattr(tensorrt_engine, 'Device', lambda: FakeDevice(None))
    with pytest.raises(DeviceError, match='TensorRT cannot start'):
        tensorrt_engine.TensorRtEngine(trt, b'plan', 'tensorrt', 'int8')


def test_a_failed_inference_is_an_error_and_the_engine_can_be_opened_again(monkeypatch):
    plan = Plan(monkeypatch)
    engine = plan.open()
    plan.context._answers['execute_async_v3'] = False
    with pytest.raises(DeviceError, match='cannot run the engine: the library said so'):
        engine.infer(np.zeros((1, 3, 4, 8), np.float32))
    engine.close()
    plan = Plan(monkeypatch)
    assert plan.open().infer(np.ones((1, 3, 4, 8), np.float32))['y'].max() == 2


def test_the_inspector_is_asked_for_json(monkeypatch):
    plan = Plan(monkeypatch)
    document = json.loads(tensorrt_engine.layer_information(plan.module, b'plan'))
    assert document == {'Layers': [], 'form': 'JSON'}


@pytest.mark.parametrize('quantization', ['explicit'] + ['implicit'] * (MAJOR < 11))
def test_each_batch_size_gets_a_plan_of_fixed_shape(bundle, monkeypatch, quantization):
    """The network is the same but for its first size, and each plan's layers are proven."""
    parsed = []

    def work(config):
        if quantization == 'implicit':
            config.values['int8_calibrator'].read_calibration_cache()
        parsed.append(onnx.load_from_string(library.parser.calls[-1][1]))
        return f'plan {len(parsed)}'.encode()

    library = Library(work)
    # In the second plan one layer more runs in FP16: that is what holds for all.
    texts = [description(LAYERS), description({**LAYERS, 'score3_node': 'fp16'}),
             description(LAYERS)]
    monkeypatch.setattr(tensorrt, 'import_tensorrt', lambda name: library.module)
    monkeypatch.setattr(tensorrt, 'layer_information', lambda trt, plan, dla: texts.pop(0))
    plan = tensorrt.TensorRt().build(bundle, 'int8', BuildOptions(
        quantization=quantization, max_batch=3))
    assert unpack(plan.data) == {1: b'plan 1', 2: b'plan 2', 3: b'plan 3'}
    for count, model in enumerate(parsed, 1):
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.shape.dim[0].dim_value == count
        assert model.graph.node == parsed[0].graph.node
    assert {layer.name: layer.precision for layer in plan.layers} == {
        **LAYERS, 'score3_node': 'fp16'}


def test_a_dla_gets_the_layers_that_it_can_run(bundle):
    lines = []
    library = Library(num_DLA_cores=2)
    library.config._answers['can_run_on_DLA'] = lambda layer: layer.name == 'relu1_conv_node'
    library.build(bundle, 'fp16', dla=Dla(1, gpu_fallback=True), report=lines.append)
    assert library.config.values['DLA_core'] == 1
    assert library.config.values['default_device_type'] == trt.DeviceType.DLA
    assert 'GPU_FALLBACK' in library.flags()
    assert lines == ['1 of 2 layers can run on DLA core 1', 'on the GPU: score2_node']


def test_what_a_dla_cannot_run_is_refused_unless_the_gpu_may(bundle):
    library = Library(num_DLA_cores=1)
    library.config._answers['can_run_on_DLA'] = lambda layer: False
    with pytest.raises(InputError, match='2 of 2 layers cannot run on the DLA: relu1_conv_node, '
                                         'score2_node; .*--gpu-fallback'):
        library.build(bundle, 'fp16', dla=Dla(0))
    assert 'GPU_FALLBACK' not in library.flags()


@pytest.mark.parametrize('cores', [0, 1])
def test_a_dla_that_is_not_there_is_said(bundle, cores):
    with pytest.raises(InputError, match=f'found 1, but TensorRT .* finds {cores or "no"} DLA'):
        Library(num_DLA_cores=cores).build(bundle, 'fp16', dla=Dla(1))


def test_a_plan_for_a_dla_is_opened_on_it(monkeypatch):
    plan = Plan(monkeypatch)
    plan.open(dla_core=1)
    assert plan.runtime.values['DLA_core'] == 1


def test_every_type_that_an_engine_may_have_is_one_of_this_version():
    names = set(trt.DataType.__members__)
    assert {'FLOAT', 'HALF', 'INT32'} <= names & set(tensorrt_engine._DTYPES)
    assert ('INT64' in names) == (MAJOR >= 10)


def test_no_module_is_asked_for_its_version_to_decide():
    for module in (tensorrt, tensorrt_builder, tensorrt_engine):
        source = inspect.getsource(module)
        assert 'version_info' not in source and '__version__.split' not in source
