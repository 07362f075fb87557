# SPDX-License-Identifier: Apache-2.0
"""Taking over a calibration cache that another tool made."""

from __future__ import annotations

import os

from trt_segmentation.bundles import cache, form, manifest
from trt_segmentation.bundles.bundle import (
    Bundle,
    CACHE_NAME,
    EQUALIZED_NAME,
    MANIFEST_NAME,
    REPORT_NAME,
)
from trt_segmentation.bundles.cache import Cache, Coverage
from trt_segmentation.bundles.manifest import int8_network
from trt_segmentation.errors import CheckFailed
from trt_segmentation.networks import activations as graph
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.placement import quantized_tensors
from trt_segmentation.system import files


def coverage(bundle: Bundle, scales: Cache) -> Coverage:
    """Match a cache against all activations of a bundle's network."""
    network = onnx_model.load(bundle.path / int8_network(bundle).file)
    return cache.coverage(scales, graph.layers(network))


def adopt(bundle: str | os.PathLike[str], path: str | os.PathLike[str], *,
          allow_missing: bool = False) -> Coverage:
    """
    Put another tool's cache into a bundle, with a manifest that says so.

    Its scales are kept to the bit, whatever they are; those that are not positive and finite
    count as missing.

    :param path: a cache in TensorRT's text format
    :param allow_missing: adopt it although layers would run in float for want of a scale
    :raises InputError: if either cannot be read
    :raises CheckFailed: if a tensor that INT8 layers read or write has no usable scale
    """
    foreign = Cache.read(path)
    replaces = (CACHE_NAME, EQUALIZED_NAME, MANIFEST_NAME, REPORT_NAME)
    with Bundle.changing(bundle, replaces) as (opened, change):
        model = onnx_model.load(opened.model_path)
        result = cache.coverage(foreign, graph.layers(model))
        needed = quantized_tensors(model, opened.spec.calibration.exclude)
        missing = [name for name in result.missing if name in needed]
        if missing and not allow_missing:
            raise CheckFailed(
                f'{path}: no usable scale for {len(missing)} of {len(needed)} quantized tensors, '
                f'the first is {missing[0]!r} of layer {result.missing[missing[0]][0]!r}; was the '
                f'cache made for {opened.spec.model}? To run such layers in float, add '
                '--allow-missing')
        document = manifest.new(
            opened, foreign, method='adopted',
            adopted=manifest.Adopted(
                files.sha256_file(path), os.path.basename(path),
                f'TRT-{foreign.version}-{foreign.algorithm}',
                tuple(sorted(result.missing)), tuple(sorted(result.stale))),
            tensors={name: manifest.Scale(scale, foreign.amax(name))
                     for name, scale in foreign.usable().items()})
        change.write(CACHE_NAME, foreign.to_bytes())
        change.write(MANIFEST_NAME, form.to_json(document))
        change.remove(REPORT_NAME)  # they were about another cache
        change.remove(EQUALIZED_NAME)
        change.commit()
    return result
