"""The benchmark targets that are known in closed form, each with exact draws at every level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from ..arrays import Array
from ..potentials.algebra import Potential, mixture
from ..potentials.analytic import GaussianMixture, UniformBox
from ..potentials.function import EnergyFunction
from ..potentials.observation import observation
from ..potentials.planar import exact
from ..potentials.tapestry import tapestry
from ..schedule import NoiseSchedule
from .boxes import BoxLaw
from .exact import Law
from .funnel import Funnel
from .gaussians import GaussianLaw, LogQuadratics
from .planar import PlanarLaw

SCHEDULE = NoiseSchedule.cosine(100)
WEIGHTS = (0.4, 0.3, 0.2, 0.1)

Known = tuple[Potential, Law]
"""A potential, and how it is known exactly."""


def _separated(dimensions: int, *, radius: float, seed: int) -> GaussianMixture:
    """Return a mixture with uneven weights, means about ``radius * sqrt(2)`` apart, and scales that differ by four."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((max(dimensions, 4), 4)))[0].T if dimensions > 4 else _corners()
    scales = 0.1 * 2.0 ** rng.uniform(-1, 1, size=(4, dimensions))
    return GaussianMixture(
        radius * directions, scales, weights=WEIGHTS, schedule=SCHEDULE, backend="torch", name=f"mixture_{dimensions}"
    )


def _corners() -> np.ndarray:
    return np.array([[1.0, 0.2], [-0.3, 0.9], [-0.8, -0.5], [0.4, -0.9]])


def _mixture(dimensions: int, radius: float) -> Known:
    potential = _separated(dimensions, radius=radius, seed=dimensions)
    return potential, GaussianLaw(_Noised(potential), (dimensions,))


def mixture_2() -> Known:
    return _mixture(2, 1.0)


def mixture_16() -> Known:
    return _mixture(16, 1.5)


def mixture_64() -> Known:
    return _mixture(64, 1.5)


def mixture_256() -> Known:
    return _mixture(256, 2.0)


def ill_conditioned_64() -> Known:
    """Standard deviations from .01 to 2.5, which the noise of level 0 turns into a condition number of 1e4."""
    rng = np.random.default_rng(64)
    axes = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    covariance = axes * np.geomspace(0.01, 2.7, 64) ** 2 @ axes.T
    mean = rng.standard_normal((1, 64))
    potential = GaussianMixture(
        mean, covariances=covariance[None], schedule=SCHEDULE, backend="torch", name="ill_conditioned_64"
    )
    return potential, GaussianLaw(_Noised(potential), (64,))


def ring_bar() -> Known:
    ring, bar = exact("ring", backend="torch"), exact("bar", backend="torch")
    assert isinstance(ring, GaussianMixture)
    return ring * bar, PlanarLaw(ring.sample, bar, np.zeros(2), ring.means[[2, 6]])


def ring_wide() -> Known:
    ring, wide = exact("ring", backend="torch"), exact("wide", backend="torch")
    assert isinstance(ring, GaussianMixture)
    assert isinstance(wide, GaussianMixture)
    return ring / wide**0.5, GaussianLaw(_Quotient(ring, wide, 0.5), (2,))


def box_8() -> Known:
    sides, rng = np.geomspace(0.1, 2.0, 8), np.random.default_rng(8)
    middle = rng.uniform(-0.5, 0.5, size=8)
    low, high = (middle - sides / 2).tolist(), (middle + sides / 2).tolist()
    box = UniformBox(low, high, schedule=SCHEDULE, backend="torch", name="box_8")
    return box, BoxLaw((box,), (1.0,))


def two_boxes() -> Known:
    corners = (([-1.0, -0.5, -1.0, 0.2], [-0.6, 0.5, 1.0, 0.8]), ([0.5, -1.0, -0.2, -0.6], [1.0, 0.2, 0.2, 0.6]))
    boxes = [
        UniformBox(low, high, schedule=SCHEDULE, backend="torch", name=name)
        for (low, high), name in zip(corners, ("left_box", "right_box"), strict=True)
    ]
    weights = (0.7, 0.3)
    return mixture(boxes, log_weights=np.log(weights).tolist()), BoxLaw(boxes, weights)


def left_right() -> Known:
    left, right = exact("left", backend="torch"), exact("right", backend="torch")
    assert isinstance(left, UniformBox)
    assert isinstance(right, UniformBox)
    weights = (0.25, 0.75)
    return mixture([left, right], log_weights=np.log(weights).tolist()), BoxLaw((left, right), weights)


def product_16() -> Known:
    """The product is a mixture of nine that overlap; two of them have most of the mass."""
    rng = np.random.default_rng(4)
    factors = [
        GaussianMixture(
            0.25 * rng.standard_normal((3, 16)), 0.3 * 2.0 ** rng.uniform(-0.5, 0.5, size=(3, 16)),
            weights=(0.5, 0.3, 0.2), schedule=SCHEDULE, backend="torch", name=name,
        )
        for name in ("first", "second")
    ]  # fmt: skip
    return factors[0] * factors[1], GaussianLaw(_Product(factors[0], factors[1]), (16,))


def funnel() -> Known:
    law = Funnel(dimensions=10, spread=1.5, schedule=SCHEDULE)
    potential = EnergyFunction(law, schedule=SCHEDULE, event_shape=(10,), backend="torch", name="funnel")
    return potential, law


def inpainting() -> Known:
    """Half of sixteen coordinates are observed, and the four components of the prior hardly differ in these."""
    rng = np.random.default_rng(16)
    means = np.concatenate([0.05 * rng.standard_normal((4, 8)), 0.6 * rng.standard_normal((4, 8))], axis=1)
    prior = GaussianMixture(
        means, 0.1 * 2.0 ** rng.uniform(-1, 1, size=(4, 16)), weights=WEIGHTS, schedule=SCHEDULE, backend="torch",
        name="prior",
    )  # fmt: skip
    seen = np.arange(16) < 8
    seen_part = observation(
        np.where(seen, means[1] + 0.05, 0.0), seen=seen, scale=0.1, schedule=SCHEDULE, backend="torch", name="seen"
    )
    return prior * seen_part, GaussianLaw(_Posterior(prior, seen_part.values, seen, 0.1), (16,))


def gaussian_tapestry() -> Known:
    """Four windows of 5x5 on a canvas of 8x8, each of which prefers smooth pictures about a mean of its own."""
    corners = ((0, 0), (0, 3), (3, 0), (3, 3))
    windows = [_Window(mean) for mean in (0.5, -0.5, 0.0, 1.0)]
    parts = [
        EnergyFunction(window, schedule=SCHEDULE, event_shape=(5, 5), backend="torch", name=f"window_{i}")
        for i, window in enumerate(windows)
    ]
    woven = tapestry(parts, (8, 8), corners, name="gaussian_tapestry")
    return woven, GaussianLaw(_Woven(tuple(zip(windows, corners, strict=True)), (8, 8)), (8, 8))


@dataclass(frozen=True)
class _Noised:
    """The density of a Gaussian mixture at each level."""

    mixture: GaussianMixture

    def __call__(self, level: int) -> LogQuadratics:
        return LogQuadratics.of(self.mixture, level=level)


@dataclass(frozen=True)
class _Product:
    """The product of two noised mixtures."""

    first: GaussianMixture
    second: GaussianMixture

    def __call__(self, level: int) -> LogQuadratics:
        return LogQuadratics.of(self.first, level=level) * LogQuadratics.of(self.second, level=level)


@dataclass(frozen=True)
class _Quotient:
    """A noised mixture divided by a power of a noised Gaussian."""

    above: GaussianMixture
    below: GaussianMixture
    exponent: float

    def __call__(self, level: int) -> LogQuadratics:
        return LogQuadratics.of(self.above, level=level) * LogQuadratics.of(self.below, level=level) ** -self.exponent


@dataclass(frozen=True)
class _Posterior:
    """A noised mixture times the noised likelihood of the coordinates that were seen."""

    prior: GaussianMixture
    values: np.ndarray
    seen: np.ndarray
    scale: float

    def __call__(self, level: int) -> LogQuadratics:
        schedule = self.prior.schedule
        alpha, sigma = (schedule.alpha(level), schedule.sigma(level)) if level else (1.0, 0.0)  # exact at level 0
        precision = self.seen / (alpha**2 * self.scale**2 + sigma**2)
        likelihood = LogQuadratics(np.diag(precision)[None], (precision * alpha * self.values)[None], np.zeros(1))
        return LogQuadratics.of(self.prior, level=level) * likelihood


@cache
def _smooth(size: int, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Return variances ``(n,)`` and axes ``(n, n)`` of pictures of ``size x size`` whose correlation has a length."""
    places = np.stack(np.meshgrid(*[np.arange(size)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    squares = ((places[:, None] - places[None]) ** 2).sum(-1)
    return np.linalg.eigh(np.exp(-squares / (2 * length**2)) + 1e-3 * np.eye(size**2))


@dataclass(frozen=True)
class _Window:
    """The energy of smooth pictures of 5x5 about a mean, noised."""

    mean: float

    def precision(self, level: Any) -> np.ndarray:
        """Return the precision of the noised pictures, shape ``(25, 25)``."""
        variances, axes = _smooth(5, 1.5)
        return axes / (SCHEDULE.alpha(level) ** 2 * variances + SCHEDULE.sigma(level) ** 2) @ axes.T

    def __call__(self, x: Array, level: Any) -> Array:
        residual = (x.double() - SCHEDULE.alpha(level) * self.mean).reshape(*x.shape[:-2], 25)
        return 0.5 * ((residual @ torch.from_numpy(self.precision(level))) * residual).sum(-1)


@dataclass(frozen=True)
class _Woven:
    """The density of a canvas: the product of its windows."""

    windows: tuple[tuple[_Window, tuple[int, int]], ...]
    canvas: tuple[int, int]

    def __call__(self, level: int) -> LogQuadratics:
        size = int(np.prod(self.canvas))
        precision, linear = np.zeros((size, size)), np.zeros(size)
        for window, (top, left) in self.windows:
            inside = np.arange(size).reshape(self.canvas)[top : top + 5, left : left + 5].ravel()
            own = window.precision(level)
            precision[np.ix_(inside, inside)] += own
            linear[inside] += own.sum(1) * SCHEDULE.alpha(level) * window.mean
        return LogQuadratics(precision[None], linear[None], np.zeros(1))


ANALYTIC: dict[str, tuple[Callable[[], Known], str]] = {
    "mixture_2": (mixture_2, "four Gaussians with uneven weights in the plane"),
    "mixture_16": (mixture_16, "four Gaussians with uneven weights in 16 dimensions"),
    "mixture_64": (mixture_64, "four Gaussians with uneven weights in 64 dimensions"),
    "mixture_256": (mixture_256, "four Gaussians with uneven weights in 256 dimensions"),
    "ill_conditioned_64": (ill_conditioned_64, "a rotated Gaussian of condition number 1e4 in 64 dimensions"),
    "ring_bar": (ring_bar, "the exact ring times the exact bar: two small spots"),
    "ring_wide": (ring_wide, "the exact ring divided by the root of a wide Gaussian: eight spots of uneven weights"),
    "left_right": (left_right, "the exact left and right boxes, with weights .25 and .75"),
    "product_16": (product_16, "two mixtures of three Gaussians multiplied, in 16 dimensions"),
    "box_8": (box_8, "a box in 8 dimensions whose sides differ by a factor of 20"),
    "two_boxes": (two_boxes, "two boxes in 4 dimensions with weights .7 and .3"),
    "funnel": (funnel, "a funnel: the scale of nine coordinates changes with the first one"),
    "inpainting": (inpainting, "the unseen half of 16 coordinates under a prior of four Gaussians"),
    "gaussian_tapestry": (gaussian_tapestry, "overlapping windows of smooth Gaussian pictures on a canvas of 8x8"),
}
"""How each target is built, and what it is. All have the levels ``LEVELS``."""

LEVELS = (60, 20, 0)
