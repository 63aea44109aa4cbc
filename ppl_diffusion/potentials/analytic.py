"""Densities known in closed form at every noise level, the ground truth of tests and benchmarks.

With ``x_t = alpha x_0 + sigma z``, ``z ~ N(0, I)``, Gaussian and uniform densities have closed-form noised densities:

    N(m, S)         becomes   N(alpha m, alpha^2 S + sigma^2 I)
    Uniform[l, h]   becomes   [Phi((x - alpha l) / sigma) - Phi((x - alpha h) / sigma)] / (alpha (h - l))

and a mixture becomes the mixture of its noised components. Energies are exact negative log-densities, including
the normaliser, and gradients are analytic. The same code runs in torch and in JAX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special as jax_special
import numpy as np
import torch

from ..arrays import Array, Backend, check_backend, check_count, double, logsumexp, read_only
from ..schedule import NoiseSchedule
from .leaf import Leaf


class GaussianMixture(Leaf):
    """A mixture of ``K`` Gaussians in ``D`` dimensions, exact at every level.

    Args:
        means: means of the components, shape ``(K, D)``.
        scales: standard deviations, shape ``(K,)``, or ``(K, D)`` for one per coordinate.
        covariances: covariance matrices, shape ``(K, D, D)``, instead of ``scales``.
        weights: positive weights, shape ``(K,)``, which are normalised to sum to one; equal by default.
        schedule: the noise levels.
        backend: "torch" or "jax".
        name: name in reports.

    Raises:
        ValueError: shapes do not match, ``means`` are not finite, scales or weights are not positive, covariances are
            not positive definite, or both or neither of ``scales`` and ``covariances`` are given.

    >>> schedule = NoiseSchedule.cosine(100)
    >>> p = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], [0.2, 0.3], weights=[3, 7], schedule=schedule, backend="jax")
    >>> p.sample(1000, level=0, seed=0).shape, p.energy(np.zeros((5, 2)), level=50).shape
    ((1000, 2), (5,))
    """

    any_schedule = True

    def __init__(
        self,
        means: Any,
        scales: Any = None,
        *,
        covariances: Any = None,
        weights: Any = None,
        schedule: NoiseSchedule,
        backend: Backend,
        name: str = "gaussian_mixture",
    ) -> None:
        self.means = np.array(means, dtype=np.float64)
        if self.means.ndim != 2 or not np.all(np.isfinite(self.means)):
            raise ValueError(f"means must be finite, of shape (components, dimensions), got {means!r}")
        components, dimensions = self.means.shape
        self.axes, self.variances = _principal_axes(scales, covariances, components, dimensions)
        weights = np.ones(components) if weights is None else np.array(weights, dtype=np.float64)
        if weights.shape != (components,) or not np.all(np.isfinite(weights)) or np.any(weights <= 0):
            raise ValueError(f"weights must be {components} positive numbers, one per component, got {weights}")
        self.weights = weights / weights.sum()
        mean = self.weights @ self.means
        spread = np.diagonal(self.covariances, axis1=1, axis2=2) + (self.means - mean) ** 2
        self._reference = mean, self.weights @ spread
        read_only(self.means, self.variances, self.weights, *([] if self.axes is None else [self.axes]))
        self.schedule, self.backend, self.name = schedule, check_backend(backend), name
        self.event_shape = (dimensions,)

    @property
    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of every coordinate, each of shape ``(D,)``."""
        return self._reference

    @property
    def covariances(self) -> np.ndarray:
        """Covariance of each component without noise, shape ``(K, D, D)``."""
        scaled = self.variances[:, None, :] * (np.eye(self.means.shape[1]) if self.axes is None else self.axes)
        return scaled if self.axes is None else scaled @ np.swapaxes(self.axes, 1, 2)

    def sample(self, draws: int, *, level: int = 0, seed: int) -> np.ndarray:
        """Exact, independent draws at ``level``, shape ``(draws, D)``, float64."""
        return _add_noise(self.sample_clean(draws, seed=seed), self.schedule, level, seed)

    def sample_clean(self, draws: int, *, seed: int) -> np.ndarray:
        """Exact, independent draws without noise, shape ``(draws, D)``, float64."""
        _check_draws(draws, seed)
        rng = np.random.default_rng(seed)
        component = rng.choice(len(self.weights), size=draws, p=self.weights)
        clean = rng.standard_normal((draws, self.means.shape[1])) * np.sqrt(self.variances)[component]
        if self.axes is not None:
            clean = np.einsum("nij,nj->ni", self.axes[component], clean)
        return clean + self.means[component]

    def _components(self, x: Array, level: Any) -> tuple[Array, Array, Array]:
        """Return the log-density of each weighted component ``(*chains, K)``, and, along its principal axes, residuals
        ``(*chains, K, D)`` and variances ``(K, D)``."""
        alpha, sigma = self.schedule.alpha(level), self.schedule.sigma(level)
        residual = double(x)[..., None, :] - alpha * _constant(self.means, x)
        if self.axes is not None:
            residual = _rotate(residual, _constant(self.axes, x))
        variance = alpha**2 * _constant(self.variances, x) + sigma**2
        xp = _namespace(x)
        normaliser = _constant(np.log(self.weights) - 0.5 * self.means.shape[1] * np.log(2 * np.pi), x)
        log_density = normaliser - 0.5 * (residual**2 / variance + xp.log(variance)).sum(-1)
        return log_density, residual, variance

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        log_density, _, _ = self._components(x, level)
        return -logsumexp(log_density, axis=-1)

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        log_density, residual, variance = self._components(x, level)
        log_total = logsumexp(log_density, axis=-1)
        responsibility = _namespace(x).exp(log_density - log_total[..., None])
        gradient = residual / variance
        if self.axes is not None:
            gradient = _rotate(gradient, _constant(np.swapaxes(self.axes, 1, 2), x))
        return -log_total, (responsibility[..., None] * gradient).sum(-2)


class UniformBox(Leaf):
    """A uniform density on a box, exact at every level.

    The density at a level is a difference of normal CDFs, which is computed from their logarithms for stability.

    Args:
        low: lower corner, shape ``(D,)``.
        high: upper corner, shape ``(D,)``, above ``low``.
        schedule: the noise levels.
        backend: "torch" or "jax".
        name: name in reports.

    Raises:
        ValueError: the corners differ in shape, are not vectors or not finite, or ``low`` is not below ``high``.
    """

    any_schedule = True

    def __init__(
        self,
        low: Sequence[float],
        high: Sequence[float],
        *,
        schedule: NoiseSchedule,
        backend: Backend,
        name: str = "box",
    ) -> None:
        self.low, self.high = np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)
        if self.low.ndim != 1 or self.low.shape != self.high.shape:
            raise ValueError(f"low and high must have one shape (dimensions,), got {self.low.shape}, {self.high.shape}")
        if not np.all(np.isfinite([self.low, self.high])) or np.any(self.low >= self.high):
            raise ValueError(f"low must be below high in every coordinate, got {self.low} and {self.high}")
        self.schedule, self.backend, self.name = schedule, check_backend(backend), name
        self.event_shape = self.low.shape
        self._reference = (self.low + self.high) / 2, (self.high - self.low) ** 2 / 12
        read_only(self.low, self.high)

    @property
    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of every coordinate, each of shape ``(D,)``."""
        return self._reference

    def sample(self, draws: int, *, level: int = 0, seed: int) -> np.ndarray:
        """Exact, independent draws at ``level``, shape ``(draws, D)``, float64."""
        return _add_noise(self.sample_clean(draws, seed=seed), self.schedule, level, seed)

    def sample_clean(self, draws: int, *, seed: int) -> np.ndarray:
        """Exact, independent draws without noise, shape ``(draws, D)``, float64."""
        _check_draws(draws, seed)
        return np.random.default_rng(seed).uniform(self.low, self.high, size=(draws, len(self.low)))

    def _log_density(self, x: Array, level: Any) -> tuple[Array, Array, Array, Array]:
        """Return, each of shape ``(*chains, D)``, the log-density of every coordinate, ``(h - |c|) / sigma``,
        ``(-h - |c|) / sigma`` and ``sign(c) / sigma``, where ``c`` is ``x`` relative to the centre of the box and ``h``
        its half width, both at this level."""
        alpha, sigma = self.schedule.alpha(level), self.schedule.sigma(level)
        xp = _namespace(x)
        centred = double(x) - alpha * _constant((self.low + self.high) / 2, x)
        half = alpha * _constant((self.high - self.low) / 2, x)
        near, far = (half - abs(centred)) / sigma, (-half - abs(centred)) / sigma
        tail = _log_ndtr(near)
        log_mass = tail + xp.log1p(-xp.exp(_log_ndtr(far) - tail))
        return log_mass - xp.log(2 * half), near, far, xp.sign(centred) / sigma

    def _evaluate_energy(self, x: Array, level: Any) -> Array:
        return -self._log_density(x, level)[0].sum(-1)

    def _evaluate(self, x: Array, level: Any) -> tuple[Array, Array]:
        log_density, near, far, side = self._log_density(x, level)
        xp = _namespace(x)
        log_width = xp.log(self.schedule.alpha(level) * _constant((self.high - self.low) * np.sqrt(2 * np.pi), x))
        log_mass = log_density + log_width
        slope = xp.exp(-0.5 * near**2 - log_mass) - xp.exp(-0.5 * far**2 - log_mass)
        return -log_density.sum(-1), side * slope


def _principal_axes(
    scales: Any, covariances: Any, components: int, dimensions: int
) -> tuple[np.ndarray | None, np.ndarray]:
    """Return eigenvectors ``(K, D, D)``, or None for the coordinate axes, and variances ``(K, D)`` along them."""
    if (scales is None) == (covariances is None):
        raise ValueError("give either scales=, standard deviations, or covariances=, matrices")
    if covariances is not None:
        matrices = np.array(covariances, dtype=np.float64)
        if matrices.shape != (components, dimensions, dimensions) or not np.allclose(
            matrices, np.swapaxes(matrices, 1, 2)
        ):
            raise ValueError(f"covariances must be symmetric, of shape {(components, dimensions, dimensions)}")
        variances, axes = np.linalg.eigh(matrices)
    else:
        stds = np.array(scales, dtype=np.float64)
        if stds.shape not in ((components,), (components, dimensions)):
            raise ValueError(f"scales must have shape {(components,)} or {(components, dimensions)}, got {stds.shape}")
        if np.any(stds <= 0):
            raise ValueError("scales must be positive standard deviations")
        variances, axes = np.broadcast_to(stds.reshape(components, -1) ** 2, (components, dimensions)).copy(), None
    if not np.all(np.isfinite(variances)) or np.any(variances <= 0):
        raise ValueError("covariances must be finite and positive definite, scales positive")
    return axes, variances


def _check_draws(draws: Any, seed: Any) -> None:
    check_count("draws", draws)
    check_count("seed", seed, least=0, example=0)


def _add_noise(clean: np.ndarray, schedule: NoiseSchedule, level: int, seed: int) -> np.ndarray:
    schedule.check_level(level)
    noise = np.random.default_rng((seed, 1)).standard_normal(clean.shape)
    return schedule.alpha(level) * clean + schedule.sigma(level) * noise


def _namespace(x: Array) -> Any:
    return torch if isinstance(x, torch.Tensor) else jnp


def _constant(values: np.ndarray, x: Array) -> Array:
    if isinstance(x, torch.Tensor):
        return torch.tensor(values, device=x.device)
    return jnp.asarray(values, dtype=jax.dtypes.canonicalize_dtype(jnp.float64))


def _rotate(vectors: Array, axes: Array) -> Array:
    """Return ``axes_k^T v_k``, shape ``(*chains, K, D)``, for vectors of that shape and matrices ``(K, D, D)``."""
    return (vectors[..., :, None] * axes).sum(-2)


def _log_ndtr(x: Array) -> Array:
    return torch.special.log_ndtr(x) if isinstance(x, torch.Tensor) else jax_special.log_ndtr(x)
