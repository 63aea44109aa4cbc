"""The Gaussian likelihood of observed coordinates as a potential, noised at each level like the data."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..arrays import Array, Backend, as_backend, check_backend, double, read_only
from ..schedule import NoiseSchedule
from .leaf import Leaf


class Observation(Leaf):
    """The Gaussian likelihood of observed coordinates as a potential; built by :func:`observation`.

    Attributes:
        values: observed values, shape ``event_shape``; zero where ``seen`` is False.
        seen: which coordinates were observed, bool, shape ``event_shape``.
        scale: standard deviation of the measurement noise.
    """

    any_schedule = True

    def __init__(
        self, values: np.ndarray, seen: np.ndarray, scale: float, schedule: NoiseSchedule, backend: Backend, name: str
    ) -> None:
        self.values, self.seen, self.scale = np.where(seen, values, 0.0), seen, scale
        read_only(self.values, self.seen)
        self.schedule, self.backend, self.name = schedule, check_backend(backend), name
        self.event_shape = values.shape

    @property
    def exponent(self) -> Any:
        return self.seen.astype(np.float64)

    def _residual(self, x: Array, level: Any) -> tuple[Array, Any]:
        """Return ``x - alpha values``, zero where not observed, of the shape of ``x``, and its variance, a scalar."""
        clean = level == 0
        alpha, sigma = self.schedule.alpha(level), self.schedule.sigma(level)
        alpha, sigma = alpha + clean * (1 - alpha), sigma - clean * sigma
        like = as_backend(self.values, self.backend), as_backend(self.seen.astype(np.float64), self.backend)
        values, seen = (array.to(x.device) if self.backend == "torch" else array for array in like)
        return seen * (double(x) - alpha * values), alpha**2 * self.scale**2 + sigma**2

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        residual, variance = self._residual(x, level)
        constant = 0.5 * self.seen.sum() * np.log(2 * np.pi * self.scale**2)
        return 0.5 * (residual**2).reshape(*self._chain_shape(x), self.values.size).sum(-1) / variance + constant

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        residual, variance = self._residual(x, level)
        return self._evaluate_energy(x, level), residual / variance


def observation(
    values: Any,
    *,
    seen: Any = None,
    scale: float,
    schedule: NoiseSchedule,
    backend: Backend,
    name: str = "observation",
) -> Observation:
    """Return the Gaussian likelihood ``N(values; x, scale^2)`` of the observed coordinates of ``x``.

    At level 0 the potential is this exact likelihood of ``x``, including its normaliser. At other levels it is noised
    like the data: proportional to ``N(x; alpha values, alpha^2 scale^2 + sigma^2)``, with the constant of level 0.

    Args:
        values: observed values, shape ``event_shape`` of the prior; ignored where ``seen`` is False.
        seen: which coordinates were observed, bool, same shape; all by default.
        scale: standard deviation of the measurement noise, positive.
        schedule: the noise schedule of the prior.
        backend: the backend of the prior, "torch" or "jax".
        name: name in expressions and reports.

    Raises:
        ValueError: shapes do not match, ``scale`` is not positive, no coordinate was observed, ``values`` are bytes
            (uint8), or an observed value is not finite.

    >>> schedule = NoiseSchedule.cosine(100)
    >>> left = np.arange(28) < np.full((28, 1), 14)
    >>> seen = observation(np.zeros((28, 28)), seen=left, scale=0.1, schedule=schedule, backend="torch")
    >>> seen.event_shape, int(seen.exponent.sum())
    ((28, 28), 392)
    """
    if np.asarray(values).dtype == np.uint8:
        raise ValueError("values are bytes, and pictures are in [-1, 1]: scale them by x / 127.5 - 1")
    values = np.array(values, dtype=np.float64)
    seen = np.ones(values.shape, dtype=bool) if seen is None else np.array(seen)
    if seen.dtype != bool or seen.shape != values.shape:
        raise ValueError(f"seen must be booleans of the shape of values, {values.shape}, got {seen.dtype} {seen.shape}")
    if np.ndim(scale) or not 0 < float(scale) < np.inf:
        raise ValueError(f"scale must be a positive standard deviation, one number, got {scale}: try scale=0.1")
    if not seen.any() or not np.all(np.isfinite(values[seen])):
        raise ValueError("at least one coordinate must be seen, and every seen value must be finite")
    return Observation(values, seen, float(scale), schedule, backend, name)
