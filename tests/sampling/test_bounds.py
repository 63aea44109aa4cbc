"""Bounds of log-normalisers: the truth lies between them, and draws of something else are found out."""

from __future__ import annotations

import blackjax
import numpy as np
import pytest

from bridges.blackjax import HMC, MALA, from_blackjax
from ppl_diffusion import EnergyFunction, GaussianMixture, Ladder, NoiseSchedule, bound_log_normaliser

SCHEDULE = NoiseSchedule.cosine(100)
LADDER = Ladder.spaced(SCHEDULE, rungs=12, steps=1)


def modes(dimensions=6, backend="jax"):
    """Two modes of unlike widths and weights; its square has a normaliser in closed form where modes are apart."""
    means = np.zeros((2, dimensions))
    means[:, 0] = -2, 2
    return GaussianMixture(means, [0.3, 0.5], weights=[0.4, 0.6], schedule=SCHEDULE, backend=backend)


def square(dimensions=6):
    """The square of :func:`modes`, the log of its normaliser, and exact draws of it."""
    alpha, sigma = SCHEDULE.alpha(0), SCHEDULE.sigma(0)
    variances = (alpha * np.array([0.3, 0.5])) ** 2 + sigma**2
    masses = np.array([0.4, 0.6]) ** 2 * (4 * np.pi * variances) ** (-dimensions / 2)

    def draw(count, seed, width=1.0):
        rng = np.random.default_rng(seed)
        which = rng.choice(2, count, p=masses / masses.sum())
        x = width * np.sqrt(variances[which] / 2)[:, None] * rng.standard_normal((count, dimensions))
        x[:, 0] += alpha * np.array([-2.0, 2.0])[which]
        return x

    return modes(dimensions) ** 2, float(np.log(masses.sum())), draw


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"resample": 0.5}, {"reverse_step": True}, {"reverse_step": "wide"}], ids=str)
def test_the_truth_lies_between_the_bounds(options):
    ladder, (target, truth, draw) = LADDER, square()
    if "reverse_step" in options:  # reverse steps are those of a single model; narrow ones not for the cleanest levels
        levels = (*range(99, 4, -5), *((0,) if options["reverse_step"] == "wide" else ()))
        ladder, target, truth = Ladder(levels, steps=1), 2 * modes(), np.log(2)

        def draw(count, seed):
            return modes().sample(count, level=ladder.levels[-1], seed=seed)

    found = bound_log_normaliser(target, HMC(), exact=draw(400, 0), ladder=ladder, seed=1, **options)
    assert found.lower < truth + 3 * found.lower_error
    assert found.upper > truth - 3 * found.upper_error
    assert -3 * np.hypot(found.lower_error, found.upper_error) < found.gap < 2
    x = draw(50, 9)
    low, high = found.log_density(x)
    np.testing.assert_allclose(high - low, found.gap)
    np.testing.assert_allclose(found.bits(x), [-np.mean(high) / np.log(2) / 6, -np.mean(low) / np.log(2) / 6])


@pytest.mark.slow
def test_few_steps_leave_a_gap_with_the_truth_in_it():
    """One rung between noise and data: neither side is near, both are on their side."""
    target, truth, draw = square()
    found = bound_log_normaliser(target, MALA(step=0.1), exact=draw(50, 0), ladder=Ladder((99, 50, 0), steps=1), seed=2)
    assert found.lower < truth - 1
    assert found.upper > truth + 1


@pytest.mark.slow
def test_draws_of_something_else_are_found_out():
    """Draws that are too wide weigh too much on their way up: the upper value is no bound."""
    target, truth, draw = square()
    found = bound_log_normaliser(target, HMC(), exact=draw(400, 0, width=1.4), ladder=LADDER, seed=1)
    assert found.upper < truth - 0.5
    assert found.gap < -0.5


@pytest.mark.slow
def test_an_evaluation_is_spent_for_each_rung_and_each_leapfrog():
    calls = []

    def energy(x, level):
        calls.append(len(x))
        return 0.5 * (x**2).sum(-1)

    target = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="torch")
    exact = np.random.default_rng(0).standard_normal((4, 2))
    found = bound_log_normaliser(target, HMC(step=0.1), exact=exact, ladder=Ladder((99, 50, 0), steps=2), seed=0)
    assert len(calls) == (3 * (1 + 2 * 3) + 3) + (3 + 2 * 2 * 3)  # three for a draw down; no steps at the last rung up
    np.testing.assert_allclose([found.lower, found.upper], np.log(2 * np.pi), atol=1e-6)


def test_what_does_not_fit_is_refused():
    target = modes(2, backend="torch")
    with pytest.raises(ValueError, match="pass two or more draws"):
        bound_log_normaliser(target, HMC(), exact=np.zeros((3, 4)), ladder=LADDER, seed=0)
    with pytest.raises(ValueError, match="exact holds values that are not finite, in draw 1: leave"):
        bound_log_normaliser(target, HMC(), exact=[[0, 0], [0, np.nan], [0, 0]], ladder=LADDER, seed=0)
    with pytest.raises(TypeError, match=r"of a Pyro model take trace\.log_normaliser"):
        bound_log_normaliser(lambda x: x, HMC(), exact=np.zeros((3, 2)), ladder=LADDER, seed=0)  # type: ignore[arg-type]
    jumps = from_blackjax(blackjax.rmh.build_kernel, blackjax.rmh.init, transition_generator=lambda key, x: x)
    two = {"exact": np.zeros((2, 2)), "ladder": Ladder((99, 98), steps=0), "seed": 0}
    with pytest.raises(ValueError, match="keeps no gradient, which reverse_step=True needs"):
        bound_log_normaliser(target, jumps, **two, reverse_step=True)
