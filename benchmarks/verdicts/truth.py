"""Closed-form targets at level 0, and whether the draws of a run are theirs.

A run is *right* if for every coordinate its mean and its variance, and the share of every mode, are within 4 standard
errors of the truth, those of an honest sample: as many independent draws as there are chains or, where chains were
resampled, effective families of chains, and at least 100. Whether the run says so itself plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppl_diffusion import Trace

ERRORS = 4.0
"""Standard errors of an honest sample beyond which a run is wrong."""

LEAST = 100
"""Size of the smallest honest sample that a run is compared with."""

REFERENCE = 200_000
"""Exact draws by which variances of statistics and shares of modes are known."""


@dataclass(frozen=True)
class Truth:
    """A mixture of axis-aligned Gaussians: means and variances ``(K, D)``, weights ``(K,)``."""

    means: np.ndarray
    variances: np.ndarray
    weights: np.ndarray

    def statistics(self, x: np.ndarray) -> np.ndarray:
        """Values ``(n, 2 D + K)`` at points ``x (n, D)``: coordinates, squared deviations, the nearest mode."""
        centre = self.weights @ self.means
        nearest = ((x[:, None] - self.means) ** 2 / self.variances).sum(2).argmin(1)
        return np.concatenate([x, (x - centre) ** 2, nearest[:, None] == np.arange(len(self.means))], axis=1)

    def sample(self, draws: int, *, seed: int) -> np.ndarray:
        """Exact draws ``(draws, D)``."""
        rng = np.random.default_rng(seed)
        which = rng.choice(len(self.weights), size=draws, p=self.weights)
        return self.means[which] + np.sqrt(self.variances[which]) * rng.standard_normal((draws, self.means.shape[1]))

    def worst_error(self, trace: Trace) -> float:
        """Largest error of a statistic, in standard errors of an honest sample; infinite for draws that are not
        finite."""
        share = np.bincount(trace.families) / len(trace.families)
        size = max(LEAST, 1 / np.sum(share**2))
        values = self.statistics(self.sample(REFERENCE, seed=0))
        x = trace.positions.reshape(-1, self.means.shape[1])
        if not np.isfinite(x).all():
            return float("inf")
        spread = values.std(0)
        error = np.abs(self.statistics(x).mean(0) - values.mean(0))[spread > 0] / spread[spread > 0]
        return float(np.sqrt(size) * error.max())


def noised(means: np.ndarray, scales: np.ndarray, weights: np.ndarray, alpha: float, sigma: float) -> Truth:
    """The mixture of Gaussians of standard deviations ``scales (K, D)`` with noise."""
    return Truth(alpha * means, alpha**2 * scales**2 + sigma**2, weights)


def product(p: Truth, q: Truth, exponent: float = 1.0) -> Truth:
    """The normalised density ``p * q**exponent``; of an exponent other than one, ``q`` is a single Gaussian."""
    if exponent != 1.0 and len(q.weights) > 1:
        raise ValueError("powers of mixtures have no closed form")
    precision = 1 / p.variances[:, None] + exponent / q.variances[None]
    if np.any(precision <= 0):
        raise ValueError("the product is not normalisable")
    variance = 1 / precision
    mean = variance * (p.means[:, None] / p.variances[:, None] + exponent * q.means[None] / q.variances[None])
    log = np.log(p.weights)[:, None] + exponent * np.log(q.weights)[None] + 0.5 * np.log(variance).sum(2)
    for one, power, index in ((p, 1.0, np.s_[:, None]), (q, exponent, np.s_[None, :])):
        apart = (mean - one.means[index]) ** 2 / one.variances[index]
        log = log - 0.5 * power * (np.log(one.variances).sum(1)[index] + apart.sum(2))
    weights = np.exp(log - log.max()).ravel()
    size = p.means.shape[1]
    return Truth(mean.reshape(-1, size), variance.reshape(-1, size), weights / weights.sum())
