"""Evaluation in chunks: same energies, gradients and traces; smaller chunks when memory runs out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bridges.blackjax import HMC
from ppl_diffusion import EnergyModel, Ladder, NoiseSchedule, anneal, conjunction
from ppl_diffusion.devices.chunks import MemoryWarning
from ppl_diffusion.models.conditions import Positions
from ppl_diffusion.models.networks import build_network


class Small(nn.Module):
    """A network that raises an out-of-memory error for more than ``room`` points."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.inner = build_network("unet", shape=[3, 8, 8], widths=[8, 8], blocks=1, positions=True)
        self.room, self.sizes = room, []

    def forward(self, x, log_snr, condition=None):
        if len(x) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        self.sizes.append(len(x))
        return self.inner(x, log_snr, condition)


def model(room: int = 1_000) -> EnergyModel:
    return EnergyModel(
        Small(room),
        form="squared_norm",
        schedule=NoiseSchedule.cosine(20),
        event_shape=(3, 8, 8),
        conditions=Positions(0.1, 0.9),
        name="small",
    )


def points(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def two_cubes(base: EnergyModel):
    return conjunction([base.given(x=0.3, y=0.4), base.given(x=0.7, y=0.6)], base)


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_chunks_change_nothing(size):
    whole, split = model(), model()
    split.chunks.size = size
    expected = two_cubes(whole).value_and_grad(points(9), level=3)
    found = two_cubes(split).value_and_grad(points(9), level=3)
    alone = split.network.sizes.copy()
    torch.testing.assert_close(two_cubes(split).energy(points(9), level=3), found[0])
    assert split.network.sizes == 2 * alone, "energies without gradients are split and grouped likewise"
    split.network.sizes = alone
    assert whole.network.sizes == [27]
    assert sum(split.network.sizes) == 27
    assert max(split.network.sizes) <= size
    assert max(split.network.sizes) - min(split.network.sizes) <= 1
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_a_device_without_memory_is_asked_for_less():
    base = model(room=6)
    with pytest.warns(MemoryWarning) as said:
        energy, _ = two_cubes(base).value_and_grad(points(9), level=3)
    words = [str(warning.message) for warning in said]
    assert words == [
        "cpu ran out of memory for 27 points at once: going on with 13, nothing is lost",
        "cpu ran out of memory for 13 points at once: going on with 6, nothing is lost",
    ]
    assert base.chunks.size == 6
    torch.testing.assert_close(energy, two_cubes(model()).energy(points(9), level=3), rtol=1e-5, atol=1e-4)
    base.given(x=0.5, y=0.5).value_and_grad(points(9), level=3)  # the chunk size is shared: no second warning
    with pytest.raises(torch.OutOfMemoryError):
        model(room=0).value_and_grad(points(1), level=3)


def test_a_network_that_moves_takes_all_its_conditions_along():
    base = model()
    given = base.given(x=0.5, y=0.5)
    base.chunks.size = 3
    assert base.to("meta") is base
    assert given.device == torch.device("meta")
    assert given.chunks.size is None, "all at once on an accelerator"
    given.chunks.size = 7
    assert base.chunks.size == 7
    base.network.to_empty(device="cpu")
    assert given.chunks.size == 3, "what was found there before"


@pytest.mark.long
def test_a_walk_survives_it():
    ladder = Ladder(levels=(19, 5), steps=2)
    with pytest.warns(MemoryWarning):
        found = anneal(two_cubes(model(room=5)), HMC(), ladder=ladder, chains=4, seed=0)
    expected = anneal(two_cubes(model()), HMC(), ladder=ladder, chains=4, seed=0)
    np.testing.assert_allclose(found.positions, expected.positions, rtol=1e-3, atol=1e-3)
    assert found.gradient_calls == expected.gradient_calls


def test_tuning_measures_halves_and_keeps_the_fastest():
    base = model(room=40)
    with pytest.warns(MemoryWarning):
        seconds = base.tune(64)
    assert sorted(seconds) == [8, 16, 32]
    assert base.chunks.size == min(seconds, key=seconds.get)
    assert base.given(x=0.5, y=0.5).chunks is base.chunks
