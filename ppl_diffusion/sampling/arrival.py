"""Starting positions, the reverse-diffusion proposal, and the arrival of chains at a rung."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import as_numpy
from ..potentials.target import Target
from .kernel import State, Walker
from .transitions import Reverse, told_share, widening


def start(
    potential: Target, level: int, *, chains: int, init: Any, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return starting positions ``(chains, *event_shape)`` and the log-density of their distribution ``(chains,)``.

    Without ``init`` they are drawn by ``Target.start``; with it, the log-densities are zero.

    Raises:
        ValueError: ``init`` has the wrong shape or is not finite, or the potential has no density to start from.
    """
    if init is None:
        return potential.start(level, chains=chains, rng=rng)
    return given(init, (chains, *potential.event_shape)), np.zeros(chains)


def given(init: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the starting positions that the caller gave, of ``shape (chains, *event_shape)``, as float64.

    Raises:
        ValueError: they have another shape, or are not finite.
    """
    positions = np.array(as_numpy(init), dtype=np.float64)
    if positions.shape != shape:
        raise ValueError(f"init has shape {positions.shape}: pass an array (chains, *event_shape), here {shape}")
    if not np.all(np.isfinite(positions)):
        raise ValueError("init holds values that are not finite: remove them before sampling")
    return positions


def check_gradient(state: State, needed: bool, option: str) -> None:
    """Raise ``ValueError`` if the gradients that ``option`` needs are not kept by the kernel."""
    if needed and np.all(np.isnan(state.gradient)) and np.any(np.isfinite(state.energy)):
        raise ValueError(f"this kernel keeps no gradient, which {option}=True needs: try HMC, or {option}=False")


def reverse_step(
    potential: Target, state: State, level: int, *, rng: np.random.Generator, widened: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``x'`` from the reverse-diffusion proposal ``r(x'|x)``; return it and ``log q(x|x') - log r(x'|x)``.

    From level s to t, ``r`` is the Gaussian ``q(x_t | x_s, x_0)`` at Tweedie's estimate of ``x_0``, and ``q`` is the
    forward kernel. ``r`` ignores the variance of ``x_0`` given ``x_s``: for data wider than the noise, the true reverse
    kernel is wider by a factor of up to ``sigma_s / sigma_t``. Where the square of this factor is 2 or more, the
    variance of the weights is infinite (such as from level 1 to 0 of ``cosine(100)``), unless ``widened`` makes up for
    it, see :mod:`ppl_diffusion.sampling.transitions`.

    ``widened`` may be estimated from these very chains before ``x'`` is drawn, as :func:`arrive` does: given all chains
    at s, ``r`` is a density of ``x'`` whichever variance it has, so that ``e^(U_s(x) - U_t(x')) q(x|x') / r(x'|x)`` has
    the same mean over ``x'``. Estimates of normalisers therefore have no bias, for any number of chains.

    Args:
        potential: the potential that is sampled; coordinates that are not diffused are unchanged.
        state: chains at the noisier level s, with the gradient there.
        level: the level t.
        rng: source of the noise.
        widened: factor of the variance of ``r``, 1 or more.

    Returns:
        Positions ``(chains, *event_shape)`` and log-ratios ``(chains,)``; the old position and 0 for a chain whose
        gradient is not finite.

    Raises:
        ValueError: the kernel does not provide gradients.
    """
    x, gradient = np.asarray(state.positions, dtype=np.float64), np.asarray(state.gradient, dtype=np.float64)
    check_gradient(state, True, "reverse_step")
    diffused = np.broadcast_to(potential.diffused, potential.event_shape)
    alpha, sigma = potential.schedule.forward(level, state.level)
    noise = rng.standard_normal(x.shape)
    proposed, spread = potential.schedule.reverse(x, gradient, state.level, level)
    spread *= widened**0.5
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


def _throw(potential: Target, before: np.ndarray, after: np.ndarray, level: int) -> float:
    """Return how far chains moved to ``after (chains, *event_shape)`` at ``level``, see ``reversal.MAX_THROW``."""
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
        energy: energy at this level before ``Target.refresh`` moved the chains, shape ``(chains,)``.
        throw: how far a reverse step moved the chains, see ``reversal.MAX_THROW``; 0 without one.
        widened: factor of the variance of the reverse step.
    """

    state: State
    increments: np.ndarray
    energy: np.ndarray
    throw: float
    widened: float = 1.0


def arrive(
    walker: Walker,
    potential: Target,
    positions: Any,
    level: int,
    previous: State | None,
    reverse: Reverse,
    rng: np.random.Generator,
    seed: int,
) -> Arrival:
    """Move chains at ``positions (chains, *event_shape)`` to ``level`` and compute their log-weight increments."""
    correction: Any = 0.0
    throw, widened = 0.0, 1.0
    if reverse and previous is not None:
        if reverse == "wide":
            told = told_share(potential, np.asarray(previous.gradient, dtype=np.float64), previous.level)
            widened = widening(potential, previous.level, level, told)
        positions, correction = reverse_step(potential, previous, level, rng=rng, widened=widened)
        throw = _throw(potential, np.asarray(previous.positions), positions, level)
    change: Any = 0.0
    if type(potential).refresh is not Target.refresh:  # the default would fetch positions from a device for nothing
        positions, change = potential.refresh(np.array(positions, dtype=np.float64), level, rng=rng)
    state = walker.arrive(positions, level, previous, seed=seed)
    energy = np.asarray(state.energy) - change  # weights use the energy before the refresh, which is invariant
    if previous is None:
        return Arrival(state, np.zeros(len(energy)), energy, throw, widened)
    with np.errstate(invalid="ignore"):
        return Arrival(state, np.asarray(previous.energy) - energy + correction, energy, throw, widened)
