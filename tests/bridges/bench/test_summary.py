"""Figures of a sweep: their errors, and whether a ranking depends on the seed."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from benchmarks.leaderboard.leaderboard import _best
from bridges.bench.pictures import plot_map
from bridges.bench.summary import STATISTICS, leaderboard, stability

SEEDS, REPLICATES = 3, 20
SCORES = sorted(
    {
        "ess_bulk_per_gradient",
        "ess_tail_per_gradient",
        "gradients_to_x2",
        "bias_x2",
        "mode_error",
        "acceptance",
        "stuck",
        "adaptation_share",
        "reported_share",
        "gradients",
    }
)


def made(sizes: np.ndarray, spread: float) -> xr.Dataset:
    """A sweep on one target at one level whose ESS is ``sizes (contenders, seeds)``, with replicates that spread so."""
    rng = np.random.default_rng(0)
    shape = (1, len(sizes), 1, 2, SEEDS, len(SCORES))
    value = np.ones(shape)
    value[..., SCORES.index("ess_bulk_per_gradient")] = sizes[None, :, None, None]
    again = value[..., None] * np.exp(spread * rng.standard_normal((*shape, REPLICATES)))
    dims = ("target", "contender", "difficulty", "start", "seed", "score")
    names = ["first", "second", "third"][: len(sizes)]
    coords = {"target": ["one"], "contender": names, "start": ["warm", "cold"], "score": SCORES}
    return xr.Dataset({"value": (dims, value), "replicates": ((*dims, "replicate"), again)}, coords=coords)


def test_a_ranking_that_seeds_agree_on_is_stable_and_one_that_they_do_not_is_told():
    apart = np.array([[10.0, 11.0, 9.0], [20.0, 21.0, 22.0]])
    assert stability(made(apart, 0.05))[:3] == (1, 0, 0)
    close = np.array([[10.0, 10.5, 10.0], [10.2, 10.2, 10.3]])
    assert stability(made(close, 0.1))[:3] == (1, 1, 0)
    swapped = np.array([[10.0, 20.0, 10.0], [20.0, 10.0, 20.0]])
    found = stability(made(swapped, 0.05))
    assert found[:3] == (1, 1, 1)
    assert found.furthest > 5


def test_the_best_is_first_and_errors_hold_seeds_and_chains():
    table = leaderboard(made(np.array([[10.0, 10.0, 10.0], [20.0, 20.0, 20.0], [8.0, 16.0, 30.0]]), 0.1))
    assert list(table.index) == ["second", "third", "first"]
    assert set(STATISTICS) < set(table.columns)
    # Three seeds whose chains alone spread by a tenth, and three that differ by more.
    assert table.loc["second", "ESS"].error / 20 == pytest.approx(0.1 / np.sqrt(3), rel=0.4)
    assert table.loc["third", "ESS"].error > 3


def test_a_cell_that_one_contender_lacks_is_left_out_for_all():
    data = made(np.array([[10.0, 10.0, 10.0], [20.0, 20.0, 20.0]]), 0.1)
    other = data.assign_coords(target=["two"])
    other["value"] = other.value.where(other.contender != "second") * 5
    both = xr.concat([data, other], "target")
    table = leaderboard(both)
    assert table.loc["first", "ESS"].value == pytest.approx(10)
    assert table.loc["second", "cells"].value == 0.5


def test_the_map_leaves_out_a_contender_and_not_the_level_that_it_lacks():
    """Where a level is hard and a contender has no cell there, its easy levels alone would put it first, and the easy
    level alone would say of the others what is not so."""
    easy = made(np.array([[90.0, 90.0, 90.0], [50.0, 50.0, 50.0]]), 0.1)
    hard = made(np.array([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]), 0.1)
    hard["value"] = hard.value.where(hard.contender != "second")
    shown = plot_map(xr.concat([easy, hard], "difficulty")).axes[0]
    assert [text.get_text() for text in shown.texts] == ["13.4"]
    assert [label.get_text() for label in shown.get_yticklabels()] == ["first", "second"]


def test_the_best_of_a_target_has_all_its_levels():
    easy = made(np.array([[90.0, 90.0, 90.0], [900.0, 900.0, 900.0], [50.0, 50.0, 50.0]]), 0.1)
    hard = made(np.array([[2.0, 2.0, 2.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]), 0.1)
    hard["value"] = hard.value.where(hard.contender != "second")
    data = xr.concat([easy, hard], "difficulty").assign(level=(("target", "difficulty"), [[60, 0]]))
    found = _best(data)
    assert (found["best"], found["second"], found["kernels"], found["levels"]) == ("first", "third", 2, [60, 0])
    assert found["ESS"]["mean"] == pytest.approx(np.sqrt(180))
