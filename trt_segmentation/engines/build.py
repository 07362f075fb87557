# SPDX-License-Identifier: Apache-2.0
"""Building an engine for this machine, proving it, and finding it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
import os
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from trt_segmentation import __version__, files
from trt_segmentation.acceptance import basis, examine
from trt_segmentation.bundle import Bundle
from trt_segmentation.engines import Backend, choose_backend, Engine
from trt_segmentation.engines.store import Store
from trt_segmentation.errors import CheckFailed, InputError
from trt_segmentation.quantization import Layer
from trt_segmentation.segmenter import CpuSegmenter

_TIMED_RUNS = 10


@dataclass(frozen=True)
class Build:
    """An accepted plan in the store: its key and record, and whether it was there before."""

    key: str
    record: Mapping[str, Any]
    reused: bool


def plan_inputs(bundle: Bundle, backend: Backend, precision: str) -> dict[str, Any]:
    """Return all that a plan depends on, as JSON values; its hash is the plan's key."""
    inputs = {
        'backend': backend.name,
        'identity': dict(backend.identity()),
        'model': bundle.model_sha256,
        'size': list(bundle.spec.input.size),
        'precision': precision,
    }
    if precision == 'int8':
        inputs['cache'] = files.sha256_bytes(bundle.cache().to_bytes())
        inputs['exclude'] = sorted(bundle.spec.calibration.exclude)
    return inputs


def build(bundle: Bundle, *, backend: str = 'auto', precision: str = 'int8',
          store: str | os.PathLike | None = None, allow_unproven: bool = False,
          force: bool = False, report: Callable[[str], None] = lambda line: None) -> Build:
    """
    Build, prove and store the bundle's engine; a proven one in the store is used again.

    :param backend: 'auto' or a backend's name
    :param precision: 'int8', 'fp16', 'fp32', or 'auto': INT8 unless FP32 is faster here
    :param store: where built plans live; None for the default place
    :param allow_unproven: accept an engine although the bundle has no golden frames
    :param force: build even if the store has the plan
    :param report: takes each line of progress
    :raises InputError: for a bad bundle, backend, precision or store
    :raises CheckFailed: if the engine fails its acceptance; nothing is stored then
    """
    chosen = choose_backend(backend)
    storage = Store(store)
    with storage.lock():
        if precision != 'auto':
            return _build(bundle, chosen, precision, storage, allow_unproven, force, report)
        candidates = [_build(bundle, chosen, name, storage, allow_unproven, force, report)
                      for name in ('int8', 'fp32')]
        int8_ms, fp32_ms = _times(bundle, chosen, storage, candidates)
        fastest = candidates[int8_ms > fp32_ms]
        report(f'int8 {int8_ms:.2f} ms, fp32 {fp32_ms:.2f} ms: '
               f'taking {fastest.record["inputs"]["precision"]}')
        return fastest


def open_engine(bundle: Bundle, *, backend: str = 'auto', precision: str = 'int8',
                store: str | os.PathLike | None = None, build_missing: bool = True,
                ) -> tuple[Engine, Mapping[str, Any]]:
    """
    Return the bundle's accepted engine and its record.

    :raises InputError: if it is not in the store, or not proven, and is not to be built
    """
    chosen = choose_backend(backend)
    storage = Store(store)
    key = files.sha256_json(plan_inputs(bundle, chosen, precision)) if precision != 'auto' else ''
    record = storage.record(key)
    if record is None or not _is_proven(record, bundle):
        if not build_missing:
            raise InputError(
                f'store {storage.path}: no proven {precision} engine of bundle {bundle.path} for '
                f'{chosen.name} on this machine; run: trt-segmentation build {bundle.path} '
                f'--backend {chosen.name} --precision {precision}'
            )
        built = build(bundle, backend=chosen.name, precision=precision, store=storage.path)
        key, record = built.key, built.record
    return chosen.load(storage.plan(key), record['inputs']['precision']), record


def _build(bundle: Bundle, backend: Backend, precision: str, store: Store, allow_unproven: bool,
           force: bool, report: Callable[[str], None]) -> Build:
    """Build one precision, under the store's lock."""
    from trt_segmentation import golden
    if not golden.paths(bundle.golden_path) and not allow_unproven:
        raise CheckFailed(
            f'{bundle.golden_path}: no golden frames to prove an engine with; record some with: '
            f'trt-segmentation golden {bundle.path} --images DIRECTORY (or --allow-unproven)'
        )
    inputs = plan_inputs(bundle, backend, precision)
    key = files.sha256_json(inputs)
    record = None if force else store.record(key)
    if record is not None and _is_proven(record, bundle):
        store.plan(key)  # its bytes are checked before anybody relies on them
        return Build(key, record, reused=True)
    if record is None:
        report(f'building {precision} for {backend.name} {inputs["identity"].get("version", "")}')
        start = perf_counter()
        plan = backend.build(bundle, precision)
        record = {
            'schema': 1,
            'inputs': inputs,
            'built': datetime.now(timezone.utc).isoformat(timespec='seconds'),
            'build_seconds': perf_counter() - start,
            'package_version': __version__,
            'layers': [asdict(layer) for layer in plan.layers],
            'log': list(plan.log),
        }
        data = plan.data
    else:
        report(f'proving the {precision} engine of {backend.name} that is in the store')
        data = store.plan(key)
    layers = [Layer(**layer) for layer in record['layers']]
    segmenter = CpuSegmenter(bundle.spec, backend.load(data, precision))
    try:
        acceptance = examine(bundle, segmenter, layers, precision)
    finally:
        segmenter.close()
    if acceptance['failures']:
        raise CheckFailed(
            f'bundle {bundle.path}: the {precision} engine of {backend.name} is not accepted: '
            + '; '.join(acceptance['failures'])
            + _float_layers(layers if precision == 'int8' else ())
        )
    record = store.publish(key, data, {**record, 'acceptance': acceptance})
    return Build(key, record, reused=False)


def _is_proven(record: Mapping[str, Any], bundle: Bundle) -> bool:
    """Tell whether a record's acceptance was judged by what the bundle says now."""
    return record.get('acceptance', {}).get('basis') == basis(bundle)


def _float_layers(layers) -> str:
    """Return the end of a message: which layers are not in INT8, the largest first."""
    rest = sorted((layer for layer in layers if layer.precision != 'int8'),
                  key=lambda layer: -layer.macs)
    names = ', '.join(f'{layer.name} ({layer.reason})' for layer in rest[:3])
    return f'; in float: {names}{" ..." if len(rest) > 3 else ""}' if rest else ''


def _times(bundle: Bundle, backend: Backend, store: Store, builds: list[Build]) -> list[float]:
    """Return the median milliseconds of one inference with each plan, run by turns."""
    engines = [backend.load(store.plan(built.key), built.record['inputs']['precision'])
               for built in builds]
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
