# SPDX-License-Identifier: Apache-2.0
"""The search for the least squared error against quantizing value by value."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from trt_segmentation.calibration import methods
from trt_segmentation.calibration.histogram import Histogram


def literal_error(counts, threshold):
    """Quantize each bin's middle to the nearest of 128 codes."""
    step = threshold / 127
    middles = np.arange(len(counts)) + 0.5
    quantized = np.minimum(np.rint(middles / step), 127) * step
    return float((counts * (middles - quantized) ** 2).sum())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=128, max_size=400).filter(any))
def test_errors_equal_the_literal_quantization(counts):
    counts = np.array(counts)
    kept = np.arange(128, len(counts) + 1)
    literal = [literal_error(counts, threshold) for threshold in kept]
    scale = float((counts * np.arange(len(counts)) ** 2.0).sum())
    np.testing.assert_allclose(methods.squared_errors(counts, kept), literal, rtol=1e-9,
                               atol=1e-12 * scale)


@pytest.mark.parametrize('power', [1, 2, 3, 5])
def test_choice_is_best_for_the_values_themselves(power):
    # Against brute force over thresholds on the values, which know nothing of bins.
    values = np.random.default_rng(power).standard_normal(20000).astype(np.float32) ** power
    magnitudes = np.abs(values).astype(np.float64)
    histogram = Histogram()
    histogram.add(values, float(magnitudes.max()))

    def error(threshold):
        step = threshold / 127
        return ((magnitudes - np.minimum(np.rint(magnitudes / step), 127) * step) ** 2).mean()

    chosen = methods.mse_bins(histogram.counts) * histogram.width
    brute = min(error(threshold) for threshold in np.linspace(0.02, 1, 500) * histogram.amax)
    assert error(chosen) <= brute * 1.01


def test_uniform_values_lose_half_a_step_at_most():
    # The largest code also takes the half step above it.
    assert methods.mse_bins(np.full(2048, 100)) == pytest.approx(2048 * 127 / 127.5, abs=4)


@pytest.mark.parametrize('size', [1, 127, 128])
def test_few_bins_are_all_kept(size):
    assert methods.mse_bins(np.ones(size, int)) == size


def test_signal_to_noise_of_a_uniform_signal():
    # The textbook's 20 log10(2 * 127.5 levels) for a signal that fills the range.
    counts = np.full(2048, 1000)
    assert methods.signal_to_noise(counts, 2048 * 127 / 127.5) == pytest.approx(
        20 * np.log10(2 * 127.5), abs=0.1)


def test_zeros_do_not_decide():
    # A ReLU's zeros are exact in any scale.
    counts = np.histogram(np.abs(np.random.default_rng(0).standard_normal(10000)), 2048)[0]
    spiked = counts.copy()
    spiked[0] += 10 ** 7
    assert methods.mse_bins(spiked) == methods.mse_bins(counts)
