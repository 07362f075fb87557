# SPDX-License-Identifier: Apache-2.0
"""
Write an OpenVINO network (IR: an .xml and its .bin) as ONNX, and compare the two's outputs.

For networks of the operators below, with fixed shapes, such as Open Model Zoo's
road-segmentation-adas-0001. Needs openvino, onnx and onnxruntime.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
import sys
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without being installed

from trt_segmentation.errors import InputError
from trt_segmentation.system import scripts

if __name__ == '__main__':
    scripts.end_in_a_line('pip install openvino onnx onnxruntime')

import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import onnxruntime
import openvino

MAX_DIFFERENCE = 1e-3  # of the outputs; two runtimes add in different orders
_OPSET = 17


def main() -> int:
    """Convert, compare on an image or on random pixels, and write the file if they agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', type=Path, metavar='MODEL.xml')
    parser.add_argument('output', type=Path, metavar='MODEL.onnx')
    parser.add_argument('--image', metavar='FILE',
                        help='compare on this picture, scaled to the input, BGR, 0..255')
    arguments = parser.parse_args()
    core = openvino.Core()
    arguments.model.open('rb').close()  # OpenVINO's own errors are of many lines
    try:
        network = core.read_model(arguments.model)
    except RuntimeError as error:
        raise InputError(f'{arguments.model}: cannot be read: '
                         f'{str(error).strip().splitlines()[-1]}') from None
    model = convert(network)
    difference, same = compare(core, network, model, pixels(network, arguments.image))
    print(f'compared   {len(model.graph.node)} nodes: the largest difference of an output is '
          f'{difference:.2g}, and {same:.4%} of the pixels have the same class')
    if not difference <= MAX_DIFFERENCE:
        print(f'from_openvino: the outputs differ by more than {MAX_DIFFERENCE}: not written',
              file=sys.stderr)
        return 1
    onnx.save(model, arguments.output)
    print(f'written    {arguments.output}')
    return 0


def convert(network: openvino.Model) -> onnx.ModelProto:
    """
    Return an OpenVINO network of fixed shapes as an ONNX model in float32.

    :raises SystemExit: for an operator that is not known here
    """
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {}
    inputs, outputs = [], []
    names: dict[str, str] = {}  # of OpenVINO's nodes: the tensor that each makes
    for op in network.get_ordered_ops():
        kind, name = op.get_type_name(), op.get_friendly_name()
        sources = [names.get(value.get_node().get_friendly_name(), '')
                   for value in op.input_values()]
        if kind == 'Result':
            outputs.append(_value(sources[0], op.input(0)))
        elif kind == 'Convert':  # between half and single precision: all is single here
            names[name] = sources[0]
        elif kind == 'Constant':
            names[name] = name
            weights[name] = np.array(op.get_data())
        elif kind == 'Parameter':
            names[name] = name
            inputs.append(_value(name, op.output(0)))
        elif not op.output(0).get_element_type().is_real():
            continue  # whole numbers make shapes, which are fixed here
        elif kind in _OPERATORS:
            names[name] = name
            if kind == 'Add' and _becomes_bias(op, sources, nodes, weights):
                names[name] = sources[0]
                continue
            nodes.append(_OPERATORS[kind](op, sources, name, weights))
        else:
            sys.exit(f'from_openvino: {name}: no rule for operator {kind} '
                     f'(there are {", ".join(_OPERATORS)})')
    used = {tensor for node in nodes for tensor in node.input}
    graph = helper.make_graph(
        nodes, 'openvino', inputs, outputs,
        [numpy_helper.from_array(value.astype(np.float32) if value.dtype.kind == 'f' else value,
                                 name) for name, value in weights.items() if name in used])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', _OPSET)],
                              ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def _becomes_bias(op: Any, sources: list[str], nodes: list[onnx.NodeProto],
                  weights: dict[str, np.ndarray]) -> bool:
    """Give the last Conv what is added to its channels, if that is all; tell whether it was."""
    channels = (1, op.output(0).get_shape()[1], 1, 1)
    producer = op.input_value(0)
    if (not nodes or nodes[-1].op_type != 'Conv' or [*nodes[-1].output] != sources[:1]
            or len(nodes[-1].input) != 2 or len(producer.get_target_inputs()) != 1
            or sources[1] not in weights or weights[sources[1]].shape != channels):
        return False
    bias = f'{sources[1]}/bias'
    weights[bias] = weights[sources[1]].ravel()
    nodes[-1].input.append(bias)
    return True


def _convolution(op: Any, sources: list[str], name: str, weights: dict[str, np.ndarray]
                 ) -> onnx.NodeProto:
    """Return a Conv; the groups are the first axis of a GroupConvolution's weights."""
    attributes = op.get_attributes()
    groups = 1
    if op.get_type_name() == 'GroupConvolution':
        value = weights[sources[1]]
        groups, source = value.shape[0], f'{sources[1]}/grouped'
        weights[source] = value.reshape(-1, *value.shape[2:])
        sources = [sources[0], source]
    return helper.make_node('Conv', sources, [name], name, strides=attributes['strides'],
                            dilations=attributes['dilations'], pads=_pads(attributes),
                            group=groups)


def _pool(op: Any, sources: list[str], name: str, weights: dict[str, np.ndarray]
          ) -> onnx.NodeProto:
    """Return a MaxPool or an AveragePool."""
    attributes = op.get_attributes()
    kind = {'MaxPool': 'MaxPool', 'AvgPool': 'AveragePool'}[op.get_type_name()]
    more = ({'count_include_pad': int(not attributes['exclude-pad'])}
            if kind == 'AveragePool' else {})
    return helper.make_node(kind, sources[:1], [name], name, kernel_shape=attributes['kernel'],
                            strides=attributes['strides'], pads=_pads(attributes),
                            ceil_mode=int(attributes['rounding_type'] == 'ceil'), **more)


def _resize(op: Any, sources: list[str], name: str, weights: dict[str, np.ndarray]
            ) -> onnx.NodeProto:
    """Return a Resize to the fixed size, of Interpolate's first version or a later one."""
    attributes = op.get_attributes()
    mode = attributes['mode']
    place = attributes.get('coordinate_transformation_mode', 'align_corners' if attributes.get(
        'align_corners') else 'half_pixel')
    if mode not in ('linear', 'linear_onnx') or place not in ('align_corners', 'half_pixel'):
        sys.exit(f'from_openvino: {name}: no rule for Interpolate {mode}, {place}')
    size = f'{name}/size'
    weights[size] = np.array(op.output(0).get_shape(), np.int64)
    return helper.make_node('Resize', [sources[0], '', '', size], [name], name, mode='linear',
                            coordinate_transformation_mode=place)


def _plain(kind: str) -> Callable[..., onnx.NodeProto]:
    """Return what writes an operator that needs no attributes but perhaps an axis."""
    def write(op: Any, sources: list[str], name: str, weights: dict[str, np.ndarray]
              ) -> onnx.NodeProto:
        axis = op.get_attributes().get('axis')
        return helper.make_node(kind, sources, [name], name,
                                **({} if axis is None else {'axis': axis}))
    return write


_OPERATORS = {
    'Convolution': _convolution, 'GroupConvolution': _convolution, 'MaxPool': _pool,
    'AvgPool': _pool, 'Interpolate': _resize, 'Add': _plain('Add'), 'Relu': _plain('Relu'),
    'Softmax': _plain('Softmax'),
}


def _pads(attributes: dict[str, Any]) -> list[int]:
    """Return ONNX's pads: the beginnings, then the ends."""
    return [*attributes['pads_begin'], *attributes['pads_end']]


def _value(name: str, port: Any) -> onnx.ValueInfoProto:
    """Return the description of an input or output, in float32."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(port.get_shape()))


def pixels(network: openvino.Model, image: str | None) -> np.ndarray:
    """Return float32 (1, 3, height, width), 0..255: a picture's, or random ones of one seed."""
    _, channels, height, width = network.inputs[0].get_shape()
    if image is None:
        return np.random.default_rng(0).uniform(
            0, 255, (1, channels, height, width)).astype(np.float32)
    import cv2
    picture = cv2.imdecode(np.fromfile(image, np.uint8), cv2.IMREAD_COLOR)
    return cv2.resize(picture, (width, height)).transpose(2, 0, 1)[None].astype(np.float32)


def compare(core: openvino.Core, network: openvino.Model, model: onnx.ModelProto,
            data: np.ndarray) -> tuple[float, float]:
    """Return the largest difference of the outputs, and the share of pixels of the same class."""
    # Single precision also where the processor has bfloat16.
    compiled = core.compile_model(network, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    theirs = compiled(data)[0]
    session = onnxruntime.InferenceSession(model.SerializeToString(),
                                           providers=['CPUExecutionProvider'])
    ours = session.run(None, {session.get_inputs()[0].name: data})[0]
    return (float(np.abs(ours - theirs).max()),
            float((ours.argmax(1) == theirs.argmax(1)).mean()))


if __name__ == '__main__':
    sys.exit(main())
