"""Evaluations to the exact answer: what counts as reached, and that the targets are what they should be."""

from __future__ import annotations

import numpy as np

from benchmarks.speed.evaluations import SCHEDULE, TOLERANCE, modes, reached
from ppl_diffusion import GaussianMixture


def test_an_answer_is_reached_from_where_on_it_stays():
    near, far = TOLERANCE / 2, TOLERANCE * 2
    assert reached({50: near, 100: near, 200: near}) == 50
    assert reached({50: near, 100: far, 200: near}) == 200, "the first was luck"
    assert reached({50: near, 100: near, 200: far}) is None


def test_modes_have_the_shares_of_draws_that_are_weighed_by_the_wide_factor():
    case = modes(16)
    means = 1.5 * np.linalg.qr(np.random.default_rng(16).standard_normal((16, 3)))[0].T
    narrow = GaussianMixture(means, [0.2] * 3, schedule=SCHEDULE, backend="torch")
    x = narrow.sample(40_000, level=0, seed=0)
    whole, own = (np.asarray(p.energy(x, level=0)) for p in (case.build("torch"), narrow))
    weights = np.exp(own - whole - (own - whole).max())
    found = np.bincount(case.part(x), weights=weights, minlength=3) / weights.sum()
    np.testing.assert_allclose(found, case.shares, atol=0.03)
    assert np.ptp(case.shares) > 0.3, "the wide factor shifts them"
