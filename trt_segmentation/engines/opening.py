# SPDX-License-Identifier: Apache-2.0
"""Opening a bundle's engine: the one way from a bundle to a segmenter."""

from __future__ import annotations

import os

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines import (
    Backend,
    BuildOptions,
    choose_backend,
    Dla,
    PRECISIONS,
    QUANTIZATIONS,
)
from trt_segmentation.engines.build import build, chosen_before, is_proven, plan_inputs
from trt_segmentation.engines.onnxruntime import vehicle_emulation
from trt_segmentation.engines.record import Record
from trt_segmentation.engines.store import Store
from trt_segmentation.errors import command_line, EngineMissing, InputError, nearest
from trt_segmentation.segmenters.choice import segmenter_of
from trt_segmentation.segmenters.segmenter import Segmenter

VEHICLE = 'int8-vehicle'
"""The name of the vehicle's INT8 arithmetic, computed on the CPU."""


def open_segmenter(bundle: str | os.PathLike[str] | Bundle, *, backend: str = 'auto',
                   precision: str = 'int8', store: str | os.PathLike[str] | None = None,
                   build_missing: bool = True, max_batch: int = 1, dla: Dla | None = None
                   ) -> Segmenter:
    """
    Open a bundle with an engine that passed its acceptance on this machine.

    Its limits are judged again, by the figures in its record; of several such INT8 engines, the
    one that was built last is taken. Close what is returned, or use it in a `with` statement.

    :param bundle: a bundle, or its directory
    :param backend: 'auto', 'tensorrt', 'tensorrt_rtx' or 'onnxruntime'
    :param precision: 'int8', 'fp16', 'fp32', or 'auto': what the build with --precision auto
        found to be the fastest
    :param store: where built plans live; None for the default place
    :param build_missing: build the engine if it is not in the store, not proven, or damaged; else
        the store may be read-only
    :param max_batch: how many images at once it was built for; `Segmenter.batch_sizes` has those
        that are worth it
    :param dla: the accelerator that it runs on; None for the GPU
    :raises EngineMissing: if it is to be built, but must not be
    :raises InputError: for a bad bundle, backend, precision or store
    :raises CheckFailed: if the built engine does not agree with the float network
    """
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle)
    if precision not in (*PRECISIONS, 'auto'):
        raise InputError(f'precision: found {precision!r}, expected auto or one of '
                         f'{", ".join(PRECISIONS)}')
    chosen = choose_backend(backend, dla)
    storage = Store(store, writable=build_missing)
    missing = (f'store {storage.path}: no proven {precision} engine of bundle {bundle.path} for '
               f'{chosen.name} on this machine; run: '
               + command_line('build', bundle.path, '--backend', chosen.name, '--precision',
                              precision, *(('--store', store) if store else ()),
                              *(('--dla-core', dla.core) if dla else ()),
                              *(('--gpu-fallback',) if dla and dla.gpu_fallback else ()),
                              *(('--max-batch', max_batch) if max_batch > 1 else ())))
    found = None
    if (stored := newest_proven(bundle, chosen, precision, storage, max_batch)) is not None:
        try:
            found = storage.engine(stored.key)
        except InputError as error:
            missing = str(error)
    if found is None:
        if not build_missing:
            raise EngineMissing(missing)
        built = build(bundle, backend=chosen.name, precision=precision, store=storage.path,
                      max_batch=max_batch, dla=dla)
        found = storage.engine(built.key)
    record, data = found
    return segmenter_of(bundle.spec, chosen.load(data, record.precision), record)


def open_named(bundle: Bundle, name: str, *, backend: str = 'auto',
               store: str | os.PathLike[str] | None = None, timed: bool = False) -> Segmenter:
    """
    Open an engine to look at: the proven one in the store, or one built for now, proven or not.

    :param name: PRECISION, BACKEND:PRECISION, or VEHICLE
    :param backend: of a name that has none
    :param timed: build as `build` does, which on the CPU leaves in float what a clock says is
        faster so; else each process builds the same there, by what the bundle says alone
    :raises InputError: for an unknown name, or an engine that cannot be built here
    """
    if name == VEHICLE:
        engine, _ = vehicle_emulation(bundle)
        return segmenter_of(bundle.spec, engine)
    prefix, _, precision = name.rpartition(':')
    if precision not in PRECISIONS:
        raise InputError(f'engine: found {name!r}, expected {VEHICLE}, or one of '
                         f'{", ".join(PRECISIONS)}, as it is or after a backend and a colon'
                         + nearest(precision, (VEHICLE, *PRECISIONS)))
    try:
        return open_segmenter(bundle, backend=prefix or backend, precision=precision, store=store,
                              build_missing=False)
    except EngineMissing:
        chosen = choose_backend(prefix or backend)
        plan = chosen.build(bundle, precision, BuildOptions(timed=timed))
        return segmenter_of(bundle.spec, chosen.load(plan.data, precision))


def newest_proven(bundle: Bundle, backend: Backend, precision: str, store: Store,
                  max_batch: int = 1) -> Record | None:
    """Return the record of the engine that `open_segmenter` opens; None if there is none."""
    found = []
    for quantization in QUANTIZATIONS if precision in ('int8', 'auto') else ('explicit',):
        record = (chosen_before(bundle, backend, quantization, store, max_batch)
                  if precision == 'auto' else store.record(
                      plan_inputs(bundle, backend, precision, quantization, max_batch).key))
        if record is not None and is_proven(record, bundle):
            found.append(record)
    return max(found, key=lambda record: (record.built, record.key), default=None)
