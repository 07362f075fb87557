# SPDX-License-Identifier: Apache-2.0
"""What a built engine is, in lines to read: for `build`, for `inspect` and for reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trt_segmentation.networks.layers import int8_share, Layer


def layer_table(layers: Iterable[Layer]) -> list[str]:
    """Return a table of weighted layers: type, share of the work, name, why it is not INT8."""
    layers = list(layers)
    total = max(sum(layer.macs for layer in layers), 1)
    width = max((len(layer.name) for layer in layers), default=0)
    lines = [f'{"type":8} {"work":>6}  {"layer":{width}}  reason']
    lines += [
        f'{layer.precision:8} {layer.macs / total:6.1%}  {layer.name:{width}}  {layer.reason}'
        for layer in layers]
    return [line.rstrip() for line in lines]


def agreement_table(acceptance: Mapping[str, Any]) -> list[str]:
    """Return a table of the agreement with the float network, by class, the lowest first."""
    rows = sorted(acceptance['classes'].items(), key=lambda row: row[1])
    width = max((len(name) for name in acceptance['classes']), default=0)
    return [f'{"class":{width}}  agreement'] + [f'{name:{width}}  {value:9.4f}'
                                                for name, value in rows]


def describe(record: Mapping[str, Any]) -> list[str]:
    """Return all that a plan's record says, as lines."""
    inputs, acceptance = record['inputs'], record['acceptance']
    layers = [Layer(**layer) for layer in record['layers']]
    identity = ', '.join(f'{key} {value}' for key, value in inputs['identity'].items())
    how = f', {inputs["quantization"]} quantization' if 'quantization' in inputs else ''
    lines = [
        f'plan       {record["key"]}',
        f'engine     {inputs["precision"]} for {inputs["backend"]} ({identity}){how}',
        f'built      {record["built"]} in {record["build_seconds"]:.1f} s by trt_segmentation '
        f'{record["package_version"]}',
        f'model      sha256 {inputs["model"]}',
    ]
    if 'cache' in inputs:
        lines.append(f'cache      sha256 {inputs["cache"]}')
    lines.append(f'int8       {int8_share(layers):.1%} of the convolution work')
    lines += [f'WAIVED     {text}, accepted with --allow-float' for text in acceptance['waived']]
    lines += [f'REFUSED    {text}' for text in acceptance['failures']]
    if acceptance['agreement'] is None:
        lines.append('agreement  UNPROVEN: the bundle has no golden frames')
    else:
        lines.append(f'agreement  {acceptance["agreement"]:.4f} with the float network on '
                     f'{len(acceptance["frames"])} golden frames')
        lines += ['', *agreement_table(acceptance)]
    lines += ['', *layer_table(layers)]
    if record['log']:
        lines += ['', 'build log:', *(f'  {line}' for line in record['log'])]
    return lines
