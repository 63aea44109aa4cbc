"""Warnings about reverse steps whose weights are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..potentials.target import Target
from .transitions import largest_widening

MAX_VARIANCE_RATIO = 4.0
"""Factor by which ``sigma^2`` may fall in a reverse step whose weights are used. Their variance is infinite from 2 on,
as from level 1 to 0 of ``cosine(100)``, where it costs 400 chains .03 nats of evidence; from level 3 it costs .4. Of a
wide step it is the factor by which the exact reverse kernel may be wider."""


LEAST_SPREAD = 0.1
"""Spread of log-weights, in nats, below which a reverse step is as wide as the exact reverse kernel, whatever might be:
one that is narrower by the ratio above spreads them by .5 in every dimension that is wide."""


MAX_LEAP = 1.0
"""Distance by which a reverse step may throw a chain out, in multiples of its position, see :func:`_leap`. In two
dimensions a leap of 1 costs a tenth to a fifth of the evidence, 1.5 a quarter, 3 more than half, 30 all of it; leaps of
at most .4 cost none."""


MAX_THROW = 5.0
"""Distance by which reverse steps may move half of the chains, in multiples of their norm or of that of noised data.
A sound step takes less than 3: it moves a chain to the scale of the next level, and adds noise."""


def check_reverse_weights(potential: Target, levels: Sequence[int], *, wide: bool = False) -> list[str]:
    """Return warnings about reverse steps between ``levels`` whose weights have a variance too large to be used.

    Of ``wide`` steps, :func:`advise_on_width` tells on arrival whether they are wide enough.
    """
    schedule, notes = potential.schedule, []
    falls = [(s, t, (schedule.sigma(s) / schedule.sigma(t)) ** 2) for s, t in pairwise(levels)]
    s, t, worst = max(falls, key=lambda fall: fall[2], default=(0, 0, 0.0))
    if worst >= MAX_VARIANCE_RATIO and not wide:
        notes.append(
            f"the variance of the noise falls by a factor of {worst:.2g} from level {s} to {t}, where the weights of a "
            "reverse step miss rare chains and log_normaliser is too low: take reverse_step='wide'"
        )
    leaps = [(s, t, _leap(potential, s, t)) for s, t in pairwise(levels)]
    s, t, worst = max(leaps, key=lambda leap: leap[2], default=(0, 0, 0.0))
    if worst > MAX_LEAP:
        sound = max((s for s in range(1, len(schedule)) if _leap(potential, s, s - 1) <= MAX_LEAP / 2), default=1)
        begin = f"start the ladder at level {sound}, and " if sound < levels[0] else ""
        notes.append(
            f"the exponents of {potential} do not sum to one, so that the reverse step from level {s} to {t} throws "
            f"chains far out, and log_normaliser is too low: {begin}take every level"
        )
    return notes


def advise_on_width(potential: Target, s: int, t: int, record: Mapping[str, Any]) -> list[str]:
    """Return a warning that a wide reverse step from level s to t may be too narrow still.

    ``record`` is of the arrival: ``widening``, and ``log_weight (chains,)``, whose spread may show that it is not.
    The width is a mean over coordinates and chains: a few that are wide are missed where most are narrow.
    """
    ratio = largest_widening(potential, s, t) / float(record["widening"])
    if ratio < MAX_VARIANCE_RATIO:
        return []
    increments = record["log_weight"][np.isfinite(record["log_weight"])]
    if len(increments) and float(np.std(increments)) < LEAST_SPREAD:
        return []
    return [
        f"the reverse step from level {s} to {t} of {potential} has on average {1 / ratio:.0%} of the variance that it "
        "has where data are wide, so that weights may miss rare chains and log_normaliser be too low: take every level "
        "there, or reverse_step=False"
    ]


MAX_GROWTH = 1.75
"""Factor by which the signal, and with it any error of a network's estimate, may grow in the first reverse step."""
MAX_FIRST_SPREAD = 2.0
"""Spread of log-weights, in nats, of a first reverse step that is too large. Of ``digits`` it is 10.7 from level 99 on,
where the signal grows by a factor of 32, and .4 from level 98 or 97 on; of exact energies a tenth of a nat."""


def advise_on_growth(potential: Target, s: int, t: int, record: Mapping[str, Any]) -> list[str]:
    """Return a warning that the first reverse step, from level s to t, magnifies what is wrong with the energy.

    ``record`` is of the arrival: ``log_weight (chains,)``. The growth of the signal is that of Tweedie's estimate.
    """

    def growth(noisier: int, cleaner: int) -> float:
        return 1 / float(potential.schedule.forward(cleaner, noisier)[0])

    increments = record["log_weight"][np.isfinite(record["log_weight"])]
    spread = float(np.std(increments)) if len(increments) else 0.0
    if spread <= MAX_FIRST_SPREAD or growth(s, t) <= MAX_GROWTH or _leap(potential, s, t) > MAX_LEAP:
        return []
    sound = next((level for level in range(s - 1, 0, -1) if growth(level, level - 1) <= MAX_GROWTH), 1)
    return [
        f"log-weights of {potential} spread by {spread:.2g} nats in the first reverse step, from level {s} to {t}, "
        f"where the signal grows by a factor of {growth(s, t):.2g} and so does any error of the energy: start at level "
        f"{sound}, ladder=Ladder(tuple(range({sound}, -1, -1)))"
    ]


def advise_on_throw(potential: Target, s: int, t: int, throw: float) -> list[str]:
    """Return a warning that a reverse step has thrown chains out, unless :func:`check_reverse_weights` has said so.

    A likelihood whose gradient does not shrink where all is noise is followed too far by Tweedie's estimate.
    """
    if not throw > MAX_THROW or _leap(potential, s, t) > MAX_LEAP:
        return []
    return [
        f"the reverse step from level {s} to {t} threw chains of {potential} {throw:.2g} times as far as they were, so "
        "that weights and log_normaliser mean nothing: a factor is too steep for pure noise, such as a likelihood that "
        "does not widen with the noise; take observation(...), likelihood='widened', or reverse_step=False"
    ]


def _leap(potential: Target, s: int, t: int) -> float:
    """Return how far a reverse step from level s to t throws ``x`` out, as a multiple of ``x``, where all is noise.

    There the gradient is ``e x / sigma_s^2``, ``e`` the sum of the exponents, and Tweedie's estimate is
    ``(1 - e) x / alpha_s``, so that the step adds ``(1 - e) x sigma^2 / (alpha sigma_s^2)``, ``alpha`` and ``sigma``
    those of the forward kernel from t to s.
    """
    alpha, sigma = potential.schedule.forward(t, s)
    try:
        excess = float(np.max(np.where(potential.diffused, np.abs(potential.exponent - 1), 0)))
    except ValueError:  # the components of a mixture have different sums, and no common leap
        return 0.0
    return excess * sigma**2 / (alpha * potential.schedule.sigma(s) ** 2)
