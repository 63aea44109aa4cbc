"""What the walk is timed against: the paper's released sampler, plain Pyro, and a plain loop over BlackJAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import torch
from pyro.infer.mcmc import HMC as PyroHMC

from ppl_diffusion import Ladder, Potential

LEAPFROGS, STEP = 3, 0.05
"""Leapfrogs, the paper's for pictures, and step size of all samplers."""


def paper_hmc(potential: Potential, x: torch.Tensor, level: int, steps: int) -> torch.Tensor:
    """The paper's released sampler, defects included: momentum updated in place, one decision for all chains."""
    for _ in range(steps):
        momentum = torch.randn_like(x)
        before, gradient = potential.value_and_grad(x, level=level)
        moved, kinetic = x.clone(), (momentum**2).sum()
        for _ in range(LEAPFROGS):
            momentum -= 0.5 * STEP * gradient
            moved += STEP * momentum
            _, gradient = potential.value_and_grad(moved, level=level)
            momentum -= 0.5 * STEP * gradient
        after, _ = potential.value_and_grad(moved, level=level)
        if torch.log(torch.rand(())) < (before - after).sum() + 0.5 * (kinetic - (momentum**2).sum()):
            x = moved
    return x


def pyro_hmc(potential: Potential, x: torch.Tensor, level: int, steps: int) -> None:
    """Run Pyro's own HMC kernel on one chain from ``x (*event_shape)``."""
    kernel = PyroHMC(
        potential_fn=lambda params: potential.energy(params["x"], level=level),
        step_size=STEP,
        trajectory_length=STEP * (LEAPFROGS + 0.5),
        adapt_step_size=False,
        adapt_mass_matrix=False,
    )
    kernel.initial_params = {"x": x}
    kernel.setup(warmup_steps=0)
    params = {"x": x}
    for _ in range(steps):
        params = kernel.sample(params)


def plain_blackjax(target: Potential, ladder: Ladder, chains: int, *, precise: bool) -> Callable[[], Any]:
    """Return a loop over jitted rungs of BlackJAX's HMC, without records and weights."""

    def rung(x: Any, key: Any, level: Any) -> Any:
        def log_density(x: Any) -> Any:
            return -target.energy(x, level=level)

        kernel = blackjax.hmc(log_density, 0.03, jnp.ones(2), LEAPFROGS)

        def step(states: Any, key: Any) -> Any:
            return jax.vmap(kernel.step)(jax.random.split(key, chains), states)[0], None

        return jax.lax.scan(step, jax.vmap(kernel.init)(x), jax.random.split(key, ladder.steps_per_rung[0]))[0].position

    compiled = jax.jit(rung)

    def loop() -> Any:
        with jax.enable_x64(precise):
            x = jax.random.normal(jax.random.key(0), (chains, 2))
            for level in ladder.levels:
                x = compiled(x, jax.random.key(level), level)
            return jax.block_until_ready(x)

    return loop
