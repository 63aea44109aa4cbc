"""Where chains come from: the start density, the reverse-diffusion proposal, and the arrival at a rung."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .kernel import State, Walker
from .potential import Potential


def start(
    potential: Potential, level: int, *, chains: int, init: Any, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Starting positions ``(chains, *event_shape)``, and the log-density that they were drawn from, ``(chains,)``.

    Without ``init`` they are drawn by the potential itself, see ``Potential.start``.

    Raises:
        ValueError: an ``init`` that does not fit, or a potential that has no density to start from.
    """
    if init is None:
        return potential.start(level, chains=chains, rng=rng)
    shape = (chains, *potential.event_shape)
    positions = np.array(init, dtype=np.float64)
    if positions.shape != shape:
        raise ValueError(f"init has shape {positions.shape}: pass an array (chains, *event_shape), here {shape}")
    if not np.all(np.isfinite(positions)):
        raise ValueError("init holds values that are not finite: remove them before sampling")
    return positions, np.zeros(chains)


FAR = 10.0
"""Root mean square of starting positions, in standard deviations of the noised data, above which something is amiss."""


def odd_start(potential: Potential, level: int, positions: np.ndarray) -> list[str]:
    """What is odd about positions that were given to start from, in words; nothing where the data are not known."""
    mean, variance = potential.reference
    if np.ndim(mean) == np.ndim(variance) == 0 and (mean, variance) == (0.0, 1.0):
        return []
    alpha, sigma = potential.schedule.alpha(level), potential.schedule.sigma(level)
    spread = np.sqrt(alpha**2 * np.asarray(variance) + sigma**2)
    size = float(np.sqrt(np.mean(((positions - alpha * np.asarray(mean)) / spread) ** 2)))
    if size <= FAR:
        return []
    return [
        f"init lies {size:.3g} standard deviations away from noised data of {potential} at level {level} (values from "
        f"{positions.min():.3g} to {positions.max():.3g}): pictures are in [-1, 1], scale bytes by x / 127.5 - 1"
    ]


def bad_start(potential: Potential, level: int, ess: float, chains: int) -> list[str]:
    """What is to be done where the weights of the start leave few of the chains, in words.

    The evidence is that of importance sampling from the start density, whatever is walked afterwards.
    """
    noisiest = len(potential.schedule) - 1
    advice = "more steps there, steps=(20, 10, ...), or init= mend the samples, only more chains the evidence"
    if level < noisiest:
        advice = f"start the ladder at the noisiest level, {noisiest}, or pass init="
    return [
        f"the start density fits level {level} badly (effective sample size {ess:.0f} of {chains} chains): {advice}"
    ]


def reverse_step(
    potential: Potential, state: State, level: int, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The reverse-diffusion proposal ``r(x'|x)``, and ``log q(x|x') - log r(x'|x)`` of each chain.

    ``r`` is the Gaussian q(x_t | x_s, x_0) at Tweedie's estimate of ``x_0``, ``q`` the forward kernel. The width
    of ``x_0`` is left out: for data wider than the noise the true reverse kernel is up to ``sigma_s / sigma_t`` times
    wider, and where the square of that is 2 or more the variance of the weights is infinite (from level 1 to 0 of
    ``cosine(100)``). A chain whose gradient is not finite stays where it is.

    Args:
        potential: what is sampled; coordinates that are not diffused stay as they are.
        state: chains at a noisier level, with the gradient there.
        level: where they go.
        rng: source of the noise.

    Returns:
        Positions ``(chains, *event_shape)`` and log-ratios ``(chains,)``.

    Raises:
        ValueError: the kernel keeps no gradient.
    """
    x, gradient = np.asarray(state.positions, dtype=np.float64), np.asarray(state.gradient, dtype=np.float64)
    if np.all(np.isnan(gradient)) and np.any(np.isfinite(state.energy)):
        raise ValueError("this kernel keeps no gradient, which reverse_step=True needs: try HMC, or reverse_step=False")
    schedule, diffused = potential.schedule, np.broadcast_to(potential.diffused, potential.event_shape)
    alpha_s, sigma_s = schedule.alpha(state.level), schedule.sigma(state.level)
    alpha_t, sigma_t = schedule.alpha(level), schedule.sigma(level)
    alpha, sigma = schedule.forward(level, state.level)
    clean = (x - sigma_s**2 * gradient) / alpha_s
    mean = (alpha * sigma_t**2 * x + alpha_t * sigma**2 * clean) / sigma_s**2
    spread = sigma * sigma_t / sigma_s
    noise = rng.standard_normal(x.shape)
    proposed = mean + spread * noise
    lost = ~np.isfinite(gradient.reshape(len(x), -1)).all(1)
    proposed[lost] = x[lost]
    axes = tuple(range(1, x.ndim))
    forward = -0.5 * np.sum(((x - alpha * proposed) / sigma) ** 2, axis=axes, where=diffused)
    backward = -0.5 * np.sum(noise**2, axis=axes, where=diffused)
    ratio = forward - backward + np.sum(diffused) * np.log(spread / sigma)
    return np.where(diffused, proposed, x), np.where(lost, 0.0, ratio)


@dataclass(frozen=True)
class Arrival:
    """Chains at a level.

    Attributes:
        state: of the walk.
        increments: log-weights of the change of density, ``(chains,)``, zero at the first rung.
        energy: of the positions where they arrived, ``(chains,)``.
    """

    state: State
    increments: np.ndarray
    energy: np.ndarray


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
    """Bring chains to ``level`` and weigh the change of density there."""
    correction: Any = 0.0
    if reverse and previous is not None:
        positions, correction = reverse_step(potential, previous, level, rng=rng)
    positions, change = potential.refresh(positions, level, rng=rng)
    state = walker.arrive(positions, level, previous, seed=seed)
    energy = np.asarray(state.energy) - change  # where the chains came from, which is what is weighed
    if previous is None:
        return Arrival(state, np.zeros(len(energy)), energy)
    with np.errstate(invalid="ignore"):
        return Arrival(state, np.asarray(previous.energy) - energy + correction, energy)
