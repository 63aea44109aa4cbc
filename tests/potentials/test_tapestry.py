"""Tapestries: exact products of windows, one call for all windows, and a score that is the gradient of an energy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checks import ACCEPTANCE_WINDOW, ALPHA, invariance
from torch import nn
from torch.nn import functional as F

from bridges.blackjax import HMC, MALA
from ppl_diffusion import (
    EnergyFunction,
    EnergyModel,
    Ladder,
    NoiseSchedule,
    anneal,
    check_quotient,
    guidance,
    load,
    mixture,
    tapestry,
)
from ppl_diffusion.models.conditions import Classes
from ppl_diffusion.models.networks import build_network
from ppl_diffusion.potentials.tapestry import Tapestry

SCHEDULE = NoiseSchedule.cosine(20)
WINDOWS = ((0, 0), (0, 2), (1, 1))
WEIGHTS = (1.0, 0.5, 2.0)
CANVAS = (4, 5)


def gaussian(mean, precision, backend):
    """A Gaussian of 3x3 pixels, the same at every level."""

    def energy(x, level):
        return 0.5 * (precision * (x - mean) ** 2).sum((-1, -2))

    return EnergyFunction(energy, schedule=SCHEDULE, event_shape=(3, 3), backend=backend)


def parts(backend):
    return [gaussian(m, p, backend) for m, p in ((0.5, 2.0), (-1.0, 1.0), (0.2, 3.0))]


def woven(backend):
    return tapestry(parts(backend), CANVAS, WINDOWS, WEIGHTS)


def closed_form():
    """Precision-weighted mean and precision of every pixel of the canvas; zero where no window covers it."""
    precision, pull = np.zeros(CANVAS), np.zeros(CANVAS)
    for (top, left), weight, (mean, p) in zip(WINDOWS, WEIGHTS, ((0.5, 2.0), (-1.0, 1.0), (0.2, 3.0)), strict=True):
        precision[top : top + 3, left : left + 3] += weight * p
        pull[top : top + 3, left : left + 3] += weight * p * mean
    return pull, precision


def covered(backend):
    """A tapestry of the windows and two more, which cover the lower corners."""
    four = [*parts(backend), gaussian(0.0, 1.0, backend), gaussian(0.0, 1.0, backend)]
    return tapestry(four, CANVAS, (*WINDOWS, (1, 0), (1, 2)), (*WEIGHTS, 1.0, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_chains_match_the_product_of_overlapping_gaussians(backend):
    pull, precision = closed_form()
    for left in (0, 2):
        precision[1:4, left : left + 3] += 1.0
    mean, chains = pull / precision, 3_000
    begun = np.random.default_rng(0).standard_normal((chains, *CANVAS))
    trace = anneal(covered(backend), HMC(), ladder=Ladder(levels=(19, 0), steps=15), chains=chains, seed=0, init=begun)
    x = trace.positions[:, -1]
    assert np.all(np.abs(x.mean(0) - mean) < 4 / np.sqrt(precision * chains))
    assert np.all(np.abs(((x - mean) ** 2).mean(0) * precision - 1) < 4 * np.sqrt(2 / chains))
    unshared = np.where(precision > 3, precision - 1, precision)  # negative control: too low in overlaps
    assert not np.all(np.abs(((x - mean) ** 2).mean(0) * unshared - 1) < 4 * np.sqrt(2 / chains))


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_energy_is_the_weighted_sum_and_the_gradient_its_derivative(backend):
    target = covered(backend)
    x = np.random.default_rng(0).standard_normal((6, *CANVAS))
    energy, gradient = (np.asarray(v, dtype=float) for v in target.value_and_grad(x, level=3))
    windows, weights = (*WINDOWS, (1, 0), (1, 2)), (*WEIGHTS, 1.0, 1.0)
    apart = [
        w * np.asarray(p.energy(np.ascontiguousarray(x[:, a : a + 3, b : b + 3]), level=3))
        for p, (a, b), w in zip(target.potentials, windows, weights, strict=True)
    ]
    np.testing.assert_allclose(energy, np.sum(apart, axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(target.energy(x, level=3)), energy, rtol=1e-5)
    towards = np.random.default_rng(1).standard_normal(x.shape)
    step = 1e-3
    up, down = (np.asarray(target.energy(x + s * towards, level=3), dtype=float) for s in (step, -step))
    slope = (gradient * towards).sum((1, 2))
    np.testing.assert_allclose((up - down) / (2 * step), slope, rtol=2e-2, atol=2e-2)
    scaled = gradient / np.sqrt((gradient**2).mean((1, 2), keepdims=True))  # the released code's score
    assert not np.allclose((up - down) / (2 * step), (scaled * towards).sum((1, 2)), rtol=2e-2, atol=2e-2)


def strip(backend, weights=(1.0, 2.0)):
    """Two 3x3 windows that overlap in two columns and have different means and precisions."""
    windows = [gaussian(0.5, 2.0, backend), gaussian(-1.0, 1.0, backend)]
    return tapestry(windows, (3, 4), [(0, 0), (0, 1)], weights)


def exact_strip(draws, seed):
    precision = np.array([2.0, 2.0 + 2.0, 2.0 + 2.0, 2.0])
    mean = np.array([2.0 * 0.5, 2.0 * 0.5 - 2.0, 2.0 * 0.5 - 2.0, -2.0]) / precision
    return mean + np.random.default_rng(seed).standard_normal((draws, 3, 4)) / np.sqrt(precision)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("kernel", [HMC(step=0.55), MALA(step=0.5)], ids=["HMC", "MALA"])
def test_kernels_leave_a_tapestry_invariant(kernel, backend):
    found = invariance(kernel, strip(backend), exact_strip, level=3)
    assert ACCEPTANCE_WINDOW[0] <= found.acceptance_rate <= ACCEPTANCE_WINDOW[1]
    assert found.moved > 0.99
    assert found.smallest > ALPHA, found


class OverlapOnce(Tapestry):
    """Negative control: the overlap of windows belongs to the last window only."""

    def _combine_windows(self, x, found):
        energy, gradient = super()._combine_windows(x, found)
        shared = 2.0 * (x[..., 1:3] - 0.5)
        return energy - 0.5 * 2.0 * ((x[..., 1:3] - 0.5) ** 2).sum((-1, -2)), gradient - F.pad(shared, (1, 1))


@pytest.mark.slow
def test_wrong_twins_of_a_tapestry_are_rejected():
    right = strip("torch")
    once = OverlapOnce(right.potentials, right.event_shape, right.windows, right.weights, "once")
    for wrong, step in ((once, 0.8), (strip("torch", (1.0, 1.0)), 0.72)):
        found = invariance(HMC(step=step), wrong, exact_strip, level=3)
        assert ACCEPTANCE_WINDOW[0] <= found.acceptance_rate <= ACCEPTANCE_WINDOW[1]
        assert found.smallest < ALPHA, found


class Counting(nn.Module):
    """A network that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build_network("unet", shape=[1, 8, 8], widths=[8, 8], blocks=1, classes=4)
        self.sizes: list[int] = []

    def forward(self, x, log_snr, condition=None):
        self.sizes.append(len(x))
        return self.inner(x, log_snr, condition)


def test_all_windows_and_conditions_are_one_call():
    network = Counting()
    base = EnergyModel(
        network, form="squared_norm", schedule=SCHEDULE, event_shape=(8, 8), conditions=Classes(4), name="small"
    )
    guided = base.given(1) ** 2 / base
    target = tapestry(
        [guided, base.given(2), mixture([base.given(0), base.given(3)])], (8, 20), [(0, i) for i in (0, 6, 12)]
    )
    x = torch.randn(2, 8, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    energy, gradient = target.value_and_grad(x, level=5)
    assert network.sizes == [2 * 5], "two for the guided window, one, and two for the mixture"
    leaf = x.clone().requires_grad_()
    total = target.energy(leaf, level=5)
    assert network.sizes == [2 * 5] * 2, "without a gradient too"
    torch.testing.assert_close(total.detach(), energy, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(total.sum(), leaf)[0], gradient, rtol=1e-3, atol=1e-3)


def test_tapestries_of_one_network_are_one_call():
    model = load("digits")
    rows = []
    handle = model.network.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    three, one, any_ = (
        tapestry([digit] * 2, (28, 48), [(0, 0), (0, 20)]) for digit in (model.given(3), model.given(1), model)
    )
    x = np.random.default_rng(0).standard_normal((2, 28, 48)).astype(np.float32)
    apart = {t: t.value_and_grad(x, level=50) for t in (three, one, any_)}
    rows.clear()
    value, gradient = guidance(three, any_, scale=2.0).value_and_grad(x, level=50)
    assert rows == [8]
    for found, i in ((value, 0), (gradient, 1)):
        torch.testing.assert_close(found, 2 * apart[three][i] - apart[any_][i], rtol=1e-4, atol=1e-2)
    rows.clear()
    torch.testing.assert_close(
        mixture([three, one]).energy(x, level=50),
        mixture([three, one]).value_and_grad(x, level=50)[0],
        rtol=1e-6,
        atol=1e-3,
    )
    assert rows == [8, 8]
    handle.remove()


def test_chains_start_narrower_where_windows_overlap():
    p = gaussian(0.0, 1.0, "torch")
    target = tapestry([p, p**3], (3, 4), [(0, 0), (0, 1)], [1.0, 2.0])
    x, log_density = target.start(19, chains=4_000, rng=np.random.default_rng(0))
    expected = np.broadcast_to([1.0, 1 / 7, 1 / 7, 1 / 6], (3, 4))
    np.testing.assert_allclose(x.var(0), expected, rtol=4 * np.sqrt(2 / 4_000))
    assert log_density.shape == (4_000,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((3, 4), [(0, 0)], None), "one window and one weight for each potential"),
        (((3, 4), [(0, 0), (0, 2)], None), r"leaves the canvas.*corners run from \(0, 0\) to \(0, 1\)"),
        (((2, 4), [(0, 0), (0, 1)], None), "smaller than its windows.*make it at least as large"),
        (((3, 8), [(0, 0), (0, 5)], None), r"lies in no window \(first at row 0, column 3\)"),
        (((3, 4), [(0, 0), (0, 1)], [1.0, 0.0]), "positive numbers"),
        (((2, 3, 4), [(0, 0), (0, 1)], None), "do not tile a canvas"),
    ],
)
def test_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        tapestry([gaussian(0.0, 1.0, "torch")] * 2, *arguments)
    with pytest.raises(ValueError, match="at least one potential"):
        tapestry([], (3, 4), [])
    with pytest.raises(ValueError, match="do not tile"):
        tapestry([load("ring")], (3, 4), [(0, 0)])


def test_a_quotient_in_a_window_is_looked_at():
    wide, narrow = gaussian(0.0, 1.0, "torch"), gaussian(0.0, 4.0, "torch")
    target = tapestry([wide, wide / narrow], (3, 4), [(0, 0), (0, 1)])
    assert any("not normalisable" in note for note in check_quotient(target, levels=(19, 0)))
    assert not check_quotient(tapestry([narrow, narrow / wide], (3, 4), [(0, 0), (0, 1)]), levels=(19, 0))


def test_whole_numbers_are_asked_for():
    p = gaussian(0.0, 1.0, "torch")
    with pytest.raises(TypeError, match="whole numbers for canvas and windows"):
        tapestry([p, p], (3.7, 4.2), [(0, 0), (0, 1)])
    assert tapestry([p, p], np.array([3, 4]), np.array([[0, 0], [0, 1]])).event_shape == (3, 4)


def test_a_reference_of_pixels_is_none_of_a_canvas():
    network = build_network("unet", shape=[1, 8, 8], widths=[8], blocks=1, classes=0)

    def window(reference):
        return EnergyModel(network, form="squared_norm", schedule=SCHEDULE, event_shape=(8, 8), reference=reference)

    for reference, expected in (((0.1, 0.5), (0.1, 0.5)), ((np.zeros((8, 8)), np.ones((8, 8))), (0.0, 1.0))):
        assert tapestry([window(reference)] * 2, (8, 12), [(0, 0), (0, 4)]).reference == expected
