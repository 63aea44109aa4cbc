"""What is planted is found: a wrong acceptance, a step ten times too small, a kernel that misreports its gradients."""

from __future__ import annotations

from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridges.bench import Plan, load_targets, own, sweep

PLAN = Plan(gradients=1200, seeds=2, chains=16, levels=1)
LEVEL = 60
STEP = 0.5
"""Of MALA in BlackJAX's meaning: half the square of the leapfrog step."""


class Always(NamedTuple):
    acceptance_rate: jax.Array


def right(log_density):
    return blackjax.mala(log_density, step_size=STEP)


def slow(log_density):
    return blackjax.mala(log_density, step_size=STEP / 100)  # the leapfrog step is a tenth


def modest(log_density):
    """It says that a step took half a gradient."""
    algorithm = blackjax.hmc(log_density, step_size=STEP, inverse_mass_matrix=jnp.ones(2), num_integration_steps=2)

    def step(key, state):
        state, info = algorithm.step(key, state)
        return state, info._replace(num_integration_steps=info.num_integration_steps // 2)

    return algorithm._replace(step=step)


def honest(log_density):
    return blackjax.hmc(log_density, step_size=STEP, inverse_mass_matrix=jnp.ones(2), num_integration_steps=2)


def wrong(log_density):
    """A proposal that is always accepted: the stationary density is another one."""
    algorithm = blackjax.mala(log_density, step_size=STEP)

    def step(key, state):
        noise = jax.random.normal(key, state.position.shape)
        there = state.position + STEP * state.logdensity_grad + jnp.sqrt(2 * STEP) * noise
        return algorithm.init(there), Always(jnp.ones(()))

    return algorithm._replace(step=step)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    (target,) = load_targets(["mixture_2"])
    target = target.__class__(**{**target.__dict__, "levels": (LEVEL,)})
    kernels = [own(kernel.__name__, kernel) for kernel in (right, slow, modest, honest, wrong)]
    data = sweep(kernels, [target], PLAN, tmp_path_factory.mktemp("planted")).isel(target=0, difficulty=0)
    return data.value.sel(start="warm")


@pytest.mark.long
def test_the_right_kernel_gets_a_low_bias(found):
    assert found.sel(contender="right", score="bias_x2").max() < 0.02
    assert found.sel(contender="right", score="ess_bulk").min() > 1000


@pytest.mark.long
def test_a_wrong_acceptance_mixes_well_and_never_gets_a_low_bias(found):
    assert found.sel(contender="wrong", score="ess_bulk").min() > 1000
    assert found.sel(contender="wrong", score="bias_x2").min() > 0.03
    assert np.isinf(found.sel(contender="wrong", score="gradients_to_x2")).all()


@pytest.mark.long
def test_a_step_ten_times_too_small_has_a_small_effective_size(found):
    ratio = found.sel(contender="slow", score="ess_bulk_per_gradient") / found.sel(
        contender="right", score="ess_bulk_per_gradient"
    )
    assert ratio.max() < 0.1


@pytest.mark.long
def test_a_kernel_that_reports_half_of_its_gradients_has_the_score_of_the_honest_one(found):
    modest, honest = (found.sel(contender=name).drop_vars("contender") for name in ("modest", "honest"))
    alike = [
        name
        for name in found.score.values
        if not name.startswith(("reported", "seconds", "ess_bulk_per_s", "ess_tail_per_s"))
    ]
    np.testing.assert_array_equal(modest.sel(score=alike), honest.sel(score=alike))
    assert (modest.sel(score="reported_share") == 0.5).all()
    assert (honest.sel(score="reported_share") == 1).all()
