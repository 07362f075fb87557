# SPDX-License-Identifier: Apache-2.0
"""
Networks of PyTorch as ONNX: exported programs (.pt2) and TorchScript, through torch.onnx.

Imported in a process of its own only: torch takes seconds and hundreds of megabytes.
"""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from typing import Any
import zipfile

from trt_segmentation.networks.frameworks.child import (
    random_pixels,
    save,
    save_reference,
    sides,
    Wrong,
)
from trt_segmentation.networks.opset import NEWEST

_OPSET_OF_PROGRAMS = 18  # below it, the exporter would convert its own result, and often cannot


def convert(task: dict[str, Any]) -> dict[str, Any]:
    """Write the ONNX file, and what PyTorch gives on random pixels; return what to answer."""
    import torch
    torch.set_grad_enabled(False)
    with zipfile.ZipFile(task['model']) as archive:
        scripted = any(name.partition('/')[2] == 'constants.pkl' for name in archive.namelist())
    answer = {'versions': f'torch.onnx of PyTorch {torch.__version__}'}
    if scripted:
        proto, names, tensor, outputs = _script(torch, task)
    else:
        import onnxscript
        answer['versions'] += f' with onnxscript {onnxscript.__version__}'
        program = torch.export.load(task['model'])
        if training := _in_training_mode(program):
            answer['training'] = training
        proto, names, tensor, outputs = _program(torch, program, task)
    before = [value.name for value in proto.graph.output]
    final = save(task, proto, names)
    save_reference(task, tensor.numpy(), {
        final[name]: output.numpy() for name, output in zip(before, outputs)})
    return answer


def _in_training_mode(program: Any) -> str:
    """Return which operators of a program train, and how many; ONNX's exporter drops that."""
    found = Counter(
        node.target.__name__.partition('.')[0] for node in program.graph.nodes
        if any(argument.name in ('train', 'training') and value is True
               for argument, value in zip(_parameters(node.target), node.args)))
    return ', '.join(f'{name} ({count})' for name, count in sorted(found.items()))


def _parameters(operator: Any) -> list[Any]:
    """Return the parameters of what a node calls, none if it is no operator of PyTorch."""
    return list(operator._schema.arguments) if hasattr(operator, '_schema') else []


def _program(torch: Any, program: Any, task: dict[str, Any]
             ) -> tuple[Any, dict[str, str], Any, list[Any]]:
    """Return a program's ONNX model, names, a tensor and what it gives of it."""
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1:
        raise Wrong(f'it has {len(inputs)} inputs; expected one, the image')
    value = next(node.meta['val'] for node in program.graph.nodes if node.name == inputs[0])
    dims = [dim if isinstance(dim, int) else None for dim in value.shape]
    shape = _fixed(dims, inputs[0], task)
    tensor = torch.from_numpy(random_pixels(shape, str(value.dtype).removeprefix('torch.')))
    given = program.module()(tensor)
    outputs = _outputs(torch, given)
    proto = torch.onnx.export(program, (), dynamo=True, opset_version=_OPSET_OF_PROGRAMS,
                              verbose=False).model_proto
    return proto, _names(proto, inputs[0], outputs), tensor, list(outputs.values())


def _script(torch: Any, task: dict[str, Any]) -> tuple[Any, dict[str, str], Any, list[Any]]:
    """Read a TorchScript file; return the same."""
    module = torch.jit.load(task['model'], map_location='cpu').eval()
    arguments = [argument.name for argument in module.forward.schema.arguments[1:]]
    if not arguments:
        raise Wrong('its forward takes nothing; expected the image')
    shape = _fixed([None, 3, None, None], arguments[0], task)
    tensor = torch.from_numpy(random_pixels(shape, 'float32'))
    outputs = _outputs(torch, module(tensor))

    class Flat(torch.nn.Module):  # type: ignore[misc]
        """The network with a tuple of tensors as its result, which is what is exported."""

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, image: Any) -> Any:
            return tuple(_outputs(torch, self.module(image)).values())

    # Traced once more: the exporter takes no dictionary, and traces no module of another kind.
    flat = torch.jit.trace(Flat().eval(), tensor)
    written = BytesIO()
    torch.onnx.export(flat, (tensor,), written, dynamo=False, opset_version=NEWEST)
    import onnx
    proto = onnx.load_from_string(written.getvalue())
    return proto, _names(proto, arguments[0], outputs), tensor, list(outputs.values())


def _outputs(torch: Any, result: Any) -> dict[str, Any]:
    """Return the tensors of a result by name: the keys of a dictionary, else their places."""
    from torch.utils import _pytree
    leaves, _ = _pytree.tree_flatten_with_path(result)
    found = {'.'.join(str(getattr(key, 'key', getattr(key, 'idx', key))) for key in path)
             or 'output': value for path, value in leaves if isinstance(value, torch.Tensor)}
    return {f'output_{name}' if name.isdigit() else name: value for name, value in found.items()}


def _names(proto: Any, argument: str, outputs: dict[str, Any]) -> dict[str, str]:
    """Return what inputs and outputs of an exported network are to be called."""
    return {proto.graph.input[0].name: argument} | {
        value.name: name for value, name in zip(proto.graph.output, outputs)}


def _fixed(dims: list[int | None], name: str, task: dict[str, Any]) -> list[int]:
    """Return the shape of an input for one image of one size."""
    if len(dims) != 4 or dims[0] not in (None, 1):
        raise Wrong(f'input {name!r} is {dims}; expected [N, 3, H, W] with a batch of 1 or a free '
                    'one')
    return [1, dims[1] or 3, *sides(dims[2:], name, task)]
