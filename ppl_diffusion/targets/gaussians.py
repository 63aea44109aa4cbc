"""Densities that are sums of exponentials of quadratics: Gaussian mixtures, their products, and powers of Gaussians.

At every level, a composition of Gaussian mixtures by products and sums is one, so that its moments are known in closed
form, and exact draws are those of a mixture of Gaussians.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..potentials.target import Target
from .exact import Stratum, simulated
from .reference import Expectation, Reference


@dataclass(frozen=True)
class LogQuadratics:
    """A sum of ``exp(c - x' L x / 2 + h' x)``: closed under products, mixtures and Gaussian quotients."""

    precisions: np.ndarray
    linears: np.ndarray
    constants: np.ndarray

    @classmethod
    def of(cls, mixture: Any, *, level: int) -> LogQuadratics:
        """The exact density of a :class:`GaussianMixture` at ``level``."""
        alpha, sigma = mixture.schedule.alpha(level), mixture.schedule.sigma(level)
        means = alpha * mixture.means
        covariances = alpha**2 * mixture.covariances + sigma**2 * np.eye(means.shape[1])
        precisions = np.linalg.inv(covariances)
        linears = np.einsum("kij,kj->ki", precisions, means)
        constants = (
            np.log(mixture.weights)
            - 0.5 * np.einsum("ki,ki->k", linears, means)
            - 0.5 * np.linalg.slogdet(2 * np.pi * covariances)[1]
        )
        return cls(precisions, linears, constants)

    def __mul__(self, other: LogQuadratics) -> LogQuadratics:
        def pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return (a[:, None] + b[None]).reshape(-1, *a.shape[1:])

        return LogQuadratics(
            pairs(self.precisions, other.precisions),
            pairs(self.linears, other.linears),
            pairs(self.constants, other.constants),
        )

    def __pow__(self, exponent: float) -> LogQuadratics:
        assert len(self.constants) == 1, "only a single Gaussian has powers in closed form"
        return LogQuadratics(exponent * self.precisions, exponent * self.linears, exponent * self.constants)

    def __add__(self, other: LogQuadratics) -> LogQuadratics:
        return LogQuadratics(
            np.concatenate([self.precisions, other.precisions]),
            np.concatenate([self.linears, other.linears]),
            np.concatenate([self.constants, other.constants]),
        )

    def scaled(self, log_scale: float) -> LogQuadratics:
        return LogQuadratics(self.precisions, self.linears, self.constants + log_scale)

    def responsibilities(self, x: np.ndarray) -> np.ndarray:
        """Posterior probability of each term at ``x (..., D)``, shape ``(..., terms)``; its mean is the term's mass."""
        quadratic = -0.5 * np.einsum("...i,kij,...j->...k", x, self.precisions, x) + x @ self.linears.T + self.constants
        return np.exp(quadratic - np.logaddexp.reduce(quadratic, axis=-1, keepdims=True))

    def moments(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean ``(D,)``, covariance ``(D, D)``, and log-normaliser."""
        shares, means, covariances, total = self._terms()
        mean = shares @ means
        centred = means - mean
        covariance = np.einsum("k,kij->ij", shares, covariances) + np.einsum("k,ki,kj->ij", shares, centred, centred)
        return mean, covariance, total

    @property
    def shares(self) -> np.ndarray:
        """Mass of every term."""
        return self._terms()[0]

    def _terms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        covariances = np.linalg.inv(self.precisions)
        means = np.einsum("kij,kj->ki", covariances, self.linears)
        log_masses = (
            self.constants
            + 0.5 * np.einsum("ki,ki->k", self.linears, means)
            + 0.5 * np.linalg.slogdet(2 * np.pi * covariances)[1]
        )
        total = np.logaddexp.reduce(log_masses)
        return np.exp(log_masses - total), means, covariances, float(total)


@dataclass(frozen=True)
class GaussianLaw:
    """A target whose density at each level is a sum of exponentials of quadratics.

    Args:
        terms: returns the density at a level, up to a constant.
        event_shape: shape of a point.
    """

    terms: Callable[[int], LogQuadratics]
    event_shape: tuple[int, ...]

    def sample(self, count: int, *, level: int, seed: int) -> np.ndarray:
        """Return exact independent draws, shape ``(count, *event_shape)``."""
        rng = np.random.default_rng(seed)
        shares, means, covariances, _ = self.terms(level)._terms()
        counts = rng.multinomial(count, shares)
        parts = [_normal(m, c, n, rng) for m, c, n in zip(means, covariances, counts, strict=True)]
        return rng.permutation(np.concatenate(parts)).reshape(count, *self.event_shape)

    def reference(self, potential: Target, level: int) -> Reference:
        """Return moments in closed form, and those of ``log p`` in closed form for one Gaussian, else simulated."""
        shares, means, covariances, _ = self.terms(level)._terms()
        v = np.diagonal(covariances, axis1=1, axis2=2)
        first, second, fourth = (
            shares @ means,
            shares @ (means**2 + v),
            shares @ (means**4 + 6 * means**2 * v + 3 * v**2),
        )
        shape = self.event_shape
        x = Expectation.of_moments(first.reshape(shape), second.reshape(shape))
        x_squared = Expectation.of_moments(second.reshape(shape), fourth.reshape(shape))
        condition = max(values[-1] / values[0] for values in np.linalg.eigvalsh(covariances))
        if len(shares) == 1:
            top = -float(np.asarray(potential.energy(means.reshape(1, *shape), level=level))[0])
            log_p, log_p_squared = _of_one_gaussian(top, means.shape[1])
            return Reference(x, x_squared, log_p, log_p_squared, None, "in closed form", condition_number=condition)
        strata = [Stratum(s, _Component(m, c, shape)) for s, m, c in zip(shares, means, covariances, strict=True)]
        found = simulated(potential, level, strata, locations=means.reshape(-1, *shape))
        return Reference(x, x_squared, *found, condition_number=condition)


@dataclass(frozen=True)
class _Component:
    """Draws of one Gaussian, ``(count, *event_shape)``."""

    mean: np.ndarray
    covariance: np.ndarray
    event_shape: tuple[int, ...]

    def __call__(self, count: int, rng: np.random.Generator) -> np.ndarray:
        return _normal(self.mean, self.covariance, count, rng).reshape(count, *self.event_shape)


def _normal(mean: np.ndarray, covariance: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return mean + rng.standard_normal((count, len(mean))) @ np.linalg.cholesky(covariance).T


def _of_one_gaussian(top: float, dimensions: int) -> tuple[Expectation, Expectation]:
    """Return the expectations of ``log p`` and its square where ``log p = top - chi^2 / 2``, by central moments."""
    mean, second, third = top - dimensions / 2, dimensions / 2, -float(dimensions)
    fourth = (12 * dimensions**2 + 48 * dimensions) / 16
    variance = 4 * mean**2 * second + 4 * mean * third + fourth - second**2
    return Expectation(mean, 0.0, second), Expectation(mean**2 + second, 0.0, variance)
