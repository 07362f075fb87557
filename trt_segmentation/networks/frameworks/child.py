# SPDX-License-Identifier: Apache-2.0
"""The process that has a framework convert a network: what it is told, and how it answers."""

from __future__ import annotations

import json
import os
from time import perf_counter
from typing import Any

import numpy as np


class Wrong(Exception):
    """Say what is to be given otherwise."""


def main(task: dict[str, Any]) -> None:
    """
    Convert, and answer on standard output: one line of JSON.

    It has `versions` and `seconds`, `not_run` if the framework cannot run the network, and
    `training`, the operators that are in training mode, if some are; or `missing` (a library),
    `wrong` (what to give otherwise) or `error` (what the framework said).
    """
    answer = os.fdopen(os.dup(1), 'w', encoding='utf-8')
    os.dup2(2, 1)  # what a framework prints is not an answer
    start = perf_counter()
    try:
        if task['framework'] == 'tensorflow':
            from trt_segmentation.networks.frameworks.from_tensorflow import convert
        else:
            from trt_segmentation.networks.frameworks.from_pytorch import convert
        found = {**convert(task), 'seconds': perf_counter() - start}
    except ModuleNotFoundError as error:
        found = ({'missing': error.name} if error.name in (
            'tensorflow', 'tf2onnx', 'keras', 'torch', 'onnxscript', 'onnx') else
            {'error': _line(error)})
    except Wrong as error:
        found = {'wrong': str(error)}
    except Exception as error:  # whatever a framework raises
        found = {'error': _line(error)}
    print(json.dumps(found), file=answer, flush=True)
    # What a framework leaves running must not hold up or spoil the end.
    os._exit(0)


def _line(error: Exception) -> str:
    """Return an error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = ' '.join(lines[:2]) or type(error).__name__
    return f'{text[:300]} ...' if len(text) > 300 else text


def sides(fixed: list[int | None], name: str, task: dict[str, Any]) -> list[int]:
    """Return height and width of an input: those that the file fixes, or that are given."""
    given = task['size'] or fixed
    if None in given:
        raise Wrong(f'input {name!r} has no fixed size in the file; name its height and width '
                    'with --size HEIGHT WIDTH')
    if any(side not in (None, other) for side, other in zip(fixed, given)):
        raise Wrong(f'input {name!r} is {fixed[0]}x{fixed[1]} (height x width) in the file, and '
                    f'--size {given[0]} {given[1]} is not; leave it out')
    return list(given)


def random_pixels(shape: list[int], dtype: str) -> np.ndarray:
    """Return what a network is compared on: pixels 0..255 in whole numbers, else around 0."""
    random = np.random.default_rng(0)
    if np.dtype(dtype).kind in 'iu':
        return random.integers(0, 256, shape).astype(dtype)
    return random.normal(0, 1, shape).astype(dtype)


def save(task: dict[str, Any], proto: Any, names: dict[str, str]) -> dict[str, str]:
    """
    Write the ONNX file, its tensors renamed, without what the exporter says of its author's files.

    :param names: what inputs and outputs of it are to be called; left where that name is taken
    :returns: what each is called now
    """
    import onnx
    graph = proto.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    names = {old: old if new in taken else new for old, new in names.items()}
    for node in graph.node:
        for entries in (node.input, node.output):
            entries[:] = [names.get(name, name) for name in entries]
        node.ClearField('metadata_props')
        node.ClearField('doc_string')
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
        value.ClearField('metadata_props')
    proto.ClearField('metadata_props')
    graph.ClearField('metadata_props')
    onnx.save(proto, task['onnx'])
    return names


def save_reference(task: dict[str, Any], tensor: np.ndarray, outputs: dict[str, np.ndarray]
                   ) -> None:
    """Write what the framework gives for a tensor, by the names of the ONNX file's outputs."""
    arrays: dict[str, Any] = {f'output:{name}': value for name, value in outputs.items()}
    np.savez(task['reference'], input=tensor, **arrays)
