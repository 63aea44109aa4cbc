"""What relatives among resampled chains mean for the error of an estimate.

Chains that continue the same starting chain are a family. Families are nearly independent of one another, chains of a
family are not. The error of a mean is therefore estimated from sums over families, and that of a normaliser from what
each family gained by its weights.

Source: Variance Estimation in the Particle Filter (Lee and Whiteley, 2018), https://arxiv.org/abs/1509.00394.
Their estimators are for multinomial resampling. Without resampling ours are the same; see
:func:`log_normaliser_error` for what differs with systematic resampling.
"""

from __future__ import annotations

import numpy as np

from .importance import evened, nonfinite_to_minus_inf, normalise


def families(ancestors: np.ndarray) -> np.ndarray:
    """Return the family of each chain after each rung: the index of the starting chain that it continues.

    Args:
        ancestors: the chain of the previous rung that each chain continues, shape ``(rungs, chains)``.

    Returns:
        Indices, shape ``(rungs, chains)``.
    """
    found, origin = np.empty_like(ancestors), np.arange(ancestors.shape[1])
    for rung, row in enumerate(ancestors):
        found[rung] = origin = origin[row]
    return found


def log_normaliser_error(
    increments: np.ndarray, ancestors: np.ndarray, resampled: np.ndarray, *, islands: int = 1
) -> float:
    """Return the standard error of the sum of the log-normaliser increments of a walk, in nats.

    Let ``S_e`` be the share of the weights that family ``e`` holds, ``1 / n`` at the start for each of ``n`` chains.
    Weighing and resampling both change it. The estimate of the normaliser changes by weighing only, so with ``Y_e``
    the sum over rungs of the changes of ``S_e`` by weighing,

        variance of the relative error = n / (n - 1) * sum_e Y_e^2

    Without resampling it is the estimate of Lee and Whiteley, the sample variance of the weights over their squared
    mean, divided by ``n``. With multinomial resampling both have the same expectation up to terms of order
    ``1 / n^2``: their factor ``(n / (n - 1))^r``, r the number of resamplings, takes away the variance that these
    add to the shares. Systematic resampling adds less, and what it added is known, so it is left out itself.

    It holds for populations that are not too small: of 300 populations resampled on all of 15 rungs, the root mean
    square of the error was within 2 % of the standard deviation for 48 to 192 chains, and 8 % too small for 24.

    Of islands, which are resampled apart, the shares are those of the weights of all chains together. They change with
    the total weight of an island too, so that islands with few families left are compared with one another.

    Args:
        increments: log-weight increments, shape ``(rungs, chains)``, in nats, before resampling.
        ancestors: the chain that each chain continues, shape ``(rungs, chains)``.
        resampled: whether chains were resampled after the increment of a rung, bool, shape ``(rungs,)``; of islands
            for each chain, shape ``(rungs, chains)``.
        islands: number of islands, blocks of neighbouring chains of equal size.

    Returns:
        The error: NaN for a single chain, or if no chain has a weight left; infinite if a single family has all of it.
    """
    chains = increments.shape[1]
    family, log_weights, gained = np.arange(chains), np.zeros(chains), np.zeros(chains)
    held = np.full(chains, 1 / chains)
    of_islands = resampled.reshape(len(resampled), islands, -1)[..., 0]
    for increment, row, again in zip(increments, ancestors, of_islands, strict=True):
        with np.errstate(invalid="ignore"):
            log_weights = nonfinite_to_minus_inf(log_weights + increment)
        if chains < 2 or not np.any(np.isfinite(log_weights)):
            return float("nan")
        share = np.bincount(family, weights=normalise(log_weights), minlength=chains)
        gained += share - held
        held = share
        if again.any():
            family, log_weights = family[row], evened(log_weights, again)
            weights = np.exp(log_weights - log_weights.max())
            held = np.bincount(family, weights=weights, minlength=chains) / weights.sum()
    if np.count_nonzero(share) < 2:
        return float("inf")
    return float(np.sqrt(chains / (chains - 1) * np.sum(gained**2)))


def mean_error(values: np.ndarray, family: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean over chains, from the sums over families.

    Args:
        values: a value of each chain, such as the mean of its draws, shape ``(chains, ...)``.
        family: the family of each chain, the last row of :func:`families`, shape ``(chains,)``.

    Returns:
        Errors, shape ``(...)``: NaN for a single chain, infinite if a single family is left.
    """
    chains = len(values)
    if chains < 2:
        return np.full(values.shape[1:], np.nan)
    if len(np.unique(family)) < 2:
        return np.full(values.shape[1:], np.inf)
    sums = np.zeros(values.shape)
    np.add.at(sums, family, values - values.mean(0))
    return np.sqrt(chains / (chains - 1) * np.sum(sums**2, axis=0)) / chains
