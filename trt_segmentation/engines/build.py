# SPDX-License-Identifier: Apache-2.0
"""Building an engine for this machine, proving it, and storing it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
import json
import os
from time import perf_counter

import numpy as np

from trt_segmentation import __version__
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.manifest import cache_of, int8_network, tuned
from trt_segmentation.engines import (
    Backend,
    batch_sizes,
    BuildOptions,
    choose_backend,
    Dla,
    Engine,
)
from trt_segmentation.engines.acceptance import basis, examine, Golden, read_golden, still_passes
from trt_segmentation.engines.batches import measured
from trt_segmentation.engines.onnxruntime import input_shapes, vehicle_emulation
from trt_segmentation.engines.record import Acceptance, Batch, Inputs, Record, Vehicle
from trt_segmentation.engines.snapshot import snapshot
from trt_segmentation.engines.store import Store
from trt_segmentation.engines.summary import refusal
from trt_segmentation.engines.timing import by_turns
from trt_segmentation.errors import (
    CheckFailed,
    command_line,
    counted,
    InputError,
    SegmentationError,
)
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.batch import obstacle
from trt_segmentation.networks.quantize import GRAPH_REVISION
from trt_segmentation.segmenters.choice import segmenter_of
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.system import files

_MARGIN = 1.02  # of FP32's time, within which INT8 counts as no slower


@dataclass(frozen=True)
class Build:
    """An accepted plan in the store: its record, and whether it was there before."""

    record: Record
    reused: bool

    @property
    def key(self) -> str:
        """Return the plan's name in the store."""
        return self.record.key


class Refused(CheckFailed):
    """Report that an engine was built and does not keep the bundle's limits; nothing is stored."""

    def __init__(self, message: str, record: Record):
        """Take the message, and what would have been the engine's record."""
        super().__init__(message)
        self.record = record


def plan_inputs(bundle: Bundle, backend: Backend, precision: str,
                quantization: str = 'explicit', max_batch: int = 1) -> Inputs:
    """Return all that a plan depends on."""
    common = Inputs(
        backend.name, dict(backend.identity()), GRAPH_REVISION, bundle.model_sha256,
        bundle.spec.input.size, precision, max_batch=max_batch if max_batch > 1 else None)
    if precision != 'int8':
        return common
    network = int8_network(bundle)
    return replace(common, cache=files.sha256_bytes(cache_of(bundle).to_bytes()),
                   exclude=tuple(sorted(bundle.spec.calibration.exclude)),
                   quantization=quantization,
                   equalized=network.sha256 if network.file != bundle.spec.model else None)


def build(bundle: Bundle, *, backend: str = 'auto', precision: str = 'int8',
          quantization: str = 'explicit', store: str | os.PathLike[str] | None = None,
          allow_unproven: bool = False, allow_float: bool = False, force: bool = False,
          prune: bool = False, workspace_mib: int | None = None, max_batch: int = 1,
          dla: Dla | None = None,
          report: Callable[[str], None] = lambda line: None) -> Build:
    """
    Build, prove and store the bundle's engine; a proven one in the store is used again.

    :param backend: 'auto' or a backend's name
    :param precision: 'int8', 'fp16', 'fp32', or 'auto': the fastest of those that are accepted;
        which one that is, is kept in the store
    :param quantization: of INT8: 'explicit' or 'implicit'
    :param store: where built plans live; None for the default place
    :param allow_unproven: accept an engine although the bundle has no golden frames
    :param allow_float: accept an INT8 engine with less work in INT8 than min_int8_share; its
        record says so, and no build without this takes it from the store
    :param force: build even if the store has the plan
    :param prune: then remove older plans of this bundle, but for the last one before this
    :param workspace_mib: memory that the builder's tactics may use; None for all there is
    :param max_batch: how many images it shall take at once, 1 to MAX_BATCH; which batch sizes are
        faster for each image than one by one is measured, and the others are not used
    :param dla: the accelerator to build for; None for the GPU
    :param report: takes each line of progress
    :raises InputError: for a bad bundle, backend, precision or store
    :raises CheckFailed: if the engine fails its acceptance (`Refused`); nothing is stored then
    """
    chosen = choose_backend(backend, dla)
    storage = Store(store)
    options = BuildOptions(
        quantization=quantization, workspace_mib=workspace_mib, max_batch=max_batch,
        report=report)
    with storage.lock(report), snapshot(bundle, storage.path) as fixed:
        builder = _Builder(bundle, fixed, chosen, storage, options, allow_unproven, allow_float,
                           force)
        if precision == 'auto':
            builds = builder.fastest()
        else:
            builds = [builder.one(precision)]
            builder.compare_with_float(builds[0])
        if prune:
            for key in storage.prune([built.record for built in builds]):
                report(f'removed the older plan {key[:12]}')
        return builds[0]


def choice_key(bundle: Bundle, backend: Backend, quantization: str, max_batch: int = 1) -> str:
    """Return where a store keeps which precision is the fastest of those that are accepted."""
    return files.sha256_json({
        'choice': [plan_inputs(bundle, backend, precision, quantization, max_batch).key
                   for precision in backend.precisions],
        'basis': basis(bundle)})


def chosen_before(bundle: Bundle, backend: Backend, quantization: str, store: Store,
                  max_batch: int = 1) -> Record | None:
    """Return the record of what an earlier build found to be the fastest; None if none did."""
    try:
        key = str(json.loads(store.kept(choice_key(bundle, backend, quantization,
                                                   max_batch)))['key'])
    except (ValueError, KeyError, TypeError):
        return None
    return store.record(key)


@dataclass(frozen=True)
class _Builder:
    """Builds under the store's lock, from a bundle that nobody changes meanwhile."""

    bundle: Bundle
    fixed: Bundle
    backend: Backend
    store: Store
    options: BuildOptions
    allow_unproven: bool
    allow_float: bool
    force: bool

    def one(self, precision: str, auto: bool = False) -> Build:
        """Build, prove and store one precision, or find it; `auto` if others are tried too."""
        # First, since who has not calibrated must not be sent for golden frames.
        inputs = plan_inputs(self.fixed, self.backend, precision, self.options.quantization,
                             self.options.max_batch)
        golden = list(read_golden(self.fixed))
        if not golden and not self.allow_unproven:
            raise CheckFailed(
                f'{self.bundle.golden_path}: no golden frames to prove an engine with; record '
                f'some with: {command_line("golden", self.bundle.path, "--images", "DIRECTORY")} '
                f'(or accept it without: '
                f'{command_line("build", self.bundle.path, "--allow-unproven")})')
        found = None if self.force else self._found(inputs.key)
        if found is not None and self._is_good(found[0]):
            return Build(found[0], reused=True)
        if found is None:
            record, data = self._built(inputs, golden)
        else:
            record, data = found
            self.options.report(
                f'proving the {precision} engine of {self.backend.name} that is in the store')
        record = replace(record, acceptance=self._judged(record, data, golden))
        if record.acceptance.failures:
            # By what is asked for now, it must not be opened any more, as one whose float layers
            # were allowed before. Of a bundle with other limits it stays what it is.
            if found is not None and is_proven(found[0], self.fixed):
                self.store.publish(record, data)
            why = refusal(record, self.bundle.path, tuned=tuned(self.fixed), auto=auto)
            raise Refused(
                f'bundle {self.bundle.path}: the {precision} engine of {self.backend.name} is not '
                f'accepted: {why}', record)
        return Build(self.store.publish(record, data), reused=False)

    def fastest(self) -> list[Build]:
        """Return what is accepted, the fastest first; as it was chosen before, if it was."""
        quantization, report = self.options.quantization, self.options.report
        max_batch = self.options.max_batch
        before = chosen_before(self.fixed, self.backend, quantization, self.store, max_batch)
        if before is not None and not self.force and self._is_good(before):
            report(f'taking {before.precision}, which was the fastest when this was built '
                   '(--force measures again)')
            return [Build(before, reused=True)]
        found: dict[str, Build] = {}
        for name in self.backend.precisions:
            try:
                found[name] = self.one(name, auto=True)
            except CheckFailed as error:
                if name == self.backend.precisions[-1] and not found:
                    raise
                report(f'warning: {error}')
        times = self._times([(built.key, b'') for built in found.values()], list(found))
        # A difference within the margin is noise, which must not decide; INT8 was calibrated for.
        weighed = [ms / (_MARGIN if name == 'int8' else 1) for name, ms in zip(found, times)]
        builds = [built for _, built in sorted(zip(weighed, found.values()),
                                               key=lambda entry: entry[0])]
        figures = ', '.join(f'{name} {ms:.2f} ms' for name, ms in zip(found, times))
        report(f'{figures}: taking {builds[0].record.precision}')
        choice = {'key': builds[0].key, 'milliseconds': dict(zip(found, times))}
        self.store.keep(choice_key(self.fixed, self.backend, quantization, max_batch),
                        json.dumps(choice).encode())
        return builds

    def compare_with_float(self, built: Build) -> None:
        """Say so where INT8 is slower than FP32, if that takes no time to find out."""
        if built.record.precision != 'int8' or not self.backend.instant or built.reused:
            return
        float_plan = self.backend.build(self.fixed, 'fp32', self.options)
        int8_ms, float_ms = self._times([(built.key, b''), ('', float_plan.data)],
                                        ['int8', 'fp32'])
        if int8_ms > _MARGIN * float_ms:
            self.options.report(
                f'warning: int8 takes {int8_ms:.2f} ms and fp32 {float_ms:.2f} ms here: INT8 is '
                'slower on this machine; --precision auto takes the faster')

    def _found(self, key: str) -> tuple[Record, bytes] | None:
        """Return what the store has of a plan; a plan that is damaged is said, and None."""
        if self.store.record(key) is None:
            return None
        try:
            return self.store.engine(key)
        except InputError as error:
            self.options.report(f'warning: {error}')
            return None

    def _is_good(self, record: Record) -> bool:
        """Tell whether a stored engine is proven, by what the bundle says and is asked for now."""
        return is_proven(record, self.fixed) and (
            self.allow_float or not record.acceptance.waived)

    def _built(self, inputs: Inputs, golden: list[Golden]) -> tuple[Record, bytes]:
        """Return what the backend builds, with a record that is not judged yet."""
        options, said = self._batching()
        self.options.report(f'building {inputs.precision} for {inputs.backend} {inputs.version}, '
                            f'to be judged by {counted(len(golden), "golden frame")}')
        timing_key = files.sha256_json({'timing_cache': dict(inputs.identity)})
        before = self.store.kept(timing_key)
        start = perf_counter()
        plan = self.backend.build(self.fixed, inputs.precision,
                                  replace(options, timing_cache=before))
        seconds = perf_counter() - start
        if plan.timing_cache is not None and plan.timing_cache != before:
            self.store.keep(timing_key, plan.timing_cache)
        return Record(
            inputs=inputs,
            bundle=str(self.bundle.path.resolve()),
            built=datetime.now(timezone.utc).isoformat(timespec='seconds'),
            build_seconds=seconds,
            package_version=__version__,
            layers=tuple(plan.layers),
            log=(*plan.log, *said),
            acceptance=Acceptance(None, {}, None),
            timing_cache_sha256=None if plan.timing_cache is None else files.sha256_bytes(
                plan.timing_cache),
            batches=self._batches(plan.data, inputs.precision, options.max_batch, golden),
        ), plan.data

    def _batching(self) -> tuple[BuildOptions, tuple[str, ...]]:
        """Return the options, without batches where the network takes none; and why, for a log."""
        if self.options.max_batch == 1:
            return self.options, ()
        reason = obstacle(onnx_model.load(self.fixed.model_path), input_shapes(self.fixed))
        if not reason:
            return self.options, ()
        line = f'warning: built for one image at a time, because of the network: {reason}'
        self.options.report(line)
        return replace(self.options, max_batch=1), (line,)

    def _batches(self, data: bytes, precision: str, most: int, golden: list[Golden]
                 ) -> tuple[Batch, ...]:
        """Return what each batch size takes, and whether it gives the masks of single images."""
        if most == 1:
            return ()
        sizes = batch_sizes(most)
        with segmenter_of(self.fixed.spec, self.backend.load(data, precision),
                          batch_sizes=sizes) as segmenter:
            batches = measured(segmenter, [frame.image for frame in golden])
        self.options.report('in batches, milliseconds a frame: ' + ', '.join(
            f'{batch.size}: {batch.frame_ms:.2f}' for batch in batches))
        for batch in batches:
            if batch.differs:
                self.options.report(f'warning: no batches of {batch.size}: {batch.differs}')
        return batches

    def _judged(self, record: Record, data: bytes, golden: list[Golden]) -> Acceptance:
        """Run the golden frames through a plan, and on a host through the vehicle's arithmetic."""
        precision = record.precision
        with segmenter_of(self.fixed.spec, self.backend.load(data, precision)) as segmenter:
            acceptance = examine(self.fixed, segmenter, record.layers, precision, frames=golden,
                                 allow_float=self.allow_float)
        if precision == 'int8' and golden and not self.backend.is_vehicle:
            acceptance = replace(acceptance, vehicle=self._vehicle(golden))
        return acceptance

    def _vehicle(self, golden: list[Golden]) -> Vehicle | None:
        """Judge the vehicle's arithmetic; None if this network's cannot be computed here."""
        try:
            engine, quantized = vehicle_emulation(self.fixed)
            with CpuSegmenter(self.fixed.spec, engine) as segmenter:
                found = examine(self.fixed, segmenter, quantized.layers, 'int8', frames=golden)
        except SegmentationError as error:
            self.options.report(f"warning: the vehicle's arithmetic was not judged: {error}")
            return None
        return Vehicle(found.agreement, found.classes, found.int8_share, found.failures)

    def _times(self, plans: list[tuple[str, bytes]], precisions: list[str]) -> list[float]:
        """Return the milliseconds of one inference with each plan, measured by turns."""
        tensor = np.zeros((1, 3, *self.fixed.spec.input.size), np.float32)
        engines: list[Engine] = []
        with ExitStack() as stack:
            for (key, data), precision in zip(plans, precisions):
                engine = self.backend.load(data or self.store.plan(key), precision)
                stack.callback(engine.close)
                engines.append(engine)
            return by_turns([partial(engine.infer, tensor) for engine in engines])


def is_proven(record: Record, bundle: Bundle) -> bool:
    """Tell whether a record proves an engine by what the bundle says now."""
    return record.vouched and still_passes(record.acceptance, bundle, record.precision)
