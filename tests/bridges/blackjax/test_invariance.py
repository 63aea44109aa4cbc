"""Every adjusted kernel leaves its density invariant, and the check rejects wrong kernels."""

from __future__ import annotations

from dataclasses import dataclass

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc import integrators, trajectory
from checks import ACCEPTANCE_WINDOW, ALPHA, invariance

import bridges.blackjax.trajectories as trajectories
from bridges.blackjax import HMC, MALA, NUTS, UHMC, ULA, from_blackjax
from bridges.blackjax.trajectories import refresh_momentum, unit_mass
from bridges.blackjax.walker import BlackJAXWalker, info_of
from bridges.torch_jax import to_jax
from ppl_diffusion import Adaptive, EnergyFunction, GaussianMixture, NoiseSchedule, UniformBox

pytestmark = pytest.mark.slow
SCHEDULE = NoiseSchedule.cosine(100)
LEVEL = 30
MODES = GaussianMixture(
    [[-1.2, 0.3], [1.0, -0.5], [0.4, 1.6]],
    [[0.3, 0.6], [0.5, 0.2], [0.4, 0.4]],
    weights=[0.2, 0.5, 0.3],
    schedule=SCHEDULE,
    backend="jax",
)
TILTED = GaussianMixture(
    [[0.0, 1.0, -1.0, 0.5, 0.0]],
    covariances=[np.diag([1.0, 0.5, 2.0, 1.0, 0.3]) + 0.2],
    schedule=SCHEDULE,
    backend="jax",
)
WALLS = UniformBox([-0.5, 0.2], [1.0, 2.0], schedule=SCHEDULE, backend="jax")
NARROW = GaussianMixture([[0.3, -0.2], [-0.1, 0.4]], [0.02, 0.03], schedule=SCHEDULE, backend="jax")
"""A density that changes noticeably between neighbouring clean levels."""
TARGETS = {"modes": MODES, "tilted": TILTED, "walls": WALLS}

STEPS = {
    "HMC": {"modes": 0.78, "tilted": 0.99, "walls": 0.81},
    "refreshed": {"modes": 0.78, "tilted": 0.99, "walls": 0.81},
    "jittered": {"modes": 1.0, "tilted": 1.2, "walls": 1.0},
    "MALA": {"modes": 0.76, "tilted": 0.93, "walls": 0.81},
    "NUTS": {"modes": 0.78, "tilted": 1.0, "walls": 0.83},
    "blackjax_mala": {"modes": 0.29, "tilted": 0.44, "walls": 0.33},
    "blackjax_barker": {"modes": 0.82, "tilted": 0.86, "walls": 0.83},
    "blackjax_rmh": {"modes": 0.3, "tilted": 0.3, "walls": 0.15},
    "blackjax_ghmc": {"modes": 0.76, "tilted": 0.93, "walls": 0.81},
    "blackjax_dynamic_hmc": {"modes": 0.8, "tilted": 1.0, "walls": 0.8},
}


WITH_WALLS = {("HMC", "walls")}
"""Checked in every run, beside the modes, which every kernel and every wrong twin is given."""


def random_walk(step: float, *, drift: float = 0.0):
    """Random-walk Metropolis; with a drift, the proposal is not symmetric, but the kernel assumes that it is."""

    def propose(key, x):
        return x + step * jax.random.normal(key, x.shape) + drift

    return from_blackjax(blackjax.rmh.build_kernel, blackjax.rmh.init, transition_generator=propose)


def generalised(init, step: float):
    """Generalised HMC, whose momentum and slice persist from step to step."""
    parameters = {"step_size": step, "momentum_inverse_scale": 1.0, "alpha": 0.1, "delta": 0.2}
    return from_blackjax(blackjax.ghmc.build_kernel, init, **parameters)


def kernel_of(name: str, step: float, size: int = 2):
    return {
        "HMC": lambda: HMC(step=step),
        "refreshed": lambda: HMC(step=step, refreshment=0.1),
        "jittered": lambda: HMC(step=Adaptive(initial=step, target_acceptance=0.75), refreshment=0.5),
        "MALA": lambda: MALA(step=step),
        "NUTS": lambda: NUTS(step=step),
        "blackjax_mala": lambda: from_blackjax(blackjax.mala.build_kernel, blackjax.mala.init, step_size=step),
        "blackjax_barker": lambda: from_blackjax(
            blackjax.barker_proposal.build_kernel, blackjax.barker_proposal.init, step_size=step
        ),
        "blackjax_rmh": lambda: random_walk(step),
        "blackjax_ghmc": lambda: generalised(blackjax.ghmc.init, step),
        "blackjax_dynamic_hmc": lambda: from_blackjax(
            blackjax.dynamic_hmc.build_kernel,
            blackjax.dynamic_hmc.init,
            step_size=step,
            inverse_mass_matrix=np.ones(size),
        ),
    }[name]()


def check(kernel, potential, *, level=LEVEL):
    return invariance(kernel, potential, lambda n, seed: potential.sample(n, level=level, seed=seed), level=level)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(name, target, marks=() if target == "modes" or (name, target) in WITH_WALLS else pytest.mark.long)
        for name in STEPS
        for target in TARGETS
    ],
)
def test_every_adjusted_kernel_leaves_its_density_invariant(name, target):
    found = check(kernel_of(name, STEPS[name][target], *TARGETS[target].event_shape), TARGETS[target])
    assert ACCEPTANCE_WINDOW[0] <= found.acceptance_rate <= ACCEPTANCE_WINDOW[1]
    assert found.moved > 0.99
    assert found.smallest > ALPHA, found


def test_a_torch_potential_is_left_invariant_across_the_bridge():
    torch_modes = GaussianMixture(
        MODES.means, np.sqrt(MODES.variances), weights=MODES.weights, schedule=SCHEDULE, backend="torch"
    )
    found = check(HMC(step=0.78), torch_modes)
    assert ACCEPTANCE_WINDOW[0] <= found.acceptance_rate <= ACCEPTANCE_WINDOW[1]
    assert found.smallest > ALPHA, found


# ---- negative controls: each differs by one line from a correct kernel


@dataclass(frozen=True)
class KineticDropped(HMC):
    """Kinetic energies cancel, as if the momentum were updated in place, so that p squared is sampled."""

    def step_chain(self, key, chain, log_density, step):
        begun = refresh_momentum(key, chain, 1.0)
        kinetic = unit_mass(chain.position).kinetic_energy
        integrate = trajectory.static_integration(integrators.velocity_verlet(log_density, kinetic))
        ended = integrate(begun, step, self.leapfrogs)
        rate = jnp.exp(jnp.minimum(ended.logdensity - begun.logdensity, 0.0))
        accept = jax.random.uniform(jax.random.fold_in(key, 1)) < rate
        chain = jax.tree.map(lambda new, old: jnp.where(accept, new, old), ended, begun)
        return chain, info_of(rate, False, False, self.leapfrogs, jnp.nan)


@dataclass(frozen=True)
class WrongProposalVariance(MALA):
    """The proposal's density is taken with variance h^2 instead of 2h, h = eps^2 / 2."""

    def step_chain(self, key, chain, log_density, step):
        h = step**2 / 2
        noise = jax.random.normal(key, chain.position.shape)
        position = chain.position + h * chain.logdensity_grad + jnp.sqrt(2 * h) * noise
        ended = integrators.new_integrator_state(log_density, position, chain.momentum)

        def log_proposal(to, start):
            return -jnp.sum((to.position - start.position - h * start.logdensity_grad) ** 2) / (2 * h**2)

        change = ended.logdensity - chain.logdensity + log_proposal(chain, ended) - log_proposal(ended, chain)
        rate = jnp.exp(jnp.minimum(change, 0.0))
        accept = jax.random.uniform(jax.random.fold_in(key, 1)) < rate
        chain = jax.tree.map(lambda new, old: jnp.where(accept, new, old), ended, chain)
        return chain, info_of(rate, False, False, 1, jnp.nan)


@dataclass(frozen=True)
class NoFlip(HMC):
    """The momentum is not flipped after a rejection."""

    def step_chain(self, key, chain, log_density, step):
        kinetic = unit_mass(chain.position).kinetic_energy
        integrate = trajectory.static_integration(integrators.velocity_verlet(log_density, kinetic))
        begun = refresh_momentum(key, chain, self.refreshment)
        ended = integrate(begun, step, self.leapfrogs)
        change = ended.logdensity - kinetic(ended.momentum) - begun.logdensity + kinetic(begun.momentum)
        rate = jnp.exp(jnp.minimum(change, 0.0))
        accept = jax.random.uniform(jax.random.fold_in(key, 1)) < rate
        chain = jax.tree.map(lambda new, old: jnp.where(accept, new, old), ended, begun)
        return chain, info_of(rate, False, False, self.leapfrogs, jnp.nan)


class BegunAtRest(HMC):
    """A momentum that is mostly kept is not drawn on arrival."""

    keeps_momentum = False


class _Mutant(HMC):
    walker: type

    def bind(self, potential):
        return self.walker(self, to_jax(potential))


class _StaleEnergy(BlackJAXWalker):
    """At every step, the energy at the start belongs to the previous level."""

    def _step(self, key, chains, level, step, scales):
        stale = jax.vmap(self._log_density(level + 1))(chains.position)
        return super()._step(key, chains._replace(logdensity=stale), level, step, scales)


class _OneLevelOff(BlackJAXWalker):
    """The kernel runs at the next level instead of the current one."""

    def _step(self, key, chains, level, step, scales):
        return super()._step(key, chains, level - 1, step, scales)


class _JointAccept(BlackJAXWalker):
    """One accept decision, on the mean energy difference, for the whole batch."""

    def _step(self, key, chains, level, step, scales):
        log_density = self._log_density(level)
        kinetic = jax.vmap(unit_mass(chains.position[0]).kinetic_energy)
        integrate = trajectory.static_integration(
            integrators.velocity_verlet(log_density, unit_mass(chains.position[0]).kinetic_energy)
        )
        begun = refresh_momentum(key, chains, 1.0)
        ended = jax.vmap(lambda one: integrate(one, step, 3))(begun)
        change = ended.logdensity - kinetic(ended.momentum) - begun.logdensity + kinetic(begun.momentum)
        rate = jnp.exp(jnp.minimum(jnp.mean(change), 0.0))
        accept = jax.random.uniform(jax.random.fold_in(key, 1)) < rate
        chains = jax.tree.map(lambda new, old: jnp.where(accept, new, old), ended, begun)
        info = info_of(jnp.exp(jnp.minimum(change, 0.0)), False, False, 3.0, jnp.nan)
        return chains, jax.tree.map(lambda array: jnp.broadcast_to(array, change.shape), info)


class _StepOfTheState(BlackJAXWalker):
    """The step size depends on the position of the chain."""

    def _step(self, key, chains, level, step, scales):
        keys, log_density = jax.random.split(key, len(chains.position)), self._log_density(level)
        steps = step * jnp.where(chains.position[:, 0] > 0, 1.0, 0.3)
        return jax.vmap(lambda key, one, step: self.kernel.step_chain(key, one, log_density, step))(keys, chains, steps)


class Scaled(BlackJAXWalker):
    """Coordinates have length scales, as other latent sites of a model have after the first rung."""

    def arrive(self, positions, level, previous, *, seed):
        state = super().arrive(positions, level, previous, seed=seed)
        return super().arrive(positions, level, state._replace(scales=np.array([1.0, 0.5])), seed=seed)


class _ScaledOnArrival(Scaled):
    """The positions are returned in scaled coordinates."""

    def _state(self, level, chains, *others):
        return super()._state(level, chains, *others)._replace(positions=np.asarray(chains.position))


def mutant(walker, step):
    return type(walker.__name__, (_Mutant,), {"walker": walker})(step=step)


WRONG = {
    "unadjusted at a large step": ULA(step=0.76),
    "unadjusted trajectories at a large step": UHMC(step=0.78),
    "kinetic term dropped": KineticDropped(step=0.78),
    "wrong proposal variance": WrongProposalVariance(step=0.76),
    "no flip after rejection": NoFlip(step=0.78, refreshment=0.1),
    "a momentum that begins at zero": BegunAtRest(step=0.78, refreshment=0.1),
    "a drift that is not weighed": random_walk(0.3, drift=0.1),
    "one momentum for all chains": generalised(
        lambda x, f: blackjax.ghmc.init(x, logdensity_fn=f, rng_key=jax.random.key(0)), 0.76
    ),
    "one decision for the batch": mutant(_JointAccept, 0.78),
    "a step that depends on the state": mutant(_StepOfTheState, 0.9),
}


@pytest.mark.parametrize("walker", [Scaled, _ScaledOnArrival])
def test_scales_of_coordinates_leave_the_density_invariant(walker):
    found = check(mutant(walker, 1.0), MODES)
    assert ACCEPTANCE_WINDOW[0] <= found.acceptance_rate <= ACCEPTANCE_WINDOW[1]
    assert (found.smallest > ALPHA) == (walker is Scaled), found


@pytest.mark.parametrize("name", WRONG)
def test_the_check_rejects(name):
    found = check(WRONG[name], MODES)
    assert found.smallest < ALPHA, found


@pytest.mark.parametrize("walker", [_StaleEnergy, _OneLevelOff, None])
def test_the_check_rejects_a_kernel_that_takes_one_level_for_another(walker):
    found = check(HMC(step=0.08) if walker is None else mutant(walker, 0.08), NARROW, level=2)
    assert ACCEPTANCE_WINDOW[0] <= found.acceptance_rate <= ACCEPTANCE_WINDOW[1]
    assert (found.smallest > ALPHA) == (walker is None), found


@pytest.mark.parametrize("kernel", [ULA, pytest.param(UHMC, marks=pytest.mark.long)])
def test_bias_of_unadjusted_kernels_falls_with_the_square_of_the_step(kernel):
    """On N(0, 1) both have the variance of the leapfrog integrator's shadow density, 1 / (1 - eps^2 / 4)."""
    normal = EnergyFunction(lambda x, level: 0.5 * (x**2).sum(-1), schedule=SCHEDULE, event_shape=(4,), backend="jax")
    for step in (0.4, 0.8):
        walker = kernel(step=step).bind(normal)
        x = np.random.default_rng(1).standard_normal((20_000, 4))
        state, _ = walker.move(walker.arrive(x, 0, None, seed=2), 60, seed=3)
        found = np.asarray(state.positions)
        variance = np.var(found)
        expected = 1 / (1 - step**2 / 4)
        error = expected * np.sqrt(2 / found.size)
        assert abs(variance - expected) < 4 * error
        assert variance - 1 > 4 * error


@pytest.mark.parametrize("threshold", [trajectories.DIVERGENCE, np.inf])
@pytest.mark.parametrize("kernel", [ULA(), UHMC()])
def test_unadjusted_chains_do_not_run_away(kernel, threshold, monkeypatch):
    """In a potential steeper than a parabola a step that is too long throws a chain out for good, if it is kept."""
    monkeypatch.setattr(trajectories, "DIVERGENCE", threshold)

    def well(x, level):
        return 0.5 * ((x[..., 0] ** 2 - 0.3) / 0.3) ** 2 + 0.5 * (x[..., 1] / 0.4) ** 2

    potential = EnergyFunction(well, schedule=SCHEDULE, event_shape=(2,), backend="jax")
    walker = kernel.bind(potential)
    x = np.random.default_rng(0).standard_normal((500, 2))
    state, info = walker.move(walker.arrive(x, 0, None, seed=0), 200, seed=1)
    away = np.abs(np.asarray(state.positions)).max() > 10
    assert away == np.isinf(threshold)
    if away:  # the wrong twin
        return
    assert info["diverging"].sum() > 0, "and it is told"
    assert info["nonfinite"].sum() == 0
    assert info["step_size"][0] > 0.05, "nor do such chains shorten the step of all"


@pytest.mark.parametrize("refreshment", [0.01, 1.0])
def test_a_momentum_that_is_kept_keeps_its_direction(refreshment):
    """Flipping it at every step, and not only on rejection, is invariant too, but leads back and forth."""
    walker = HMC(step=0.05, leapfrogs=1, refreshment=refreshment).bind(MODES)
    states = [walker.arrive(MODES.sample(1000, level=50, seed=0), 50, None, seed=0)]
    for seed in (1, 2):
        states.append(walker.move(states[-1], 1, seed=seed)[0])
    first, second = np.diff([np.asarray(state.positions) for state in states], axis=0)
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert correlation > 0.8 if refreshment < 1 else abs(correlation) < 0.2


def test_gradients_are_those_of_the_energy_in_scaled_coordinates_too():
    walker = HMC(step=0.3).bind(MODES)
    state = walker.arrive(np.random.default_rng(0).standard_normal((5, 2)), 30, None, seed=0)
    state = walker.arrive(state.positions, 30, state._replace(scales=np.array([1.0, 0.5])), seed=1)
    state, _ = walker.move(state, 3, seed=2)
    with jax.enable_x64(True):
        energy, gradient = MODES.value_and_grad(np.asarray(state.positions), level=30)
    np.testing.assert_allclose(state.energy, energy, rtol=1e-10)
    np.testing.assert_allclose(state.gradient, gradient, rtol=1e-10)


@pytest.mark.parametrize(("jitter", "left"), [(0.03, 0.01), (1.0, None)])
def test_chains_in_a_steep_place_are_not_left_behind(jitter, left):
    """A tenth of the chains start where steps that suit the others are always rejected; the mean does not show it."""

    def funnel(x, level):
        v, rest = x[..., 0], x[..., 1:]
        return 0.5 * v**2 + 0.5 * (rest**2).sum(-1) * jnp.exp(-2 * v) + 3 * v

    potential = EnergyFunction(funnel, schedule=SCHEDULE, event_shape=(4,), backend="jax")
    rng = np.random.default_rng(0)
    v = rng.standard_normal(2000)
    v[:200] = -3.0
    x = np.column_stack([v, np.exp(np.maximum(v, -0.5))[:, None] * rng.standard_normal((2000, 3))])
    walker = HMC(step=Adaptive(jitter=jitter)).bind(potential)
    _, info = walker.move(walker.arrive(x, 0, None, seed=0), 80, seed=1)
    stuck = np.mean(info["acceptance_rate"][:200] < 0.02)
    assert 0.7 < info["acceptance_rate"].mean() < 0.9
    assert stuck < left if left else stuck > 0.1, stuck


@pytest.mark.long
def test_a_mixture_is_sampled_with_its_level_scale_inside_the_logsumexp():
    """A mixture is left invariant; one with the scale outside the logsumexp (a defect in released code) is not."""
    left, right = (GaussianMixture([[m, 0.0]], [0.3], schedule=SCHEDULE, backend="jax") for m in (-0.6, 0.6))
    mixed = 0.3 * left + 0.7 * right

    def exact(n, seed):
        rng = np.random.default_rng(seed)
        parts = np.stack([p.sample(n, level=LEVEL, seed=seed + 7 * i) for i, p in enumerate((left, right))])
        return np.where(rng.random((n, 1)) < 0.3, parts[0], parts[1])

    sigma = SCHEDULE.sigma(LEVEL)
    outside = EnergyFunction(
        lambda x, level: (
            -jnp.logaddexp(
                jnp.log(0.3) - sigma * left.energy(x, level=LEVEL), jnp.log(0.7) - sigma * right.energy(x, level=LEVEL)
            )
            / sigma
        ),
        schedule=SCHEDULE,
        event_shape=(2,),
        backend="jax",
    )
    for potential, right_one in ((mixed, True), (outside, False)):
        found = invariance(HMC(step=0.8), potential, exact, level=LEVEL)
        assert ACCEPTANCE_WINDOW[0] <= found.acceptance_rate <= ACCEPTANCE_WINDOW[1]
        assert (found.smallest > ALPHA) == right_one, found


def test_hmc_with_one_leapfrog_is_blackjax_mala():
    """The same noise gives the same proposal and the same acceptance probability, to rounding."""
    step, key = 0.7, jax.random.key(5)
    log_density = MALA().bind(MODES)._log_density(LEVEL)
    kinetic = unit_mass(jnp.zeros(2)).kinetic_energy

    @jax.jit
    def both(x):
        start = blackjax.mala.init(x, log_density)
        key_noise, key_accept = jax.random.split(key)
        theirs = blackjax.mala.build_kernel()(key, start, log_density, step**2 / 2)
        momentum = blackjax.util.generate_gaussian_noise(key_noise, x)
        propose = blackjax.mcmc.hmc.hmc_proposal(integrators.velocity_verlet(log_density, kinetic), kinetic, step, 1)
        state = integrators.IntegratorState(x, momentum, start.logdensity, start.logdensity_grad)
        return theirs, propose(key_accept, state)[:2]

    with jax.enable_x64(True):
        for x in MODES.sample(20, level=LEVEL, seed=3):
            (moved, info), (chain, ours) = both(jnp.asarray(x))
            np.testing.assert_allclose(ours.acceptance_rate, info.acceptance_rate, rtol=1e-12, atol=1e-15)
            np.testing.assert_allclose(chain.position, moved.position, rtol=0, atol=1e-15)
