"""Snapshots are where the chains were, cost nothing, and survive files and interruptions."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from bridges.blackjax import HMC
from bridges.pyro import DiffusionPrior, anneal_model
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, Trace, anneal, reverse_diffusion
from ppl_diffusion.sampling import checkpoint as walk_checkpoint
from ppl_diffusion.sampling.snapshots import a_few

SCHEDULE = NoiseSchedule.cosine(12)
TARGET = GaussianMixture([[0.3, 0.1]], [0.2], schedule=SCHEDULE, backend="jax")
SETTINGS = {"ladder": Ladder.full(SCHEDULE, steps=2), "chains": 20, "draws": 4, "seed": 0, "resample": 0.9}


class Interruption(Exception):
    pass


def interrupting(at):
    calls = []

    def progress(_):
        calls.append(None)
        if len(calls) == at:
            raise Interruption

    return progress


@pytest.fixture(scope="module")
def seen():
    return anneal(TARGET, HMC(), **SETTINGS, snapshots=5)


def test_the_walk_is_the_same_with_and_without(seen):
    plain = anneal(TARGET, HMC(), **SETTINGS)
    np.testing.assert_array_equal(plain.positions, seen.positions)
    assert plain.stats.identical(seen.stats)
    assert plain.snapshots == {}
    assert plain.snapshot_levels == []


def test_snapshots_are_positions_of_their_level(seen):
    x = seen.snapshots["x"]
    assert seen.snapshot_levels == [11, 8, 5, 3, 0]
    assert x.shape == (5, 20, 2), "all chains, as events are small"
    for level, points, rung in zip(seen.snapshot_levels, x, seen.attributes["snapshot_rungs"], strict=True):
        energy = np.asarray(TARGET.energy(points, level=level))
        np.testing.assert_allclose(energy, seen.stats.energy[rung], rtol=1e-5, atol=1e-5)
        other = np.asarray(TARGET.energy(points, level=max(0, level - 1) if level else 1))
        assert not np.allclose(other, seen.stats.energy[rung], rtol=1e-5, atol=1e-5), "negative control: another level"


def test_of_large_events_eight_chains_are_kept():
    target = GaussianMixture(np.zeros((1, 2000)), [0.5], schedule=SCHEDULE, backend="jax")
    trace = anneal(target, HMC(), ladder=Ladder((11, 0), steps=1), chains=12, seed=0, snapshots=8)
    assert trace.snapshots["x"].shape == (2, 8, 2000)
    assert reverse_diffusion(TARGET, chains=3, seed=0, snapshots=2).snapshots["x"].shape == (2, 3, 2)


def test_islands_keep_chains_of_each():
    parts = {"ladder": Ladder((11, 6, 0), steps=1), "chains": 12, "seed": 0, "islands": 3}
    trace = anneal(TARGET, HMC(), **parts, snapshots=2)
    assert trace.snapshots["x"].shape == (2, 12, 2)
    assert trace.snapshot_levels == [11, 0]
    energy = np.asarray(TARGET.energy(trace.snapshots["x"][0], level=11))
    np.testing.assert_allclose(energy, trace.stats.energy[0], rtol=1e-5, atol=1e-5)
    x = np.arange(2 * 24 * 2000.0).reshape(2, 24, 2000)
    assert a_few(x).shape == (2, 8, 2000)
    assert {int(v) // 2000 // 8 for v in a_few(x)[0, :, 0]} == {0, 1, 2}, "of three islands of 8 chains"


def test_snapshots_are_saved_and_loaded(seen, tmp_path):
    loaded = Trace.load(seen.save(tmp_path / "run.nc"))
    np.testing.assert_array_equal(loaded.snapshots["x"], seen.snapshots["x"])
    assert loaded.snapshot_levels == seen.snapshot_levels


@pytest.mark.parametrize("lost", [False, True])
def test_an_interruption_loses_none(seen, tmp_path, monkeypatch, lost):
    kept = tmp_path / "walk"
    for call in (3, 4):
        with pytest.raises(Interruption):
            anneal(TARGET, HMC(), **SETTINGS, snapshots=5, checkpoint=kept, progress=interrupting(call))
    if lost:  # negative control
        restore = walk_checkpoint.Checkpoint.restore

        def wrong(self, walk, walker, level):
            restore(self, walk, walker, level)
            walk.snapshots = []

        monkeypatch.setattr(walk_checkpoint.Checkpoint, "restore", wrong)
    resumed = anneal(TARGET, HMC(), **SETTINGS, snapshots=5, checkpoint=kept)
    assert np.array_equal(resumed.snapshots["x"], seen.snapshots["x"]) != lost
    np.testing.assert_array_equal(resumed.positions, seen.positions)
    with pytest.raises(ValueError, match="snapshot_rungs"):
        anneal(TARGET, HMC(), **SETTINGS, snapshots=4, checkpoint=kept)


def test_a_model_keeps_values_of_its_sites(tmp_path):
    prior = GaussianMixture([[0.3, 0.1]], [0.2], schedule=SCHEDULE, backend="torch")

    def model(y):
        x = pyro.sample("x", DiffusionPrior(prior))
        noise = pyro.sample("noise", dist.HalfNormal(0.5))
        pyro.sample("y", dist.Normal(x, noise + 0.1).to_event(1), obs=y)

    ladder = Ladder.spaced(SCHEDULE, rungs=4, steps=1)
    arguments = {"kernel": HMC(), "ladder": ladder, "chains": 3, "seed": 0, "snapshots": 3}
    trace = anneal_model(model, (torch.zeros(2),), **arguments)
    assert {name: value.shape for name, value in trace.snapshots.items()} == {"x": (3, 3, 2), "noise": (3, 3)}
    assert (trace.snapshots["noise"] > 0).all(), "constrained"
    loaded = Trace.load(trace.save(tmp_path / "run.nc"))
    np.testing.assert_array_equal(loaded.snapshots["noise"], trace.snapshots["noise"])


@pytest.mark.parametrize("snapshots", [-1, 2.5, True])
def test_their_number_is_a_whole_one(snapshots):
    with pytest.raises(ValueError, match="snapshots must be a whole number"):
        anneal(TARGET, HMC(), **SETTINGS, snapshots=snapshots)
