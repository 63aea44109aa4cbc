"""What is known of a target at one level: expectations that samples are judged by, and the modes.

A reference is exact, simulated from exact draws, or measured on long runs of two kernels. Every expectation has its
standard error: zero where it is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import read_only


@dataclass(frozen=True)
class Expectation:
    """The expectation of a function of ``x``, by which an estimate is judged: ``(estimate - value)^2 / variance``.

    Attributes:
        value: the expectation, a number or an array of shape ``event_shape``.
        error: its standard error, of the same shape; zero where it is exact.
        variance: variance of the function under the target, of the same shape.
    """

    value: Any
    error: Any
    variance: Any

    def __post_init__(self) -> None:
        shapes = {np.shape(part) for part in (self.value, self.error, self.variance)}
        if len(shapes) != 1:
            raise ValueError(f"value, error and variance must have one shape, got {sorted(shapes)}")
        if not (np.all(np.isfinite([self.value, self.error, self.variance])) and np.all(np.asarray(self.variance) > 0)):
            raise ValueError("value, error and variance must be finite, and the variance positive")
        read_only(*(part for part in (self.value, self.error, self.variance) if isinstance(part, np.ndarray)))

    @classmethod
    def of_moments(cls, first: Any, second: Any, error: Any = None) -> Expectation:
        """Return the expectation of ``f`` from ``E f`` and ``E f^2``, exact by default."""
        return cls(first, np.zeros_like(first) if error is None else error, second - np.square(first))


@dataclass(frozen=True)
class Modes:
    """Modes of a target at one level. A point belongs to the mode whose location is nearest.

    Attributes:
        locations: shape ``(k, *event_shape)``.
        weights: probability of the points that belong to each mode, shape ``(k,)``.
        errors: standard errors of the weights, shape ``(k,)``.
    """

    locations: np.ndarray
    weights: np.ndarray
    errors: np.ndarray

    def __post_init__(self) -> None:
        if len({len(self.locations), *self.weights.shape, *self.errors.shape}) != 1:
            raise ValueError(f"{len(self.locations)} modes need as many weights and errors")
        if not np.isclose(self.weights.sum(), 1.0):
            raise ValueError(f"weights of modes must sum to 1, got {self.weights.sum():.4g}")
        read_only(self.locations, self.weights, self.errors)

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """Return the mode of each point ``x (n, *event_shape)``, integers ``(n,)``."""
        flat, centres = np.reshape(x, (len(x), -1)), self.locations.reshape(len(self.locations), -1)
        return np.argmin((centres**2).sum(1) - 2 * flat @ centres.T, axis=1)


@dataclass(frozen=True)
class Reference:
    """What is known of a target at one level.

    ``log p`` is minus the energy of the target's potential, with its constant: an unnormalised log-density, in nats.

    Attributes:
        x: expectation of the coordinates, of shape ``event_shape``.
        x_squared: expectation of their squares.
        log_p: expectation of ``log p``, a number.
        log_p_squared: expectation of its square.
        modes: the modes, or None where the target has only one, or where they are not known.
        made: how the reference was made, a sentence.
        effective_draws: effective number of independent draws behind the least certain expectation; infinite if exact.
        condition_number: ratio of the largest to the smallest variance along the principal axes, within the worst mode;
            of pictures, from coordinate to coordinate.
        draws: some draws of the target, shape ``(n, *event_shape)``, or None.
    """

    x: Expectation
    x_squared: Expectation
    log_p: Expectation
    log_p_squared: Expectation
    modes: Modes | None = None
    made: str = ""
    effective_draws: float = float("inf")
    condition_number: float = float("nan")
    draws: np.ndarray | None = None

    def __post_init__(self) -> None:
        if np.shape(self.x.value) != np.shape(self.x_squared.value):
            raise ValueError("x and x_squared must have one shape, that of a point")
        if np.ndim(self.log_p.value) or np.ndim(self.log_p_squared.value):
            raise ValueError("log_p and log_p_squared are numbers")

    @property
    def expectations(self) -> dict[str, Expectation]:
        """The four expectations by the name of what is averaged."""
        return {"x": self.x, "x^2": self.x_squared, "log p": self.log_p, "(log p)^2": self.log_p_squared}


def functions(x: np.ndarray, log_p: np.ndarray) -> dict[str, np.ndarray]:
    """Return what a reference has the expectations of, at points ``x (n, *event_shape)`` of log-density ``(n,)``."""
    return {"x": x, "x^2": np.square(x), "log p": log_p, "(log p)^2": np.square(log_p)}


def stratified(values: Sequence[np.ndarray], weights: np.ndarray) -> Expectation:
    """Return the expectation of a function under a mixture from independent draws of each of its components.

    Args:
        values: of the function at the draws of each component, shapes ``(n_k, ...)``.
        weights: the weights of the components, which are known, shape ``(k,)``.
    """
    means, squares = (np.array([(each**power).mean(0) for each in values]) for power in (1, 2))
    noise = np.array([each.var(0) / len(each) for each in values])
    value = np.tensordot(weights, means, 1)
    error = np.sqrt(np.tensordot(weights**2, noise, 1))
    return Expectation(value, error, np.tensordot(weights, squares, 1) - value**2)
