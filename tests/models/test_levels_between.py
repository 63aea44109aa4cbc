"""Densities at the noise levels of another schedule."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate

from ppl_diffusion import EnergyFunction, GaussianMixture, NoiseSchedule, UniformBox, guidance, load, observation

COARSE = NoiseSchedule.cosine(100)
FINE = COARSE.finer(3)
X = np.random.default_rng(0).standard_normal((5, 2))


def exact(schedule):
    p = GaussianMixture([[0.4, -0.2], [-0.6, 0.5]], [0.3, 0.2], schedule=schedule, backend="torch", name="p")
    box = UniformBox([-0.2, -1.0], [0.3, 1.0], schedule=schedule, backend="torch")
    return p * box / p**0.5 * observation([0.1, 0.2], scale=0.3, schedule=schedule, backend="torch") + 0.5 * box


@pytest.mark.parametrize("schedule", [COARSE, NoiseSchedule.linear(50), NoiseSchedule.edm(30)], ids=str)
def test_a_finer_schedule_holds_the_levels_of_the_coarse_one(schedule):
    fine = schedule.finer(3)
    assert fine.preserves_variance == schedule.preserves_variance
    assert [fine.alpha(3 * i) for i in range(len(schedule))] == list(schedule.alphas)
    assert [fine.sigma(3 * i) for i in range(len(schedule))] == list(schedule.sigmas)
    steps = np.diff([fine.log_snr(i) for i in range(len(fine))]).reshape(-1, 3)
    np.testing.assert_allclose(steps, steps.mean(1, keepdims=True) * np.ones(3), rtol=1e-6)
    assert schedule.finer(1) == schedule


@pytest.mark.parametrize("level", [0, 1, 100, 296])
def test_a_composition_at_other_levels_is_the_one_built_there(level):
    moved, built = exact(COARSE).at(FINE), exact(FINE)
    for found, due in zip(moved.value_and_grad(X, level=level), built.value_and_grad(X, level=level), strict=True):
        np.testing.assert_allclose(found, due, rtol=1e-12)
    assert str(moved) == str(exact(COARSE))
    assert exact(COARSE).schedule == COARSE


def test_a_network_is_asked_between_its_levels():
    """At levels that both have it is the same; between them the energy is near the mean of its neighbours'."""
    coarse = guidance(load("ring"), load("wide"), scale=0.5)
    fine = coarse.at(coarse.schedule.finer(2))
    for level in (0, 30, 99):
        np.testing.assert_array_equal(fine.energy(X, level=2 * level), coarse.energy(X, level=level))
    below, between, above = (np.asarray(fine.energy(X, level=level)) for level in (80, 81, 82))
    np.testing.assert_allclose(between, (below + above) / 2, atol=0.1)
    assert np.abs(above - below).max() > 1e-3


def test_the_density_between_two_levels_is_one_of_the_path():
    """The normaliser of the learned ring changes little from level to level, and not by a jump between them."""
    ring = load("ring").at(load("ring").schedule.finer(2))
    grid = np.linspace(-3, 3, 121)
    points = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)

    def log_normaliser(level):
        density = np.exp(-np.asarray(ring.energy(points, level=level)).reshape(121, 121))
        return np.log(integrate.simpson(integrate.simpson(density, x=grid), x=grid))

    below, between, above = (log_normaliser(level) for level in (60, 61, 62))
    assert abs(between - (below + above) / 2) < 0.02


def test_what_is_not_known_at_other_levels_is_refused():
    mine = EnergyFunction(lambda x, level: (x**2).sum(-1), schedule=COARSE, event_shape=(2,), backend="torch")
    with pytest.raises(TypeError, match="known at the levels of its own schedule only: build it with the other"):
        (mine * mine**0.5).at(FINE)
    with pytest.raises(ValueError, match=r"trained at log-SNRs from .* leave its outer levels out"):
        load("ring").at(NoiseSchedule.cosine(1000))
    with pytest.raises(ValueError, match="scales points otherwise"):
        load("ring").at(NoiseSchedule.edm(20, sigma_min=0.03, sigma_max=1.0))
    with pytest.raises(ValueError, match="times is a whole number"):
        COARSE.finer(0)
