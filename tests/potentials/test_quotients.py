"""Quotients that are not normalisable are found in any number of dimensions, and sound ones are left alone."""

from __future__ import annotations

import warnings
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from bridges.arviz import diagnose
from bridges.blackjax import HMC
from ppl_diffusion import (
    EnergyFunction,
    GaussianMixture,
    Ladder,
    NoiseSchedule,
    SamplingWarning,
    anneal,
    check_quotient,
    guidance,
    load,
)
from ppl_diffusion.potentials.tails import grows

SCHEDULE = NoiseSchedule.cosine(100)
DIMENSIONS = (2, 5, 20, 60, 200)


def gaussian(mean, scale):
    return GaussianMixture([mean], [scale], schedule=SCHEDULE, backend="jax")


def narrow_in_one_direction(size):
    """N(0, diag(.25, 1, ..., 1)), which divides N(0, I) along one coordinate too strongly."""
    return gaussian(np.zeros(size), np.r_[0.5, np.ones(size - 1)])


def random_quotient(seed):
    """Return ``p / q**a`` of mixtures whose components share their scales, a level, and the least tail precision."""
    rng = np.random.default_rng(seed)
    size, level, a = int(rng.choice(DIMENSIONS)), int(rng.choice([0, 10, 30, 60])), rng.uniform(0.1, 1.2)
    scales = np.exp(rng.normal(0, 0.25, size)), np.exp(rng.normal(0.4, 0.3, size))
    components = rng.integers(1, 4, size=2)
    p, q = (
        GaussianMixture(
            rng.normal(size=size) + rng.normal(size=(count, size)),
            scale * np.ones((count, 1)),
            schedule=SCHEDULE,
            backend="jax",
        )
        for scale, count in zip(scales, components, strict=True)
    )
    alpha, sigma = SCHEDULE.alpha(level), SCHEDULE.sigma(level)
    precisions = [1 / (alpha**2 * scale**2 + sigma**2) for scale in scales]
    return p, q, a, level, float(np.min(precisions[0] - a * precisions[1]))


def random_mixture_quotient(seed):
    """Return a quotient of up to three Gaussians of any axes by a wide one, a level, and the least tail precision.

    The exponent is about the critical one, so that one component decides, in one direction.
    """
    rng = np.random.default_rng(seed)
    size, level = int(rng.choice(DIMENSIONS if seed > 20 else DIMENSIONS[:3])), int(rng.choice([0, 10, 30, 60, 90]))

    def covariance():
        axes = np.linalg.qr(rng.standard_normal((size, size)))[0]
        return axes * np.exp(rng.normal(0, 0.25, size)) @ axes.T

    def precision(matrix):
        return np.linalg.inv(SCHEDULE.alpha(level) ** 2 * matrix + SCHEDULE.sigma(level) ** 2 * np.eye(size))

    centre, count = rng.normal(size=size) * rng.choice([0, 1, 5]), int(rng.integers(1, 4))
    means = centre + rng.normal(size=(count, size)) * rng.choice([1, 8])
    above, below = np.array([covariance() for _ in range(count)]), covariance() * rng.uniform(1, 9)
    p = GaussianMixture(means, covariances=above, schedule=SCHEDULE, backend="torch")
    q = GaussianMixture([centre], covariances=[below], schedule=SCHEDULE, backend="torch")
    parts, divisor = [precision(matrix) for matrix in above], precision(below)
    critical = min(1 / np.linalg.eigvals(np.linalg.solve(part, divisor)).real.max() for part in parts)
    a = critical * np.exp(rng.normal(0, 0.25))
    return p, q, a, level, min(float(np.linalg.eigvalsh(part - a * divisor)[0]) for part in parts)


def grows_along_random_rays(potential, level):
    """The wrong twin: the energy grows with each doubling of the distance from the origin, in 32 random directions."""
    size = potential.event_shape[0]
    rays = np.random.default_rng(0).standard_normal((32, size))
    rays *= np.sqrt(size) / np.linalg.norm(rays, axis=1, keepdims=True)
    radius = 3 * np.hypot(SCHEDULE.alpha(level), SCHEDULE.sigma(level))
    x = np.concatenate([rays * radius * distance for distance in (1, 2, 4, 8)])
    energy = np.asarray(potential.energy(x, level=level)).reshape(4, -1)
    return bool(np.all(np.diff(energy, axis=0) > 0))


def mistakes(check, seeds, quotient=random_quotient):
    missed = alarms = improper = 0
    for seed in seeds:
        p, q, a, level, least = quotient(seed)
        sound = check(p / q**a, level)
        improper += least <= 0
        missed += sound and least <= 0
        alarms += not sound and least > 0
    return missed, alarms, improper


def test_random_quotients_are_told_apart():
    missed, alarms, improper = mistakes(grows, range(24))
    assert (missed, alarms) == (0, 0)
    assert 4 < improper < 20


def test_the_component_that_decides_is_found():
    missed, alarms, improper = mistakes(grows, range(20), random_mixture_quotient)
    assert missed + alarms <= 1
    assert 4 < improper < 16
    missed, alarms, _ = mistakes(grows_along_random_rays, range(20), random_mixture_quotient)
    assert missed + alarms > 2, "negative control"


@pytest.mark.long
@pytest.mark.parametrize("quotient", [random_quotient, random_mixture_quotient])
def test_of_500_random_quotients_at_most_one_in_a_hundred_is_mistaken(quotient):
    missed, alarms, improper = mistakes(grows, range(500), quotient)
    assert missed <= 0.01 * improper
    assert alarms <= 0.01 * (500 - improper)


def test_random_rays_would_miss_many():
    """Negative control."""
    missed, alarms, improper = mistakes(grows_along_random_rays, range(24))
    assert missed > 0.1 * improper or alarms > 0.1 * (24 - improper)


@pytest.mark.parametrize(("size", "a", "levels"), [(5, 0.3, "0, 1"), (8, 0.4, "0, 1, 24"), (20, 0.6, "0, 1, 24")])
def test_a_single_bad_direction_is_found(size, a, levels):
    (note,) = check_quotient(
        gaussian(np.zeros(size), 1.0) / narrow_in_one_direction(size) ** a, levels=(99, 74, 49, 24, 1, 0)
    )
    assert f"not normalisable at levels {levels}:" in note


def test_a_single_bad_direction_is_found_in_as_many_coordinates_as_a_picture_has():
    target = gaussian(np.zeros(784), 1.0) / narrow_in_one_direction(784) ** 0.4
    assert "at levels 0, 1:" in check_quotient(target, levels=(49, 1, 0))[0]
    assert not check_quotient(gaussian(np.zeros(784), 1.0) / narrow_in_one_direction(784) ** 0.2, levels=(49, 1, 0))


@pytest.mark.parametrize("beyond", [np.inf, np.nan])
def test_a_factor_without_a_density_far_out_does_not_run_away(beyond):
    """An energy that is not finite, such as the logarithm of a coordinate below zero, is no density."""

    def energy(x, level):
        inside = jnp.where(x > 0, x, 1.0)
        return jnp.where(x > 0, inside - 2 * jnp.log(inside), beyond).sum(-1)

    gamma = EnergyFunction(energy, schedule=SCHEDULE, event_shape=(1,), exponent=0.0, backend="jax")
    assert check_quotient(gamma * gaussian([1.0], 1.0) ** 2 / gaussian([0.0], 3.0), levels=(99, 50, 0)) == []
    falling = gamma * gaussian([0.0], 3.0) / gaussian([0.0], 1.0)
    assert "not normalisable" in check_quotient(falling, levels=(99, 50, 0))[0]


def test_sound_quotients_far_from_the_origin_are_left_alone():
    shifted = guidance(gaussian([5, 5], 0.8), gaussian([5, 5], 1.0), scale=1.5)
    assert check_quotient(shifted, levels=(99, 50, 25, 0)) == []
    modes = GaussianMixture([[-8.0], [8.0]], [1.0, 1.0], schedule=SCHEDULE, backend="jax")
    assert check_quotient(modes / gaussian([0.0], 16.0) ** 0.5, levels=(99, 74, 49, 24, 1, 0)) == []
    # Its mean is far outside of both factors' data.
    assert check_quotient(gaussian([0.0], 1.0) / gaussian([5.0], 1.1) ** 0.9, levels=(1, 0)) == []


def test_guidance_of_learned_models_is_sound():
    ring, wide = load("ring"), load("wide")
    assert check_quotient(guidance(ring, wide, scale=1.2), levels=(99, 50, 1, 0)) == []
    digits = load("digits")
    assert check_quotient(guidance(digits.given(3), digits, scale=1.5), levels=(99, 0)) == []


def test_chains_that_run_away_are_told_of_and_wide_ones_are_not():
    ladder, size = Ladder.spaced(SCHEDULE, rungs=20, steps=2), 8
    options = {"ladder": ladder, "chains": 64, "draws": 25, "seed": 0}
    improper = gaussian(np.zeros(size), 1.0) / narrow_in_one_direction(size) ** 0.6
    with pytest.warns(SamplingWarning, match="not normalisable"):
        trace = anneal(improper, HMC(), **options)
    words = "\n".join(diagnose(trace).warnings)
    assert "run away along one direction" in words
    assert "take more steps" not in words
    assert "do not agree" not in words
    plane = replace(trace, positions=trace.positions[..., :2])
    assert "run away along one direction" in "\n".join(diagnose(plane).warnings), (
        "two spreads have no median but their mean"
    )
    wide = gaussian(np.zeros(size), np.r_[40.0, np.ones(size - 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        trace = anneal(wide / gaussian(np.zeros(size), 80.0) ** 0.5, HMC(), **options)
    assert "run away" not in "\n".join(diagnose(trace).warnings)
