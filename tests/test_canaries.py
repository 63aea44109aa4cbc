"""Parts of other libraries that are private or experimental, on which bridges lean. Each test names what has changed.

If one fails after an upgrade, this library has not changed: the message names the part that has, and the file that
leans on it. Stay with the releases in ``constraints.txt`` until that file is adapted.
"""

from __future__ import annotations

import inspect
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import mcmc

NAMES = {
    "jax.experimental.buffer_callback.buffer_callback": "bridges/torch_jax/callback.py",
    "jax.core.Tracer": "ppl_diffusion/schedule.py, ppl_diffusion/potentials/target.py",
    "jax.dtypes.canonicalize_dtype": "bridges/torch_jax/callback.py",
    "jax.enable_x64": "every crossing of bridges/torch_jax and bridges/blackjax",
    "blackjax.mcmc.hmc.hmc_proposal": "bridges/blackjax/trajectories.py",
    "blackjax.mcmc.integrators.new_integrator_state": "bridges/blackjax/trajectories.py",
    "blackjax.mcmc.integrators.velocity_verlet": "bridges/blackjax/trajectories.py",
    "blackjax.mcmc.metrics.default_metric": "bridges/blackjax/trajectories.py",
    "blackjax.mcmc.trajectory.static_integration": "bridges/blackjax/trajectories.py",
    "pyro.distributions.util.scale_and_mask": "bridges/pyro: sites, prior, flat, likelihood, curved, coordinates",
    "pyro.distributions.util.sum_rightmost": "bridges/pyro: prior, coordinates",
    "pyro.ops.welford.WelfordCovariance": "bridges/pyro/walker.py",
    "pyro.poutine.messenger.Messenger": "bridges/pyro: sites, prior, factor, coordinates",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_part_is_where_it_was(name):
    module, _, part = name.rpartition(".")
    assert hasattr(import_module(module), part), f"{name} has gone or moved; {NAMES[name]} leans on it"


def test_jax_hands_its_buffers_to_callbacks_and_keeps_float64():
    from jax.experimental.buffer_callback import buffer_callback

    def double(context, out, x):
        np.asarray(out)[...] = 2 * np.asarray(x)

    with jax.enable_x64(True):
        twice = buffer_callback(double, jax.ShapeDtypeStruct((3,), jnp.float64), vmap_method="expand_dims")
        seen = jax.jit(twice)(jnp.full(3, 1 + 1e-12))
        assert seen.dtype == jnp.float64
        assert float(seen[0]) == 2 + 2e-12, "jax.experimental.buffer_callback rounds; bridges/torch_jax/callback.py"
    assert jnp.zeros(1).dtype == jnp.float32, "jax.enable_x64 does not end with its block"


def test_blackjax_builds_trajectories_as_before():
    from blackjax.mcmc import hmc, integrators, metrics, trajectory

    kinetic = metrics.default_metric(jnp.ones(2)).kinetic_energy
    state = integrators.new_integrator_state(lambda x: -0.5 * x @ x, jnp.ones(2), jnp.ones(2))
    assert {"position", "momentum", "logdensity", "logdensity_grad"} <= set(state._fields), (
        "fields of blackjax.mcmc.integrators.IntegratorState; bridges/blackjax/trajectories.py"
    )
    verlet = integrators.velocity_verlet(lambda x: -0.5 * x @ x, kinetic)
    ended = trajectory.static_integration(verlet)(state, 0.1, 3)
    generate = hmc.hmc_proposal(verlet, kinetic, 0.1, 3)
    chain, info, _ = generate(jax.random.key(0), state)
    assert {"acceptance_rate", "is_divergent", "proposal"} <= set(info._fields), "fields of blackjax's HMCInfo"
    np.testing.assert_allclose(chain.position, ended.position, rtol=1e-6)
    np.testing.assert_allclose(
        chain.momentum, -ended.momentum, rtol=1e-6, err_msg="BlackJAX no longer flips the momentum of accepted chains"
    )


@pytest.mark.parametrize("kind", ["HMC", "NUTS"])
def test_pyros_kernels_keep_a_cache_and_counts_under_the_same_names(kind):
    options = {"adapt_step_size": False, "adapt_mass_matrix": False} | ({"max_tree_depth": 3} if kind == "NUTS" else {})
    sampler = getattr(mcmc, kind)(potential_fn=lambda z: 0.5 * (z["x"] ** 2).sum(), **options)
    sampler.initial_params = {"x": torch.zeros(2)}
    sampler.setup(warmup_steps=0)
    leans = f"pyro.infer.mcmc.{kind} has changed; bridges/pyro/walker.py and kernels.py lean on it: "
    for name in ("_adapter", "_cache", "_fetch_from_cache", "_t", "_mean_accept_prob", "_divergences"):
        assert hasattr(sampler, name), leans + name
    assert hasattr(sampler._adapter, "step_size"), leans + "_adapter.step_size"
    assert ("x",) in sampler.mass_matrix_adapter.inverse_mass_matrix, leans + "keys of inverse masses"
    x = torch.tensor([0.3, -0.2])
    sampler._cache({"x": x}, 0.5 * (x**2).sum(), {"x": x})
    sampler._adapter.step_size = 1e-6
    sampler.trajectory_length = 1.5e-6
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        sampler.sample({"x": torch.full((2,), 9.0)})
    z, _, _ = sampler._fetch_from_cache()
    np.testing.assert_allclose(z["x"], x, atol=1e-4, err_msg=leans + "a step no longer starts from the cache")


def test_pyros_masked_distributions_keep_their_mask():
    masked = dist.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False]))
    assert masked._mask.tolist() == [True, False], "MaskedDistribution._mask; bridges/pyro/prior.py, coordinates.py"
    assert "mask" in inspect.signature(import_module("pyro.distributions.util").scale_and_mask).parameters
