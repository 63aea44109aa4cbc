"""Exact number of network calls: one at arrival and one per leapfrog step, for all chains and factors together."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from torch import nn

from bridges.blackjax import HMC, MALA, NUTS, ULA
from bridges.torch_jax import to_jax, to_torch
from ppl_diffusion import (
    Adaptive,
    EnergyModel,
    GaussianMixture,
    Ladder,
    NoiseSchedule,
    SamplingWarning,
    ScorePotential,
    anneal,
    conjunction,
    guidance,
)
from ppl_diffusion.models.conditions import Classes
from ppl_diffusion.models.networks import EnergyMLP
from ppl_diffusion.models.noise import PROBE

pytestmark = pytest.mark.slow
SCHEDULE = NoiseSchedule.cosine(20)


class Counting(nn.Module):
    """A network that counts its calls and remembers the points of each."""

    def __init__(self, seed: int, classes: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = EnergyMLP(2, width=16, hidden=16, blocks=1, classes=classes)
        self.calls: list[tuple[int, bytes]] = []

    def forward(self, x, log_snr, condition=None):
        self.calls.append((len(x), x.detach().numpy().tobytes() + float(log_snr[0]).hex().encode()))
        return self.inner(x, log_snr, condition)


def model(seed: int, classes: int = 0) -> EnergyModel:
    return EnergyModel(
        Counting(seed, classes),
        form="squared_distance",
        schedule=SCHEDULE,
        event_shape=(2,),
        conditions=Classes(classes),
    )


def calls(*models: EnergyModel) -> list[int]:
    return [len(m.network.calls) for m in models]


@pytest.mark.parametrize("step", [0.1, Adaptive()])
@pytest.mark.parametrize(
    ("kernel", "leapfrogs"),
    [(HMC, 3), (lambda step: HMC(step=step, leapfrogs=7, refreshment=0.3), 7), (MALA, 1), (ULA, 1)],
    ids=["HMC", "HMC of 7", "MALA", "ULA"],
)
def test_a_rung_costs_one_call_and_one_for_each_leapfrog(kernel, leapfrogs, step):
    """Neither step size adaptation nor the start or the end of a run costs further calls."""
    energy = model(0)
    trace = anneal(energy, kernel(step=step), ladder=Ladder(levels=(19, 10, 0), steps=4), chains=6, draws=5, seed=0)
    expected = 3 * (1 + 4 * leapfrogs) + 5 * leapfrogs
    assert calls(energy) == [expected]
    assert trace.gradient_calls == expected
    assert list(trace.stats.gradient_calls) == [1 + 4 * leapfrogs] * 3
    assert {size for size, _ in energy.network.calls} == {6}, "all chains in each call"
    seen = [point for _, point in energy.network.calls]
    assert len(set(seen)) == len(seen), "no point is evaluated twice"


@pytest.mark.parametrize("kernel", [HMC, MALA], ids=["HMC", "MALA"])
@pytest.mark.parametrize(("work", "per_leapfrog"), [("trapezoid", 1), ("simpson", 2)])
def test_acceptance_by_work_costs_one_or_two_calls_for_each_leapfrog(kernel, work, per_leapfrog):
    """Beside them, a call at the start tells what the network predicts, and twelve at the end how its score turns."""
    network, ladder = Counting(0), Ladder(levels=(19, 10, 0), steps=4)
    times = [float(SCHEDULE.log_snr(level)) for level in range(len(SCHEDULE))]
    score = ScorePotential(network, predicts="noise", schedule=SCHEDULE, event_shape=(2,), times=times)
    with pytest.warns(SamplingWarning, match="is said to predict noise"):  # it is not trained
        trace = anneal(score, kernel(step=0.1, work=work), ladder=ladder, chains=6, draws=5, seed=0)
    leapfrogs = 3 if kernel is HMC else 1
    expected = 3 * (1 + 4 * leapfrogs * per_leapfrog) + 5 * leapfrogs * per_leapfrog
    assert trace.gradient_calls == expected
    assert len(network.calls) == expected + 1 + 12
    assert [size for size, _ in network.calls] == [PROBE] + [6] * (expected + 12)
    walked = [point for _, point in network.calls[1 : 1 + expected]]
    assert len(set(walked)) == expected, "no point is evaluated twice"


def test_calls_of_nuts_are_counted_although_chains_wait_for_each_other():
    """In a batch, chains whose trajectory has ended run along, so that lengths of trajectories are no count."""
    energy, ladder = model(0), Ladder(levels=(19, 10, 0), steps=4)
    trace = anneal(energy, NUTS(step=0.1, max_doublings=5), ladder=ladder, chains=6, draws=20, seed=0)
    assert calls(energy) == [trace.gradient_calls]
    recorded = int(trace.sample_stats.n_steps.max("chain").sum())
    assert trace.sample_stats.attrs["gradient_calls"] > recorded


@pytest.mark.filterwarnings("ignore:the variance of the noise falls", "ignore:the reverse step .* threw chains")
@pytest.mark.filterwarnings("ignore:log-weights of model spread by .* in the first reverse step")
@pytest.mark.parametrize("resample", [None, 0.5])
@pytest.mark.parametrize("reverse_step", [False, True])
def test_weights_and_reverse_steps_cost_nothing(resample, reverse_step):
    energy = model(0)
    ladder = Ladder(levels=(19, 10, 0), steps=2)
    anneal(energy, HMC(), ladder=ladder, chains=6, seed=0, resample=resample, reverse_step=reverse_step)
    assert calls(energy) == [3 * (1 + 6) + 3]


def test_a_product_calls_each_network_once_per_evaluation():
    a, b, c = model(0), model(1), model(2)
    anneal(a * b * c * a, HMC(), ladder=Ladder(levels=(19, 0), steps=4), chains=6, seed=0)
    assert calls(a, b, c) == [2 * 13 + 3] * 3
    anneal((a + b) * a, HMC(), ladder=Ladder(levels=(19, 0), steps=4), chains=6, seed=0)
    assert calls(a, b, c) == [2 * 29, 2 * 29, 29]


def test_conditions_of_one_network_are_one_call():
    base = model(0, classes=4)
    target = conjunction([base.given(i) for i in range(3)], base)
    x = np.random.default_rng(0).standard_normal((5, 2))
    value, gradient = target.value_and_grad(x, level=3)
    assert [size for size, _ in base.network.calls] == [4 * 5]
    parts = [base.given(i).value_and_grad(x, level=3) for i in range(3)]
    alone = base.value_and_grad(x, level=3)
    np.testing.assert_allclose(value, sum(p[0] for p in parts) - 2 * alone[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(gradient, sum(p[1] for p in parts) - 2 * alone[1], rtol=1e-4, atol=1e-4)
    before = len(base.network.calls)
    guidance(base.given(1), base, scale=1.5).value_and_grad(x, level=3)
    assert len(base.network.calls) == before + 1


def test_a_factor_in_jax_leaves_conditions_of_one_network_together():
    base = model(0, classes=4)
    home = to_torch(GaussianMixture([[0.0, 0.0]], [1.0], schedule=SCHEDULE, backend="jax"))
    target = conjunction([base.given(i) for i in range(3)], base) * home
    trace = anneal(target, HMC(), ladder=Ladder(levels=(19, 0), steps=1), chains=5, seed=0)
    sizes = [size for size, _ in base.network.calls]
    assert [size for size in sizes if size == 4 * 5] == [20] * trace.gradient_calls
    before, crossed = len(sizes), to_jax(target)
    x = np.random.default_rng(0).standard_normal((5, 2))
    with jax.enable_x64(True):
        energy = crossed.energy(x, level=3)
        gradient = jax.grad(lambda x: crossed.energy(x, level=3).sum())(x)
    assert len(base.network.calls) == before + 2
    expected = target.value_and_grad(x, level=3)
    np.testing.assert_allclose(energy, expected[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-4)


def test_a_quotient_costs_its_check_and_no_more():
    """The check probes tails at three levels, each in thirteen batches, and the support once. The trace counts neither.

    Tails that do not grow would take more batches.
    """
    a, b = model(0), model(1)
    ladder = Ladder(levels=(19, 10, 0), steps=2)
    trace = anneal(a / b**0.2, HMC(), ladder=ladder, chains=6, seed=0)
    walk = 3 * (1 + 6) + 3
    assert trace.gradient_calls == walk
    assert calls(b) == [walk + 3 * 13]
    assert calls(a) == [walk + 3 * 13 + 1]


def test_the_crossing_into_jax_is_one_call_for_all_chains():
    energy = model(0)
    crossed = to_jax(energy * GaussianMixture([[0.0, 0.0]], [1.0], schedule=SCHEDULE, backend="torch"))
    crossed.value_and_grad(np.zeros((7, 2), dtype=np.float32), level=3)
    assert energy.network.calls[0][0] == 7
    assert crossed.calls == 1
