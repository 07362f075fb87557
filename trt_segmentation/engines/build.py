# SPDX-License-Identifier: Apache-2.0
"""Building an engine for this machine, proving it, and finding it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
import os
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from trt_segmentation import __version__
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.manifest import cache_of
from trt_segmentation.engines import Backend, BuildOptions, choose_backend, Engine, QUANTIZATIONS
from trt_segmentation.engines.acceptance import basis, examine
from trt_segmentation.engines.store import SCHEMA, Store
from trt_segmentation.engines.summary import agreement_table, layer_table
from trt_segmentation.errors import CheckFailed, EngineMissing, InputError
from trt_segmentation.networks.layers import Layer
from trt_segmentation.networks.quantize import GRAPH_REVISION
from trt_segmentation.segmenters.segmenter import segmenter_of
from trt_segmentation.system import files

_TIMED_RUNS = 10


@dataclass(frozen=True)
class Build:
    """An accepted plan in the store: its key and record, and whether it was there before."""

    key: str
    record: Mapping[str, Any]
    reused: bool


def plan_inputs(bundle: Bundle, backend: Backend, precision: str,
                quantization: str = 'explicit') -> dict[str, Any]:
    """Return all that a plan depends on, as JSON values; its hash is the plan's key."""
    inputs = {
        'backend': backend.name,
        'identity': dict(backend.identity()),
        'graph_revision': GRAPH_REVISION,
        'model': bundle.model_sha256,
        'size': list(bundle.spec.input.size),
        'precision': precision,
    }
    if precision == 'int8':
        inputs['cache'] = files.sha256_bytes(cache_of(bundle).to_bytes())
        inputs['exclude'] = sorted(bundle.spec.calibration.exclude)
        inputs['quantization'] = quantization
    return inputs


def build(bundle: Bundle, *, backend: str = 'auto', precision: str = 'int8',
          quantization: str = 'auto', store: str | os.PathLike | None = None,
          allow_unproven: bool = False, allow_float: bool = False, force: bool = False,
          prune: bool = False, workspace_mib: int | None = None,
          report: Callable[[str], None] = lambda line: None) -> Build:
    """
    Build, prove and store the bundle's engine; a proven one in the store is used again.

    :param backend: 'auto' or a backend's name
    :param precision: 'int8', 'fp16', 'fp32', or 'auto': the fastest of those that are accepted
    :param quantization: of INT8: 'explicit' (what 'auto' means) or 'implicit'
    :param store: where built plans live; None for the default place
    :param allow_unproven: accept an engine although the bundle has no golden frames
    :param allow_float: accept an INT8 engine with less work in INT8 than min_int8_share; its
        record says so, and no build without this takes it from the store
    :param force: build even if the store has the plan
    :param prune: then remove older plans of this bundle, but for the last one before this
    :param workspace_mib: memory that the builder's tactics may use; None for all there is
    :param report: takes each line of progress
    :raises InputError: for a bad bundle, backend, precision or store
    :raises CheckFailed: if the engine fails its acceptance; nothing is stored then
    """
    chosen = choose_backend(backend)
    storage = Store(store)
    options = BuildOptions(
        quantization='explicit' if quantization == 'auto' else quantization,
        workspace_mib=workspace_mib, report=report)
    precisions = chosen.precisions if precision == 'auto' else (precision,)
    with storage.lock(report):
        found: dict[str, Build] = {}
        for name in precisions:
            try:
                found[name] = _build(bundle, chosen, name, storage, options, allow_unproven,
                                     allow_float, force)
            except CheckFailed as error:
                if name == precisions[-1] and not found:
                    raise
                report(f'warning: {error}')
        builds = list(found.values())
        fastest = builds[0]
        if len(precisions) > 1:
            times = _times(bundle, [chosen.load(storage.plan(built.key), name)
                                    for name, built in found.items()])
            fastest = builds[times.index(min(times))]
            figures = ', '.join(f'{name} {ms:.2f} ms' for name, ms in zip(found, times))
            report(f'{figures}: taking {fastest.record["inputs"]["precision"]}')
        elif precision == 'int8' and chosen.instant and not fastest.reused:
            float_plan = chosen.build(bundle, 'fp32', options)
            int8_ms, float_ms = _times(bundle, [
                chosen.load(storage.plan(fastest.key), 'int8'),
                chosen.load(float_plan.data, 'fp32')])
            if int8_ms > float_ms:
                report(f'warning: int8 takes {int8_ms:.2f} ms and fp32 {float_ms:.2f} ms here: '
                       'INT8 is slower on this machine; --precision auto takes the faster')
        if prune:
            for key in storage.prune([built.record for built in builds]):
                report(f'removed the older plan {key[:12]}')
        return fastest


def open_engine(bundle: Bundle, *, backend: str = 'auto', precision: str = 'int8',
                store: str | os.PathLike | None = None, build_missing: bool = True,
                ) -> tuple[Engine, Mapping[str, Any]]:
    """
    Return the bundle's accepted engine and its record: of INT8, the one that was built last.

    :param build_missing: build it if it is not in the store, not proven, or damaged; else the
        store may be read-only
    :raises EngineMissing: if it is to be built, but must not be
    """
    chosen = choose_backend(backend)
    storage = Store(store, writable=build_missing)
    key, record = _newest_proven(bundle, chosen, precision, storage)
    missing = (f'store {storage.path}: no proven {precision} engine of bundle {bundle.path} for '
               f'{chosen.name} on this machine; run: trt-segmentation build {bundle.path} '
               f'--backend {chosen.name} --precision {precision}')
    data = b''
    if record is not None:
        try:
            data = storage.plan(key)
        except InputError as error:
            record, missing = None, str(error)
    if record is None:
        if not build_missing:
            raise EngineMissing(missing)
        built = build(bundle, backend=chosen.name, precision=precision, store=storage.path)
        record, data = built.record, storage.plan(built.key)
    return chosen.load(data, record['inputs']['precision']), record


def _newest_proven(bundle: Bundle, backend: Backend, precision: str, store: Store
                   ) -> tuple[str, Mapping[str, Any] | None]:
    """Return key and record of the plan to open; the record is None if there is none."""
    if precision == 'auto':
        return '', None
    found = []
    for quantization in QUANTIZATIONS if precision == 'int8' else ('explicit',):
        key = files.sha256_json(plan_inputs(bundle, backend, precision, quantization))
        record = store.record(key)
        if record is not None and _is_proven(record, bundle):
            found.append((record['built'], key, record))
    return max(found)[1:] if found else ('', None)


def _build(bundle: Bundle, backend: Backend, precision: str, store: Store, options: BuildOptions,
           allow_unproven: bool, allow_float: bool, force: bool) -> Build:
    """Build one precision, under the store's lock."""
    from trt_segmentation.bundles import golden
    report = options.report
    if not golden.paths(bundle.golden_path) and not allow_unproven:
        raise CheckFailed(
            f'{bundle.golden_path}: no golden frames to prove an engine with; record some with: '
            f'trt-segmentation golden {bundle.path} --images DIRECTORY (or accept it without: '
            'trt-segmentation build --allow-unproven)'
        )
    inputs = plan_inputs(bundle, backend, precision, options.quantization)
    key = files.sha256_json(inputs)
    record, data = None if force else store.record(key), b''
    if record is not None:
        try:
            data = store.plan(key)
        except InputError as error:
            report(f'warning: {error}')
            record = None
    in_store = record is not None
    if in_store and _is_proven(record, bundle) and (
            allow_float or not record['acceptance']['waived']):
        return Build(key, record, reused=True)
    if not in_store:
        report(f'building {precision} for {backend.name} {inputs["identity"].get("version", "")}')
        timings = _Timings(store, inputs['identity'])
        start = perf_counter()
        plan = backend.build(bundle, precision, replace(options, timing_cache=timings.data))
        record = {
            'schema': SCHEMA,
            'inputs': inputs,
            'bundle': str(bundle.path.resolve()),
            'built': datetime.now(timezone.utc).isoformat(timespec='seconds'),
            'build_seconds': perf_counter() - start,
            'package_version': __version__,
            'layers': [asdict(layer) for layer in plan.layers],
            'log': list(plan.log),
            'timing_cache_sha256': timings.keep(plan.timing_cache),
        }
        data = plan.data
    else:
        report(f'proving the {precision} engine of {backend.name} that is in the store')
    layers = [Layer(**layer) for layer in record['layers']]
    segmenter = segmenter_of(bundle.spec, backend.load(data, precision))
    try:
        acceptance = examine(bundle, segmenter, layers, precision, allow_float=allow_float)
    finally:
        segmenter.close()
    if acceptance['failures']:
        if in_store:  # by what is asked for now, it must not be opened any more
            store.publish(key, data, {**record, 'acceptance': acceptance})
        for line in (*layer_table(layers), '', *agreement_table(acceptance)):
            report(line)
        raise CheckFailed(
            f'bundle {bundle.path}: the {precision} engine of {backend.name} is not accepted: '
            + '; '.join(acceptance['failures']) + _remedy(acceptance, layers, precision)
        )
    record = store.publish(key, data, {**record, 'acceptance': acceptance})
    return Build(key, record, reused=False)


class _Timings:
    """The builder's timing cache of this machine, in the store under the hash that vouches it."""

    def __init__(self, store: Store, identity: Mapping[str, Any]):
        """Read it; `data` is b'' if there is none, or if its bytes are not the ones kept."""
        self._store = store
        self._key = files.sha256_json({'timing_cache': identity})
        try:
            self.data = store.plan(self._key)
        except InputError:
            self.data = b''  # it only saves time

    def keep(self, data: bytes | None) -> str | None:
        """Write what the build left; return its hash, which says what the plan was chosen by."""
        if data is None:
            return None
        if data != self.data:
            self._store.publish(self._key, data, {})
        return files.sha256_bytes(data)


def _is_proven(record: Mapping[str, Any], bundle: Bundle) -> bool:
    """Tell whether a record's acceptance was judged by what the bundle says now, and passed."""
    acceptance = record['acceptance']
    return not acceptance['failures'] and acceptance['basis'] == basis(bundle)


def _remedy(acceptance: Mapping[str, Any], layers: list[Layer], precision: str) -> str:
    """Return the end of the message about an engine that failed: what there is to do."""
    if precision != 'int8':
        return ''
    ways = []
    if any('min_int8_share' in failure for failure in acceptance['failures']):
        rest = sorted((layer for layer in layers if layer.precision != 'int8'),
                      key=lambda layer: -layer.macs)
        names = ', '.join(f'{layer.name} ({layer.reason})' for layer in rest[:3])
        ways.append(f'in float: {names}{" ..." if len(rest) > 3 else ""}; if that is right for '
                    'this network, lower acceptance.min_int8_share in model.yaml (and seal the '
                    'bundle), or add --allow-float')
    if any('agreement' in failure for failure in acceptance['failures']):
        ways.append('calibrate with --tune, or take --precision auto, which falls back to float')
    return ''.join(f'; {way}' for way in ways)


def _times(bundle: Bundle, engines: list[Engine]) -> list[float]:
    """Return the median milliseconds of one inference with each engine, by turns; close them."""
    tensor = np.zeros((1, 3, *bundle.spec.input.size), np.float32)
    samples: list[list[float]] = [[] for _ in engines]
    for _ in range(_TIMED_RUNS + 1):
        for engine, times in zip(engines, samples):
            start = perf_counter()
            engine.infer(tensor)
            times.append((perf_counter() - start) * 1e3)
    for engine in engines:
        engine.close()
    return [median(times[1:]) for times in samples]  # the first run warms up
