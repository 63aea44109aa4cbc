"""Wide reverse steps: their variance is right for closed forms, and weights, bounds and swaps with them are exact."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

from bridges.blackjax import HMC
from ppl_diffusion import (
    GaussianMixture,
    Ladder,
    NoiseSchedule,
    SamplingWarning,
    anneal,
    exchange,
    load,
)
from ppl_diffusion.sampling import arrival, reversal
from ppl_diffusion.sampling.still import Still
from ppl_diffusion.sampling.transitions import largest_widening, log_reverse, told_share, widening

COSINE, EDM = NoiseSchedule.cosine(100), NoiseSchedule.edm(40)
WIDE = {"reverse_step": "wide", "resample": 0.5}


def modes(dimensions, schedule, scales=(0.2, 0.3, 0.25)):
    """Three modes of unlike widths and weights, with the normaliser 1."""
    means = np.zeros((3, dimensions))
    means[0, 0], means[1, 0], means[2, 1] = -2, 2, 2.5
    return GaussianMixture(means, scales, weights=[0.2, 0.5, 0.3], schedule=schedule, backend="jax")


def gradient(target, x, level):
    return np.asarray(target.value_and_grad(x, level=level)[1], dtype=np.float64)


@pytest.mark.parametrize("schedule", [COSINE, EDM], ids=["cosine", "edm"])
@pytest.mark.parametrize(("s", "t"), [(1, 0), (12, 9), (35, 30)])
@pytest.mark.parametrize("scale", [1e-4, 0.1, 3.0])
def test_the_variance_of_a_wide_step_is_that_of_the_exact_reverse_kernel_of_a_gaussian(schedule, s, t, scale):
    target = GaussianMixture([np.full(50, 0.3)], [scale], schedule=schedule, backend="torch")
    share = told_share(target, gradient(target, target.sample(2_000, level=s, seed=0), s), s)
    alpha, sigma = schedule.forward(t, s)
    variance = schedule.alpha(t) ** 2 * scale**2 + schedule.sigma(t) ** 2
    exact = 1 / (1 / variance + alpha**2 / sigma**2)
    narrow = schedule.reverse(np.zeros(1), np.zeros(1), s, t)[1] ** 2
    error = 4 * np.sqrt(2 / (50 * 2_000)) * (largest_widening(target, s, t) - 1)
    assert abs(widening(target, s, t, share) - exact / narrow) < error
    assert 1 <= widening(target, s, t, share) <= largest_widening(target, s, t)


def test_chains_that_fail_or_are_far_out_hardly_change_the_variance():
    target = GaussianMixture([np.zeros(50)], [0.3], schedule=COSINE, backend="torch")
    found = gradient(target, target.sample(1_000, level=5, seed=0), 5)
    share = told_share(target, found, 5)
    found[0], found[1] = np.nan, 1e9
    assert abs(told_share(target, found, 5) - share) < 0.003
    assert told_share(target, np.full((4, 50), np.nan), 5) == 1


def test_few_chains_at_pure_noise_do_not_make_a_step_wide():
    """There the ratio of signal to noise grows a thousandfold, and so would an error of the share."""
    target = modes(2, COSINE)
    assert largest_widening(target, 99, 98) > 500
    factors = [
        widening(target, 99, 98, told_share(target, gradient(target, target.sample(8, level=99, seed=i), 99), 99))
        for i in range(50)
    ]
    assert max(factors) < 1.1


def test_the_density_of_a_wide_step_is_the_one_it_is_drawn_from():
    target = modes(2, COSINE)
    state = Still().bind(target).arrive(target.sample(5, level=9, seed=0), 9, None, seed=0)
    moved, ratio = arrival.reverse_step(target, state, 4, rng=np.random.default_rng(0), widened=1.7)
    drawn = log_reverse(target, moved, state.positions, state.gradient, 9, 4, widened=1.7)
    alpha, sigma = COSINE.forward(4, 9)
    forward = -0.5 * np.sum((state.positions - alpha * moved) ** 2, 1) / sigma**2 - 2 * np.log(sigma)
    np.testing.assert_allclose(ratio, forward - drawn, rtol=1e-9)


def log_means(schedule, s, t, *, width=1.0, density=1.0, dimensions=2):
    """Logarithms of the mean weight of a step, of 50 populations of 400 exact draws, whose variance is ``width`` times
    that of a wide step, and that of the density of its weights ``density`` times this."""
    target = modes(dimensions, schedule)
    walker, found = Still().bind(target), []
    for seed in range(50):
        state = walker.arrive(target.sample(400, level=s, seed=seed), s, None, seed=0)
        widened = width * widening(target, s, t, told_share(target, state.gradient, s))
        moved, ratio = arrival.reverse_step(target, state, t, rng=np.random.default_rng(seed), widened=widened)
        drawn, stated = (
            log_reverse(target, moved, state.positions, state.gradient, s, t, widened=w * widened) for w in (1, density)
        )
        weights = state.energy - walker.arrive(moved, t, None, seed=0).energy + ratio + drawn - stated
        found.append(np.logaddexp.reduce(weights) - np.log(400))
    return np.array(found)


def fair(logs):
    """Whether mean weights have the mean 1, and vary no more than those of 400 chains of a good step do."""
    error = np.std(logs, ddof=1) / np.sqrt(len(logs))
    return np.std(logs) < 0.15 and abs(np.mean(logs) + np.var(logs) / 2) < 4 * error


@pytest.mark.parametrize(("schedule", "s", "t"), [(COSINE, 3, 0), (COSINE, 20, 15), (EDM, 3, 0)], ids=str)
def test_weights_of_wide_steps_average_to_one_down_to_the_last_level(schedule, s, t):
    assert fair(log_means(schedule, s, t))


@pytest.mark.parametrize("wrong", [{"density": 0.8}, {"density": 1.25}, {"width": 0.1}], ids=str)
def test_weights_of_another_density_and_of_too_narrow_steps_are_rejected(wrong):
    """Negative controls: weights by the density of a step of another variance, and a step that is narrow."""
    assert not fair(log_means(COSINE, 3, 0, **wrong))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "dimensions"), [(COSINE, 2), pytest.param(EDM, 64, marks=pytest.mark.long)], ids=str
)
def test_log_normalisers_by_wide_steps_are_right_where_narrow_ones_are_not(schedule, dimensions):
    """Of 6 walks from noise to the last level; the truth is 0."""
    target, options = modes(dimensions, schedule), {"ladder": Ladder.full(schedule, steps=1), "chains": 64}
    wide = [anneal(target, HMC(), seed=seed, **options, **WIDE) for seed in range(6)]
    found = np.array([(w.log_normaliser + w.log_normaliser_error**2 / 2) / w.log_normaliser_error for w in wide])
    assert 0.05 < np.mean(found**2) < 4.3, "a mean square of 6 scores is outside once in 5,000 runs"
    assert not any(w.attributes["warnings"] for w in wide)
    assert all(w.attributes["reverse_step"] == "wide" for w in wide)
    assert wide[0].stats.widening[0] == 1 < wide[0].stats.widening[-1] < largest_widening(target, 1, 0)


def narrowed(monkeypatch, factor=0.2):
    """Negative control: steps have a share of the variance that they should have."""
    own = arrival.widening
    monkeypatch.setattr(arrival, "widening", lambda *given: factor * own(*given))


COARSE = Ladder((30, 20, 12, 6, 3, 0), steps=1)


@pytest.mark.filterwarnings("ignore::ppl_diffusion.SamplingWarning")
@pytest.mark.parametrize("wrong", [False, True])
def test_only_steps_that_are_too_narrow_are_warned_of(wrong, monkeypatch):
    if wrong:
        narrowed(monkeypatch)
    target = modes(2, COSINE)
    options = {"chains": 200, "seed": 0, "ladder": COARSE, "init": target.sample(200, level=30, seed=0)}
    weighted = anneal(target, HMC(), **options, **WIDE).attributes
    assert ("of the variance that it has where data are wide" in " ".join(weighted["warnings"])) == wrong
    assert len(weighted["warnings"]) == wrong, "each is told once, at its first step"
    plain = anneal(target, HMC(), **options, reverse_step="wide").attributes["warnings"]
    assert not plain, "weights are not used"


def test_steps_that_are_narrow_because_the_data_are_is_not_warned_of():
    target = GaussianMixture([[0.3, -0.1]], [1e-4], schedule=COSINE, backend="jax")
    options = {"chains": 200, "seed": 0, "ladder": COARSE, "init": target.sample(200, level=30, seed=0)}
    trace = anneal(target, HMC(), **options, **WIDE)
    assert largest_widening(target, 3, 0) / float(trace.stats.widening[-1]) > reversal.MAX_VARIANCE_RATIO
    assert not trace.attributes["warnings"]


@pytest.mark.parametrize(("learned", "top", "told"), [(True, 99, True), (True, 97, False), (False, 99, False)])
def test_a_first_step_that_magnifies_errors_of_the_energy_is_warned_of(learned, top, told):
    """An exact energy may begin anywhere: there is nothing to magnify."""
    target = load("digits") if learned else modes(2, COSINE)
    options = {"ladder": Ladder((top, top - 1, top - 2), steps=1), "chains": 16, "seed": 0, "reverse_step": True}
    said = pytest.warns(SamplingWarning, match=r"start at level 97, ladder=Ladder\(tuple\(range\(97, -1, -1\)\)\)")
    with said if told else nullcontext():
        anneal(target, HMC(), resample=0.5, **options)
    anneal(target, HMC(), **options)  # no weights, nothing to warn of


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="reverse_step is True, False or 'wide', got 'broad'"):
        anneal(modes(2, COSINE), HMC(), chains=2, seed=0, reverse_step="broad")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="accelerated is True, False or 'wide', got 1"):
        exchange(modes(2, COSINE), HMC(), chains=2, draws=2, seed=0, accelerated=1)  # type: ignore[arg-type]
