"""Targets in the plane: expectations by quadrature on a grid, learned energies too.

The midpoint rule on a smooth density that vanishes at the edges of the grid errs by less than any power of the size of
a cell: with cells of a sixth of the narrowest scale, by less than rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..arrays import as_numpy
from ..potentials.target import Target
from .reference import Expectation, Modes, Reference, functions

EXTENT = 12.0
"""Half-width of the square in which the density is looked for."""

NEGLIGIBLE = 50.0
"""Energy above the lowest, in nats, from which a cell is left out of the grid."""

LOOKED = 200
"""Cells along each side of the grid by which that part is found."""

CELLS = 700
"""Cells along each side of the grid on the part of the plane where the density is not negligible."""


class Grid(NamedTuple):
    """A density on a grid: centres of cells ``(n, 2)``, their probabilities and energies ``(n,)``, and their sides."""

    points: np.ndarray
    masses: np.ndarray
    energies: np.ndarray
    sides: np.ndarray

    @classmethod
    def of(cls, potential: Target, level: int, *, cells: int = CELLS) -> Grid:
        """Evaluate a density of points ``(2,)`` where it is not negligible, and normalise it."""
        low, high = _surroundings(potential, level)
        points, sides = _centres(low, high, cells)
        energies = _energies(potential, points, level)
        masses = np.exp(energies.min() - energies)
        return cls(points, masses / masses.sum(), energies, sides)

    def expectation(self, values: np.ndarray) -> Expectation:
        """Return the expectation of a function from its values ``(n, ...)`` at the points."""
        return Expectation.of_moments(self.masses @ values, self.masses @ values**2)

    def sample(self, count: int, *, seed: int) -> np.ndarray:
        """Return draws ``(count, 2)``, uniform inside each cell."""
        rng = np.random.default_rng(seed)
        cells = rng.choice(len(self.points), size=count, p=self.masses)
        return self.points[cells] + (rng.random((count, 2)) - 0.5) * self.sides


def by_quadrature(
    potential: Target, level: int, *, locations: np.ndarray | None = None, cells: int = CELLS, draws: int = 0
) -> Reference:
    """Return what is known of a density of points ``(2,)`` at one level.

    Args:
        locations: of the modes, shape ``(k, 2)``, if it has several.
        cells: along each side of the grid.
        draws: number of draws to keep with the reference.
    """
    grid = Grid.of(potential, level, cells=cells)
    x, x_squared, log_p, log_p_squared = map(grid.expectation, functions(grid.points, -grid.energies).values())
    modes, mode = None, np.zeros(len(grid.points), dtype=int)
    if locations is not None:
        mode = Modes(locations, *[np.full(len(locations), 1 / len(locations))] * 2).nearest(grid.points)
        weights = np.bincount(mode, weights=grid.masses, minlength=len(locations))
        modes = Modes(locations, weights, np.zeros(len(locations)))
    return Reference(
        x,
        x_squared,
        log_p,
        log_p_squared,
        modes,
        f"by quadrature on {cells} x {cells} cells",
        condition_number=max(_condition(grid, mode == k) for k in np.unique(mode)),
        draws=grid.sample(draws, seed=level).astype(np.float32) if draws else None,
    )


@dataclass(frozen=True)
class PlanarLaw:
    """A product of two planar densities, of one of which there are exact draws.

    Args:
        sampler: its ``sample(count, level=, seed=)`` returns exact draws ``(count, 2)`` of the first factor.
        factor: the other factor.
        peak: where its density without noise is largest, in the middle of its support, shape ``(2,)``.
        locations: of the modes without noise, shape ``(k, 2)``.
    """

    sampler: Callable[..., np.ndarray]
    factor: Target
    peak: np.ndarray
    locations: np.ndarray

    def sample(self, count: int, *, level: int, seed: int) -> np.ndarray:
        """Return exact independent draws by rejection, shape ``(count, 2)``."""
        rng, found, kept = np.random.default_rng(seed), [np.empty((0, 2))], 0
        top = self.factor.schedule.alpha(level) * self.peak[None]
        least = np.asarray(self.factor.energy(top, level=level))
        while kept < count:
            x = self.sampler(2 * count, level=level, seed=int(rng.integers(2**31)))
            energies = np.asarray(self.factor.energy(x, level=level))
            found.append(x[rng.random(len(x)) < np.exp(least - energies)])
            kept += len(found[-1])
        return np.concatenate(found)[:count]

    def reference(self, potential: Target, level: int) -> Reference:
        """Return all expectations by quadrature."""
        return by_quadrature(potential, level, locations=potential.schedule.alpha(level) * self.locations)


def _condition(grid: Grid, chosen: np.ndarray) -> float:
    covariance = np.cov(grid.points[chosen].T, aweights=grid.masses[chosen] + 1e-300)
    low, high = np.linalg.eigvalsh(covariance)
    return float(high / low)


def _surroundings(potential: Target, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners ``(2,)`` of the smallest rectangle outside which the density is negligible."""
    points, sides = _centres(np.full(2, -EXTENT), np.full(2, EXTENT), LOOKED)
    energies = _energies(potential, points, level)
    inside = points[energies < energies.min() + NEGLIGIBLE]
    low, high = inside.min(0) - 2 * sides, inside.max(0) + 2 * sides
    if np.any(low < -EXTENT) or np.any(high > EXTENT):
        raise ValueError(f"{potential} at level {level} does not vanish within {EXTENT} of the origin")
    return low, high


def _centres(low: np.ndarray, high: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    sides = (high - low) / cells
    axes = [begin + (np.arange(cells) + 0.5) * side for begin, side in zip(low, sides, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2), sides


def _energies(potential: Target, points: np.ndarray, level: int) -> np.ndarray:
    blocks = np.array_split(points, -(-len(points) // 20_000))
    return np.concatenate([as_numpy(potential.energy(block, level=level)) for block in blocks])
