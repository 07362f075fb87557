# SPDX-License-Identifier: Apache-2.0
"""Which batch sizes are worth it: faster for each image than one by one, with the same masks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from trt_segmentation.engines.record import Batch
from trt_segmentation.engines.timing import by_turns
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.segmenter import CLASSES, COLOR, CONFIDENCE, Masks, Segmenter

_NEAR_TIE = 13
"""
The confidence of a near-tie at most, 255 * tanh(0.05): the best logit is 0.1 above the second.

The kernels of two batch sizes add in another order, and FP16 keeps a logit of 16 to 32 to 0.016;
that layers add up to six such steps is a guess, and not measured.
"""
_NEAR_TIES = 0.01
"""The share of an image's pixels that may differ so; more is no rounding. Chosen, not measured."""


def measured(segmenter: Segmenter, images: Sequence[np.ndarray]) -> tuple[Batch, ...]:
    """
    Return what each of a segmenter's batch sizes takes, and how its masks differ.

    :param images: uint8 (height, width, 3), of any size; without any, noise is taken
    """
    size = segmenter.spec.input.size
    images = list(images) or [np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
                              for seed in range(2)]
    want = sorted(segmenter.offers & {CLASSES, CONFIDENCE})
    alone = [segmenter.segment(image, want) for image in images]
    differs = {}
    for count in segmenter.batch_sizes:
        found = []
        for begin in range(0, len(images), count):
            turns = [(begin + i) % len(images) for i in range(count)]
            masks = segmenter.segment_batch([images[turn] for turn in turns], want)
            found += [difference(each, alone[turn], exact=isinstance(segmenter, CpuSegmenter))
                      for each, turn in zip(masks, turns)]
        differs[count] = next(filter(None, found), '')
    blank = np.zeros((*size, 3), np.uint8)
    times = by_turns([partial(segmenter.segment_batch, [blank] * count, (CLASSES, COLOR))
                      for count in segmenter.batch_sizes])
    return tuple(Batch(count, ms / count, differs[count])
                 for count, ms in zip(segmenter.batch_sizes, times))


def difference(masks: Masks, alone: Masks, *, exact: bool) -> str:
    """
    Return how the masks of an image in a batch differ from those of the image alone, or ''.

    :param exact: no pixel may differ; else a few near-ties may
    """
    differ = masks.classes != alone.classes
    if not exact and alone.confidence is not None and differ.mean() <= _NEAR_TIES:
        differ &= alone.confidence > _NEAR_TIE
    if not differ.any():
        return ''
    most = '' if alone.confidence is None else (
        f', where it has a confidence of up to {int(alone.confidence[differ].max())} of 255')
    return f'{int(differ.sum())} of {differ.size} pixels have another class than alone{most}'
