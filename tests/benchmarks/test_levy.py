"""Signals with known posteriors: densities of jumps, Gibbs draws against closed forms, guidance, and ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.harness import double_precision
from benchmarks.posteriors.coverage import covered, density_ranks, uniformity
from benchmarks.posteriors.guided import dps
from benchmarks.posteriors.jumps import LAWS, OPERATORS, SIZE, Law, Measurement, operator
from benchmarks.posteriors.levy import DRAWS, Simulated, by_dps, by_pseudoinverse, diffused, gibbs
from ppl_diffusion import NoiseSchedule

GRID = torch.linspace(-60, 60, 240_001, dtype=torch.float64)


def density(law: Law, alpha: float = 1.0, sigma: float = 0.0) -> np.ndarray:
    """Density of one jump at ``GRID``."""
    return np.exp(-law.energy(GRID[:, None], alpha, sigma).numpy())


def moments(weights: np.ndarray) -> np.ndarray:
    """Mean and mean square of an unnormalised density at ``GRID``."""
    x = GRID.numpy()
    return np.array([(weights * x).sum(), (weights * x**2).sum()]) / weights.sum()


@pytest.mark.parametrize("name", LAWS)
def test_diffused_jumps_have_a_normalised_density_of_the_right_variance(name):
    step = float(GRID[1] - GRID[0])
    for alpha, sigma in ((1.0, 0.0), (0.9, 0.3), (0.3, 0.95), (5e-4, 1.0)):
        found = density(LAWS[name], alpha, sigma)
        assert found.sum() * step == pytest.approx(1, abs=1e-5)
        assert moments(found)[1] == pytest.approx(alpha**2 + sigma**2, abs=1e-4)
    drawn = LAWS[name].draw(2000, np.random.default_rng(0))
    assert abs(np.mean(drawn**2) - 1) < 4 * np.std(drawn**2) / np.sqrt(drawn.size)


@pytest.mark.parametrize("name", LAWS)
def test_the_estimate_of_what_is_clean_can_be_differentiated_at_every_level(name):
    prior = diffused(LAWS[name], NoiseSchedule.cosine(100))
    at = torch.from_numpy(LAWS[name].draw(20, np.random.default_rng(0)))
    for level in (99, 50, 10, 2, 1, 0):
        x = at.clone().requires_grad_()
        (slope,) = torch.autograd.grad(prior.energy(x, level=level).sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad((slope**2).sum(), x)
        assert torch.isfinite(curvature).all()


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("believed", [1.0, 0.5])
def test_gibbs_draws_have_the_moments_of_the_posterior_and_those_of_the_twin_have_not(name, believed):
    """Jumps that are seen one by one are independent, and their posterior is an integral in one dimension."""
    law, y, scale, chains = LAWS[name], 0.7, 0.6, 40
    rng = np.random.default_rng(0)
    measured = Measurement(np.eye(SIZE), believed * scale)
    drawn = measured.gibbs(law, np.full((chains, SIZE), y), draws=10, thin=3, first=30, rng=rng)
    expected = moments(density(law) * np.exp(-0.5 * ((GRID.numpy() - y) / scale) ** 2))
    by_chain = np.stack([drawn, drawn**2], axis=-1).mean(1).reshape(-1, 2)
    errors = (by_chain.mean(0) - expected) / (by_chain.std(0, ddof=1) / np.sqrt(len(by_chain)))
    assert (abs(errors).max() < 4) == (believed == 1)


def test_gibbs_draws_of_gaussian_jumps_have_the_covariance_in_closed_form():
    made = Measurement.of("imputation", LAWS["Gauss"])
    simulated = Simulated.draw("Gauss", made, 60, 0)
    mean, root = made.gaussian(simulated.y)
    for claimed in (1.0, 0.5):
        away = gibbs(simulated, claimed=claimed, seed=0) - mean[:, None]
        white = np.linalg.solve(root, away.reshape(-1, SIZE).T).ravel()
        error = (np.mean(white**2) - 1) / np.sqrt(2 / len(white))
        assert (abs(error) < 4) == (claimed == 1)


def test_ranks_of_exact_draws_are_uniform_and_those_of_the_twin_are_not():
    rng = np.random.default_rng(0)
    for spread in (1.0, 0.7):
        points = rng.standard_normal((1000, DRAWS + 1, 10)) * np.r_[1.0, np.full(DRAWS, spread)][:, None]
        energies = (points**2).sum(-1) / 2
        ranks = density_ranks(energies[:, 0], energies[:, 1:])
        found = covered(ranks, DRAWS)
        assert (abs(found["mean"] - 0.9) < 4 * found["se"]) == (spread == 1)
        assert (uniformity(ranks, DRAWS, bins=10) > 1e-4) == (spread == 1)


def test_weights_count_draws_as_often_as_they_say():
    energies = np.array([[0.0, 1.0, 2.0, 3.0]])
    truth = np.array([1.5])
    assert density_ranks(truth, energies) == [2]
    assert density_ranks(truth, energies, np.array([[0.1, 0.2, 0.3, 0.4]])) == [pytest.approx(1.2)]


@pytest.mark.slow
def test_pseudoinverse_guidance_is_right_for_gaussian_jumps_and_dps_is_not():
    made = Measurement.of("imputation", LAWS["Gauss"])
    simulated = Simulated.draw("Gauss", made, 10, 0)
    mean, root = made.gaussian(simulated.y)
    with double_precision():
        drawn = {"pseudoinverse": by_pseudoinverse(simulated, 0), "DPS": by_dps(simulated, 0.1, 0)}
    for name, u in drawn.items():
        white = np.linalg.solve(root, (u - mean[:, None]).reshape(-1, SIZE).T).ravel()
        assert (abs(np.mean(white**2) - 1) < 0.15) == (name == "pseudoinverse")


def test_dps_finds_what_is_measured_without_noise():
    prior = diffused(LAWS["Gauss"], NoiseSchedule.cosine(100))
    with double_precision():
        y = torch.full((SIZE,), 1.5)
        drawn = dps(prior, lambda u: u, y, draws=4, strength=0.5, seed=0)
    assert abs(drawn - 1.5).mean() < 0.2


def test_operators_measure_what_they_say():
    x = np.cumsum(np.ones(SIZE))
    assert operator("identity") @ x == pytest.approx(x)
    assert operator("deconvolution").sum(1) == pytest.approx(np.ones(SIZE))
    assert set(operator("imputation") @ x) <= set(x)
    waves = operator("Fourier")
    assert waves @ waves.T == pytest.approx(np.eye(len(waves)), abs=1e-12)
    for name in OPERATORS:
        made = Measurement.of(name, LAWS["Laplace"])
        assert made.gain @ np.ones(SIZE) == pytest.approx(operator(name) @ x)
