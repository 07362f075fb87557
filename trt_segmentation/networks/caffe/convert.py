# SPDX-License-Identifier: Apache-2.0
"""A network of Caffe as an ONNX model, layer by layer, for one size of its input."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trt_segmentation.errors import InputError, one_line
from trt_segmentation.networks.caffe.builder import Builder, Stop
from trt_segmentation.networks.caffe.files import Message, read_network, read_weights
from trt_segmentation.networks.caffe.layers import LAYERS
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.opset import NEWEST

_IR_VERSION = 8
_LARGEST = 16384  # of one side of the input
# The layers that give data; what they give beside the picture is for training.
_DATA = ('Input', 'Data', 'ImageData', 'HDF5Data', 'MemoryData', 'WindowData', 'DummyData',
         'ImageSegData', 'DenseImageData', 'BinSegData', 'Python')
_TRAINING = ('Accuracy', 'Silence', 'SoftmaxWithLoss', 'SigmoidCrossEntropyLoss', 'EuclideanLoss',
             'HingeLoss', 'InfogainLoss', 'MultinomialLogisticLoss', 'SegAccuracy')
_SAME = ('Dropout', 'Split')  # what they give is what they take
# Names of the old enumeration of types that are not those of today in capitals.
_OLD = {'RELU': 'ReLU', 'PRELU': 'PReLU', 'ARGMAX': 'ArgMax', 'LRN': 'LRN', 'TANH': 'TanH',
        'BNLL': 'BNLL', 'ABSVAL': 'AbsVal', 'HDF5_DATA': 'HDF5Data', 'MVN': 'MVN',
        'SOFTMAX_LOSS': 'SoftmaxWithLoss'}


def convert(prototxt: Path, caffemodel: Path, size: tuple[int, int] | None = None
            ) -> onnx.ModelProto:
    """
    Return a Caffe network as ONNX: float32 (1, C, H, W) in, with Caffe's own names of tensors.

    A blob that several layers write, each in its place, has its name from the last of them on.

    :param size: (height, width) of the input; None for that of the file
    :raises InputError: for files that cannot be read, a layer that ONNX has no operator for, or
        whose weights are missing, by its name
    """
    network, weights = read_network(prototxt), read_weights(caffemodel)
    layers = [*(_Layer(message, old=False) for message in network.messages('layer')),
              *(_Layer(message, old=True) for message in network.messages('layers'))]
    layers = [layer for layer in layers if _is_tested(layer.message)]
    if not layers:
        raise InputError(f'{prototxt}: it has no layers; expected the deploy.prototxt of a '
                         'network')
    source, shape = _input(network, layers, prototxt, size)
    graph = Builder(source, shape)
    writers: dict[str, list[int]] = defaultdict(list)
    for i, layer in enumerate(layers):
        if layer.type not in _SAME:
            for top in layer.tops:
                writers[top].append(i)
    current = {source: source}
    read: set[str] = set()
    made: dict[str, None] = {}
    for i, layer in enumerate(layers):
        if layer.type in _DATA or layer.type in _TRAINING:
            continue
        where = f'{prototxt}: layer {layer.name!r} ({layer.type})'
        if not layer.bottoms or not layer.tops:
            raise InputError(f'{where}: it has no {"output" if layer.bottoms else "input"}')
        if layer.type not in (*_SAME, *LAYERS):
            raise InputError(f'{where}: there is no operator for it in ONNX, or not one that '
                             'TensorRT has; expected a network without it')
        if missing := [name for name in layer.bottoms if name not in current]:
            raise InputError(f'{where}: nothing gives its input {missing[0]!r}')
        if layer.type in _SAME:
            current.update(dict.fromkeys(layer.tops, current[layer.bottoms[0]]))
            continue
        outputs = [top if writers[top][-1] == i and top != source else f'{top}/{layer.name}'
                   for top in layer.tops]
        try:
            LAYERS[layer.type](graph, layer.message, [current[name] for name in layer.bottoms],
                               outputs, weights.get(layer.name, []), layer.name)
        except Stop as reason:
            raise InputError(f'{where}: {reason}') from None
        except (ArithmeticError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(f'{where}: its settings are none that Caffe takes, or do not fit its '
                             f'input: {one_line(error)}') from None
        read.update(current[name] for name in layer.bottoms)
        current.update(zip(layer.tops, outputs))
        made.update(dict.fromkeys(outputs))
    ends = [name for name in made if name not in read]
    return graph.model(ends, NEWEST, _IR_VERSION)


class _Layer:
    """A layer of either generation: its name, its type of today, what it reads and gives."""

    def __init__(self, message: Message, *, old: bool):
        self.message = message
        self.name = message.text('name')
        self.type = message.text('type')
        if old:
            words = self.type.split('_')
            self.type = _OLD.get(self.type, ''.join(word.capitalize() for word in words))
        self.bottoms, self.tops = message.texts('bottom'), message.texts('top')


def _is_tested(layer: Message) -> bool:
    """Tell whether a layer is there when the network is used, not trained."""
    included = [rule.text('phase') for rule in layer.messages('include')]
    excluded = [rule.text('phase') for rule in layer.messages('exclude')]
    return ('TRAIN' not in included or 'TEST' in included) and 'TEST' not in excluded


def _input(network: Message, layers: Sequence[Any], prototxt: Path,
           size: tuple[int, int] | None) -> tuple[str, tuple[int, ...]]:
    """Return the name of the picture's blob, and its shape."""
    names = network.texts('input')
    dims = [int(dim) for dim in network.numbers('input_dim')] or [
        int(dim) for dim in network.message('input_shape').numbers('dim')]
    data = next((layer for layer in layers if layer.type in _DATA and layer.tops), None)
    if not names and data is not None:
        names = data.tops
        given = (data.message.messages('input_param') or data.message.messages('dummy_data_param')
                 or [Message()])[0].message('shape')
        dims = [int(dim) for dim in given.numbers('dim')]
        crop = data.message.message('transform_param').integer('crop_size', 0)
        if not dims and crop:
            dims = [1, 3, crop, crop]
    if not names:
        raise InputError(f'{prototxt}: it has no input; expected one, or an Input layer')
    if size is None and len(dims) < 4:
        raise InputError(f'{prototxt}: input {names[0]!r} has no size; name it with --size HEIGHT '
                         'WIDTH')
    shape = (1, dims[1] if len(dims) >= 4 else 3, *(size or dims[2:4]))
    if min(shape) < 1 or max(shape) > _LARGEST:
        raise InputError(f'{prototxt}: input {names[0]!r} has the shape '
                         f'{"x".join(map(str, shape))}; expected sides of 1 to {_LARGEST}')
    return names[0], shape


def defaults(prototxt: Path) -> dict[str, tuple[float, float, float]]:
    """Return mean and scale as the data layer of a prototxt has them, as far as it does."""
    network = read_network(prototxt)
    for layer in (*network.messages('layer'), *network.messages('layers')):
        given = layer.message('transform_param')
        if not given.fields:
            continue
        found: dict[str, tuple[float, float, float]] = {}
        mean = given.numbers('mean_value')
        if len(mean) in (1, 3):
            first, second, third = mean if len(mean) == 3 else mean * 3
            found['mean'] = (first, second, third)
        if given.numbers('scale'):
            found['scale'] = (given.number('scale', 1),) * 3
        return found
    return {}


def mean_of(mean: np.ndarray) -> tuple[float, float, float]:
    """Return a mean by channel as numbers."""
    first, second, third = (float(value) for value in mean)
    return first, second, third
