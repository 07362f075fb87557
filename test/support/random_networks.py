# SPDX-License-Identifier: Apache-2.0
"""Random small networks for hypothesis, and what derived ones must compute like."""

from hypothesis import strategies as st
import numpy as np
from support.networks import Builder, infer_all

SIZE = (16, 16)


@st.composite
def networks(draw, kinds):
    """
    Draw a network of 2 to 8 layers, each of which reads one of the last three tensors.

    Two of three kernels are 1x1, which read without padding.

    :param kinds: which layers there may be: conv, conv_relu, depthwise, residual, relu, concat,
        add, mul
    """
    b = Builder(size=SIZE, seed=draw(st.integers(0, 99)))
    tensors = [('image', 3)]
    for i in range(draw(st.integers(2, 8))):
        name, channels = draw(st.sampled_from(tensors[-3:]))
        kind = draw(st.sampled_from(kinds))
        made, kernel = channels, draw(st.sampled_from([1, 1, 3]))
        if kind in ('conv', 'conv_relu'):
            made = draw(st.integers(1, 6))
            getattr(b, kind)(name, f't{i}', channels, made, kernel,
                             bias=draw(st.booleans()))
        elif kind == 'residual':
            b.conv(name, f't{i}_conv', channels, channels, kernel)
            b.node('Add', [f't{i}_conv', name], f't{i}')
        elif kind == 'depthwise':
            made = channels * draw(st.integers(1, 2))
            b.conv(name, f't{i}', channels, made, kernel, group=channels)
        elif kind == 'concat':
            other, width = draw(st.sampled_from(tensors))
            made = channels + width
            b.node('Concat', [name, other], f't{i}', axis=1)
        elif kind == 'relu':
            b.node('Relu', [name], f't{i}')
        else:
            other, _ = draw(st.sampled_from([each for each in tensors if each[1] == channels]))
            b.node(kind.title(), [name, other], f't{i}')
        tensors.append((f't{i}', made))
    output, channels = tensors[-1]
    return b.model(output, shape=['N', channels, *SIZE])


def assert_same_output(derived, model, image):
    """Assert that a derived network gives what the network gives, but for float32's rounding."""
    output = model.graph.output[0].name
    expected, found = (infer_all(network, image)[output] for network in (model, derived))
    np.testing.assert_allclose(found, expected, rtol=0,
                               atol=1e-4 * max(1.0, float(np.abs(expected).max())))
