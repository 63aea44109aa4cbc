"""Leapfrog trajectories of a chain, with and without a Metropolis test; the steps that the kernels are made of.

The momentum is refreshed as ``p <- sqrt(1 - r) p + sqrt(r) z`` before each trajectory, flipped on rejection where
r < 1, and travels with its chain. Masses are one.

Source: MCMC Using Hamiltonian Dynamics (Neal, 2011), https://arxiv.org/abs/1206.1901;
A Generalized Guided Monte Carlo Algorithm (Horowitz, 1991), https://doi.org/10.1016/0370-2693(91)90812-5
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from blackjax.mcmc import hmc, integrators, metrics, trajectory

from ppl_diffusion.arrays import Array

from .line_integral import Rule, WorkDensity, init_state, velocity_verlet
from .walker import Info, LogDensity, info_of

DIVERGENCE = 1000.0
"""Growth of the Hamiltonian, in nats, from which on a trajectory of an unadjusted kernel diverges; BlackJAX's value."""


def init_chain(key: Array, position: Array, momentum: Array | None, log_density: LogDensity, *, keep: bool) -> Any:
    """Return BlackJAX's state of a chain at ``position (size,)``; a momentum that is kept is drawn if it is None."""
    if not keep:
        momentum = jnp.zeros_like(position)  # redrawn before it is used
    elif momentum is None:
        momentum = jax.random.normal(key, position.shape, position.dtype)
    if isinstance(log_density, WorkDensity):
        return init_state(log_density, position, momentum)  # type: ignore[arg-type]
    return integrators.new_integrator_state(log_density, position, momentum)


def adjusted_step(
    key: Array, chain: Any, log_density: LogDensity, step: Array, *, leapfrogs: int, refreshment: float, work: Rule
) -> tuple[Any, Info]:
    """Propose the end of a trajectory by BlackJAX's HMC, and accept or reject it.

    Without an energy this is by the rule ``work``, see :mod:`bridges.blackjax.line_integral`.
    """
    key_momentum, key_accept = jax.random.split(key)
    kinetic = unit_mass(chain.position).kinetic_energy
    generate = hmc.hmc_proposal(_integrator(log_density, kinetic, work), kinetic, step, leapfrogs)
    chain, info, _ = generate(key_accept, refresh_momentum(key_momentum, chain, refreshment))
    # BlackJAX returns an accepted chain with its momentum flipped, and a rejected chain with its initial momentum.
    # Flipping both makes an accepted chain continue in its direction and a rejected chain reverse.
    chain = chain._replace(momentum=-chain.momentum)
    nonfinite = ~jnp.isfinite(info.proposal.logdensity)
    energy = kinetic(chain.momentum) - chain.logdensity
    return chain, info_of(info.acceptance_rate, info.is_divergent, nonfinite, leapfrogs, energy)


def unadjusted_step(
    key: Array, chain: Any, log_density: LogDensity, step: Array, *, leapfrogs: int, refreshment: float
) -> tuple[Any, Info]:
    """Move to the end of a trajectory without a Metropolis test.

    A trajectory that diverges is discarded: one that ends at a non-finite log-density, or at a Hamiltonian that has
    grown by ``DIVERGENCE``, because a chain thrown so far would not come back.
    """
    kinetic = unit_mass(chain.position).kinetic_energy
    integrate = trajectory.static_integration(_integrator(log_density, kinetic, "trapezoid"))
    begun = refresh_momentum(key, chain, refreshment)
    ended = integrate(begun, step, leapfrogs)
    finite = jnp.isfinite(ended.logdensity)
    before, after = (kinetic(state.momentum) - state.logdensity for state in (begun, ended))
    kept = finite & (after - before < DIVERGENCE)
    would_accept = jnp.where(kept, jnp.exp(jnp.minimum(before - after, 0.0)), 0.0)
    chain = jax.tree.map(lambda new, old: jnp.where(kept, new, old), ended, begun)
    info = info_of(jnp.nan, ~kept, ~finite, leapfrogs, jnp.where(kept, after, before))
    return chain, info._replace(adaptation=would_accept)


def _integrator(log_density: LogDensity, kinetic: Any, work: Rule) -> Any:
    """BlackJAX's leapfrog; for a target without an energy, the one that adds up the work of the score."""
    if isinstance(log_density, WorkDensity):
        return velocity_verlet(log_density, kinetic, work)
    return integrators.velocity_verlet(log_density, kinetic)


def refresh_momentum(key: Array, chain: Any, refreshment: float) -> Any:
    """Redraw the share ``refreshment`` in (0, 1] of the momentum's variance."""
    fresh = jax.random.normal(key, chain.momentum.shape, chain.momentum.dtype)
    kept = 0.0 if refreshment == 1 else (1 - refreshment) ** 0.5 * chain.momentum
    return chain._replace(momentum=kept + refreshment**0.5 * fresh)


def unit_mass(position: Array) -> Any:
    """Return BlackJAX's metric of unit masses for positions of the shape of ``position``."""
    return metrics.default_metric(jnp.ones_like(position))
