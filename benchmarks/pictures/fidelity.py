"""How far drawn pictures are from real ones, in the features of a network that judges them.

Distances depend on the number of pictures and on the network: they compare rows of one table, and nothing else.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

NEIGHBOUR = 3
"""The radius about a point of a set is its distance to this nearest neighbour in the set."""


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the squared Frechet distance of two Gaussians with the moments of the features ``(n, size)``.

    Source: The Frechet Distance between Multivariate Normal Distributions (Dowson and Landau, 1982),
    https://doi.org/10.1016/0047-259X(82)90077-X
    """
    first, second = (np.cov(x.astype(np.float64), rowvar=False) for x in (one, other))
    apart = np.sum((one.astype(np.float64).mean(0) - other.astype(np.float64).mean(0)) ** 2)
    roots = np.sqrt(np.clip(np.linalg.eigvals(first @ second).real, 0, None))
    return float(apart + np.trace(first) + np.trace(second) - 2 * roots.sum())


def precision(drawn: np.ndarray, real: np.ndarray) -> float:
    """Return the share of ``drawn (n, size)`` inside the set of ``real (m, size)``, within the radius about one of it.

    Recall is the precision of real pictures in the set of drawn ones.

    Source: Improved Precision and Recall Metric for Assessing Generative Models (Kynkaanniemi et al., 2019),
    https://arxiv.org/abs/1904.06991
    """
    radii = np.sort(cdist(real, real), axis=1)[:, NEIGHBOUR]
    return float(np.mean((cdist(drawn, real) <= radii).any(1)))


def precision_and_recall(drawn: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """Return precision and recall of ``drawn (n, size)``, means over disjoint sets of ``n`` of the real ones."""
    n = len(drawn)
    sets = [real[i : i + n] for i in range(0, len(real) - n + 1, n)]
    if not sets or n <= NEIGHBOUR:
        raise ValueError(f"{n} pictures and {len(real)} real ones: give more than {NEIGHBOUR}, and as many real ones")
    return float(np.mean([precision(drawn, x) for x in sets])), float(np.mean([precision(x, drawn) for x in sets]))
