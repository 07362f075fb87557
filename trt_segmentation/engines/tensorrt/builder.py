# SPDX-License-Identifier: Apache-2.0
"""Running TensorRT's builder: by what the installed version has, visibly, and stoppable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
import signal
from threading import current_thread, Event, main_thread, Thread
from time import monotonic
from types import ModuleType
from typing import Any

from trt_segmentation.bundles.cache import Cache
from trt_segmentation.engines import Dla
from trt_segmentation.engines.tensorrt.calibrator import CacheUse, make_calibrator
from trt_segmentation.engines.tensorrt.module import flags, has, Log, make_logger
from trt_segmentation.engines.tensorrt.refusals import explained
from trt_segmentation.errors import CheckFailed, InputError

_REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Order:
    """
    What to build.

    model: the serialized ONNX model
    fp16: let TensorRT use FP16; by a flag, so only where types are not in the graph
    int8: the graph has Q/DQ pairs, or there is a cache to quantize by
    cache: the scales for implicit quantization; None for Q/DQ pairs or float
    float_layers: with `cache`, the nodes that stay in float
    strongly_typed: each tensor has the type that the graph gives it
    """

    model: bytes
    fp16: bool = False
    int8: bool = False
    cache: Cache | None = None
    float_layers: tuple[str, ...] = ()
    strongly_typed: bool = False


@dataclass(frozen=True)
class Settings:
    """
    How to build.

    workspace_mib: memory that tactics may use; None for all there is
    timing_cache: of an earlier build on this machine, or b''; None where the library has none
    compute_capability: for TensorRT-RTX, a GPU that is not there, such as 'SM86'
    dla: the accelerator to build for; None for the GPU
    report: takes lines of progress
    """

    workspace_mib: int | None = None
    timing_cache: bytes | None = None
    compute_capability: str | None = None
    dla: Dla | None = None
    report: Callable[[str], None] = field(default=lambda line: None)


@dataclass(frozen=True)
class Built:
    """A serialized plan, the timing cache after it (None as in `Settings`), and the log."""

    plan: bytes
    timing_cache: bytes | None
    log: Log


def build(trt: ModuleType, order: Order, settings: Settings) -> Built:
    """
    Build a plan.

    :raises InputError: for a graph, a flag or a machine that TensorRT refuses
    :raises CheckFailed: if TensorRT has no kernels for it, or implicit quantization did not use
        the cache
    :raises KeyboardInterrupt: after Ctrl-C, when TensorRT has stopped
    """
    log = Log()
    logger = make_logger(trt, log)
    try:
        builder = trt.Builder(logger)
    except TypeError:  # what pybind11 makes of a null pointer
        raise InputError(f'TensorRT cannot make a builder: {log.reason()}') from None
    network = builder.create_network(
        flags(trt, 'NetworkDefinitionCreationFlag', 'EXPLICIT_BATCH',
              *['STRONGLY_TYPED'] * order.strongly_typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(order.model):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        reason = explained('; '.join(errors)) if errors else log.reason()
        raise InputError(f'TensorRT cannot read the network: {reason}')
    config = builder.create_builder_config()
    use = CacheUse()
    calibrator = _configure(trt, config, network, order, settings, use)
    if settings.dla is not None:
        _use_dla(trt, builder, network, config, settings, log)
    timing_cache = None
    if settings.timing_cache is not None:
        timing_cache = _set_timing_cache(config, settings)
    plan = _run(trt, builder, network, config, settings, log)
    if plan is None and not use.batch_was_asked:
        raise CheckFailed(f'TensorRT cannot build the engine: {log.reason()}')
    if calibrator is not None:
        use.check(log.reason())
    return Built(bytes(plan), None if timing_cache is None else bytes(timing_cache.serialize()),
                 log)


def _configure(trt: ModuleType, config: Any, network: Any, order: Order, settings: Settings,
               use: CacheUse) -> Any:
    """Set flags and limits; return the calibrator, which must live until the build is over."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the proof sees names only
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    if settings.compute_capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(
            getattr(trt.ComputeCapability, settings.compute_capability), 0)
    if order.strongly_typed:
        return None
    for name, wanted in (('FP16', order.fp16), ('INT8', order.int8)):
        if wanted:
            if not has(trt, 'BuilderFlag', name):
                raise InputError(f'this TensorRT ({trt.__version__}) has no {name} flag')
            config.set_flag(getattr(trt.BuilderFlag, name))
    if order.cache is None:
        return None
    if not hasattr(trt, 'IInt8EntropyCalibrator2'):
        raise InputError(f'this TensorRT ({trt.__version__}) has no implicit quantization; '
                         'build with --quantization explicit')
    if order.float_layers:
        _keep_in_float(trt, config, network, order)
    calibrator = make_calibrator(trt, order.cache, use)
    config.int8_calibrator = calibrator
    return calibrator


def _use_dla(trt: ModuleType, builder: Any, network: Any, config: Any, settings: Settings,
             log: Log) -> None:
    """Let the layers run on a DLA; say before the build which ones cannot, and why."""
    dla = settings.dla
    assert dla is not None
    cores = builder.num_DLA_cores
    if dla.core >= cores:
        raise InputError(f'dla core: found {dla.core}, but TensorRT {trt.__version__} finds '
                         f'{cores or "no"} DLA core{"s" * (cores != 1)} here')
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = dla.core
    if dla.gpu_fallback:
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    refused = []
    for i in range(network.num_layers):
        layer, known = network.get_layer(i), len(log.warnings)
        if not config.can_run_on_DLA(layer):
            said = ' '.join(list(log.warnings)[known:])
            refused.append(f'{layer.name} ({said})' if said else layer.name)
    here = network.num_layers - len(refused)
    settings.report(f'{here} of {network.num_layers} layers can run on DLA core {dla.core}')
    if refused and not dla.gpu_fallback:
        raise InputError(
            f'{len(refused)} of {network.num_layers} layers cannot run on the DLA: '
            f'{", ".join(refused[:3])}{", ..." if len(refused) > 3 else ""}; let them run on the '
            'GPU with --gpu-fallback')
    for text in refused:
        settings.report(f'on the GPU: {text}')


def _keep_in_float(trt: ModuleType, config: Any, network: Any, order: Order) -> None:
    """Forbid INT8 for the layers that the spec excludes."""
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    dtype = trt.DataType.HALF if order.fp16 else trt.DataType.FLOAT
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.name in order.float_layers:
            layer.precision = dtype
            for k in range(layer.num_outputs):
                layer.set_output_type(k, dtype)


def _set_timing_cache(config: Any, settings: Settings) -> Any:
    """Give the builder the timing cache, or an empty one if it does not take it; return it."""
    for data in (settings.timing_cache, b''):
        timing_cache = config.create_timing_cache(data)
        if timing_cache is not None and config.set_timing_cache(timing_cache, False):
            return timing_cache
        settings.report('the timing cache is of another device or version: starting a new one')
    raise InputError('TensorRT takes no timing cache, not even an empty one')


def _run(trt: ModuleType, builder: Any, network: Any, config: Any, settings: Settings,
         log: Log) -> Any:
    """Build in a thread, so that Ctrl-C is heard; return the plan, or None if there is none."""
    cancel, done = Event(), Event()
    start = monotonic()
    monitor = None
    if hasattr(trt, 'IProgressMonitor'):
        monitor = _make_monitor(trt, cancel, start, settings.report)
        config.progress_monitor = monitor
    results: list[Any] = []

    def build() -> None:
        try:
            results.append(builder.build_serialized_network(network, config))
        except Exception as error:  # it is the caller's thread that has to hear of it
            results.append(error)
        finally:
            done.set()

    thread = Thread(target=build, name='tensorrt-build', daemon=True)
    with _ending_at_interrupt(monitor is None):
        thread.start()
        try:
            # Not by joining the thread: until Python 3.12, a join that Ctrl-C interrupts takes the
            # thread for ended.
            while not done.wait(_REPORT_SECONDS):
                if monitor is None:
                    settings.report(f'building: {monotonic() - start:.0f} s')
        except KeyboardInterrupt:
            cancel.set()
            settings.report('stopping TensorRT')
            done.wait()
            raise
        finally:
            thread.join()
    result = results[0]
    if isinstance(result, Exception):
        raise CheckFailed(f'TensorRT cannot build the engine: {explained(str(result))}; '
                          f'{log.reason()}') from None
    return result


@contextmanager
def _ending_at_interrupt(wanted: bool) -> Iterator[None]:
    """
    Let Ctrl-C and SIGTERM end the process at once in the block, if wanted.

    A TensorRT without a progress monitor (8.6) cannot be stopped in any other way; nothing is
    half-written, because files appear whole and locks end with the process.
    """
    if not wanted or current_thread() is not main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_DFL)
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make_monitor(trt: ModuleType, cancel: Event, start: float, report: Callable[[str], None]
                  ) -> Any:
    """Return an IProgressMonitor that reports the outermost phase, and stops when told to."""
    steps: dict[str, int] = {}
    reported = [start]

    base: Any = trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = monotonic()
            if phase_name in steps and now - reported[0] >= _REPORT_SECONDS:
                reported[0] = now
                report(f'building: {now - start:.0f} s, {phase_name}: step {step + 1} of '
                       f'{steps[phase_name]}')
            return not cancel.is_set()

        def phase_finish(self, phase_name: str) -> None:
            steps.pop(phase_name, None)

    return Monitor()
