"""Chains of several levels at once: the same chains as level by level, by one call of every network."""

from __future__ import annotations

import numpy as np
import pytest

from bridges.blackjax import HMC, MALA, NUTS, each_level
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, exchange, load
from ppl_diffusion.sampling import replicas
from ppl_diffusion.sampling.levels import OneByOne

SCHEDULE = NoiseSchedule.cosine(100)
EXACT = GaussianMixture([[-1.0, 0.0], [1.0, 0.5]], [0.3, 0.2], schedule=SCHEDULE, backend="jax", name="exact")


class NoLevels:
    """A class of which no walker is."""


def run(target, kernel, monkeypatch, *, apart=False, most=None, **options):
    with monkeypatch.context() as patched:
        if apart:
            patched.setattr(replicas, "Levels", NoLevels)
        if most:
            patched.setattr(each_level, "MOST", most)
        ladder = Ladder((90, 70, 50, 30), steps=(1, 2, 1, 1))
        settings = {"chains": 6, "draws": 6, "warm_up": 4, "seed": 0, "ladder": ladder}
        return exchange(target, kernel, **(settings | options))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no replica has travelled")
@pytest.mark.parametrize(
    ("kind", "kernel"),
    [
        ("jax", HMC()),
        ("torch", MALA()),
        *(pytest.param(kind, NUTS(), marks=pytest.mark.long) for kind in ("jax", "torch")),
    ],
    ids=str,
)
def test_chains_are_those_of_one_level_after_another(kind, kernel, monkeypatch):
    target = EXACT if kind == "jax" else load("ring") * load("bar")
    together, apart, blocks = (run(target, kernel, monkeypatch, **how) for how in ({}, {"apart": True}, {"most": 24}))
    for other in (apart, blocks):
        np.testing.assert_allclose(together.positions, other.positions, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(together.stats.swap_rate, other.stats.swap_rate)
        np.testing.assert_allclose(together.stats.step_size, other.stats.step_size, rtol=1e-4)
        np.testing.assert_allclose(together.stats.energy, other.stats.energy, rtol=1e-3, atol=1e-3)
    if not isinstance(kernel, NUTS):
        assert together.gradient_calls == apart.gradient_calls


@pytest.mark.filterwarnings("ignore:no replica has travelled")
@pytest.mark.parametrize("apart", [False, True])
def test_a_round_calls_the_network_once_for_all_levels(apart, monkeypatch):
    target, sizes = load("ring"), []
    hook = target.network.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    run(target, HMC(leapfrogs=3), monkeypatch, apart=apart, ladder=Ladder((90, 70, 50, 30), steps=1))
    hook.remove()
    assert sizes.count(24) == (0 if apart else 10 * 3 + 5), "three leapfrogs a round, and swaps of all levels in five"
    assert sizes.count(12) == (0 if apart else 5), "and of the two in the middle in the others"


def test_a_walker_that_cannot_is_asked_level_by_level():
    assert isinstance(OneByOne(None), replicas.Levels)
