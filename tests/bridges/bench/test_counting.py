"""Gradients are counted at the potential: exactly, for kernels of JAX and of Pyro, whatever they report."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bridges.bench.counting import Counted
from bridges.bench.protocol import BudgetError, walk
from bridges.bench.runners import JaxRunner, WalkerRunner
from bridges.bench.samplers import StepAdapted
from bridges.blackjax import HMC
from bridges.pyro import HMC as PyroHMC
from ppl_diffusion import GaussianMixture, NoiseSchedule

SCHEDULE = NoiseSchedule.cosine(100)


def mixture(backend="torch", size=2):
    means = np.array([[-1.0, 0.0], [1.0, 0.5]])[:, :size]
    return GaussianMixture(means, [0.5, 0.6], schedule=SCHEDULE, backend=backend)


def test_points_are_counted_once_and_evaluations_every_time():
    place = Counted(mixture())
    x = torch.randn(5, 2, dtype=torch.float64)
    place.energy(x, level=3)
    place.value_and_grad(x, level=3)  # the same points: their chains know them
    place.energy(x + 1, level=3)
    distinct, evaluated = place.read(1, 5)
    assert (distinct.tolist(), evaluated) == ([2.0], 3.0)
    assert place.read(1, 5)[1] == 0
    found, own = place.value_and_grad(x, level=3), mixture().value_and_grad(x, level=3)
    assert all(torch.equal(a, b) for a, b in zip(found, own, strict=True))


def test_groups_are_counted_apart():
    place = Counted(mixture())
    x = torch.randn(2, 4, 2, dtype=torch.float64)
    place.energy(x, level=0)
    x[1] += 1  # the first group waits
    place.energy(x, level=0)
    distinct, evaluated = place.read(2, 4)
    assert (distinct.tolist(), evaluated) == ([1.0, 2.0], 2.0)


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (mixture("jax"), TypeError, "backend='torch'"),
        (mixture(size=1), ValueError, "not 2 numbers"),
    ],
)
def test_a_target_that_cannot_be_counted_is_refused(target, error, words):
    with pytest.raises(error, match=words):
        Counted(mixture()).seat(target)


@pytest.mark.slow
def test_hmc_takes_one_gradient_at_the_start_and_its_leapfrogs_for_every_draw():
    place = Counted(mixture())
    runner = JaxRunner(StepAdapted(HMC(leapfrogs=3)), place, block=4)
    starts = np.stack([mixture().sample(4, level=20, seed=seed) for seed in range(2)])
    walks = walk(runner, place, starts, level=20, gradients=100, seed=0)
    assert len(walks) == 2
    for one in walks:
        assert (one.adaptation - 1) % 3 == 0
        assert 20 <= one.adaptation <= 40
        assert np.array_equal(np.diff(one.gradients), np.full(len(one.gradients) - 1, 3.0))
        assert one.gradients[0] == one.adaptation + 3
        assert 97 < one.gradients[-1] <= 100
        assert one.evaluated == one.reported == one.gradients[-1] - one.adaptation
    again = walk(runner, place, starts, level=20, gradients=100, seed=0)
    assert np.array_equal(again[1].positions, walks[1].positions)
    with pytest.raises(BudgetError, match=r"a budget of 20 gradients lasts for 2 draws of hmc.*give --gradients"):
        walk(runner, place, starts, level=20, gradients=20, seed=0, name="hmc")


@pytest.mark.slow
def test_pyro_is_counted_as_any_other():
    place = Counted(mixture())
    starts = mixture().sample(2, level=20, seed=0)[None]
    (one,) = walk(
        WalkerRunner(PyroHMC(leapfrogs=3), place, block=2), place, starts, level=20, gradients=60, seed=0, name="pyro"
    )
    assert np.array_equal(np.diff(one.gradients), np.full(len(one.gradients) - 1, 3.0))
    assert one.reported == one.gradients[-1] - one.adaptation
    assert one.positions.shape == (2, len(one.gradients), 2)
