"""Whether posteriors hold the truth as often as they say: ranks of the truth among draws, over simulated data.

Sources: Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018),
https://arxiv.org/abs/1804.06788; of ranks by density: A Statistical Benchmark for Diffusion Posterior Sampling
Algorithms (Zach, Haouchat and Unser, 2025), https://arxiv.org/abs/2509.12821
"""

from __future__ import annotations

import numpy as np
from scipy import stats


def density_ranks(truth: np.ndarray, drawn: np.ndarray, shares: np.ndarray | None = None) -> np.ndarray:
    """Return how many draws are likelier than the truth, ``(simulations,)``, from 0 to the number of draws.

    Args:
        truth: energy of the truth under its posterior, ``(simulations,)``.
        drawn: energies of draws under the same density, ``(simulations, draws)``.
        shares: weights of draws, which sum to 1 in each row; equal by default. Ranks are then no whole numbers.
    """
    shares = np.full(drawn.shape, 1 / drawn.shape[1]) if shares is None else shares
    return np.round(drawn.shape[1] * (shares * (drawn < truth[:, None])).sum(1), 6)


def covered(ranks: np.ndarray, draws: int, *, region: float = 0.9) -> dict[str, float]:
    """Return the share of simulations in which a region of highest density holds the truth, with its binomial error.

    Of exact draws the rank is any of 0, ..., ``draws`` with equal probability: the share is ``region`` if
    ``region * (draws + 1)`` is a whole number.
    """
    inside = int((ranks < region * (draws + 1) - 1e-6).sum())
    count = len(ranks)
    share = (inside + 1) / (count + 2)  # so that the error of 0 or 1 is not 0
    return {"mean": inside / count, "se": float(np.sqrt(share * (1 - share) / count))}


def uniformity(ranks: np.ndarray, draws: int, *, bins: int = 8) -> float:
    """Return the p-value of the hypothesis that ranks ``(simulations,)`` among draws are uniform, by chi-square."""
    return float(stats.chisquare(np.histogram(ranks, bins=bins, range=(0, draws + 1))[0]).pvalue)
