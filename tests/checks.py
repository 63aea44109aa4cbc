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
from ppl_diffusion.targets.gaussians import LogQuadratics

__all__ = ["ACCEPTANCE_WINDOW", "ALPHA", "Invariance", "LogQuadratics", "invariance", "moment_errors"]

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


def moment_errors(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Errors of all means and covariances, in standard errors, for independent draws ``x (draws, D)``."""
    centred = x - mean
    products = np.einsum("ni,nj->nij", centred, centred)
    upper = np.triu_indices(x.shape[1])
    features = np.concatenate([centred, (products - covariance)[:, upper[0], upper[1]]], axis=1)
    return features.mean(0) / (features.std(0, ddof=1) / np.sqrt(len(x)))
