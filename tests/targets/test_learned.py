"""References of the shipped models: quadrature in the plane, and what is stored of the runs of two kernels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ppl_diffusion import targets
from ppl_diffusion.targets import stored
from ppl_diffusion.targets.learned import LEARNED
from ppl_diffusion.targets.planar import Grid, by_quadrature
from ppl_diffusion.targets.reference import functions

PLANAR = [name for name in LEARNED if LEARNED[name].modes is not None]
PICTURES = [name for name in targets.names() if name in LEARNED and name not in PLANAR]
SUMMARIES = ("log p", "(log p)^2", "mean of x")
BOUND = 4.5


def furthest(reference: targets.Reference, other: targets.Reference) -> float:
    """The largest difference of expectations, in standard deviations of what is averaged."""
    pairs = [(reference.expectations[name], other.expectations[name]) for name in reference.expectations]
    return max(float(np.max(np.abs(a.value - b.value) / np.sqrt(b.variance))) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANAR)
def test_quadrature_at_another_resolution_agrees_and_that_of_another_level_does_not(name):
    target = targets.load(name)
    reference = target.reference(0)
    again = by_quadrature(target.potential, 0, locations=reference.modes.locations, cells=230)
    assert furthest(again, reference) < 1e-4
    assert np.max(np.abs(again.modes.weights - reference.modes.weights)) < 2e-3  # cells lie across their borders
    assert furthest(target.reference(20), reference) > 0.05


@pytest.mark.parametrize("name", PLANAR)
def test_stored_draws_are_those_of_their_density(name):
    target = targets.load(name)
    for level in target.levels:
        reference = target.reference(level)
        x = reference.draws.astype(np.float64)
        log_p = -np.asarray(target.potential.energy(x, level=level))
        for kind, values in functions(x, log_p).items():
            expected = reference.expectations[kind]
            z = (values.mean(0) - expected.value) / np.sqrt(expected.variance / len(x))
            assert np.max(np.abs(z)) < BOUND, (level, kind)
        even = np.full(len(reference.modes.weights), 1 / len(reference.modes.weights))
        shares = np.bincount(target.mode_of(x, level), minlength=len(even)) / len(x)
        assert np.max(np.abs(shares - reference.modes.weights) / np.sqrt(reference.modes.weights / len(x))) < BOUND
        if name == "learned_ring_wide" and level == 0:  # negative control
            assert np.max(np.abs(shares - even) / np.sqrt(even / len(x))) > BOUND


def test_a_grid_that_is_too_small_is_refused(monkeypatch):
    monkeypatch.setattr("ppl_diffusion.targets.planar.EXTENT", 1.0)
    with pytest.raises(ValueError, match="does not vanish within 1"):
        Grid.of(targets.load("ring_bar").potential, 60)


@pytest.mark.parametrize("name", PICTURES)
def test_two_kernels_agree_on_pictures(name):
    references, header = stored.read(name)
    found = json.loads(header["agreement"])
    assert sorted(references, reverse=True) == list(LEARNED[name].levels)
    for level, reference in references.items():
        shape = LEARNED[name].build().event_shape
        apart = found[str(level)]
        assert all(apart[key] < BOUND for key in SUMMARIES), apart
        assert apart["x"] < 1.2
        assert apart["x^2"] < 1.2
        assert all(apart[f"R-hat of {key}"] < 1.2 for key in SUMMARIES)
        assert reference.draws.shape[1:] == shape
        assert reference.x.value.shape == shape


@pytest.mark.parametrize("name", PICTURES)
def test_levels_of_pictures_are_told_apart(name):
    """Negative control: the references of neighbouring levels do not agree within their errors."""
    target = targets.load(name)
    for one, other in zip(target.levels, target.levels[1:], strict=False):
        a, b = target.reference(one).log_p, target.reference(other).log_p
        assert abs(a.value - b.value) > BOUND * np.hypot(a.error, b.error)


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_log_densities_of_stored_draws_are_those_of_the_reference(name):
    target = targets.load(name)
    reference = target.reference(target.levels[0])
    log_p = -np.asarray(target.potential.energy(reference.draws[:8].astype(np.float64), level=target.levels[0]))
    z = (log_p.mean() - reference.log_p.value) / np.sqrt(reference.log_p.variance / len(log_p))
    assert abs(z) < BOUND


def test_reference_files_are_small():
    sizes = [stored.path_of(name).stat().st_size for name in targets.names()]
    assert sum(sizes) < 4_000_000
