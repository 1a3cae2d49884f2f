"""Intervals by resampling sequences."""

import numpy as np
import pytest

from daflow_ext.evaluate.bootstrap import difference_interval, interval, resample


def test_resamples_draw_as_many_sequences_as_there_are():
    times = resample(5, 300, seed=1)
    assert times.shape == (300, 5)
    assert (times.sum(1) == 5).all()
    np.testing.assert_allclose(times.mean(0), 1, atol=0.2)
    assert np.array_equal(times, resample(5, 300, seed=1))
    assert not np.array_equal(times, resample(5, 300, seed=2))


def test_equal_sequences_have_no_width_and_one_sequence_has_no_interval():
    weights = np.array([3.0, 10.0, 1.0])
    low, high = interval(2.5 * weights, weights)
    assert low == pytest.approx(2.5)
    assert high == pytest.approx(2.5)
    assert interval(np.array([1.0]), np.array([2.0])) is None
    assert interval(np.array([1.0, 0.0]), np.array([2.0, 0.0])) is None


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(7, 2, 400)
    low, high = interval(values, np.ones(400), resamples=4000)
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_the_mean_is_a_ratio_of_sums_not_a_mean_of_ratios():
    # one pixel with error 10 and 99 with error 0: half of the draws take both sequences, the mean of their ratios is 5
    low, high = interval(np.array([10.0, 0.0]), np.array([1.0, 99.0]), confidence=0.02)
    assert (low, high) == pytest.approx((0.1, 0.1))
    low, high = interval(np.array([10.0, 0.0]), np.array([1.0, 99.0]))
    assert (low, high) == pytest.approx((0, 10))


def test_paired_differences_see_through_the_spread_of_the_sequences():
    rng = np.random.default_rng(1)
    base = rng.gamma(1, 20, 30)
    ones = np.ones(30)
    worse = base + 0.5 + rng.normal(0, 0.05, 30)
    low, high = difference_interval((worse, base), (ones, ones))
    assert 0.45 < low < 0.5 < high < 0.55
    wide = interval(base, ones)
    assert wide[1] - wide[0] > 5
    flipped = difference_interval((base, worse), (ones, ones))
    assert flipped == pytest.approx((-high, -low))
