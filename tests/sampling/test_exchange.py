"""Replica exchange: swaps leave the densities of all levels invariant, modes are found, and normalisers are right."""

from __future__ import annotations

import warnings
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from checks import ALPHA
from scipy import stats

import bridges.pyro as in_turn
from bridges.arviz import diagnose
from bridges.blackjax import HMC, ULA
from ppl_diffusion import (
    EnergyFunction,
    GaussianMixture,
    Ladder,
    NoiseSchedule,
    SamplingWarning,
    Trace,
    anneal,
    exchange,
)
from ppl_diffusion.sampling import replicas
from ppl_diffusion.sampling.bennett import bennett
from ppl_diffusion.sampling.replicas import Replicas
from ppl_diffusion.sampling.step import centred

SCHEDULE = NoiseSchedule.cosine(100)
MODES = GaussianMixture(
    [[-2.0, 0.0], [2.0, 0.0], [0.0, 2.5]],
    [0.2, 0.3, 0.25],
    weights=[0.2, 0.5, 0.3],
    schedule=SCHEDULE,
    backend="jax",
    name="modes",
)
LEVELS = (60, 45)


def shares(x):
    return np.array([np.mean(x[..., 0] < -1), np.mean(x[..., 0] > 1), np.mean(x[..., 1] > 1.2)])


def told(act):
    """What a call returns, and the text of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = act()
    return result, " ".join(str(one.message) for one in caught)


def swapped(accelerated, *, rounds=6, chains=4_000, levels=LEVELS):
    """P-values of coordinates and energies at two levels after swaps alone, from exact draws at both."""
    kernel, ladder = HMC(step=0.1), Ladder(levels, steps=1)
    run = Replicas(MODES, kernel, ladder, chains=chains, init=None, seed=0, accelerated=accelerated)
    run.descend()
    for rung, level in enumerate(levels):
        x = MODES.sample(chains, level=level, seed=10 + rung)
        run.states[rung] = run.walker.arrive(x, level, None, seed=rung)._replace(step=centred(0.0))
    for _ in range(rounds):
        run._swap([0], recorded=True)
    found = []
    for rung, level in enumerate(levels):
        x, exact = np.asarray(run.states[rung].positions), MODES.sample(20_000, level=level, seed=20 + rung)
        pairs = [(x[:, i], exact[:, i]) for i in range(2)]
        pairs.append((np.asarray(run.states[rung].energy), np.asarray(MODES.energy(exact, level=level))))
        found += [stats.ks_2samp(*pair).pvalue for pair in pairs]
    return found, np.mean(run.swaps[0].taken)


@pytest.mark.slow
@pytest.mark.parametrize(("accelerated", "levels"), [(False, LEVELS), (True, LEVELS), ("wide", (30, 8))], ids=str)
def test_swaps_leave_the_densities_of_both_levels_invariant(accelerated, levels):
    found, rate = swapped(accelerated, levels=levels)
    assert min(found) > ALPHA
    assert 0.3 < rate < 0.97


def forget_a_density(monkeypatch):
    """The density of what arrives at the cleaner level is left out."""
    arrive = replicas.Replicas._swap

    def wrong(self, pairs, *, recorded):
        for pair in pairs:
            clean = self.states[pair + 1]
            self.states[pair + 1] = clean._replace(energy=np.zeros_like(np.asarray(clean.energy)))
        arrive(self, pairs, recorded=recorded)

    monkeypatch.setattr(replicas.Replicas, "_swap", wrong)


def forget_the_forward_kernel(monkeypatch):
    monkeypatch.setattr(replicas, "log_forward", lambda *given, **named: 0.0)


def forget_the_reverse_kernel(monkeypatch):
    monkeypatch.setattr(replicas, "log_reverse", lambda *given, **named: 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accelerated", "forget"),
    [
        (False, forget_a_density),
        (True, forget_a_density),
        (True, forget_the_forward_kernel),
        (True, forget_the_reverse_kernel),
    ],
)
def test_swaps_that_forget_a_ratio_are_rejected(accelerated, forget, monkeypatch):
    forget(monkeypatch)
    assert min(swapped(accelerated)[0]) < ALPHA


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_wide_swaps_with_the_density_of_another_variance_are_rejected(factor, monkeypatch):
    own = replicas.log_reverse
    monkeypatch.setattr(replicas, "log_reverse", lambda *given, widened: own(*given, widened=factor * widened))
    assert min(swapped("wide", levels=(30, 8))[0]) < ALPHA


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:levels 3 and 0 swap")
def test_wide_swaps_are_accepted_at_the_clean_end_where_narrow_ones_are_not():
    """They keep the variance that the warm-up has found."""
    target = GaussianMixture([[0.0] * 6, [1.0] * 6], [0.2, 0.3], schedule=SCHEDULE, backend="jax")
    options = {"ladder": Ladder((6, 3, 0), steps=1), "chains": 20, "draws": 20, "warm_up": 5, "seed": 0}
    options["init"] = target.sample(20, level=6, seed=0)
    wide, narrow = (exchange(target, HMC(), accelerated=way, **options) for way in ("wide", True))
    assert wide.attributes["exchange"] == "accelerated, wide"
    assert float(wide.stats.swap_rate[1:].min()) > 0.6 > 0.3 > float(narrow.stats.swap_rate[1:].min())


@pytest.mark.long
def test_shares_of_modes_and_the_normaliser_are_found_where_annealing_alone_fails():
    """Squares of components of unlike widths: the shares at noisy levels are not those of the last one."""
    target = MODES**2
    scales, weights = np.array([0.2, 0.3, 0.25]), np.array([0.2, 0.5, 0.3])
    sigma, alpha = SCHEDULE.sigma(0), SCHEDULE.alpha(0)
    variances = (alpha * scales) ** 2 + sigma**2
    masses = weights**2 / (4 * np.pi * variances)  # int N(m, v)^2 = 1 / (4 pi v) in two dimensions, modes apart
    exact = masses / masses.sum()
    ladder = Ladder.spaced(SCHEDULE, rungs=12, steps=1)
    trace = exchange(target, HMC(leapfrogs=2), ladder=ladder, chains=30, draws=300, warm_up=60, seed=0)
    assert np.all(np.abs(shares(trace.positions) - exact) < 0.03)
    assert abs(trace.log_normaliser - np.log(masses.sum())) < 4 * trace.log_normaliser_error
    assert 0 < trace.log_normaliser_error < 0.2
    plain = anneal(target, HMC(leapfrogs=2), ladder=ladder, chains=30, draws=300, seed=0)
    assert np.abs(shares(plain.positions) - exact).max() > 0.06
    assert trace.stats.round_trips.sum() > 100
    assert float(trace.stats.swap_rate[1:].min()) > 0.3


@pytest.mark.slow
def test_a_trace_of_an_exchange_is_like_any_other(tmp_path):
    ladder, given = Ladder.spaced(SCHEDULE, rungs=4, steps=2), {"chains": 5, "draws": 25, "warm_up": 10, "seed": 1}
    one, other = (exchange(MODES, HMC(), ladder=ladder, **given) for _ in range(2))
    np.testing.assert_array_equal(one.positions, other.positions)
    lp = -np.asarray(MODES.energy(one.positions.reshape(-1, 2), level=0)).reshape(5, 25)
    np.testing.assert_allclose(one.sample_stats.lp, lp, atol=1e-4)
    assert diagnose(one).draws.sizes["variable"] == 2
    again = Trace.load(one.save(tmp_path / "run.nc"))
    assert again.log_normaliser_error == one.log_normaliser_error
    assert again.attributes["exchange"] == "in place"
    assert str(diagnose(again)) == str(diagnose(one))
    for trips, few in ((0, True), (1, False)):  # of each of five replicas
        told = str(
            diagnose(replace(one, stats=one.stats.assign(round_trips=one.stats.round_trips * 0 + trips))).verdict
        )
        assert ("5 journeys from the noise may all have missed a mode" in told) == few
        assert "path down the ladder" not in told


@pytest.mark.slow
def test_every_evaluation_is_counted():
    calls = []

    def energy(x, level):
        calls.append(len(x))
        return 0.5 * (x**2).sum(-1)

    target = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="torch")
    ladder = Ladder((99, 50, 0), steps=2)
    trace = exchange(target, HMC(step=0.1, leapfrogs=3), ladder=ladder, chains=4, draws=6, warm_up=3, seed=0)
    assert trace.gradient_calls == len(calls)
    annealed, moves = 3 * (1 + 2 * 3 + 1), 9 * 3 * 2 * 3  # and a state of each level's own
    assert len(calls) == annealed + moves + 2 * 9 + 1  # two for each swap, one for the first level's normaliser


@pytest.mark.slow
def test_pyros_kernel_exchanges_too():
    target = GaussianMixture([[-1.0], [1.0]], [0.4, 0.4], schedule=SCHEDULE, backend="torch")
    ladder = Ladder((99, 60, 0), steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        trace = exchange(target, in_turn.HMC(step=0.5), ladder=ladder, chains=2, draws=3, warm_up=2, seed=0)
    assert trace.positions.shape == (2, 3, 1)
    assert np.isfinite(trace.positions).all()


def test_bennetts_ratio_of_gaussians_and_its_error():
    """Works between N(0, 1) and ``5 N(.7, .8^2)``, unnormalised as 5 times a density: the log-ratio is log 5."""
    misses = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((40, 20)), 0.7 + 0.8 * rng.standard_normal((40, 20))

        def work(x):
            return np.log(5) + stats.norm(0.7, 0.8).logpdf(x) - stats.norm.logpdf(x)

        (found,), error = bennett([(work(x), -work(y))])
        misses.append((found - np.log(5)) / error)
        assert abs(found - np.log(5)) < 0.3
    assert 0.6 < np.std(misses) < 1.5
    assert abs(np.mean(misses)) < 4 / np.sqrt(40) * 1.2


def test_bennetts_ratio_where_most_works_are_not_finite():
    """A quarter of the points of one level has a density at the other."""
    down = np.where(np.arange(400).reshape(20, 20) % 4 == 0, 0.0, -np.inf)
    (found,), error = bennett([(down, np.zeros((20, 20)))])
    np.testing.assert_allclose(found, np.log(0.25), atol=1e-6)
    assert np.isfinite(error)
    (nothing,), _ = bennett([(np.full((5, 4), -np.inf), np.zeros((5, 4)))])
    assert np.isnan(nothing)


def test_errors_of_pairs_that_share_a_level_are_not_added_as_if_they_were_independent():
    """Two pairs whose works go up and down together: the error of their sum is twice that of one, not 1.4 times."""
    rng = np.random.default_rng(0)
    shift = rng.standard_normal(20)
    pair = (shift + 0.01 * rng.standard_normal((50, 20)), -shift + 0.01 * rng.standard_normal((50, 20)))
    one, two = (bennett([pair] * count)[1] for count in (1, 2))
    np.testing.assert_allclose(two, 2 * one, rtol=1e-6)


def test_a_start_density_that_does_not_fit_is_told_and_has_no_error():
    target = GaussianMixture([[0.0] * 20], [0.05], schedule=SCHEDULE, backend="jax")
    given = {"ladder": Ladder((30, 25), steps=1), "chains": 4, "draws": 2, "warm_up": 1, "seed": 0}
    trace, notes = told(lambda: exchange(target, HMC(), **given))
    assert "the start density fits level 30 badly" in notes
    assert trace.log_normaliser_error == np.inf


@pytest.mark.slow
def test_what_a_walk_warns_of_an_exchange_warns_of():
    given = {"ladder": Ladder((60, 50, 0), steps=1), "chains": 3, "draws": 2, "warm_up": 1, "seed": 0}
    p, q = (GaussianMixture([[0.0, 0.0]], [s], schedule=SCHEDULE, backend="jax") for s in (0.5, 0.3))
    trace, notes = told(lambda: exchange(p**2 / q, HMC(), **given))
    assert "is not normalisable at level 0" in notes
    assert trace.attributes["not_normalisable"] == [0]
    bad = EnergyFunction(lambda x, level: jnp.nan * x.sum(-1), schedule=SCHEDULE, event_shape=(2,), backend="jax")
    notes = told(lambda: exchange(bad, HMC(), **given))[1]
    assert "look for NaN" in notes
    assert "swap in" not in notes


def test_pairs_that_do_not_swap_are_told():
    narrow = GaussianMixture([[0.0] * 50], [0.05], schedule=SCHEDULE, backend="jax")
    with pytest.warns(SamplingWarning, match=r"levels 99 and 0 swap in 0.0% of the rounds.* accelerated=True"):
        exchange(narrow, HMC(), ladder=Ladder((99, 0), steps=1), chains=3, draws=4, warm_up=2, seed=0)


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"kernel": ULA(step=0.1)}, ValueError, "is unadjusted"),
        ({"kernel": HMC}, TypeError, r"try bridges\.blackjax\.HMC"),
        ({"draws": 1}, ValueError, "draws must be a whole number >= 2"),
        ({"warm_up": -1}, ValueError, "warm_up must be a whole number >= 0"),
        ({"ladder": Ladder((0,), steps=1)}, ValueError, "two levels or more"),
        ({"ladder": 5}, TypeError, "must be a Ladder"),
        ({"potential": 3}, TypeError, "EnergyFunction"),
    ],
)
def test_what_cannot_be_exchanged_is_refused(changed, kind, words):
    given = {"potential": MODES, "kernel": HMC(), "chains": 2, "draws": 2, "seed": 0, "warm_up": 1} | changed
    with pytest.raises(kind, match=words):
        exchange(given.pop("potential"), given.pop("kernel"), **given)


def test_points_that_fail_are_never_taken():
    """Half of the plane has no density at the last level: a replica from there does not arrive."""

    def energy(x, level):
        wall = jnp.where((level == 0) & (x[..., 0] < 0), jnp.inf, 0.0)
        return 0.5 * (x**2).sum(-1) + wall

    half = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(2,), backend="jax")
    init = np.abs(np.random.default_rng(0).standard_normal((6, 2)))
    ladder = Ladder((10, 0), steps=1)
    trace = exchange(half, HMC(step=0.3), ladder=ladder, chains=6, draws=20, warm_up=5, seed=0, init=init)
    kept = trace.positions[:, -5:, 0]
    assert np.isfinite(trace.sample_stats.lp[:, -1]).all()
    assert np.all(kept[np.isfinite(trace.sample_stats.lp.to_numpy()[:, -5:])] >= 0)
