"""The face of benchmark targets: loading, cards, draws, cold starts, and targets of one's own."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from ppl_diffusion import GaussianMixture, NoiseSchedule, targets
from ppl_diffusion.targets import BenchmarkTarget, Expectation, Modes, Reference, stored

ROOT = Path(__file__).parents[2]
ONE = GaussianMixture([[0.5]], [1.0], schedule=NoiseSchedule.cosine(10), backend="torch")


def reference(shape=(1,), **options):
    number = Expectation(0.0, 0.0, 1.0)
    moment = Expectation(np.zeros(shape), np.zeros(shape), np.ones(shape))
    return Reference(moment, moment, number, number, **options)


def own(**options):
    settings = {"name": "own", "potential": ONE, "levels": (5, 0), "references": {5: reference(), 0: reference()}}
    return BenchmarkTarget(**(settings | options))


def test_an_unknown_target_names_the_closest():
    with pytest.raises(ValueError, match="closest is 'mixture_64'"):
        targets.load("mixture64")


def test_a_level_without_a_reference_says_which_have_one():
    with pytest.raises(
        ValueError, match="mixture_2 has no reference at level 7: the levels that have one are 60, 20, 0"
    ):
        targets.load("mixture_2").reference(7)
    with pytest.raises(ValueError, match="benchmarked at levels"):
        targets.load("mixture_2").cold(3, level=7, seed=0)


@pytest.mark.parametrize("name", targets.names())
def test_every_target_is_complete(name):
    target = targets.load(name)
    shape = target.potential.event_shape
    assert target.name == name
    assert target.description
    assert len(target.levels) >= 3
    for level in target.levels:
        known = target.reference(level)
        assert known.made
        assert known.condition_number >= 1
        assert known.x.value.shape == shape
        assert target.draws(3, level=level, seed=0).shape == (3, *shape)
        assert target.cold(3, level=level, seed=0).shape == (3, *shape)
        modes = target.mode_of(target.draws(3, level=level, seed=0), level)
        assert (modes is None) == (known.modes is None)
        assert modes is None or modes.shape == (3,)
        assert name in str(target.card(level))


def test_a_cold_start_is_at_the_level_above_or_where_chains_start():
    target = targets.load("mixture_16")
    assert np.array_equal(target.cold(50, level=0, seed=3), target.draws(50, level=20, seed=3))
    first = target.cold(4000, level=60, seed=0)
    assert abs(first.std() - 1.0) < 0.02
    assert not np.array_equal(first, target.cold(4000, level=60, seed=1))


def test_draws_are_those_of_their_seed():
    target = targets.load("inpainting")
    one, same, other = (target.draws(5, level=20, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_target_of_ones_own_draws_from_what_is_stored():
    known = reference(draws=np.arange(4.0)[:, None])
    target = own(references={5: known, 0: known})
    assert sorted(target.draws(4, level=0, seed=1)[:, 0]) == [0, 1, 2, 3]
    assert np.array_equal(np.bincount(target.draws(8, level=0, seed=1)[:, 0].astype(int)), [2, 2, 2, 2])
    assert own(sample=ONE.sample).draws(8, level=5, seed=1).shape == (8, 1)
    with pytest.raises(ValueError, match="has no draws of level 0: give BenchmarkTarget sample="):
        own().draws(4, level=0, seed=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"levels": (0, 5)}, "from noisy to clean"),
        ({"levels": ()}, "from noisy to clean"),
        ({"levels": (50, 0)}, "level 50 is outside"),
        ({"levels": (5, 3)}, "own has no reference at level 3"),
        ({"references": {5: reference((2,)), 0: reference()}}, r"level 5 has \(2,\)"),
    ],
)
def test_a_target_that_does_not_fit_together_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        own(**change)


def test_expectations_and_modes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        Expectation(np.zeros(2), 0.0, np.ones(2))
    with pytest.raises(ValueError, match="variance positive"):
        Expectation(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="sum to 1"):
        Modes(np.zeros((2, 1)), np.array([0.5, 0.6]), np.zeros(2))
    with pytest.raises(ValueError, match="numbers"):
        Reference(*[Expectation(np.zeros(2), np.zeros(2), np.ones(2))] * 4)


@pytest.mark.parametrize("size", [3, 600])
def test_references_come_back_from_their_file(size, tmp_path):
    rng = np.random.default_rng(0)
    moment = Expectation(*(rng.random(size) + 0.5 for _ in range(3)))
    modes = Modes(rng.random((2, size)), np.array([0.25, 0.75]), np.array([0.01, 0.02]))
    known = Reference(
        moment, moment, Expectation(-3.0, 0.1, 2.0), Expectation(9.0, 0.2, 5.0), modes, "here", 123.0, 4.0,
        rng.random((5, size)),
    )  # fmt: skip
    stored.write("mine", {7: known, 0: reference((size,))}, {"licence": "own"}, tmp_path)
    found, header = stored.read("mine", tmp_path)
    assert header["licence"] == "own"
    assert sorted(found) == [0, 7]
    assert np.allclose(found[7].x.value, moment.value, rtol=1e-6)
    assert np.allclose(found[7].x.variance, moment.variance, rtol=1e-3)
    assert found[7].log_p == known.log_p
    assert np.array_equal(found[7].modes.weights, modes.weights)
    assert np.allclose(found[7].draws, known.draws, rtol=1e-3)
    assert (found[7].made, found[7].effective_draws, found[0].effective_draws) == ("here", 123.0, np.inf)
    with pytest.raises(ValueError, match="there are no references of other"):
        stored.read("other", tmp_path)


def test_files_of_references_are_data_of_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["ppl_diffusion"]
    for name in targets.names():
        path = Path(str(stored.path_of(name))).relative_to(ROOT / "ppl_diffusion")
        assert any(path.match(pattern) for pattern in patterns)


def test_the_page_has_the_table_of_all_targets():
    """``print(targets.overview())`` tells what it should be."""
    text = (ROOT / "docs" / "targets.md").read_text(encoding="utf-8")
    assert f"<!-- targets -->\n{targets.overview()}\n<!-- end -->\n" in text
