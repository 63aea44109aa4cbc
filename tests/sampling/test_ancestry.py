"""Errors of resampled populations: of the log-normaliser and of means, from families of chains, on closed forms."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from bridges.blackjax import HMC
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, anneal
from ppl_diffusion.potentials.algebra import Potential
from ppl_diffusion.sampling.ancestry import families, log_normaliser_error, mean_error
from ppl_diffusion.sampling.importance import Weights
from tests.checks import LogQuadratics


class Population(NamedTuple):
    """A small walk: errors of its estimates, and what a trace would have recorded."""

    log_normaliser: float
    log_normaliser_error: float
    mean: float
    mean_error: float
    mean_error_alone: float
    resampled: int


def population(seed: int, *, resample: float | None = 0.5, chains: int = 128, persistence: float = 0.5) -> Population:
    """Walk from two equal modes to shares .2 and .8, in one dimension, with moves that never leave a mode.

    Within a mode the density is N(0, s^2), s from 1 to .2, and moves are autoregressive. Errors are those of the true
    log-normaliser, and of the mean of the mode, -.6, plus that of the position, 0.
    """
    rng, rungs = np.random.default_rng(seed), 15
    scales = np.exp(np.linspace(0, np.log(0.2), rungs))
    right = 1 / (1 + 4 ** np.linspace(0, 1, rungs))

    def log_density(rung: int) -> np.ndarray:
        return np.log(np.where(mode, right[rung], 1 - right[rung])) - 0.5 * (x / scales[rung]) ** 2

    def move(x: np.ndarray) -> np.ndarray:
        return persistence * x + np.sqrt(1 - persistence**2) * scales[rung] * rng.standard_normal(chains)

    mode, x = rng.random(chains) < 0.5, 1.3 * rng.standard_normal(chains)
    walk, rows = Weights(chains), []
    for rung in range(rungs):
        start = np.log(2 * 1.3 * np.sqrt(2 * np.pi)) + 0.5 * (x / 1.3) ** 2
        increments = log_density(rung) + start if rung == 0 else log_density(rung) - log_density(rung - 1)
        evidence = walk.move(increments)["log_normaliser"]
        ancestors = walk.resample(resample, last=rung == rungs - 1, rng=rng)
        again = ancestors is not None
        ancestors = np.arange(chains) if ancestors is None else ancestors
        mode, x = mode[ancestors], x[ancestors]
        rows.append((increments, ancestors, again, evidence))
        x = move(x)
    draws = []
    for _ in range(5):
        x = move(x)
        draws.append(np.where(mode, 1, -1) + x)
    increments, ancestors, again, evidence = (np.array(column) for column in zip(*rows, strict=True))
    values = np.mean(draws, 0)
    return Population(
        evidence.sum() - np.log(np.sqrt(2 * np.pi) * scales[-1]),
        log_normaliser_error(increments, ancestors, again),
        values.mean() + 0.6,
        float(mean_error(values, families(ancestors)[-1])),
        float(mean_error(values, np.arange(chains))),
        int(again.sum()),
    )


def coverage(error: np.ndarray, stated: np.ndarray) -> float:
    """Share of the errors that are at most 1.96 of the stated ones."""
    return float(np.mean(np.abs(error) < 1.96 * stated))


SETTINGS = {
    "weighted once": {"resample": None},
    "resampled": {},
    "often": {"resample": 0.9},
    "slow": {"persistence": 0.95},
    "few": {"chains": 48},
}


@pytest.mark.parametrize("case", SETTINGS)
def test_errors_of_resampled_populations_cover(case):
    """250 populations: 95 % +- 1.4 %, less what the skewness of few chains costs."""
    found = Population(*np.transpose([population(seed, **SETTINGS[case]) for seed in range(250)]))
    assert 0.90 <= coverage(found.log_normaliser, found.log_normaliser_error) <= 0.98
    stated = np.sqrt(np.mean(found.log_normaliser_error**2))
    assert stated == pytest.approx(found.log_normaliser.std(), rel=0.15), "4 standard errors"
    if case != "weighted once":
        assert found.resampled.mean() > 1
        assert 0.90 <= coverage(found.mean, found.mean_error) <= 0.98
        assert np.sqrt(np.mean(found.mean_error**2)) == pytest.approx(found.mean.std(), rel=0.15)


def test_chains_taken_as_independent_do_not_cover():
    """Negative control: the standard error that does not know the ancestry."""
    found = Population(*np.transpose([population(seed, persistence=0.95) for seed in range(250)]))
    assert coverage(found.mean, found.mean_error_alone) < 0.88 < coverage(found.mean, found.mean_error)


def test_without_resampling_the_error_is_that_of_weights():
    """The formula of Lee and Whiteley for no resampling is the relative error of a mean of weights."""
    increments = np.random.default_rng(0).standard_normal((3, 50))
    ancestors, weights = np.tile(np.arange(50), (3, 1)), np.exp(increments.sum(0))
    expected = weights.std(ddof=1) / np.sqrt(50) / weights.mean()
    assert log_normaliser_error(increments, ancestors, np.zeros(3, dtype=bool)) == pytest.approx(expected)
    moved = log_normaliser_error(increments + 700.0, ancestors, np.zeros(3, dtype=bool))
    assert moved == pytest.approx(expected), "constants of a level cancel"


def test_multinomial_resampling_gives_the_estimate_of_lee_and_whiteley():
    """On average over populations, where each family's share is squared after one factor n / (n - 1) a resampling."""
    ours, theirs = [], []
    for seed in range(2000):
        rng, n = np.random.default_rng(seed), 100
        x = rng.standard_normal(n)
        first, weights = 0.7 * x, np.exp(0.7 * x)
        row = rng.choice(n, size=n, p=weights / weights.sum())
        second = 0.5 * x[row] + 0.5 * rng.standard_normal(n)
        ancestors = np.stack([row, np.arange(n)])
        ours.append(log_normaliser_error(np.stack([first, second]), ancestors, np.array([True, False])) ** 2)
        shares = np.bincount(row, weights=np.exp(second) / np.exp(second).sum(), minlength=n)
        theirs.append(1 - (n / (n - 1)) ** 2 * (1 - np.sum(shares**2)))
    error = np.std(np.subtract(ours, theirs)) / np.sqrt(len(ours))
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * error + 2 / n * np.mean(theirs), "and terms of order 1 / n"
    raw = np.mean(theirs) + 1 / 100
    assert abs(raw - np.mean(ours)) > 10 * error, "what resampling adds to the shares is left out"


def test_equal_weights_have_no_error():
    ancestors = np.tile(np.arange(20), (4, 1))
    assert log_normaliser_error(np.zeros((4, 20)), ancestors, np.array([False, True, True, True])) == 0


@pytest.mark.parametrize(
    ("case", "expected"),
    [("one ancestor", np.inf), ("one weight", np.inf), ("no weight", np.nan), ("one chain", np.nan)],
)
def test_populations_that_cannot_tell_say_so(case, expected):
    chains = 1 if case == "one chain" else 10
    increments, ancestors = np.zeros((3, chains)), np.tile(np.arange(chains), (3, 1))
    if case == "one ancestor":
        ancestors[1] = 4
    elif case == "one weight":
        increments[1, 1:] = -np.inf
    elif case == "no weight":
        increments[1] = np.nan
    found = log_normaliser_error(increments, ancestors, np.array([False, case != "one weight", False]))
    np.testing.assert_equal(found, expected)
    if case == "one ancestor":
        assert mean_error(np.arange(10.0), families(ancestors)[-1]) == np.inf


def test_families_are_followed_to_the_start():
    ancestors = np.array([[0, 0, 2, 3], [0, 1, 1, 3], [3, 2, 1, 0]])
    np.testing.assert_array_equal(families(ancestors), [[0, 0, 2, 3], [0, 0, 0, 3], [3, 0, 0, 0]])


def test_the_error_of_a_mean_over_families_of_one_is_the_usual_one():
    values = np.random.default_rng(0).standard_normal((30, 2))
    np.testing.assert_allclose(mean_error(values, np.arange(30)), values.std(0, ddof=1) / np.sqrt(30))
    twice = mean_error(np.repeat(values, 2, 0), np.repeat(np.arange(30), 2))
    np.testing.assert_allclose(twice, values.std(0, ddof=1) / np.sqrt(30), rtol=0.02)


SCHEDULE = NoiseSchedule.cosine(30)
PAIR = GaussianMixture([[-0.8, 0.0], [0.8, 0.2]], [0.3, 0.4], weights=[0.3, 0.7], schedule=SCHEDULE, backend="jax")
LEFT = GaussianMixture([[-0.8, 0.0]], [0.3], schedule=SCHEDULE, backend="jax")
ONE = GaussianMixture([[0.2, 0.0]], [0.9], schedule=SCHEDULE, backend="jax")


class Way(NamedTuple):
    """A target, its closed form at the last level, and how it is walked on."""

    target: Potential
    exact: LogQuadratics
    levels: tuple[int, ...]
    resample: float | None
    reverse_step: bool


def closed_form(mixture: GaussianMixture, level: int) -> LogQuadratics:
    return LogQuadratics.of(mixture, level=level)


PRODUCT, EXACT = PAIR * ONE, closed_form(PAIR, 0) * closed_form(ONE, 0)
AVERAGE, EXACT_AT_5 = LEFT**0.5 * ONE**0.5, closed_form(LEFT, 5) ** 0.5 * closed_form(ONE, 5) ** 0.5
COARSE, FULL = (29, 24, 19, 14, 9, 4, 0), tuple(range(29, 4, -1))
WAYS = {
    "weighted": Way(PRODUCT, EXACT, COARSE, None, reverse_step=False),
    "resampled": Way(PRODUCT, EXACT, COARSE, 0.8, reverse_step=False),
    "reverse": Way(AVERAGE, EXACT_AT_5, FULL, 0.5, reverse_step=True),
}
"""Exponents sum to one for reverse steps, which end where the variance of their weights is finite."""


def scores(seeds: range, way: Way) -> np.ndarray:
    """Errors of the log-normaliser of walks, in those that they state."""
    found = []
    for seed in seeds:
        options = {"resample": way.resample, "reverse_step": way.reverse_step}
        ladder = Ladder(levels=way.levels, steps=1)
        walk = anneal(way.target, HMC(step=0.3), ladder=ladder, chains=64, seed=seed, **options)
        found.append((walk.log_normaliser - way.exact.moments()[2]) / walk.log_normaliser_error)
    return np.array(found)


@pytest.mark.filterwarnings("ignore::ppl_diffusion.SamplingWarning")
@pytest.mark.parametrize("way", ["weighted", "resampled"])
def test_stated_errors_of_log_normalisers_of_walks(way):
    """Mean square of 8 scores: within (.1, 3.3) but twice in 1,000."""
    found = scores(range(8), WAYS[way])
    assert 0.1 < np.mean(found**2) < 3.3


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::ppl_diffusion.SamplingWarning")
@pytest.mark.parametrize("way", WAYS)
def test_stated_errors_of_log_normalisers_cover_in_200_walks(way):
    """95 % +- 1.5 %, less what the skewness of 64 chains costs."""
    found = scores(range(200), WAYS[way])
    assert 0.89 <= np.mean(np.abs(found) < 1.96) <= 0.99
