"""Replica exchange of Pyro models: swaps leave all sites' densities invariant, and modes and evidence are found."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from checks import ALPHA
from scipy import stats
from scipy.integrate import quad

from bridges.arviz import diagnose, to_inference_data
from bridges.blackjax import HMC, ULA
from bridges.pyro import HMC as PyroHMC
from bridges.pyro import DiffusionPrior, JointPotential, anneal_model, exchange_model
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule
from ppl_diffusion.sampling import replicas
from ppl_diffusion.sampling.replicas import Replicas

SCHEDULE = NoiseSchedule.cosine(100)
MEANS, SCALES, WEIGHTS = np.array([-3.0, 3.0]), np.array([0.15, 0.4]), np.array([0.5, 0.5])
MODES = GaussianMixture(MEANS[:, None], SCALES, weights=WEIGHTS, schedule=SCHEDULE, backend="torch", name="modes")
SEEN = (1.2, -0.5, 0.1)
LEVELS = (50, 40, 30)
GRID = np.linspace(-6, 6, 601), np.linspace(-3, 4, 281)
FINISHED = pytest.mark.filterwarnings("ignore::ppl_diffusion.SamplingWarning")


@pytest.fixture(autouse=True)
def float64_models():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model(y):
    """A point in one of two modes, seen three times with noise of unknown scale."""
    x = pyro.sample("x", DiffusionPrior(MODES**2))  # as a square, its shares at noisy levels are not those of level 0
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.7))
    pyro.sample("y", dist.Normal(x * torch.ones(3), scale).to_event(1), obs=y)


@pytest.fixture(scope="module")
def joint():
    """The joint density, compiled once."""
    torch.set_default_dtype(torch.float64)
    return JointPotential(model, (torch.tensor(SEEN),), likelihood="widened")


@cache
def cells(joint, level):
    """Masses of the cells of a grid in ``x`` and ``log scale`` at a level, summing to one."""
    points = np.stack(np.meshgrid(*GRID, indexing="ij"), axis=-1).reshape(-1, 2)
    energy = np.asarray(joint.energy(points, level=level))
    masses = np.exp(energy.min() - energy)
    return (masses / masses.sum()).reshape(len(GRID[0]), len(GRID[1]))


def draws_of(masses, count, seed):
    """Draws ``(count, 2)`` of a density on the grid: a cell, and a point of it."""
    rng = np.random.default_rng(seed)
    cell = np.unravel_index(rng.choice(masses.size, count, p=masses.ravel()), masses.shape)
    return np.stack(
        [axis[i] + (axis[1] - axis[0]) * (rng.random(count) - 0.5) for axis, i in zip(GRID, cell, strict=True)], axis=1
    )


def after_rounds(joint, *, rounds=6, chains=8_000, seed=0):
    """P-values of the sites and energies of three levels after kernel steps and swaps, from exact draws at all; the
    rate of swaps, the length scale of the noise scale at the last level, and the acceptance rate of kernel steps."""
    exact = [cells(joint, level) for level in LEVELS]
    start = draws_of(exact[0], chains, seed + 1)
    kernel, ladder = HMC(step=0.6, leapfrogs=2), Ladder(LEVELS, steps=1)
    run = Replicas(joint, kernel, ladder, chains=chains, init=start, seed=seed, accelerated=False)
    run.descend()
    for rung, masses in enumerate(exact):
        run.states[rung] = run.walker.place(run.states[rung], draws_of(masses, chains, seed + 10 + rung), seed=rung)
    run.freeze()
    for _ in range(rounds):
        run.round(recorded=True)
    found = []
    for rung, masses in enumerate(exact):
        x, right = np.asarray(run.states[rung].positions), draws_of(masses, 80_000, seed + 20 + rung)
        pairs = [(x[:, i], right[:, i]) for i in range(2)]
        # The noise scale of the mode on the left is another one.
        pairs += [(x[x[:, 0] < 0, 1], right[right[:, 0] < 0, 1])]
        pairs += [tuple(np.asarray(joint.energy(points, level=LEVELS[rung])) for points in (x, right))]
        found += [stats.ks_2samp(*pair).pvalue for pair in pairs]
    return found, np.mean(run.swaps[0].taken), float(np.asarray(run.states[-1].scales)[1]), run.rate


def forget_a_density(monkeypatch):
    """The density of what leaves the cleaner level is taken to be the same everywhere."""
    swap = Replicas._swap

    def wrong(self, pairs, *, recorded):
        for pair in pairs:
            clean = self.states[pair + 1]
            self.states[pair + 1] = clean._replace(energy=np.full_like(clean.energy, np.mean(clean.energy)))
        swap(self, pairs, recorded=recorded)

    monkeypatch.setattr(Replicas, "_swap", wrong)


def leave_the_noise_scale(monkeypatch):
    """Other latent sites stay at their level, and the ratio is that of whole points."""
    swap = Replicas._swap

    def wrong(self, pairs, *, recorded):
        stayed = [np.asarray(state.positions)[:, 1] for state in self.states]
        swap(self, pairs, recorded=recorded)
        for rung in (rung for pair in pairs for rung in (pair, pair + 1)):
            x = np.array(self.states[rung].positions)
            x[:, 1] = stayed[rung]
            self.states[rung] = self.walker.place(self.states[rung], x, seed=0)

    monkeypatch.setattr(Replicas, "_swap", wrong)


def forget_the_length_scales(monkeypatch):
    """What arrives at a level is evaluated in other coordinates than those in which its chains move."""
    walker = HMC(step=0.3, leapfrogs=2).bind
    kind = type(walker(GaussianMixture([[0.0]], [1.0], schedule=SCHEDULE, backend="torch")))

    def wrong(self, states, positions, *, seeds):
        return [
            self.arrive(x, state.level, None, seed=seed)._replace(step=state.step, scales=state.scales)
            for state, x, seed in zip(states, positions, seeds, strict=True)
        ]

    monkeypatch.setattr(kind, "place_each", wrong)


@FINISHED
@pytest.mark.slow
def test_rounds_leave_all_sites_of_all_levels_invariant(joint):
    found, swaps, length, acceptance = after_rounds(joint)
    assert min(found) > ALPHA
    assert 0.3 < swaps < 0.97
    assert 0.6 < acceptance < 0.9, "of kernel steps"
    assert not 0.9 < length < 1.1, "the check needs a length scale to forget"


@FINISHED
@pytest.mark.slow
@pytest.mark.parametrize("forget", [forget_a_density, leave_the_noise_scale, forget_the_length_scales])
def test_rounds_that_forget_something_are_rejected(joint, forget, monkeypatch):
    forget(monkeypatch)
    assert min(after_rounds(joint)[0]) < ALPHA


def exact_posterior():
    """By quadrature: the share of the left mode, mean and standard deviation of log scale, and the log-evidence."""
    alpha, sigma = SCHEDULE.alpha(0), SCHEDULE.sigma(0)
    spreads = np.sqrt((alpha * SCALES) ** 2 + sigma**2)
    y, x = np.array(SEEN), np.linspace(-6, 6, 20_001)
    prior = np.sum(WEIGHTS * stats.norm(alpha * MEANS, spreads).pdf(x[:, None]), axis=1) ** 2

    def mass(u, where):  # of log scale, summed over x
        likelihood = np.exp(stats.norm(y, np.exp(u)).logpdf(x[:, None]).sum(1))
        return np.sum((prior * likelihood)[where(x)]) * (x[1] - x[0]) * stats.norm(0, 0.7).pdf(u)

    def integral(function):
        return quad(function, -3, 4, epsabs=0, epsrel=1e-7)[0]

    whole = integral(lambda u: mass(u, np.isfinite))
    left = integral(lambda u: mass(u, lambda x: x < 0)) / whole
    mean = integral(lambda u: u * mass(u, np.isfinite)) / whole
    square = integral(lambda u: u**2 * mass(u, np.isfinite)) / whole
    return left, mean, np.sqrt(square - mean**2), np.log(whole)


@FINISHED
@pytest.mark.long
def test_shares_the_noise_scale_and_the_evidence_are_found_where_annealing_errs(joint):
    left, mean, spread, log_evidence = exact_posterior()
    levels, chains = (99, 60, 45, 30, 15, 0), 128
    trace = exchange_model(
        joint, kernel=HMC(leapfrogs=2), ladder=Ladder(levels, steps=1), chains=chains, draws=150, warm_up=50, seed=0
    )
    share, u = np.mean(trace.sites["x"] < 0), np.log(trace.sites["scale"])
    assert abs(share - left) < 0.05, "the standard error over chains is .02"
    assert abs(u.mean() - mean) < 0.05
    assert abs(u.std() - spread) < 0.05
    assert abs(trace.log_normaliser - log_evidence) < max(4 * trace.log_normaliser_error, 0.05)
    steps = round(trace.gradient_calls / (2 * len(levels)) / 4)
    plain = anneal_model(joint, kernel=HMC(leapfrogs=2), ladder=Ladder(levels, steps=steps), chains=4 * chains, seed=0)
    assert 4 * plain.gradient_calls >= 0.98 * trace.gradient_calls, "as many gradients, with four times as many chains"
    assert abs(np.mean(plain.sites["x"] < 0) - left) > 0.08


@FINISHED
@pytest.mark.parametrize("kernel", [HMC(), PyroHMC()], ids=["BlackJAX", "Pyro"])
def test_whole_points_are_swapped_and_scales_stay(joint, kernel):
    run = Replicas(joint, kernel, Ladder((60, 50), steps=20), chains=6, init=None, seed=1, accelerated=False)
    run.descend()
    before = list(run.states)
    run._swap([0], recorded=True)
    (taken,) = run.swaps[0].taken
    assert taken.any()
    for rung in (0, 1):
        state, old, other = run.states[rung], before[rung], before[1 - rung]
        x = np.where(taken[:, None], np.asarray(other.positions), np.asarray(old.positions))
        np.testing.assert_allclose(np.asarray(state.positions), x, rtol=1e-12)
        np.testing.assert_allclose(state.energy, np.asarray(joint.energy(x, level=state.level)), rtol=1e-9)
        np.testing.assert_array_equal(state.scales, old.scales)
        assert state.scales[1] != 1
        if isinstance(kernel, PyroHMC):
            np.testing.assert_array_equal(state.carried, old.carried)
            assert np.ptp(state.carried, axis=0).max() == 0
        else:
            np.testing.assert_allclose(np.asarray(state.carried.position) * state.scales, x, rtol=1e-12)


@FINISHED
@pytest.mark.slow
@pytest.mark.parametrize("kernel", [HMC(), PyroHMC()], ids=["BlackJAX", "Pyro"])
def test_a_trace_of_an_exchange_has_the_sites_and_goes_on(joint, kernel, tmp_path, monkeypatch):
    monkeypatch.setattr(replicas, "START_DRAWS", 100)
    settings = {"kernel": kernel, "ladder": Ladder((60, 50, 0), steps=1), "chains": 2, "draws": 4, "warm_up": 2}
    whole = exchange_model(joint, **settings, seed=0)
    assert whole.sites["x"].shape == (2, 4, 1)
    assert np.all(whole.sites["scale"] > 0)
    np.testing.assert_allclose(np.log(whole.sites["scale"]), whole.positions[..., 1])
    assert whole.attributes["likelihood"] == "widened"
    assert {"posterior", "log_likelihood", "observed_data"} <= set(to_inference_data(whole).groups())
    assert "swap" in str(diagnose(whole)) or "travel" in str(whole.attributes["warnings"])

    def interrupting(told):
        if told.draw == 1:
            raise KeyboardInterrupt

    settings |= {"seed": 0, "checkpoint": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        exchange_model(joint, **settings, progress=interrupting)
    with pytest.raises(ValueError, match="another potential, other data"):
        exchange_model(model, (torch.tensor([1.2, -0.5, 0.2]),), **settings)
    resumed = exchange_model(joint, **settings)
    np.testing.assert_array_equal(resumed.positions, whole.positions)
    assert resumed.stats.identical(whole.stats)
    assert resumed.sample_stats.identical(whole.sample_stats)


def test_what_a_model_cannot_exchange_with_is_refused(joint):
    given = {"chains": 2, "draws": 2, "seed": 0, "warm_up": 0, "ladder": Ladder((9, 0), steps=1)}
    with pytest.raises(ValueError, match="is unadjusted"):
        exchange_model(joint, kernel=ULA(), **given)
    with pytest.raises(ValueError, match="moves all chains by one call: leave workers= out"):
        exchange_model(joint, kernel=HMC(), workers=2, **given)
    with pytest.raises(ValueError, match="was made with likelihood='widened'"):
        exchange_model(joint, kernel=HMC(), likelihood="tempered", **given)
