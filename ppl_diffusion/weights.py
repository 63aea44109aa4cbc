"""Importance weights of a population of chains: effective sample size, normaliser, resampling.

Moving the target from level s to level t leaves a chain at ``x`` with the log-weight increment
``U_s(x) - U_t(x)``. The weights correct what a finite number of MCMC steps cannot: the share of the
population in each mode. Unknown constants of a level shift all increments alike and cancel.

Source: Annealed Importance Sampling (Neal, 2001), https://arxiv.org/abs/physics/9803008;
Sequential Monte Carlo Samplers (Del Moral, Doucet and Jasra, 2006), https://doi.org/10.1111/j.1467-9868.2006.00553.x
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Weights:
    """Log-weights of the chains of a walk, from rung to rung.

    Attributes:
        log: shape ``(chains,)``; zero at the start and after resampling, minus infinity where an energy has failed.
    """

    def __init__(self, chains: int) -> None:
        self.log = np.zeros(chains)

    def move(self, increments: np.ndarray) -> dict[str, Any]:
        """Take the change of density of a rung into account, ``(chains,)``.

        Returns:
            What a trace records of it: the increments, the estimate of the normaliser's, and the effective sample size.
        """
        log_normaliser = log_normaliser_increment(self.log, increments)
        with np.errstate(invalid="ignore"):  # a chain without weight may come from where the density was zero
            self.log = alive(self.log + increments)
        return {
            "log_normaliser": log_normaliser,
            "log_weight": increments,
            "ess": effective_sample_size(self.log),
        }

    def resample(self, threshold: float | None, *, last: bool, rng: np.random.Generator) -> np.ndarray | None:
        """Ancestors, if their weights are to be spent: under ``threshold``, a share of the chains, and at the last
        rung in any case. None: the chains go on as they are."""
        if threshold is None:
            return None
        ess = effective_sample_size(self.log)
        if ess == 0 or not (last or ess < threshold * len(self.log)):
            return None
        ancestors = systematic_resample(self.log, rng)
        self.log = np.zeros(len(self.log))
        return ancestors


def normalise(log_weights: np.ndarray) -> np.ndarray:
    """Weights that sum to one, shape ``(chains,)``; a weight that is not a number counts as zero.

    When no chain has any weight all are given the same.
    """
    log_weights = alive(log_weights)
    largest = log_weights.max()
    if largest == -np.inf:
        return np.full(len(log_weights), 1 / len(log_weights))
    weights = np.exp(log_weights - largest)
    return weights / weights.sum()


def alive(log_weights: np.ndarray) -> np.ndarray:
    """Log-weights in which NaN and plus infinity, marks of a failed energy, have become minus infinity."""
    return np.where(np.isfinite(log_weights), log_weights, -np.inf)


def effective_sample_size(log_weights: np.ndarray) -> float:
    """``1 / sum w_i^2`` of the normalised weights, in chains; 0 when no chain has any weight."""
    if not np.any(np.isfinite(log_weights)):
        return 0.0
    return float(1 / np.sum(normalise(log_weights) ** 2))


def log_normaliser_increment(log_weights: np.ndarray, increments: np.ndarray) -> float:
    """``log sum_i w_i exp(increment_i)``: estimate of the log-ratio of two normalisers, in nats."""
    shares = normalise(log_weights)
    before = np.log(shares, where=shares > 0, out=np.full(len(increments), -np.inf))
    return float(np.logaddexp.reduce(alive(before + alive(increments))))


def systematic_resample(log_weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ancestors, shape ``(chains,)``, drawn by systematic resampling: one uniform for all chains.

    Source: Comparison of Resampling Schemes for Particle Filtering (Douc and Cappe, 2005),
    https://arxiv.org/abs/cs/0507025
    """
    chains = len(log_weights)
    edges = np.cumsum(normalise(log_weights))
    ancestors = np.searchsorted(edges / edges[-1], (rng.random() + np.arange(chains)) / chains, side="right")
    return np.minimum(ancestors, chains - 1)
