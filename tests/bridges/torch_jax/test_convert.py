"""Conversion between torch and JAX potentials: same energies and gradients, float64, one call for all chains."""

from __future__ import annotations

import gc
import operator
import weakref
from contextlib import nullcontext

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bridges.blackjax import HMC, from_blackjax
from bridges.torch_jax import to_jax, to_torch
from bridges.torch_jax.convert import cpu_device_for, reraise_torch_errors
from ppl_diffusion import (
    EnergyFunction,
    EnergyModel,
    GaussianMixture,
    Ladder,
    NoiseSchedule,
    anneal,
    load,
    observation,
    tapestry,
)
from ppl_diffusion.models.conditions import Classes
from ppl_diffusion.models.networks import EnergyUNet
from ppl_diffusion.potentials.leaf import Leaf

SCHEDULE = NoiseSchedule.cosine(30)


def pair(backend):
    p = GaussianMixture([[0.4, -0.2], [-0.6, 0.5]], [0.3, 0.2], schedule=SCHEDULE, backend=backend, name="p")
    q = GaussianMixture([[0.1, 0.3]], [0.5], schedule=SCHEDULE, backend=backend, name="q")
    return p, q


def hook_calls(network):
    """Count the points of every call of a network from now on."""
    sizes = []
    network.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    return sizes


def points(count=9):
    return np.random.default_rng(0).standard_normal((count, 2))


def test_energies_cross_in_float64_and_leave_the_default_alone():
    """One ulp of float32 at 1e5 is 0.008, enough to change an accept decision."""
    offset = EnergyFunction(
        lambda x, level: 1e5 + 1e-6 * (x**2).sum(-1), schedule=SCHEDULE, event_shape=(2,), backend="torch", name="large"
    )
    with jax.enable_x64(True):
        value, gradient = jax.jit(lambda x: to_jax(offset).value_and_grad(x, level=3))(points())
        assert value.dtype == jnp.float64
        np.testing.assert_allclose(np.asarray(value) - 1e5, 1e-6 * (points() ** 2).sum(1), atol=1e-10)
        np.testing.assert_allclose(gradient, 2e-6 * points(), rtol=1e-12)
    assert jnp.zeros(1).dtype == jnp.float32
    assert to_jax(offset).energy(points(), level=3).dtype == jnp.float32


@pytest.mark.parametrize("level", [0, 12, 29])
def test_crossings_agree_with_the_potential_that_they_carry(level):
    with jax.enable_x64(True):
        for here, there in ((pair("torch"), to_jax), (pair("jax"), to_torch)):
            potential = here[0] * here[1] ** 0.7
            crossed = there(potential)
            assert crossed.backend != potential.backend
            np.testing.assert_array_equal(there(here[0]).reference, here[0].reference)
            for mine, yours in zip(
                potential.value_and_grad(points(), level=level),
                crossed.value_and_grad(points(), level=level),
                strict=True,
            ):
                np.testing.assert_allclose(np.asarray(yours), np.asarray(mine), rtol=1e-12)


def test_there_and_back_is_the_same_object():
    p, q = pair("torch")
    assert to_torch(to_jax(p * q)).factors == (p, q)
    j = pair("jax")[0]
    assert to_jax(to_torch(j)) is j
    assert to_jax(j) is j
    assert to_torch(p) is p


def test_chains_walk_where_the_networks_are():
    """With networks on the CPU chains stay there, even if JAX defaults to a GPU; otherwise JAX's default is used."""
    square = {
        device: EnergyFunction(
            lambda x, level: (x**2).sum((-1, -2)), schedule=SCHEDULE, event_shape=(2, 2), backend="torch", device=device
        )
        for device in ("cpu", "meta")
    }
    canvas = tapestry([square["cpu"]] * 2, (2, 3), windows=[(0, 0), (0, 1)])
    for torchs in (square["cpu"], square["cpu"] ** 2 + square["cpu"], canvas):
        assert cpu_device_for(to_jax(torchs), "gpu").platform == "cpu"
        assert cpu_device_for(to_jax(torchs), "cpu") is None
    assert cpu_device_for(to_jax(square["meta"] ** 2), "gpu") is None
    assert cpu_device_for(pair("jax")[0], "gpu") is None


def test_jax_transformations_work_on_a_crossed_potential():
    crossed = to_jax(pair("torch")[0])
    with jax.enable_x64(True):
        _, gradient = crossed.value_and_grad(points(), level=4)
        one = jax.grad(lambda x: crossed.energy(x, level=4))
        np.testing.assert_allclose(jax.vmap(one)(jnp.asarray(points())), gradient, rtol=1e-10)
        np.testing.assert_allclose(jax.jit(jax.vmap(one))(jnp.asarray(points())), gradient, rtol=1e-10)
        scaled = jax.grad(lambda x: 3 * crossed.energy(x, level=4).sum())(jnp.asarray(points()))
        np.testing.assert_allclose(scaled, 3 * np.asarray(gradient), rtol=1e-10)


def test_torch_transformations_work_on_a_crossed_potential():
    crossed = to_torch(pair("jax")[0])
    x = torch.from_numpy(points())
    _, gradient = crossed.value_and_grad(x, level=4)
    leaf = x.clone().requires_grad_()
    (2 * crossed.energy(leaf, level=4).sum()).backward()
    np.testing.assert_allclose(leaf.grad, 2 * gradient, rtol=1e-10)
    batched = torch.func.vmap(torch.func.grad(lambda row: crossed.energy(row, level=4)))(x)
    np.testing.assert_allclose(batched, gradient, rtol=1e-10)


@pytest.mark.slow
def test_a_composition_of_jax_potentials_in_torch_does_not_cross_twice():
    p, q = pair("jax")
    both = to_torch(p) * to_torch(q)
    home = to_jax(both)
    assert home.factors == (p, q)
    trace = anneal(both, HMC(), ladder=Ladder(levels=(29, 0), steps=2), chains=5, seed=0)
    direct = anneal(p * q, HMC(), ladder=Ladder(levels=(29, 0), steps=2), chains=5, seed=0)
    np.testing.assert_allclose(trace.positions, direct.positions, rtol=1e-10)


def test_torch_factors_beside_jax_ones_keep_their_references_apart():
    p, q = pair("torch")
    home = to_torch(pair("jax")[0])
    for expression in (p * q, p * q * home, p * p**0.5):
        theirs = to_jax(expression).reference
        for mine, yours in zip(expression.reference, theirs, strict=True):
            np.testing.assert_array_equal(mine, yours)


def test_windows_of_a_tapestry_do_not_cross_twice():
    square = EnergyFunction(
        lambda x, level: (x**2).sum((-1, -2)), schedule=SCHEDULE, event_shape=(2, 2), backend="jax", name="square"
    )
    inside = to_torch(square)
    canvas = tapestry([inside, inside**2], (2, 3), windows=[(0, 0), (0, 1)])
    home = to_jax(canvas * canvas)
    assert {leaf.potentials[0] for leaf in home.leaves()} == {square}
    x = np.random.default_rng(0).standard_normal((4, 2, 3))
    np.testing.assert_allclose(home.energy(x, level=3), (canvas * canvas).energy(x, level=3), rtol=1e-6)
    anneal(canvas, HMC(), ladder=Ladder(levels=(29, 0), steps=1), chains=3, seed=0)


def test_a_callback_that_would_call_jax_says_so_instead_of_waiting_for_ever():
    inner = to_torch(pair("jax")[0])
    outer = EnergyFunction(
        lambda x, level: inner.energy(x, level=level),
        schedule=SCHEDULE,
        event_shape=(2,),
        backend="torch",
        name="outer",
    )
    with pytest.raises(Exception, match="without to_torch"):
        anneal(outer, HMC(), ladder=Ladder(levels=(29, 0), steps=1), chains=3, seed=0)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_errors_inside_a_callback_reach_the_caller(kind):
    def fails(x, level):
        raise kind("the network is out of order") from ValueError("a fuse")

    broken = EnergyFunction(fails, schedule=SCHEDULE, event_shape=(2,), backend="torch", name="broken")
    with pytest.raises(kind, match=r"^the network is out of order$") as caught:  # the original error
        anneal(broken, HMC(), ladder=Ladder(levels=(29, 0), steps=1), chains=3, seed=0)
    assert str(caught.value.__cause__) == "a fuse"
    crossed = to_jax(broken)
    with pytest.raises(kind, match=r"^the network is out of order$"), reraise_torch_errors(crossed):
        try:  # on the caller's own thread, JAX may raise an error of another type
            broken.energy(torch.zeros(1, 2), level=0)
        except BaseException as error:
            crossed.failure = error
            raise ValueError("INTERNAL: CpuCallback error") from error
    with pytest.raises(KeyboardInterrupt), reraise_torch_errors(crossed):
        raise ValueError("INTERNAL: CpuCallback error: ... in wrapped_callback KeyboardInterrupt:")
    with pytest.raises(ValueError, match="ours"), reraise_torch_errors(crossed):
        raise ValueError("ours")
    assert crossed.failure is None, "the walk of another potential, or a later one, knows nothing of it"
    crossed.failure = kind("of a call that the caller has handled")
    with pytest.raises(ValueError, match="ours"), reraise_torch_errors(crossed):
        raise ValueError("ours")


def walked_on(kind, kernel):
    """Walk on a potential that nobody keeps, and return whether it is still there."""
    potential = pair("torch" if kind == "torch" else "jax")[0] ** 1.1
    potential = to_jax(pair("torch")[1]) * potential if kind == "both" else potential
    anneal(potential, kernel, ladder=Ladder(levels=(29, 0), steps=1), chains=3, seed=0)
    alive = weakref.ref(potential)
    del potential
    gc.collect()
    return alive() is not None


def test_second_derivatives_of_a_jax_potential_in_torch_are_refused():
    """Autograd would leave them out, and return the Hessian of the rest of the expression."""
    target = to_torch(pair("jax")[0]) * pair("torch")[1]
    x = torch.tensor([0.1, 0.2], dtype=torch.float64)

    def energy(x):
        return target.energy(x, level=3)

    slope = target.value_and_grad(x, level=3)[1]
    torch.testing.assert_close(torch.func.jacrev(energy)(x), slope)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(energy))(x[None])[0], slope)
    for twice in (torch.func.jacrev(torch.func.jacrev(energy)), lambda x: torch.autograd.functional.hessian(energy, x)):
        with pytest.raises(RuntimeError, match="second derivatives in JAX"):
            twice(x)


def jiggle(key, x):
    return x + 0.1 * jax.random.normal(key, x.shape)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jax", "torch", "both"])
@pytest.mark.parametrize("kernel", ["HMC", "random walk"])
def test_a_potential_that_was_walked_on_is_freed(kind, kernel, monkeypatch):
    """JAX keeps what it compiles as long as the callbacks in it live, so these must not keep their potentials."""
    walk = from_blackjax(blackjax.rmh.build_kernel, blackjax.rmh.init, transition_generator=jiggle)
    assert not walked_on(kind, HMC() if kernel == "HMC" else walk)
    if kind == "torch":
        monkeypatch.setattr("bridges.blackjax.context.outlived_by", lambda called: nullcontext())
        assert walked_on(kind, HMC() if kernel == "HMC" else walk), "the wrong twin keeps them"


def windows():
    network = EnergyUNet((1, 8, 8), widths=(8,), blocks=1, classes=3)
    seen = {"schedule": SCHEDULE, "event_shape": (1, 8, 8)}
    model = EnergyModel(network, form="squared_norm", conditions=Classes(3), name="tiny", **seen)
    woven = tapestry([model.given(0), model.given(2)], (1, 8, 12), [(0, 0), (0, 4)], name="woven")
    return woven * observation(np.full((1, 8, 12), 0.2), scale=0.5, schedule=SCHEDULE, backend="torch"), [network], 40


def planar():
    models = [load("ring"), load("bar")]
    return models[0] * models[1] ** 0.5, [model.network for model in models], 20


@pytest.mark.parametrize("kind", ["planar", "exact", "windows"])
def test_chains_have_levels_of_their_own(kind):
    """Mapped over blocks of chains and their levels, the callback comes once, and a network that can is called once."""
    exact = operator.mul(*pair("torch")), [], 0
    target, networks, count = {"planar": planar, "exact": lambda: exact, "windows": windows}[kind]()
    crossed, levels = to_jax(target), jnp.array([20, 3, 3, 29])
    x = np.random.default_rng(1).standard_normal((4, 5, *target.event_shape)).astype(np.float32)
    called = [hook_calls(network) for network in networks]
    with jax.enable_x64(True):

        def of_chains(x, level):
            return jax.vmap(lambda one: crossed.value_and_grad(one, level=level))(x)

        found = jax.vmap(of_chains)(x, levels)
        alone = jax.vmap(jax.vmap(lambda one, level: crossed.energy(one, level=level), in_axes=(0, None)))(x, levels)
    np.testing.assert_allclose(alone, found[0], rtol=1e-5)
    assert called == [[count, count] for _ in networks], "all points in one call, and in another for energies alone"
    for i, level in enumerate(levels.tolist()):
        due = target.value_and_grad(torch.from_numpy(x[i]), level=level)
        for mine, theirs in zip(found, due, strict=True):
            np.testing.assert_allclose(mine[i], theirs, rtol=1e-4, atol=1e-4)


def test_levels_are_mapped_with_their_points():
    crossed = to_jax(pair("torch")[0])
    with pytest.raises(Exception, match="map over both"):
        jax.vmap(lambda level: crossed.energy(points(), level=level))(jnp.arange(9)).block_until_ready()


class Summed(Leaf):
    """A potential of the wrong shape: one energy for all chains."""

    backend, schedule, event_shape, name = "torch", NoiseSchedule.cosine(10), (2,), "summed"

    def _evaluate(self, x, level):
        return 0.5 * (x**2).sum(), x

    def _evaluate_energy(self, x, level):
        return 0.5 * (x**2).sum()


def test_one_energy_for_all_chains_is_refused():
    with pytest.raises(Exception, match=r"summed returned shape \(\) where \(5,\) is due"):
        np.asarray(to_jax(Summed()).value_and_grad(np.ones((5, 2), dtype=np.float32), level=3)[0])


def test_a_potential_may_keep_its_points():
    """XLA reuses its buffers when a callback has returned, so points must be copies."""
    kept, told = [], []

    def energy(x, level):
        kept.append(x)
        told.append(x.detach().clone())
        return 0.5 * (x**2).sum(-1)

    target = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="torch")
    anneal(target, HMC(), ladder=Ladder(levels=(29, 10, 0), steps=5), chains=64, seed=0)
    assert len(kept) > 40
    assert all(torch.equal(x.detach(), then) for x, then in zip(kept, told, strict=True))
