# SPDX-License-Identifier: Apache-2.0
"""The histogram depends on the values alone, and counts what NumPy counts."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from trt_segmentation.calibration.histogram import Histogram, MAX_BINS

float32 = st.floats(-2.0 ** 100, 2.0 ** 100, width=32)


def histogram_of(*arrays):
    histogram = Histogram()
    for array in arrays:
        histogram.add(array, float(np.abs(array).max()))
    return histogram


def assert_equal(first, second):
    assert first.exponent == second.exponent
    np.testing.assert_array_equal(first.counts, second.counts)


@pytest.mark.parametrize('scale', [1e-20, 1e-3, 1.0, 4095.0, 4096.0, 1e30])
def test_counts_are_those_of_numpy(scale):
    values = np.random.default_rng(1).standard_normal((3, 100, 1000)).astype(np.float32) ** 3
    values *= np.float32(scale)
    histogram = histogram_of(values)
    edges = np.arange(len(histogram.counts) + 1) * histogram.width
    magnitudes = np.abs(values.astype(np.float64))
    # digitize and not histogram: the latter puts a value on the last edge into the last bin.
    expected = np.bincount(np.digitize(magnitudes.ravel(), edges) - 1)
    np.testing.assert_array_equal(histogram.counts, expected)
    assert histogram.total == values.size
    assert (MAX_BINS + 1) // 2 <= len(histogram.counts) <= MAX_BINS


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(float32, min_size=1, max_size=20), min_size=1, max_size=6),
       st.randoms())
def test_neither_order_nor_division_matters(parts, random):
    arrays = [np.array(part, np.float32) for part in parts]
    expected = histogram_of(np.concatenate(arrays))
    assert_equal(histogram_of(*arrays), expected)
    random.shuffle(arrays)
    assert_equal(histogram_of(*arrays), expected)


@given(float32.filter(lambda value: abs(value) > 2.0 ** -80))
def test_number_of_bins_is_bounded(value):
    histogram = histogram_of(np.array([value], np.float32))
    assert (MAX_BINS + 1) // 2 <= len(histogram.counts) <= MAX_BINS
    assert histogram.counts[-1] == 1


def test_width_is_the_smallest_that_holds_the_largest():
    histogram = histogram_of(np.array([4094.99], np.float32))
    assert histogram.width == 1 and len(histogram.counts) == 4095
    histogram = histogram_of(np.array([4095.0], np.float32))
    assert histogram.width == 2 and len(histogram.counts) == 2048


def test_counts_above_float32_precision_are_exact():
    zeros = np.zeros(2 ** 24 + 3, np.float32)
    zeros[0] = 1
    assert histogram_of(zeros).counts[0] == 2 ** 24 + 2


def test_zeros_have_one_bin():
    histogram = histogram_of(np.zeros(10, np.float32))
    assert histogram.counts.tolist() == [10] and histogram.amax == 0


def test_zeros_before_values_are_kept():
    histogram = histogram_of(np.zeros(10, np.float32), np.ones(3, np.float32))
    assert histogram.counts[0] == 10 and histogram.counts[-1] == 3
