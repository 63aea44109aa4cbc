"""Mixtures of noised boxes, exact at every level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..potentials.analytic import UniformBox
from ..potentials.target import Target
from .exact import Stratum, simulated
from .reference import Expectation, Reference


@dataclass(frozen=True)
class BoxLaw:
    """A mixture of uniform densities on boxes, noised.

    Args:
        boxes: the components, all of one schedule.
        weights: their weights, which sum to one.
    """

    boxes: Sequence[UniformBox]
    weights: Sequence[float]

    def sample(self, count: int, *, level: int, seed: int) -> np.ndarray:
        """Return exact independent draws, shape ``(count, D)``."""
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(count, self.weights)
        parts = [_Noised(box, level)(n, rng) for box, n in zip(self.boxes, counts, strict=True)]
        return rng.permutation(np.concatenate(parts))

    def reference(self, potential: Target, level: int) -> Reference:
        """Return moments of ``x`` in closed form, and of ``log p`` from exact draws."""
        moments = np.array([_noised_moments(box, level) for box in self.boxes])
        first, second, fourth = np.tensordot(np.array(self.weights), moments, 1)
        strata = [Stratum(w, _Noised(box, level)) for box, w in zip(self.boxes, self.weights, strict=True)]
        alpha = potential.schedule.alpha(level)
        centres = np.array([alpha * (box.low + box.high) / 2 for box in self.boxes])
        found = simulated(potential, level, strata, locations=centres if len(centres) > 1 else None)
        variances = moments[:, 1] - moments[:, 0] ** 2
        condition = float((variances.max(1) / variances.min(1)).max())
        x, x_squared = Expectation.of_moments(first, second), Expectation.of_moments(second, fourth)
        return Reference(x, x_squared, *found, condition_number=condition)


@dataclass(frozen=True)
class _Noised:
    """Draws of a box at a level, ``(count, D)``."""

    box: UniformBox
    level: int

    def __call__(self, count: int, rng: np.random.Generator) -> np.ndarray:
        clean = rng.uniform(self.box.low, self.box.high, size=(count, len(self.box.low)))
        alpha, sigma = self.box.schedule.alpha(self.level), self.box.schedule.sigma(self.level)
        return alpha * clean + sigma * rng.standard_normal(clean.shape)


def _noised_moments(box: UniformBox, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``E x``, ``E x^2`` and ``E x^4`` of every coordinate, each ``(D,)``, of ``x = alpha u + sigma z``."""
    alpha, sigma = box.schedule.alpha(level), box.schedule.sigma(level)
    u = {k: (box.high ** (k + 1) - box.low ** (k + 1)) / ((k + 1) * (box.high - box.low)) for k in (1, 2, 4)}
    second = alpha**2 * u[2] + sigma**2
    return alpha * u[1], second, alpha**4 * u[4] + 6 * alpha**2 * sigma**2 * u[2] + 3 * sigma**4
