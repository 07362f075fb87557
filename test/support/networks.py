# SPDX-License-Identifier: Apache-2.0
"""Small ONNX networks and bundles for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import yaml

from trt_segmentation.bundles import form, manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.cache import Cache
from trt_segmentation.system import files


class Builder:
    """Adds layers to a graph one after the other; each method returns its output's name."""

    def __init__(self, size=(32, 64), seed=0, channels=3):
        self.rng = np.random.default_rng(seed)
        self.size = size
        self.nodes, self.initializers = [], []
        self.input = helper.make_tensor_value_info(
            'image', TensorProto.FLOAT, ['N', channels, *size])

    def constant(self, name, value):
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op, inputs, output, **attributes):
        self.nodes.append(helper.make_node(op, inputs, [output], name=f'{output}_node',
                                           **attributes))
        return output

    def conv(self, data, output, inputs, outputs, kernel=3, group=1, bias=True, **attributes):
        scale = (2 / (inputs // group * kernel * kernel)) ** 0.5
        weight = self.rng.normal(0, scale, (outputs, inputs // group, kernel, kernel))
        names = [data, self.constant(f'{output}_weight', weight.astype(np.float32))]
        if bias:
            names.append(self.constant(f'{output}_bias',
                                       self.rng.normal(0, .1, outputs).astype(np.float32)))
        attributes.setdefault('pads', [kernel // 2] * 4)
        return self.node('Conv', names, output, group=group, kernel_shape=[kernel, kernel],
                         **attributes)

    def conv_relu(self, data, output, *args, **attributes):
        return self.node('Relu', [self.conv(data, f'{output}_conv', *args, **attributes)], output)

    def transposed(self, data, output, inputs, outputs, stride=2):
        kernel = 2 * stride
        weight = self.rng.normal(0, .3, (inputs, outputs, kernel, kernel)).astype(np.float32)
        return self.node('ConvTranspose', [data, self.constant(f'{output}_weight', weight)],
                         output, strides=[stride, stride], pads=[stride // 2] * 4,
                         kernel_shape=[kernel, kernel])

    def model(self, output, opset=17, shape=None, dtype=TensorProto.FLOAT):
        graph = helper.make_graph(
            self.nodes, 'network', [self.input],
            [helper.make_tensor_value_info(output, dtype, shape)], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)])
        model.ir_version = 8
        if shape is None:
            model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model)
        return model


def fcn(size=(32, 64), classes=19, seed=0):
    """Return a small FCN: stride 4, max pooling, a skip and a transposed convolution."""
    b = Builder(size, seed)
    x = b.conv_relu('image', 'relu1', 3, 8, strides=[2, 2])
    x = b.node('MaxPool', [x], 'pool1', kernel_shape=[2, 2], strides=[2, 2])
    skip = x = b.conv_relu(x, 'relu2', 8, 16)
    x = b.conv_relu(x, 'relu3', 16, 16, strides=[2, 2])
    x = b.conv(x, 'score3', 16, classes, kernel=1)
    x = b.transposed(x, 'up3', classes, classes)
    x = b.node('Add', [x, b.conv(skip, 'score2', 16, classes, kernel=1)], 'logits')
    return b.model('logits', shape=['N', classes, size[0] // 4, size[1] // 4])


def five_classes(path: Path) -> Path:
    """Write a bundle of the small FCN that has five classes; return its path."""
    return write_bundle(path, fcn(classes=5), labels=[
        {'name': f'class {i}', 'train_id': i, 'color': [i, i, i], 'category': 'any'}
        for i in range(5)])


def write_bundle(path: Path, model: onnx.ModelProto, **sections) -> Path:
    """Write a bundle with `model` and a model.yaml of the given sections; return its path."""
    path.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path / 'model.onnx')
    document = {'version': 1, 'model': 'model.onnx', **sections}
    (path / 'model.yaml').write_text(yaml.safe_dump(document))
    return path


def write_calibrated_bundle(path: Path, model: onnx.ModelProto, scales, **sections) -> Bundle:
    """Write a sealed bundle whose cache has the given scales (amax/127 by tensor)."""
    bundle = Bundle.open(write_bundle(path, model, **sections), verify=False)
    found = Cache('8601', 'EntropyCalibration2', scales)
    found.write(bundle.cache_path)
    bundle.manifest_path.write_text(form.to_json(manifest.new(bundle, found)))
    files.write_sums(path)
    return Bundle.open(path)


def infer(path: Path, tensor: np.ndarray) -> np.ndarray:
    """Return the first output of a network."""
    import onnxruntime
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return session.run(None, {session.get_inputs()[0].name: tensor})[0]


def infer_all(model: onnx.ModelProto, tensor: np.ndarray) -> dict[str, np.ndarray]:
    """Return every intermediate tensor of a float network."""
    import onnxruntime
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    names = [name for node in copy.graph.node for name in node.output]
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(copy.SerializeToString(),
                                           providers=['CPUExecutionProvider'])
    values = dict(zip(names, session.run(names, {'image': tensor})))
    return {'image': tensor, **values}


def amax_scales(model: onnx.ModelProto, tensor: np.ndarray) -> dict[str, float]:
    """Return amax/127 of every tensor on one input: the min-max calibration, by its formula."""
    return {name: float(np.abs(value).max() / 127)
            for name, value in infer_all(model, tensor).items()}
