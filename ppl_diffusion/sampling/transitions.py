"""Log-densities of the steps between two noise levels: the forward kernel and the reverse-diffusion proposal."""

from __future__ import annotations

import numpy as np

from ..potentials.target import Target


def log_forward(target: Target, x_s: np.ndarray, x_t: np.ndarray, s: int, t: int) -> np.ndarray:
    """Return ``log q(x_s | x_t)`` up to a constant, s the noisier level; points ``(chains, *event_shape)``."""
    alpha, sigma = target.schedule.forward(t, s)
    return _log_normal(target, x_s - alpha * x_t, sigma)


def log_reverse(target: Target, x_t: np.ndarray, x_s: np.ndarray, gradient: np.ndarray, s: int, t: int) -> np.ndarray:
    """Return ``log r(x_t | x_s)`` up to the constant of :func:`log_forward`; ``gradient`` is that at ``x_s``."""
    mean, spread = target.schedule.reverse(x_s, gradient, s, t)
    return _log_normal(target, x_t - mean, spread)


def _log_normal(target: Target, apart: np.ndarray, spread: float) -> np.ndarray:
    diffused = np.broadcast_to(target.diffused, target.event_shape)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.sum(np.square(apart / spread), axis=tuple(range(1, apart.ndim)), where=diffused)
    return -0.5 * squares - float(np.sum(diffused)) * np.log(spread)
