"""Resampled runs: errors that respect the ancestry, and words on shares of modes that weights have set."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

import bridges.arviz.convert as bridge
from bridges.arviz import diagnose, summary, to_inference_data
from bridges.arviz.summary import family_statistics
from bridges.arviz.words import GROUP_LIMIT
from bridges.blackjax import HMC
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, anneal
from tests.checks import LogQuadratics

SCHEDULE = NoiseSchedule.cosine(100)
WALK = {"chains": 512, "draws": 25, "resample": 0.5, "seed": 0}
LADDER = Ladder.spaced(SCHEDULE, rungs=34, steps=3)
TARGET = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], [0.15, 0.15], schedule=SCHEDULE, backend="jax") * GaussianMixture(
    [[-0.6, 0.0]], [0.5], schedule=SCHEDULE, backend="jax"
)


@pytest.fixture(scope="module")
def weighted():
    return anneal(TARGET, HMC(), ladder=LADDER, **WALK)


def says(trace, words):
    return any(words in sentence for sentence in diagnose(trace).warnings)


APART = "each chain stays in its mode"


def test_a_converged_weighted_run_is_called_fine(weighted):
    found = diagnose(weighted)
    assert float(found.draws.r_hat_chains.max()) > float(found.draws.limit_chains.max()), "chains stay in their modes"
    assert float(found.draws.r_hat.max()) < 1.05
    assert found.warnings == ()
    assert "log-normaliser -1.5" in str(found)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(6))
def test_converged_weighted_runs_are_called_fine(seed):
    ladder = Ladder.full(SCHEDULE, steps=3)
    assert diagnose(anneal(TARGET, HMC(), ladder=ladder, **{**WALK, "seed": seed})).warnings == ()


def test_the_same_run_without_weights_is_warned_of(weighted):
    """Shares are then those of the path, for which nothing speaks."""
    unused = {**weighted.attributes, "resample": None}
    stats = weighted.stats.copy(deep=True)
    stats["ancestor"][:], stats["resampled"][:] = np.arange(512), False
    assert says(dataclasses.replace(weighted, stats=stats, attributes=unused), f"{APART}, or takes too few")


def test_a_start_given_by_init_is_warned_of(weighted):
    """Weights know nothing of the shares that were given."""
    begun = np.random.default_rng(0).normal([1.0, 0.0], 0.15, (512, 2))
    begun[::2, 0] -= 2
    ladder = Ladder(levels=(10, 5, 0), steps=5)
    given = anneal(TARGET, HMC(), ladder=ladder, init=begun, **WALK)
    assert says(given, "init= and the weights gave them")
    stored = dataclasses.replace(given, attributes={k: v for k, v in given.attributes.items() if k != "init"})
    assert says(stored, "init= and the weights gave them"), "in traces without this fact too"
    assert not says(weighted, "init=")


def test_collapsed_ancestry_weights_of_no_meaning_and_bias_are_warned_of(weighted):
    few, copied = weighted.stats.ancestor.copy(deep=True), np.arange(512) // 128
    few[-1] = copied
    copies = {"positions": weighted.positions[copied], "stats": weighted.stats.assign(ancestor=few)}
    collapsed = dataclasses.replace(weighted, **copies)
    assert says(collapsed, "the population has collapsed")
    least, before = (float(diagnose(trace).draws.ess_bulk.min()) for trace in (collapsed, weighted))
    assert least < before / 10, "they hold 100 different draws"
    rough = weighted.stats.log_weight + 12 * np.random.default_rng(0).standard_normal(weighted.stats.log_weight.shape)
    meaningless = dataclasses.replace(weighted, stats=weighted.stats.assign(log_weight=rough))
    assert says(meaningless, "meaningless")
    assert says(meaningless, APART)
    unadjusted = dataclasses.replace(weighted, attributes={**weighted.attributes, "adjusted": False})
    assert says(unadjusted, APART)


def test_the_ancestry_is_exported_and_told_of(weighted):
    data = to_inference_data(weighted)
    family = data["annealing"]["family"]
    assert family.dims == ("rung", "chain")
    np.testing.assert_array_equal(family[-1], weighted.families)
    assert len(np.unique(weighted.families)) == int(diagnose(weighted).rungs.ancestors[-1])
    assert "bridges.arviz.summary" in data.attrs["ancestry"]
    assert data.attrs["log_normaliser_error"] == weighted.log_normaliser_error > 0
    stats = weighted.stats.assign(resampled=weighted.stats.resampled & False)
    assert "independent" in to_inference_data(dataclasses.replace(weighted, stats=stats)).attrs["ancestry"]


def test_the_summary_has_the_columns_of_arviz(weighted):
    table = summary(weighted)
    theirs = bridge.arviz().summary(to_inference_data(weighted), var_names=["x"], round_to="none")
    assert list(table.index) == list(theirs.index) == ["x[0]", "x[1]"]
    assert [*table.columns] == [*theirs.columns, "families"]
    pd.testing.assert_series_equal(table["mean"], theirs["mean"])
    stats = weighted.stats.assign(resampled=weighted.stats.resampled & False)
    pd.testing.assert_frame_equal(summary(dataclasses.replace(weighted, stats=stats)), theirs)
    with pytest.raises(ValueError, match="no variable 'y'"):
        summary(weighted, var_names=["y"])
    with pytest.raises(TypeError, match="reads a Trace"):
        summary(np.zeros(3))
    single = dataclasses.replace(weighted, positions=weighted.positions[:, :1])
    single = dataclasses.replace(single, sample_stats=weighted.sample_stats.isel(draw=slice(1)))
    assert "mcse_mean" not in summary(single)


def test_copies_are_worth_one_chain():
    """Effective sizes of families of four copies are a quarter of what their draws look like."""
    rng = np.random.default_rng(0)
    draws = np.repeat(rng.standard_normal((100, 20)), 4, axis=0)
    found = family_statistics(draws, np.repeat(np.arange(100), 4))
    assert found["ess_bulk"] == pytest.approx(2000, rel=0.5), "3 standard errors of a variance of 100 families"
    alone = family_statistics(draws, np.arange(400))
    assert alone["ess_bulk"] == pytest.approx(4 * found["ess_bulk"], rel=0.02)
    assert alone["mcse_mean"] == pytest.approx(found["mcse_mean"] / 2, rel=0.02)
    assert found["r_hat"] < 1.02


def test_groups_of_families_that_differ_are_found():
    rng = np.random.default_rng(0)
    draws, apart = rng.standard_normal((100, 20)), 3 * (np.arange(100) % 4 == 0)[:, None]
    assert family_statistics(draws, np.arange(100))["r_hat"] < 1.02
    assert family_statistics(draws + apart, np.arange(100))["r_hat"] > GROUP_LIMIT
    assert np.isnan(family_statistics(draws, np.zeros(100, dtype=int))["r_hat"])


PAIR = GaussianMixture([[-0.8, 0.0], [0.8, 0.2]], [0.3, 0.4], weights=[0.3, 0.7], schedule=SCHEDULE, backend="jax")
ONE = GaussianMixture([[0.2, 0.0]], [0.9], schedule=SCHEDULE, backend="jax")
PRODUCT = PAIR * ONE
EXACT = LogQuadratics.of(PAIR, level=0) * LogQuadratics.of(ONE, level=0)


def scores(seeds: range) -> np.ndarray:
    """Errors of the mean of x, in standard errors of the summary, ``(seeds, 2)``."""
    ladder, found = Ladder.spaced(SCHEDULE, rungs=50, steps=3), []
    for seed in seeds:
        trace = anneal(PRODUCT, HMC(), ladder=ladder, chains=256, draws=20, seed=seed, resample=0.5)
        table = summary(trace)
        found.append((table["mean"] - EXACT.moments()[0]) / table["mcse_mean"])
    return np.array(found)


def test_means_of_resampled_runs_are_within_their_errors():
    assert np.abs(scores(range(2))).max() < 4


@pytest.mark.long
def test_means_of_resampled_runs_cover():
    """80 scores: 95 % +- 2.4 %."""
    assert np.mean(np.abs(scores(range(40))) < 1.96) >= 0.88
