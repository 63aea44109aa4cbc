"""Importance weights: effective sample size, resampling, normalisers."""

from __future__ import annotations

import numpy as np
import pytest

from ppl_diffusion.sampling import importance


def test_effective_sample_size():
    assert importance.effective_sample_size(np.full(50, -1e5)) == pytest.approx(50)
    assert importance.effective_sample_size(np.array([0.0, -np.inf, np.nan, np.inf])) == 1
    assert importance.effective_sample_size(np.full(3, -np.inf)) == 0


def test_resampled_chains_weigh_the_same():
    walk = importance.Weights(4)
    walk.move(np.array([0.0, 1.0, 2.0, -np.inf]))
    assert walk.resample(0.9, last=False, rng=np.random.default_rng(0)) is not None
    assert (walk.log == 0).all()
    assert walk.move(np.zeros(4))["ess"] == pytest.approx(4)


def test_systematic_resampling_is_unbiased_and_differs_from_its_mean_by_less_than_one():
    rng = np.random.default_rng(0)
    log_weights = rng.standard_normal(40)
    expected = 40 * importance.normalise(log_weights)
    counts = np.array(
        [np.bincount(importance.systematic_resample(log_weights, rng), minlength=40) for _ in range(4000)]
    )
    assert np.all(np.abs(counts - expected) < 1)
    error = counts.std(0) / np.sqrt(len(counts)) + 1e-12
    assert np.abs((counts.mean(0) - expected) / error).max() < 4.5


def test_chains_without_weight_have_no_offspring():
    log_weights = np.array([0.0, -np.inf, 0.0, np.nan])
    assert set(importance.systematic_resample(log_weights, np.random.default_rng(1))) == {0, 2}


def test_normaliser_increments_chain():
    """Two increments applied in turn estimate the same ratio as their sum applied at once."""
    rng = np.random.default_rng(2)
    first, second = rng.standard_normal((2, 100))
    start = np.zeros(100)
    in_turn = importance.log_normaliser_increment(start, first) + importance.log_normaliser_increment(first, second)
    assert in_turn == pytest.approx(importance.log_normaliser_increment(start, first + second))
    assert importance.log_normaliser_increment(start, np.full(100, 3.0)) == pytest.approx(3.0)
    assert importance.log_normaliser_increment(start, np.full(100, -np.inf)) == -np.inf


def test_a_chain_that_comes_back_from_where_the_density_is_zero_has_no_weight():
    walk = importance.Weights(3)
    walk.move(np.array([0.0, -np.inf, 0.0]))
    record = walk.move(np.array([1.0, np.inf, np.nan]))
    np.testing.assert_array_equal(walk.log, [1.0, -np.inf, -np.inf])
    assert record["ess"] == pytest.approx(1)
    assert record["log_normaliser"] == pytest.approx(1 - np.log(2))
