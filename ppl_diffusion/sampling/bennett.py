"""The ratio of two normalisers from works in both directions, by Bennett's acceptance ratio.

Source: Efficient Estimation of Free Energy Differences from Monte Carlo Data (Bennett, 1976),
https://doi.org/10.1016/0021-9991(76)90078-4
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

BLOCKS = 50
"""Most blocks of chains of the jackknife."""


def bennett(works: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, float]:
    """Return the log-ratios of the normalisers of neighbouring levels, and the standard error of their sum.

    Args:
        works: of each pair of levels the works from the noisier to the cleaner one, whose exponential has the ratio
            ``Z_t / Z_s`` as mean, and those back; each of shape ``(rounds, chains)``.

    Returns:
        Log-ratios ``(pairs,)``, NaN for a pair without finite works in both directions. The error is that of a
        jackknife over chains, which leaves a chain out of all pairs at once, since neighbouring pairs share a level;
        NaN for a single chain.
    """
    whole = np.array([_bennett(down.ravel(), up.ravel()) for down, up in works])
    chains = works[0][0].shape[1] if works else 0
    if chains < 2:
        return whole, float("nan")
    blocks = np.array_split(np.arange(chains), min(chains, BLOCKS))
    sums = [
        sum(_bennett(*(np.delete(work, block, axis=1).ravel() for work in pair)) for pair in works) for block in blocks
    ]
    return whole, float(np.sqrt((len(blocks) - 1) * np.var(sums)))


def _bennett(down: np.ndarray, up: np.ndarray) -> float:
    if not (np.isfinite(down).any() and np.isfinite(up).any()):
        return float("nan")
    down, up = (np.where(np.isfinite(work), work, -np.inf) for work in (down, up))

    def excess(log_ratio: float) -> float:
        return float(np.mean(expit(down - log_ratio)) - np.mean(expit(up + log_ratio)))

    finite = np.concatenate([down[np.isfinite(down)], -up[np.isfinite(up)]])
    margin = 2 + float(np.log(down.size))  # more than the share of works that are not finite can move the ratio by
    low, high = float(finite.min()) - margin, float(finite.max()) + margin
    return float(brentq(excess, low, high)) if excess(low) > 0 > excess(high) else float("nan")
