"""A funnel at every level: the scale of most coordinates changes by orders of magnitude with the first one.

    v ~ N(0, alpha^2 spread^2 + sigma^2)        x_i | v ~ N(0, alpha^2 exp(v) + sigma^2)

It is a product of two densities, not the noised funnel: at level 0 the narrow end is as narrow as the noise, and at the
noisiest level all that is left is noise. Exact draws are those of ``v``, then of the others.

Source: Slice Sampling (Neal, 2003), section 8, https://doi.org/10.1214/aos/1056562461
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..arrays import Array
from ..potentials.target import Target
from ..schedule import NoiseSchedule
from .exact import Stratum, simulated
from .reference import Expectation, Reference


@dataclass(frozen=True)
class Funnel:
    """The energy of a funnel, with its normaliser, and how it is known exactly.

    Args:
        dimensions: number of coordinates, ``v`` included.
        spread: standard deviation of ``v`` without noise.
        schedule: the noise levels.
    """

    dimensions: int
    spread: float
    schedule: NoiseSchedule

    def __call__(self, x: Array, level: Any) -> Array:
        alpha, sigma = self.schedule.alpha(level), self.schedule.sigma(level)
        x = x.double()
        v, rest = x[..., 0], x[..., 1:]
        wide = alpha**2 * self.spread**2 + sigma**2
        narrow = alpha**2 * torch.exp(v) + sigma**2
        squares = v**2 / wide + (rest**2).sum(-1) / narrow
        logs = np.log(wide) + (self.dimensions - 1) * torch.log(narrow)
        return 0.5 * (squares + logs + self.dimensions * np.log(2 * np.pi))

    def sample(self, count: int, *, level: int, seed: int) -> np.ndarray:
        """Return exact independent draws, shape ``(count, dimensions)``."""
        return _Draws(self, level)(count, np.random.default_rng(seed))

    def reference(self, potential: Target, level: int) -> Reference:
        """Return moments of ``x`` in closed form, and of ``log p`` from exact draws.

        The condition number compares the variances of the other coordinates where ``v`` is two standard deviations off.
        """
        alpha, sigma = self.schedule.alpha(level), self.schedule.sigma(level)
        wide = alpha**2 * self.spread**2 + sigma**2
        once, twice = np.exp(wide / 2), np.exp(2 * wide)  # E exp(v), E exp(2 v)
        second, fourth = np.empty((2, self.dimensions))
        second[0], fourth[0] = wide, 3 * wide**2
        second[1:] = alpha**2 * once + sigma**2
        fourth[1:] = 3 * (alpha**4 * twice + 2 * alpha**2 * sigma**2 * once + sigma**4)
        x = Expectation.of_moments(np.zeros(self.dimensions), second)
        x_squared = Expectation.of_moments(second, fourth)
        found = simulated(potential, level, [Stratum(1.0, _Draws(self, level))])
        low, high = (alpha**2 * np.exp(side * 2 * np.sqrt(wide)) + sigma**2 for side in (-1, 1))
        return Reference(x, x_squared, *found, condition_number=float(max(high, wide) / low))


@dataclass(frozen=True)
class _Draws:
    """Draws of a funnel at a level, ``(count, dimensions)``."""

    funnel: Funnel
    level: int

    def __call__(self, count: int, rng: np.random.Generator) -> np.ndarray:
        schedule = self.funnel.schedule
        alpha, sigma = schedule.alpha(self.level), schedule.sigma(self.level)
        x = rng.standard_normal((count, self.funnel.dimensions))
        x[:, 0] *= np.sqrt(alpha**2 * self.funnel.spread**2 + sigma**2)
        x[:, 1:] *= np.sqrt(alpha**2 * np.exp(x[:, :1]) + sigma**2)
        return x
