# SPDX-License-Identifier: Apache-2.0
"""
One plan for each batch size, in one file.

A single plan whose batch size is free runs slower kernels, by half with TensorRT-RTX 1.6 (docs/
targets.md has the figures), so each size has a plan of its own, of fixed shape.
"""

from __future__ import annotations

from collections.abc import Mapping
import json

from trt_segmentation.errors import InputError

_MAGIC = b'trt_segmentation plans\n'


def pack(plans: Mapping[int, bytes]) -> bytes:
    """Return plans by batch size as one; a library's single one for one image stays as it is."""
    if list(plans) == [1] and not plans[1].startswith(_MAGIC):
        return plans[1]
    index = json.dumps({str(count): len(plan) for count, plan in plans.items()}).encode()
    return b''.join([_MAGIC, index, b'\n', *plans.values()])


def unpack(data: bytes) -> dict[int, bytes]:
    """Return the plans by batch size, ascending; raises InputError if they are damaged."""
    if not data.startswith(_MAGIC):
        return {1: data}
    index, _, rest = data[len(_MAGIC):].partition(b'\n')
    try:
        sizes = {int(count): int(size) for count, size in json.loads(index).items()}
    except (ValueError, AttributeError, TypeError):
        raise InputError('the plan is damaged: it does not say which batch sizes it has') from None
    if sum(sizes.values()) != len(rest) or min(sizes.values(), default=0) < 1 or 1 not in sizes:
        raise InputError('the plan is damaged: its parts are not as long as it says')
    plans, begin = {}, 0
    for count, size in sizes.items():
        plans[count] = rest[begin:begin + size]
        begin += size
    return dict(sorted(plans.items()))
