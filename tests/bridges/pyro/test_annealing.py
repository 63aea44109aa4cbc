"""Diffusion priors in Pyro models: closed forms, known pitfalls of Pyro, and rejected models."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import jax
import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from checks import ACCEPTANCE_WINDOW, ALPHA, LogQuadratics, invariance, moment_errors
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy import stats

import bridges.blackjax.kernels as blackjax_bridge
import bridges.pyro.walker as pyro_walker
from bridges.arviz import diagnose, to_inference_data
from bridges.pyro import HMC, NUTS, DiffusionPrior, JointPotential, anneal_model, at_level, from_model
from bridges.pyro.likelihood import Linearisation, annealed_distribution, clean_estimate
from bridges.pyro.walker import PyroWalker
from ppl_diffusion import Adaptive, EnergyFunction, GaussianMixture, Ladder, NoiseSchedule, Trace, anneal, load
from ppl_diffusion.sampling.arrival import reverse_step
from ppl_diffusion.sampling.still import Still

SCHEDULE = NoiseSchedule.cosine(100)
PRIOR = GaussianMixture(
    [[-0.6, 0.0, 0.5], [0.7, 0.5, -0.5]],
    [0.5, 0.6],
    weights=[0.4, 0.6],
    schedule=SCHEDULE,
    backend="torch",
    name="prior",
)
DESIGN = torch.tensor([[1.0, 0.5, 0.0], [0.0, -0.4, 1.0]], dtype=torch.float64)
SEEN = torch.tensor([0.3, -0.2], dtype=torch.float64)
SCALE = 0.6


@pytest.fixture(autouse=True)
def float64_models():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()


def linear(y):
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    pyro.sample("y", dist.Normal(DESIGN @ x, SCALE).to_event(1), obs=y)


def unknown_noise(y):
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(DESIGN @ x, noise + 0.2).to_event(1), obs=y)


_rng = np.random.default_rng(7)
WIDE_PRIOR = GaussianMixture(
    0.6 * _rng.standard_normal((2, 16)),
    _rng.uniform(0.4, 0.8, (2, 16)),
    weights=[0.3, 0.7],
    schedule=SCHEDULE,
    backend="torch",
    name="wide_prior",
)
WIDE_DESIGN = torch.from_numpy(_rng.standard_normal((6, 16)) / 2)
WIDE_SEEN = torch.from_numpy(0.8 * _rng.standard_normal(6))


def wide_linear(y):
    x = pyro.sample("x", DiffusionPrior(WIDE_PRIOR))
    pyro.sample("y", dist.Normal(WIDE_DESIGN @ x, SCALE).to_event(1), obs=y)


PROBLEMS = {3: (linear, PRIOR, DESIGN, SEEN), 16: (wide_linear, WIDE_PRIOR, WIDE_DESIGN, WIDE_SEEN)}


def posterior(size):
    """Return the posterior of the problem in 3 or 16 dimensions, in closed form."""
    _, prior, design, y = PROBLEMS[size]
    design, y = design.numpy(), y.numpy()
    likelihood = LogQuadratics((design.T @ design / SCALE**2)[None], (design.T @ y / SCALE**2)[None], np.zeros(1))
    return LogQuadratics.of(prior, level=0) * likelihood


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "seed"),
    [(3, 0), *(pytest.param(*pair, marks=pytest.mark.long) for pair in ((3, 1), (16, 0), (16, 1)))],
)
def test_annealed_blackjax_hmc_matches_the_exact_posterior(size, seed):
    """Compare mean, covariance, and the masses of the two modes of the posterior."""
    model, _, _, y = PROBLEMS[size]
    exact, ladder = posterior(size), Ladder.spaced(SCHEDULE, rungs=25, steps=12)
    trace = anneal_model(model, (y,), kernel=blackjax_bridge.HMC(), ladder=ladder, chains=1500, seed=seed)
    x = trace.sites["x"][:, 0]
    errors = moment_errors(x, *exact.moments()[:2])
    assert np.abs(errors).max() < 4, errors
    shares = exact.responsibilities(x)[:, 0]
    assert 0.1 < exact.shares[0] < 0.9
    assert abs(shares.mean() - exact.shares[0]) < 4 * shares.std() / np.sqrt(1500)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kernel", "size"),
    [
        pytest.param(HMC(), 3, id="HMC-3", marks=pytest.mark.long),
        pytest.param(HMC(), 16, id="HMC-16"),
        pytest.param(NUTS(max_doublings=3), 3, id="NUTS-3"),
        pytest.param(NUTS(max_doublings=3), 16, id="NUTS-16", marks=pytest.mark.long),
    ],
)
def test_pyros_own_kernels_match_the_exact_posterior(kernel, size):
    """Standard errors come from the means of whole chains, which are independent."""
    model, _, _, y = PROBLEMS[size]
    exact, ladder = posterior(size), Ladder.spaced(SCHEDULE, rungs=10, steps=3)
    trace = anneal_model(model, (y,), kernel=kernel, ladder=ladder, chains=40, draws=25, seed=0)
    mean, covariance, _ = exact.moments()
    centred = trace.sites["x"] - mean
    products = np.einsum("cdi,cdj->cdij", centred, centred) - covariance
    shares = exact.responsibilities(trace.sites["x"])[..., :1] - exact.shares[0]
    upper = np.triu_indices(size)
    parts = (centred.mean(1), products.mean(1)[:, upper[0], upper[1]], shares.mean(1))
    features = np.concatenate(parts, axis=1)
    errors = features.mean(0) / (features.std(0, ddof=1) / np.sqrt(40))
    assert np.abs(errors).max() < stats.t.isf(0.5e-3 / len(errors), 39), errors
    assert 0.5 < float(trace.stats.acceptance_rate.mean()) < 0.95


def noise_by_quadrature():
    """A grid of scales of ``unknown_noise``, their posterior masses, and the log-evidence."""
    grid = np.linspace(1e-3, 6, 4000)
    log_p = stats.halfnorm.logpdf(grid)
    design, y = DESIGN.numpy(), SEEN.numpy()
    alpha, sigma = SCHEDULE.alpha(0), SCHEDULE.sigma(0)
    parts = []
    for weight, m, c in zip(PRIOR.weights, PRIOR.means, PRIOR.covariances, strict=True):
        signal = design @ (alpha**2 * c + sigma**2 * np.eye(3)) @ design.T
        residual = y - alpha * design @ m
        covariances = signal + (grid + 0.2)[:, None, None] ** 2 * np.eye(2)
        solved = np.linalg.solve(covariances, np.broadcast_to(residual[:, None], (len(grid), 2, 1)))[..., 0]
        parts.append(np.log(weight) - 0.5 * solved @ residual - 0.5 * np.linalg.slogdet(2 * np.pi * covariances)[1])
    log_p = log_p + np.logaddexp.reduce(parts, axis=0)
    total = np.logaddexp.reduce(log_p)
    return grid, np.exp(log_p - total), total + np.log(grid[1] - grid[0])


@pytest.mark.slow
def test_the_marginal_of_an_unknown_noise_scale_matches_quadrature():
    grid, p, _ = noise_by_quadrature()
    ladder = Ladder.spaced(SCHEDULE, rungs=25, steps=6)
    trace = anneal_model(unknown_noise, (SEEN,), kernel=blackjax_bridge.HMC(), ladder=ladder, chains=1500, seed=1)
    noise = trace.sites["noise"][:, 0]
    assert np.all(noise > 0), "sites come back constrained"
    for power in (1, 2):
        found, exact = noise**power, p @ grid**power
        assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(1500)


class Silent(JointPotential):
    """Negative control: the change of energy by refreshing other sites is not reported, and so enters the weights."""

    def refresh(self, positions, level, *, rng):
        return super().refresh(positions, level, rng=rng)[0], 0.0


@pytest.mark.long
@pytest.mark.parametrize(
    "kind",
    [
        JointPotential,
        pytest.param(Silent, marks=[pytest.mark.filterwarnings("ignore:the start density"), pytest.mark.long]),
    ],
)
def test_the_evidence_matches_quadrature(kind):
    expected = noise_by_quadrature()[2]
    joint, ladder = kind(unknown_noise, (SEEN,), likelihood="widened"), Ladder.spaced(SCHEDULE, rungs=12, steps=2)
    kernel = blackjax_bridge.HMC()
    ratios = [
        np.exp(anneal(joint, kernel, ladder=ladder, chains=500, seed=seed, resample=0.5).log_normaliser - expected) - 1
        for seed in range(10)
    ]
    error = np.mean(ratios) / (np.std(ratios, ddof=1) / np.sqrt(10))
    assert (abs(error) < 4) == (kind is JointPotential), (error, ratios)


@pytest.mark.parametrize("likelihood", ["widened", "tempered", "rescaled", "tweedie"])
@pytest.mark.parametrize("level", [0, 40])
def test_the_joint_energy_and_its_gradient(likelihood, level):
    """Compare the energy with its formula, single chains with a batch, and the gradient with finite differences."""
    joint = JointPotential(unknown_noise, (SEEN,), likelihood=likelihood)
    flat = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    energy, gradient = joint.value_and_grad(flat, level=level)
    x, u = flat[:, :3], flat[:, 3]
    alpha, sigma = SCHEDULE.alpha(level), SCHEDULE.sigma(level)
    prior, slope = PRIOR.value_and_grad(x, level=level)
    m, v = (torch.as_tensor(value) for value in PRIOR.reference)
    total = alpha**2 * v + sigma**2
    known = {"widened": m + alpha * v * (x - alpha * m) / total, "tweedie": (x - sigma**2 * slope) / alpha}
    clean = x if level == 0 else known.get(likelihood, x / alpha)
    further = torch.diag(sigma**2 * v / total) if likelihood == "widened" and level else torch.zeros(3, 3)
    exponent = alpha**2 if likelihood == "tempered" and level else 1.0
    covariance = (u.exp() + 0.2)[:, None, None] ** 2 * torch.eye(2) + DESIGN @ further.double() @ DESIGN.T
    log_y = dist.MultivariateNormal(clean @ DESIGN.T, covariance).log_prob(SEEN)
    log_noise = dist.HalfNormal(1.0).log_prob(u.exp()) + u
    torch.testing.assert_close(energy, prior - exponent * log_y - log_noise)
    torch.testing.assert_close(joint.energy(flat, level=level), energy)
    torch.testing.assert_close(torch.stack([joint.energy(row, level=level) for row in flat]), energy)
    for i in range(4):
        step = 1e-6 * torch.eye(4, dtype=torch.float64)[i]
        slope_i = (joint.energy(flat + step, level=level) - joint.energy(flat - step, level=level)) / 2e-6
        torch.testing.assert_close(slope_i, gradient[:, i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "widens"),
    [
        (lambda x: dist.StudentT(4.0, x, 0.3), True),
        (lambda x: dist.Normal(x, 0.3).expand([2, 3]).to_event(1), True),
        (lambda x: dist.Laplace(x, 0.3).mask(torch.tensor([True, False, True])), True),
        (lambda x: dist.Poisson(x.exp()), False),
    ],
    ids=["StudentT", "Normal", "Laplace", "Poisson"],
)
def test_what_has_no_scale_is_tempered(make, widens):
    x = torch.tensor([0.1, 0.5, -0.2])
    fn = make(x)
    alpha, sigma, v = SCHEDULE.alpha(40), SCHEDULE.sigma(40), PRIOR.reference[1]
    left = torch.as_tensor(sigma**2 * v / (alpha**2 * v + sigma**2))
    widening = Linearisation(2.0).widening(left)
    found, power = annealed_distribution(fn, [PRIOR], 40, "widened", widening=widening)
    assert (found.batch_shape, found.event_shape) == (fn.batch_shape, fn.event_shape)
    assert power == (1.0 if widens else pytest.approx(alpha**2))
    if widens:
        inner = found.base_dist if hasattr(found, "base_dist") and hasattr(found.base_dist, "scale") else found
        wide = (0.3**2 + 2 * float(left.max())) ** 0.5
        torch.testing.assert_close(inner.scale, wide * torch.ones(inner.scale.shape))
    else:
        assert found is fn
    assert annealed_distribution(fn, [PRIOR], 0, "widened", widening=widening) == (fn, 1.0)


ROUND = GaussianMixture([[0.3, -0.2, 0.1]], [0.7], schedule=SCHEDULE, backend="torch", name="round")
FLAT = GaussianMixture([[0.3, -0.2, 0.1]], [[0.7, 0.1, 1.5]], schedule=SCHEDULE, backend="torch", name="flat")
CROSSED = GaussianMixture([[0.3, -0.2, 0.1]], [[0.7, 0.1, 1.5]], schedule=SCHEDULE, backend="jax", name="crossed")
BLURS = {
    "fewer values than x": torch.tensor([[1.0, 0.5, 0.0], [0.0, -0.4, 1.0]], dtype=torch.float64),
    "as many": torch.tensor([[0.6, 0.3, 0.0], [0.3, 0.4, 0.3], [0.0, 0.3, 0.6]], dtype=torch.float64),
    "more": torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.0, 0.5, 0.5], [0.0, 0.5, 0.4], [0.2, 0.0, 0.0]]),
    "pixels": torch.eye(3, dtype=torch.float64)[:2],
}


@pytest.mark.parametrize("blur", BLURS.values(), ids=BLURS)
@pytest.mark.parametrize("level", [2, 40, 90])
@pytest.mark.parametrize("prior", [ROUND, FLAT, CROSSED], ids=str)
def test_the_path_is_exact_for_gaussian_data_and_a_linear_model(blur, level, prior):
    """Compare with the exact joint density of ``x_k`` and an unknown scale at several levels, known by conjugacy."""
    blur, seen = blur.double(), torch.linspace(-0.5, 0.8, len(blur), dtype=torch.float64)

    def model():
        x = pyro.sample("x", DiffusionPrior(prior))
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        pyro.sample("y", dist.Normal(blur @ x, noise).to_event(1), obs=seen)

    flat = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = flat[:, 3].exp()
    alpha, sigma = SCHEDULE.alpha(level), SCHEDULE.sigma(level)
    m, v = torch.tensor(prior.means[0]), torch.tensor(prior.covariances[0])
    # Given the scale, x_k and y are jointly Gaussian.
    means = torch.cat([alpha * m, blur @ m])
    cross = alpha * blur @ v
    corner = blur @ v @ blur.T + noise[:, None, None] ** 2 * torch.eye(len(blur))
    top = torch.cat([alpha**2 * v + sigma**2 * torch.eye(3), cross.T], 1).expand(5, -1, -1)
    whole = torch.cat([top, torch.cat([cross.expand(5, -1, -1), corner], 2)], 1)
    points = torch.cat([flat[:, :3], seen.expand(5, -1)], 1)
    exact = -dist.MultivariateNormal(means, whole).log_prob(points) - dist.HalfNormal(1.0).log_prob(noise) - noise.log()
    joint = JointPotential(model, likelihood="widened")
    found = joint.energy(flat, level=level)
    torch.testing.assert_close(found - found[0], exact - exact[0], rtol=1e-6, atol=1e-6)
    pixels = torch.equal(blur @ blur.T, torch.eye(len(blur)))
    assert (joint.observations.widenings(level)["y"].basis is None) == pixels
    if not pixels:  # negative control: widened value by value
        twin = JointPotential(model, likelihood="widened")
        twin.observations.linearisations = {"y": Linearisation()}
        found = twin.energy(flat, level=level)
        assert not torch.allclose(found - found[0], exact - exact[0], rtol=1e-5, atol=1e-5)


def test_sites_are_widened_by_what_they_see():
    """Two views of ``x`` share its uncertainty; a site that does not depend on ``x`` is not widened."""

    def model(views=1):
        x = pyro.sample("x", DiffusionPrior(ROUND))
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        for view in range(views):
            pyro.sample(f"y{view}", dist.Normal(2 * x, noise).to_event(1), obs=torch.zeros(3))
        pyro.sample("apart", dist.Normal(noise, 1.0), obs=torch.tensor(1.0))
        pyro.sample("loud", dist.Normal(x[:1], 0.1 + x[:1].abs()), obs=torch.zeros(1))
        pyro.sample("some", dist.Normal(x, noise).mask(torch.tensor([True, False, True])), obs=torch.zeros(3))

    before = torch.get_rng_state()
    once, twice = (
        JointPotential(model, (views,), likelihood="widened").observations.linearisations for views in (1, 2)
    )
    assert torch.equal(before, torch.get_rng_state())
    for found, values in ((once, 8), (twice, 11)):
        variances = {name: site.widening(torch.ones(3, dtype=torch.float64)).variances for name, site in found.items()}
        assert variances["y0"].numpy() == pytest.approx(4 * values / 3)
        assert variances["apart"] == 0
        assert found["some"].jacobian is None, "masked"
        assert variances["some"] == variances["loud"] == pytest.approx(values / 3)
    assert JointPotential(model, likelihood="tempered").observations.linearisations == {}


@pytest.mark.parametrize("wrong", [False, True])
def test_other_sites_are_refreshed_from_their_conditional(wrong):
    """At fixed ``x``, refreshing converges to the conditional, and reports the change of energy correctly."""
    level, draws = 30, 4000
    joint = JointPotential(unknown_noise, (SEEN,), likelihood="widened")
    flat = np.tile([0.2, -0.1, 0.4, 0.0], (draws, 1))
    rng, total = np.random.default_rng(0), np.zeros(draws)
    x = flat
    for _ in range(25):
        x, change = joint.refresh(x, level + 60 * wrong, rng=rng)
        total += change
    if not wrong:
        energies = [joint.energy(values, level=level).numpy() for values in (flat, x)]
        np.testing.assert_allclose(energies[1] - energies[0], total, atol=1e-9)
    assert np.array_equal(x[:, :3], flat[:, :3])
    grid = np.linspace(-9, 4, 4000)
    points = np.concatenate([np.tile(flat[:1, :3], (4000, 1)), grid[:, None]], 1)
    density = np.exp(-joint.energy(points, level=level).numpy())
    cumulative = np.cumsum(density) / density.sum()
    p = stats.kstest(np.interp(x[:, 3], grid, cumulative), "uniform").pvalue
    assert (p < ALPHA) == wrong, p


def test_the_stand_in_is_the_mean_of_gaussian_data():
    """E[x | x_k] of the reference Gaussian equals Tweedie's estimate from the exact score."""
    mean, variance = -0.7, 0.4
    known = GaussianMixture([[mean] * 2], [variance**0.5], schedule=SCHEDULE, backend="torch")
    x = torch.randn(5, 2, dtype=torch.float64)
    for level in (0, 30, 90):
        alpha, sigma = SCHEDULE.alpha(level), SCHEDULE.sigma(level)
        tweedie = (x - sigma**2 * known.value_and_grad(x, level=level)[1]) / alpha
        torch.testing.assert_close(clean_estimate(x, known, level, "widened"), tweedie if level else x)
    digits = load("digits")
    assert (digits.given(3) ** 2).reference == digits.reference == (digits * digits.given(1)).reference
    assert (load("ring") * load("bar")).reference == (0.0, 1.0)


def counted(calls):
    def energy(x, level):
        calls.append(tuple(x.shape))
        return 0.5 * (x**2).sum(-1)

    return EnergyFunction(energy, schedule=NoiseSchedule.cosine(10), event_shape=(2,), backend="torch", name="counted")


@pytest.mark.parametrize("step", [0.1, 0.07, 1 / 3])
def test_a_trajectory_takes_exactly_the_leapfrogs_that_were_asked_for(step):
    """Pitfall: Pyro's HMC(step_size=0.1, num_steps=43) takes 42 steps. Also, nothing is evaluated twice."""
    calls: list = []
    walker = HMC(step=step, leapfrogs=43).bind(counted(calls))
    state = walker.arrive(np.zeros((2, 2)), 3, None, seed=0)
    assert len(calls) == 1
    assert calls[0] == (2, 2)
    _, info = walker.move(state, 2, seed=0)
    assert len(calls) == 1 + 2 * 2 * 43
    assert int(info["gradient_calls"]) == 2 * 2 * 43


TARGET = GaussianMixture(
    [[-1.2, 0.3], [1.0, -0.5]], [[0.3, 0.6], [0.5, 0.3]], weights=[0.3, 0.7], schedule=SCHEDULE, backend="torch"
)


def invariant(kernel, steps=8):
    return invariance(
        kernel, TARGET, lambda n, seed: TARGET.sample(n, level=30, seed=seed), level=30, chains=400, steps=steps
    )


JITTERED = HMC(step=Adaptive(initial=1.0, target_acceptance=0.75))
KERNELS = {"HMC": HMC(step=0.8), "NUTS": NUTS(step=0.8, max_doublings=3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel",
    [*KERNELS.values(), pytest.param(JITTERED, marks=pytest.mark.long)],
    ids=[*KERNELS, "jittered"],
)
def test_pyros_kernels_leave_the_density_invariant(kernel):
    found = invariant(kernel)
    assert ACCEPTANCE_WINDOW[0] <= found.acceptance_rate <= ACCEPTANCE_WINDOW[1]
    assert found.moved > 0.95
    assert found.smallest > ALPHA, found


@pytest.mark.long
def test_adapted_masses_leave_the_density_invariant():
    found = invariant(HMC(step=0.5, leapfrogs=2), steps=20)
    assert ACCEPTANCE_WINDOW[0] <= found.acceptance_rate <= ACCEPTANCE_WINDOW[1]
    assert found.smallest > ALPHA, found


@pytest.mark.long
@pytest.mark.parametrize("dead", [pyro_walker.ZERO_DENSITY_ENERGY, 1.0], ids=["right", "wrong twin"])
@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(HMC(step=0.4, leapfrogs=2), id="HMC"),
        pytest.param(NUTS(step=0.4, max_doublings=3), id="NUTS"),
    ],
)
def test_a_wall_leaves_the_density_invariant(kernel, dead, monkeypatch):
    """The target is half a Gaussian; the negative control treats points in the tail as having zero density."""
    monkeypatch.setattr(pyro_walker, "ZERO_DENSITY_ENERGY", dead)

    def half(x, level):
        return torch.where(x[..., 0] > 0, 0.5 * x[..., 0] ** 2, torch.inf)

    def exact(n, seed):
        return abs(np.random.default_rng(seed).standard_normal((n, 1)))

    potential = EnergyFunction(half, schedule=SCHEDULE, event_shape=(1,), backend="torch")
    found = invariance(kernel, potential, exact, level=3, chains=1000, steps=8)
    assert ACCEPTANCE_WINDOW[0] <= found.acceptance_rate <= ACCEPTANCE_WINDOW[1]
    assert (found.smallest > ALPHA) == (dead > 1), found


class OneLevelForAnother(PyroWalker):
    def _potential(self, params):
        self.level = 70
        return super()._potential(params)


@dataclass(frozen=True)
class Wrong(HMC):
    def bind(self, potential):
        return OneLevelForAnother(self, potential)


@pytest.mark.long
def test_the_check_rejects_a_pyro_kernel_that_walks_at_another_level():
    assert invariant(Wrong(step=0.8)).smallest < ALPHA


class Scaled(PyroWalker):
    """Coordinates have length scales, as other latent sites of a model have after the first rung."""

    def arrive(self, positions, level, previous, *, seed):
        state = super().arrive(positions, level, previous, seed=seed)
        return super().arrive(positions, level, state._replace(scales=np.array([1.0, 0.6])), seed=seed)


class ScaledByTheState(Scaled):
    """Negative control: the scale of a coordinate depends on the position of the chain."""

    def _step(self, state, seeds):
        near = 1.0 / (1.0 + 4.0 * (state.positions[:, 1:] > 0))
        return super()._step(state._replace(carried=state.carried * np.hstack([np.ones_like(near), near])), seeds)


@pytest.mark.long
@pytest.mark.parametrize("walker", [Scaled, ScaledByTheState])
def test_scales_leave_the_density_invariant(walker):
    kernel = type("Kernel", (HMC,), {"bind": lambda self, potential: walker(self, potential)})(step=0.8)
    found = invariant(kernel)
    assert ACCEPTANCE_WINDOW[0] <= found.acceptance_rate <= ACCEPTANCE_WINDOW[1], found
    assert (found.smallest > ALPHA) == (walker is Scaled), found


def test_no_energy_is_stale_when_the_level_or_the_position_changes():
    """Pitfall: with a filled cache, Pyro ignores the given position and keeps the energy of the previous density."""

    def energy(x, level):
        return 0.5 * (x**2).sum(-1) * (1 + 100 * level)

    potential = EnergyFunction(energy, schedule=NoiseSchedule.cosine(10), event_shape=(2,), backend="torch")
    walker = HMC(step=1e-6).bind(potential)
    state = walker.arrive(np.full((3, 2), 1.0), 9, None, seed=0)
    state, _ = walker.move(state, 2, seed=0)
    state = walker.arrive(np.full((3, 2), 2.0), 0, state, seed=0)
    state, _ = walker.move(state, 2, seed=0)
    np.testing.assert_allclose(state.positions, 2.0, atol=1e-4)
    np.testing.assert_allclose(state.energy, 0.5 * (state.positions**2).sum(1), rtol=1e-12)
    np.testing.assert_allclose(state.gradient, state.positions, rtol=1e-12)


@pytest.mark.long
def test_processes_change_nothing_but_the_time():
    """The trace does not depend on the number of processes."""
    ladder = Ladder(levels=(99, 40, 0), steps=2)
    traces = [
        anneal_model(linear, (SEEN,), kernel=HMC(), ladder=ladder, chains=3, draws=2, seed=0, workers=workers)
        for workers in (1, 2)
    ]
    np.testing.assert_array_equal(traces[0].positions, traces[1].positions)
    np.testing.assert_array_equal(traces[0].stats.acceptance_rate, traces[1].stats.acceptance_rate)
    assert traces[0].attributes["kernel"] == traces[1].attributes["kernel"]


@pytest.mark.slow
def test_islands_of_a_model_are_the_same_elsewhere():
    settings = {
        "kernel": HMC(),
        "ladder": Ladder.spaced(SCHEDULE, rungs=3, steps=1),
        "chains": 4,
        "draws": 2,
        "seed": 0,
    }

    def elsewhere(function, items):
        copy = pickle.loads(pickle.dumps(function))
        return [copy(item) for item in items]

    here, there = (
        anneal_model(unknown_noise, (SEEN,), islands=2, resample=0.5, spread=spread, **settings)
        for spread in (None, elsewhere)
    )
    assert here.attributes["islands"] == 2
    assert here.sites["noise"].shape == (4, 2)
    assert np.array_equal(here.positions, there.positions)
    assert np.array_equal(here.sites["noise"], there.sites["noise"])


@pytest.mark.long
def test_a_long_rung_learns_the_masses():
    """Masses are the variances over all chains, relative to the smallest; a short rung keeps unit mass."""
    scales = np.array([0.05, 1.0, 3.0])
    wide = GaussianMixture([[0.0, 0.0, 0.0]], [scales], schedule=SCHEDULE, backend="torch")
    walker = HMC(step=0.05, leapfrogs=4).bind(wide)
    state = walker.arrive(wide.sample(60, level=0, seed=0), 0, None, seed=0)
    assert (walker.move(state, 19, seed=1)[0].carried == 1).all()
    state, _ = walker.move(state, 24, seed=1)
    assert state.carried.shape == (60, 3)
    variances = scales**2 + SCHEDULE.sigma(0) ** 2
    np.testing.assert_allclose(state.carried[0], variances / variances[0], rtol=0.5)
    assert (walker.arrive(state.positions, 0, state, seed=0).carried == 1).all()
    unit, adapted = (walker.record(state._replace(carried=m), 20, seed=2)[1] for m in (np.ones((60, 3)), state.carried))
    moved = [np.abs(np.diff(x[..., 2], axis=1)).mean() for x in (unit, adapted)]
    assert moved[1] > 5 * moved[0], "the wide coordinate moves, the narrow one sets the step"
    assert (
        HMC(step=0.05, adapt_mass_matrix=False).bind(wide).move(state, 20, seed=1)[0].carried == state.carried
    ).all()


def test_each_chain_is_accepted_for_itself():
    """Pitfall: Pyro takes one accept decision for a whole batch."""
    potential = EnergyFunction(
        lambda x, level: 0.5 * (x**2).sum(-1), schedule=NoiseSchedule.cosine(10), event_shape=(1,), backend="torch"
    )
    walker = HMC(step=1.9, leapfrogs=1).bind(potential)
    state = walker.arrive(np.random.default_rng(0).standard_normal((60, 1)), 0, None, seed=0)
    moved, _ = walker.move(state, 1, seed=1)
    share = np.mean(moved.positions != state.positions)
    assert 0.1 < share < 0.95


def test_nothing_global_is_touched():
    pyro.clear_param_store()
    pyro.param("mine", torch.tensor(1.0))
    before = torch.get_rng_state(), dict(pyro.get_param_store().items())
    ladder = Ladder(levels=(99, 0), steps=1)
    one = anneal_model(linear, (SEEN,), kernel=HMC(), ladder=ladder, chains=2, draws=2, seed=0)
    again = anneal_model(linear, (SEEN,), kernel=HMC(), ladder=ladder, chains=2, draws=2, seed=0)
    np.testing.assert_array_equal(one.positions, again.positions)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert dict(pyro.get_param_store().items()) == before[1]
    assert not jax.config.jax_enable_x64
    pyro.clear_param_store()


def test_the_prior_is_a_distribution_among_distributions():
    prior = DiffusionPrior(PRIOR)
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(x), -PRIOR.energy(x, level=0))
    assert (prior.batch_shape, prior.event_shape) == ((), (3,))
    wide = prior.expand([5])
    assert wide.batch_shape == (5,)
    torch.testing.assert_close(wide.log_prob(x), prior.log_prob(x))
    assert wide.log_prob(x[0]).shape == (5,)
    assert prior.to_event(0).event_shape == (3,)
    torch.testing.assert_close(wide.to_event(1).log_prob(x), prior.log_prob(x).sum())
    assert bool(prior.support.check(x).all())


@pytest.mark.parametrize(
    "wrap", [lambda d: d, lambda d: d.mask(torch.tensor(True)), lambda d: d.expand([4]).to_event(1)]
)
def test_the_noise_level_is_set_by_a_handler_and_never_by_the_model(wrap):
    shape = wrap(DiffusionPrior(PRIOR)).shape()
    x = torch.randn(shape, dtype=torch.float64)

    def model():
        pyro.sample("x", wrap(DiffusionPrior(PRIOR)), obs=x)

    for level, handled in ((0, model), (30, at_level(30)(model))):
        expected = -PRIOR.energy(x, level=level).sum()
        torch.testing.assert_close(poutine.trace(handled).get_trace().log_prob_sum(), expected)


def test_plates_masks_and_scales_count_as_pyro_counts_them():
    def model(y):
        with pyro.plate("pictures", 2), poutine.scale(scale=0.5):
            x = pyro.sample("x", DiffusionPrior(PRIOR))
            with poutine.mask(mask=torch.tensor([True, False])):
                pyro.sample("y", dist.Normal(x.sum(-1), 1.0), obs=y)

    y = torch.tensor([0.4, 5.0], dtype=torch.float64)
    joint = JointPotential(model, (y,), likelihood="tempered")
    flat = torch.randn(3, 6, dtype=torch.float64)
    energy, gradient = joint.value_and_grad(flat, level=0)
    x = flat.reshape(3, 2, 3)
    log_y = dist.Normal(x.sum(-1), 1.0).log_prob(y) * torch.tensor([1.0, 0.0])
    torch.testing.assert_close(energy, 0.5 * (PRIOR.energy(x, level=0) - log_y).sum(1))
    conditioned = poutine.condition(model, {"x": x[0]})
    total = poutine.trace(conditioned).get_trace(y).log_prob_sum()
    torch.testing.assert_close(-total, energy[0])
    step = 1e-6 * torch.eye(6, dtype=torch.float64)[4]
    slope = (joint.energy(flat + step, level=0) - joint.energy(flat - step, level=0)) / 2e-6
    torch.testing.assert_close(slope, gradient[:, 4], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_trace_of_a_model_goes_to_disk_and_to_arviz(tmp_path):
    ladder = Ladder.spaced(SCHEDULE, rungs=8, steps=2)
    trace = anneal_model(
        unknown_noise, (SEEN,), kernel=blackjax_bridge.HMC(), ladder=ladder, chains=8, draws=25, seed=0
    )
    assert trace.sites["x"].shape == (8, 25, 3)
    loaded = Trace.load(trace.save(tmp_path / "run.nc"))
    np.testing.assert_array_equal(loaded.sites["noise"], trace.sites["noise"])
    posterior_group = to_inference_data(loaded)["posterior"]
    assert posterior_group["noise"].shape == (8, 25)
    assert "noise" in diagnose(loaded).draws["variable"].to_numpy()


def test_plates_name_dimensions_and_likelihoods_are_reported():
    def model(y):
        with pyro.plate("pictures", 2):
            x = pyro.sample("x", DiffusionPrior(PRIOR))
            bright = pyro.sample("bright", dist.HalfNormal(0.5))
            pyro.sample("y", dist.Normal(x[..., :2], bright[..., None] + 0.1).to_event(1), obs=y)

    y = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    trace = anneal_model(model, (y,), kernel=HMC(), ladder=Ladder(levels=(99, 0), steps=1), chains=2, draws=3, seed=0)
    data = to_inference_data(trace)
    assert data["posterior"]["x"].dims == ("chain", "draw", "pictures", "x_dim_1")
    assert data["posterior"]["bright"].dims == ("chain", "draw", "pictures")
    assert data["log_likelihood"]["y"].dims == ("chain", "draw", "pictures")
    np.testing.assert_allclose(data["observed_data"]["y"], y)
    x, bright = trace.sites["x"], trace.sites["bright"]
    expected = dist.Normal(torch.from_numpy(x[..., :2]), torch.from_numpy(bright)[..., None] + 0.1).log_prob(y).sum(-1)
    np.testing.assert_allclose(data["log_likelihood"]["y"], expected, rtol=1e-6)


def test_a_model_is_a_factor_of_an_expression():
    def likelihood(y):
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real_vector, (), (3,)))
        pyro.sample("y", dist.Normal(DESIGN @ x, SCALE).to_event(1), obs=y)

    factor = from_model(likelihood, (SEEN,), schedule=SCHEDULE, reference=PRIOR.reference)
    joint = JointPotential(linear, (SEEN,), likelihood="widened")
    x = torch.randn(4, 3, dtype=torch.float64)
    for level in (0, 60):
        for mine, yours in zip(
            (PRIOR * factor).value_and_grad(x, level=level), joint.value_and_grad(x, level=level), strict=True
        ):
            torch.testing.assert_close(mine, yours)
    assert (PRIOR * factor).exponent == 1.0
    assert str(PRIOR * factor) == "prior * likelihood"
    with pytest.raises(ValueError, match="one latent site 'x'"):
        from_model(no_prior, (ONE,), schedule=SCHEDULE)


def test_a_potential_is_a_factor_of_a_model():
    extra = GaussianMixture([[0.0, 0.0, 0.0]], [0.7], schedule=SCHEDULE, backend="torch")

    def model(y):
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.factor("extra", -extra.energy(x, level=0))
        pyro.sample("y", dist.Normal(DESIGN @ x, SCALE).to_event(1), obs=y)

    x = torch.randn(4, 3, dtype=torch.float64)
    found = JointPotential(model, (SEEN,), likelihood="tempered").energy(x, level=0)
    plain = JointPotential(linear, (SEEN,), likelihood="tempered").energy(x, level=0)
    torch.testing.assert_close(found, plain + extra.energy(x, level=0))


def test_prior_predictive_draws_by_annealing(monkeypatch):
    monkeypatch.setattr("bridges.pyro.prior.SAMPLE_LADDER", {"rungs": 6, "steps": 2})
    pyro.set_rng_seed(0)
    drawn = Predictive(unknown_noise, num_samples=3)(None)
    assert drawn["x"].shape == (3, 3)
    assert drawn["y"].shape == (3, 2)
    assert len(np.unique(drawn["x"].numpy())) == 9
    trace = anneal_model(unknown_noise, (SEEN,), **QUICK)
    data = to_inference_data(trace, prior=drawn)
    assert data["prior"]["x"].dims == ("chain", "draw", "x_dim_0")
    assert data["prior_predictive"]["y"].shape == (1, 3, 2)
    np.testing.assert_array_equal(data["prior"]["noise"][0], drawn["noise"])
    with pytest.raises(ValueError, match="a site 'z'"):
        to_inference_data(trace, prior={"z": drawn["x"]})


def test_prior_draws_align_with_the_posterior_whatever_plates_there_are():
    def model(y=None):
        with pyro.plate("items", 2):
            pyro.sample("s", dist.HalfNormal(1.0))
        x = pyro.sample("x", DiffusionPrior(PRIOR))
        pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    drawn = {"x": torch.zeros(4, 1, 3), "s": torch.ones(4, 2), "y": torch.zeros(4, 1, 3)}  # as Predictive shapes them
    data = to_inference_data(anneal_model(model, (torch.zeros(3),), **QUICK), prior=drawn)
    assert data["prior"]["x"].dims == data["posterior"]["x"].dims == ("chain", "draw", "x_dim_0")
    assert data["prior"]["s"].dims == data["posterior"]["s"].dims == ("chain", "draw", "items")
    assert data["prior_predictive"]["y"].shape == (1, 4, 3)


@pytest.mark.long
def test_gradients_flow_to_a_variational_guide(monkeypatch):
    """SVI with AutoNormal: the guide finds the posterior mean of one Gaussian mode."""
    gauss = GaussianMixture([[0.5, -0.5]], [0.4], schedule=SCHEDULE, backend="torch")

    def model():
        x = pyro.sample("x", DiffusionPrior(gauss))
        pyro.sample("y", dist.Normal(x, 0.4).to_event(1), obs=torch.tensor([1.0, 0.0]))

    monkeypatch.setattr("bridges.pyro.prior.SAMPLE_LADDER", {"rungs": 3, "steps": 1})
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoNormal(model)
    optimiser = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99})
    svi = SVI(model, guide, optimiser, Trace_ELBO(num_particles=4))
    for _ in range(400):
        svi.step()
    np.testing.assert_allclose(guide.median()["x"].detach(), [0.75, -0.25], atol=0.08)


def no_prior(y):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def discrete(y):
    x = pyro.sample("x", DiffusionPrior(PRIOR))
    k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(x[..., 0] + k, 1.0), obs=y)


def two_schedules(other):
    pyro.sample("a", DiffusionPrior(PRIOR))
    pyro.sample("b", DiffusionPrior(GaussianMixture([[0.0]], [1.0], schedule=other, backend="torch")))


ONE = torch.tensor(0.3)
QUICK = {"kernel": HMC(), "ladder": Ladder(levels=(99, 0), steps=1), "chains": 2, "seed": 0}
REFUSED = {
    "workers of one call": (
        lambda: anneal_model(linear, (SEEN,), **QUICK | {"kernel": blackjax_bridge.HMC()}, workers=2),
        "leave workers= out",
    ),
    "workers and a closure": (lambda: anneal_model(lambda y: linear(y), (SEEN,), workers=2, **QUICK), "top level"),
    "workers and spread": (
        lambda: anneal_model(linear, (SEEN,), islands=2, spread=map, workers=2, **QUICK),
        "give one of them",
    ),
    "no workers": (lambda: anneal_model(linear, (SEEN,), workers=0, **QUICK), "workers=2"),
    "no prior": (lambda: anneal_model(no_prior, (ONE,), **QUICK), "DiffusionPrior"),
    "discrete": (lambda: anneal_model(discrete, (ONE,), **QUICK), "sum it out"),
    "fewer levels": (lambda: anneal_model(two_schedules, (NoiseSchedule.cosine(50),), **QUICK), "noise schedules"),
    "other levels": (lambda: anneal_model(two_schedules, (NoiseSchedule.linear(100),), **QUICK), "noise schedules"),
    "likelihood": (lambda: anneal_model(linear, (SEEN,), likelihood="flat", **QUICK), "widened"),
    "no leapfrogs": (lambda: HMC(leapfrogs=0), "leapfrogs=3"),
    "not a potential": (lambda: DiffusionPrior("digits"), "load"),
    "no such level": (lambda: DiffusionPrior(PRIOR, level=100), "0 .cleanest. to 99"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case):
    act, words = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        act()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_front_door_runs_on_digits_in_single_precision():
    torch.set_default_dtype(torch.float32)
    prior = load("digits")

    def model(y):
        x = pyro.sample("x", DiffusionPrior(prior))
        noise = pyro.sample("noise", dist.HalfNormal(0.5))
        pyro.sample("y", dist.Normal(x[..., 14:], noise).to_event(2), obs=y)

    y = -torch.ones(28, 14)
    ladder = Ladder(levels=(99, 50, 0), steps=1)
    trace = anneal_model(model, (y,), kernel=blackjax_bridge.HMC(), ladder=ladder, chains=3, draws=2, seed=0)
    assert trace.sites["x"].shape == (3, 2, 28, 28)
    assert trace.sites["noise"].shape == (3, 2)
    assert np.all(np.isfinite(trace.sample_stats.lp))
    turn = anneal_model(
        model, (y,), kernel=NUTS(max_doublings=1), ladder=Ladder(levels=(99, 0), steps=1), chains=1, seed=0
    )
    assert turn.sites["x"].shape == (1, 1, 28, 28)


def test_a_large_energy_changes_no_acceptance_of_pyros_kernels():
    rates = []
    for offset in (0.0, 1e6):
        u = EnergyFunction(
            lambda x, level, c=offset: c + 0.5 * (x**2).sum(-1), schedule=SCHEDULE, event_shape=(2,), backend="torch"
        )
        walker = HMC(step=1.0).bind(u)
        state = walker.arrive(np.random.default_rng(0).standard_normal((20, 2)), 0, None, seed=0)
        rates.append(walker.move(state, 2, seed=1)[1]["acceptance_rate"])
    np.testing.assert_allclose(*rates, atol=1e-6)


def test_scales_are_those_of_the_inverse_mass():
    walker = HMC(step=0.8).bind(GaussianMixture([[0.0, 0.0]], [0.5], schedule=SCHEDULE, backend="torch"))
    state = walker.arrive(np.zeros((3, 2)), 30, None, seed=0)
    state = walker.arrive(np.zeros((3, 2)), 30, state._replace(scales=np.array([1.0, 0.5])), seed=0)
    np.testing.assert_array_equal(state.carried, [[1.0, 0.25]] * 3)


@pytest.mark.parametrize("kernel", [HMC(step=0.5), NUTS(step=0.5, max_doublings=3)], ids=["HMC", "NUTS"])
def test_energies_that_are_not_finite_are_counted(kernel):
    def energy(x, level):
        return torch.where(x[..., 0] > 0.5, torch.inf, 0.5 * (x**2).sum(-1))

    wall = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="torch", name="wall")
    init = np.random.default_rng(0).uniform(-1, 0.4, (20, 2))
    trace = anneal(wall, kernel, ladder=Ladder((20, 0), steps=3), chains=20, draws=5, seed=0, init=init)
    assert trace.stats.nonfinite.sum() > 0
    assert trace.sample_stats.nonfinite.sum() > 0


@pytest.mark.slow
def test_trajectories_that_diverge_are_counted():
    steep = EnergyFunction(lambda x, level: 0.5 * (x**4).sum(-1), schedule=SCHEDULE, event_shape=(2,), backend="torch")
    init = np.full((20, 2), 1.0)
    trace = anneal(steep, HMC(step=3.0), ladder=Ladder((20, 0), steps=3), chains=20, draws=5, seed=0, init=init)
    assert trace.stats.diverging.sum() > 0
    assert trace.sample_stats.diverging.sum() > 0


def test_drift_and_doublings_are_those_of_pyros_kernels_too():
    target = GaussianMixture([[0.3, 0.1]], [0.5], schedule=SCHEDULE, backend="torch")
    cold = np.full((100, 2), 3.0)
    trace = anneal(target, HMC(step=0.05), ladder=Ladder((0,), steps=4), chains=100, seed=0, init=cold)
    assert any("still drifted" in words for words in diagnose(trace).warnings)
    small = NUTS(step=0.001, max_doublings=3)
    trace = anneal(target, small, ladder=Ladder((50,), steps=1), chains=3, draws=3, seed=0, init=cold[:3] / 3)
    assert (trace.sample_stats.n_steps == 2**3 - 1).all()


@pytest.mark.slow
def test_a_prior_at_a_level_is_sampled_at_that_level(monkeypatch):
    monkeypatch.setattr("bridges.pyro.prior.SAMPLE_LADDER", {"rungs": 6, "steps": 4})
    narrow = GaussianMixture([[1.0]], [0.05], schedule=SCHEDULE, backend="torch")
    pyro.set_rng_seed(0)
    drawn = DiffusionPrior(narrow, level=60).sample((400,))
    assert float(drawn.std()) == pytest.approx(np.hypot(0.05 * SCHEDULE.alpha(60), SCHEDULE.sigma(60)), rel=0.2)


def test_a_reverse_step_leaves_other_sites_where_they_are():
    joint = JointPotential(unknown_noise, (SEEN,), likelihood="widened")
    points = np.random.default_rng(0).standard_normal((50, 4))
    state = Still().bind(joint).arrive(points, 60, None, seed=0)
    moved, ratio = reverse_step(joint, state, 50, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(moved[:, 3], points[:, 3])
    x, to, slope = points[:, :3], moved[:, :3], state.gradient[:, :3]
    (a_s, s_s), (a_t, s_t) = ((SCHEDULE.alpha(level), SCHEDULE.sigma(level)) for level in (60, 50))
    alpha, sigma = SCHEDULE.forward(50, 60)
    mean = (alpha * s_t**2 * x + a_t * sigma**2 * (x - s_s**2 * slope) / a_s) / s_s**2
    expected = stats.norm(alpha * to, sigma).logpdf(x) - stats.norm(mean, sigma * s_t / s_s).logpdf(to)
    np.testing.assert_allclose(ratio, expected.sum(1), rtol=1e-8)


def test_a_joint_density_widens_by_the_level_that_is_asked_for():
    joint = JointPotential(unknown_noise, (SEEN,), likelihood="widened")
    x = np.random.default_rng(0).standard_normal((5, 4))
    for level in (90, 40, 3):
        fresh = JointPotential(unknown_noise, (SEEN,), likelihood="widened")
        torch.testing.assert_close(joint.energy(x, level=level), fresh.energy(x, level=level))
