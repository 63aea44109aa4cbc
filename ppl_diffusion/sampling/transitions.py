"""The steps between two noise levels: the forward kernel, and the reverse-diffusion proposal and its width.

From level s to the cleaner t the proposal ``r`` has the mean of ``q(x_t | x_s)``, by Tweedie's estimate of ``x_0``. Its
variance is that of ``q(x_t | x_s, x_0)``, or as wide as ``q(x_t | x_s)`` on average, times

    widening = 1 + (rho - 1) (1 - share),   rho = SNR_t / SNR_s,   share = E |sigma_s grad U_s|^2 / dimensions

For data in one point ``share`` is 1, as the gradient tells all of the noise; for data much wider than the noise it is
0. Derivation: by Tweedie's formula for the step from t to s, whose forward kernel has ``alpha`` and ``sigma``,
``Cov(x_t | x_s) = (sigma / alpha)^2 (I - sigma^2 Hess U_s)``, and the Hessian has the mean of ``grad U grad U^T``. With
``sigma^2 = sigma_s^2 (1 - 1 / rho)`` the mean over coordinates is the product above. It is the variance of ``q(x_t |
x_s, x_0)`` and that of ``x_0`` given ``x_s``, carried over to ``x_t``.

A composition is not the noised density of anything, and this is a guess of the width for it: between 1 and ``rho``.

Source: Analytic-DPM (Bao, Li, Zhu and Zhang, 2022), https://arxiv.org/abs/2201.06503
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ..potentials.target import Target

Reverse = bool | Literal["wide"]
"""Whether chains take reverse-diffusion steps, and if so, whether these are wide."""


def check_reverse(option: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value``, of the argument ``option``, is True, False or "wide"."""
    if not isinstance(value, (bool, np.bool_)) and not (isinstance(value, str) and value == "wide"):
        raise ValueError(f"{option} is True, False or 'wide', got {value!r}: try {option}='wide'")


def told_share(target: Target, gradient: np.ndarray, level: int) -> float:
    """Return the share of the noise that gradients tell, ``E |sigma grad U|^2 / dimensions``, a mean over chains.

    A chain whose gradient is not finite is left out, and one far out counts for at most five standard deviations above
    what the noise itself would give. It is 1 if there is none. For data of the variance ``c`` of ``Target.reference``
    it is at least ``sigma^2 / (sigma^2 + alpha^2 c)``, what it is for Gaussians (Cramer and Rao). An estimate below is
    raised to this: at levels of nearly pure noise ``rho`` may be large, and few chains would not be exact enough.

    Args:
        target: the density; only its diffused coordinates count.
        gradient: gradients of the energy at ``level``, shape ``(chains, *event_shape)``.
        level: their level.
    """
    diffused = np.broadcast_to(target.diffused, target.event_shape)
    size, axes = float(np.sum(diffused)), tuple(range(1, gradient.ndim))
    noise, signal = (f(level) ** 2 for f in (target.schedule.sigma, target.schedule.alpha))
    variance = np.broadcast_to(np.asarray(target.reference[1], dtype=np.float64), target.event_shape)
    least = float(np.mean(noise / (noise + signal * variance), where=diffused))
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.sum(np.square(target.schedule.sigma(level) * gradient), axis=axes, where=diffused) / size
    squares = squares[np.isfinite(squares)]
    if not len(squares):
        return 1.0
    return max(least, float(np.mean(np.minimum(squares, 1 + 5 * np.sqrt(2 / size)))))


def largest_widening(target: Target, s: int, t: int) -> float:
    """Return the ratio of the signal-to-noise ratios of levels t and s: how much wider than ``q(x_t | x_s, x_0)`` the
    exact reverse kernel is, in variance, for data much wider than the noise."""
    return float(np.exp(target.schedule.log_snr(t) - target.schedule.log_snr(s)))


def widening(target: Target, s: int, t: int, share: float) -> float:
    """Return by what factor the variance of a wide reverse step from level s to t is larger; ``share`` as above."""
    return 1 + (largest_widening(target, s, t) - 1) * max(0.0, 1 - share)


def log_forward(target: Target, x_s: np.ndarray, x_t: np.ndarray, s: int, t: int) -> np.ndarray:
    """Return ``log q(x_s | x_t)`` up to a constant, s the noisier level; points ``(chains, *event_shape)``."""
    alpha, sigma = target.schedule.forward(t, s)
    return _log_normal(target, x_s - alpha * x_t, sigma)


def log_reverse(
    target: Target, x_t: np.ndarray, x_s: np.ndarray, gradient: np.ndarray, s: int, t: int, *, widened: float = 1.0
) -> np.ndarray:
    """Return ``log r(x_t | x_s)`` up to the constant of :func:`log_forward`.

    Args:
        target: the density.
        x_t, x_s: points ``(chains, *event_shape)`` at levels t and s.
        gradient: that of the energy at ``x_s``.
        s, t: the levels, s the noisier one.
        widened: factor of the variance, see :func:`widening`.
    """
    mean, spread = target.schedule.reverse(x_s, gradient, s, t)
    return _log_normal(target, x_t - mean, spread * widened**0.5)


def _log_normal(target: Target, apart: np.ndarray, spread: float) -> np.ndarray:
    diffused = np.broadcast_to(target.diffused, target.event_shape)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.sum(np.square(apart / spread), axis=tuple(range(1, apart.ndim)), where=diffused)
    return -0.5 * squares - float(np.sum(diffused)) * np.log(spread)
