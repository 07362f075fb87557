# SPDX-License-Identifier: Apache-2.0
"""
Networks of TensorFlow as ONNX: frozen graphs, SavedModels and Keras files, through tf2onnx.

Each becomes a graph with a fixed size of the image, its variables as constants. Imported in a
process of its own only: TensorFlow takes seconds, threads and hundreds of megabytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

from trt_segmentation.networks.fold import fold_padding
from trt_segmentation.networks.frameworks.child import (
    random_pixels,
    save,
    save_reference,
    sides,
    Wrong,
)
from trt_segmentation.networks.opset import NEWEST

# What may stand between a convolution of blocks and the end of the blocks: each pixel by itself,
# these alone or with a constant for each channel.
_BY_PIXEL = ('Elu', 'Identity', 'Relu', 'Relu6')
_BY_CHANNEL = ('Add', 'AddV2', 'BiasAdd', 'FusedBatchNorm', 'FusedBatchNormV2', 'FusedBatchNormV3',
               'Mul', 'Sub')
_CONVOLUTIONS = ('Conv2D', 'DepthwiseConv2dNative')
_VARIABLES = ('VarHandleOp', 'Variable', 'VariableV2')
_NO_OUTPUTS = ('Assert', 'Const', 'NoOp', 'Placeholder', 'PlaceholderWithDefault')


class _Frozen(NamedTuple):
    """A graph without variables, its input, and its outputs by the names they are to have."""

    graph: Any
    name: str
    source: Any
    targets: dict[str, Any]


def convert(task: dict[str, Any]) -> dict[str, Any]:
    """Write the ONNX file, and what TensorFlow gives on random pixels; return what to answer."""
    import tensorflow as tf
    import tf2onnx
    tf.get_logger().setLevel('ERROR')
    path = Path(task['model'])
    load = (_saved_model if path.is_dir() else _graph if path.suffix.lower() == '.pb' else _keras)
    frozen = load(tf, path, task)
    definition = frozen.graph.as_graph_def()
    end_blocks_early(definition, {tensor.op.name for tensor in frozen.targets.values()})
    proto, _ = tf2onnx.convert.from_graph_def(
        definition, input_names=[frozen.source.name], opset=NEWEST,
        output_names=[tensor.name for tensor in frozen.targets.values()])
    fold_padding(proto)
    names = save(task, proto, {frozen.source.name: frozen.name} | {
        tensor.name: name for name, tensor in frozen.targets.items()})
    answer = {'versions': f'tf2onnx {tf2onnx.__version__} with TensorFlow {tf.__version__}'}
    tensor = random_pixels(frozen.source.shape.as_list(),
                           frozen.source.dtype.as_numpy_dtype.__name__)
    try:
        with tf.compat.v1.Session(graph=frozen.graph) as session:
            values = session.run([target.name for target in frozen.targets.values()],
                                 {frozen.source.name: tensor})
    except tf.errors.OpError as error:  # channels first, on a CPU
        return {**answer, 'not_run': error.message.strip().splitlines()[0][:200]}
    save_reference(task, tensor, {
        names[target.name]: value for target, value in zip(frozen.targets.values(), values)})
    return answer


def _keras(tf: Any, path: Path, task: dict[str, Any]) -> _Frozen:
    """Read a Keras file; Lambda layers, which hold code, are refused by Keras itself."""
    import keras
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except ImportError as error:
        raise ValueError(str(error)) from None
    if len(model.inputs) != 1:
        raise Wrong(f'it has {len(model.inputs)} inputs; expected one, the image')
    name = model.inputs[0].name
    return _frozen(tf, lambda tensor: model(tensor, training=False), name,
                   tf.TensorSpec(model.inputs[0].shape, model.inputs[0].dtype),
                   list(model.output_names), task)


def _saved_model(tf: Any, path: Path, task: dict[str, Any]) -> _Frozen:
    """Read a SavedModel: what it serves."""
    model = tf.saved_model.load(str(path))  # its variables live as long as it does
    signatures = model.signatures
    if not signatures:
        raise Wrong('it has no signature; save it with signatures=, or with model.export of Keras')
    key = 'serving_default' if 'serving_default' in signatures else sorted(signatures)[0]
    function = signatures[key]
    inputs = function.structured_input_signature[1]
    name: str = task['input'] or next(iter(inputs), '')
    if len(inputs) != 1 or name not in inputs:
        raise Wrong(f'its signature {key!r} has the inputs {", ".join(sorted(inputs)) or "none"}; '
                    'expected one, the image')
    return _frozen(tf, lambda tensor: function(**{name: tensor}), name, inputs[name],
                   sorted(function.structured_outputs), task)


def _frozen(tf: Any, function: Callable[[Any], Any], name: str, spec: Any, outputs: list[str],
            task: dict[str, Any]) -> _Frozen:
    """Return the graph of a function for one size, its variables as constants."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
    fixed = tf.TensorSpec(_fixed(spec.shape, name, task), spec.dtype, 'image')
    concrete = tf.function(function, autograph=False).get_concrete_function(fixed)
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    if len(outputs) != len(frozen.outputs):
        outputs = [f'output_{i}' for i in range(len(frozen.outputs))]
    return _Frozen(frozen.graph, name, frozen.inputs[0], dict(zip(outputs, frozen.outputs)))


def _graph(tf: Any, path: Path, task: dict[str, Any]) -> _Frozen:
    """Read a frozen graph, cut where the task says; else from its placeholder to its ends."""
    definition = tf.compat.v1.GraphDef()
    try:
        definition.ParseFromString(path.read_bytes())
    except Exception:  # protobuf's own, by whichever implementation is installed
        definition.Clear()
    if not definition.node:
        raise Wrong('it is no graph of TensorFlow, or a damaged one; of a SavedModel name the '
                    'directory')
    if variable := next((node.name for node in definition.node if node.op in _VARIABLES), None):
        raise Wrong(f'it has variables ({variable!r}), whose values are in another file: freeze '
                    'it, or name the SavedModel')
    with tf.Graph().as_default() as whole:
        tf.import_graph_def(definition, name='')
    starts = [op.outputs[0] for op in whole.get_operations() if op.type == 'Placeholder']
    source = _one(whole, task['input'], starts, 'input')
    targets = [_one(whole, task['target'], [], 'output')] if task['target'] else _ends(whole)
    if not targets:
        raise Wrong('it has no output of three or four axes; name one with --output')
    with tf.Graph().as_default() as graph:
        placeholder = tf.compat.v1.placeholder(
            source.dtype, _fixed(source.shape, _short(source), task), 'trt_segmentation_image')
        found = tf.import_graph_def(definition, {source.name: placeholder},
                                    [target.name for target in targets], '')
    return _Frozen(graph, _short(source), placeholder,
                   {_short(target): tensor for target, tensor in zip(targets, found)})


def _one(graph: Any, name: str | None, tensors: list[Any], what: str) -> Any:
    """Return the tensor that is named, or the only one there is."""
    if name is None:
        if len(tensors) != 1:
            raise Wrong(f'it has {len(tensors)} {what}s; name one with --{what}: '
                        f'{", ".join(map(_short, tensors))}')
        return tensors[0]
    try:
        return graph.get_tensor_by_name(name if ':' in name else f'{name}:0')
    except (KeyError, ValueError):
        listed = f'; expected one of {", ".join(map(_short, tensors))}' if tensors else ''
        raise Wrong(f'it has no tensor {name!r}{listed}') from None


def _ends(graph: Any) -> list[Any]:
    """Return the tensors that nothing reads and that may be masks."""
    return [op.outputs[0] for op in graph.get_operations()
            if op.type not in _NO_OUTPUTS and len(op.outputs) == 1
            and not op.outputs[0].consumers() and op.outputs[0].shape.rank in (None, 3, 4)]


def _short(tensor: Any) -> str:
    """Return a tensor's name, without the number of an operation's first output."""
    return str(tensor.name).removesuffix(':0')


def _fixed(shape: Any, name: str, task: dict[str, Any]) -> list[int]:
    """Return the shape of an input for one image of one size."""
    dims = [None] * 4 if shape is None else list(shape) if isinstance(shape, tuple) else (
        [None] * 4 if shape.rank is None else shape.as_list())
    if len(dims) != 4:
        raise Wrong(f'input {name!r} has {len(dims)} axes; expected four, [N, H, W, 3]')
    if dims[0] not in (None, 1):
        raise Wrong(f'input {name!r} has a fixed batch of {dims[0]}; expected 1 or a free one')
    first = 2 if dims[1] == 3 and dims[3] != 3 else 1
    found = sides(dims[first:first + 2], name, task)
    return [1, 3, *found] if first == 2 else [1, *found, 3]


def end_blocks_early(definition: Any, kept: Collection[str]) -> int:
    """
    Let the blocks of a dilated convolution end where the convolution does, in place.

    Before it had dilation itself, TensorFlow wrote SpaceToBatchND, Conv2D, BatchToSpaceND, and
    some graphs have bias, normalization and activation before the last of these. They treat each
    pixel by itself, so they may as well come after it, and then tf2onnx makes one dilated Conv of
    the three.

    :param kept: operations whose result must stay what it is
    :returns: how many there were
    """
    nodes = {node.name: node for node in definition.node}
    readers: Counter[str] = Counter(_operation(name) for node in definition.node
                                    for name in node.input)
    count = 0
    for end in definition.node:
        if end.op != 'BatchToSpaceND' or end.name in kept:
            continue
        chain, node = [], nodes[_operation(end.input[0])]
        while _is_by_pixel(node, nodes) and readers[node.name] == 1:
            chain.append(node)
            node = nodes[_operation(node.input[0])]
        if not chain or node.op not in _CONVOLUTIONS or readers[node.name] != 1:
            continue
        for reader in definition.node:
            for i, name in enumerate(reader.input):
                if _operation(name) == end.name:
                    reader.input[i] = chain[0].name
        chain[-1].input[0], end.input[0] = end.name, node.name
        count += 1
    return count


def _operation(name: str) -> str:
    """Return the name of the operation that an input of another names."""
    return name.removeprefix('^').partition(':')[0]


def _is_by_pixel(node: Any, nodes: dict[str, Any]) -> bool:
    """Tell whether an operation does the same with each pixel, whatever is beside it."""
    if node.op in _BY_PIXEL:
        return True
    given = {key: value for key, value in node.attr.items()
             if key in ('is_training', 'data_format')}
    if node.op not in _BY_CHANNEL or any(
            value.b or value.s not in (b'', b'NHWC') for value in given.values()):
        return False
    others = [nodes[_operation(name)] for name in node.input[1:]]
    while any(other.op == 'Identity' for other in others):  # as a variable that was read
        others = [nodes[_operation(other.input[0])] if other.op == 'Identity' else other
                  for other in others]
    return all(other.op == 'Const' and len(other.attr['value'].tensor.tensor_shape.dim) <= 1
               for other in others)
