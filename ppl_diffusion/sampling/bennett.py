"""The ratio of two normalisers from works in both directions, by Bennett's acceptance ratio.

Source: Efficient Estimation of Free Energy Differences from Monte Carlo Data (Bennett, 1976),
https://doi.org/10.1016/0021-9991(76)90078-4
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit


def bennett(down: np.ndarray, up: np.ndarray) -> tuple[float, float]:
    """Return the log-ratio of two normalisers by Bennett's acceptance ratio, and its standard error over chains.

    Args:
        down: works ``U_s(x_s) - U_t(x_t') + ...``, whose exponential has the ratio ``Z_t / Z_s`` as mean over level s;
            shape ``(rounds, chains)``.
        up: the same from level t to s, whose exponential has the mean ``Z_s / Z_t``; of the same shape.

    Returns:
        NaN without any finite work. The error is that of a jackknife over chains; NaN for a single one.
    """
    if not (np.isfinite(down).any() and np.isfinite(up).any()):
        return float("nan"), float("nan")
    whole = _bennett(down.ravel(), up.ravel())
    chains = down.shape[1]
    if chains < 2:
        return whole, float("nan")
    blocks = np.array_split(np.arange(chains), min(chains, 50))
    left = [_bennett(np.delete(down, block, axis=1).ravel(), np.delete(up, block, axis=1).ravel()) for block in blocks]
    count = len(blocks)
    return whole, float(np.sqrt((count - 1) * np.var(left)))


def _bennett(down: np.ndarray, up: np.ndarray) -> float:
    down, up = (np.where(np.isfinite(work), work, -np.inf) for work in (down, up))

    def excess(log_ratio: float) -> float:
        return float(np.mean(expit(down - log_ratio)) - np.mean(expit(up + log_ratio)))

    finite = np.concatenate([down[np.isfinite(down)], -up[np.isfinite(up)]])
    low, high = float(finite.min()) - 1, float(finite.max()) + 1
    return float(brentq(excess, low, high)) if excess(low) > 0 > excess(high) else float("nan")
