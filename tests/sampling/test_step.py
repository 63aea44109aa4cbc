"""Step sizes: where they begin, how they follow the ladder, and the factor of each move."""

from __future__ import annotations

import numpy as np
import pytest

from bridges.blackjax import HMC
from ppl_diffusion import Adaptive
from ppl_diffusion.sampling.kernel import State
from ppl_diffusion.sampling.step import centred, rescaling


def test_the_first_step_suits_the_start():
    for sigma, width in ((80.0, 80.0), (0.1, 1.0)):
        state = HMC().enter(None, None, size=16, sigma=sigma)
        assert np.exp(state.log_step) == pytest.approx(width / 2)


def test_steps_follow_the_scale_of_the_density():
    """Gradients of ``N(0, variance)`` fall by the variance; the step grows by its square root, fourfold at most."""
    x = np.random.default_rng(0).standard_normal((500, 3))
    norms = np.linalg.norm(x, axis=1)
    before = State(5, np.zeros((1, 3)), np.zeros(1), np.zeros((1, 3)), centred(np.log(0.2)))
    for variance in (0.5, 3.0):
        entered = HMC().enter(before, (norms, norms / variance), size=3, sigma=1.0)
        assert np.exp(entered.log_step) == pytest.approx(0.2 * variance**0.5)
    assert [rescaling(norms, norms * factor) for factor in (1e9, 1e-9)] == [0.25, 4.0]


def test_recorded_draws_take_the_average_step():
    policy = Adaptive()
    state = policy.enter(None, sigma=1.0, guess=0.5)
    for rate in (1.0, 0.4, 0.9, 0.3):
        state = policy.update(state, rate)
    assert policy.freeze(state).log_step == state.log_average != state.log_step


def test_most_moves_take_most_of_the_step():
    factor = Adaptive().jittered(1.0, (np.arange(10_000) + 0.5) / 10_000)
    assert np.mean(factor > 0.5) == pytest.approx(0.8, abs=0.02)
    assert np.mean(factor < 0.1) == pytest.approx(0.05, abs=0.01)
    assert factor.min() == pytest.approx(0.03, rel=0.01)
