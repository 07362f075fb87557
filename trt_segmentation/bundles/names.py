# SPDX-License-Identifier: Apache-2.0
"""What a contract names of its network: layers that stay in float, tensors with a given range."""

from __future__ import annotations

from trt_segmentation.bundles.bundle import Bundle, SPEC_NAME
from trt_segmentation.errors import InputError
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.activations import activations
from trt_segmentation.networks.placement import quantized_tensors


def check_names(bundle: Bundle) -> None:
    """
    Compare calibration.exclude and calibration.ranges with the network, if they name anything.

    :raises InputError: if one names what the network does not have, or the network cannot be
        quantized
    """
    given = bundle.spec.calibration
    if not given.exclude and not given.ranges:
        return
    where = bundle.path / SPEC_NAME
    model = onnx_model.load(bundle.model_path)
    try:
        quantized_tensors(model, given.exclude)
    except InputError as error:
        raise InputError(f'{where}: {error}') from None
    if unknown := sorted(set(given.ranges) - set(activations(model))):
        raise InputError(f'{where}: calibration.ranges: the network has no float tensor '
                         f'{unknown[0]!r}')
