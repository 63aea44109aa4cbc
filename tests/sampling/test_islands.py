"""Islands: one trace wherever they walk, merged by their normalisers, with errors and checkpoints that hold."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import jax
import numpy as np
import pytest
import xarray as xr

from bridges.arviz import diagnose, summary, to_inference_data
from bridges.blackjax import HMC
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, Trace, anneal
from ppl_diffusion.potentials.target import Target
from ppl_diffusion.sampling import islands
from ppl_diffusion.sampling.descent import Descent, Surroundings, within
from ppl_diffusion.sampling.importance import Weights, systematic_resample
from tests.checks import LogQuadratics

SCHEDULE = NoiseSchedule.cosine(40)
PRIOR = GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.4], weights=[0.3, 0.7], schedule=SCHEDULE, backend="jax")
TARGET = PRIOR * PRIOR  # compiled once
SETTINGS = {
    "ladder": Ladder.spaced(SCHEDULE, rungs=8, steps=2),
    "chains": 256,
    "islands": 4,
    "draws": 4,
    "seed": 5,
    "resample": 0.9,
}


def sampled(**settings):
    return anneal(TARGET, HMC(leapfrogs=2), **SETTINGS | settings)


def same(one: Trace, two: Trace) -> bool:
    """Whether two traces are equal, number by number, but for the time that they took."""
    return (
        np.array_equal(one.positions, two.positions)
        and one.stats.identical(two.stats)
        and one.sample_stats.identical(two.sample_stats)
        and {**one.attributes, "seconds": 0} == {**two.attributes, "seconds": 0}
    )


@pytest.fixture(scope="module")
def whole() -> Trace:
    return sampled()


def backwards(function, items):
    """The last island first, by a copy of the function."""
    copy = pickle.loads(pickle.dumps(function))
    return [copy(item) for item in reversed(items)][::-1]


@pytest.mark.slow
def test_the_trace_does_not_depend_on_what_moves_the_islands(whole):
    for spread in (map, backwards):
        assert same(whole, sampled(spread=spread))
    with ThreadPoolExecutor(2) as pool:
        assert same(whole, sampled(spread=pool.map))
    assert not same(whole, sampled(islands=2)), "the number of islands matters"
    assert not same(whole, sampled(seed=6))


@pytest.mark.long
def test_another_process_gives_the_same_trace(whole):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert same(whole, sampled(spread=pool.map))


def test_a_walk_takes_the_settings_along_on_which_rounding_depends():
    here = Surroundings.here()
    there = here._replace(threads=here.threads + 1, torch_precision="high", jax_precision="highest")
    descent = pickle.loads(pickle.dumps(Descent(TARGET, HMC(), SETTINGS["ladder"], 1, None, False, surroundings=there)))
    assert pickle.loads(pickle.dumps(descent)) is descent, "one object in a process, so that it compiles once"
    assert pickle.loads(pickle.dumps(replace(descent, key="other"))) is not descent
    with within(descent.surroundings):
        assert Surroundings.here() == there
    assert Surroundings.here() == here


@pytest.mark.slow
def test_one_island_is_the_walk_without_islands(whole):
    alone = anneal(TARGET, HMC(leapfrogs=2), **{k: v for k, v in SETTINGS.items() if k != "islands"} | {"chains": 64})
    assert same(alone, sampled(islands=1, chains=64))
    assert same(alone, sampled(islands=1, chains=64, spread=map))
    assert "islands" not in alone.attributes


@pytest.mark.slow
def test_an_island_is_a_walk_of_its_own(whole):
    """Without resampling islands stand side by side; each is the walk with its seed, and adapts its own step."""
    plain = sampled(resample=None)
    blocks = islands.split(4, chains=256, seed=5, init=None, checkpoint=None)
    for island in blocks:
        own = anneal(
            TARGET, HMC(leapfrogs=2), **SETTINGS | {"resample": None, "islands": 1, "chains": 64, "seed": island.seed}
        )
        part = slice(64 * island.number, 64 * island.number + 64)
        assert np.array_equal(plain.positions[part], own.positions)
        for name in ("log_weight", "step_size", "acceptance_rate", "energy"):
            assert np.array_equal(plain.stats[name][:, part], own.stats[name]), name
        assert plain.gradient_calls == 4 * own.gradient_calls
    assert len({island.seed for island in blocks}) == len(np.unique(plain.stats["step_size"][-1])) == 4
    assert np.array_equal(plain.families, np.arange(256))
    weights = np.exp(plain.stats["log_weight"].to_numpy().sum(0))
    assert plain.log_normaliser == pytest.approx(np.log(weights.mean()))
    assert plain.log_normaliser_error == pytest.approx(weights.std(ddof=1) / weights.mean() / np.sqrt(256))
    assert plain.stats["ess"][-1] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


@pytest.mark.slow
def test_the_merged_trace_tells_whose_the_chains_are_and_is_read_by_all(whole, tmp_path):
    parts = [
        sampled(islands=1, chains=64, seed=i.seed)
        for i in islands.split(4, chains=256, seed=5, init=None, checkpoint=None)
    ]
    z = np.array([part.log_normaliser for part in parts])
    assert whole.log_normaliser == pytest.approx(np.log(np.mean(np.exp(z))))
    origin = whole.families // 64
    copies = 256 * np.exp(z) / np.exp(z).sum()
    assert np.all(np.abs(np.bincount(origin, minlength=4) - copies) <= 1), "systematic"
    everyone = np.concatenate([part.positions for part in parts])
    for chain, island in zip(whole.positions, origin, strict=True):
        assert (everyone[64 * island : 64 * island + 64] == chain).all((1, 2)).any()
    again = Trace.load(whole.save(tmp_path / "run.nc"))
    assert again.log_normaliser_error == whole.log_normaliser_error
    assert "256 chains" in repr(again)
    assert summary(again).families.iloc[0] == len(np.unique(whole.families))
    assert diagnose(again).log_normaliser == whole.log_normaliser
    assert to_inference_data(again)["annealing"]["family"].shape == (8, 256)


@pytest.mark.slow
def test_normalisers_of_eight_islands_of_64_chains_are_those_of_the_closed_form():
    truth = (LogQuadratics.of(PRIOR, level=0) * LogQuadratics.of(PRIOR, level=0)).moments()[2]
    for resample in (None, 0.5):
        trace = sampled(chains=512, islands=8, resample=resample, seed=0, ladder=Ladder.full(SCHEDULE, steps=2))
        assert abs(trace.log_normaliser - truth) < 4 * trace.log_normaliser_error < 0.5


@pytest.mark.long
def test_the_stated_error_covers_the_closed_form():
    truth = (LogQuadratics.of(PRIOR, level=0) * LogQuadratics.of(PRIOR, level=0)).moments()[2]
    found = [sampled(chains=64, ladder=Ladder((39, 20, 8, 0), steps=1), draws=1, seed=seed) for seed in range(100)]
    errors = np.array([trace.log_normaliser - truth for trace in found])
    stated = np.array([trace.log_normaliser_error for trace in found])
    assert 0.88 <= np.mean(np.abs(errors) < 1.96 * stated) <= 0.99
    assert np.mean(np.abs(errors) < 1.96 * stated / 2) < 0.8, "half of it does not"


# ---- populations without moves, of which everything is known


def island(seed: int, *, chains: int, rungs: int = 6, resample: float | None = 0.5) -> Trace:
    """A walk from two equal modes to shares .2 and .8, in which no chain leaves its mode; draws are 1 in the right one.

    Weights have the mean 1.
    """
    rng, weights = np.random.default_rng(seed), Weights(chains)
    modes, rows = rng.random(chains) < 0.5, []
    for rung in range(rungs):
        steps = np.log([0.4, 1.6]) / rungs
        increments = steps[modes.astype(int)]
        row = weights.move(increments)
        chosen = weights.resample(resample, last=rung == rungs - 1, rng=rng)
        row["ancestor"] = np.arange(chains) if chosen is None else chosen
        row["resampled"], row["throw"], row["gradient_calls"] = chosen is not None, 0.0, 1
        modes = modes[row["ancestor"]]
        rows.append(row)
    stats = xr.Dataset(
        {name: (("rung", "chain")[: np.ndim(rows[0][name]) + 1], np.stack([r[name] for r in rows])) for name in rows[0]}
    )
    draws = xr.Dataset({"lp": (("chain", "draw"), np.zeros((chains, 1)))}, attrs={"gradient_calls": 1})
    made = {"has_energy": True, "resample": resample, "circulation": None, "warnings": [], "seconds": 0.0}
    return Trace(modes[:, None, None].astype(float), stats, draws, made)


def runs(count: int, *, of: int, **options) -> list[list[Trace]]:
    """Runs, each of so many islands."""
    return [[island(1000 * seed + i, **options) for i in range(of)] for seed in range(count)]


def bias(found: list[list[Trace]]) -> float:
    """Return the error, in standard errors, of the share of the right mode times the normaliser, which has no bias."""
    traces = [islands.merge(parts, seed=seed) for seed, parts in enumerate(found)]
    values = np.array([np.exp(t.log_normaliser) * (t.positions.mean() - 0.8) for t in traces])
    return float(values.mean() / (values.std(ddof=1) / np.sqrt(len(values))))


@pytest.mark.slow
def test_islands_that_find_different_modes_are_weighed_once(monkeypatch):
    """Of islands of two chains, a quarter find only the left mode and a quarter only the right one."""
    found = runs(120, of=8, chains=2, rungs=2)
    assert abs(bias(found)) < 4
    monkeypatch.setattr(islands, "systematic_resample", lambda log_weights, rng: np.arange(len(log_weights)))
    assert bias(found) < -4, "islands taken as equal"
    monkeypatch.setattr(islands, "systematic_resample", lambda weights, rng: systematic_resample(2 * weights, rng))
    assert bias(found) > 4, "weighed twice"


@pytest.mark.long
def test_errors_respect_islands_even_if_they_have_one_family_left():
    """An island of two chains often has a single family: then islands are what differs."""
    traces = [islands.merge(parts, seed=seed) for seed, parts in enumerate(runs(60, of=16, chains=2, resample=0.99))]
    size = np.exp([trace.log_normaliser for trace in traces])
    stated = size * [trace.log_normaliser_error for trace in traces]
    assert np.sqrt(np.mean((size - 1) ** 2)) == pytest.approx(np.sqrt(np.mean(stated**2)), rel=0.25)
    assert 0.85 < np.mean(np.abs(size - 1) < 1.96 * stated) < 1
    assert np.mean(np.abs(size - 1) < 1.96 * stated / 2) < 0.8, "half of it does not"


def test_an_island_without_a_finite_energy_has_no_share():
    lost = island(0, chains=4)
    lost.stats["log_weight"][:] = -np.inf
    lost.stats["resampled"][:] = False
    lost.positions[:] = 7.0
    trace = islands.merge([island(1, chains=4), lost, island(2, chains=4)], seed=0)
    assert not np.any(trace.positions == 7)
    assert np.isfinite(trace.log_normaliser_error)
    nothing = islands.merge([lost, lost], seed=0)
    assert nothing.log_normaliser == -np.inf
    assert np.isnan(nothing.log_normaliser_error)
    assert nothing.positions.shape == (8, 1, 1)


# ---- checkpoints, progress, warnings, errors


class Interruption(Exception):
    pass


@pytest.mark.slow
def test_interrupted_islands_go_on_and_finished_ones_are_not_repeated(whole, tmp_path):
    told = []

    def until(call):
        def progress(state):
            told.append(state)
            if len(told) == call:
                raise Interruption

        return progress

    with pytest.raises(Interruption) as error:  # in the middle of the second island: 8 rungs and a block of draws each
        sampled(checkpoint=tmp_path / "walk", progress=until(13))
    assert f"checkpoint='{tmp_path / 'walk'}' goes on" in error.value.__notes__[0]
    assert sorted(file.name for file in (tmp_path / "walk").iterdir()) == ["0.safetensors", "1.safetensors"]
    told.clear()
    assert same(whole, sampled(checkpoint=tmp_path / "walk", progress=until(0)))
    assert [state.island for state in told] == [1] * 5 + [2] * 9 + [3] * 9
    told.clear()
    assert same(whole, sampled(checkpoint=tmp_path / "walk", progress=until(0)))
    assert not told
    with pytest.raises(ValueError, match="of another run"):
        sampled(checkpoint=tmp_path / "walk", resample=0.5)
    with pytest.raises(ValueError, match="not the checkpoint of a walk"):
        sampled(checkpoint=tmp_path / "walk", islands=1)
    with pytest.raises(ValueError, match="is a file, and islands have a folder"):
        sampled(checkpoint=tmp_path / "walk" / "0.safetensors")
    with pytest.raises(FileNotFoundError, match="mkdir -p"):
        sampled(checkpoint=tmp_path / "none" / "walk")


@pytest.mark.slow
def test_of_islands_that_are_spread_the_end_of_each_is_told():
    told = []
    sampled(spread=map, progress=told.append)
    assert [(state.island, state.islands, state.rung, state.draw) for state in told] == [(i, 4, 8, 4) for i in range(4)]


@pytest.mark.slow
def test_islands_are_warned_of_once_and_start_where_they_are_told_to():
    init = 100 + np.arange(512.0).reshape(256, 2)
    with pytest.warns(match="standard deviations away from noised data") as caught:
        trace = sampled(init=init, resample=None)
    assert len(trace.attributes["warnings"]) == len(caught) == 1
    told = trace.attributes["warnings"][0]
    assert "values from 100 to 227" in told
    assert told.endswith("(so, or with other numbers, on 4 of 4 islands)")
    with jax.enable_x64(True):
        assert np.array_equal(trace.stats["energy_arrival"][0], TARGET.energy(init, level=39))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"islands": 5}, "256 chains cannot be shared by 5 islands of one size: try chains=260"),
        ({"islands": 0}, "islands must be a whole number >= 1"),
        ({"islands": True}, "islands must be a whole number >= 1"),
        ({"islands": None, "spread": map}, "add islands=8"),
        ({"spread": 2}, "give it the map of a pool"),
        ({"init": np.zeros((16, 2))}, r"init has shape \(16, 2\): .* here \(256, 2\)"),
        ({"spread": lambda function, items: map(function, items[::-1])}, "does not keep islands in order"),
    ],
)
def test_invalid_islands_are_told(settings, words):
    with pytest.raises((ValueError, TypeError), match=words):
        sampled(**settings)


def test_potentials_leave_what_is_compiled_behind_when_they_are_pickled():
    assert isinstance(TARGET, Target)
    assert b"_memo" not in pickle.dumps(TARGET)
