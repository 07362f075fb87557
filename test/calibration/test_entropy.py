# SPDX-License-Identifier: Apache-2.0
"""The entropy search against a literal reading of the published algorithm."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from support.entropy import literal_divergences

from trt_segmentation.calibration import methods


def sample(kind, seed=0):
    random = np.random.default_rng(seed)
    values = {
        'half-normal': lambda: np.abs(random.standard_normal(20000)),
        'relu': lambda: np.maximum(random.standard_normal(20000), 0),
        'laplace': lambda: np.abs(random.laplace(size=20000)),
        'long tail': lambda: np.abs(random.standard_normal(20000)) ** 5,
        'uniform': lambda: random.uniform(0, 1, 20000),
        'sparse': lambda: random.choice([0.1, 0.5, 3.0], 20000),
    }[kind]()
    return np.histogram(values, bins=500, range=(0, values.max()))[0]


@pytest.mark.parametrize(
    'kind', ['half-normal', 'relu', 'laplace', 'long tail', 'uniform', 'sparse'])
def test_divergences_equal_the_literal_loops(kind):
    counts = methods.without_zero_spike(sample(kind))
    np.testing.assert_allclose(methods.divergences(counts), literal_divergences(counts.tolist()),
                               rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('kind', ['half-normal', 'relu', 'laplace', 'long tail', 'uniform'])
def test_choice_is_the_minimum_of_the_literal_loops(kind):
    counts = sample(kind)
    literal = literal_divergences(methods.without_zero_spike(counts).tolist())
    assert methods.entropy_bins(counts) == np.argmin(literal) + 128


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=128, max_size=200).filter(any))
def test_divergences_equal_the_literal_loops_for_any_counts(counts):
    np.testing.assert_allclose(
        methods.divergences(np.array(counts)), literal_divergences(counts),
        rtol=1e-9, atol=1e-12)


def test_level_spreads_over_its_filled_bins_as_on_the_slide():
    # The slide's example: [1, 0, 2, 3, 5, 3, 1, 7] in 2 levels becomes [2, 0, 2, 2, 4, 4, 4, 4].
    # Here 128 levels of 4 bins each, so 64 copies of the example make 512 bins.
    counts = np.tile([1, 0, 2, 3, 5, 3, 1, 7], 64)
    p = counts / counts.sum()
    q = np.tile([2, 0, 2, 2, 4, 4, 4, 4], 64) / counts.sum()
    expected = np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0]))
    assert methods.divergences(counts)[-1] == pytest.approx(expected, rel=1e-12)


def test_zero_spike_does_not_decide():
    half_normal = sample('half-normal')
    spiked = half_normal.copy()
    spiked[0] += 10 * half_normal.sum()
    assert methods.entropy_bins(spiked) == methods.entropy_bins(half_normal)


def test_empty_last_bin_with_values_beyond_is_never_chosen():
    counts = np.zeros(300, int)
    counts[:100] = 10
    counts[-1] = 1
    divergence = methods.divergences(counts)
    assert np.isinf(divergence[:-1]).all()
    assert methods.entropy_bins(counts) == 300


def test_ties_clip_least():
    # A value in the last bin alone: every shorter candidate keeps nothing.
    counts = np.zeros(2048, int)
    counts[-1] = 7
    assert methods.entropy_bins(counts) == 2048


@pytest.mark.parametrize('size', [1, 2, 127, 128])
def test_too_few_bins_to_search_are_all_kept(size):
    assert methods.entropy_bins(np.ones(size, int)) == size


def test_all_zero_counts_are_all_kept():
    assert methods.entropy_bins(np.zeros(2048, int)) == 2048


def test_counts_are_not_modified():
    counts = sample('relu')
    before = counts.copy()
    methods.entropy_bins(counts)
    np.testing.assert_array_equal(counts, before)
