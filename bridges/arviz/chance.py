"""What chance and autocorrelation explain of the differences between chains, and between early and late draws.

Stationary chains are taken as autoregressive processes of order one. Of such a process of ``n`` draws, with variance 1
and correlation ``r`` of successive draws, the mean has the variance

    v = [(1 + r) / (1 - r) - 2 r (1 - r^n) / (n (1 - r)^2)] / n

and the variance of its draws about their mean has the expectation ``(1 - v) n / (n - 1)``. The correlation is estimated
within chains, so that disagreement of chains does not hide itself.

Source of the correction of the correlation: Note on Bias in the Estimation of Autocorrelation (Kendall, 1954),
https://doi.org/10.1093/biomet/41.3-4.403
"""

from __future__ import annotations

import numpy as np
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from ppl_diffusion.sampling.ancestry import mean_error

from .summary import normal_ranks

MAX_R_HAT_LIMIT = 1.3
"""R-hat above which chains disagree, however few independent draws each of them has."""

FAR_ERRORS, FAR_SPREADS = 6.0, 1.0
"""Distance of a chain that stays apart: in standard errors of its mean, and in standard deviations of all draws."""

NOTABLE_TREND = 0.1
"""Change from early to late draws, in standard deviations, below which it does not matter."""


def r_hat_limit(draws: np.ndarray, tried: int) -> float:
    """Return the R-hat that chance and autocorrelation explain in ``draws (chains, draws)``: above it chains disagree.

    The squared split R-hat of half-chains of n draws is ``(n - 1) / n`` plus the ratio of the variance of their means
    to the mean of their variances, which follows an F distribution about that of the expectations. The limit is
    exceeded once in a hundred times by the largest of ``tried`` scalars.
    """
    n, chains = draws.shape[1] // 2, len(draws)
    halves = draws[:, : 2 * n].reshape(2 * chains, n)
    explained = 1.05
    for values in (halves, np.abs(halves - np.median(halves))):  # R-hat is the larger one of the two
        v = variance_of_means(values)
        quantile = f_distribution.ppf(1 - 0.01 / tried, 2 * chains - 1, 2 * chains * (1 / v - 1))
        explained = max(explained, float(np.sqrt((n - 1) / n * (1 + v / (1 - v) * quantile))))
    return min(explained, MAX_R_HAT_LIMIT)


def variance_of_means(draws: np.ndarray) -> float:
    """Return ``v``, relative to the variance of the process, for ``draws (chains, n)``."""
    n = draws.shape[1]
    about = draws - draws.mean(1, keepdims=True)
    correlation = np.sum(about[:, 1:] * about[:, :-1]) / np.sum(about**2)
    r = float(np.clip((correlation + 1 / n) / (1 - 3 / n), -0.9, 0.99)) if np.isfinite(correlation) else 0.0
    return ((1 + r) / (1 - r) - 2 * r * (1 - r**n) / (n * (1 - r) ** 2)) / n


def chains_apart(draws: np.ndarray) -> int:
    """Count the chains of ``draws (chains, draws)`` that stay away from the others, as one in a mode of its own does.

    R-hat is an average over chains, to which a few of many count little. Compared are means of normalised ranks.
    """
    ranks = normal_ranks(draws)
    v, means = variance_of_means(ranks), ranks.mean(1)
    error = np.sqrt(v / (1 - v) * ranks.var(1).mean())
    return int(np.sum(np.abs(means - np.median(means)) > max(FAR_SPREADS, FAR_ERRORS * error)))


def trend(draws: np.ndarray, family: np.ndarray) -> float:
    """Return the probability that chance makes ``draws (chains, draws)`` change from their first to their last third
    as they do: of means of normalised ranks, or of their distances from the median, over families of chains.

    It is 1 for changes that do not matter, and if there are fewer than 3 families.
    """
    third, families = draws.shape[1] // 3, len(np.unique(family))
    if families < 3 or len(family) != len(draws):
        return 1.0
    smallest = 0.5
    for values in (normal_ranks(draws), normal_ranks(np.abs(draws - np.median(draws)))):
        change = values[:, -third:].mean(1) - values[:, :third].mean(1)
        if abs(change.mean()) > NOTABLE_TREND:
            ratio = abs(change.mean()) / float(mean_error(change, family))
            smallest = min(smallest, float(2 * t_distribution.sf(ratio, families - 1)))
    return 2 * smallest
