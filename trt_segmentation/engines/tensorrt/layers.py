# SPDX-License-Identifier: Apache-2.0
"""
The proof: what type each layer of a built TensorRT engine really runs in.

Two sources. TensorRT's engine inspector gives JSON; its form is known from the engines that
NVIDIA publishes with trt-engine-explorer. TensorRT-RTX writes the same facts as text into its
verbose log. Neither is a documented interface, so what is not understood counts as not proven:
such a layer is not INT8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
import json
import re
from typing import Any

from trt_segmentation.networks.layers import Layer

# The kinds of engine layers that multiply by weights: ParameterType or LayerType in TensorRT's
# JSON, LayerType in that of the graph compiler both libraries share.
_COMPUTING = frozenset({
    'Convolution', 'Deconvolution', 'ConvActPool', 'FullyConnected', 'MatrixMultiply',
    'correlation', 'deconv', 'gemm', 'fusion',
})
_TYPES = {'Int8': 'int8', 'FP16': 'fp16', 'Half': 'fp16', 'FP32': 'fp32', 'Float': 'fp32'}
_TYPE = re.compile(rf'\b({"|".join(_TYPES)})\b')
_NODE = re.compile(r'\[ONNX Layer: (.*?)\](?=\[ONNX Layer: |[\x1e\x1f]|\s*$)')
_DUMPED = re.compile(
    r'Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\], '
    r'(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[.*?\], TacticName: .*?'
    r'Metadata: ?(?P<metadata>.*)'
)
_DUMPED_TENSOR = re.compile(r'(?:Dimensions: \[([\d,]*)\][^{}]*?)?Datatype: (\w+)')

UNKNOWN = 'unknown'
"""The type of a layer whose description was not understood."""


@dataclass(frozen=True)
class EngineLayer:
    """
    One layer of an engine.

    kind: what it is in TensorRT's words
    type: 'int8', 'fp16', 'fp32' or UNKNOWN, of the activations and weights it computes with
    nodes: names of the ONNX nodes in it
    """

    name: str
    kind: str
    type: str
    nodes: tuple[str, ...]


def parse_inspector(text: str) -> tuple[EngineLayer, ...]:
    """
    Return the layers of `IEngineInspector.get_engine_information(JSON)`.

    :raises ValueError: if it is not the JSON of an engine built with detailed profiling verbosity
    """
    document = json.loads(text)
    layers = document.get('Layers') if isinstance(document, dict) else None
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError('expected {"Layers": [{...}, ...]}')
    return tuple(_inspected(layer) for layer in layers)


def parse_dump(text: str) -> tuple[EngineLayer, ...]:
    """
    Return the layers of the message 'Layers:' in a verbose log; other lines in it are passed over.

    :raises ValueError: for a line about a layer that has another form
    """
    layers = []
    for line in text.splitlines():
        if not line.startswith('Name: ') or 'LayerType: ' not in line:
            continue
        match = _DUMPED.fullmatch(line.strip())
        if match is None:
            raise ValueError(f'expected a layer, found {line[:80]!r}')
        inputs = [type_ for _, type_ in _DUMPED_TENSOR.findall(match['inputs'])]
        # Where weights are computed as the engine runs (on SM 7.5), the first constants are the
        # two scalars by which the product and what it is added to are multiplied.
        constants = [type_ for sizes, type_ in _DUMPED_TENSOR.findall(match['constants'] or '')
                     if sizes != '1']
        layers.append(EngineLayer(
            match['name'], match['kind'],
            _combined(inputs[0] if inputs else '', constants[0] if constants else None),
            tuple(_NODE.findall(match['metadata']))))
    return tuple(layers)


def prove(intended: Iterable[Layer], engine: Iterable[EngineLayer]) -> tuple[Layer, ...]:
    """
    Return the network's weighted layers with the type that the engine runs each one in.

    :param intended: the layers of the graph that the engine was built from
    :param engine: the engine's layers
    """
    return tuple(_proven(layer, list(engine)) for layer in intended)


def _proven(layer: Layer, engine: list[EngineLayer]) -> Layer:
    """Return a layer with the type it runs in, and why it is not INT8."""
    found = [entry for entry in engine if layer.name in entry.nodes]
    computing = [entry for entry in found if entry.kind in _COMPUTING]
    if not computing:
        where = ', '.join(sorted({entry.kind for entry in found}))
        reason = (f'the engine runs it in a layer of kind {where}, of which nothing is known'
                  if found else "it is not in the engine's table of layers")
        return replace(layer, precision=UNKNOWN, reason=layer.reason or reason)
    types = sorted({entry.type for entry in computing} - {'int8'})
    if not types:
        return replace(layer, precision='int8', reason='')
    return replace(layer, precision=types[0],
                   reason=layer.reason or f'the engine runs it in {types[0]}')


def _inspected(layer: Mapping[str, Any]) -> EngineLayer:
    """Return a layer of the inspector's JSON."""
    name, kind = str(layer.get('Name', '')), layer.get('ParameterType')
    if kind not in _COMPUTING:
        kind = layer.get('LayerType')
    inputs = layer.get('Inputs')
    first = inputs[0] if isinstance(inputs, list) and inputs else {}
    weights = layer.get('Weights', layer.get('ConvWeights'))
    if weights is None and layer.get('Constants'):  # as layers of the graph compiler have them
        weights = {'Type': layer['Constants'][0].get('Datatype', '')}
    nodes = tuple(_NODE.findall(str(layer.get('Metadata', ''))))
    return EngineLayer(
        name, str(kind),
        _combined(str(first.get('Format/Datatype', first.get('Datatype', ''))),
                  None if weights is None else str(weights.get('Type', ''))),
        nodes or _nodes_of_name(name))


def _combined(activations: str, weights: str | None) -> str:
    """Return the type of a layer from those of its first input and, where known, its weights."""
    found = {_type(text) for text in (activations, weights) if text is not None}
    return found.pop() if len(found) == 1 else UNKNOWN


def _type(text: str) -> str:
    """Return the type that a description of a tensor's format names."""
    found = {_TYPES[word] for word in _TYPE.findall(text)}
    return found.pop() if len(found) == 1 else UNKNOWN


def _nodes_of_name(name: str) -> tuple[str, ...]:
    """
    Return the ONNX nodes that a fused layer is named after; for engines without metadata.

    TensorRT joins the names of what it fuses by ' + ' and of what it runs side by side by ' || ',
    and wraps those of point-wise operations in PWN(...).
    """
    parts = re.split(r' \+ | \|\| ', name)
    return tuple(re.sub(r'^PWN\((.*)\)$', r'\1', part) for part in parts)
