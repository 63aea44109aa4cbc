"""Statistical checks shared by the tests, and the false-alarm budget of the suite.

Budget. A p-value below ``ALPHA`` is a failure. The suite computes fewer than 500 of them, so a correct library fails a
run with fresh seeds with probability below 5e-4. Comparisons in standard errors use a bound of 4 (two-sided 6e-5 each)
unless they say otherwise. Seeds are fixed and were not selected.

Power. Each check is also applied to negative controls ("wrong twins"): deliberately wrong variants that it must reject.
With a tiny step every sampler looks right, so the acceptance rate is asserted to lie in ``ACCEPTANCE_WINDOW``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from ppl_diffusion.potentials.algebra import Potential
from ppl_diffusion.sampling.kernel import Kernel

ALPHA = 1e-6
ACCEPTANCE_WINDOW = (0.6, 0.9)


@dataclass(frozen=True)
class Invariance:
    """Result of :func:`invariance`: p-values by statistic, acceptance rate, share of chains that moved."""

    p_values: dict[str, float]
    acceptance_rate: float
    moved: float

    @property
    def smallest(self) -> float:
        return min(self.p_values.values())


def invariance(
    kernel: Kernel,
    potential: Potential,
    exact: Any,
    *,
    level: int,
    chains: int = 20_000,
    steps: int = 20,
    seed: int = 0,
) -> Invariance:
    """Test invariance: start from exact draws, take some steps, compare with the exact distribution.

    Args:
        exact: ``exact(draws, seed)`` gives exact draws at ``level``, shape ``(draws, *event_shape)``.
    """
    walker = kernel.bind(potential)
    state = walker.arrive(exact(chains, seed + 1), level, None, seed=seed + 2)
    begun = np.array(state.positions)
    state, info = walker.move(state, steps, seed=seed + 3)
    ended = np.asarray(state.positions).reshape(chains, -1)
    reference = exact(10 * chains, seed + 4)
    reference_energy = np.asarray(potential.energy(reference, level=level))
    energy = np.asarray(potential.energy(ended.reshape(begun.shape), level=level))
    reference = reference.reshape(len(reference), -1)
    p_values = {"energy": stats.ks_2samp(energy, reference_energy).pvalue}
    for i in range(ended.shape[1]):
        p_values[f"coordinate {i}"] = stats.ks_2samp(ended[:, i], reference[:, i]).pvalue
    p_values["second moments"] = _second_moments(ended, reference)
    moved = np.mean(np.any(ended != begun.reshape(chains, -1), axis=1))
    return Invariance(p_values, float(np.mean(info["acceptance_rate"])), float(moved))


def _second_moments(x: np.ndarray, reference: np.ndarray) -> float:
    """P-value of a chi-square test of the mean squares about the exact mean, with variances from exact draws."""
    squares, expected = ((sample - reference.mean(0)) ** 2 for sample in (x, reference))
    covariance = np.atleast_2d(np.cov(expected.T)) * (1 / len(x) + 1 / len(reference))
    difference = squares.mean(0) - expected.mean(0)
    return float(stats.chi2.sf(difference @ np.linalg.solve(covariance, difference), len(difference)))


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


def moment_errors(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Errors of all means and covariances, in standard errors, for independent draws ``x (draws, D)``."""
    centred = x - mean
    products = np.einsum("ni,nj->nij", centred, centred)
    upper = np.triu_indices(x.shape[1])
    features = np.concatenate([centred, (products - covariance)[:, upper[0], upper[1]]], axis=1)
    return features.mean(0) / (features.std(0, ddof=1) / np.sqrt(len(x)))
