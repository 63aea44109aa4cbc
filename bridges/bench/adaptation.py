"""Kernels with the adaptation that BlackJAX ships for them, within an allowance of gradients per chain.

How many steps an allowance is worth is an estimate where trajectories have no fixed length; what adaptation has really
spent is counted at the potential and taken from the same budget as the draws.

Source: Tuning-Free Generalized Hamiltonian Monte Carlo (Hoffman and Sountsov, 2022),
https://proceedings.mlr.press/v151/hoffman22a.html; An Adaptive-MCMC Scheme for Setting Trajectory Lengths in
Hamiltonian Monte Carlo (Hoffman, Radul and Sountsov, 2021), https://proceedings.mlr.press/v130/hoffman21a.html;
Microcanonical Hamiltonian Monte Carlo (Robnik et al., 2023), https://arxiv.org/abs/2212.08549
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from blackjax.mcmc import adjusted_mclmc, adjusted_mclmc_dynamic, dynamic_hmc, ghmc, hmc, mclmc, nuts

from ppl_diffusion.arrays import Array

from ..blackjax.density import LogDensity
from .samplers import LibraryAdapted

DOUBLINGS = 6
"""A trajectory of NUTS has at most ``2 ** DOUBLINGS - 1`` leapfrogs, as our own NUTS."""

LEAPFROGS = 10
"""Leapfrogs of HMC after window adaptation."""

LONGEST = 30
"""Most leapfrogs of a trajectory that ChEES may ask for."""

TYPICAL = 15
"""Leapfrogs of a trajectory of NUTS, and of ChEES, by which an allowance is turned into steps."""


class _Visited(NamedTuple):
    """What is kept of every step of a window adaptation; XLA drops what is not used."""

    state: Any
    info: Any
    adaptation_state: Any


def _for_each(value: Any, chains: int) -> Any:
    """Repeat every array of shared parameters for every chain, along a new first axis."""
    return jax.tree.map(lambda array: jnp.broadcast_to(array, (chains, *jnp.shape(array))), value)


def meads(allowance: float) -> LibraryAdapted:
    """Generalised HMC, adapted by MEADS: one gradient a step, parameters shared by the chains."""

    def warm_up(log_density: LogDensity, key: Array, positions: Array, step: Array) -> tuple[Any, Any]:
        chains = len(positions)
        adaptation = blackjax.meads_adaptation(log_density, chains, num_folds=math.gcd(4, chains))
        (states, found), _ = adaptation.run(key, positions, max(2, int(allowance)))
        names = ("step_size", "momentum_inverse_scale", "alpha", "delta")
        return states, _for_each({name: found[name] for name in names}, chains)

    def move(log_density: LogDensity, key: Array, state: Any, parameters: Any) -> Any:
        return ghmc.build_kernel()(key, state, log_density, **parameters)

    return LibraryAdapted(warm_up, move)


def chees(allowance: float) -> LibraryAdapted:
    """HMC with jittered trajectories, their length adapted by ChEES over all chains."""
    import optax

    steps = {"integration_steps_fn": dynamic_hmc.halton_trajectory_length, "next_random_arg_fn": lambda i: i + 1}

    def warm_up(log_density: LogDensity, key: Array, positions: Array, step: Array) -> tuple[Any, Any]:
        chains = len(positions)
        adaptation = blackjax.chees_adaptation(log_density, chains, max_leapfrog_steps=LONGEST)
        count = max(4, int(allowance / TYPICAL))
        (states, found), _ = adaptation.run(key, positions, step, optax.adam(0.05), count)
        length = jnp.minimum(found["integration_steps_params"][0], LONGEST)
        shared = {
            "step_size": found["step_size"],
            "inverse_mass_matrix": found["inverse_mass_matrix"],
            "length": length,
        }
        return states, _for_each(shared, chains)

    def move(log_density: LogDensity, key: Array, state: Any, parameters: Any) -> Any:
        kernel = dynamic_hmc.build_kernel(**steps)
        step, mass, length = parameters["step_size"], parameters["inverse_mass_matrix"], parameters["length"]
        return kernel(key, state, log_density, step, mass, integration_steps_params=(length,))

    return LibraryAdapted(warm_up, move)


def windows(algorithm: str, allowance: float, *, low_rank: bool = False) -> LibraryAdapted:
    """NUTS or HMC with Stan's windows: step size and a diagonal mass matrix, or one of low rank, for every chain."""
    build = {"nuts": nuts.build_kernel, "hmc": hmc.build_kernel}[algorithm]
    further = {"nuts": {"max_num_doublings": DOUBLINGS}, "hmc": {"num_integration_steps": LEAPFROGS}}[algorithm]
    count = max(4, int(allowance / {"nuts": TYPICAL, "hmc": LEAPFROGS}[algorithm]))
    library = getattr(blackjax, algorithm)

    def warm_up(log_density: LogDensity, key: Array, positions: Array, step: Array) -> tuple[Any, Any]:
        adapt = blackjax.window_adaptation_low_rank if low_rank else blackjax.window_adaptation
        adaptation = adapt(library, log_density, adaptation_info_fn=_Visited, **further)
        run = partial(adaptation.run, num_steps=count)
        (_, found), visited = jax.vmap(run)(jax.random.split(key, len(positions)), positions)
        names = ("step_size", "inverse_mass_matrix")
        return jax.tree.map(lambda each: each[:, -1], visited.state), {name: found[name] for name in names}

    def move(log_density: LogDensity, key: Array, state: Any, parameters: Any) -> Any:
        return build()(key, state, log_density, **parameters, **further)

    return LibraryAdapted(warm_up, move)


def microcanonical(allowance: float) -> LibraryAdapted:
    """Unadjusted microcanonical Langevin dynamics with its tuner, two gradients a step, for every chain."""

    def warm_up(log_density: LogDensity, key: Array, positions: Array, step: Array) -> tuple[Any, Any]:
        count = max(20, int(allowance / 2 / (0.1 + 0.1 + 0.1 / 3 + 0.1)))  # the tuner's shares of it are what it takes

        def one(key: Array, position: Array) -> tuple[Any, Any]:
            key_init, key_tune = jax.random.split(key)
            state = mclmc.init(position, log_density, key_init)
            tuned = blackjax.mclmc_find_L_and_step_size(
                mclmc.build_kernel(), count, state, key_tune, logdensity_fn=log_density
            )
            return tuned[0], tuned[1]

        return jax.vmap(one)(jax.random.split(key, len(positions)), positions)

    def move(log_density: LogDensity, key: Array, state: Any, parameters: Any) -> Any:
        return mclmc.build_kernel()(
            key, state, log_density, parameters.inverse_mass_matrix, parameters.L, parameters.step_size
        )

    return LibraryAdapted(warm_up, move)


def adjusted_microcanonical(allowance: float, *, dynamic: bool) -> LibraryAdapted:
    """Microcanonical Hamiltonian dynamics with a Metropolis test and its tuner; trajectories of random length if
    ``dynamic``."""
    leapfrogs = 2.0  # the tuner's average, at two gradients each
    length = adjusted_mclmc_dynamic.make_random_trajectory_length_fn(dynamic)

    def kernel(key: Array, state: Any, log_density: LogDensity, step_size: Any, mass: Any, average: Any) -> Any:
        if dynamic:
            built = adjusted_mclmc_dynamic.build_kernel(integration_steps_fn=length)
            return built(
                key, state, log_density, step_size, inverse_mass_matrix=mass, integration_steps_params=(average,)
            )
        whole = jnp.maximum(jnp.ceil(average), 1).astype(int)
        return adjusted_mclmc.build_kernel()(
            key, state, log_density, step_size, integration_steps_params=(whole,), inverse_mass_matrix=mass
        )

    def tuned_kernel(
        rng_key: Array,
        state: Any,
        logdensity_fn: LogDensity,
        step_size: Any,
        inverse_mass_matrix: Any,
        integration_steps_params: Any,
    ) -> Any:
        return kernel(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix, *integration_steps_params)

    def warm_up(log_density: LogDensity, key: Array, positions: Array, step: Array) -> tuple[Any, Any]:
        count = max(20, int(allowance / (2 * leapfrogs) / 0.3))  # a tenth of it three times

        def one(key: Array, position: Array) -> tuple[Any, Any]:
            key_init, key_tune = jax.random.split(key)
            given = (position, log_density, key_init) if dynamic else (position, log_density)
            state = (adjusted_mclmc_dynamic if dynamic else adjusted_mclmc).init(*given)
            tuned = blackjax.adjusted_mclmc_find_L_and_step_size(
                tuned_kernel, log_density, count, state, key_tune, target=0.9 if dynamic else 0.8
            )
            return tuned[0], tuned[1]

        return jax.vmap(one)(jax.random.split(key, len(positions)), positions)

    def move(log_density: LogDensity, key: Array, state: Any, parameters: Any) -> Any:
        average = parameters.L / parameters.step_size
        return kernel(key, state, log_density, parameters.step_size, parameters.inverse_mass_matrix, average)

    return LibraryAdapted(warm_up, move)
