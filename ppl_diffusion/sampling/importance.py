"""Importance weights of a population of chains: effective sample size, normaliser estimate, resampling.

When the target moves from level s to level t, a chain at ``x`` gains the log-weight increment
``U_s(x) - U_t(x)``. The weights correct what a finite number of MCMC steps cannot: the share of the
population in each mode. The unknown constant of a level adds to all increments alike and cancels.

Source: Annealed Importance Sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008;
Sequential Monte Carlo Samplers (Del Moral, Doucet and Jasra, 2006), https://doi.org/10.1111/j.1467-9868.2006.00553.x
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Weights:
    """Log-weights of a population of chains, accumulated from rung to rung.

    Attributes:
        log: log-weights, shape ``(chains,)``, in nats; zero at the start and after resampling, minus infinity for
            chains whose energy was not finite.
    """

    def __init__(self, chains: int) -> None:
        self.log = np.zeros(chains)

    def move(self, increments: np.ndarray) -> dict[str, Any]:
        """Add the log-weight increments of a rung, shape ``(chains,)``, to the log-weights.

        Returns:
            The statistics that a trace records: ``log_weight``, the increments; ``log_normaliser``, the estimated
            increment of the log-normaliser; ``ess``, the effective sample size of the new weights, in chains.
        """
        log_normaliser = log_normaliser_increment(self.log, increments)
        with np.errstate(invalid="ignore"):  # -inf + inf for a chain whose energy at the previous level was infinite
            self.log = nonfinite_to_minus_inf(self.log + increments)
        return {
            "log_normaliser": log_normaliser,
            "log_weight": increments,
            "ess": effective_sample_size(self.log),
        }

    def resample(self, threshold: float | None, *, last: bool, rng: np.random.Generator) -> np.ndarray | None:
        """Resample if needed: return ancestors, shape ``(chains,)``, and reset the log-weights to zero.

        Chains are resampled if the effective sample size is below ``threshold`` times their number, and always at the
        ``last`` rung; never if ``threshold`` is None or all weights are zero. Returns None if they are not resampled.
        """
        if threshold is None:
            return None
        ess = effective_sample_size(self.log)
        if ess == 0 or not (last or ess < threshold * len(self.log)):
            return None
        ancestors = systematic_resample(self.log, rng)
        self.log = np.zeros(len(self.log))
        return ancestors


def normalise(log_weights: np.ndarray) -> np.ndarray:
    """Return weights that sum to one, shape ``(chains,)``; a log-weight of NaN or infinity gives the weight zero.

    If all weights are zero, equal weights are returned.
    """
    log_weights = nonfinite_to_minus_inf(log_weights)
    largest = log_weights.max()
    if largest == -np.inf:
        return np.full(len(log_weights), 1 / len(log_weights))
    with np.errstate(under="ignore"):
        weights = np.exp(log_weights - largest)
        return weights / weights.sum()


def nonfinite_to_minus_inf(log_weights: np.ndarray) -> np.ndarray:
    """Return log-weights with NaN and plus infinity, which mark failed energies, replaced by minus infinity."""
    return np.where(np.isfinite(log_weights), log_weights, -np.inf)


def evened(log_weights: np.ndarray, resampled: np.ndarray) -> np.ndarray:
    """Return the log-weights of a population after some of its islands were resampled, up to a common constant.

    Resampling leaves an island the total weight that it had, in equal parts.

    Args:
        log_weights: log-weights before, shape ``(chains,)``, in nats; an island is a block of neighbouring chains.
        resampled: whether each island was resampled, bool, shape ``(islands,)``.
    """
    blocks = log_weights.reshape(len(resampled), -1)
    with np.errstate(under="ignore"):
        means = np.logaddexp.reduce(blocks, axis=1, keepdims=True) - np.log(blocks.shape[1])
    if means.max() == -np.inf:
        return log_weights
    return (np.where(resampled[:, None], means, blocks) - means.max()).ravel()


def effective_sample_size(log_weights: np.ndarray) -> float:
    """Return ``1 / sum_i w_i^2`` of the normalised weights, in chains; 0 if all weights are zero.

    >>> effective_sample_size(np.log([0.25, 0.25, 0.25, 0.25])), effective_sample_size(np.array([0.0, -np.inf]))
    (4.0, 1.0)
    """
    if not np.any(np.isfinite(log_weights)):
        return 0.0
    return float(1 / np.sum(normalise(log_weights) ** 2))


def log_normaliser_increment(log_weights: np.ndarray, increments: np.ndarray) -> float:
    """Return ``log sum_i w_i exp(increment_i)``, an estimate of the log-ratio of two normalisers, in nats.

    ``w_i`` are the normalised weights of ``log_weights (chains,)``; ``increments`` have the same shape.
    """
    shares = normalise(log_weights)
    before = np.log(shares, where=shares > 0, out=np.full(len(increments), -np.inf))
    with np.errstate(under="ignore"):
        return float(np.logaddexp.reduce(nonfinite_to_minus_inf(before + nonfinite_to_minus_inf(increments))))


def systematic_resample(log_weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the ancestor of each chain, an index, shape ``(chains,)``, by systematic resampling.

    One uniform number is drawn for all chains.

    Source: Comparison of Resampling Schemes for Particle Filtering (Douc and Cappe, 2005),
    https://arxiv.org/abs/cs/0507025
    """
    chains = len(log_weights)
    edges = np.cumsum(normalise(log_weights))
    ancestors = np.searchsorted(edges / edges[-1], (rng.random() + np.arange(chains)) / chains, side="right")
    return np.minimum(ancestors, chains - 1)
