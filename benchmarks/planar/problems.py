"""The paper's planar compositions as problems with known answers, and the figures of merit of samples.

A problem is a composition of planar potentials, exact or learned. Its truth is computed by quadrature of the composed
density at level 0 on a grid, from which reference samples are drawn too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax
import numpy as np

from ppl_diffusion import Potential
from ppl_diffusion.potentials.planar import BOXES, exact

EXTENT, CELLS = 1.6, 480
RING = exact("ring", backend="jax").means  # type: ignore[union-attr]
BANDWIDTH = 0.2
"""Standard deviation of the Gaussian kernel of the MMD, in units of the plane."""


@dataclass(frozen=True)
class Problem:
    """A composition of planar densities, and what its samples are judged by.

    Attributes:
        name: the composition as an expression.
        build: makes the potential, given a function that returns a potential by name.
        modes: centres of the modes, shape ``(k, 2)``; samples are assigned to the nearest.
        outside: maps points ``(n, 2)`` to booleans ``(n,)``: farther than four standard deviations from the support.
        log_density: maps points to the clean log-density ``(n,)`` up to a constant, with finite floors.
        balance: maps points to booleans ``(n,)``, whose mean is the share of one side of the modes.
    """

    name: str
    build: Callable[[Callable[[str], Potential]], Potential]
    modes: np.ndarray
    outside: Callable[[np.ndarray], np.ndarray]
    log_density: Callable[[np.ndarray], np.ndarray]
    balance: Callable[[np.ndarray], np.ndarray]


def _distance(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x[:, None] - centres[None], axis=2).min(1)


def _ring(x: np.ndarray) -> np.ndarray:
    squares = ((x[:, None] - RING[None]) ** 2).sum(2)
    return np.logaddexp.reduce(-squares / (2 * 0.03**2), axis=1)


def _soft_box(x: np.ndarray, name: str) -> np.ndarray:
    """Return the log-density of 99 % uniform on the box, 1 % on the square of half-width 1.1, and 1e-12 beyond."""
    low, high = np.array(BOXES[name])
    inside = np.all((x >= low) & (x <= high), axis=1) / np.prod(high - low)
    around = np.all(np.abs(x) <= 1.1, axis=1) / 2.2**2
    return np.log(0.99 * inside + 0.01 * around + 1e-12)


def _beyond(x: np.ndarray, names: Iterable[str]) -> np.ndarray:
    excess = [np.maximum(np.array(BOXES[n][0]) - x, x - np.array(BOXES[n][1])).clip(0) for n in names]
    return np.min([np.linalg.norm(e, axis=1) for e in excess], axis=0)


PROBLEMS = {
    "product": Problem(
        "ring * bar",
        lambda p: p("ring") * p("bar"),
        RING[[2, 6]],
        lambda x: _distance(x, RING[[2, 6]]) > 0.12,
        lambda x: _ring(x) + _soft_box(x, "bar"),
        lambda x: x[:, 1] > 0,
    ),
    "mixture": Problem(
        "0.5 * left + 0.5 * right",
        lambda p: 0.5 * p("left") + 0.5 * p("right"),
        np.array([[-0.2, 0.0], [0.2, 0.0]]),
        lambda x: _beyond(x, ("left", "right")) > 0.1,
        lambda x: np.logaddexp(_soft_box(x, "left"), _soft_box(x, "right")),
        lambda x: x[:, 0] < 0,
    ),
    "quotient": Problem(
        "ring / wide**0.5",
        lambda p: p("ring") / p("wide") ** 0.5,
        RING,
        lambda x: _distance(x, RING) > 0.12,
        lambda x: _ring(x) + ((x - np.array([0.3, 0.2])) ** 2).sum(1) / (4 * 0.5**2),
        lambda x: x[:, 0] > 0,
    ),
}


@dataclass(frozen=True)
class Truth:
    """A composed density at level 0 on a grid: points ``(n, 2)``, masses of their cells and energies ``(n,)``."""

    points: np.ndarray
    masses: np.ndarray
    energies: np.ndarray

    @classmethod
    def of(cls, potential: Potential) -> Truth:
        """Evaluate the density at the centres of a grid of cells, and normalise it."""
        axis = (np.arange(CELLS) + 0.5) / CELLS * 2 * EXTENT - EXTENT
        points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
        with jax.enable_x64(True):
            blocks = [np.asarray(potential.energy(block, level=0)) for block in np.array_split(points, 40)]
        energy = np.concatenate(blocks)
        masses = np.exp(energy.min() - energy)
        return cls(points, masses / masses.sum(), energy)

    def mean(self, values: np.ndarray) -> float:
        """Return the expectation of a function from its values ``(n,)`` at the points."""
        return float(self.masses @ values)

    def sample(self, draws: int, *, seed: int) -> np.ndarray:
        """Return draws ``(draws, 2)``, uniform inside each cell."""
        rng = np.random.default_rng(seed)
        cells = rng.choice(len(self.points), size=draws, p=self.masses)
        return self.points[cells] + rng.uniform(-EXTENT / CELLS, EXTENT / CELLS, size=(draws, 2))


def exact_row(problem: Problem, truth: Truth, constant: float) -> dict[str, dict[str, float]]:
    """Return the figures of merit of a perfect sampler of ``truth``, as expectations rather than from draws."""
    nearest = np.linalg.norm(truth.points[:, None] - problem.modes[None], axis=2).argmin(1)
    variances = []
    for k in range(len(problem.modes)):
        share = truth.masses * (~problem.outside(truth.points) & (nearest == k))
        share = share / share.sum()
        variances.append(np.mean(share @ truth.points**2 - (share @ truth.points) ** 2))
    values = {
        "out": truth.mean(problem.outside(truth.points)),
        "LL": truth.mean(problem.log_density(truth.points) - constant),
        "mode std": float(np.sqrt(np.mean(variances))),
        "balance": truth.mean(problem.balance(truth.points)),
    }
    return {name: {"mean": value} for name, value in values.items()}


def log_constant(problem: Problem) -> float:
    """Return the log-normaliser of ``problem.log_density``, by quadrature on a finer grid."""
    axis = (np.arange(1600) + 0.5) / 1600 * 2 * EXTENT - EXTENT
    total = [np.logaddexp.reduce(problem.log_density(np.stack(np.broadcast_arrays(x, axis), axis=1))) for x in axis]
    return float(np.logaddexp.reduce(total) + 2 * np.log(2 * EXTENT / 1600))


def judge(problem: Problem, x: np.ndarray, reference: np.ndarray, constant: float) -> dict[str, float]:
    """Return the figures of merit of samples ``x (n, 2)``; ``reference (m, 2)`` are draws of the truth."""
    nearest = np.linalg.norm(x[:, None] - problem.modes[None], axis=2).argmin(1)
    inside = ~problem.outside(x)
    within = [x[inside & (nearest == k)] for k in range(len(problem.modes))]
    variances = [float(np.mean(part.var(0))) for part in within if len(part) > 10]
    return {
        "out": float(np.mean(~inside)),
        "LL": float(np.mean(problem.log_density(x) - constant)),
        "MMD": mmd(x, reference),
        "mode std": float(np.sqrt(np.mean(variances))) if variances else float("nan"),
        "balance": float(np.mean(problem.balance(x))),
    }


def mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy of ``x (n, 2)`` and ``y (m, 2)``.

    The kernel is Gaussian. The estimate may be negative where the distributions are close.
    """

    def mean_kernel(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
        kernel = np.exp(-squares.clip(0) / (2 * BANDWIDTH**2))
        return float((kernel.sum() - len(a)) / (len(a) * (len(a) - 1)) if same else kernel.mean())

    return mean_kernel(x, x, True) + mean_kernel(y, y, True) - 2 * mean_kernel(x, y, False)
