"""References of targets in closed form: they agree with exact draws, and wrong ones do not."""

from __future__ import annotations

import numpy as np
import pytest

from ppl_diffusion import targets
from ppl_diffusion.targets.analytic import ANALYTIC
from ppl_diffusion.targets.reference import functions

BOUND = 4.5
"""In standard errors. About 3,000 comparisons are made: one is beyond it by chance in 50 runs of fresh seeds."""

DRAWS = 5_000
CASES = [(name, level) for name in ANALYTIC for level in targets.load(name).levels]


def log_density(target: targets.BenchmarkTarget, x: np.ndarray, level: int) -> np.ndarray:
    return -np.concatenate([np.asarray(target.potential.energy(b, level=level)) for b in np.array_split(x, 20)])


def largest_error(x: np.ndarray, log_p: np.ndarray, reference: targets.Reference) -> float:
    """The largest difference of the means of independent draws ``(n, *event)`` from a reference, in standard errors."""
    worst = 0.0
    for name, values in functions(x, log_p).items():
        expected = reference.expectations[name]
        error = np.sqrt(values.var(0) / len(values) + np.square(expected.error))
        worst = max(worst, float(np.max(np.abs(values.mean(0) - expected.value) / error)))
    return worst


def worst_share(target: targets.BenchmarkTarget, x: np.ndarray, level: int, weights: np.ndarray) -> float:
    """The largest difference of the shares of modes from ``weights (k,)``, in standard errors."""
    shares = np.bincount(target.mode_of(x, level), minlength=len(weights)) / len(x)
    errors = target.reference(level).modes.errors
    return float(np.max(np.abs(shares - weights) / np.sqrt(weights * (1 - weights) / len(x) + errors**2)))


@pytest.mark.parametrize(("name", "level"), CASES)
def test_references_agree_with_exact_draws_and_those_of_another_level_do_not(name, level):
    target = targets.load(name)
    x = target.draws(DRAWS, level=level, seed=level + 1)
    log_p = log_density(target, x, level)
    assert largest_error(x, log_p, target.reference(level)) < BOUND
    other = next(one for one in target.levels if one != level)
    assert largest_error(x, log_p, target.reference(other)) > 2 * BOUND


@pytest.mark.parametrize(("name", "level"), [case for case in CASES if targets.load(case[0]).reference(0).modes])
def test_weights_of_modes_agree_with_exact_draws_and_even_ones_do_not(name, level):
    target = targets.load(name)
    x = target.draws(DRAWS, level=level, seed=level + 1)
    weights = target.reference(level).modes.weights
    assert worst_share(target, x, level, weights) < BOUND
    if name != "ring_bar" and level == 0:  # its modes are even, and those of ring_wide nearly so where it is noisy
        assert worst_share(target, x, level, np.full(len(weights), 1 / len(weights))) > BOUND


@pytest.mark.parametrize("name", ANALYTIC)
def test_variances_are_those_of_exact_draws(name):
    target = targets.load(name)
    for level in target.levels:
        x = target.draws(DRAWS, level=level, seed=0)
        for kind, values in functions(x, log_density(target, x, level)).items():
            expected = target.reference(level).expectations[kind].variance
            error = np.sqrt(((values - values.mean(0)) ** 2).var(0) / len(values))
            assert np.max(np.abs(values.var(0) - expected) / error) < 2 * BOUND, kind  # the errors are rough ones


@pytest.mark.parametrize("name", ANALYTIC)
def test_potentials_are_those_of_torch_and_their_energies_fit_their_gradients(name):
    target = targets.load(name)
    assert target.potential.backend == "torch"
    x = target.draws(4, level=20, seed=0)
    _, gradient = target.potential.value_and_grad(x, level=20)
    direction = np.random.default_rng(0).standard_normal(x.shape) * 1e-5
    up, down = (np.asarray(target.potential.energy(x + side * direction, level=20)) for side in (1, -1))
    slope = (np.asarray(gradient) * direction).reshape(4, -1).sum(1)
    assert np.allclose((up - down) / 2, slope, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in ANALYTIC if name.startswith("mixture")])
def test_modes_are_apart_where_it_is_clean_and_merge_where_it_is_noisy(name):
    """Between the two heaviest modes the energy rises by more than 20 nats at level 0, and by less than 2 at 60."""
    target = targets.load(name)
    for level, low, high in ((0, 20.0, np.inf), (60, 0.0, 2.0)):
        one, other = target.reference(level).modes.locations[:2]
        path = one + np.linspace(0, 1, 41)[:, None] * (other - one)
        energies = np.asarray(target.potential.energy(path, level=level))
        assert low < energies.max() - max(energies[0], energies[-1]) + 1e-9 < high
