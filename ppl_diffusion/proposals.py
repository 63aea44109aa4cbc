"""Starting positions, the reverse-diffusion proposal, and the arrival of chains at a rung."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .arrays import as_numpy
from .compose import Observation
from .density import common_reference
from .kernel import State, Walker
from .potential import Potential


def start(
    potential: Potential, level: int, *, chains: int, init: Any, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return starting positions ``(chains, *event_shape)`` and the log-density of their distribution ``(chains,)``.

    Without ``init`` they are drawn by ``Potential.start``; with it, the log-densities are zero.

    Raises:
        ValueError: ``init`` has the wrong shape or is not finite, or the potential has no density to start from.
    """
    if init is None:
        return potential.start(level, chains=chains, rng=rng)
    shape = (chains, *potential.event_shape)
    positions = np.array(as_numpy(init), dtype=np.float64)
    if positions.shape != shape:
        raise ValueError(f"init has shape {positions.shape}: pass an array (chains, *event_shape), here {shape}")
    if not np.all(np.isfinite(positions)):
        raise ValueError("init holds values that are not finite: remove them before sampling")
    return positions, np.zeros(chains)


MAX_INIT_RMS = 10.0
"""Root mean square of ``init`` or of observed values, in standard deviations of the data, that is warned of."""


def check_init(potential: Potential, level: int, positions: np.ndarray) -> list[str]:
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


def check_observations(potential: Potential) -> list[str]:
    """Return warnings about observed values that are far from the data of the other factors, as bytes would be."""
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


def advise_on_start(potential: Potential, level: int, ess: float, chains: int) -> list[str]:
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


MAX_VARIANCE_RATIO = 4.0
"""Factor by which ``sigma^2`` may fall in a reverse step whose weights are used. Their variance is infinite from 2 on,
as from level 1 to 0 of ``cosine(100)``, where it costs 400 chains .03 nats of evidence; from level 3 it costs .4."""


MAX_LEAP = 1.0
"""Distance by which a reverse step may throw a chain out, in multiples of its position, see :func:`_leap`. In two
dimensions a leap of 1 costs a tenth to a fifth of the evidence, 1.5 a quarter, 3 more than half, 30 all of it; leaps of
at most .4 cost none."""


MAX_THROW = 5.0
"""Distance by which reverse steps may move half of the chains, in multiples of their norm or of that of noised data.
A sound step takes less than 3: it moves a chain to the scale of the next level, and adds noise."""


def advise_on_throw(potential: Potential, s: int, t: int, throw: float) -> list[str]:
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


def check_reverse_weights(potential: Potential, levels: Sequence[int]) -> list[str]:
    """Return warnings about reverse steps between ``levels`` whose weights have a variance too large to be used."""
    schedule, notes = potential.schedule, []
    falls = [(s, t, (schedule.sigma(s) / schedule.sigma(t)) ** 2) for s, t in pairwise(levels)]
    s, t, worst = max(falls, key=lambda fall: fall[2], default=(0, 0, 0.0))
    if worst >= MAX_VARIANCE_RATIO:
        notes.append(
            f"the variance of the noise falls by a factor of {worst:.2g} from level {s} to {t}, where the weights of a "
            "reverse step miss rare chains and log_normaliser is too low: take every level there, or reverse_step=False"
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


def _leap(potential: Potential, s: int, t: int) -> float:
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


def reverse_step(
    potential: Potential, state: State, level: int, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``x'`` from the reverse-diffusion proposal ``r(x'|x)``; return it and ``log q(x|x') - log r(x'|x)``.

    From level s to t, ``r`` is the Gaussian ``q(x_t | x_s, x_0)`` at Tweedie's estimate of ``x_0``, and ``q`` is the
    forward kernel. ``r`` ignores the variance of ``x_0`` given ``x_s``: for data wider than the noise, the true reverse
    kernel is wider by a factor of up to ``sigma_s / sigma_t``. Where the square of this factor is 2 or more, the
    variance of the weights is infinite (such as from level 1 to 0 of ``cosine(100)``).

    Args:
        potential: the potential that is sampled; coordinates that are not diffused are unchanged.
        state: chains at the noisier level s, with the gradient there.
        level: the level t.
        rng: source of the noise.

    Returns:
        Positions ``(chains, *event_shape)`` and log-ratios ``(chains,)``; the old position and 0 for a chain whose
        gradient is not finite.

    Raises:
        ValueError: the kernel does not provide gradients.
    """
    x, gradient = np.asarray(state.positions, dtype=np.float64), np.asarray(state.gradient, dtype=np.float64)
    if np.all(np.isnan(gradient)) and np.any(np.isfinite(state.energy)):
        raise ValueError("this kernel keeps no gradient, which reverse_step=True needs: try HMC, or reverse_step=False")
    schedule, diffused = potential.schedule, np.broadcast_to(potential.diffused, potential.event_shape)
    alpha_s, sigma_s = schedule.alpha(state.level), schedule.sigma(state.level)
    alpha_t, sigma_t = schedule.alpha(level), schedule.sigma(level)
    alpha, sigma = schedule.forward(level, state.level)
    spread, pull = sigma * sigma_t / sigma_s, alpha_t * sigma**2 / alpha_s
    noise = rng.standard_normal(x.shape)
    # The mean (alpha sigma_t^2 x + alpha_t sigma^2 x_0) / sigma_s^2, where x_0 = (x - sigma_s^2 gradient) / alpha_s.
    proposed = (alpha * sigma_t**2 + pull) / sigma_s**2 * x
    proposed -= pull * gradient
    proposed += spread * noise
    failed = ~np.isfinite(gradient.reshape(len(x), -1)).all(1)
    proposed[failed] = x[failed]
    if not diffused.all():
        proposed, noise = np.where(diffused, proposed, x), np.where(diffused, noise, 0)
    axes = tuple(range(1, x.ndim))
    gone = alpha * proposed
    gone -= x
    forward = np.sum(np.square(gone, out=gone), axis=axes, where=diffused) / sigma**2
    backward = np.sum(np.square(noise, out=noise), axis=axes)
    ratio = (backward - forward) / 2 + np.sum(diffused) * np.log(spread / sigma)
    return proposed, np.where(failed, 0.0, ratio)


def _throw(potential: Potential, before: np.ndarray, after: np.ndarray, level: int) -> float:
    """Return how far chains moved to ``after (chains, *event_shape)`` at ``level``, see :data:`MAX_THROW`."""
    diffused = np.broadcast_to(potential.diffused, potential.event_shape)
    axes, size = tuple(range(1, before.ndim)), float(np.sum(diffused))
    with np.errstate(over="ignore", invalid="ignore"):
        moved, norm = (np.sqrt(np.sum(np.square(x), axis=axes, where=diffused)) for x in (after - before, before))
    alpha, sigma = potential.schedule.alpha(level), potential.schedule.sigma(level)
    data = float(np.sqrt(size * (alpha**2 * np.mean(potential.reference[1]) + sigma**2)))
    return float(np.median(moved)) / max(float(np.median(norm)), data)


@dataclass(frozen=True)
class Arrival:
    """All chains on arrival at a level, before its kernel steps.

    Attributes:
        state: state of the walker.
        increments: log-weight increments from the previous level, shape ``(chains,)``; zero at the first rung.
        energy: energy at this level before ``Potential.refresh`` moved the chains, shape ``(chains,)``.
        throw: how far a reverse step moved the chains, see :data:`MAX_THROW`; 0 without one.
    """

    state: State
    increments: np.ndarray
    energy: np.ndarray
    throw: float


def arrive(
    walker: Walker,
    potential: Potential,
    positions: Any,
    level: int,
    previous: State | None,
    reverse: bool,
    rng: np.random.Generator,
    seed: int,
) -> Arrival:
    """Move chains at ``positions (chains, *event_shape)`` to ``level`` and compute their log-weight increments."""
    correction: Any = 0.0
    throw = 0.0
    if reverse and previous is not None:
        positions, correction = reverse_step(potential, previous, level, rng=rng)
        throw = _throw(potential, np.asarray(previous.positions), positions, level)
    change: Any = 0.0
    if type(potential).refresh is not Potential.refresh:  # the default would fetch positions from a device for nothing
        positions, change = potential.refresh(np.array(positions, dtype=np.float64), level, rng=rng)
    state = walker.arrive(positions, level, previous, seed=seed)
    energy = np.asarray(state.energy) - change  # weights use the energy before the refresh, which is invariant
    if previous is None:
        return Arrival(state, np.zeros(len(energy)), energy, throw)
    with np.errstate(invalid="ignore"):
        return Arrival(state, np.asarray(previous.energy) - energy + correction, energy, throw)
