"""Annealed chains match closed forms: means, covariances, normalisers; up to 16 dimensions, both backends."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
from checks import LogQuadratics, moment_errors

from bridges.blackjax import HMC, MALA, NUTS
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, SamplingWarning, anneal, mixture
from ppl_diffusion.sampling import arrival, reversal
from ppl_diffusion.sampling.still import Still

pytestmark = pytest.mark.slow
SCHEDULE = NoiseSchedule.cosine(100)
LADDER = Ladder.spaced(SCHEDULE, rungs=25)
CHAINS = 2_000


def gaussian(mean, covariance, backend):
    return GaussianMixture([mean], covariances=[covariance], schedule=SCHEDULE, backend=backend)


def product_2d(backend):
    """The product has a single skewed mode, unlike either factor."""
    p = GaussianMixture(
        [[0.4, -0.2], [0.9, 0.5]], [[0.5, 0.3], [0.4, 0.6]], weights=[0.3, 0.7], schedule=SCHEDULE, backend=backend
    )
    q = gaussian([0.2, 0.3], [[0.5, 0.2], [0.2, 0.3]], backend)
    return p * q, LogQuadratics.of(p, level=0) * LogQuadratics.of(q, level=0)


def mixture_3d(backend):
    """Unequal, overlapping components with unnormalised weights."""
    p = gaussian([0.3, 0.0, -0.4], np.diag([0.3, 0.5, 0.2]), backend)
    q = gaussian([-0.2, 0.4, 0.1], np.diag([0.4, 0.2, 0.6]) + 0.1, backend)
    exact = LogQuadratics.of(p, level=0).scaled(0.5) + LogQuadratics.of(q, level=0).scaled(-0.7)
    return mixture([p, q], log_weights=[0.5, -0.7]), exact


def quotient_2d(backend):
    """A mixture divided by a wide Gaussian."""
    p = GaussianMixture(
        [[0.2, 0.1], [0.5, -0.3]], [[0.3, 0.4], [0.3, 0.2]], weights=[0.6, 0.4], schedule=SCHEDULE, backend=backend
    )
    q = gaussian([-0.3, 0.4], [[1.2, 0.3], [0.3, 0.9]], backend)
    return p / q**0.4, LogQuadratics.of(p, level=0) * LogQuadratics.of(q, level=0) ** -0.4


def product_16d(backend):
    """Sixteen correlated dimensions."""
    basis = np.random.default_rng(3).standard_normal((16, 16)) / 4
    p = gaussian(np.linspace(-0.5, 0.5, 16), basis @ basis.T + 0.3 * np.eye(16), backend)
    q = gaussian(np.linspace(0.6, -0.2, 16), np.diag(np.linspace(0.3, 1.0, 16)), backend)
    return p * q, LogQuadratics.of(p, level=0) * LogQuadratics.of(q, level=0)


TARGETS = {f.__name__: f for f in (product_2d, mixture_3d, quotient_2d, product_16d)}
IN_EVERY_RUN = {
    *(("product_2d", kernel) for kernel in ("HMC", "MALA")),
    ("mixture_3d", "HMC"),
    ("quotient_2d", "MALA"),
    ("product_16d", "MALA"),
}
"""HMC, MALA and each target; the other pairs, and NUTS, which compiles longest, are long."""
KERNELS = {"HMC": HMC(), "MALA": MALA(), "NUTS": NUTS(max_doublings=4)}


def check(target, kernel, backend, seed):
    potential, exact = TARGETS[target](backend)
    mean, covariance, _ = exact.moments()
    trace = anneal(potential, kernel, ladder=LADDER, chains=CHAINS, seed=seed)
    errors = moment_errors(trace.positions[:, 0], mean, covariance)
    assert np.abs(errors).max() < 4, errors
    assert 0.5 < float(trace.stats.acceptance_rate.mean()) < 0.9


@pytest.mark.parametrize(
    ("target", "kernel"),
    [
        pytest.param(*pair, marks=() if pair in IN_EVERY_RUN else pytest.mark.long)
        for pair in itertools.product(TARGETS, KERNELS)
    ],
)
def test_moments_match_the_closed_form(target, kernel):
    check(target, KERNELS[kernel], "jax", seed=11)


@pytest.mark.parametrize("target", ["product_2d", pytest.param("quotient_2d", marks=pytest.mark.long)])
def test_moments_match_the_closed_form_for_torch_potentials(target):
    check(target, HMC(), "torch", seed=12)


def two_modes():
    """A product whose modes separate at a noisy level with wrong masses, which annealing without weights keeps."""
    p = GaussianMixture([[-0.8, 0.0], [0.8, 0.2]], [0.08, 0.1], weights=[0.5, 0.5], schedule=SCHEDULE, backend="jax")
    q = GaussianMixture([[-0.7, 0.05], [0.8, 0.2]], [0.1, 0.3], weights=[0.3, 0.7], schedule=SCHEDULE, backend="jax")
    return p * q, LogQuadratics.of(p, level=0) * LogQuadratics.of(q, level=0)


PARTING = Ladder(levels=tuple(range(90, -1, -1)), steps=3)
"""Levels below those with clipped betas, across which a reverse step of a product would collapse the weights."""


@pytest.mark.long
@pytest.mark.parametrize("reverse_step", [False, pytest.param(True, marks=pytest.mark.long)])
def test_weights_restore_the_shares_of_separate_modes_and_the_normaliser(reverse_step):
    """Errors are in standard errors of 8 independent populations (t with 7 degrees of freedom: P(|t| > 8) = 1e-4)."""
    potential, exact = two_modes()
    mean, covariance, log_normaliser = exact.moments()
    means, normalisers, plain = [], [], []
    for seed in range(8):
        options = {"ladder": PARTING, "chains": CHAINS, "seed": seed}
        trace = anneal(potential, HMC(), **options, resample=0.5, reverse_step=reverse_step)
        assert int(trace.stats.resampled.sum()) >= 2, "resampling is meant to trigger before the last rung"
        x = trace.positions[:, 0]
        centred = x - mean
        means.append([*centred.mean(0), *(np.mean(centred[:, i] * centred[:, j]) for i, j in ((0, 0), (0, 1), (1, 1)))])
        normalisers.append(np.exp(trace.log_normaliser - log_normaliser) - 1)
        if not reverse_step and seed < 3:
            plain.append(anneal(potential, HMC(), **options).positions[:, 0].mean(0)[0] - mean[0])
    found = np.column_stack([means, normalisers])
    found[:, 2:5] -= covariance[[0, 0, 1], [0, 1, 1]]
    errors = found.mean(0) / (found.std(0, ddof=1) / np.sqrt(len(found)))
    assert np.abs(errors).max() < 8, errors
    assert found.std(0)[0] < 0.1, "the populations agree with each other"
    if plain:
        assert abs(np.mean(plain)) > 0.1, "without weights the shares are wrong: the check has power"


def test_a_reverse_step_whose_density_is_left_out_is_noticed(monkeypatch):
    """Negative control: weights without the proposal densities of the reverse step."""
    potential, exact = two_modes()
    own = arrival.reverse_step
    monkeypatch.setattr(arrival, "reverse_step", lambda *args, **named: (own(*args, **named)[0], 0.0))
    trace = anneal(potential, HMC(), ladder=PARTING, chains=CHAINS, seed=0, resample=0.5, reverse_step=True)
    assert abs(trace.log_normaliser - exact.moments()[2]) > 10


@pytest.mark.parametrize(("above", "below", "low"), [(60, 50, False), (20, 15, False), (3, 0, True)])
def test_weights_of_a_reverse_step_average_to_one_unless_the_variance_falls_too_far(above, below, low):
    """Populations of 400 exact draws: below, rare chains with the largest weights are missing from nearly all."""
    target = gaussian([0.2, 0.3], [[0.16, 0.0], [0.0, 0.16]], "jax")
    walker, logs = Still().bind(target), []
    for seed in range(100):
        state = walker.arrive(target.sample(400, level=above, seed=seed), above, None, seed=0)
        moved, ratio = arrival.reverse_step(target, state, below, rng=np.random.default_rng(seed))
        increments = state.energy - walker.arrive(moved, below, None, seed=0).energy + ratio
        logs.append(np.logaddexp.reduce(increments) - np.log(400))
    error = np.std(logs, ddof=1) / 10
    assert (np.mean(logs) < -0.2) == low
    assert low or abs(np.mean(logs) + np.var(logs) / 2) < 4 * error, (
        "the logarithm of a mean is low by half its variance"
    )
    assert bool(reversal.check_reverse_weights(target, (above, below))) == low


def test_reverse_steps_that_throw_chains_far_out_are_noticed():
    """From the noisiest level of the cosine schedule they lose the evidence of a product, from below they do not."""
    p, q = (gaussian(mean, np.diag([0.3, 0.5]), "jax") for mean in ([0.4, -0.2], [0.2, 0.3]))
    exact = LogQuadratics.of(p, level=30) * LogQuadratics.of(q, level=30)
    target, ratios = p * q, {}
    for top, expected in (
        (99, pytest.warns(SamplingWarning, match="start the ladder at level 9[0-9]")),
        (93, nullcontext()),
    ):
        options = {"ladder": Ladder(levels=tuple(range(top, 29, -1)), steps=1), "resample": 0.5, "reverse_step": True}
        with expected:
            traces = [anneal(target, HMC(), chains=400, seed=seed, **options) for seed in range(8)]
        ratios[top] = [np.exp(trace.log_normaliser - exact.moments()[2]) for trace in traces]
    assert np.mean(ratios[99]) < 0.3
    error = np.std(ratios[93], ddof=1) / 8**0.5
    assert abs(np.mean(ratios[93]) - 1) < 5.4 * error, "t with 7 degrees of freedom: 5.4 is the tail of 1e-3"


def test_reverse_steps_of_a_schedule_that_explodes_throw_nothing_out():
    edm = NoiseSchedule.edm(100)
    p, q = (GaussianMixture([[x, 0.1]], [0.5], schedule=edm, backend="jax") for x in (0.3, -0.2))
    assert not reversal.check_reverse_weights(p * q, range(99, 30, -1))


@pytest.mark.parametrize(
    "target",
    ["product_2d", *(pytest.param(t, marks=pytest.mark.long) for t in ("mixture_3d", "quotient_2d", "product_16d"))],
)
def test_log_normalisers_match_the_closed_form(target):
    """Errors are in standard errors of 6 independent populations of 1,000 chains."""
    potential, exact = TARGETS[target]("jax")
    _, _, expected = exact.moments()
    ratios = []
    for seed in range(6):
        trace = anneal(
            potential, HMC(), ladder=Ladder.full(SCHEDULE, steps=3), chains=CHAINS // 2, seed=seed, resample=0.5
        )
        ratios.append(np.exp(trace.log_normaliser - expected))
    error = np.std(ratios, ddof=1) / np.sqrt(len(ratios))
    assert abs(np.mean(ratios) - 1) < 6.9 * error, "t with 5 degrees of freedom: 6.9 is the tail of 1e-3"
    assert error < 0.1
