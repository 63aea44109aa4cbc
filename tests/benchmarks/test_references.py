"""References from runs of two kernels: they are right on a Gaussian, and kernels at different levels do not agree."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.references import agreement, combined, measured, walked
from bridges.blackjax import HMC, NUTS
from ppl_diffusion import GaussianMixture, NoiseSchedule

GAUSSIAN = GaussianMixture([[0.5, -0.5, 1.0]], [[0.3, 0.4, 0.5]], schedule=NoiseSchedule.cosine(20), backend="jax")
LEVEL = 8


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    settings = {"chains": 16, "draws": 150, "warm_up": 20}
    runs = (("HMC", HMC(leapfrogs=2), LEVEL), ("NUTS", NUTS(max_doublings=3), LEVEL), ("other", HMC(leapfrogs=2), 0))
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: walked(GAUSSIAN, kernel, level, seed=seed, file=folder / name, **settings)
        for seed, (name, kernel, level) in enumerate(runs)
    }


@pytest.mark.long
def test_a_reference_of_two_kernels_is_that_of_the_closed_form(traces):
    reference, apart = combined({name: traces[name] for name in ("HMC", "NUTS")})
    alpha, sigma = GAUSSIAN.schedule.alpha(LEVEL), GAUSSIAN.schedule.sigma(LEVEL)
    mean, variance = alpha * GAUSSIAN.means[0], alpha**2 * GAUSSIAN.variances[0] + sigma**2
    log_p = -0.5 * np.log(2 * np.pi * variance).sum() - 1.5
    exact = {"x": mean, "x^2": mean**2 + variance, "log p": log_p, "(log p)^2": log_p**2 + 1.5}
    for name, value in exact.items():
        found = reference.expectations[name]
        assert np.max(np.abs(found.value - value) / found.error) < 4.5, name
    assert np.allclose(reference.x.variance, variance, rtol=0.2)
    assert 500 < reference.effective_draws < 10_000
    assert all(value < 4.5 for key, value in apart.items() if "R-hat" not in key)
    assert reference.draws.shape == (32, 3)
    assert len(np.unique(reference.draws[:, 0])) > 25


@pytest.mark.long
def test_kernels_at_different_levels_are_found_apart(traces):
    apart = agreement(measured(traces["HMC"]), measured(traces["other"]))
    assert apart["x^2"] > 4.5
    assert apart["log p"] > 4.5
