"""Ladders whose rungs cost so many nats: against closed forms, on products, in both libraries."""

from __future__ import annotations

import numpy as np
import pytest

from bridges.arviz import diagnose
from bridges.blackjax import HMC
from ppl_diffusion import GaussianMixture, Ladder, NoiseSchedule, anneal
from ppl_diffusion.potentials.score import ScoreLeaf

SCHEDULE = NoiseSchedule.cosine(100)


def ball(size, scale=0.5, backend="torch", schedule=SCHEDULE):
    return GaussianMixture([[0.0] * size], [scale], schedule=schedule, backend=backend)


def exact_spread(s, t, *, size, scale=0.5, schedule=SCHEDULE):
    """Standard deviation of ``U_s(x) - U_t(x)`` for ``x`` of level s."""
    v, w = ((schedule.alpha(k) * scale) ** 2 + schedule.sigma(k) ** 2 for k in (s, t))
    return np.sqrt(size / 2) * abs(1 - v / w)


def test_a_ladder_is_of_a_schedule():
    for make in (Ladder.full, Ladder.spaced):
        with pytest.raises(TypeError, match=r"a ladder is of a noise schedule, got .*: give that of the potential"):
            make(ball(2))


@pytest.mark.parametrize("size", [2, 50])
@pytest.mark.parametrize("nats", [0.5, 1.0])
def test_rungs_are_as_far_apart_as_may_be(size, nats):
    ladder = Ladder.spread(ball(size), nats=nats, steps=3, chains=400)
    assert (ladder.levels[0], ladder.levels[-1]) == (99, 0)
    assert set(ladder.steps_per_rung) == {3}
    for s, t in zip(ladder.levels, ladder.levels[1:], strict=False):
        assert s - t == 1 or exact_spread(s, t, size=size) < 1.25 * nats
        assert t == 0 or exact_spread(s, t - 1, size=size) > 0.75 * nats


@pytest.mark.parametrize("schedule", [SCHEDULE, NoiseSchedule.edm(40, sigma_max=20.0)], ids=["cosine", "EDM"])
def test_both_libraries_give_the_same_ladder(schedule):
    one, other = (Ladder.spread(ball(6, backend=b, schedule=schedule), nats=0.7) for b in ("torch", "jax"))
    assert one == other
    assert one == Ladder.spread(ball(6, schedule=schedule), nats=0.7, seed=0)


@pytest.mark.slow
def test_walks_on_it_have_such_weights():
    parts = [GaussianMixture([[a] * 10, [-a] * 10], [0.4, 0.5], schedule=SCHEDULE, backend="jax") for a in (0.3, 0.5)]
    target = parts[0] * parts[1]
    ladder = Ladder.spread(target, nats=0.5, steps=2)
    spread = diagnose(anneal(target, HMC(), ladder=ladder, chains=200, seed=0, resample=0.5)).rungs.spread[1:]
    assert len(ladder) < 60
    assert float(np.median(spread)) < 0.7
    assert float(spread.max()) < 1.2


class Score(ScoreLeaf):
    backend, schedule, event_shape, name = "torch", SCHEDULE, (2,), "theirs"

    def _gradient(self, x, level):
        return x


@pytest.mark.parametrize(
    ("act", "kind", "words"),
    [
        (lambda: Ladder.spread(Score()), TypeError, r"of theirs only the gradient is known.*Ladder\.spaced"),
        (lambda: Ladder.spread(ball(2), nats=0), ValueError, "nats is a positive number"),
        (lambda: Ladder.spread(ball(2), chains=4), ValueError, "at least 8, got 1.0 and 4"),
    ],
)
def test_what_has_no_spread_is_refused(act, kind, words):
    with pytest.raises(kind, match=words):
        act()
