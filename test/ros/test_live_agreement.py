# SPDX-License-Identifier: Apache-2.0
"""When a frame is checked, and what the checks say."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='the figures belong to the ROS node')

from trt_segmentation.bundles.labels import CITYSCAPES
from trt_segmentation.ros.capture import Lowest, shown
from trt_segmentation.ros.live_agreement import Comparison, due, LiveAgreement, WINDOW_S


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0.001, 5)), min_size=1, max_size=50),
       st.floats(0.1, 30), st.floats(0.01, 0.5))
def test_checks_keep_their_period_and_their_share_of_the_time(steps, period, share):
    """Let time pass, and check whenever it is due."""
    now, began, took, checks = 0.0, None, 0.0, []
    for pause, duration in steps:
        now += pause
        if due(now, began, took, period, share):
            began, took = now, duration
            checks.append((began, took))
            now += duration
    for (one, spent), (other, _) in pairwise(checks):
        assert other - one >= period and spent <= share * (other - one) * (1 + 1e-9)
    assert checks[0][0] == steps[0][0]  # the first one at once
    if began is not None:
        assert due(began + max(period, took / share) + 1e-6, began, took, period, share)


def test_without_a_period_or_a_share_nothing_is_due():
    assert not due(100, None, 0, 0, 0.5) and not due(100, None, 0, 1, 0)


def test_a_comparison_is_counted_pixel_by_pixel():
    random = np.random.default_rng(0)
    reference = random.choice(np.array([0, 1, 8, 255], np.uint8), (40, 60))
    classes = np.where(random.random((40, 60)) < 0.7, reference, 3).astype(np.uint8)
    found = Comparison.of(reference, classes)
    judged = reference != 255
    assert found.agreement == (reference == classes)[judged].mean()
    names = {label.train_id: label.name for label in CITYSCAPES.classes}
    assert found.by_class(CITYSCAPES) == {
        names[i]: (classes[reference == i] == i).mean() for i in (0, 1, 8)}


def compared(share: float) -> Comparison:
    reference = np.zeros((10, 100), np.uint8)
    classes = reference.copy()
    classes.ravel()[:round(1000 * (1 - share))] = 1
    return Comparison.of(reference, classes)


def test_the_figures_are_of_the_last_hour_and_now_is_of_the_last_checks():
    live = LiveAgreement(CITYSCAPES)
    assert live.figures(0).now is None is live.now
    values = [0.9 + 0.001 * (i % 37) for i in range(400)]
    for i, value in enumerate(values):
        live.add(i * 10.0, compared(value))
    found = live.figures(3990.0)
    hour = [compared(value).agreement for i, value in enumerate(values)
            if i * 10.0 >= 3990 - WINDOW_S]
    assert found.frames == len(hour) == 361
    assert (found.p50, found.worst) == (median(hour), min(hour))
    last = [compared(value).agreement for value in values[-30:]]
    first = [compared(value).agreement for value in values[:30]]
    assert found.now == live.now == median(last[-6:])
    assert found.trend == median(last) - median(first)
    assert found.classes == {'road': pytest.approx(np.mean(hour))}
    assert live.figures(3990 + WINDOW_S + 1).frames == 0


def test_the_lowest_confidence_of_an_hour_is_told_once_enough_is_known():
    lowest = Lowest()
    assert not any(lowest.is_lowest(i, 0.9 - i / 100) for i in range(20))
    assert lowest.is_lowest(20, 0.1) and not lowest.is_lowest(21, 0.1)
    assert not lowest.is_lowest(22, None)
    for i in range(30):
        lowest.is_lowest(5000 + i, 0.8)
    assert lowest.is_lowest(5030, 0.7)  # what was lower is forgotten


def test_classes_are_shown_by_either_mask_if_there_is_enough_of_them():
    mask = np.zeros((100, 100), np.uint8)
    little, enough = mask.copy(), mask.copy()
    little.ravel()[:9] = 5
    enough.ravel()[:10] = 6
    names = {5: 'pole', 6: 'light', 7: 'sign'}
    assert shown((little, enough), names) == ['light']
    assert shown((mask, mask), names) == []
