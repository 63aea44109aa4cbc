"""The benchmark targets that are made of the shipped models.

Those in the plane are known by quadrature. Those of pictures are known from long runs of two kernels, at levels that
are noisy enough for both to converge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..models.library import load
from ..potentials.algebra import Potential
from ..potentials.guidance import conjunction
from ..potentials.observation import observation
from ..potentials.planar import exact

CUBES = ((0.3, 0.6), (0.7, 0.4), (0.5, 0.75))
"""Positions ``(x, y)`` of the cubes, of which a conjunction takes the first ones."""

SEEN_NOISE = 0.2
"""Standard deviation of the measurement of the seen half of a digit."""


@dataclass(frozen=True)
class Learned:
    """How a target of a shipped model is built.

    Attributes:
        build: returns the potential.
        description: what it is, a phrase.
        levels: levels at which it is known, noisiest first.
        modes: of targets in the plane, the modes without noise, shape ``(k, 2)``; None of pictures.
        data: what the licence says of the data that the model learned from.
    """

    build: Callable[[], Potential]
    description: str
    levels: tuple[int, ...]
    modes: np.ndarray | None = None
    data: str = ""


def _ring_bar() -> Potential:
    return load("ring") * load("bar")


def _ring_over_wide() -> Potential:
    return load("ring") / load("wide") ** 0.5


def _digit() -> Potential:
    return load("digits").given(3)


def half_digit() -> np.ndarray:
    """Return a drawn zero, an oval stroke, shape ``(28, 28)``, values in [-1, 1]; its left half is seen."""
    row, column = np.meshgrid(np.arange(28) - 13.5, np.arange(28) - 13.5, indexing="ij")
    distance = np.abs(np.hypot(row / 9.0, column / 6.0) - 1.0) * 7.0
    return np.clip(2.0 - distance, 0.0, 1.0) * 2.0 - 1.0


def _completion() -> Potential:
    digits, seen = load("digits"), np.broadcast_to(np.arange(28) < 14, (28, 28))
    half = observation(
        half_digit(), seen=seen, scale=SEEN_NOISE, schedule=digits.schedule, backend="torch", name="left_half"
    )
    return digits * half


def _cubes(count: int) -> Potential:
    cubes = load("cubes")
    return conjunction([cubes.given(x=x, y=y) for x, y in CUBES[:count]], cubes)


def _two_cubes() -> Potential:
    return _cubes(2)


def _three_cubes() -> Potential:
    return _cubes(3)


MNIST = "; the model learned from MNIST (CC BY-SA 3.0)"

RING = exact("ring", backend="torch").means  # type: ignore[union-attr]

LEARNED = {
    "learned_ring_bar": Learned(_ring_bar, "the learned ring times the learned bar", (60, 20, 0), RING[[2, 6]]),
    "learned_ring_wide": Learned(
        _ring_over_wide, "the learned ring divided by the root of the learned wide Gaussian", (60, 20, 0), RING
    ),
    "digit_3": Learned(_digit, "pictures of the digit three, 28x28", (90, 80, 70), data=MNIST),
    "digit_completion": Learned(_completion, "digits of which the left half is seen, 28x28", (90, 80, 70), data=MNIST),
    "cubes_2": Learned(_two_cubes, "pictures of cubes at two places, 3x32x32", (90, 80, 70)),
    "cubes_3": Learned(_three_cubes, "pictures of cubes at three places, 3x32x32", (90, 80, 70)),
}
