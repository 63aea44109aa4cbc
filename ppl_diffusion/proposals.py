"""Where chains come from: the start density, and the reverse-diffusion proposal from rung to rung."""

from __future__ import annotations

from typing import Any

import numpy as np

from .kernel import State
from .potential import Potential
from .schedule import NoiseSchedule


def start(
    potential: Potential, level: int, *, chains: int, init: Any, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Starting positions ``(chains, *event_shape)``, and the log-density that they were drawn from, ``(chains,)``.

    Without ``init`` they are drawn from ``N(0, I/s)``, s the sum of the exponents, times sigma where the
    schedule explodes.

    Raises:
        ValueError: exponents whose sum is not positive, or an ``init`` that does not fit.
    """
    shape = (chains, *potential.event_shape)
    if init is not None:
        positions = np.array(init, dtype=np.float64)
        if positions.shape != shape:
            raise ValueError(f"init has shape {positions.shape}: pass an array (chains, *event_shape), here {shape}")
        if not np.all(np.isfinite(positions)):
            raise ValueError("init holds values that are not finite: remove them before sampling")
        return positions, np.zeros(chains)
    total = np.broadcast_to(np.asarray(potential.exponent, dtype=np.float64), potential.event_shape)
    if np.any(total <= 0):
        raise ValueError(
            f"the exponents of {potential} sum to {total.min():.3g}, so it has no density at the noisiest level to "
            "start from: make the sum positive, or pass init="
        )
    scale = max(1.0, potential.schedule.sigma(level)) / np.sqrt(total)
    noise = rng.standard_normal(shape)
    axes = tuple(range(1, noise.ndim))
    constant = np.sum(np.log(scale)) + 0.5 * scale.size * np.log(2 * np.pi)
    return noise * scale, -0.5 * np.sum(noise**2, axis=axes) - constant


def reverse_step(
    schedule: NoiseSchedule, state: State, level: int, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The reverse-diffusion proposal ``r(x'|x)``, and ``log q(x|x') - log r(x'|x)`` of each chain.

    ``r`` is the Gaussian q(x_t | x_s, x_0) at Tweedie's estimate of ``x_0``, ``q`` the forward kernel.

    Args:
        schedule: the noise levels.
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
    alpha_s, sigma_s = schedule.alpha(state.level), schedule.sigma(state.level)
    alpha_t, sigma_t = schedule.alpha(level), schedule.sigma(level)
    alpha, sigma = schedule.forward(level, state.level)
    clean = (x - sigma_s**2 * gradient) / alpha_s
    mean = (alpha * sigma_t**2 * x + alpha_t * sigma**2 * clean) / sigma_s**2
    spread = sigma * sigma_t / sigma_s
    noise = rng.standard_normal(x.shape)
    proposed = mean + spread * noise
    axes = tuple(range(1, x.ndim))
    forward = -0.5 * np.sum(((x - alpha * proposed) / sigma) ** 2, axis=axes)
    backward = -0.5 * np.sum(noise**2, axis=axes)
    return proposed, forward - backward + np.prod(x.shape[1:]) * np.log(spread / sigma)
