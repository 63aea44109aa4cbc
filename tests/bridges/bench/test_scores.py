"""Scores have their known values on independent draws, and a wrong twin is told from them."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from bridges.bench.protocol import Walk
from bridges.bench.scores import mmd, score, stays_low
from ppl_diffusion import targets

CHAINS, DRAWS, LEVEL = 16, 500, 60
GRID = np.geomspace(20, 2 * DRAWS, 40)
target = cache(lambda: targets.load("mixture_2"))


def walk_of(positions: np.ndarray) -> Walk:
    """A walk with these draws, two gradients each."""
    shape = positions.shape[:2]
    lp = -np.asarray(target().potential.energy(positions.reshape(-1, 2), level=LEVEL)).reshape(shape)
    nothing = np.full(shape, np.nan)
    gradients = 2.0 * np.arange(1, shape[1] + 1)
    return Walk(positions.astype(np.float32), lp, gradients, 0.0, nothing, nothing, np.nan, gradients[-1], 2.0)


@cache
def scores(which: str):
    x = target().draws(CHAINS * DRAWS, level=LEVEL, seed=5).reshape(CHAINS, DRAWS, 2)
    spread = np.sqrt(np.asarray(target().reference(LEVEL).x.variance))
    twins = {
        "independent": x,
        "shifted": x + 0.3 * spread,
        "slow": np.repeat(x[:, ::10], 10, axis=1),
        "stuck": np.repeat(x[:, :1], DRAWS, axis=1),
    }
    return score(walk_of(twins[which]), target(), LEVEL, grid=GRID, seed=1)


def test_independent_draws_have_the_bias_and_the_sizes_that_they_should():
    found = scores("independent").values
    # The mean of two coordinates of a chi-square of one degree, over n; the median over chains is a little less.
    assert 0.2 / DRAWS < found["bias_x"] < 2.5 / DRAWS
    assert 0.2 / DRAWS < found["bias_x2"] < 2.5 / DRAWS
    assert found["bias_x"] <= found["bias_x_worst"] < 6 / DRAWS
    assert 20 < found["gradients_to_x2"] < 2 * 300  # 1 / n is under .01 from n = 100 on
    assert 0.75 * CHAINS * DRAWS < found["ess_bulk"] < 1.25 * CHAINS * DRAWS
    assert found["ess_bulk_per_gradient"] == pytest.approx(found["ess_bulk"] / (CHAINS * 2 * DRAWS) * 1000)
    assert found["ess_bulk_per_second"] == pytest.approx(found["ess_bulk"] / 2)
    assert found["r_hat"] < 1.02
    assert found["nested_r_hat"] < 1.02
    assert found["mode_error"] < 0.05
    assert abs(found["mmd"]) < 0.005
    assert found["stuck"] == 0


def test_a_shifted_sample_mixes_well_and_is_never_right():
    found = scores("shifted").values
    assert found["ess_bulk"] > 0.75 * CHAINS * DRAWS
    assert found["bias_x"] > 0.04
    assert found["gradients_to_x"] == np.inf
    assert found["mmd"] > 0.01


def test_a_slow_sample_has_a_tenth_of_the_effective_size():
    slow, fast = scores("slow").values["ess_bulk"], scores("independent").values["ess_bulk"]
    assert 0.07 < slow / fast < 0.14


def test_stuck_chains_are_told():
    found = scores("stuck").values
    assert (found["stuck"], found["moved"]) == (1, 0)
    assert found["gradients_to_x"] == np.inf
    assert found["r_hat"] > 2 or np.isnan(found["r_hat"])


def test_errors_are_those_of_chains():
    """The bootstrap error of the median bias is about that of the median of as many draws of a chi-square."""
    found = scores("independent")
    error = found.replicates["bias_x"].std()
    assert 0.05 / DRAWS < error < 1 / DRAWS
    assert found.curve_errors.shape == found.curves.shape == (4, len(GRID))
    assert np.isnan(found.replicates["mmd"]).all()


@pytest.mark.parametrize(
    ("curve", "at"),
    [([1, 0.001, 0.001], 2.0), ([0.001, 1, 0.001], 3.0), ([0.001, 0.001, 1], np.inf), ([np.nan] * 3, np.inf)],
)
def test_a_bias_must_stay_low(curve, at):
    assert stays_low(np.array(curve), np.array([1.0, 2.0, 3.0])) == at


def test_mmd_of_one_law_is_about_zero_and_of_two_is_not():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 400, 3))
    assert abs(mmd(x, y)) < 0.005
    assert mmd(x, y + 0.5) > 0.02


def test_a_level_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="has no reference at level 33"):
        score(walk_of(np.zeros((4, 9, 2))), target(), 33, grid=GRID, seed=0)
