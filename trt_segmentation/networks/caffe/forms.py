# SPDX-License-Identifier: Apache-2.0
"""What the layers of Caffe without weights compute: sums, cuts, forms, choices."""

from __future__ import annotations

import math

import numpy as np

from trt_segmentation.networks.caffe.builder import Builder, Layer, Stop
from trt_segmentation.networks.caffe.files import Message


def _eltwise(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
             blobs: list[np.ndarray], name: str) -> None:
    param = layer.message('eltwise_param')
    operation = {'0': 'PROD', '1': 'SUM', '2': 'MAX'}.get(
        f'{param.integer("operation", 1)}', 'SUM') if param.numbers('operation') else (
        param.text('operation', 'SUM'))
    op = {'SUM': 'Add', 'PROD': 'Mul', 'MAX': 'Max'}[operation]
    shape = g.shapes[bottoms[0]]
    if any(g.shapes[bottom] != shape for bottom in bottoms):
        raise Stop('its inputs have the shapes '
                   + ' and '.join('x'.join(map(str, g.shapes[bottom])) for bottom in bottoms))
    inputs = list(bottoms)
    for i, factor in enumerate(param.numbers('coeff')):
        if factor != 1:
            inputs[i] = f'{tops[0]}/{i}'
            g.node('Mul', [bottoms[i], g.constant(f'{name}/{i}', np.float32(factor))], inputs[i],
                   shape)
    first, *rest = inputs
    for i, other in enumerate(rest):
        target = tops[0] if i == len(rest) - 1 else f'{tops[0]}/sum{i}'
        g.node(op, [first, other], target, shape)
        first = target


def _axis(param: Message, rank: int, name: str = 'axis', default: int = 1) -> int:
    """Return an axis counted from the front."""
    return param.integer(name, default) % rank


def _concat(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
            blobs: list[np.ndarray], name: str) -> None:
    param = layer.message('concat_param')
    shape = list(g.shapes[bottoms[0]])
    axis = _axis(param, len(shape), 'concat_dim' if 'concat_dim' in param.fields else 'axis')
    shape[axis] = sum(g.shapes[bottom][axis] for bottom in bottoms)
    g.node('Concat', bottoms, tops[0], tuple(shape), axis=axis)


def _slice(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
           blobs: list[np.ndarray], name: str) -> None:
    param = layer.message('slice_param')
    shape = g.shapes[bottoms[0]]
    axis = _axis(param, len(shape), 'slice_dim' if 'slice_dim' in param.fields else 'axis')
    points = [int(point) for point in param.numbers('slice_point')] or [
        shape[axis] * i // len(tops) for i in range(1, len(tops))]
    parts = [b - a for a, b in zip([0, *points], [*points, shape[axis]])]
    if len(parts) != len(tops):
        raise Stop(f'it has {len(points)} points for {len(tops)} outputs')
    g.node('Split', [bottoms[0], g.constant(f'{name}/parts', parts)], tops,
           [(*shape[:axis], part, *shape[axis + 1:]) for part in parts], axis=axis)


def _crop(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
          blobs: list[np.ndarray], name: str) -> None:
    param = layer.message('crop_param')
    shape, like = g.shapes[bottoms[0]], g.shapes[bottoms[1]]
    axes = list(range(_axis(param, len(shape), default=2), len(shape)))
    offsets = [int(offset) for offset in param.numbers('offset')] or [0]
    offsets = offsets * len(axes) if len(offsets) == 1 else offsets
    if len(offsets) != len(axes):
        raise Stop(f'it has {len(offsets)} offsets for {len(axes)} axes')
    ends = [offset + like[axis] for offset, axis in zip(offsets, axes)]
    if any(end > shape[axis] for end, axis in zip(ends, axes)):
        raise Stop(f'it cuts {"x".join(str(like[axis]) for axis in axes)} out of '
                   f'{"x".join(str(shape[axis]) for axis in axes)} from {offsets} on')
    g.node('Slice', [bottoms[0], g.constant(f'{name}/starts', offsets),
                     g.constant(f'{name}/ends', ends), g.constant(f'{name}/axes', axes)],
           tops[0], (*shape[:axes[0]], *(like[axis] for axis in axes)))


def _softmax(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
             blobs: list[np.ndarray], name: str) -> None:
    shape = g.shapes[bottoms[0]]
    g.node('Softmax', bottoms[:1], tops[0], shape,
           axis=_axis(layer.message('softmax_param'), len(shape)))


def _argmax(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
            blobs: list[np.ndarray], name: str) -> None:
    param = layer.message('argmax_param')
    if param.integer('top_k', 1) != 1 or param.flag('out_max_val', False) or (
            'axis' not in param.fields):
        raise Stop('it gives more than the best channel of each pixel; expected axis: 1 and '
                   'nothing else')
    shape = list(g.shapes[bottoms[0]])
    axis = _axis(param, len(shape))
    shape[axis] = 1
    g.node('ArgMax', bottoms, tops[0], tuple(shape), axis=axis, keepdims=1)


def _interp(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
            blobs: list[np.ndarray], name: str) -> None:
    """Resize bilinearly with the corners on each other, as DeepLab's and PSPNet's layer does."""
    param = layer.message('interp_param')
    if any(param.integer(key, 0) for key in ('pad_beg', 'pad_end')):
        raise Stop('it crops before it resizes (pad_beg, pad_end)')
    shape = g.shapes[bottoms[0]]
    height, width = shape[2:]
    if len(bottoms) > 1:
        height, width = g.shapes[bottoms[1]][2:]
    elif 'height' in param.fields:
        height, width = param.integer('height', 0), param.integer('width', 0)
    else:
        if shrink := param.integer('shrink_factor', 1):
            height, width = ((side - 1) // shrink + 1 for side in (height, width))
        if zoom := param.integer('zoom_factor', 1):
            height, width = (side + (side - 1) * (zoom - 1) for side in (height, width))
    size = (*shape[:2], height, width)
    g.node('Resize', [bottoms[0], '', '', g.constant(f'{name}/sizes', list(size))], tops[0], size,
           mode='linear', coordinate_transformation_mode='align_corners')


def _reshape(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
             blobs: list[np.ndarray], name: str) -> None:
    param = layer.message('reshape_param')
    if param.integer('axis', 0) or param.integer('num_axes', -1) != -1:
        raise Stop('it reshapes some axes only (axis, num_axes)')
    old = g.shapes[bottoms[0]]
    new = [int(dim) for dim in param.message('shape').numbers('dim')]
    filled = [old[i] if dim == 0 else dim for i, dim in enumerate(new)]
    known = math.prod(dim for dim in filled if dim != -1)
    shape = tuple(math.prod(old) // max(known, 1) if dim == -1 else dim for dim in filled)
    g.node('Reshape', [bottoms[0], g.constant(f'{name}/shape', list(shape))], tops[0], shape)


def _flatten(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
             blobs: list[np.ndarray], name: str) -> None:
    old = g.shapes[bottoms[0]]
    param = layer.message('flatten_param')
    first, last = _axis(param, len(old)), _axis(param, len(old), 'end_axis', -1)
    shape = (*old[:first], math.prod(old[first:last + 1]), *old[last + 1:])
    g.node('Reshape', [bottoms[0], g.constant(f'{name}/shape', list(shape))], tops[0], shape)


def _permute(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
             blobs: list[np.ndarray], name: str) -> None:
    old = g.shapes[bottoms[0]]
    order = [int(axis) for axis in layer.message('permute_param').numbers('order')]
    order += [axis for axis in range(len(old)) if axis not in order]
    g.node('Transpose', bottoms, tops[0], tuple(old[axis] for axis in order), perm=order)


def _lrn(g: Builder, layer: Message, bottoms: list[str], tops: list[str],
         blobs: list[np.ndarray], name: str) -> None:
    param = layer.message('lrn_param')
    if param.text('norm_region', 'ACROSS_CHANNELS') != 'ACROSS_CHANNELS':
        raise Stop('it normalizes within channels; expected ACROSS_CHANNELS')
    g.node('LRN', bottoms, tops[0], g.shapes[bottoms[0]], size=param.integer('local_size', 5),
           alpha=param.number('alpha', 1), beta=param.number('beta', .75),
           bias=param.number('k', 1))


FORMS: dict[str, Layer] = {
    'ArgMax': _argmax, 'Concat': _concat, 'Crop': _crop, 'Eltwise': _eltwise,
    'Flatten': _flatten, 'Interp': _interp, 'LRN': _lrn, 'Permute': _permute,
    'Reshape': _reshape, 'Slice': _slice, 'Softmax': _softmax,
}
