"""Tails of a density: does its energy grow in every direction, far out?

A Gaussian tail is normalisable if its least curvature is positive, and the direction of least curvature is easily
missed by random rays: in many dimensions it may be a single one. It is looked for with differences of gradients,
``H v = (g(c + R v) - g(c - R v)) / 2R``, ``c`` and ``R`` being the centre of the data and a multiple of their scale:
for all coordinates at once in few dimensions, and by Lanczos steps in many. Along it, and along random rays, the
energy must then grow from one large distance to its double, from ``c`` or from the point where the curvature and the
mean gradient place the centre of the tails. Differences about the lowest of these points find the component of a
mixture that decides there.

Source of the Lanczos process: Numerical Methods for Large Eigenvalue Problems (Saad, 2011),
https://doi.org/10.1137/1.9781611970739
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from ..arrays import as_numpy
from .target import Target

DISTANCE = 12.0
"""Distance from which to its double the energy must grow, in units of the scale of the noised data: far enough for the
tails to be those of Gaussians. Before it, an energy may dip, as a learned one or one with several modes does."""

FARTHER = 64.0
"""Factor of the distances at which tails are probed again if they do not grow: those of a density that is hardly
normalisable are straight before they bend."""

FEW = 256
"""Number of coordinates up to which curvatures are computed along all of them."""

LANCZOS_STEPS = 8
"""Differences of gradients in more coordinates than ``FEW``."""

RAYS = 16
"""Directions that are looked along, both ways, in few coordinates: those of least curvature and random ones, because
other tails than Gaussian ones may fall elsewhere."""

BLOCK = 64
"""Points of a batch in few coordinates. All batches have this size, because JAX compiles anew for every other."""

DESCENTS = 3
"""Steps by which the directions of least energy are refined on the sphere."""

REFINEMENTS = 2
"""Number of times that curvatures are computed anew, about the direction of least energy."""

Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Maps flat points ``(n, size)`` to energies ``(n,)`` and gradients ``(n, size)``."""


class Surroundings(NamedTuple):
    """Where the data of a density are, in the flat coordinates of its points.

    Attributes:
        centre: mean of the noised data, shape ``(size,)``.
        scale: root mean square distance from it, per coordinate.
    """

    centre: np.ndarray
    scale: float


def grows(potential: Target, level: int) -> bool:
    """Whether the energy of ``potential`` grows far out in every direction that was looked along, at one level.

    It evaluates about ``4 size + 800`` points in up to ``FEW`` coordinates, more where it does not grow, and at most
    32 points in more coordinates.
    """
    around, size = surroundings(potential, level), int(np.prod(potential.event_shape))

    def at_once(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with jax.enable_x64(True):
            found = _evaluation(potential)(points.reshape(-1, *potential.event_shape), level)
        energy, gradient = (as_numpy(values) for values in found)
        return energy.astype(np.float64), gradient.reshape(len(points), size).astype(np.float64)

    def evaluate(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if size > FEW:
            return at_once(points)
        padded = np.concatenate([points, np.repeat(points[-1:], -len(points) % BLOCK, axis=0)])
        parts = [at_once(block) for block in np.split(padded, len(padded) // BLOCK)]
        energy, gradient = (np.concatenate(values)[: len(points)] for values in zip(*parts, strict=True))
        return energy, gradient

    near = DISTANCE * around.scale * np.sqrt(size)
    if size > FEW:
        directions = _krylov_directions(evaluate, around.centre, 2 * near, size)
        return _grows_along(evaluate, directions, around.centre, near)
    directions, centre = _curvature_directions(evaluate, around.centre, 2 * near, size)
    directions = _descended(evaluate, directions, around.centre, 2 * near)
    tries = [(around.centre, near), (around.centre, FARTHER * near)]
    if centre is not None:
        tries.append((centre, max(near, float(np.linalg.norm(centre - around.centre)))))
    for _ in range(REFINEMENTS):
        if not any(_grows_along(evaluate, directions, *found) for found in tries):
            return False
        directions = _refined(evaluate, directions, around.centre, 2 * near)
    return any(_grows_along(evaluate, directions, *found) for found in tries)


def _evaluation(potential: Target) -> Callable[[np.ndarray, int], tuple[Any, Any]]:
    """Return energies and gradients as a function of points and level; in JAX compiled once for all levels."""

    def evaluate(x: Any, level: Any) -> tuple[Any, Any]:
        return potential.value_and_grad(x, level=level)

    return potential.memo("tails", lambda: jax.jit(evaluate)) if potential.backend == "jax" else evaluate


def surroundings(potential: Target, level: int) -> Surroundings:
    """Return where the noised data of all leaves of ``potential`` are, from their references."""
    shape, alpha, sigma = potential.event_shape, potential.schedule.alpha(level), potential.schedule.sigma(level)
    pairs = [leaf.reference for leaf in _innermost(potential)]
    means = np.array([np.broadcast_to(np.asarray(mean, dtype=float), shape).ravel() for mean, _ in pairs])
    variances = np.array([float(np.mean(variance)) for _, variance in pairs])
    centre = alpha * means.mean(0)
    apart = ((alpha * means - centre) ** 2).mean(1)
    return Surroundings(centre, float(np.sqrt(np.max(alpha**2 * variances + sigma**2 + apart))))


def _innermost(potential: Target) -> Iterator[Target]:
    """Yield the densities that know the moments of their data; the canvas of a tapestry has none of its own."""
    parts = [part for part in potential.parts() if tuple(part.event_shape) == tuple(potential.event_shape)]
    if not parts:
        yield potential
    for part in parts:
        yield from _innermost(part)


def _curvature_directions(
    evaluate: Evaluate, centre: np.ndarray, radius: float, size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return directions ``(n, size)`` of least curvature and random ones, and the centre of the tails, if there is one.

    The matrix of curvatures is exact for Gaussian tails, as is their centre.
    """
    steps = radius * np.eye(size)
    _, gradients = evaluate(np.concatenate([centre + steps, centre - steps]))
    above, below = gradients[:size], gradients[size:]
    curvature = (above - below) / (2 * radius)
    values, vectors = _eigen((curvature + curvature.T) / 2)
    least = vectors.T[: min(4, size)]
    rays = np.random.default_rng(0).standard_normal((RAYS - len(least), size))
    directions = np.concatenate([least, rays / np.linalg.norm(rays, axis=1, keepdims=True)])
    middle = None
    if values is not None and values[0] > 1e-12 * values[-1]:
        pull = ((above + below) / 2).mean(0)
        middle = centre - vectors @ ((vectors.T @ pull) / values)
    return np.concatenate([directions, -directions]), middle


def _krylov_directions(evaluate: Evaluate, centre: np.ndarray, radius: float, size: int) -> np.ndarray:
    """Return the direction of least curvature that Lanczos steps from a random direction find, both ways, and that."""
    start = np.random.default_rng(0).standard_normal(size)
    basis = [start / np.linalg.norm(start)]
    images = []
    for _ in range(LANCZOS_STEPS):
        v = basis[-1]
        _, gradients = evaluate(np.stack([centre + radius * v, centre - radius * v]))
        images.append((gradients[0] - gradients[1]) / (2 * radius))
        rest = images[-1] - sum((b @ images[-1]) * b for b in basis)
        norm = float(np.linalg.norm(rest))
        if not np.isfinite(norm) or norm < 1e-9:
            break
        basis.append(rest / norm)
    tried = np.array(basis[: len(images)])
    projected = tried @ np.array(images).T
    _, vectors = _eigen((projected + projected.T) / 2)
    least = vectors[:, 0] @ tried
    return np.stack([least, -least, tried[0], -tried[0]])


def _eigen(matrix: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Return eigenvalues, rising, and eigenvectors; the unit vectors if the matrix is not finite."""
    if not np.all(np.isfinite(matrix)):
        return None, np.eye(len(matrix))
    return tuple(np.linalg.eigh(matrix))  # type: ignore[return-value]


def _descended(evaluate: Evaluate, directions: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Return the directions ``(n, size)`` and where they end on the sphere after a few steps of falling energy."""
    v = directions
    energy, gradient = evaluate(centre + radius * v)
    for step in 0.8 * 0.5 ** np.arange(DESCENTS):
        along = gradient - np.sum(gradient * v, axis=1, keepdims=True) * v
        norm = np.linalg.norm(along, axis=1, keepdims=True)
        tried = v - step * along / np.where(norm > 0, norm, 1)
        tried /= np.linalg.norm(tried, axis=1, keepdims=True)
        there, slope = evaluate(centre + radius * tried)
        lower = (there < energy)[:, None]
        v, energy, gradient = (
            np.where(lower, tried, v),
            np.where(lower[:, 0], there, energy),
            np.where(lower, slope, gradient),
        )
    return np.concatenate([directions, v])


def _refined(evaluate: Evaluate, directions: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Return the directions of least curvature, both ways, about the end of the direction in which energy is least.

    The tails of a mixture are those of different components in different directions; where one begins to decide, its
    own directions of least curvature are found.
    """
    ends = centre + radius * directions
    base, stride = ends[np.argmin(evaluate(ends)[0])], 0.1 * radius
    _, gradients = evaluate(np.concatenate([base[None], base + stride * np.eye(len(base))]))
    curvature = (gradients[1:] - gradients[0]) / stride
    _, vectors = _eigen((curvature + curvature.T) / 2)
    least = vectors.T[: RAYS // 2]
    return np.concatenate([least, -least])


def _grows_along(evaluate: Evaluate, directions: np.ndarray, centre: np.ndarray, near: float) -> bool:
    """Whether the energy grows along all directions ``(n, size)`` from the distance ``near`` to its double, or there is
    no density there: its energy is then infinite or not a number."""
    energy, _ = evaluate(np.concatenate([centre + near * directions, centre + 2 * near * directions]))
    begin, end = np.split(np.where(np.isnan(energy), np.inf, energy), 2)
    return bool(np.all((end > begin) | (end == np.inf)))
