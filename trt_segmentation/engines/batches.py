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

_NEAR_TIE = 2
"""
The confidence up to which a pixel counts as a near-tie: 2 of 255 is a lead of 0.016 of the best
logit, a few units in the last place of FP16, by which the kernels of two batch sizes may differ.
"""


def batch_sizes(most: int) -> tuple[int, ...]:
    """Return the sizes to try: 1, 2, 4, ... and the most."""
    return tuple(sorted({most, *(2**n for n in range(most.bit_length()))}))


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
        # Each image in each batch, with others beside it.
        turns = [(begin + i) % len(images) for begin in range(0, len(images), count)
                 for i in range(count)]
        found = segmenter.segment_batch([images[turn] for turn in turns], want)
        worst = [difference(masks, alone[turn], exact=isinstance(segmenter, CpuSegmenter))
                 for masks, turn in zip(found, turns)]
        differs[count] = next(filter(None, worst), '')
    blank = np.zeros((*size, 3), np.uint8)
    times = by_turns([partial(segmenter.segment_batch, [blank] * count, (CLASSES, COLOR))
                      for count in segmenter.batch_sizes])
    return tuple(Batch(count, ms / count, differs[count])
                 for count, ms in zip(segmenter.batch_sizes, times))


def difference(masks: Masks, alone: Masks, *, exact: bool) -> str:
    """
    Return how the masks of an image in a batch differ from those of the image alone, or ''.

    :param exact: no pixel may differ; else near-ties may
    """
    differ = masks.classes != alone.classes
    if not exact and alone.confidence is not None:
        differ &= alone.confidence > _NEAR_TIE
    if not differ.any():
        return ''
    return f'{int(differ.sum())} of {differ.size} pixels have another class than alone'
