"""Warnings about a walk: what its samples alone do not show, and what to do about it.

:class:`Advice` listens to a walk and notes them down; the functions decide on single questions.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import xarray as xr

from ..ladder import Ladder
from ..potentials.algebra import Potential
from ..potentials.common_ground import warn_outside
from ..potentials.leaf import Leaf
from ..potentials.observation import Observation
from ..potentials.quotients import check_quotient, not_normalisable, tell_not_normalisable
from ..potentials.score import ScoreLeaf
from ..potentials.target import Target, common_reference
from .arrival import Arrival
from .reversal import advise_on_growth, advise_on_throw, advise_on_width, check_reverse_weights
from .transitions import Reverse
from .walk import Listener, Walk


class SamplingWarning(UserWarning):
    """A problem of a run that cannot be seen from its samples."""


def warn_caller(note: str) -> None:
    """Issue a :class:`SamplingWarning` that points at the line outside this library from which it was called."""
    warn_outside(note, SamplingWarning)


class Advice(Listener):
    """Adds warnings to the notes of a walk.

    Args:
        ladder: the ladder of the walk.
        started_at_init: whether the caller gave the starting positions.
        weighted: whether weights are used, so that chains are resampled.
        reverse_step: whether chains take reverse steps, "wide" for wide ones.
        still: whether the kernel leaves chains where they are.
    """

    def __init__(
        self, ladder: Ladder, *, started_at_init: bool, weighted: bool, reverse_step: Reverse, still: bool
    ) -> None:
        self.ladder, self.started_at_init, self.weighted = ladder, started_at_init, weighted
        self.reverse_step, self.still = reverse_step, still

    def started(self, walk: Walk) -> None:
        target, levels = walk.target, self.ladder.levels
        walk.facts["start_noise"] = share_of_noise(target, levels[0])
        if not self.still:
            improper = not_normalisable(target, levels=_levels_to_check(self.ladder))
            walk.facts["not_normalisable"] = sorted({level for failed in improper.values() for level in failed})
            walk.note([tell_not_normalisable(name, failed) for name, failed in improper.items()], about="nothing")
        walk.note(check_observations(target) + check_predictions(target))
        walk.note(target.doubts() if isinstance(target, Leaf) else ())
        if self.started_at_init:
            walk.note(check_init(target, levels[0], walk.start))
        if self.reverse_step and self.weighted:
            walk.note(check_reverse_weights(target, levels, wide=self.reverse_step == "wide"), about="weights")

    def arrived(self, walk: Walk, arrival: Arrival) -> None:
        target, level, first = walk.target, arrival.state.level, len(walk.rungs) == 1
        throws = [0.0, *(float(record["throw"]) for record in walk.rungs[1:])]
        steps = zip(self.ladder.levels, self.ladder.levels[1:], throws[1:], strict=False)
        told = [advise_on_throw(target, s, t, throw) for s, t, throw in steps] if self.weighted else []
        if told and not any(told[:-1]):
            walk.note(told[-1])
        if self.reverse_step and self.weighted and len(walk.rungs) == 2:
            noisier, cleaner = self.ladder.levels[:2]
            walk.note(advise_on_growth(target, noisier, cleaner, walk.rungs[1]), about="weights")
        if self.reverse_step == "wide" and self.weighted and not first:
            rungs = list(zip(self.ladder.levels, self.ladder.levels[1:], walk.rungs[1:], strict=False))
            narrow = advise_on_width(target, *rungs[-1])
            if narrow and not any(advise_on_width(target, *rung) for rung in rungs[:-1]):
                walk.note(narrow, about="weights")
        ess, chains = walk.rungs[-1]["ess"], len(walk.start)
        if ess == 0 and (first or walk.rungs[-2]["ess"] > 0):
            walk.note([advise_on_failure(target, level, first=first)])
        elif first and not self.started_at_init and ess < 0.1 * chains:
            walk.note(advise_on_start(target, level, ess, chains), about="nothing")

    def on_draws(self, walk: Walk, draws: np.ndarray, sample_stats: xr.Dataset) -> None:
        """Add warnings about all recorded draws ``(chains, draws, *event_shape)`` and their statistics."""
        walk.note(check_last_draws(walk.target, draws, sample_stats, still=self.still))
        shares = np.array([record["ess"] for record in walk.rungs], dtype=np.float64) / len(draws)
        if not self.still:
            walk.note(walk.target.doubts_of_weights(shares, used=self.weighted), about="weights")
        with jax.enable_x64(True):
            walk.note(check_quotient(walk.target, levels=(), positions=draws[:256, -1], level=self.ladder.levels[-1]))


def share_of_noise(target: Target, level: int) -> float:
    """Return the share of noise in the variance of noised data of a target at ``level``, of its widest coordinate."""
    alpha, sigma = target.schedule.alpha(level), target.schedule.sigma(level)
    return float(sigma**2 / (sigma**2 + alpha**2 * np.max(target.reference[1])))


def _levels_to_check(ladder: Ladder) -> tuple[int, ...]:
    """Return a few levels of a ladder at which to check tails, including the two cleanest."""
    coarse = ladder.levels[:: max(1, len(ladder) // 4)]
    return tuple(dict.fromkeys((*coarse, *ladder.levels[-2:])))


MAX_INIT_RMS = 10.0
"""Root mean square of ``init`` or of observed values, in standard deviations of the data, that is warned of."""


def check_init(potential: Target, level: int, positions: np.ndarray) -> list[str]:
    """Return warnings about ``init``, shape ``(chains, *event_shape)``, if it is far from the noised data.

    Nothing is checked if the reference of the potential is (0, 1), the default for data of unknown moments.
    """
    mean, variance = potential.reference
    if np.ndim(mean) == np.ndim(variance) == 0 and (mean, variance) == (0.0, 1.0):
        return []
    alpha, sigma = potential.schedule.alpha(level), potential.schedule.sigma(level)
    spread = np.sqrt(alpha**2 * np.asarray(variance) + sigma**2)
    size = float(np.sqrt(np.mean(((positions - alpha * np.asarray(mean)) / spread) ** 2)))
    if size <= MAX_INIT_RMS:
        return []
    return [
        f"init lies {size:.3g} standard deviations away from noised data of {potential} at level {level} (values from "
        f"{positions.min():.3g} to {positions.max():.3g}): pictures are in [-1, 1], scale bytes by x / 127.5 - 1"
    ]


def check_observations(potential: Target) -> list[str]:
    """Return warnings about observed values that are far from the data of the other factors, as bytes would be."""
    if not isinstance(potential, Potential):
        return []
    leaves, notes = potential.leaves(), []
    mean, variance = common_reference([leaf for leaf in leaves if not isinstance(leaf, Observation)] or leaves)
    if np.ndim(mean) == np.ndim(variance) == 0 and (mean, variance) == (0.0, 1.0):
        return []
    for leaf in leaves:
        if isinstance(leaf, Observation):
            values = ((leaf.values - mean) / np.sqrt(np.asarray(variance) + leaf.scale**2))[leaf.seen]
            size = float(np.sqrt(np.mean(values**2)))
            if size > MAX_INIT_RMS:
                notes.append(
                    f"the values of {leaf} lie {size:.3g} standard deviations away from the data of {potential}: "
                    "scale them as the data are; bytes of pictures by x / 127.5 - 1"
                )
    return notes


def check_predictions(potential: Any) -> list[str]:
    """Return warnings about denoising networks that seem to predict something else than they are said to."""
    notes = potential.complaints() if isinstance(potential, ScoreLeaf) else []
    for part in potential.parts():
        notes += check_predictions(part)
    return notes


def advise_on_failure(potential: Target, level: int, *, first: bool) -> str:
    """Return a warning that no chain has a finite energy on arrival at ``level``."""
    where = "for any chain at level" if first else "on all levels for any chain down to"
    return (
        f"the energy of {potential} is not finite {where} {level}: look for NaN in what it was given, such as missing "
        "data, and for data outside of its support"
    )


def advise_on_start(potential: Target, level: int, ess: float, chains: int) -> list[str]:
    """Return advice for a low effective sample size of the weights at the first rung.

    The estimate of the evidence contains importance sampling from the start density, so that kernel steps afterwards
    improve the samples but not the evidence.
    """
    noisiest = len(potential.schedule) - 1
    advice = "more steps there, steps=(20, 10, ...), or init= mend the samples, only more chains the evidence"
    if level < noisiest:
        advice = f"start the ladder at the noisiest level, {noisiest}, or pass init="
    return [
        f"the start density fits level {level} badly (effective sample size {ess:.0f} of {chains} chains): {advice}"
    ]


FAR = 1e6
"""Distance from the origin, in standard deviations of the data, at which most chains of no use end."""


def check_last_draws(potential: Target, drawn: np.ndarray, sample_stats: xr.Dataset, *, still: bool) -> list[str]:
    """Return warnings about chains whose draws ``(chains, draws, *event_shape)`` or last energies are not finite."""
    finite, notes = np.isfinite(drawn).all(tuple(range(1, drawn.ndim))), []
    lost, outside = int(np.sum(~finite)), int(np.sum(finite & ~np.isfinite(sample_stats["lp"].to_numpy()[:, -1])))
    if lost:
        notes.append(
            f"draws of {lost} of {len(drawn)} chains are not finite: leave them out, and look at `nonfinite` by rung"
        )
    ends = np.abs(drawn[finite, -1][:, np.broadcast_to(potential.diffused, potential.event_shape)])
    if ends.size and np.median(ends.max(1)) > FAR * (1 + float(np.mean(potential.reference[1])) ** 0.5):
        notes.append(
            f"most chains of {potential} end {np.median(ends.max(1)):.0e} away from the origin, thrown out on the way: "
            "plot the trace's energy by rung; a likelihood that does not widen with the noise needs reverse_step=False"
        )
    if 0 < outside < len(drawn):  # if all chains fail, the warning about weights says so
        notes.append(
            f"{outside} of {len(drawn)} chains end where the density of {potential} is zero, or its energy not a "
            f"number: leave them out{'' if still else ', or take resample=0.5, which replaces them'}"
        )
    return notes
